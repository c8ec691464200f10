package main

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/apernet/hysteria/core/v2/client"
)

// echoes is a client whose UDP sessions return what they are given.
type echoes struct{ opened chan *echo }

func (e echoes) TCP(string) (net.Conn, error) { return nil, io.EOF }
func (e echoes) Close() error                 { return nil }
func (e echoes) UDP() (client.HyUDPConn, error) {
	conn := &echo{data: make(chan []byte, 16), closed: make(chan struct{}, 16)}
	e.opened <- conn
	return conn, nil
}

type echo struct {
	data   chan []byte
	closed chan struct{}
}

func (e *echo) Send(data []byte, _ string) error {
	e.data <- append([]byte(nil), data...)
	return nil
}

func (e *echo) Receive() ([]byte, string, error) {
	select {
	case data := <-e.data:
		return data, "", nil
	case <-e.closed:
		return nil, "", io.EOF
	}
}

func (e *echo) Close() error {
	e.closed <- struct{}{}
	return nil
}

func TestIdleForwardEndsAndBeginsAnew(t *testing.T) {
	local, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(t, err)
	inner := echoes{opened: make(chan *echo, 16)}
	f := &udpForward{
		u: &user{inner: inner, out: newOutput(io.Discard)}, local: local, idle: 50 * time.Millisecond,
		flows: map[netip.AddrPort]*udpFlow{},
	}
	go f.run()
	go f.expire()
	t.Cleanup(func() { local.Close() })
	program, err := net.DialUDP("udp", nil, local.LocalAddr().(*net.UDPAddr))
	must(t, err)
	t.Cleanup(func() { program.Close() })
	must(t, program.SetDeadline(time.Now().Add(20*time.Second)))
	for _, text := range []string{"first", "second"} {
		_, err = program.Write([]byte(text))
		must(t, err)
		buf := make([]byte, 16)
		n, err := program.Read(buf)
		must(t, err)
		want(t, "echo", string(buf[:n]), text)
		select {
		case <-inner.opened:
		case <-time.After(20 * time.Second):
			t.Fatal("no session of its own")
		}
		waitNumber(t, 0, func() float64 {
			f.mu.Lock()
			defer f.mu.Unlock()
			return float64(len(f.flows))
		})
	}
}
