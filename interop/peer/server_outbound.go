package main

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/apernet/hysteria/core/v2/server"
	"github.com/apernet/hysteria/extras/v2/outbounds/speedtest"
)

const (
	speedtestHost  = "@SpeedTest"
	dialTimeout    = 10 * time.Second // the reference's own
	resolveTimeout = 4 * time.Second
)

// outboundConfig restricts where the reference server connects. Tests stay on
// loopback, so anything else is refused unless Any is set.
type outboundConfig struct {
	Any bool `json:"any"`
	// DialDelayMS waits before each TCP dial, to see what happens meanwhile.
	DialDelayMS uint64 `json:"dial_delay_ms"`
}

type outbound struct {
	config    outboundConfig
	speedtest bool
}

func (o *outbound) TCP(target string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		return nil, err
	}
	if host == speedtestHost && o.speedtest {
		return speedtest.NewServerConn(), nil
	}
	if strings.HasPrefix(host, "@") {
		return nil, fmt.Errorf("%s is not served", host)
	}
	if o.config.DialDelayMS > 0 {
		time.Sleep(time.Duration(o.config.DialDelayMS) * time.Millisecond)
	}
	if err := o.permit(host); err != nil {
		return nil, err
	}
	return net.DialTimeout("tcp", target, dialTimeout)
}

func (o *outbound) UDP(target string) (server.UDPConn, error) {
	if err := o.CheckUDP(target); err != nil {
		return nil, err
	}
	conn, err := net.ListenUDP("udp", nil)
	if err != nil {
		return nil, err
	}
	return fullCone{conn}, nil
}

func (o *outbound) CheckUDP(target string) error {
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		return err
	}
	return o.permit(host)
}

func (o *outbound) permit(host string) error {
	ctx, cancel := context.WithTimeout(context.Background(), resolveTimeout)
	defer cancel()
	ips, err := net.DefaultResolver.LookupIPAddr(ctx, host)
	if err != nil {
		return err
	}
	for _, ip := range ips {
		if !o.config.Any && !ip.IP.IsLoopback() {
			return fmt.Errorf("%s is not a loopback address", ip.IP)
		}
	}
	return nil
}

// fullCone is an unconnected socket with string addresses.
type fullCone struct{ *net.UDPConn }

func (c fullCone) ReadFrom(p []byte) (int, string, error) {
	n, from, err := c.ReadFromUDPAddrPort(p)
	if err != nil {
		return n, "", err
	}
	return n, net.JoinHostPort(from.Addr().Unmap().String(), fmt.Sprint(from.Port())), nil
}

func (c fullCone) WriteTo(p []byte, target string) (int, error) {
	addr, err := net.ResolveUDPAddr("udp", target)
	if err != nil {
		return 0, err
	}
	return c.UDPConn.WriteTo(p, addr)
}
