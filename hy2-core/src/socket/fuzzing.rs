//! The two halves of an obfuscated socket, and one that changes over, for the fuzz targets and benches.

use std::{collections::HashSet, io::IoSliceMut, net::SocketAddr, sync::Arc};

use quinn::udp::{RecvMeta, Transmit};

use super::{changeover::Spoken, inbox, obfs::Obfuscation, outbox};

/// Datagrams in a full transmit of the QUIC layer.
pub const FULL_TRANSMIT: usize = outbox::FULL_TRANSMIT;

/// Most datagrams in one send.
pub const MAX_RUN_DATAGRAMS: usize = outbox::MAX_RUN_DATAGRAMS;

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

/// Gathers transmits into sends.
pub struct Outbox(outbox::Outbox);

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").finish_non_exhaustive()
    }
}

impl Default for Outbox {
    fn default() -> Self {
        Self(outbox::Outbox::new())
    }
}

impl Outbox {
    /// Adds the datagrams of `transmit` under `obfuscation`.
    pub fn push(&mut self, transmit: &Transmit<'_>, obfuscation: &Obfuscation) {
        self.0.push(transmit, obfuscation);
    }

    /// Takes the next send; returns its bytes and the size of its datagrams.
    pub fn take(&mut self, send: impl FnOnce(&[u8], usize)) -> bool {
        let Some(front) = self.0.front() else {
            return false;
        };
        let len = front.contents.len();
        send(front.contents, front.segment_size.unwrap_or(len));
        self.0.advance(len);
        true
    }
}

/// What a server socket speaks while its obfuscation changes.
#[derive(Debug)]
pub struct Changing(Spoken);

impl Changing {
    /// Speaks `current`, and `previous` with whoever is heard under it. `recognises` knows the identifiers that were given
    /// out.
    pub fn new(
        current: &Obfuscation,
        previous: &Obfuscation,
        recognises: impl Fn(&[u8]) -> bool + Send + Sync + 'static,
    ) -> Self {
        let peers = HashSet::new();
        Self(Spoken::changing(
            current,
            previous,
            peers,
            Arc::new(recognises),
        ))
    }

    /// Decodes as [`Inbox::decode`] does.
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

    /// Takes what fragments made as [`Inbox::take_ready`] does.
    pub fn take_ready(&self, buf: &mut [u8]) -> Option<usize> {
        let mut meta = [RecvMeta::default()];
        self.0.take_ready(&mut [IoSliceMut::new(buf)], &mut meta)?;
        let [meta] = meta;
        Some(meta.len)
    }

    /// Returns how `peer` is answered.
    pub fn towards(&self, peer: &SocketAddr) -> &Obfuscation {
        self.0.towards(peer)
    }
}
