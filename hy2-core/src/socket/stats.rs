//! Counters of one socket, cheap enough to be always on.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Live counters of a socket; none of them ever goes down.
///
/// They are touched once per system call, never once per packet.
#[derive(Debug, Default)]
pub struct SocketStats {
    tx_datagrams: AtomicU64,
    tx_bytes: AtomicU64,
    tx_sends: AtomicU64,
    tx_widest: AtomicU64,
    rx_datagrams: AtomicU64,
    rx_bytes: AtomicU64,
    rx_reads: AtomicU64,
    rx_dropped: AtomicU64,
    would_block: AtomicU64,
    errors: AtomicU64,
    hops: AtomicU64,
    hop_failures: AtomicU64,
}

/// A copy of [`SocketStats`] taken at one moment (each field on its own).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SocketCounters {
    /// Datagrams handed to the kernel.
    pub tx_datagrams: u64,
    /// UDP payload bytes handed to the kernel, obfuscation included.
    pub tx_bytes: u64,
    /// System calls that handed datagrams to the kernel.
    pub tx_sends: u64,
    /// Most datagrams that one of these system calls took.
    pub tx_widest: u64,
    /// Datagrams received, before any is dropped by the obfuscation.
    pub rx_datagrams: u64,
    /// UDP payload bytes received, obfuscation included.
    pub rx_bytes: u64,
    /// System calls that returned datagrams.
    pub rx_reads: u64,
    /// Received datagrams that the obfuscation discarded: too short for a salt, or a
    /// Gecko fragment that cannot be right.
    pub rx_dropped: u64,
    /// Sends that found the kernel's buffer full; nothing was lost, they were tried again.
    pub would_block: u64,
    /// Datagrams the kernel refused for good (lost, as on the network) and failed reads.
    pub errors: u64,
    /// Port hops done.
    pub hops: u64,
    /// Port hops that could not open a new socket and kept the old one.
    pub hop_failures: u64,
}

impl SocketCounters {
    /// Returns the mean number of datagrams per send, 0 before the first send.
    #[must_use]
    pub fn datagrams_per_send(&self) -> f64 {
        if self.tx_sends == 0 {
            return 0.0;
        }
        self.tx_datagrams as f64 / self.tx_sends as f64
    }
}

impl SocketStats {
    /// Returns a copy of the counters.
    #[must_use]
    pub fn snapshot(&self) -> SocketCounters {
        SocketCounters {
            tx_datagrams: self.tx_datagrams.load(Relaxed),
            tx_bytes: self.tx_bytes.load(Relaxed),
            tx_sends: self.tx_sends.load(Relaxed),
            tx_widest: self.tx_widest.load(Relaxed),
            rx_datagrams: self.rx_datagrams.load(Relaxed),
            rx_bytes: self.rx_bytes.load(Relaxed),
            rx_reads: self.rx_reads.load(Relaxed),
            rx_dropped: self.rx_dropped.load(Relaxed),
            would_block: self.would_block.load(Relaxed),
            errors: self.errors.load(Relaxed),
            hops: self.hops.load(Relaxed),
            hop_failures: self.hop_failures.load(Relaxed),
        }
    }

    pub(super) fn sent(&self, datagrams: usize, bytes: usize) {
        self.tx_datagrams.fetch_add(datagrams as u64, Relaxed);
        self.tx_bytes.fetch_add(bytes as u64, Relaxed);
        self.tx_sends.fetch_add(1, Relaxed);
        self.tx_widest.fetch_max(datagrams as u64, Relaxed);
    }

    pub(super) fn received(&self, datagrams: usize, bytes: usize) {
        self.rx_datagrams.fetch_add(datagrams as u64, Relaxed);
        self.rx_bytes.fetch_add(bytes as u64, Relaxed);
        self.rx_reads.fetch_add(1, Relaxed);
    }

    pub(super) fn dropped(&self, datagrams: usize) {
        if datagrams > 0 {
            self.rx_dropped.fetch_add(datagrams as u64, Relaxed);
        }
    }

    pub(super) fn blocked(&self) {
        self.would_block.fetch_add(1, Relaxed);
    }

    pub(super) fn failed(&self, datagrams: usize) {
        self.errors.fetch_add(datagrams as u64, Relaxed);
    }

    pub(super) fn hopped(&self) {
        self.hops.fetch_add(1, Relaxed);
    }

    pub(super) fn hop_failed(&self) {
        self.hop_failures.fetch_add(1, Relaxed);
    }
}
