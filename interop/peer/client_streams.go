package main

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"
)

type manyArgs struct {
	Addr  string `json:"addr"` // an echo
	N     int    `json:"n"`
	Bytes uint64 `json:"bytes"`
	Seed  uint64 `json:"seed"`
	// WarmUp echoes on one stream first: a server may raise its stream limit
	// only after the first relay.
	WarmUp bool `json:"warm_up"`
	// Direct skips the barrier: each stream echoes as soon as it is open.
	Direct bool `json:"direct"`
}

// manyStreams opens n streams, waits until all of them are open at the same
// time, then echoes on all of them at once.
func (u *user) manyStreams(ctx context.Context, a manyArgs) (any, error) {
	if a.WarmUp {
		if _, err := u.tcpEcho(ctx, echoArgs{Addr: a.Addr, Bytes: 1, Seed: a.Seed}); err != nil {
			return nil, fmt.Errorf("warm-up stream: %w", err)
		}
	}
	var (
		mu        sync.Mutex
		errs      = tally{}
		opened    int
		completed int
		opening   sync.WaitGroup
		all       sync.WaitGroup
		start     = time.Now()
		openedMS  float64
	)
	opening.Add(a.N)
	all.Add(a.N)
	for i := range a.N {
		go func() {
			defer all.Done()
			conn, err := u.open(ctx, a.Addr)
			mu.Lock()
			if err != nil {
				errs.add(err)
			} else {
				opened++
			}
			mu.Unlock()
			opening.Done()
			if err != nil {
				return
			}
			defer conn.Close()
			if !a.Direct {
				opening.Wait()
			}
			_, err = echoOver(conn, echoArgs{Bytes: a.Bytes, Seed: a.Seed + uint64(i)})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs.add(err)
			} else {
				completed++
			}
		}()
	}
	opening.Wait()
	openedMS = millis(start)
	all.Wait()
	f := fields{"opened": opened, "completed": completed, "open_ms": openedMS, "errors": errs}
	if completed != a.N {
		return f, partial{fmt.Sprintf("%d of %d streams completed", completed, a.N)}
	}
	return f, nil
}

type sequentialArgs struct {
	Addr  string `json:"addr"`
	N     int    `json:"n"`
	Bytes uint64 `json:"bytes"`
	Seed  uint64 `json:"seed"`
}

// sequential echoes on n streams, one after the other.
func (u *user) sequential(ctx context.Context, a sequentialArgs) (any, error) {
	errs, completed := tally{}, 0
	for i := range a.N {
		if ctx.Err() != nil {
			errs.add(ctx.Err())
			break
		}
		if _, err := u.tcpEcho(ctx, echoArgs{Addr: a.Addr, Bytes: a.Bytes, Seed: a.Seed + uint64(i)}); err != nil {
			errs.add(err)
			continue
		}
		completed++
	}
	f := fields{"completed": completed, "errors": errs}
	if completed != a.N {
		return f, partial{fmt.Sprintf("%d of %d streams completed", completed, a.N)}
	}
	return f, nil
}

// shelf keeps streams and UDP sessions open between commands, under a tag.
type shelf struct {
	mu      sync.Mutex
	streams map[string][]net.Conn
	udp     map[string]*session
}

func (s *shelf) put(tag string, conns []net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams == nil {
		s.streams = map[string][]net.Conn{}
	}
	s.streams[tag] = append(s.streams[tag], conns...)
}

func (s *shelf) get(tag string) []net.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streams[tag]
}

func (s *shelf) take(tag string) []net.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	conns := s.streams[tag]
	delete(s.streams, tag)
	return conns
}

func (s *shelf) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, conns := range s.streams {
		for _, c := range conns {
			_ = c.Close()
		}
	}
	for _, sess := range s.udp {
		_ = sess.close()
	}
	s.streams, s.udp = nil, nil
}

type holdArgs struct {
	Addr string `json:"addr"`
	N    int    `json:"n"` // default 1
	Tag  string `json:"tag"`
}

// hold opens n streams and keeps them. What they receive is swallowed; when
// one ends, a stream_ended event tells how.
func (u *user) hold(ctx context.Context, a holdArgs) (any, error) {
	var conns []net.Conn
	for range max(a.N, 1) {
		conn, err := u.open(ctx, a.Addr)
		if err != nil {
			u.held.put(a.Tag, conns)
			return fields{"opened": len(conns)}, err
		}
		_ = conn.SetDeadline(time.Time{})
		conns = append(conns, conn)
	}
	u.held.put(a.Tag, conns)
	for i, conn := range conns {
		go u.watch(a.Tag, i, conn)
	}
	return fields{"opened": len(conns)}, nil
}

func (u *user) watch(tag string, index int, conn net.Conn) {
	buf := make([]byte, tcpBuffer)
	var got uint64
	for {
		n, err := conn.Read(buf)
		got += uint64(n)
		if err != nil {
			u.out.emit("stream_ended", fields{"tag": tag, "index": index, "bytes": got, "error": describe(err)})
			return
		}
	}
}

type pokeArgs struct {
	Tag   string `json:"tag"`
	Bytes uint64 `json:"bytes"` // default 1
}

// poke writes on every held stream of a tag, for instance to make a kick bite.
func (u *user) poke(ctx context.Context, a pokeArgs) (any, error) {
	conns := u.held.get(a.Tag)
	if len(conns) == 0 {
		return nil, usage("no streams are held under %q", a.Tag)
	}
	errs := tally{}
	wrote := 0
	for _, conn := range conns {
		if deadline, ok := ctx.Deadline(); ok {
			_ = conn.SetWriteDeadline(deadline)
		}
		if err := writePattern(conn, max(a.Bytes, 1), 0, nil); err != nil {
			errs.add(err)
			continue
		}
		wrote++
	}
	f := fields{"wrote": wrote, "errors": errs}
	if wrote != len(conns) {
		return f, partial{fmt.Sprintf("%d of %d streams took the bytes", wrote, len(conns))}
	}
	return f, nil
}

type tagArgs struct {
	Tag string `json:"tag"`
}

// release closes the held streams of a tag.
func (u *user) release(_ context.Context, a tagArgs) (any, error) {
	conns := u.held.take(a.Tag)
	for _, conn := range conns {
		_ = conn.Close()
	}
	return fields{"closed": len(conns)}, nil
}

type reconnectArgs struct {
	Addr    string `json:"addr"`     // an echo
	EveryMS uint64 `json:"every_ms"` // pause between attempts, default 100
}

// reconnect tries a small echo until one succeeds: how long a client is away
// after its server restarted.
func (u *user) reconnect(ctx context.Context, a reconnectArgs) (any, error) {
	every := 100 * time.Millisecond
	if a.EveryMS > 0 {
		every = time.Duration(a.EveryMS) * time.Millisecond
	}
	errs := tally{}
	for attempt := 1; ; attempt++ {
		short, cancel := context.WithTimeout(ctx, 3*time.Second)
		_, err := u.tcpEcho(short, echoArgs{Addr: a.Addr, Bytes: 16})
		cancel()
		u.mu.Lock()
		f := fields{"attempts": attempt, "errors": errs, "connections": u.count}
		u.mu.Unlock()
		if err == nil {
			return f, nil
		}
		errs.add(err)
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return f, ctx.Err()
		}
	}
}
