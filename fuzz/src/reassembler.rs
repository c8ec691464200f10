//! Reassembly of a relay stream, against a vector of the bytes that have come.
//!
//! Planted bug: a shorter chunk at the same place took the place of a longer one.

use std::collections::VecDeque;

use arbitrary::Unstructured;
use bytes::{Buf, Bytes};
use hy2_core::fuzzing::relay::Reassembler;

use crate::{pattern, read};

/// Bytes of the stream that the program moves in.
const SPAN: usize = 16 << 10;

/// Runs a program of arriving and delivered chunks.
pub fn target(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let start = u64::from(read::<u32>(&mut input));
    let stream = Bytes::from(pattern(0, SPAN));
    let mut real = Reassembler::starting_at(start);
    let mut come = vec![false; SPAN];
    let mut delivered = 0;
    // Chunks inserted and not delivered, for the bound on memory.
    let mut inserted = VecDeque::new();
    for _ in 0..300 {
        if input.is_empty() {
            break;
        }
        let step = read::<u8>(&mut input);
        let next = first_missing(&come);
        match step % 8 {
            // Anywhere.
            0..=2 => {
                let at = usize::from(read::<u16>(&mut input)) % SPAN;
                let len = usize::from(read::<u16>(&mut input) % 2048).min(SPAN - at);
                come[at..at + len].fill(true);
                real.insert(start + at as u64, stream.slice(at..at + len));
                inserted.push_back(len);
            }
            // Around the first gap.
            3 | 4 => {
                let back = usize::from(read::<u8>(&mut input) % 16);
                let at = next.saturating_sub(back);
                let len = usize::from(read::<u16>(&mut input) % 1600).min(SPAN - at);
                come[at..at + len].fill(true);
                real.insert(start + at as u64, stream.slice(at..at + len));
                inserted.push_back(len);
            }
            5 => {
                if let Some(chunk) = real.pop() {
                    assert!(!chunk.is_empty());
                    assert_eq!(chunk, stream[delivered..delivered + chunk.len()]);
                    let keep = usize::from(read::<u8>(&mut input)) % (chunk.len() + 1);
                    delivered += chunk.len() - keep;
                    let mut rest = chunk;
                    rest.advance(rest.len() - keep);
                    real.unpop(rest);
                }
            }
            6 => {
                let wanted = usize::from(read::<u16>(&mut input) % 4096);
                let count = wanted.min(next - delivered);
                real.consume(wanted);
                delivered += count;
            }
            // A chunk from before the beginning.
            _ => {
                let before = u64::from(read::<u8>(&mut input)).min(start);
                let len = usize::from(read::<u8>(&mut input));
                let useful = len.saturating_sub(before as usize);
                let mut bytes = vec![0xee; len - useful];
                bytes.extend_from_slice(&stream[..useful]);
                come[..useful].fill(true);
                real.insert(start - before, bytes.into());
                inserted.push_back(len);
            }
        }
        let next = first_missing(&come);
        assert_eq!(real.next_offset(), start + next as u64);
        assert_eq!(real.ready_bytes(), next - delivered);
        let ready: Vec<u8> = real.chunks().flatten().copied().collect();
        assert_eq!(ready, stream[delivered..next]);
        assert!(real.held() >= real.ready_bytes());
        let chunks = real.gapped_chunks() + real.chunks().count();
        assert!(chunks <= inserted.len() + 1);
        let most = inserted.iter().sum::<usize>() + 96 * chunks;
        assert!(real.held() <= most, "{} of {most}", real.held());
    }
    // The rest arrives: everything comes out and nothing is held.
    real.insert(start, stream.clone());
    let mut rest = Vec::new();
    while let Some(chunk) = real.pop() {
        rest.extend_from_slice(&chunk);
    }
    assert_eq!(rest, stream[delivered..]);
    assert_eq!((real.held(), real.gapped_chunks()), (0, 0));
}

fn first_missing(come: &[bool]) -> usize {
    come.iter().position(|here| !here).unwrap_or(come.len())
}
