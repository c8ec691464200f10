//! The receiving half of an obfuscated socket, for the fuzz targets.

use std::{io::IoSliceMut, net::SocketAddr};

use quinn::udp::RecvMeta;

use super::{inbox, obfs::Obfuscation};

/// Turns received buffers into QUIC datagrams.
pub struct Inbox(inbox::Inbox);

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

impl Inbox {
    /// Receives under `obfuscation`.
    pub fn new(obfuscation: &Obfuscation) -> Self {
        Self(inbox::Inbox::new(obfuscation))
    }

    /// Decodes one buffer of datagrams that are `stride` bytes apart; returns the new length and
    /// stride and how many datagrams were dropped.
    pub fn decode(&self, buf: &mut [u8], stride: usize, from: SocketAddr) -> (usize, usize, usize) {
        let mut meta = [RecvMeta {
            addr: from,
            len: buf.len(),
            stride,
            ecn: None,
            dst_ip: None,
        }];
        let dropped = self.0.decode(&mut [IoSliceMut::new(buf)], &mut meta);
        let [meta] = meta;
        (meta.len, meta.stride, dropped)
    }

    /// Takes the next datagram that fragments made, if it fits `buf`.
    pub fn take_ready(&self, buf: &mut [u8]) -> Option<usize> {
        let mut meta = [RecvMeta::default()];
        self.0.take_ready(&mut [IoSliceMut::new(buf)], &mut meta)?;
        let [meta] = meta;
        Some(meta.len)
    }
}
