package main

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// tamper sits between the UDP socket and the obfuscation. It counts what
// crosses the wire and, on command, reverses or drops outgoing packets: the
// only way to make the reference library deliver its fragments out of order.
// It hides the socket's batch interface, so a bench leaves it out.
type tamper struct {
	net.PacketConn
	sent, received wireCount

	mu      sync.Mutex
	every   time.Duration // 0 = pass through
	dropOne uint64        // drop each n-th packet, 0 = none
	seen    uint64
	dropped uint64
	held    []heldPacket
	timer   *time.Timer
}

type heldPacket struct {
	data []byte
	to   net.Addr
}

type wireCount struct{ packets, bytes, largest atomic.Uint64 }

func (c *wireCount) add(n int) {
	c.packets.Add(1)
	c.bytes.Add(uint64(n))
	for {
		old := c.largest.Load()
		if uint64(n) <= old || c.largest.CompareAndSwap(old, uint64(n)) {
			return
		}
	}
}

func (c *wireCount) fields() fields {
	return fields{"packets": c.packets.Load(), "bytes": c.bytes.Load(), "largest": c.largest.Load()}
}

// tamperArgs is the tamper command; all zero passes everything through.
type tamperArgs struct {
	ReverseMS uint64 `json:"reverse_ms"` // hold packets this long, send them last first
	DropEvery uint64 `json:"drop_every"` // lose each n-th packet
}

func (t *tamper) set(a tamperArgs) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.every = time.Duration(a.ReverseMS) * time.Millisecond
	t.dropOne = a.DropEvery
	if t.every == 0 {
		t.flushLocked()
	}
}

func (t *tamper) ReadFrom(p []byte) (int, net.Addr, error) {
	n, addr, err := t.PacketConn.ReadFrom(p)
	if err == nil {
		t.received.add(n)
	}
	return n, addr, err
}

func (t *tamper) WriteTo(p []byte, to net.Addr) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen++
	if t.dropOne > 0 && t.seen%t.dropOne == 0 {
		t.dropped++
		return len(p), nil
	}
	if t.every == 0 {
		return t.sendLocked(p, to)
	}
	t.held = append(t.held, heldPacket{append([]byte(nil), p...), to})
	if len(t.held) == 1 {
		t.timer = time.AfterFunc(t.every, func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.flushLocked()
		})
	}
	return len(p), nil
}

func (t *tamper) flushLocked() {
	for i := len(t.held) - 1; i >= 0; i-- {
		// A failed send is a lost packet, which is the network's business.
		_, _ = t.sendLocked(t.held[i].data, t.held[i].to)
	}
	t.held = nil
}

func (t *tamper) sendLocked(p []byte, to net.Addr) (int, error) {
	n, err := t.PacketConn.WriteTo(p, to)
	if err == nil {
		t.sent.add(n)
	}
	return n, err
}

func (t *tamper) stats() fields {
	t.mu.Lock()
	defer t.mu.Unlock()
	return fields{"sent": t.sent.fields(), "received": t.received.fields(), "dropped": t.dropped}
}

// The library looks for these to set DF and the socket buffers.

func (t *tamper) SyscallConn() (syscall.RawConn, error) {
	if c, ok := t.PacketConn.(syscall.Conn); ok {
		return c.SyscallConn()
	}
	return nil, errors.New("the wrapped socket has no file descriptor")
}

func (t *tamper) SetReadBuffer(n int) error {
	if c, ok := t.PacketConn.(interface{ SetReadBuffer(int) error }); ok {
		return c.SetReadBuffer(n)
	}
	return nil
}

func (t *tamper) SetWriteBuffer(n int) error {
	if c, ok := t.PacketConn.(interface{ SetWriteBuffer(int) error }); ok {
		return c.SetWriteBuffer(n)
	}
	return nil
}
