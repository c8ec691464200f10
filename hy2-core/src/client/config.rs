//! What a client needs to know to connect.

use std::{fmt, sync::Arc, time::Duration};

use hy2_proto::{bandwidth::Bandwidth, ports::PortUnion};

use crate::{
    congestion::BbrProfile,
    error::ConnectError,
    memory::MemoryBudget,
    quic::QuicConfig,
    socket::{HopInterval, Obfuscation, SocketFactory, SocketOptions},
    tls::ClientTls,
};

/// Where the server is: a host, and one port or several to hop between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAddress {
    /// Host name or IP address (IPv6 without brackets).
    pub host: String,
    /// The ports; more than one switches port hopping on.
    pub ports: PortUnion,
}

impl ServerAddress {
    /// A server on one port.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self {
            host: host.into(),
            ports: PortUnion::from(port),
        }
    }
}

/// Congestion control where no bandwidth was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FallbackCongestion {
    /// BBR with a profile of the reference.
    Bbr(BbrProfile),
    /// Reno.
    Reno,
}

impl Default for FallbackCongestion {
    fn default() -> Self {
        Self::Bbr(BbrProfile::Standard)
    }
}

/// Settings of a client; keys and defaults are the reference's.
#[derive(Clone)]
#[non_exhaustive]
pub struct ClientConfig {
    /// Where the server is.
    pub server: ServerAddress,
    /// The credential.
    pub auth: String,
    /// TLS settings.
    pub tls: ClientTls,
    /// QUIC settings.
    pub quic: QuicConfig,
    /// What we can send (`bandwidth.up`). `None`: congestion control finds out.
    pub up: Option<Bandwidth>,
    /// What we can receive (`bandwidth.down`), told to the server. `None`: it finds out.
    pub down: Option<Bandwidth>,
    /// Whether Brutal sends more to make up for measured loss. Default true.
    pub loss_compensation: bool,
    /// Whether Brutal keeps to what the path carries when `up` is more
    /// (`docs/adr/0005-overclaim-guard.md`). Default false, as the reference.
    pub overclaim_guard: bool,
    /// Congestion control where Brutal is not agreed on.
    pub congestion: FallbackCongestion,
    /// Obfuscation of every datagram; both ends must agree.
    pub obfuscation: Obfuscation,
    /// How often to change the port when the server has several.
    pub hop: HopInterval,
    /// Returns a TCP stream before the server said that the target is reached.
    pub fast_open: bool,
    /// Buffers, offloads, device and mark of the UDP sockets.
    pub socket: SocketOptions,
    /// Makes the UDP sockets in our place, to protect them from the routes of a VPN for instance;
    /// device and mark of `socket` are then its affair. `None`: ordinary ones.
    pub socket_factory: Option<Arc<dyn SocketFactory>>,
    /// Carries the datagrams in place of a UDP socket; obfuscation and hopping do not apply.
    pub abstract_socket: Option<Arc<dyn quinn::AsyncUdpSocket>>,
    /// The memory that buffers may take.
    pub memory: Arc<MemoryBudget>,
    /// Give up on a connection attempt after this time. Default 10 s.
    pub connect_timeout: Duration,
}

impl ClientConfig {
    /// Connects to `server` with credential `auth` and the defaults for everything else.
    pub fn new(server: ServerAddress, auth: impl Into<String>) -> Self {
        Self {
            server,
            auth: auth.into(),
            tls: ClientTls::default(),
            quic: QuicConfig::default(),
            up: None,
            down: None,
            loss_compensation: true,
            overclaim_guard: false,
            congestion: FallbackCongestion::default(),
            obfuscation: Obfuscation::default(),
            hop: HopInterval::default(),
            fast_open: false,
            socket: SocketOptions::default(),
            socket_factory: None,
            abstract_socket: None,
            memory: MemoryBudget::of_machine(),
            connect_timeout: Duration::from_secs(10),
        }
    }
}

impl ClientConfig {
    /// Refuses settings that no connection works with; the ranges are the reference's.
    pub(super) fn validate(&self) -> Result<(), ConnectError> {
        let refuse = |text: &str| Err(ConnectError::Config(text.to_owned()));
        let quic = &self.quic;
        if quic.stream_receive_window < 16_384 || quic.receive_window < 16_384 {
            return refuse("receive windows must be at least 16384 bytes");
        }
        if !(Duration::from_secs(4)..=Duration::from_secs(120)).contains(&quic.max_idle_timeout) {
            return refuse("max_idle_timeout must be between 4 s and 120 s");
        }
        if !(Duration::from_secs(2)..=Duration::from_secs(60)).contains(&quic.keep_alive) {
            return refuse("keep_alive must be between 2 s and 60 s");
        }
        Ok(())
    }
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConfig")
            .field("server", &self.server)
            .field("auth", &"***")
            .field("tls", &self.tls)
            .field("up", &self.up)
            .field("down", &self.down)
            .field("obfuscation", &self.obfuscation)
            .field("fast_open", &self.fast_open)
            .finish_non_exhaustive()
    }
}
