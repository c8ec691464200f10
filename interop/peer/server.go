package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"net"
	"sync"
	"time"

	"github.com/apernet/hysteria/core/v2/server"
	"github.com/apernet/quic-go"
)

// serverConfig is the first stdin line of `peer server`.
type serverConfig struct {
	Listen  string `json:"listen"` // default 127.0.0.1:0
	TLSCert string `json:"tls_cert"`
	TLSKey  string `json:"tls_key"`
	// ClientCA turns on mutual TLS with this PEM file.
	ClientCA string `json:"client_ca"`

	Password string            `json:"password"` // user id "user"
	Users    map[string]string `json:"users"`    // name -> password; auth string "name:password"

	Obfs   obfsConfig `json:"obfs"`
	Tamper bool       `json:"tamper"`

	// Tx and Rx are the server's limits in bytes per second, 0 = none.
	Tx                      uint64           `json:"tx"`
	Rx                      uint64           `json:"rx"`
	IgnoreClientBandwidth   bool             `json:"ignore_client_bandwidth"`
	DisableLossCompensation bool             `json:"disable_loss_compensation"`
	Congestion              congestionConfig `json:"congestion"`

	DisableUDP       bool   `json:"disable_udp"`
	UDPIdleTimeoutMS uint64 `json:"udp_idle_timeout_ms"`
	// HookTCP answers each TCP request before the target is dialled, as the
	// reference does when sniffing is on.
	HookTCP bool `json:"hook_tcp"`
	// Speedtest serves the destination @SpeedTest:0.
	Speedtest bool `json:"speedtest"`

	Masquerade masqueradeConfig `json:"masquerade"`
	Outbound   outboundConfig   `json:"outbound"`
	QUIC       serverQUIC       `json:"quic"`

	// NoTraffic leaves the traffic logger out: the library's fast copy path.
	NoTraffic bool `json:"no_traffic"`
	// Events is all (default), connections or none.
	Events string `json:"events"`
	// FixedResetKey keeps one stateless reset key over stop and start.
	FixedResetKey bool `json:"fixed_reset_key"`
}

type congestionConfig struct {
	Type    string `json:"type"`    // bbr (default), reno
	Profile string `json:"profile"` // standard (default), conservative, aggressive
}

type serverQUIC struct {
	MaxIdleTimeoutMS   uint64 `json:"max_idle_timeout_ms"`
	MaxIncomingStreams int64  `json:"max_incoming_streams"`
	StreamWindow       uint64 `json:"stream_window"`
	ConnWindow         uint64 `json:"conn_window"`
	DisablePathMTU     bool   `json:"disable_path_mtu"`
	DisableGSO         bool   `json:"disable_gso"`
}

// reference is the running reference server with what surrounds it.
type reference struct {
	config   serverConfig
	out      *output
	identity *identity
	meter    *meter
	resetKey *quic.StatelessResetKey

	mu     sync.Mutex
	inner  server.Server
	socket *net.UDPConn
	tamper *tamper
	listen string
}

func runServer(ctx context.Context, in *input, out *output) error {
	r := &reference{out: out}
	if err := in.config(&r.config); err != nil {
		return err
	}
	if err := r.prepare(); err != nil {
		return err
	}
	defer r.identity.remove()
	if err := r.start(); err != nil {
		return err
	}
	out.emit("ready", fields{
		"mode": "server", "core": coreVersion(), "addr": r.listen,
		"pin": r.identity.pin(), "cert": r.identity.certFile, "key": r.identity.keyFile, "sni": certNames[0],
	})
	serve(ctx, in, out, handlers{
		"stats":  on(func(context.Context, none) (any, error) { return r.stats(), nil }),
		"kick":   on(r.kick),
		"unkick": on(func(_ context.Context, a kickArgs) (any, error) { r.meter.unstick(a.User); return nil, nil }),
		"tamper": on(r.setTamper),
		"stop":   on(func(context.Context, none) (any, error) { return nil, r.stop() }),
		"start":  on(func(context.Context, none) (any, error) { return fields{"addr": r.listen}, r.start() }),
	}, func() fields {
		_ = r.stop()
		return fields{"stats": r.stats()}
	})
	return nil
}

func (r *reference) prepare() (err error) {
	c := &r.config
	r.listen = c.Listen
	if r.listen == "" {
		r.listen = "127.0.0.1:0"
	}
	if (c.Password == "") == (len(c.Users) == 0) {
		return usage("set exactly one of password and users")
	}
	switch c.Events {
	case "", "all", "connections", "none":
	default:
		return usage("events: %q is not all, connections or none", c.Events)
	}
	r.meter = newMeter()
	if c.FixedResetKey {
		r.resetKey = new(quic.StatelessResetKey)
		if _, err := rand.Read(r.resetKey[:]); err != nil {
			return err
		}
	}
	if c.TLSCert != "" || c.TLSKey != "" {
		r.identity, err = loadIdentity(c.TLSCert, c.TLSKey)
	} else {
		r.identity, err = generateIdentity()
	}
	return err
}

// start listens; a second start after stop takes the same port.
func (r *reference) start() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.inner != nil {
		return usage("the server is running")
	}
	addr, err := net.ResolveUDPAddr("udp", r.listen)
	if err != nil {
		return err
	}
	socket, err := net.ListenUDP("udp", addr)
	if err != nil {
		return err
	}
	inner, err := r.build(socket)
	if err != nil {
		_ = socket.Close()
		return err
	}
	r.inner, r.socket, r.listen = inner, socket, socket.LocalAddr().String()
	go func() {
		err := inner.Serve()
		r.out.emit("serve_ended", fields{"error": describe(err)})
	}()
	return nil
}

func (r *reference) build(socket *net.UDPConn) (server.Server, error) {
	c := &r.config
	var conn net.PacketConn = socket
	if c.Tamper {
		r.tamper = &tamper{PacketConn: conn}
		conn = r.tamper
	}
	conn, err := c.Obfs.wrap(conn)
	if err != nil {
		return nil, err
	}
	config := &server.Config{
		TLSConfig: server.TLSConfig{Certificates: []tls.Certificate{r.identity.cert}},
		QUICConfig: server.QUICConfig{
			InitialStreamReceiveWindow:     c.QUIC.StreamWindow,
			MaxStreamReceiveWindow:         c.QUIC.StreamWindow,
			InitialConnectionReceiveWindow: c.QUIC.ConnWindow,
			MaxConnectionReceiveWindow:     c.QUIC.ConnWindow,
			MaxIdleTimeout:                 time.Duration(c.QUIC.MaxIdleTimeoutMS) * time.Millisecond,
			MaxIncomingStreams:             c.QUIC.MaxIncomingStreams,
			DisablePathMTUDiscovery:        c.QUIC.DisablePathMTU,
		},
		Conn:             conn,
		Outbound:         &outbound{config: c.Outbound, speedtest: c.Speedtest},
		CongestionConfig: server.CongestionConfig{Type: c.Congestion.Type, BBRProfile: c.Congestion.Profile},
		BandwidthConfig: server.BandwidthConfig{
			MaxTx: c.Tx, MaxRx: c.Rx, DisableLossCompensation: c.DisableLossCompensation,
		},
		IgnoreClientBandwidth: c.IgnoreClientBandwidth,
		DisableUDP:            c.DisableUDP,
		UDPIdleTimeout:        time.Duration(c.UDPIdleTimeoutMS) * time.Millisecond,
		Authenticator:         r.authenticator(),
		EventLogger:           r.eventLogger(),
		MasqHandler:           c.Masquerade.handler(),
	}
	if err := tuneServer(config, c.QUIC.DisableGSO, r.resetKey); err != nil {
		return nil, err
	}
	if !c.NoTraffic {
		config.TrafficLogger = r.meter
	}
	if c.HookTCP {
		config.RequestHook = answerFirst{}
	}
	if c.ClientCA != "" {
		if config.TLSConfig.ClientCAs, err = loadPool(c.ClientCA); err != nil {
			return nil, err
		}
	}
	return server.NewServer(config)
}

// stop closes the sockets. The library neither drains nor says goodbye: its
// clients hear nothing until their idle timeout, or until a stateless reset
// from the next start.
func (r *reference) stop() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.inner == nil {
		return nil
	}
	err := r.inner.Close()
	r.inner = nil
	return err
}

func (r *reference) setTamper(_ context.Context, a tamperArgs) (any, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tamper == nil {
		return nil, usage("the configuration has no tamper: true")
	}
	r.tamper.set(a)
	return nil, nil
}

func (r *reference) stats() fields {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := fields{"process": processStats(), "running": r.inner != nil}
	r.meter.report(f)
	if r.inner != nil {
		f["socket"] = grantedBuffers(r.socket)
	}
	if r.tamper != nil {
		f["wire"] = r.tamper.stats()
	}
	return f
}
