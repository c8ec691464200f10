//! Streams: putting chunks in order, handing them to a socket, counting.

use std::{collections::VecDeque, hint::black_box, io::IoSlice};

use bytes::Bytes;
use hy2_core::{
    fuzzing::{meter::count, relay::Reassembler},
    meter::UserCounters,
};

use crate::{Case, payload};

/// What a full packet carries.
const CHUNK: usize = 1_400;
const CHUNKS: u64 = 1_000;

pub(crate) fn cases() -> Vec<Case> {
    const BYTES: usize = CHUNK * CHUNKS as usize;
    vec![
        Case::new("reassembler/in order", || reassemble(0))
            .bytes(BYTES)
            .items(CHUNKS),
        // A gap keeps up to 100 chunks in a map, whose nodes hold eleven each.
        Case::new("reassembler/1 % lost", || reassemble(100))
            .bytes(BYTES)
            .items(CHUNKS)
            .allocates(200.0),
        Case::new("reassembler/10 % lost", || reassemble(10))
            .bytes(BYTES)
            .items(CHUNKS)
            .allocates(200.0),
        Case::new("copy/hand 64 chunks to a socket", || {
            let chunk = Bytes::from(payload(CHUNK));
            let mut ready = Reassembler::starting_at(0);
            Box::new(move || {
                for _ in 0..64 {
                    ready.insert(ready.next_offset(), chunk.clone());
                }
                // As the relay does: one vectored write that takes all but a part of the last.
                let mut slices = [IoSlice::new(&[]); 64];
                for (slice, chunk) in slices.iter_mut().zip(ready.chunks()) {
                    *slice = IoSlice::new(chunk);
                }
                black_box(&slices);
                ready.consume(64 * CHUNK - 100);
                ready.consume(100);
            })
        })
        .bytes(64 * CHUNK)
        .items(64),
        Case::new("counters/one user", || {
            let counters = UserCounters::new();
            Box::new(move || count(&counters, black_box(1400), 0))
        }),
    ]
}

/// Inserts and takes 1,000 chunks, every `lost`-th of which comes 100 chunks late; 0 is none.
fn reassemble(lost: u64) -> Box<dyn FnMut()> {
    let chunk = Bytes::from(payload(CHUNK));
    let mut stream = Reassembler::starting_at(0);
    let mut late = VecDeque::with_capacity(64);
    let (mut next, mut taken) = (0_u64, 0_u64);
    Box::new(move || {
        for _ in 0..CHUNKS {
            if late.front().is_some_and(|(due, _)| *due <= next)
                && let Some((_, at)) = late.pop_front()
            {
                stream.insert(at * CHUNK as u64, chunk.clone());
            }
            if lost > 0 && next.is_multiple_of(lost) {
                late.push_back((next + 100, next));
            } else {
                stream.insert(next * CHUNK as u64, chunk.clone());
            }
            next += 1;
            while let Some(bytes) = stream.pop() {
                taken += bytes.len() as u64;
            }
        }
        black_box(taken);
    })
}
