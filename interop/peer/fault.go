package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"

	hyerrors "github.com/apernet/hysteria/core/v2/errors"
	"github.com/apernet/quic-go"
)

// fault is an error as a test sees it: what the library called it, what QUIC
// called it, the number and the text.
type fault struct {
	// Kind is the library's class: auth, connect, dial, closed, config; or
	// ours: usage, timeout, mismatch, partial, other.
	Kind string `json:"kind"`
	// Cause is the QUIC or socket event underneath, when there is one.
	Cause string `json:"cause,omitempty"`
	// Code is the number that belongs to Cause.
	Code *uint64 `json:"code,omitempty"`
	// Remote says that the peer, not this end, raised Cause.
	Remote *bool `json:"remote,omitempty"`
	// Status is the HTTP status of a failed authentication.
	Status int    `json:"status,omitempty"`
	Text   string `json:"text"`
}

// mismatch is data that came back different from what was expected.
type mismatch struct{ text string }

func (e mismatch) Error() string { return e.text }

// partial is a run in which some of many attempts failed; the result has the
// counts.
type partial struct{ text string }

func (e partial) Error() string { return e.text }

func describe(err error) *fault {
	f := &fault{Kind: kindOf(err), Text: err.Error()}
	var authErr hyerrors.AuthError
	if errors.As(err, &authErr) {
		f.Status = authErr.StatusCode
	}
	f.setCause(err)
	return f
}

func kindOf(err error) string {
	var (
		authErr    hyerrors.AuthError
		connectErr hyerrors.ConnectError
		dialErr    hyerrors.DialError
		closedErr  hyerrors.ClosedError
		configErr  hyerrors.ConfigError
		usageErr   usageError
		mismatched mismatch
		partialErr partial
	)
	switch {
	case errors.As(err, &usageErr):
		return "usage"
	case errors.As(err, &authErr):
		return "auth"
	case errors.As(err, &connectErr):
		return "connect"
	case errors.As(err, &dialErr):
		return "dial"
	case errors.As(err, &closedErr):
		return "closed"
	case errors.As(err, &configErr):
		return "config"
	case errors.As(err, &mismatched):
		return "mismatch"
	case errors.As(err, &partialErr):
		return "partial"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	default:
		return "other"
	}
}

func (f *fault) setCause(err error) {
	var (
		app       *quic.ApplicationError
		transport *quic.TransportError
		stream    *quic.StreamError
		reset     *quic.StatelessResetError
		idle      *quic.IdleTimeoutError
		handshake *quic.HandshakeTimeoutError
		version   *quic.VersionNegotiationError
		limit     quic.StreamLimitReachedError
		tooLarge  *quic.DatagramTooLargeError
	)
	switch {
	case errors.As(err, &app):
		f.cause("application_close", uint64(app.ErrorCode), app.Remote)
	case errors.As(err, &transport):
		f.cause("transport_close", uint64(transport.ErrorCode), transport.Remote)
	case errors.As(err, &stream):
		f.cause("stream_reset", uint64(stream.ErrorCode), stream.Remote)
	case errors.As(err, &reset):
		f.Cause = "stateless_reset"
	case errors.As(err, &idle):
		f.Cause = "idle_timeout"
	case errors.As(err, &handshake):
		f.Cause = "handshake_timeout"
	case errors.As(err, &version):
		f.Cause = "version_negotiation"
	case errors.As(err, &limit):
		f.Cause = "stream_limit"
	case errors.As(err, &tooLarge):
		f.Cause = "datagram_too_large"
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		f.Cause = "eof"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		f.Cause = "deadline"
	case errors.Is(err, net.ErrClosed):
		f.Cause = "closed_locally"
	}
}

func (f *fault) cause(name string, code uint64, remote bool) {
	f.Cause, f.Code, f.Remote = name, &code, &remote
}

// tally counts errors by text, so that a thousand equal failures are one line.
type tally map[string]int

func (t tally) add(err error) { t[err.Error()]++ }
