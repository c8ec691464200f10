package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"time"
)

const (
	// defaultTimeout applies to a command without timeout_ms.
	defaultTimeout = 30 * time.Second
	// abandonAfter is how long past its deadline a handler may run before the
	// command is answered for it: some library calls cannot be cancelled.
	abandonAfter = time.Second
	// goodbye bounds the clean-up after the last line of stdin.
	goodbye = 3 * time.Second
)

// header is what every command carries beside its own arguments.
type header struct {
	ID        uint64 `json:"id"`
	Cmd       string `json:"cmd"`
	TimeoutMS uint64 `json:"timeout_ms,omitempty"`
}

// answer is printed once per command.
type answer struct {
	Event  string  `json:"event"`
	ID     uint64  `json:"id"`
	Cmd    string  `json:"cmd"`
	OK     bool    `json:"ok"`
	MS     float64 `json:"ms"`
	Result any     `json:"result,omitempty"`
	Error  *fault  `json:"error,omitempty"`
}

// handler runs one command. It may return a result beside an error: counts of
// a run that partly failed are worth reading.
type handler func(ctx context.Context, line []byte) (any, error)

type handlers map[string]handler

// on adapts a typed function to a handler.
func on[A any](f func(ctx context.Context, args A) (any, error)) handler {
	return func(ctx context.Context, line []byte) (any, error) {
		var args A
		// Arguments share the object with the header, so decode in two steps
		// and keep the check for unknown keys over the union of both.
		var raw map[string]json.RawMessage
		if err := json.Unmarshal(line, &raw); err != nil {
			return nil, usage("%v", err)
		}
		for _, k := range []string{"id", "cmd", "timeout_ms"} {
			delete(raw, k)
		}
		rest, err := json.Marshal(raw)
		if err != nil {
			return nil, usage("%v", err)
		}
		if err := strict(rest, &args); err != nil {
			return nil, usage("%v", err)
		}
		return f(ctx, args)
	}
}

// none is the argument of commands that take none.
type none struct{}

// serve answers commands until stdin ends, ctx ends or a quit command comes,
// then calls shut and prints the bye event with what shut returned. Commands
// run concurrently; the answer carries the id of its command.
func serve(ctx context.Context, in *input, out *output, hs handlers, shut func() fields) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	lines := make(chan []byte)
	go func() {
		defer close(lines)
		for {
			line, err := in.next()
			if err != nil {
				if err != io.EOF {
					out.emit("failed", fields{"error": describe(usage("stdin: %v", err))})
				}
				return
			}
			select {
			case lines <- line:
			case <-ctx.Done():
				return
			}
		}
	}()

	var running sync.WaitGroup
loop:
	for {
		select {
		case <-ctx.Done():
			break loop
		case line, open := <-lines:
			if !open {
				break loop
			}
			var h header
			if err := json.Unmarshal(line, &h); err != nil {
				out.write(answer{Event: "answer", Error: describe(usage("command: %v", err))})
				continue
			}
			if h.Cmd == "quit" {
				out.write(answer{Event: "answer", ID: h.ID, Cmd: h.Cmd, OK: true})
				break loop
			}
			running.Add(1)
			go func() {
				defer running.Done()
				out.write(perform(ctx, hs, h, line))
			}()
		}
	}
	cancel()
	bye := make(chan fields, 1)
	go func() { bye <- shut() }()
	select {
	case f := <-bye:
		waitUpTo(&running, goodbye)
		out.emit("bye", f)
	case <-time.After(goodbye):
		out.emit("bye", fields{"error": describe(errors.New("shutdown did not finish in time"))})
	}
}

// perform runs one command under its deadline.
func perform(ctx context.Context, hs handlers, h header, line []byte) answer {
	ans := answer{Event: "answer", ID: h.ID, Cmd: h.Cmd}
	f := hs[h.Cmd]
	if f == nil {
		ans.Error = describe(usage("unknown command %q", h.Cmd))
		return ans
	}
	timeout := defaultTimeout
	if h.TimeoutMS > 0 {
		timeout = time.Duration(h.TimeoutMS) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	type outcome struct {
		result any
		err    error
	}
	done := make(chan outcome, 1)
	start := time.Now()
	go func() {
		defer func() {
			if r := recover(); r != nil {
				done <- outcome{nil, fmt.Errorf("panic: %v\n%s", r, debug.Stack())}
			}
		}()
		result, err := f(ctx, line)
		done <- outcome{result, err}
	}()
	var got outcome
	select {
	case got = <-done:
	case <-time.After(timeout + abandonAfter):
		got.err = context.DeadlineExceeded
	}
	ans.MS = millis(start)
	ans.Result = got.result
	if got.err != nil {
		ans.Error = describe(got.err)
	} else {
		ans.OK = true
	}
	return ans
}

func waitUpTo(wg *sync.WaitGroup, d time.Duration) {
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(d):
	}
}

func millis(since time.Time) float64 {
	return float64(time.Since(since).Microseconds()) / 1000
}
