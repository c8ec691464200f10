package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/apernet/quic-go"
	"github.com/apernet/quic-go/http3"
)

// rawQUIC mirrors the client library's transport numbers where a server could
// notice them; the rest is left to the caller's bytes.
const (
	rawStreamWindow = 8 << 20
	rawConnWindow   = 20 << 20
	rawDatagramMax  = 1200
)

// prober is a QUIC connection with the reference's QUIC stack but without its
// client library: it sends the bytes it is told to. HTTP/3 starts with the
// first request command, so a probe may stay below it.
type prober struct {
	config clientConfig
	out    *output

	mu    sync.Mutex
	conn  *quic.Conn
	http  *http3.ClientConn
	close func()
}

func runRaw(ctx context.Context, in *input, out *output) error {
	p := &prober{out: out, close: func() {}}
	if err := in.config(&p.config); err != nil {
		return err
	}
	if err := p.config.Obfs.check(); err != nil {
		return err
	}
	out.emit("ready", fields{"mode": "raw", "core": coreVersion(), "parrot": hasParrot && !p.config.NoParrot})
	serve(ctx, in, out, handlers{
		"connect":   on(p.connect),
		"request":   on(p.request),
		"auth":      on(p.auth),
		"stream":    on(p.stream),
		"datagrams": on(p.datagrams),
		"closed":    on(p.closed),
		"hang_up":   on(p.hangUp),
		"stats":     on(func(context.Context, none) (any, error) { return fields{"process": processStats()}, nil }),
	}, func() fields {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.close()
		return fields{}
	})
	return nil
}

func (p *prober) connect(ctx context.Context, _ none) (any, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil {
		return nil, usage("connected already")
	}
	c := &p.config
	addr, err := c.serverAddr()
	if err != nil {
		return nil, err
	}
	lib, err := c.TLS.library()
	if err != nil {
		return nil, err
	}
	socket, udp, err := c.socket(addr)
	if err != nil {
		return nil, err
	}
	wrapped, err := c.Obfs.wrap(socket)
	if err != nil {
		_ = socket.Close()
		return nil, err
	}
	transport := &quic.Transport{Conn: wrapped}
	config := &quic.Config{
		InitialStreamReceiveWindow:     rawStreamWindow,
		MaxStreamReceiveWindow:         rawStreamWindow,
		InitialConnectionReceiveWindow: rawConnWindow,
		MaxConnectionReceiveWindow:     rawConnWindow,
		MaxIdleTimeout:                 time.Duration(c.QUIC.MaxIdleTimeoutMS) * time.Millisecond,
		KeepAlivePeriod:                time.Duration(c.QUIC.KeepAliveMS) * time.Millisecond,
		EnableDatagrams:                true,
		MaxDatagramFrameSize:           rawDatagramMax,
		OmitMaxDatagramFrameSize:       true,
		DisablePathManager:             true,
	}
	tuneRaw(transport, config, hasParrot && !c.NoParrot)
	conn, err := transport.Dial(ctx, addr, &tls.Config{
		ServerName:            lib.ServerName,
		InsecureSkipVerify:    lib.InsecureSkipVerify,
		VerifyPeerCertificate: lib.VerifyPeerCertificate,
		RootCAs:               lib.RootCAs,
		GetClientCertificate:  lib.GetClientCertificate,
		NextProtos:            []string{http3.NextProtoH3},
	}, config)
	if err != nil {
		_ = transport.Close()
		_ = wrapped.Close()
		return nil, err
	}
	p.conn = conn
	p.close = func() {
		_ = conn.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "")
		_ = transport.Close()
		_ = wrapped.Close()
	}
	state := conn.ConnectionState()
	f := fields{
		"local":  conn.LocalAddr().String(),
		"cipher": tls.CipherSuiteName(state.TLS.CipherSuite),
		"gso":    state.GSO,
		"leaf":   pinOf(state.TLS.PeerCertificates[0].Raw),
		"alpn":   state.TLS.NegotiatedProtocol,
	}
	if udp != nil {
		f["socket"] = grantedBuffers(udp)
	}
	return f, nil
}

func (p *prober) connection() (*quic.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == nil {
		return nil, usage("not connected")
	}
	return p.conn, nil
}

// h3 starts HTTP/3 on the connection at the first call.
func (p *prober) h3() (*http3.ClientConn, error) {
	conn, err := p.connection()
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.http == nil {
		p.http = (&http3.Transport{}).NewClientConn(conn)
	}
	return p.http, nil
}

type requestArgs struct {
	Method    string            `json:"method"`    // default GET
	Authority string            `json:"authority"` // default localhost
	Path      string            `json:"path"`      // default /
	Headers   map[string]string `json:"headers"`
	Body      string            `json:"body"`
}

// request makes one HTTP/3 request.
func (p *prober) request(ctx context.Context, a requestArgs) (any, error) {
	h3, err := p.h3()
	if err != nil {
		return nil, err
	}
	req := &http.Request{
		Method: orDefault(a.Method, http.MethodGet),
		URL:    &url.URL{Scheme: "https", Host: orDefault(a.Authority, "localhost"), Path: orDefault(a.Path, "/")},
		Header: http.Header{},
	}
	if a.Body != "" {
		req.Body = io.NopCloser(strings.NewReader(a.Body))
		req.ContentLength = int64(len(a.Body))
	}
	for k, v := range a.Headers {
		req.Header.Set(k, v)
	}
	resp, err := h3.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxLine/4))
	return fields{"status": resp.StatusCode, "headers": resp.Header, "body": string(body)}, err
}

type authArgs struct {
	Rx uint64 `json:"rx"`
	// Auth replaces the configured secret when set.
	Auth string `json:"auth"`
}

// auth sends the authentication request and returns what the server said.
func (p *prober) auth(ctx context.Context, a authArgs) (any, error) {
	return p.request(ctx, requestArgs{
		Method: http.MethodPost, Authority: "hysteria", Path: "/auth",
		Headers: map[string]string{
			"Hysteria-Auth":    orDefault(a.Auth, p.config.Auth),
			"Hysteria-CC-RX":   strconv.FormatUint(a.Rx, 10),
			"Hysteria-Padding": strings.Repeat("p", 512),
		},
	})
}

func orDefault(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

type streamArgs struct {
	Hex []string `json:"hex"` // one write each
	Fin bool     `json:"fin"`
	// Expect ends the read after so many bytes, 0: until the stream ends.
	Expect int    `json:"expect"`
	WaitMS uint64 `json:"wait_ms"` // for the answer, default 1000
}

// stream opens a bidirectional stream, writes bytes and reports what comes
// back and how it ended: fin, enough, silence, or the error.
func (p *prober) stream(ctx context.Context, a streamArgs) (any, error) {
	conn, err := p.connection()
	if err != nil {
		return nil, err
	}
	s, err := conn.OpenStreamSync(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { s.CancelRead(0); _ = s.Close() }()
	for _, part := range a.Hex {
		data, err := hex.DecodeString(part)
		if err != nil {
			return nil, usage("hex: %v", err)
		}
		if _, err := s.Write(data); err != nil {
			return nil, err
		}
	}
	if a.Fin {
		if err := s.Close(); err != nil {
			return nil, err
		}
	}
	_ = s.SetReadDeadline(time.Now().Add(waitOr(a.WaitMS, time.Second)))
	var got bytes.Buffer
	limit := int64(maxLine / 4)
	if a.Expect > 0 {
		limit = int64(a.Expect)
	}
	_, err = io.CopyN(&got, s, limit)
	f := fields{"hex": hex.EncodeToString(got.Bytes()), "id": int64(s.StreamID())}
	var timeout net.Error
	switch {
	case err == nil:
		f["end"] = "enough"
	case errors.Is(err, io.EOF):
		f["end"] = "fin"
	case errors.As(err, &timeout) && timeout.Timeout() && conn.Context().Err() == nil:
		f["end"] = "silence"
	default:
		f["end"] = "error"
		f["error"] = describe(err)
	}
	return f, nil
}

type datagramsArgs struct {
	Hex    []string `json:"hex"` // one QUIC datagram each, in this order
	Expect int      `json:"expect"`
	WaitMS uint64   `json:"wait_ms"` // for expect datagrams, default 1000
}

// datagrams sends QUIC datagrams and collects those that come back.
func (p *prober) datagrams(ctx context.Context, a datagramsArgs) (any, error) {
	conn, err := p.connection()
	if err != nil {
		return nil, err
	}
	for _, part := range a.Hex {
		data, err := hex.DecodeString(part)
		if err != nil {
			return nil, usage("hex: %v", err)
		}
		if err := conn.SendDatagram(data); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, waitOr(a.WaitMS, time.Second))
	defer cancel()
	got := []string{}
	for len(got) < a.Expect {
		data, err := conn.ReceiveDatagram(ctx)
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			return fields{"hex": got}, err
		}
		got = append(got, hex.EncodeToString(data))
	}
	return fields{"hex": got}, nil
}

// closed waits until the connection is gone and says how.
func (p *prober) closed(ctx context.Context, _ none) (any, error) {
	conn, err := p.connection()
	if err != nil {
		return nil, err
	}
	select {
	case <-conn.Context().Done():
		return fields{"error": describe(context.Cause(conn.Context()))}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type hangUpArgs struct {
	Code uint64 `json:"code"`
	Text string `json:"text"`
}

func (p *prober) hangUp(_ context.Context, a hangUpArgs) (any, error) {
	conn, err := p.connection()
	if err != nil {
		return nil, err
	}
	return nil, conn.CloseWithError(quic.ApplicationErrorCode(a.Code), a.Text)
}

func waitOr(ms uint64, fallback time.Duration) time.Duration {
	if ms == 0 {
		return fallback
	}
	return time.Duration(ms) * time.Millisecond
}
