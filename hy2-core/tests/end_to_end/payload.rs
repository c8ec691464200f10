//! Bytes whose loss, repetition or reordering shows in a checksum.

use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const BLOCK: usize = 64 << 10;

/// A checksum and how many bytes it is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) len: u64,
    pub(crate) sha256: [u8; 32],
}

/// Collects a [`Sum`].
#[derive(Default)]
pub(crate) struct Summer {
    len: u64,
    hash: Sha256,
}

impl Summer {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.len += bytes.len() as u64;
        self.hash.update(bytes);
    }

    pub(crate) fn finish(self) -> Sum {
        Sum {
            len: self.len,
            sha256: self.hash.finalize().into(),
        }
    }
}

/// Makes an endless stream of blocks, no two alike.
pub(crate) struct Blocks {
    block: Vec<u8>,
    number: u64,
}

impl Blocks {
    pub(crate) fn new() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let block = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()
        })
        .take(BLOCK / 8)
        .flatten()
        .collect();
        Self { block, number: 0 }
    }

    pub(crate) fn next(&mut self) -> &[u8] {
        self.number += 1;
        self.block[..8].copy_from_slice(&self.number.to_be_bytes());
        &self.block
    }
}

/// Writes `len` bytes; the end of the stream is the caller's.
pub(crate) async fn send(to: &mut (impl AsyncWrite + Unpin), len: u64) -> std::io::Result<Sum> {
    let mut blocks = Blocks::new();
    let mut sum = Summer::default();
    while sum.len < len {
        let block = blocks.next();
        let count = usize::try_from(len - sum.len).map_or(BLOCK, |left| left.min(BLOCK));
        to.write_all(&block[..count]).await?;
        sum.add(&block[..count]);
    }
    Ok(sum.finish())
}

/// Reads to the end.
pub(crate) async fn receive(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Sum> {
    let mut sum = Summer::default();
    let mut buffer = vec![0; BLOCK];
    loop {
        match from.read(&mut buffer).await? {
            0 => return Ok(sum.finish()),
            count => sum.add(&buffer[..count]),
        }
    }
}
