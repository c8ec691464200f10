package main

import (
	"net/http"

	"github.com/apernet/hysteria/core/v2/server"
)

// masqueradeConfig is the website for those who do not authenticate: the zero
// value is the library's 404.
type masqueradeConfig struct {
	Content string            `json:"content"`
	Status  int               `json:"status"` // default 200
	Headers map[string]string `json:"headers"`
}

func (c masqueradeConfig) handler() http.Handler {
	if c.Content == "" && c.Status == 0 && len(c.Headers) == 0 {
		return nil
	}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for k, v := range c.Headers {
			w.Header().Set(k, v)
		}
		if c.Status != 0 {
			w.WriteHeader(c.Status)
		}
		_, _ = w.Write([]byte(c.Content))
	})
}

// answerFirst makes the library accept a TCP request before it dials, which
// turns a refused target into a stream that just ends.
type answerFirst struct{}

func (answerFirst) Check(isUDP bool, _ string) bool { return !isUDP }

func (answerFirst) TCP(server.HyStream, *string) ([]byte, error) { return nil, nil }

func (answerFirst) UDP([]byte, *string) error { return nil }
