package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// maxLine bounds one line on stdin; raw datagrams and streams travel as hex.
const maxLine = 4 << 20

// fields is the free part of an event.
type fields map[string]any

// usageError is a mistake in the configuration or in a command.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func usage(format string, args ...any) error {
	return usageError{fmt.Sprintf(format, args...)}
}

// output writes one JSON object per line; lines never interleave.
type output struct {
	mu sync.Mutex
	w  io.Writer
}

func newOutput(w io.Writer) *output { return &output{w: w} }

// emit writes an event. A write error means that the reader is gone, and then
// stdin ends as well, so there is nobody to tell.
func (o *output) emit(event string, f fields) {
	line := make(fields, len(f)+1)
	for k, v := range f {
		line[k] = v
	}
	line["event"] = event
	o.write(line)
}

func (o *output) write(v any) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		buf.Reset()
		_ = enc.Encode(fields{"event": "failed", "error": describe(err)})
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	_, _ = o.w.Write(buf.Bytes())
}

// input yields the lines of stdin.
type input struct{ s *bufio.Scanner }

func newInput(r io.Reader) *input {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 64<<10), maxLine)
	return &input{s}
}

// next returns the next line that is not blank, or io.EOF.
func (in *input) next() ([]byte, error) {
	for in.s.Scan() {
		if line := bytes.TrimSpace(in.s.Bytes()); len(line) > 0 {
			return bytes.Clone(line), nil
		}
	}
	if err := in.s.Err(); err != nil {
		return nil, err
	}
	return nil, io.EOF
}

// config reads the first line into v. Unknown keys are errors: a misspelt
// option would make a test pass for the wrong reason.
func (in *input) config(v any) error {
	line, err := in.next()
	if err == io.EOF {
		return usage("stdin ended before the configuration line")
	}
	if err != nil {
		return err
	}
	if err := strict(line, v); err != nil {
		return usage("configuration: %v", err)
	}
	return nil
}

// strict decodes one JSON value and refuses unknown keys and trailing bytes.
func strict(line []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if dec.More() {
		return fmt.Errorf("trailing data after the JSON value")
	}
	return nil
}
