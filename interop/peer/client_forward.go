package main

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apernet/hysteria/core/v2/client"
)

type forwardArgs struct {
	Listen string `json:"listen"` // default 127.0.0.1:0
	Target string `json:"target"`
	// IdleMS ends a UDP flow that carries nothing, default 60000.
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

// relay calls the library as the official program does and nothing else: what a
// comparison measures is the reference, not this peer.
func (u *user) relay(local net.Conn, target string) {
	defer local.Close()
	remote, err := u.inner.TCP(target)
	if err != nil {
		u.out.emit("forward_failed", fields{"target": target, "error": describe(err)})
		return
	}
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
	f := &udpForward{u: u, local: conn, target: a.Target, idle: idle, flows: map[netip.AddrPort]*udpFlow{}}
	go f.run()
	go f.expire()
	return fields{"addr": conn.LocalAddr().String()}, nil
}

// udpForward calls the library's sessions directly, as the official program
// does: one goroutine sends for all of them, one of each receives.
type udpForward struct {
	u      *user
	local  *net.UDPConn
	target string
	idle   time.Duration

	mu    sync.Mutex
	flows map[netip.AddrPort]*udpFlow
}

type udpFlow struct {
	conn client.HyUDPConn
	last atomic.Int64 // when a datagram last went either way, nanoseconds
}

func (f *udpForward) run() {
	buf := make([]byte, largestUDP)
	for {
		n, from, err := f.local.ReadFromUDPAddrPort(buf)
		if err != nil {
			f.u.out.emit("forward_ended", fields{"error": describe(err)})
			return
		}
		flow, err := f.flow(from)
		if err == nil {
			flow.last.Store(time.Now().UnixNano())
			err = flow.conn.Send(buf[:n], f.target)
		}
		if err != nil {
			f.u.out.emit("forward_failed", fields{"target": f.target, "error": describe(err)})
		}
	}
}

func (f *udpForward) flow(from netip.AddrPort) (*udpFlow, error) {
	f.mu.Lock()
	flow := f.flows[from]
	f.mu.Unlock()
	if flow != nil {
		return flow, nil
	}
	conn, err := f.u.inner.UDP()
	if err != nil {
		return nil, err
	}
	flow = &udpFlow{conn: conn}
	flow.last.Store(time.Now().UnixNano())
	f.mu.Lock()
	f.flows[from] = flow
	f.mu.Unlock()
	go f.outward(from, flow)
	return flow, nil
}

func (f *udpForward) outward(to netip.AddrPort, flow *udpFlow) {
	for {
		data, _, err := flow.conn.Receive()
		if err != nil {
			break // closed, by expire or with the connection
		}
		_, _ = f.local.WriteToUDPAddrPort(data, to) // a failed send is a lost datagram
		flow.last.Store(time.Now().UnixNano())
	}
	f.mu.Lock()
	delete(f.flows, to)
	f.mu.Unlock()
	_ = flow.conn.Close()
}

// expire closes the flows that were idle for too long; their receivers end then.
func (f *udpForward) expire() {
	for now := range time.Tick(min(f.idle, time.Second)) {
		f.mu.Lock()
		for _, flow := range f.flows {
			if now.UnixNano()-flow.last.Load() > int64(f.idle) {
				_ = flow.conn.Close()
			}
		}
		f.mu.Unlock()
	}
}
