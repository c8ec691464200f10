package main

import (
	"net"

	"github.com/apernet/hysteria/core/v2/server"
	"github.com/apernet/hysteria/extras/v2/auth"
)

// authenticator reports every attempt with the receive rate that the client
// announced (Hysteria-CC-RX, bytes per second) and lets the library decide.
func (r *reference) authenticator() server.Authenticator {
	if len(r.config.Users) > 0 {
		return loudAuth{auth.NewUserPassAuthenticator(r.config.Users), r}
	}
	return loudAuth{&auth.PasswordAuthenticator{Password: r.config.Password}, r}
}

type loudAuth struct {
	inner server.Authenticator
	r     *reference
}

func (a loudAuth) Authenticate(addr net.Addr, secret string, tx uint64) (bool, string) {
	ok, user := a.inner.Authenticate(addr, secret, tx)
	a.r.event("auth", fields{"client": addr.String(), "accepted": ok, "user": user, "client_rx": tx})
	return ok, user
}

// eventLogger returns nil when the bench wants silence.
func (r *reference) eventLogger() server.EventLogger {
	if r.config.Events == "none" {
		return nil
	}
	return loudEvents{r, r.config.Events != "connections"}
}

func (r *reference) event(name string, f fields) {
	if r.config.Events != "none" {
		r.out.emit(name, f)
	}
}

type loudEvents struct {
	r   *reference
	all bool
}

// Connect: tx is the rate that this server will send at with Brutal, 0 when
// it uses the configured congestion control.
func (e loudEvents) Connect(addr net.Addr, user string, tx uint64) {
	e.r.event("connect", fields{"client": addr.String(), "user": user, "tx": tx})
}

func (e loudEvents) Disconnect(addr net.Addr, user string, err error) {
	e.r.event("disconnect", withError(fields{"client": addr.String(), "user": user}, err))
}

func (e loudEvents) TCPRequest(addr net.Addr, user, target string) {
	e.request("tcp_request", fields{"client": addr.String(), "user": user, "target": target})
}

// TCPError is the end of a TCP stream; err is nil after a clean one.
func (e loudEvents) TCPError(addr net.Addr, user, target string, err error) {
	e.request("tcp_end", withError(fields{"client": addr.String(), "user": user, "target": target}, err))
}

func (e loudEvents) UDPRequest(addr net.Addr, user string, session uint32, target string) {
	e.request("udp_request", fields{"client": addr.String(), "user": user, "session": session, "target": target})
}

// UDPError is the end of a UDP session; err is nil when it was idle.
func (e loudEvents) UDPError(addr net.Addr, user string, session uint32, err error) {
	e.request("udp_end", withError(fields{"client": addr.String(), "user": user, "session": session}, err))
}

func (e loudEvents) request(name string, f fields) {
	if e.all {
		e.r.event(name, f)
	}
}

func withError(f fields, err error) fields {
	if err != nil {
		f["error"] = describe(err)
	}
	return f
}
