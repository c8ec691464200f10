package main

import (
	"fmt"
	"net"
)

// largestUDP is more than any datagram on loopback.
const largestUDP = 65535

// startUDP opens udp_echo (a list), udp_cone (answers from another port) and
// udp_sink (counts, never answers).
func (o *origin) startUDP(ready fields) error {
	var echoes []string
	for i := range o.config.UDPEcho {
		conn, err := o.listenUDP()
		if err != nil {
			return err
		}
		go udpLoop(conn, o.count(fmt.Sprintf("udp_echo_%d", i)), conn)
		echoes = append(echoes, conn.LocalAddr().String())
	}
	ready["udp_echo"] = echoes

	cone, err := o.listenUDP()
	if err != nil {
		return err
	}
	other, err := o.listenUDP()
	if err != nil {
		return err
	}
	go udpLoop(cone, o.count("udp_cone"), other)
	ready["udp_cone"], ready["udp_cone_reply"] = cone.LocalAddr().String(), other.LocalAddr().String()

	sink, err := o.listenUDP()
	if err != nil {
		return err
	}
	go udpLoop(sink, o.count("udp_sink"), nil)
	ready["udp_sink"] = sink.LocalAddr().String()
	return nil
}

func (o *origin) listenUDP() (*net.UDPConn, error) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(o.config.Host)})
	if err != nil {
		return nil, err
	}
	_ = conn.SetReadBuffer(4 << 20) // best effort; the default drops bursts
	o.atExit(func() { _ = conn.Close() })
	return conn, nil
}

// udpLoop counts what arrives and returns it through reply, if there is one.
func udpLoop(conn *net.UDPConn, count *portCount, reply *net.UDPConn) {
	buf := make([]byte, largestUDP)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		count.accepted.Add(1)
		count.bytesIn.Add(uint64(n))
		if reply == nil {
			continue
		}
		if n, err = reply.WriteToUDPAddrPort(buf[:n], from); err == nil {
			count.bytesOut.Add(uint64(n))
		}
	}
}
