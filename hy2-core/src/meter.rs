//! Live per-user counters: cells that the relay adds to and anyone may read.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

/// Byte counters that an embedder owns, for example in memory that outlives the process.
///
/// Called inline by the relay after each move of bytes, from many tasks at once: an
/// implementation adds to atomics and returns. It may close connections
/// ([`crate::ServerHandle::kick`]) when a user has had enough.
pub trait ByteCells: fmt::Debug + Send + Sync + 'static {
    /// Counts payload bytes client → target.
    fn add_tx(&self, bytes: u64);

    /// Counts payload bytes target → client.
    fn add_rx(&self, bytes: u64);

    /// Returns what was counted, `(tx, rx)`.
    fn read(&self) -> (u64, u64);
}

/// Traffic and presence of one user. Directions are the reference's: `tx` is client → target,
/// `rx` is target → client; payload bytes only.
///
/// Bytes towards the target are counted after the target's socket took them; bytes towards the
/// client after QUIC took them into its send buffer. So after a clean end the figures equal what
/// each side read, and after a kill or reset `delivered ≤ counted ≤ delivered + buffered`.
///
/// The embedder may own the cells (see [`crate::authenticator::Grant::counters`]) and read them
/// at its own pace; nothing is called back per packet.
#[derive(Debug, Default)]
pub struct UserCounters {
    bytes: Cells,
    connections: AtomicU32,
    streams: AtomicU32,
    udp_sessions: AtomicU32,
}

#[derive(Debug)]
enum Cells {
    Own { tx: AtomicU64, rx: AtomicU64 },
    Embedder(Arc<dyn ByteCells>),
}

impl Default for Cells {
    fn default() -> Self {
        Self::Own {
            tx: AtomicU64::new(0),
            rx: AtomicU64::new(0),
        }
    }
}

impl UserCounters {
    /// Returns counters at zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns counters that count bytes into `cells`; presence starts at zero.
    pub fn over(cells: Arc<dyn ByteCells>) -> Self {
        Self {
            bytes: Cells::Embedder(cells),
            ..Self::default()
        }
    }

    /// Returns one reading. Each figure is exact; they are not read at one instant.
    pub fn snapshot(&self) -> Traffic {
        let (tx, rx) = match &self.bytes {
            Cells::Own { tx, rx } => (tx.load(Relaxed), rx.load(Relaxed)),
            Cells::Embedder(cells) => cells.read(),
        };
        Traffic {
            tx,
            rx,
            connections: self.connections.load(Relaxed),
            streams: self.streams.load(Relaxed),
            udp_sessions: self.udp_sessions.load(Relaxed),
        }
    }

    pub(crate) fn add_tx(&self, bytes: u64) {
        match &self.bytes {
            Cells::Own { tx, .. } => {
                tx.fetch_add(bytes, Relaxed);
            }
            Cells::Embedder(cells) => cells.add_tx(bytes),
        }
    }

    pub(crate) fn add_rx(&self, bytes: u64) {
        match &self.bytes {
            Cells::Own { rx, .. } => {
                rx.fetch_add(bytes, Relaxed);
            }
            Cells::Embedder(cells) => cells.add_rx(bytes),
        }
    }

    pub(crate) fn enter(self: &Arc<Self>, presence: Presence) -> PresenceGuard {
        self.cell(presence).fetch_add(1, Relaxed);
        PresenceGuard {
            counters: Arc::clone(self),
            presence,
        }
    }

    fn cell(&self, presence: Presence) -> &AtomicU32 {
        match presence {
            Presence::Connection => &self.connections,
            Presence::Stream => &self.streams,
            Presence::UdpSession => &self.udp_sessions,
        }
    }
}

/// One reading of [`UserCounters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Traffic {
    /// Payload bytes client → target since the cells were made.
    pub tx: u64,
    /// Payload bytes target → client since the cells were made.
    pub rx: u64,
    /// Connections authenticated at this moment.
    pub connections: u32,
    /// TCP streams open at this moment.
    pub streams: u32,
    /// UDP sessions open at this moment.
    pub udp_sessions: u32,
}

/// What a [`PresenceGuard`] counts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Presence {
    Connection,
    Stream,
    UdpSession,
}

/// Counts one connection, stream or session for as long as it lives.
#[derive(Debug)]
pub(crate) struct PresenceGuard {
    counters: Arc<UserCounters>,
    presence: Presence,
}

impl Drop for PresenceGuard {
    fn drop(&mut self) {
        self.counters.cell(self.presence).fetch_sub(1, Relaxed);
    }
}
