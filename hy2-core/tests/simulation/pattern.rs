//! Bytes that can be told right from wrong at every offset of a stream.

use std::sync::Arc;

use bytes::Bytes;

/// A prime, so that no shift by a power of two or a packet goes unnoticed.
const PERIOD: usize = 1_048_573;

/// An endless seeded stream.
#[derive(Debug, Clone)]
pub(crate) struct Pattern(Arc<Bytes>);

impl Pattern {
    pub(crate) fn new(seed: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut bytes = Vec::with_capacity(PERIOD + 8);
        while bytes.len() < PERIOD {
            // xorshift64: quick, and no two seeds give one stream.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes.truncate(PERIOD);
        Self(Arc::new(bytes.into()))
    }

    /// Up to `len` bytes from `offset` on.
    pub(crate) fn chunk(&self, offset: u64, len: usize) -> Bytes {
        let at = (offset % PERIOD as u64) as usize;
        self.0.slice(at..(at + len).min(PERIOD))
    }

    /// Tells whether `bytes` are the stream's from `offset` on.
    pub(crate) fn matches(&self, mut offset: u64, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let expected = self.chunk(offset, bytes.len());
            let (head, rest) = bytes.split_at(expected.len());
            if head != &*expected {
                return false;
            }
            offset += head.len() as u64;
            bytes = rest;
        }
        true
    }
}

#[test]
fn a_pattern_knows_its_own_bytes_only() {
    let pattern = Pattern::new(3);
    let mut bytes = Vec::new();
    for _ in 0..3 {
        bytes.extend_from_slice(&pattern.chunk(bytes.len() as u64, PERIOD));
    }
    assert!(pattern.matches(0, &bytes));
    assert!(pattern.matches(1000, &bytes[1000..]));
    assert!(!pattern.matches(1001, &bytes[1000..]));
    assert!(!Pattern::new(4).matches(0, &bytes[..8]));
    bytes[PERIOD + 5] ^= 1;
    assert!(!pattern.matches(0, &bytes));
}
