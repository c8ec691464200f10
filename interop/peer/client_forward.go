package main

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

type forwardArgs struct {
	Listen string `json:"listen"` // default 127.0.0.1:0
	Target string `json:"target"`
	// IdleMS ends a UDP flow that receives nothing, default 60000.
	IdleMS uint64 `json:"idle_ms"`
}

func (a forwardArgs) listen() string {
	if a.Listen == "" {
		return "127.0.0.1:0"
	}
	return a.Listen
}

// forwardTCP listens until the process ends and relays each connection to the
// target the way the official TCP forwarding does: two plain copies, and the
// first end closes both sides.
func (u *user) forwardTCP(_ context.Context, a forwardArgs) (any, error) {
	ln, err := net.Listen("tcp", a.listen())
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			local, err := ln.Accept()
			if err != nil {
				u.out.emit("forward_ended", fields{"error": describe(err)})
				return
			}
			go u.relay(local, a.Target)
		}
	}()
	return fields{"addr": ln.Addr().String()}, nil
}

func (u *user) relay(local net.Conn, target string) {
	defer local.Close()
	ctx, cancel := context.WithTimeout(context.Background(), defaultTimeout)
	remote, err := u.open(ctx, target)
	cancel()
	if err != nil {
		u.out.emit("forward_failed", fields{"target": target, "error": describe(err)})
		return
	}
	_ = remote.SetDeadline(time.Time{})
	defer remote.Close()
	done := make(chan struct{}, 2)
	go func() { _, _ = io.Copy(remote, local); done <- struct{}{} }()
	go func() { _, _ = io.Copy(local, remote); done <- struct{}{} }()
	<-done
}

// forwardUDP listens until the process ends and gives each local address a UDP
// session of its own towards the target.
func (u *user) forwardUDP(_ context.Context, a forwardArgs) (any, error) {
	addr, err := net.ResolveUDPAddr("udp", a.listen())
	if err != nil {
		return nil, err
	}
	conn, err := net.ListenUDP("udp", addr)
	if err != nil {
		return nil, err
	}
	_ = conn.SetReadBuffer(4 << 20) // best effort
	idle := 60 * time.Second
	if a.IdleMS > 0 {
		idle = time.Duration(a.IdleMS) * time.Millisecond
	}
	f := &udpForward{u: u, local: conn, target: a.Target, idle: idle, flows: map[netip.AddrPort]*session{}}
	go f.run()
	return fields{"addr": conn.LocalAddr().String()}, nil
}

type udpForward struct {
	u      *user
	local  *net.UDPConn
	target string
	idle   time.Duration

	mu    sync.Mutex
	flows map[netip.AddrPort]*session
}

func (f *udpForward) run() {
	buf := make([]byte, largestUDP)
	for {
		n, from, err := f.local.ReadFromUDPAddrPort(buf)
		if err != nil {
			f.u.out.emit("forward_ended", fields{"error": describe(err)})
			return
		}
		s, err := f.flow(from)
		if err == nil {
			err = s.send(buf[:n], f.target)
		}
		if err != nil {
			f.u.out.emit("forward_failed", fields{"target": f.target, "error": describe(err)})
		}
	}
}

func (f *udpForward) flow(from netip.AddrPort) (*session, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.flows[from]; s != nil {
		return s, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), defaultTimeout)
	defer cancel()
	s, err := f.u.session(ctx)
	if err != nil {
		return nil, err
	}
	f.flows[from] = s
	go f.outward(from, s)
	return s, nil
}

func (f *udpForward) outward(to netip.AddrPort, s *session) {
	defer func() {
		f.mu.Lock()
		delete(f.flows, to)
		f.mu.Unlock()
		_ = s.close()
	}()
	for {
		ctx, cancel := context.WithTimeout(context.Background(), f.idle)
		got, err := s.receive(ctx)
		cancel()
		if err != nil {
			return
		}
		_, _ = f.local.WriteToUDPAddrPort(got.data, to) // a failed send is a lost datagram
	}
}
