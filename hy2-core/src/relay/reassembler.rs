//! Puts unordered stream chunks back in order.
//!
//! quinn closes a connection whose stream has more than 1,024 gaps when it is read in order,
//! which a long lossy path reaches in seconds. Relay streams are therefore read unordered and
//! reassembled here, where the caller decides what to hold.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, Bytes};

/// Chunks shorter than this are copied when they must wait: each would otherwise keep the whole
/// packet it arrived in. Just below what a full packet of the smallest size carries, so that what
/// is counted is never far from what is held, and bulk data is not copied.
const COPY_BELOW: usize = 1024;

/// What one waiting chunk costs beside its bytes, as counted by [`Reassembler::held`].
const CHUNK_OVERHEAD: usize = 96;

/// Bytes of one stream between arrival and delivery.
#[derive(Debug, Default)]
pub(crate) struct Reassembler {
    /// Offset of the byte after the last one in `ready`.
    next: u64,
    /// Offset of the byte after the last one of all; not before `next`.
    end: u64,
    ready: VecDeque<Bytes>,
    ready_bytes: usize,
    gapped: BTreeMap<u64, Bytes>,
    gapped_bytes: usize,
}

impl Reassembler {
    /// Starts at stream offset `next`.
    pub(crate) fn starting_at(next: u64) -> Self {
        Self {
            next,
            end: next,
            ..Self::default()
        }
    }

    /// Takes a chunk that begins at stream offset `offset`. Bytes seen before are dropped.
    pub(crate) fn insert(&mut self, mut offset: u64, mut bytes: Bytes) {
        if offset < self.next {
            let seen = usize::try_from(self.next - offset).unwrap_or(usize::MAX);
            if seen >= bytes.len() {
                return;
            }
            bytes.advance(seen);
            offset = self.next;
        }
        if bytes.is_empty() {
            return;
        }
        self.end = self.end.max(offset + bytes.len() as u64);
        if offset == self.next {
            // What is next goes out as it is; behind others it may have to wait for long.
            let bytes = if self.ready.is_empty() {
                bytes
            } else {
                compact(bytes)
            };
            self.deliver(bytes);
            self.close_gaps();
        } else {
            self.hold(offset, bytes);
        }
    }

    fn deliver(&mut self, bytes: Bytes) {
        self.next += bytes.len() as u64;
        self.ready_bytes += bytes.len();
        self.ready.push_back(bytes);
    }

    fn close_gaps(&mut self) {
        while let Some(entry) = self.gapped.first_entry() {
            let offset = *entry.key();
            if offset > self.next {
                return;
            }
            let mut bytes = entry.remove();
            self.gapped_bytes -= bytes.len();
            let seen = usize::try_from(self.next - offset).unwrap_or(usize::MAX);
            if seen < bytes.len() {
                bytes.advance(seen);
                self.deliver(bytes);
            }
        }
    }

    fn hold(&mut self, offset: u64, bytes: Bytes) {
        let bytes = compact(bytes);
        // quinn hands every byte out once; of two chunks at one offset the longer one counts.
        let kept = self.gapped.entry(offset).or_default();
        if bytes.len() > kept.len() {
            self.gapped_bytes += bytes.len() - kept.len();
            *kept = bytes;
        }
    }

    /// Offers the next bytes in order, as the chunks they arrived in.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = &Bytes> {
        self.ready.iter()
    }

    /// Takes the next chunk in order.
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        let bytes = self.ready.pop_front()?;
        self.ready_bytes -= bytes.len();
        Some(bytes)
    }

    /// Puts the rest of a popped chunk back in front.
    pub(crate) fn unpop(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.ready_bytes += bytes.len();
            self.ready.push_front(bytes);
        }
    }

    /// Drops the first `count` bytes of what is in order.
    pub(crate) fn consume(&mut self, mut count: usize) {
        self.ready_bytes -= count.min(self.ready_bytes);
        while count > 0 {
            let Some(front) = self.ready.front_mut() else {
                return;
            };
            if front.len() > count {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.ready.pop_front();
        }
    }

    /// The stream offset of the first byte that has not come yet.
    pub(crate) fn next_offset(&self) -> u64 {
        self.next
    }

    /// Bytes that can be delivered.
    pub(crate) fn ready_bytes(&self) -> usize {
        self.ready_bytes
    }

    /// Chunks that wait behind a gap.
    pub(crate) fn gapped_chunks(&self) -> usize {
        self.gapped.len()
    }

    /// The stream offset after the last byte that has come.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Memory that is needed to fill every gap, in bytes, book-keeping included.
    pub(crate) fn claimed(&self) -> usize {
        let waiting = usize::try_from(self.end - self.next).unwrap_or(usize::MAX);
        self.held() - self.gapped_bytes + waiting
    }

    /// Memory held, in bytes, book-keeping included.
    pub(crate) fn held(&self) -> usize {
        self.ready_bytes
            + self.gapped_bytes
            + CHUNK_OVERHEAD * (self.gapped.len() + self.ready.len())
    }
}

/// Lets go of the packet that a small chunk arrived in.
fn compact(bytes: Bytes) -> Bytes {
    if bytes.len() < COPY_BELOW {
        Bytes::copy_from_slice(&bytes)
    } else {
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drain(assembler: &mut Reassembler) -> Vec<u8> {
        let mut out = Vec::new();
        while let Some(bytes) = assembler.pop() {
            out.extend_from_slice(&bytes);
        }
        out
    }

    #[test]
    fn chunks_in_order_pass_through() {
        let mut assembler = Reassembler::starting_at(100);
        assembler.insert(100, Bytes::from_static(b"abc"));
        assembler.insert(103, Bytes::from_static(b"de"));
        assert_eq!(assembler.ready_bytes(), 5);
        assembler.consume(4);
        assert_eq!(drain(&mut assembler), b"e");
        assert_eq!(assembler.held(), 0);
    }

    #[test]
    fn a_gap_holds_back_what_follows() {
        let mut assembler = Reassembler::starting_at(0);
        assembler.insert(3, Bytes::from_static(b"def"));
        assert_eq!((assembler.ready_bytes(), assembler.gapped_chunks()), (0, 1));
        assert_eq!(assembler.claimed(), 6 + CHUNK_OVERHEAD);
        assembler.insert(0, Bytes::from_static(b"abc"));
        assert_eq!(drain(&mut assembler), b"abcdef");
        assert_eq!(assembler.held(), 0);
    }

    #[test]
    fn small_chunks_that_wait_let_go_of_their_packets() {
        let packet = Bytes::from(vec![7; 1200]);
        let mut assembler = Reassembler::starting_at(0);
        for offset in 0..100 {
            assembler.insert(offset, packet.slice(..1));
            assembler.insert(10_000 + 2 * offset, packet.slice(..1));
        }
        // The first of those in order may still be of the packet.
        assembler.consume(1);
        assert_eq!(
            (assembler.ready_bytes(), assembler.gapped_chunks()),
            (99, 100)
        );
        assert!(packet.is_unique());
    }

    proptest! {
        /// Any split of a stream, in any order, with duplicates and overlaps, comes out whole.
        #[test]
        fn any_order_reassembles(
            len in 1usize..4000,
            cuts in proptest::collection::vec((0usize..4000, 1usize..1500), 1..60),
            start in 0u64..1 << 40,
        ) {
            let stream: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
            let mut assembler = Reassembler::starting_at(start);
            let mut out = Vec::new();
            let pieces = cuts.into_iter().chain((0..len).step_by(700).map(|at| (at, 700)));
            for (at, size) in pieces {
                let at = at.min(len);
                let end = (at + size).min(len);
                assembler.insert(start + at as u64, Bytes::copy_from_slice(&stream[at..end]));
                if at % 3 == 0 {
                    out.extend(drain(&mut assembler));
                }
            }
            out.extend(drain(&mut assembler));
            prop_assert_eq!(out, stream);
            prop_assert_eq!(assembler.ready_bytes(), 0);
            prop_assert_eq!(assembler.gapped_bytes, 0);
            prop_assert_eq!(assembler.claimed(), 0);
        }
    }
}
