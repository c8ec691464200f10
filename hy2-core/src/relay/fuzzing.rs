//! The reassembler for the fuzz targets.

use bytes::Bytes;

use super::reassembler;

/// Puts chunks of a stream in order.
#[derive(Debug)]
pub struct Reassembler(reassembler::Reassembler);

impl Reassembler {
    /// Starts at a stream offset.
    pub fn starting_at(next: u64) -> Self {
        Self(reassembler::Reassembler::starting_at(next))
    }

    /// Takes a chunk in.
    pub fn insert(&mut self, offset: u64, bytes: Bytes) {
        self.0.insert(offset, bytes);
    }

    /// Offers what is in order.
    pub fn chunks(&self) -> impl Iterator<Item = &Bytes> {
        self.0.chunks()
    }

    /// Takes the next chunk.
    pub fn pop(&mut self) -> Option<Bytes> {
        self.0.pop()
    }

    /// Puts the rest of a chunk back.
    pub fn unpop(&mut self, bytes: Bytes) {
        self.0.unpop(bytes);
    }

    /// Drops bytes that are in order.
    pub fn consume(&mut self, count: usize) {
        self.0.consume(count);
    }

    /// Offset of the first byte that is missing.
    pub fn next_offset(&self) -> u64 {
        self.0.next_offset()
    }

    /// Bytes in order.
    pub fn ready_bytes(&self) -> usize {
        self.0.ready_bytes()
    }

    /// Chunks behind a gap.
    pub fn gapped_chunks(&self) -> usize {
        self.0.gapped_chunks()
    }

    /// Memory held as it is counted.
    pub fn held(&self) -> usize {
        self.0.held()
    }
}
