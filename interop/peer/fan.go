package main

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// fanConfig is the first stdin line of `peer fan`.
type fanConfig struct {
	Host   string `json:"host"`   // default 127.0.0.1
	Ports  int    `json:"ports"`  // how many ports to open, default 4
	Target string `json:"target"` // the one server behind them
}

const (
	flowIdle = 60 * time.Second
	maxFlows = 4096
)

// fan stands for the redirect rule of a port-hopping server and for a NAT:
// each client address and port it uses become one flow with a socket of its
// own towards the server, so a hop looks like a changed client address there.
// The rebind command moves all flows to new sockets, as a NAT that forgot.
type fan struct {
	target netip.AddrPort
	mu     sync.Mutex
	flows  map[flowKey]*flow

	fresh, forwarded, returned atomic.Uint64
}

type flowKey struct {
	port   int // index of the listening port
	client netip.AddrPort
}

type flow struct{ up *net.UDPConn }

func runFan(ctx context.Context, in *input, out *output) error {
	var c fanConfig
	if err := in.config(&c); err != nil {
		return err
	}
	if c.Host == "" {
		c.Host = "127.0.0.1"
	}
	if c.Ports == 0 {
		c.Ports = 4
	}
	target, err := netip.ParseAddrPort(c.Target)
	if err != nil {
		return usage("target: %v", err)
	}
	f := &fan{target: target, flows: map[flowKey]*flow{}}
	var ports []int
	var socks []*net.UDPConn
	defer func() {
		for _, s := range socks {
			_ = s.Close()
		}
		f.rebind()
	}()
	for i := range c.Ports {
		conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(c.Host)})
		if err != nil {
			return err
		}
		_ = conn.SetReadBuffer(4 << 20) // best effort
		socks = append(socks, conn)
		ports = append(ports, conn.LocalAddr().(*net.UDPAddr).Port)
		go f.inward(i, conn)
	}
	out.emit("ready", fields{"mode": "fan", "host": c.Host, "ports": ports})
	serve(ctx, in, out, handlers{
		"stats":  on(func(context.Context, none) (any, error) { return f.stats(), nil }),
		"rebind": on(func(context.Context, none) (any, error) { return fields{"flows": f.rebind()}, nil }),
	}, func() fields { return fields{"stats": f.stats()} })
	return nil
}

// inward carries client packets of one port to the server.
func (f *fan) inward(port int, conn *net.UDPConn) {
	buf := make([]byte, largestUDP)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		fl := f.flow(flowKey{port, from}, conn)
		if fl == nil {
			continue // over the limit or out of sockets: lost
		}
		if _, err := fl.up.Write(buf[:n]); err == nil {
			f.forwarded.Add(1)
		}
	}
}

func (f *fan) flow(key flowKey, down *net.UDPConn) *flow {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.flows[key]; fl != nil {
		return fl
	}
	if len(f.flows) >= maxFlows {
		return nil
	}
	up, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(f.target))
	if err != nil {
		return nil
	}
	_ = up.SetReadBuffer(4 << 20) // best effort
	fl := &flow{up}
	f.flows[key] = fl
	f.fresh.Add(1)
	go f.outward(key, fl, down)
	return fl
}

// outward carries server packets of one flow back, until rebind or idleness.
func (f *fan) outward(key flowKey, fl *flow, down *net.UDPConn) {
	defer f.forget(key, fl)
	buf := make([]byte, largestUDP)
	for {
		_ = fl.up.SetReadDeadline(time.Now().Add(flowIdle))
		n, err := fl.up.Read(buf)
		if err != nil {
			return
		}
		if _, err := down.WriteToUDPAddrPort(buf[:n], key.client); err == nil {
			f.returned.Add(1)
		}
	}
}

func (f *fan) forget(key flowKey, fl *flow) {
	_ = fl.up.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.flows[key] == fl {
		delete(f.flows, key)
	}
}

// rebind drops every flow; the next packet of each client opens a new socket.
func (f *fan) rebind() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := len(f.flows)
	for key, fl := range f.flows {
		_ = fl.up.Close()
		delete(f.flows, key)
	}
	return n
}

func (f *fan) stats() fields {
	f.mu.Lock()
	live := len(f.flows)
	f.mu.Unlock()
	return fields{
		"flows": live, "flows_opened": f.fresh.Load(),
		"forwarded": f.forwarded.Load(), "returned": f.returned.Load(),
		"process": processStats(),
	}
}
