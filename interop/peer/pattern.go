package main

import (
	"bytes"
	"encoding/binary"
	"sync"
)

// patternLen is the period of the test pattern: the largest prime below 1 MiB,
// so that data moved by any power of two is seen as wrong.
const patternLen = 1<<20 - 3

var patterns sync.Map // seed -> []byte

// patternBlock returns one period of the pattern of a seed: the little-endian
// words of SplitMix64, cut at patternLen. Byte i of an endless pattern is
// block[i % patternLen]. Building it costs a millisecond and sending it costs
// nothing, so a bench measures the proxy.
func patternBlock(seed uint64) []byte {
	if b, ok := patterns.Load(seed); ok {
		return b.([]byte)
	}
	block := make([]byte, 0, patternLen+8)
	state := seed
	for len(block) < patternLen {
		state += 0x9e3779b97f4a7c15
		z := state
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		block = binary.LittleEndian.AppendUint64(block, z^z>>31)
	}
	got, _ := patterns.LoadOrStore(seed, block[:patternLen:patternLen])
	return got.([]byte)
}

// pattern walks the endless pattern of a seed.
type pattern struct {
	block []byte
	at    uint64
}

func newPattern(seed uint64) *pattern { return &pattern{block: patternBlock(seed)} }

// next returns the following bytes, at most limit and never none.
func (p *pattern) next(limit uint64) []byte {
	off := p.at % patternLen
	n := min(limit, patternLen-off)
	p.at += n
	return p.block[off : off+n]
}

// matches reports whether got continues the pattern.
func (p *pattern) matches(got []byte) bool {
	for len(got) > 0 {
		want := p.next(uint64(len(got)))
		if !bytes.Equal(want, got[:len(want)]) {
			return false
		}
		got = got[len(want):]
	}
	return true
}

// patternBytes returns the first n bytes of a pattern in a slice of its own.
func patternBytes(seed uint64, n int) []byte {
	out := make([]byte, 0, n)
	p := newPattern(seed)
	for len(out) < n {
		out = append(out, p.next(uint64(n-len(out)))...)
	}
	return out
}
