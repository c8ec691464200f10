package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"net"
	"time"
)

// tcpBuffer is one read or write of the client commands: the size the
// reference's own relay uses.
const tcpBuffer = 32 << 10

// open asks the server for a TCP connection and puts the command's deadline on
// it. A connection that arrives after the deadline is closed.
func (u *user) open(ctx context.Context, addr string) (net.Conn, error) {
	type opened struct {
		conn net.Conn
		err  error
	}
	done := make(chan opened, 1)
	go func() {
		conn, err := u.inner.TCP(addr)
		done <- opened{conn, err}
	}()
	select {
	case o := <-done:
		if o.err != nil {
			return nil, o.err
		}
		if deadline, ok := ctx.Deadline(); ok {
			_ = o.conn.SetDeadline(deadline)
		}
		return o.conn, nil
	case <-ctx.Done():
		go func() {
			if o := <-done; o.err == nil {
				_ = o.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

type dialArgs struct {
	Addr string `json:"addr"`
	// Read waits for the first bytes: with fast_open only the first read
	// learns that the target was refused.
	Read bool `json:"read"`
}

// dial opens and closes one connection.
func (u *user) dial(ctx context.Context, a dialArgs) (any, error) {
	conn, err := u.open(ctx, a.Addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if !a.Read {
		return fields{}, nil
	}
	buf := make([]byte, 1024)
	n, err := conn.Read(buf)
	return fields{"bytes": n, "hex": hex.EncodeToString(buf[:n])}, err
}

type echoArgs struct {
	Addr  string `json:"addr"`
	Bytes uint64 `json:"bytes"`
	Seed  uint64 `json:"seed"`
}

// tcpEcho sends the pattern, reads it back at the same time and compares.
func (u *user) tcpEcho(ctx context.Context, a echoArgs) (any, error) {
	conn, err := u.open(ctx, a.Addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return echoOver(conn, a)
}

// earlyData is tcpEcho that writes before the response to the request can have
// arrived; open_ms tells how long the open itself took.
func (u *user) earlyData(ctx context.Context, a echoArgs) (any, error) {
	if !u.config.FastOpen {
		return nil, usage("early_data needs fast_open in the configuration")
	}
	start := time.Now()
	conn, err := u.open(ctx, a.Addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	opened := millis(start)
	r, err := echoOver(conn, a)
	if r != nil {
		r["open_ms"] = opened
	}
	return r, err
}

func echoOver(conn net.Conn, a echoArgs) (fields, error) {
	wrote := make(chan error, 1)
	go func() { wrote <- writePattern(conn, a.Bytes, a.Seed, nil) }()
	got, sum, err := readPattern(conn, a.Bytes, a.Seed, true, 0, 0)
	if err != nil {
		_ = conn.SetDeadline(time.Now()) // frees the writer
	}
	if werr := <-wrote; err == nil {
		err = werr
	}
	return fields{"bytes": got, "sha256": sum}, err
}

// writePattern sends the first n bytes of a pattern.
func writePattern(w io.Writer, n, seed uint64, h hash.Hash) error {
	p := newPattern(seed)
	for n > 0 {
		chunk := p.next(min(n, tcpBuffer))
		if h != nil {
			h.Write(chunk)
		}
		if _, err := w.Write(chunk); err != nil {
			return err
		}
		n -= uint64(len(chunk))
	}
	return nil
}

// readPattern reads n bytes, compares them with the pattern and, when hashed,
// returns their SHA-256. After pauseAfter bytes it reads nothing for pause.
func readPattern(r io.Reader, n, seed uint64, hashed bool, pauseAfter uint64, pause time.Duration) (got uint64, sum string, err error) {
	p := newPattern(seed)
	var h hash.Hash
	if hashed {
		h = sha256.New()
	}
	buf := make([]byte, tcpBuffer)
	for got < n {
		if pause > 0 && got >= pauseAfter {
			time.Sleep(pause)
			pause = 0
		}
		k, err := r.Read(buf[:min(tcpBuffer, n-got)])
		if !p.matches(buf[:k]) {
			return got, "", mismatch{fmt.Sprintf("bytes %d..%d differ from the pattern", got, got+uint64(k))}
		}
		got += uint64(k)
		if h != nil {
			h.Write(buf[:k])
		}
		if err != nil && got < n {
			return got, "", fmt.Errorf("after %d of %d bytes: %w", got, n, err)
		}
	}
	if h != nil {
		sum = hex.EncodeToString(h.Sum(nil))
	}
	return got, sum, nil
}

type speakArgs struct {
	Addr  string `json:"addr"`
	Bytes int    `json:"bytes"` // 0: until the end
}

// serverSpeaks reads without having written anything.
func (u *user) serverSpeaks(ctx context.Context, a speakArgs) (any, error) {
	conn, err := u.open(ctx, a.Addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var data []byte
	if a.Bytes > 0 {
		data = make([]byte, a.Bytes)
		var n int
		n, err = io.ReadFull(conn, data)
		data = data[:n]
	} else {
		data, err = io.ReadAll(io.LimitReader(conn, maxLine/4))
	}
	return fields{"bytes": len(data), "text": string(data)}, err
}

type zeroArgs struct {
	Addr string `json:"addr"`
	N    int    `json:"n"` // default 1
}

// zeroBytes opens and closes n connections without a byte in either direction.
func (u *user) zeroBytes(ctx context.Context, a zeroArgs) (any, error) {
	opened := 0
	for range max(a.N, 1) {
		conn, err := u.open(ctx, a.Addr)
		if err != nil {
			return fields{"opened": opened}, err
		}
		opened++
		// The server may have stopped the stream first, and then the library
		// reports this close as one too many.
		_ = conn.Close()
	}
	return fields{"opened": opened}, nil
}

type transferArgs struct {
	Addr  string `json:"addr"`
	Bytes uint64 `json:"bytes"`
	Seed  uint64 `json:"seed"`
	Hash  *bool  `json:"hash"` // default true; a bench turns it off
	// Download only: stop reading for pause_ms once pause_after bytes came.
	PauseAfter uint64 `json:"pause_after"`
	PauseMS    uint64 `json:"pause_ms"`
	// Upload to a stall origin only: it reads first bytes, then nothing for
	// stall_ms.
	First   uint64 `json:"first"`
	StallMS uint64 `json:"stall_ms"`
}

func (a transferArgs) hashed() bool { return a.Hash == nil || *a.Hash }

// tcpDownload asks a source for bytes of a pattern and checks them.
func (u *user) tcpDownload(ctx context.Context, a transferArgs) (any, error) {
	conn, err := u.open(ctx, a.Addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "%d %d\n", a.Bytes, a.Seed); err != nil {
		return nil, err
	}
	start := time.Now()
	got, sum, err := readPattern(conn, a.Bytes, a.Seed, a.hashed(), a.PauseAfter, time.Duration(a.PauseMS)*time.Millisecond)
	return fields{"bytes": got, "sha256": sum, "transfer_ms": millis(start)}, err
}

// tcpUpload sends bytes of a pattern to a sink and compares the sink's count
// and hash with its own.
func (u *user) tcpUpload(ctx context.Context, a transferArgs) (any, error) {
	if a.Bytes == 0 {
		return nil, usage("bytes: an upload needs a length, the sink answers after it")
	}
	conn, err := u.open(ctx, a.Addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var h hash.Hash
	if a.hashed() {
		h = sha256.New()
	}
	start := time.Now()
	request := fmt.Sprintf("%d\n", a.Bytes)
	if a.StallMS > 0 {
		request = fmt.Sprintf("%d %d %d\n", a.Bytes, a.First, a.StallMS)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		return nil, err
	}
	if err := writePattern(conn, a.Bytes, a.Seed, h); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(conn).ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("waiting for the sink's summary: %w", err)
	}
	var s summary
	if err := json.Unmarshal(line, &s); err != nil {
		return nil, err
	}
	f := fields{"bytes": a.Bytes, "remote_bytes": s.Bytes, "remote_sha256": s.SHA256, "transfer_ms": millis(start)}
	sum := ""
	if h != nil {
		sum = hex.EncodeToString(h.Sum(nil))
		f["sha256"] = sum
	}
	if s.Bytes != a.Bytes || (sum != "" && s.SHA256 != "" && s.SHA256 != sum) {
		return f, mismatch{"the sink received something else"}
	}
	return f, nil
}
