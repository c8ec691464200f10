//! Reassembly of Gecko's datagrams from many sources, against a list in the order of arrival.
//!
//! Planted bug: the newest unfinished datagram of a source made way, not the oldest.

use std::time::{Duration, Instant};

use arbitrary::Unstructured;
use hy2_proto::gecko::{
    Frame, MAX_DATAGRAM_LEN, MAX_PER_SOURCE, MAX_UNFINISHED, REASSEMBLY_TTL, Reassembler, split,
};

use crate::{pattern, read};

/// Runs a program of frames, whole datagrams and waiting.
pub fn target(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let start = Instant::now();
    let mut both = Both {
        real: Reassembler::new(),
        model: Vec::new(),
        start,
        now: 0,
    };
    for _ in 0..200 {
        if input.is_empty() {
            break;
        }
        match read::<u8>(&mut input) % 8 {
            // A datagram of which one frame may be missing.
            0..=2 => {
                let (source, id) = (read::<u8>(&mut input) % 6, read::<u8>(&mut input) % 12);
                let count = read::<u8>(&mut input);
                let len = usize::from(read::<u16>(&mut input) % 2200);
                let body = pattern(id.into(), len);
                let missing = usize::from(read::<u8>(&mut input) % 16);
                let mut frames: Vec<_> = split(&body, id, count).collect();
                if len % 2 == 1 {
                    frames.reverse();
                }
                for (at, frame) in frames.iter().enumerate() {
                    if at != missing {
                        both.push(source, frame);
                    }
                }
            }
            // Any one frame.
            3..=5 => {
                let (source, id) = (read::<u8>(&mut input) % 6, read::<u8>(&mut input) % 12);
                let place = read::<u8>(&mut input);
                let body = pattern(1, usize::from(read::<u16>(&mut input) % 2200));
                let frame = Frame {
                    message_id: id,
                    index: place >> 4,
                    count: (place & 0x0f).clamp(2, 8),
                    chunk: &body,
                };
                both.push(source, &frame);
            }
            // The largest case that one source can make.
            6 => {
                let source = read::<u8>(&mut input) % 6;
                for message_id in 0..12 {
                    let frame = Frame {
                        message_id,
                        index: 0,
                        count: 2,
                        chunk: b"first half",
                    };
                    both.push(source, &frame);
                }
            }
            _ => {
                both.now += u64::from(read::<u8>(&mut input)) * 50;
                both.expire();
                both.real.expire(both.time());
            }
        }
        assert_eq!(both.real.unfinished(), both.model.len());
        assert!(both.real.unfinished() <= MAX_UNFINISHED);
    }
}

struct Both {
    real: Reassembler<u8>,
    /// Oldest first.
    model: Vec<Unfinished>,
    start: Instant,
    now: u64,
}

struct Unfinished {
    source: u8,
    message_id: u8,
    started: u64,
    count: u8,
    chunks: Vec<Option<Vec<u8>>>,
}

impl Both {
    fn time(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    fn push(&mut self, source: u8, frame: &Frame<'_>) {
        let got = self.real.push(&source, frame, self.time());
        let expected = self.model_push(source, frame);
        assert_eq!(got, expected, "source {source}, {frame:?}");
    }

    fn expire(&mut self) {
        let (now, ttl) = (self.now, REASSEMBLY_TTL.as_millis() as u64);
        self.model.retain(|one| now - one.started < ttl);
    }

    fn model_push(&mut self, source: u8, frame: &Frame<'_>) -> Option<Vec<u8>> {
        self.expire();
        if frame.index >= frame.count || frame.chunk.len() > MAX_DATAGRAM_LEN {
            return None;
        }
        let same = |one: &Unfinished| one.source == source && one.message_id == frame.message_id;
        if !self.model.iter().any(same) {
            let own = self.model.iter().filter(|one| one.source == source);
            if own.count() == MAX_PER_SOURCE {
                let oldest = self.model.iter().position(|one| one.source == source)?;
                self.model.remove(oldest);
            }
            self.model.push(Unfinished {
                source,
                message_id: frame.message_id,
                started: self.now,
                count: frame.count,
                chunks: vec![None; frame.count.into()],
            });
        }
        let at = self.model.iter().position(same)?;
        let one = &mut self.model[at];
        let held: usize = one.chunks.iter().flatten().map(Vec::len).sum();
        let fits = held + frame.chunk.len() <= MAX_DATAGRAM_LEN;
        if one.count != frame.count || !fits {
            return None;
        }
        let chunk = &mut one.chunks[usize::from(frame.index)];
        if chunk.is_some() {
            return None;
        }
        *chunk = Some(frame.chunk.to_vec());
        if one.chunks.iter().any(Option::is_none) {
            return None;
        }
        let chunks = self.model.remove(at).chunks;
        Some(chunks.into_iter().flatten().collect::<Vec<_>>().concat())
    }
}
