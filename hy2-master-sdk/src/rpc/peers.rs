//! Who is connected: the identity of each connection, and the means to cut it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Request, Status};
use uuid::Uuid;

use crate::domain::NodeId;

/// Whose connection it is.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// Of the certificate, looked up in the store; `None` without one.
    pub(crate) identity: Option<Identity>,
    /// Why the certificate is nobody's.
    pub(crate) refusal: Option<&'static str>,
    /// Cancelled when the connection has to end.
    pub(crate) cut: CancellationToken,
    /// Cancelled when the node must not serve any more: it was deleted, or its identity revoked.
    pub(crate) retired: CancellationToken,
}

/// A node, by its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    pub(crate) uid: Uuid,
    pub(crate) fingerprint: [u8; 32],
}

impl Peer {
    /// Returns the peer of a request.
    pub(crate) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let peer = request.extensions().get::<Self>().cloned();
        peer.filter(|peer| !peer.cut.is_cancelled())
            .ok_or_else(|| Status::unauthenticated("the connection is closed"))
    }

    /// Returns the node that made a request.
    pub(crate) fn node<T>(request: &Request<T>) -> Result<(Identity, Self), Status> {
        let peer = Self::of(request)?;
        match peer.identity {
            Some(identity) => Ok((identity, peer)),
            None => {
                let reason = peer.refusal.unwrap_or("a client certificate is required");
                Err(Status::unauthenticated(reason))
            }
        }
    }
}

/// The open connections of nodes, and how much anonymous ones ask for.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    open: Mutex<HashMap<Identity, Vec<Open>>>,
    anonymous: Mutex<HashMap<IpAddr, (Instant, u32)>>,
    next: std::sync::atomic::AtomicU64,
}

impl Peers {
    /// Registers a connection until the guard is dropped.
    pub(crate) fn register(
        self: &Arc<Self>,
        identity: Identity,
        cut: CancellationToken,
        retired: CancellationToken,
    ) -> OpenGuard {
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.open.lock().entry(identity).or_default().push(Open {
            number,
            cut,
            retired,
        });
        OpenGuard {
            peers: Arc::clone(self),
            identity,
            number,
        }
    }

    /// Returns whose connections are open.
    pub(crate) fn identities(&self) -> Vec<Identity> {
        self.open.lock().keys().copied().collect()
    }

    /// Cuts every connection of these. Returns how many.
    pub(crate) fn cut(&self, bad: &[Identity]) -> usize {
        let open = self.open.lock();
        let connections = bad
            .iter()
            .filter_map(|identity| open.get(identity))
            .flatten();
        connections.map(|open| open.cut.cancel()).count()
    }

    /// Has these told that they must not serve any more.
    pub(crate) fn retire(&self, retired: &[Identity]) {
        let open = self.open.lock();
        let of = retired.iter().filter_map(|identity| open.get(identity));
        of.flatten().for_each(|open| open.retired.cancel());
    }

    /// Counts a request without a certificate; false when the address has made too many.
    pub(crate) fn admit_anonymous(&self, address: IpAddr, per_minute: u32) -> bool {
        let key = match address.to_canonical() {
            IpAddr::V4(v4) => IpAddr::V4(v4),
            // A /64 is one customer.
            IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
        };
        let now = Instant::now();
        let mut seen = self.anonymous.lock();
        if seen.len() >= MAX_TRACKED {
            seen.retain(|_, (since, _)| now.duration_since(*since) < MINUTE);
            if seen.len() >= MAX_TRACKED && !seen.contains_key(&key) {
                return false;
            }
        }
        let (since, count) = seen.entry(key).or_insert((now, 0));
        if now.duration_since(*since) >= MINUTE {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count <= per_minute
    }
}

/// One connection of a node.
#[derive(Debug)]
struct Open {
    number: u64,
    cut: CancellationToken,
    retired: CancellationToken,
}

/// Keeps a connection registered.
#[derive(Debug)]
pub(crate) struct OpenGuard {
    peers: Arc<Peers>,
    identity: Identity,
    number: u64,
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        let mut open = self.peers.open.lock();
        if let Some(connections) = open.get_mut(&self.identity) {
            connections.retain(|open| open.number != self.number);
            if connections.is_empty() {
                open.remove(&self.identity);
            }
        }
    }
}

/// A connection that ends when its peer is cut, and after a minute when the peer has no certificate:
/// enrolling takes seconds.
#[derive(Debug)]
pub(crate) struct PeerStream {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    limit: Option<Pin<Box<Sleep>>>,
    _open: Option<OpenGuard>,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl PeerStream {
    pub(crate) fn new(
        stream: TlsStream<TcpStream>,
        peer: Peer,
        open: Option<OpenGuard>,
        permit: tokio::sync::OwnedSemaphorePermit,
    ) -> Self {
        Self {
            stream,
            cut: Box::pin(peer.cut.clone().cancelled_owned()),
            limit: peer
                .identity
                .is_none()
                .then(|| Box::pin(tokio::time::sleep(ANONYMOUS_LIFETIME))),
            peer,
            _open: open,
            _permit: permit,
        }
    }

    /// Returns whose it is.
    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }

    fn poll_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let late = self
            .limit
            .as_mut()
            .is_some_and(|limit| limit.as_mut().poll(cx).is_ready());
        if late || self.cut.as_mut().poll(cx).is_ready() {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the peer was cut",
            ));
        }
        Ok(())
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

const MINUTE: Duration = Duration::from_secs(60);
const ANONYMOUS_LIFETIME: Duration = Duration::from_secs(60);
const MAX_TRACKED: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(node: i64, fingerprint: u8) -> Identity {
        Identity {
            node: NodeId(node),
            uid: Uuid::nil(),
            fingerprint: [fingerprint; 32],
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_without_certificate_is_limited_by_the_minute_and_a_v6_network_is_one() {
        let peers = Peers::default();
        let a = "2001:db8::1".parse().unwrap();
        let b = "2001:db8::2".parse().unwrap();
        let other = "192.0.2.1".parse().unwrap();
        assert!(peers.admit_anonymous(a, 2) && peers.admit_anonymous(b, 2));
        assert!(!peers.admit_anonymous(a, 2) && !peers.admit_anonymous(b, 2));
        assert!(peers.admit_anonymous(other, 2));
        tokio::time::advance(MINUTE).await;
        assert!(peers.admit_anonymous(a, 2));
    }

    #[test]
    fn only_the_connections_of_a_bad_certificate_are_cut_and_a_closed_one_is_forgotten() {
        let peers = Arc::new(Peers::default());
        let tokens = [(1, 1), (1, 2), (2, 3)]
            .map(|(node, print)| (identity(node, print), CancellationToken::new()));
        let guards = tokens
            .clone()
            .map(|(identity, token)| peers.register(identity, token, CancellationToken::new()));
        peers.retire(&[tokens[1].0, identity(9, 9)]);
        let retired = tokens.clone().map(|(identity, _)| {
            let open = peers.open.lock();
            open[&identity]
                .iter()
                .all(|open| open.retired.is_cancelled())
        });
        assert_eq!(retired, [false, true, false]);
        assert_eq!(peers.identities().len(), 3);
        assert_eq!(peers.cut(&[tokens[0].0, identity(9, 9)]), 1);
        assert_eq!(
            tokens.map(|(_, token)| token.is_cancelled()),
            [true, false, false]
        );
        drop(guards);
        assert!(peers.identities().is_empty());
    }
}
