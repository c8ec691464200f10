package main

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// originConfig is the first stdin line of `peer origin`.
type originConfig struct {
	Host    string `json:"host"`     // default 127.0.0.1
	UDPEcho int    `json:"udp_echo"` // number of UDP echo ports, default 4
	Hash    *bool  `json:"hash"`     // SHA-256 in sinks, default true
	// Buffer is the size of one read or write in bytes, default 64 KiB.
	Buffer int `json:"buffer"`
}

// originIdle ends a connection on which nothing moves.
const originIdle = 120 * time.Second

// origin is a set of targets on loopback ports, in one process.
type origin struct {
	config  originConfig
	mu      sync.Mutex
	closers []func()
	ports   map[string]*portCount
}

// portCount counts one port. open returning to zero is how a test sees that a
// proxy left nothing behind.
type portCount struct {
	accepted, bytesIn, bytesOut atomic.Uint64
	open                        atomic.Int64
}

func runOrigin(ctx context.Context, in *input, out *output) error {
	o := &origin{ports: map[string]*portCount{}}
	if err := in.config(&o.config); err != nil {
		return err
	}
	c := &o.config
	if c.Host == "" {
		c.Host = "127.0.0.1"
	}
	if c.UDPEcho == 0 {
		c.UDPEcho = 4
	}
	if c.Hash == nil {
		c.Hash = new(bool)
		*c.Hash = true
	}
	if c.Buffer == 0 {
		c.Buffer = 64 << 10
	}
	defer o.shut()

	ready := fields{"mode": "origin"}
	for name, serve := range map[string]func(net.Conn, *portCount) error{
		"echo": o.echo, "source": o.source, "sink": o.sink, "banner": o.banner,
		"stall": o.stall, "closer": o.closer, "resetter": o.resetter, "silent": o.silent,
	} {
		addr, err := o.listenTCP(name, serve)
		if err != nil {
			return err
		}
		ready[name] = addr
	}
	refused, err := o.refusingPort()
	if err != nil {
		return err
	}
	ready["refused"] = refused
	if err := o.startUDP(ready); err != nil {
		return err
	}
	out.emit("ready", ready)
	serve(ctx, in, out, handlers{
		"stats": on(func(context.Context, none) (any, error) { return o.stats(), nil }),
	}, func() fields {
		return fields{"stats": o.stats()}
	})
	return nil
}

func (o *origin) shut() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.closers {
		c()
	}
}

func (o *origin) atExit(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closers = append(o.closers, f)
}

func (o *origin) count(name string) *portCount {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ports[name] == nil {
		o.ports[name] = new(portCount)
	}
	return o.ports[name]
}

func (o *origin) stats() fields {
	o.mu.Lock()
	defer o.mu.Unlock()
	ports := fields{}
	for name, c := range o.ports {
		ports[name] = fields{
			"accepted": c.accepted.Load(), "open": c.open.Load(),
			"bytes_in": c.bytesIn.Load(), "bytes_out": c.bytesOut.Load(),
		}
	}
	return fields{"ports": ports, "process": processStats()}
}

func (o *origin) listenTCP(name string, serve func(net.Conn, *portCount) error) (string, error) {
	ln, err := net.Listen("tcp", net.JoinHostPort(o.config.Host, "0"))
	if err != nil {
		return "", err
	}
	o.atExit(func() { _ = ln.Close() })
	count := o.count(name)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			count.accepted.Add(1)
			count.open.Add(1)
			go func() {
				defer count.open.Add(-1)
				defer conn.Close()
				_ = serve(conn, count) // the client of this origin sees the end
			}()
		}
	}()
	return ln.Addr().String(), nil
}

// refusingPort binds a port without listening: connecting to it is refused,
// and nobody else can take it meanwhile.
func (o *origin) refusingPort() (string, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	o.atExit(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return "", err
	}
	bound, err := syscall.Getsockname(fd)
	if err != nil {
		return "", err
	}
	in4 := bound.(*syscall.SockaddrInet4)
	return (&net.TCPAddr{IP: in4.Addr[:], Port: in4.Port}).String(), nil
}
