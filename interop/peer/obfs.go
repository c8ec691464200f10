package main

import (
	"net"

	"github.com/apernet/hysteria/extras/v2/obfs"
)

// obfsConfig chooses the obfuscation under QUIC.
type obfsConfig struct {
	Type      string `json:"type"` // "" or none, salamander, gecko
	Password  string `json:"password"`
	MinPacket int    `json:"min_packet"` // gecko, 0 = 512
	MaxPacket int    `json:"max_packet"` // gecko, 0 = 1200
}

// check finds mistakes before there is a socket.
func (c obfsConfig) check() error {
	switch c.Type {
	case "", "none", "salamander", "gecko":
		return nil
	default:
		return usage("obfs.type: %q is not none, salamander or gecko", c.Type)
	}
}

func (c obfsConfig) wrap(conn net.PacketConn) (net.PacketConn, error) {
	switch c.Type {
	case "", "none":
		return conn, nil
	case "salamander":
		return obfs.WrapPacketConnSalamander(conn, []byte(c.Password))
	case "gecko":
		return obfs.WrapPacketConnGecko(conn, obfs.GeckoOptions{
			Password:      []byte(c.Password),
			MinPacketSize: c.MinPacket,
			MaxPacketSize: c.MaxPacket,
		})
	default:
		return nil, c.check()
	}
}
