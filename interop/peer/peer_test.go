package main

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// The test binary is the peer itself when this variable is set.
const beAPeer = "HY2_TEST_PEER"

func TestMain(m *testing.M) {
	if os.Getenv(beAPeer) != "" {
		_ = os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
		os.Exit(run(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// peer is one running subprocess.
type peer struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	ready map[string]any

	mu      sync.Mutex
	lastID  uint64
	answers map[uint64]chan reply
	events  []map[string]any
	news    chan struct{}
}

type reply struct {
	OK     bool           `json:"ok"`
	Result map[string]any `json:"result"`
	Error  *fault         `json:"error"`
}

func spawn(t *testing.T, mode string, config any) *peer {
	t.Helper()
	p := &peer{t: t, answers: map[uint64]chan reply{}, news: make(chan struct{}, 1)}
	p.cmd = exec.Command(os.Args[0], mode)
	p.cmd.Env = append(os.Environ(), beAPeer+"=1")
	p.cmd.Stderr = os.Stderr
	stdin, err := p.cmd.StdinPipe()
	must(t, err)
	p.stdin = stdin
	stdout, err := p.cmd.StdoutPipe()
	must(t, err)
	must(t, p.cmd.Start())
	t.Cleanup(func() {
		_ = stdin.Close() // the peer ends with its input
		ended := make(chan error, 1)
		go func() { ended <- p.cmd.Wait() }()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("%s: %v", mode, err)
			}
		case <-time.After(10 * time.Second):
			_ = p.cmd.Process.Kill()
			t.Errorf("%s did not end with its input", mode)
		}
	})
	p.line(config)
	go p.read(stdout)
	p.ready = p.event("ready", nil)
	return p
}

func (p *peer) line(v any) {
	text, err := json.Marshal(v)
	must(p.t, err)
	_, err = p.stdin.Write(append(text, '\n'))
	must(p.t, err)
}

func (p *peer) read(r io.Reader) {
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxLine)
	for s.Scan() {
		var head struct {
			Event string `json:"event"`
			ID    uint64 `json:"id"`
			reply
		}
		_ = json.Unmarshal(s.Bytes(), &head)
		p.mu.Lock()
		if head.Event == "answer" {
			p.answers[head.ID] <- head.reply
		} else {
			var e map[string]any
			_ = json.Unmarshal(s.Bytes(), &e)
			p.events = append(p.events, e)
		}
		p.mu.Unlock()
		select {
		case p.news <- struct{}{}:
		default:
		}
	}
}

// event waits for the first event of a name that satisfies accept.
func (p *peer) event(name string, accept func(map[string]any) bool) map[string]any {
	p.t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		p.mu.Lock()
		for i, e := range p.events {
			if e["event"] == name && (accept == nil || accept(e)) {
				p.events = append(p.events[:i:i], p.events[i+1:]...)
				p.mu.Unlock()
				return e
			}
		}
		seen := p.events
		p.mu.Unlock()
		select {
		case <-p.news:
		case <-deadline:
			p.t.Fatalf("no %s event; have %v", name, seen)
		}
	}
}

func (p *peer) do(cmd string, args fields) reply {
	p.t.Helper()
	p.mu.Lock()
	p.lastID++
	id := p.lastID
	ch := make(chan reply, 1)
	p.answers[id] = ch
	p.mu.Unlock()
	msg := fields{"id": id, "cmd": cmd}
	for k, v := range args {
		msg[k] = v
	}
	p.line(msg)
	select {
	case r := <-ch:
		return r
	case <-time.After(60 * time.Second):
		p.t.Fatalf("%s: no answer", cmd)
		panic("unreachable")
	}
}

// ok runs a command that has to succeed.
func (p *peer) ok(cmd string, args fields) map[string]any {
	p.t.Helper()
	r := p.do(cmd, args)
	if !r.OK {
		p.t.Fatalf("%s %v: %+v (result %v)", cmd, args, r.Error, r.Result)
	}
	return r.Result
}

// fails runs a command that has to fail with a kind and a part of the text.
func (p *peer) fails(cmd string, args fields, kind, text string) *fault {
	p.t.Helper()
	r := p.do(cmd, args)
	if r.OK || r.Error.Kind != kind || !strings.Contains(r.Error.Text, text) {
		p.t.Fatalf("%s %v: want %s with %q, got ok=%v %+v", cmd, args, kind, text, r.OK, r.Error)
	}
	return r.Error
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// number reads a JSON number along a path of keys.
func number(t *testing.T, v any, path ...string) float64 {
	t.Helper()
	for _, k := range path {
		m, ok := v.(map[string]any)
		if !ok {
			t.Fatalf("no object at %q of %v", k, path)
		}
		v = m[k]
	}
	n, ok := v.(float64)
	if !ok {
		t.Fatalf("no number at %v: %v", path, v)
	}
	return n
}

func want[T comparable](t *testing.T, what string, got, expected T) {
	t.Helper()
	if got != expected {
		t.Fatalf("%s: got %v, want %v", what, got, expected)
	}
}

// runOnce starts a peer that has to refuse its configuration.
func runOnce(t *testing.T, mode string, config any) (int, string) {
	t.Helper()
	text, err := json.Marshal(config)
	must(t, err)
	cmd := exec.Command(os.Args[0], mode)
	cmd.Env = append(os.Environ(), beAPeer+"=1")
	cmd.Stdin = strings.NewReader(string(text) + "\n")
	out, err := cmd.Output()
	if _, isExit := err.(*exec.ExitError); err != nil && !isExit {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}
