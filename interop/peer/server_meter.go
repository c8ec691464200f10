package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync"

	"github.com/apernet/hysteria/core/v2/server"
	"github.com/apernet/hysteria/extras/v2/trafficlogger"
)

// meter is the reference's own traffic logger, driven through its HTTP
// handler, so that counters and kicks are exactly the reference's. A kick of
// its kind hits one connection once; a sticky kick is ours and hits every
// connection of the user at its next byte, until unkick.
type meter struct {
	trafficlogger.TrafficStatsServer

	mu     sync.RWMutex
	sticky map[string]bool
}

var _ server.TrafficLogger = (*meter)(nil)

func newMeter() *meter {
	return &meter{TrafficStatsServer: trafficlogger.NewTrafficStatsServer(""), sticky: map[string]bool{}}
}

func (m *meter) LogTraffic(user string, tx, rx uint64) bool {
	m.mu.RLock()
	banned := len(m.sticky) > 0 && m.sticky[user]
	m.mu.RUnlock()
	return !banned && m.TrafficStatsServer.LogTraffic(user, tx, rx)
}

type kickArgs struct {
	User   string `json:"user"`
	Sticky bool   `json:"sticky"`
}

func (r *reference) kick(_ context.Context, a kickArgs) (any, error) {
	if r.config.NoTraffic {
		return nil, usage("kick needs the traffic logger (no_traffic is set)")
	}
	if a.Sticky {
		r.meter.mu.Lock()
		r.meter.sticky[a.User] = true
		r.meter.mu.Unlock()
		return nil, nil
	}
	body, err := json.Marshal([]string{a.User})
	if err != nil {
		return nil, err
	}
	_, err = r.meter.call(http.MethodPost, "/kick", body)
	return nil, err
}

func (m *meter) unstick(user string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.sticky, user)
}

// report adds traffic {user: {tx, rx}}, online {user: connections} and the
// live streams.
func (m *meter) report(f fields) {
	for name, path := range map[string]string{"traffic": "/traffic", "online": "/online", "dump": "/dump/streams"} {
		body, err := m.call(http.MethodGet, path, nil)
		if err != nil {
			f[name] = fields{"error": describe(err)}
			continue
		}
		f[name] = json.RawMessage(body)
	}
}

func (m *meter) call(method, path string, body []byte) ([]byte, error) {
	rec := httptest.NewRecorder()
	m.ServeHTTP(rec, httptest.NewRequest(method, path, bytes.NewReader(body)))
	if rec.Code != http.StatusOK {
		return nil, mismatch{"traffic logger answered " + http.StatusText(rec.Code) + " to " + path}
	}
	return bytes.TrimSpace(rec.Body.Bytes()), nil
}
