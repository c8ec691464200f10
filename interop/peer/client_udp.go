package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/apernet/hysteria/core/v2/client"
)

// replyWait is how long one datagram may take before it counts as lost.
const replyWait = 2 * time.Second

// session is a UDP session whose receiver knows contexts: the library's
// Receive blocks until the session closes.
type session struct {
	conn   client.HyUDPConn
	inbox  chan arrival
	sendMu sync.Mutex // the library's Send is not thread-safe
}

type arrival struct {
	data []byte
	from string
}

func (u *user) session(ctx context.Context) (*session, error) {
	var conn client.HyUDPConn
	err := within(ctx, func() (err error) {
		conn, err = u.inner.UDP()
		return err
	})
	if err != nil {
		return nil, err
	}
	s := &session{conn: conn, inbox: make(chan arrival, 4096)}
	go func() {
		defer close(s.inbox)
		for {
			data, from, err := conn.Receive()
			if err != nil {
				return // closed, the library has only EOF to say
			}
			select {
			case s.inbox <- arrival{data, from}:
			default: // full, lost as in any network
			}
		}
	}()
	return s, nil
}

func (s *session) close() error { return s.conn.Close() }

func (s *session) send(data []byte, to string) error {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	return s.conn.Send(data, to)
}

func (s *session) receive(ctx context.Context) (arrival, error) {
	select {
	case a, open := <-s.inbox:
		if !open {
			return a, io.EOF
		}
		return a, nil
	case <-ctx.Done():
		return arrival{}, ctx.Err()
	}
}

// roundTrip sends one datagram and waits for the same bytes. Others that come
// meanwhile are late echoes of datagrams given up earlier; they are an error
// only when the right one does not come.
func (s *session) roundTrip(ctx context.Context, data []byte, to string, wait time.Duration) (arrival, error) {
	if err := s.send(data, to); err != nil {
		return arrival{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	strays := 0
	for {
		got, err := s.receive(ctx)
		switch {
		case err != nil && strays > 0:
			return got, mismatch{fmt.Sprintf("sent %d bytes, got %d other datagrams", len(data), strays)}
		case err != nil:
			return got, err
		case bytes.Equal(got.data, data):
			return got, nil
		}
		strays++
	}
}

type udpEchoArgs struct {
	Addr  string `json:"addr"`
	Sizes []int  `json:"sizes"`
	Count int    `json:"count"` // of each size, default 1
	Seed  uint64 `json:"seed"`
	// WaitMS is how long an echo may take, default 2000.
	WaitMS uint64 `json:"wait_ms"`
}

// udpEcho sends datagrams one at a time in one session and waits for each
// echo. lost lists the sizes that did not come back in time.
func (u *user) udpEcho(ctx context.Context, a udpEchoArgs) (any, error) {
	wait := replyWait
	if a.WaitMS > 0 {
		wait = time.Duration(a.WaitMS) * time.Millisecond
	}
	s, err := u.session(ctx)
	if err != nil {
		return nil, err
	}
	defer s.close()
	sent, received := 0, 0
	lost, from := []int{}, map[string]int{}
	seed := a.Seed
	for _, size := range a.Sizes {
		for range max(a.Count, 1) {
			seed++
			sent++
			got, err := s.roundTrip(ctx, patternBytes(seed, size), a.Addr, wait)
			if kindOfErr(err) == "timeout" && ctx.Err() == nil {
				lost = append(lost, size)
				continue
			}
			if err != nil {
				return fields{"sent": sent, "received": received, "lost": lost, "from": from}, err
			}
			received++
			from[got.from]++
		}
	}
	f := fields{"sent": sent, "received": received, "lost": lost, "from": from}
	if len(lost) > 0 {
		return f, partial{fmt.Sprintf("%d of %d datagrams came back", received, sent)}
	}
	return f, nil
}

func kindOfErr(err error) string {
	if err == nil {
		return ""
	}
	return kindOf(err)
}

type udpBurstArgs struct {
	Addr string `json:"addr"`
	Size int    `json:"size"` // at least 8: each carries a number
	N    int    `json:"n"`
	// GapUS is the pause between two datagrams in microseconds.
	GapUS uint64 `json:"gap_us"`
	// QuietMS ends the wait once nothing came for this long, default 500.
	QuietMS uint64 `json:"quiet_ms"`
}

// udpBurst sends numbered datagrams without waiting and counts the echoes.
func (u *user) udpBurst(ctx context.Context, a udpBurstArgs) (any, error) {
	if a.Size < 8 {
		return nil, usage("size: at least 8")
	}
	quiet := 500 * time.Millisecond
	if a.QuietMS > 0 {
		quiet = time.Duration(a.QuietMS) * time.Millisecond
	}
	s, err := u.session(ctx)
	if err != nil {
		return nil, err
	}
	defer s.close()

	start := time.Now()
	sendErr := make(chan error, 1)
	go func() {
		body := patternBytes(1, a.Size)
		for i := range a.N {
			binary.BigEndian.PutUint64(body, uint64(i))
			if err := s.send(body, a.Addr); err != nil {
				sendErr <- err
				return
			}
			if a.GapUS > 0 {
				time.Sleep(time.Duration(a.GapUS) * time.Microsecond)
			}
		}
		sendErr <- nil
	}()

	seen := make([]bool, a.N)
	received, duplicates, reordered, wrong := 0, 0, 0, 0
	newest := -1
	sending := true
	last := time.Now()
	for received < a.N && (sending || time.Since(last) < quiet) {
		wait, cancel := context.WithTimeout(ctx, quiet)
		got, err := s.receive(wait)
		cancel()
		if sending {
			select {
			case err := <-sendErr:
				sending, last = false, time.Now()
				if err != nil {
					return nil, err
				}
			default:
			}
		}
		if err != nil {
			if err == io.EOF || ctx.Err() != nil {
				break
			}
			continue
		}
		last = time.Now()
		if len(got.data) != a.Size {
			wrong++
			continue
		}
		i := int(binary.BigEndian.Uint64(got.data))
		switch {
		case i < 0 || i >= a.N:
			wrong++
		case seen[i]:
			duplicates++
		default:
			seen[i] = true
			received++
			if i < newest {
				reordered++
			}
			newest = max(newest, i)
		}
	}
	f := fields{
		"sent": a.N, "received": received, "duplicates": duplicates,
		"reordered": reordered, "wrong": wrong, "transfer_ms": millis(start),
	}
	if wrong > 0 {
		return f, mismatch{fmt.Sprintf("%d datagrams came back changed", wrong)}
	}
	return f, nil
}

type udpSessionsArgs struct {
	Addr string `json:"addr"`
	N    int    `json:"n"`
	Size int    `json:"size"`
}

// udpSessions keeps n sessions open together, each with one echo.
func (u *user) udpSessions(ctx context.Context, a udpSessionsArgs) (any, error) {
	var sessions []*session
	defer func() {
		for _, s := range sessions {
			_ = s.close()
		}
	}()
	errs, completed := tally{}, 0
	for i := range a.N {
		s, err := u.session(ctx)
		if err != nil {
			errs.add(err)
			break
		}
		sessions = append(sessions, s)
		if _, err := s.roundTrip(ctx, patternBytes(uint64(i), max(a.Size, 1)), a.Addr, replyWait); err != nil {
			errs.add(err)
			continue
		}
		completed++
	}
	f := fields{"opened": len(sessions), "completed": completed, "errors": errs}
	if completed != a.N {
		return f, partial{fmt.Sprintf("%d of %d sessions echoed", completed, a.N)}
	}
	return f, nil
}

type udpMultiArgs struct {
	Addrs  []string `json:"addrs"`
	Size   int      `json:"size"`
	Rounds int      `json:"rounds"` // default 1
}

// udpMultiTarget talks to several targets in one session and checks that each
// reply comes from the address it was sent to.
func (u *user) udpMultiTarget(ctx context.Context, a udpMultiArgs) (any, error) {
	s, err := u.session(ctx)
	if err != nil {
		return nil, err
	}
	defer s.close()
	received := 0
	for round := range max(a.Rounds, 1) {
		for i, addr := range a.Addrs {
			got, err := s.roundTrip(ctx, patternBytes(uint64(round*len(a.Addrs)+i), max(a.Size, 1)), addr, replyWait)
			if err == nil && got.from != addr {
				err = mismatch{fmt.Sprintf("sent to %s, the reply says %s", addr, got.from)}
			}
			if err != nil {
				return fields{"received": received}, fmt.Errorf("target %s: %w", addr, err)
			}
			received++
		}
	}
	return fields{"received": received}, nil
}

// udpOpen opens a session that stays, for the commands below.
func (u *user) udpOpen(ctx context.Context, a tagArgs) (any, error) {
	s, err := u.session(ctx)
	if err != nil {
		return nil, err
	}
	u.held.mu.Lock()
	defer u.held.mu.Unlock()
	if u.held.udp == nil {
		u.held.udp = map[string]*session{}
	}
	if u.held.udp[a.Tag] != nil {
		_ = s.close()
		return nil, usage("a session %q is open", a.Tag)
	}
	u.held.udp[a.Tag] = s
	return fields{}, nil
}

func (s *shelf) session(tag string) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.udp[tag] == nil {
		return nil, usage("no session %q is open", tag)
	}
	return s.udp[tag], nil
}

type udpSendArgs struct {
	Tag  string `json:"tag"`
	Addr string `json:"addr"`
	Hex  string `json:"hex"` // the payload, or
	Size int    `json:"size"`
	Seed uint64 `json:"seed"`
}

func (u *user) udpSend(_ context.Context, a udpSendArgs) (any, error) {
	s, err := u.held.session(a.Tag)
	if err != nil {
		return nil, err
	}
	data := patternBytes(a.Seed, a.Size)
	if a.Hex != "" {
		if data, err = hex.DecodeString(a.Hex); err != nil {
			return nil, usage("hex: %v", err)
		}
	}
	return fields{"bytes": len(data)}, s.send(data, a.Addr)
}

// udpRecv waits for one datagram of a held session.
func (u *user) udpRecv(ctx context.Context, a tagArgs) (any, error) {
	s, err := u.held.session(a.Tag)
	if err != nil {
		return nil, err
	}
	got, err := s.receive(ctx)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(got.data)
	return fields{
		"from": got.from, "bytes": len(got.data),
		"sha256": hex.EncodeToString(sum[:]), "hex": hex.EncodeToString(got.data),
	}, nil
}

func (u *user) udpClose(_ context.Context, a tagArgs) (any, error) {
	s, err := u.held.session(a.Tag)
	if err != nil {
		return nil, err
	}
	u.held.mu.Lock()
	delete(u.held.udp, a.Tag)
	u.held.mu.Unlock()
	return nil, s.close()
}
