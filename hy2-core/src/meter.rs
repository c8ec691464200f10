//! Live per-user counters: cells that the relay adds to and anyone may read.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

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
    tx: AtomicU64,
    rx: AtomicU64,
    connections: AtomicU32,
    streams: AtomicU32,
    udp_sessions: AtomicU32,
}

impl UserCounters {
    /// Returns counters at zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns one reading. Each figure is exact; they are not read at one instant.
    pub fn snapshot(&self) -> Traffic {
        Traffic {
            tx: self.tx.load(Relaxed),
            rx: self.rx.load(Relaxed),
            connections: self.connections.load(Relaxed),
            streams: self.streams.load(Relaxed),
            udp_sessions: self.udp_sessions.load(Relaxed),
        }
    }

    pub(crate) fn add_tx(&self, bytes: u64) {
        self.tx.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn add_rx(&self, bytes: u64) {
        self.rx.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn enter(self: &std::sync::Arc<Self>, presence: Presence) -> PresenceGuard {
        self.cell(presence).fetch_add(1, Relaxed);
        PresenceGuard {
            counters: std::sync::Arc::clone(self),
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
    counters: std::sync::Arc<UserCounters>,
    presence: Presence,
}

impl Drop for PresenceGuard {
    fn drop(&mut self) {
        self.counters.cell(self.presence).fetch_sub(1, Relaxed);
    }
}
