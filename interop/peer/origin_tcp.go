package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"net"
	"time"
)

// bannerText is what the banner port says before it reads anything.
const bannerText = "220 banner.hy2.test ready\r\n"

// echo returns every byte, and half-closes after the client does.
func (o *origin) echo(conn net.Conn, count *portCount) error {
	buf := make([]byte, o.config.Buffer)
	for {
		_ = conn.SetDeadline(time.Now().Add(originIdle))
		n, err := conn.Read(buf)
		count.bytesIn.Add(uint64(n))
		if n > 0 {
			if _, err := conn.Write(buf[:n]); err != nil {
				return err
			}
			count.bytesOut.Add(uint64(n))
		}
		if err != nil {
			return err
		}
	}
}

// source reads the line "<bytes> <seed>", sends that much of the pattern and
// closes.
func (o *origin) source(conn net.Conn, count *portCount) error {
	var bytes, seed uint64
	if _, err := requestLine(conn, "%d %d", &bytes, &seed); err != nil {
		return err
	}
	p := newPattern(seed)
	for bytes > 0 {
		chunk := p.next(min(bytes, uint64(o.config.Buffer)))
		_ = conn.SetWriteDeadline(time.Now().Add(originIdle))
		n, err := conn.Write(chunk)
		count.bytesOut.Add(uint64(n))
		if err != nil {
			return err
		}
		bytes -= uint64(n)
	}
	return nil
}

// summary is the JSON line with which a sink answers.
type summary struct {
	Bytes  uint64 `json:"bytes"`
	SHA256 string `json:"sha256,omitempty"`
	MS     int64  `json:"ms"`
}

// sink reads the line "<bytes>", swallows that much (0: until the end of the
// stream) and answers with a summary line. The announced length makes the
// answer possible through a proxy that ends both directions at the first EOF.
func (o *origin) sink(conn net.Conn, count *portCount) error {
	var bytes uint64
	r, err := requestLine(conn, "%d", &bytes)
	if err != nil {
		return err
	}
	s, err := o.swallow(conn, r, bytes, count)
	if err != nil {
		return err
	}
	return json.NewEncoder(conn).Encode(s)
}

// stall reads the line "<bytes> <first> <ms>", swallows first bytes, reads
// nothing for ms, then goes on as sink does.
func (o *origin) stall(conn net.Conn, count *portCount) error {
	var bytes, first uint64
	var ms int64
	r, err := requestLine(conn, "%d %d %d", &bytes, &first, &ms)
	if err != nil {
		return err
	}
	if first > bytes {
		return fmt.Errorf("first is larger than bytes")
	}
	if _, err := io.CopyN(io.Discard, r, int64(first)); err != nil {
		return err
	}
	time.Sleep(min(time.Duration(ms)*time.Millisecond, originIdle))
	s, err := o.swallow(conn, r, bytes-first, count)
	if err != nil {
		return err
	}
	s.Bytes += first
	s.SHA256 = "" // the first part was not hashed
	return json.NewEncoder(conn).Encode(s)
}

func (o *origin) swallow(conn net.Conn, r io.Reader, bytes uint64, count *portCount) (summary, error) {
	var h hash.Hash
	if *o.config.Hash {
		h = sha256.New()
	}
	buf := make([]byte, o.config.Buffer)
	start := time.Now()
	var got uint64
	for bytes == 0 || got < bytes {
		want := buf
		if bytes > 0 {
			want = buf[:min(uint64(len(buf)), bytes-got)]
		}
		_ = conn.SetReadDeadline(time.Now().Add(originIdle))
		n, err := r.Read(want)
		got += uint64(n)
		count.bytesIn.Add(uint64(n))
		if h != nil {
			h.Write(want[:n])
		}
		if err == io.EOF && bytes == 0 {
			break
		}
		if err != nil {
			return summary{}, err
		}
	}
	s := summary{Bytes: got, MS: time.Since(start).Milliseconds()}
	if h != nil {
		s.SHA256 = hex.EncodeToString(h.Sum(nil))
	}
	return s, nil
}

// banner speaks first, then echoes.
func (o *origin) banner(conn net.Conn, count *portCount) error {
	if _, err := conn.Write([]byte(bannerText)); err != nil {
		return err
	}
	count.bytesOut.Add(uint64(len(bannerText)))
	return o.echo(conn, count)
}

// closer closes at once without a byte.
func (o *origin) closer(net.Conn, *portCount) error { return nil }

// resetter answers the first byte with a TCP reset.
func (o *origin) resetter(conn net.Conn, count *portCount) error {
	var one [1]byte
	_ = conn.SetReadDeadline(time.Now().Add(originIdle))
	n, err := conn.Read(one[:])
	if err != nil {
		return err
	}
	count.bytesIn.Add(uint64(n))
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	return nil
}

// silent swallows everything and never answers, until the client is gone.
func (o *origin) silent(conn net.Conn, count *portCount) error {
	_ = conn.SetReadDeadline(time.Now().Add(originIdle))
	n, err := io.Copy(io.Discard, conn)
	count.bytesIn.Add(uint64(n))
	return err
}

func requestLine(conn net.Conn, format string, into ...any) (*bufio.Reader, error) {
	_ = conn.SetReadDeadline(time.Now().Add(originIdle))
	r := bufio.NewReader(conn)
	line, err := r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Sscanf(line, format, into...); err != nil {
		return nil, fmt.Errorf("request line %q: %w", line, err)
	}
	return r, nil
}
