//! What happens on a server, for logs, audits and dashboards: the [`EventSink`] trait.

use std::{net::SocketAddr, sync::Arc};

use hy2_proto::bandwidth::Bandwidth;

use crate::authenticator::UserId;

/// Identifies one client connection of one server for that server's lifetime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub(crate) u64);

impl ConnectionId {
    /// Returns the number behind the identifier.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl From<u64> for ConnectionId {
    fn from(id: u64) -> Self {
        Self(id)
    }
}

impl std::fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// An authenticated connection, as events name it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Peer {
    /// The connection.
    pub connection: ConnectionId,
    /// The user it authenticated as.
    pub user: UserId,
    /// Where it came from when it authenticated.
    pub remote: SocketAddr,
}

/// Receives events of a server. Every method has an empty default.
///
/// Events come in pairs, however a connection, stream or session ends: each opening is followed by
/// exactly one closing, and a connection's `disconnected` comes after those of its streams and
/// sessions. By then the presence figures no longer count what ended, and its bytes are final.
///
/// Called inline on the connection's task: return at once, hand long work elsewhere. Destinations
/// are private data; do not log them above `debug`.
pub trait EventSink: Send + Sync + 'static {
    /// A client authenticated. `tx` is the Brutal rate towards it, `None` under BBR or Reno.
    fn connected(&self, peer: &Peer, tx: Option<Bandwidth>) {
        let _ = (peer, tx);
    }

    /// An authenticated connection ended for `reason`.
    fn disconnected(&self, peer: &Peer, reason: &quinn::ConnectionError) {
        let _ = (peer, reason);
    }

    /// A TCP relay to `target` was asked for.
    fn tcp_requested(&self, peer: &Peer, target: &str) {
        let _ = (peer, target);
    }

    /// A TCP relay ended; `error` says why when it was not a clean end.
    fn tcp_closed(
        &self,
        peer: &Peer,
        target: &str,
        error: Option<&(dyn std::error::Error + 'static)>,
    ) {
        let _ = (peer, target, error);
    }

    /// A UDP session opened; `target` is the destination of its first message.
    fn udp_opened(&self, peer: &Peer, session: u32, target: &str) {
        let _ = (peer, session, target);
    }

    /// A UDP session ended.
    fn udp_closed(&self, peer: &Peer, session: u32) {
        let _ = (peer, session);
    }
}

/// Drops every event.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoEvents;

impl EventSink for NoEvents {}

impl<E: EventSink + ?Sized> EventSink for Arc<E> {
    fn connected(&self, peer: &Peer, tx: Option<Bandwidth>) {
        (**self).connected(peer, tx);
    }
    fn disconnected(&self, peer: &Peer, reason: &quinn::ConnectionError) {
        (**self).disconnected(peer, reason);
    }
    fn tcp_requested(&self, peer: &Peer, target: &str) {
        (**self).tcp_requested(peer, target);
    }
    fn tcp_closed(
        &self,
        peer: &Peer,
        target: &str,
        error: Option<&(dyn std::error::Error + 'static)>,
    ) {
        (**self).tcp_closed(peer, target, error);
    }
    fn udp_opened(&self, peer: &Peer, session: u32, target: &str) {
        (**self).udp_opened(peer, session, target);
    }
    fn udp_closed(&self, peer: &Peer, session: u32) {
        (**self).udp_closed(peer, session);
    }
}
