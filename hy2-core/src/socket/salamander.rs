//! Salamander: `salt[8] ‖ payload XOR BLAKE2b-256(psk ‖ salt)[i mod 32]`.

use blake2::{Blake2b, Digest, digest::consts::U32};

/// Bytes of salt in front of each obfuscated datagram.
pub(super) const SALT_LEN: usize = 8;
/// Bytes after which the key stream repeats.
const STREAM_LEN: usize = 32;

/// A pre-shared key, hashed as far as it can be without a salt.
#[derive(Clone)]
pub(super) struct Key(Blake2b<U32>);

/// The key stream of one datagram.
pub(super) struct Stream([u8; STREAM_LEN]);

impl Key {
    pub(super) fn new(psk: &[u8]) -> Self {
        Self(Blake2b::new_with_prefix(psk))
    }

    pub(super) fn stream(&self, salt: &[u8; SALT_LEN]) -> Stream {
        Stream(self.0.clone().chain_update(salt).finalize().into())
    }
}

impl Stream {
    /// Writes `source` XOR the stream to `target`, as far as the shorter of them goes.
    pub(super) fn copy(&self, source: &[u8], target: &mut [u8]) {
        let (source_blocks, source_rest) = source.as_chunks::<STREAM_LEN>();
        let (target_blocks, target_rest) = target.as_chunks_mut::<STREAM_LEN>();
        for (to, from) in target_blocks.iter_mut().zip(source_blocks) {
            *to = self.block(from);
        }
        for ((to, from), key) in target_rest.iter_mut().zip(source_rest).zip(&self.0) {
            *to = from ^ key;
        }
    }

    /// XORs `buf` with the stream.
    pub(super) fn apply(&self, buf: &mut [u8]) {
        for block in buf.chunks_mut(STREAM_LEN) {
            for (byte, key) in block.iter_mut().zip(&self.0) {
                *byte ^= key;
            }
        }
    }

    /// Moves `len` bytes of `buf` from `from` down to `to`, XORed with the stream.
    pub(super) fn move_down(&self, buf: &mut [u8], mut from: usize, mut to: usize, len: usize) {
        debug_assert!(to <= from);
        let end = from + len;
        // Each block is read whole before it is written, and `to` never passes `from`, so
        // overlapping ranges are fine.
        while end - from >= STREAM_LEN {
            let mut block = [0; STREAM_LEN];
            block.copy_from_slice(&buf[from..from + STREAM_LEN]);
            buf[to..to + STREAM_LEN].copy_from_slice(&self.block(&block));
            from += STREAM_LEN;
            to += STREAM_LEN;
        }
        for key in &self.0[..end - from] {
            buf[to] = buf[from] ^ key;
            from += 1;
            to += 1;
        }
    }

    fn block(&self, from: &[u8; STREAM_LEN]) -> [u8; STREAM_LEN] {
        std::array::from_fn(|i| from[i] ^ self.0[i])
    }
}
