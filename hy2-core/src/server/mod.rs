//! The server: listens, lets clients in, relays for them.

mod accept;
mod builder;
mod config;
mod connection;
mod listeners;
mod speedtest;
mod tcp;
mod users;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use hy2_proto::bandwidth::Bandwidth;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

pub use builder::ServerBuilder;
pub use config::{ServerConfig, ServerLimits};

use crate::{
    authenticator::{Authenticator, UserId, UserLimits},
    congestion::{Algorithm, CongestionSnapshot},
    error::BindError,
    event::{ConnectionId, EventSink, Peer},
    masquerade::Masquerade,
    meter::Traffic,
    outbound::Outbound,
    quic::close,
    relay::udp::NodeSessions,
    socket::{Obfuscation, SocketStats},
    tls::ServerTls,
};

/// What all connections of a server share.
pub(crate) struct Shared {
    /// As it was bound: sockets, memory and limits.
    pub(crate) config: ServerConfig,
    /// What can change while the server runs, see [`Shared::settings`].
    settings: ArcSwap<ServerConfig>,
    pub(crate) listeners: listeners::Listeners,
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

impl Shared {
    /// Returns the settings for what begins at this moment.
    pub(crate) fn settings(&self) -> Arc<ServerConfig> {
        self.settings.load_full()
    }
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
    handle: ServerHandle,
    _supervisor: JoinSet<()>,
}

impl Server {
    /// Starts describing a server with this certificate.
    pub fn builder(tls: ServerTls) -> ServerBuilder {
        ServerBuilder::new(tls)
    }

    /// Returns the bound addresses, in the order they were asked for.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.handle.local_addrs()
    }

    /// Returns a handle for watching and steering.
    pub fn handle(&self) -> ServerHandle {
        self.handle.clone()
    }

    /// Waits until the server ends because its sockets failed; normally forever.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops everything at once, as dropping the server does.
    pub async fn closed(self) {
        self.accepting_over().await;
    }

    async fn accepting_over(&self) {
        let tasks = &self.handle.shared.listeners.tasks;
        tasks.close();
        tasks.wait().await;
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
    pub async fn drain(self, grace: Duration) {
        let listeners = &self.handle.shared.listeners;
        self.handle.shared.draining.send_replace(true);
        let endpoints = listeners.endpoints();
        let idle = async {
            for endpoint in &endpoints {
                endpoint.wait_idle().await;
            }
        };
        let _ = timeout(grace, idle).await;
        for endpoint in &endpoints {
            endpoint.close(close::OK, b"");
        }
        let sockets = listeners.clear();
        let ended = async {
            self.accepting_over().await;
            // The peers were told.
            for endpoint in &endpoints {
                endpoint.wait_idle().await;
            }
        };
        let _ = timeout(CLOSING_MAX, ended).await;
        drop(endpoints);
        let _ = timeout(CLOSING_MAX, closed(&sockets)).await;
    }
}

/// Waits until sockets are closed. That is for tasks of quinn and of the sockets to do, which tell
/// nobody; it takes them one turn each.
async fn closed(sockets: &[Arc<SocketStats>]) {
    while sockets.iter().any(|stats| Arc::strong_count(stats) > 1) {
        sleep(Duration::from_millis(1)).await;
    }
}

/// How long a drain waits for connections to end after it closed them.
const CLOSING_MAX: Duration = Duration::from_secs(3);

impl Drop for Server {
    fn drop(&mut self) {
        self.handle.shared.listeners.abort();
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
    /// What the connection's cells say. Its own figures when the embedder gives each grant its own
    /// [`crate::meter::UserCounters`]; the user's where cells are shared.
    pub traffic: Traffic,
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
                    traffic: member.counters.snapshot(),
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

    /// Closes one authenticated connection with code 0x107; `false` when there is none of this
    /// number.
    pub fn kick_connection(&self, connection: ConnectionId) -> bool {
        self.shared.registry.kick_connection(connection)
    }

    /// Returns the settings in force for new connections.
    pub fn config(&self) -> ServerConfig {
        ServerConfig::clone(&self.shared.settings.load())
    }

    /// Changes settings while the server runs. What has begun goes on under what it began with:
    /// connections keep their agreed rates and windows, UDP sessions their idle time.
    ///
    /// `socket`, `memory` and `limits` stay as they were bound, the obfuscation as
    /// [`Self::set_obfuscation`] left it.
    ///
    /// # Errors
    ///
    /// [`BindError::Config`] when a setting is out of range; nothing changes.
    pub fn set_config(&self, config: ServerConfig) -> Result<(), BindError> {
        config.validate()?;
        let bound = &self.shared.config;
        self.shared.settings.rcu(|current| ServerConfig {
            socket: bound.socket.clone(),
            memory: Arc::clone(&bound.memory),
            limits: bound.limits.clone(),
            obfuscation: current.obfuscation.clone(),
            ..config.clone()
        });
        Ok(())
    }

    /// Changes the obfuscation of every listener. With `previous`, clients that speak that are
    /// understood beside, until its time comes; connections under any other obfuscation close,
    /// as do those under `previous` when it ends.
    ///
    /// Gecko's long packets cannot be told apart by key with certainty: while two Gecko keys are
    /// accepted, a handshake may need a retransmission more.
    pub fn set_obfuscation(&self, current: Obfuscation, previous: Option<(Obfuscation, Instant)>) {
        let listeners = &self.shared.listeners;
        listeners.change_obfuscation(&self.shared, current.clone(), previous);
        self.shared.settings.rcu(|settings| ServerConfig {
            obfuscation: current.clone(),
            ..ServerConfig::clone(settings)
        });
    }

    /// Returns the bound addresses of the listeners that take new clients.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.shared.listeners.local_addrs()
    }

    /// Listens on one more address (UDP), and returns it as bound. A listener that
    /// [`Self::unlisten`] drains there takes clients again.
    ///
    /// # Errors
    ///
    /// [`BindError::Listen`] when the address cannot be bound or the server is over.
    pub fn listen(&self, address: SocketAddr) -> Result<SocketAddr, BindError> {
        let listeners = &self.shared.listeners;
        listeners.open(&self.shared, listeners::Listen::Address(address))
    }

    /// Lets no new client in at `address`, as it was asked for or as it is bound; closes the
    /// listener when its connections are over, or after `grace` together with them. Returns at
    /// once; `false` when no listener takes clients there.
    pub fn unlisten(&self, address: SocketAddr, grace: Duration) -> bool {
        self.shared.listeners.retire(&self.shared, address, grace)
    }

    /// Returns how many handshakes came to nothing since the start.
    pub fn handshakes_failed(&self) -> u64 {
        self.shared.counts.handshakes_failed.load(Ordering::Relaxed)
    }

    /// Changes a user's limits while connected; surplus connections close, newest first.
    /// Returns `false` when the user has never been connected.
    ///
    /// The user's next grant sets the limits anew.
    pub fn set_limits(&self, user: &UserId, limits: UserLimits) -> bool {
        self.shared.registry.set_limits(user, limits)
    }

    /// Holds back everything that is relayed for a user, both ways, or lets it go on. Nothing ends:
    /// connections and streams stay, TCP waits, UDP datagrams are dropped meanwhile. A stream that
    /// is moving when this is called may finish the chunk in hand; after the end of the hold it goes
    /// on within 20 ms. Returns `false` when the user has never been connected.
    ///
    /// For the time in which somebody decides whether the user may go on. It may be called from
    /// [`crate::meter::ByteCells`]. It holds for the user's later connections too.
    pub fn hold(&self, user: &UserId, held: bool) -> bool {
        self.shared.registry.hold(user, held)
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
