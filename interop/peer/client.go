package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/apernet/hysteria/core/v2/client"
	hyerrors "github.com/apernet/hysteria/core/v2/errors"
	"github.com/apernet/hysteria/extras/v2/transport/udphop"
)

// clientConfig is the first stdin line of `peer client` and `peer raw`.
type clientConfig struct {
	// Server is host:port, or host:ports with hop_interval_ms.
	Server string     `json:"server"`
	Auth   string     `json:"auth"`
	TLS    clientTLS  `json:"tls"`
	Obfs   obfsConfig `json:"obfs"`
	Tamper bool       `json:"tamper"`

	// Tx and Rx are what the client believes to have, bytes per second.
	Tx                      uint64           `json:"tx"`
	Rx                      uint64           `json:"rx"`
	DisableLossCompensation bool             `json:"disable_loss_compensation"`
	Congestion              congestionConfig `json:"congestion"`

	FastOpen bool `json:"fast_open"`
	NoParrot bool `json:"no_parrot"`
	// HopIntervalMS turns port hopping on; the library's minimum is 5000.
	HopIntervalMS uint64     `json:"hop_interval_ms"`
	QUIC          clientQUIC `json:"quic"`
}

type clientTLS struct {
	SNI      string `json:"sni"`
	Insecure bool   `json:"insecure"`
	Pin      string `json:"pin"` // SHA-256 of the leaf, hex
	CA       string `json:"ca"`  // PEM file
	Cert     string `json:"cert"`
	Key      string `json:"key"`
}

type clientQUIC struct {
	MaxIdleTimeoutMS uint64 `json:"max_idle_timeout_ms"`
	KeepAliveMS      uint64 `json:"keep_alive_ms"`
	StreamWindow     uint64 `json:"stream_window"`
	ConnWindow       uint64 `json:"conn_window"`
	DisablePathMTU   bool   `json:"disable_path_mtu"`
	DisableGSO       bool   `json:"disable_gso"`
}

// user is the running reference client: it connects at the first use and
// again after the connection died, as the official one does.
type user struct {
	config clientConfig
	out    *output
	inner  client.Client
	held   shelf

	mu     sync.Mutex
	last   fields // of the newest connection
	count  int
	socket *net.UDPConn
	tamper *tamper
}

func runClient(ctx context.Context, in *input, out *output) error {
	u := &user{out: out}
	if err := in.config(&u.config); err != nil {
		return err
	}
	if _, err := u.library(); err != nil {
		return err
	}
	inner, err := client.NewReconnectableClient(u.library, u.connected, true)
	if err != nil {
		return err
	}
	u.inner = inner
	out.emit("ready", fields{"mode": "client", "core": coreVersion(), "parrot": u.parrot()})
	serve(ctx, in, out, handlers{
		"connect":            on(u.connect),
		"reconnect":          on(u.reconnect),
		"dial":               on(u.dial),
		"tcp_echo":           on(u.tcpEcho),
		"early_data":         on(u.earlyData),
		"server_speaks":      on(u.serverSpeaks),
		"zero_bytes":         on(u.zeroBytes),
		"tcp_download":       on(u.tcpDownload),
		"tcp_upload":         on(u.tcpUpload),
		"many_streams":       on(u.manyStreams),
		"sequential":         on(u.sequential),
		"hold":               on(u.hold),
		"poke":               on(u.poke),
		"release":            on(u.release),
		"udp_echo":           on(u.udpEcho),
		"udp_burst":          on(u.udpBurst),
		"udp_sessions":       on(u.udpSessions),
		"udp_multi_target":   on(u.udpMultiTarget),
		"udp_open":           on(u.udpOpen),
		"udp_send":           on(u.udpSend),
		"udp_recv":           on(u.udpRecv),
		"udp_close":          on(u.udpClose),
		"speedtest_download": on(u.speedtestDownload),
		"speedtest_upload":   on(u.speedtestUpload),
		"forward_tcp":        on(u.forwardTCP),
		"forward_udp":        on(u.forwardUDP),
		"tamper":             on(u.setTamper),
		"stats":              on(func(context.Context, none) (any, error) { return u.stats(), nil }),
		"close":              on(func(context.Context, none) (any, error) { return nil, u.inner.Close() }),
	}, func() fields {
		u.held.clear()
		_ = u.inner.Close()
		return fields{"stats": u.stats()}
	})
	return nil
}

func (u *user) parrot() bool { return hasParrot && !u.config.NoParrot }

// library builds the configuration of one connection attempt.
func (u *user) library() (*client.Config, error) {
	c := &u.config
	addr, err := c.serverAddr()
	if err != nil {
		return nil, err
	}
	if err := c.Obfs.check(); err != nil {
		return nil, err
	}
	tlsConfig, err := c.TLS.library()
	if err != nil {
		return nil, err
	}
	config := &client.Config{
		ConnFactory: u,
		ServerAddr:  addr,
		Auth:        c.Auth,
		TLSConfig:   tlsConfig,
		QUICConfig: client.QUICConfig{
			InitialStreamReceiveWindow:     c.QUIC.StreamWindow,
			MaxStreamReceiveWindow:         c.QUIC.StreamWindow,
			InitialConnectionReceiveWindow: c.QUIC.ConnWindow,
			MaxConnectionReceiveWindow:     c.QUIC.ConnWindow,
			MaxIdleTimeout:                 time.Duration(c.QUIC.MaxIdleTimeoutMS) * time.Millisecond,
			KeepAlivePeriod:                time.Duration(c.QUIC.KeepAliveMS) * time.Millisecond,
			DisablePathMTUDiscovery:        c.QUIC.DisablePathMTU,
		},
		CongestionConfig: client.CongestionConfig{Type: c.Congestion.Type, BBRProfile: c.Congestion.Profile},
		BandwidthConfig: client.BandwidthConfig{
			MaxTx: c.Tx, MaxRx: c.Rx, DisableLossCompensation: c.DisableLossCompensation,
		},
		FastOpen: c.FastOpen,
	}
	return config, tuneClient(config, u.parrot(), c.QUIC.DisableGSO)
}

func (c *clientConfig) serverAddr() (net.Addr, error) {
	if c.HopIntervalMS > 0 {
		return udphop.ResolveUDPHopAddr(c.Server)
	}
	return net.ResolveUDPAddr("udp", c.Server)
}

func (c clientTLS) library() (client.TLSConfig, error) {
	config := client.TLSConfig{ServerName: c.SNI, InsecureSkipVerify: c.Insecure}
	if c.Pin != "" {
		want := strings.ToLower(strings.NewReplacer(":", "", "-", "").Replace(c.Pin))
		config.VerifyPeerCertificate = func(raw [][]byte, _ [][]*x509.Certificate) error {
			if len(raw) == 0 || pinOf(raw[0]) != want {
				return errors.New("no certificate matches the pinned hash")
			}
			return nil
		}
	}
	if c.CA != "" {
		pool, err := loadPool(c.CA)
		if err != nil {
			return config, err
		}
		config.RootCAs = pool
	}
	if c.Cert != "" || c.Key != "" {
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return config, err
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &pair, nil
		}
	}
	return config, nil
}

// New makes the socket of one connection: UDP or hopping UDP, then tamper,
// then obfuscation.
func (u *user) New(addr net.Addr) (net.PacketConn, error) {
	conn, socket, err := u.config.socket(addr)
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	u.socket = socket
	if u.config.Tamper {
		u.tamper = &tamper{PacketConn: conn}
		conn = u.tamper
	}
	u.mu.Unlock()
	wrapped, err := u.config.Obfs.wrap(conn)
	if err != nil {
		_ = conn.Close()
	}
	return wrapped, err
}

func (c *clientConfig) socket(addr net.Addr) (net.PacketConn, *net.UDPConn, error) {
	hopping, ok := addr.(*udphop.UDPHopAddr)
	if !ok {
		conn, err := net.ListenUDP("udp", nil)
		return conn, conn, err
	}
	interval := time.Duration(c.HopIntervalMS) * time.Millisecond
	conn, err := udphop.NewUDPHopPacketConn(hopping, udphop.HopIntervalConfig{Min: interval, Max: interval}, nil)
	return conn, nil, err
}

func (u *user) connected(_ client.Client, info *client.HandshakeInfo, count int) {
	f := fields{"udp": info.UDPEnabled, "tx": info.Tx, "count": count, "server": info.ServerAddr.String()}
	u.mu.Lock()
	u.last, u.count = f, count
	u.mu.Unlock()
	u.out.emit("connected", f)
}

// connect makes sure of a connection and returns what was negotiated. Opening
// a UDP session is the one library call that connects and sends nothing more.
func (u *user) connect(ctx context.Context, _ none) (any, error) {
	err := within(ctx, func() error {
		session, err := u.inner.UDP()
		if errors.As(err, new(hyerrors.ClosedError)) {
			session, err = u.inner.UDP() // the old connection had died
		}
		if err == nil {
			return session.Close()
		}
		var refused hyerrors.DialError
		if errors.As(err, &refused) {
			return nil // connected, but UDP is disabled
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.last, nil
}

func (u *user) setTamper(_ context.Context, a tamperArgs) (any, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.tamper == nil {
		return nil, usage("no tamper: true in the configuration, or not connected yet")
	}
	u.tamper.set(a)
	return nil, nil
}

func (u *user) stats() fields {
	u.mu.Lock()
	defer u.mu.Unlock()
	f := fields{"process": processStats(), "connections": u.count}
	if u.socket != nil {
		f["socket"] = grantedBuffers(u.socket)
	}
	if u.tamper != nil {
		f["wire"] = u.tamper.stats()
	}
	return f
}

// within runs a library call that knows no context, and gives up waiting when
// ctx ends.
func within(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
