//! The server: listens, lets clients in, relays for them.

mod accept;
mod builder;
mod config;
mod connection;
mod speedtest;
mod tcp;
mod users;

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use hy2_proto::bandwidth::Bandwidth;
use quinn::Endpoint;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

pub use builder::ServerBuilder;
pub use config::{ServerConfig, ServerLimits};

use crate::{
    authenticator::{Authenticator, UserId, UserLimits},
    congestion::{Algorithm, CongestionSnapshot},
    event::{ConnectionId, EventSink, Peer},
    masquerade::Masquerade,
    meter::Traffic,
    outbound::Outbound,
    quic::close,
    relay::udp::NodeSessions,
    socket::SocketStats,
    tls::ServerTls,
};

/// What all connections of a server share.
pub(crate) struct Shared {
    pub(crate) config: ServerConfig,
    pub(crate) authenticator: Arc<dyn Authenticator>,
    pub(crate) outbound: Arc<dyn Outbound>,
    pub(crate) masquerade: Arc<dyn Masquerade>,
    pub(crate) events: Arc<dyn EventSink>,
    pub(crate) registry: users::Registry,
    pub(crate) runtime: Arc<dyn quinn::Runtime>,
    pub(crate) draining: watch::Sender<bool>,
    pub(crate) udp_sessions: Arc<NodeSessions>,
    next_connection: AtomicU64,
    counts: accept::Counts,
}

/// A running Hysteria 2 server. Dropping it stops everything at once; see [`Server::drain`] for
/// the friendly way.
///
/// # Examples
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use hy2_core::{Server, authenticator::Password, tls::ServerTls};
///
/// let server = Server::builder(ServerTls::from_pem_files("cert.pem", "key.pem")?)
///     .listen(([0, 0, 0, 0], 443).into())
///     .authenticator(Password::new("a long random password"))
///     .bind()?;
/// println!("listening on {:?}", server.local_addrs());
/// server.closed().await;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Server {
    endpoints: Vec<Endpoint>,
    /// Figures of the sockets, which share them until they are closed.
    sockets: Vec<Arc<SocketStats>>,
    handle: ServerHandle,
    /// One per endpoint; each ends when its endpoint is closed and its connections are over.
    accepting: JoinSet<()>,
    _supervisor: JoinSet<()>,
}

impl Server {
    /// Starts describing a server with this certificate.
    pub fn builder(tls: ServerTls) -> ServerBuilder {
        ServerBuilder::new(tls)
    }

    /// Returns the bound addresses, in the order they were asked for.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.endpoints
            .iter()
            .filter_map(|endpoint| endpoint.local_addr().ok())
            .collect()
    }

    /// Returns a handle for watching and steering.
    pub fn handle(&self) -> ServerHandle {
        self.handle.clone()
    }

    /// Waits until the server ends because its sockets failed; normally forever.
    pub async fn closed(mut self) {
        while self.accepting.join_next().await.is_some() {}
    }

    /// Ends in order: lets no new client or stream in, waits for open TCP streams up to `grace`,
    /// then closes what is left with code 0x100 and waits until the peers were told.
    ///
    /// Meanwhile new streams are answered with an error, and a connection closes as soon as it
    /// has no open TCP stream, so that its client reconnects (elsewhere, where there are more).
    /// UDP sessions do not hold a connection open. When this returns, every event was reported and the ports are
    /// free.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops everything at once.
    pub async fn drain(mut self, grace: Duration) {
        self.handle.shared.draining.send_replace(true);
        let _ = timeout(grace, self.connections_over()).await;
        for endpoint in &self.endpoints {
            endpoint.close(close::OK, b"");
        }
        let ended = async {
            while self.accepting.join_next().await.is_some() {}
            // The peers were told.
            for endpoint in &self.endpoints {
                endpoint.wait_idle().await;
            }
        };
        let _ = timeout(CLOSING_MAX, ended).await;
        self.endpoints.clear();
        let _ = timeout(CLOSING_MAX, self.sockets_closed()).await;
    }

    /// Waits until the sockets are closed. That is for tasks of quinn and of the sockets to do,
    /// which tell nobody; it takes them one turn each.
    async fn sockets_closed(&self) {
        while self
            .sockets
            .iter()
            .any(|stats| Arc::strong_count(stats) > 1)
        {
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until there is no connection, handshakes included.
    async fn connections_over(&self) {
        for endpoint in &self.endpoints {
            endpoint.wait_idle().await;
        }
    }
}

/// How long a drain waits for connections to end after it closed them.
const CLOSING_MAX: Duration = Duration::from_secs(3);

impl Drop for Server {
    fn drop(&mut self) {
        for endpoint in &self.endpoints {
            endpoint.close(close::OK, b"");
        }
    }
}

/// Watches and steers a [`Server`]; cheap to clone, does not keep it alive.
#[derive(Clone)]
pub struct ServerHandle {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerHandle").finish_non_exhaustive()
    }
}

/// One user, as [`ServerHandle::users`] shows it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct UserStatus {
    /// The user.
    pub user: UserId,
    /// The user's counters.
    pub traffic: Traffic,
    /// The limits in force.
    pub limits: UserLimits,
}

/// One authenticated connection, as [`ServerHandle::connections`] shows it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConnectionStatus {
    /// Which connection, whose, from where.
    pub peer: Peer,
    /// Where it comes from at this moment (clients move).
    pub remote: SocketAddr,
    /// Round trip time.
    pub rtt: Duration,
    /// Rates, loss and acknowledgement figures.
    pub congestion: CongestionSnapshot,
    /// Largest packet the path carries, in bytes of UDP payload.
    pub mtu: u16,
    /// Largest datagram payload the peer takes, in bytes.
    pub max_datagram: Option<usize>,
    /// Packets declared lost.
    pub lost_packets: u64,
    /// Packets sent.
    pub sent_packets: u64,
}

impl ServerHandle {
    /// Returns everyone who has been connected, with counters.
    pub fn users(&self) -> Vec<UserStatus> {
        self.shared
            .registry
            .users()
            .into_iter()
            .map(|user| UserStatus {
                user: user.id.clone(),
                traffic: user.counters().snapshot(),
                limits: user.limits(),
            })
            .collect()
    }

    /// Returns the counters of one user.
    pub fn traffic(&self, user: &UserId) -> Option<Traffic> {
        Some(self.shared.registry.user(user)?.counters().snapshot())
    }

    /// Forgets users who are not connected and returns their last figures.
    pub fn take_absent(&self) -> Vec<UserStatus> {
        self.shared
            .registry
            .forget_absent()
            .into_iter()
            .map(|user| UserStatus {
                user: user.id.clone(),
                traffic: user.counters().snapshot(),
                limits: user.limits(),
            })
            .collect()
    }

    /// Returns the authenticated connections.
    pub fn connections(&self) -> Vec<ConnectionStatus> {
        let mut connections: Vec<_> = self
            .shared
            .registry
            .members()
            .into_iter()
            .map(|member| {
                let stats = member.connection.stats();
                ConnectionStatus {
                    remote: member.connection.remote_address(),
                    rtt: stats.path.rtt,
                    congestion: member.congestion.snapshot(),
                    mtu: stats.path.current_mtu,
                    max_datagram: member.connection.max_datagram_size(),
                    lost_packets: stats.path.lost_packets,
                    sent_packets: stats.path.sent_packets,
                    peer: member.peer,
                }
            })
            .collect();
        connections.sort_by_key(|status| status.peer.connection);
        connections
    }

    /// Closes every connection of `user` with code 0x107 and returns how many there were.
    ///
    /// Nothing stops the user from coming back but the authenticator.
    pub fn kick(&self, user: &UserId) -> usize {
        self.shared.registry.kick(user)
    }

    /// Changes a user's limits while connected; surplus connections close, newest first.
    /// Returns `false` when the user has never been connected.
    ///
    /// The user's next grant sets the limits anew.
    pub fn set_limits(&self, user: &UserId, limits: UserLimits) -> bool {
        self.shared.registry.set_limits(user, limits)
    }

    /// Changes the congestion control of all of a user's connections, and returns how many.
    ///
    /// A Brutal rate is still capped by the user's `down` limit. Connections to come negotiate
    /// theirs as always.
    pub fn set_congestion(&self, user: &UserId, algorithm: Algorithm) -> usize {
        self.shared.registry.set_congestion(user, algorithm)
    }

    /// Returns the connection count, authenticated or not.
    pub fn connection_count(&self) -> usize {
        self.shared.counts.connections()
    }

    /// Returns the Brutal rate in force on a connection.
    pub fn rate(&self, connection: ConnectionId) -> Option<Bandwidth> {
        let member = self
            .shared
            .registry
            .members()
            .into_iter()
            .find(|member| member.peer.connection == connection)?;
        match member.congestion.algorithm() {
            Algorithm::Brutal { rate, .. } => Some(Bandwidth::from_bytes_per_sec(rate)),
            _ => None,
        }
    }
}
