//! Describes a server before it runs.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
};

use quinn::{AsyncUdpSocket, Endpoint, TokioRuntime};
use tokio::{sync::watch, task::JoinSet};

use super::{Server, ServerConfig, ServerHandle, Shared, accept, users::Registry};
use crate::{
    BoxFuture,
    authenticator::{AuthContext, AuthDecision, Authenticator},
    error::BindError,
    event::{EventSink, NoEvents},
    masquerade::{Masquerade, OrdinarySite},
    outbound::{Direct, Outbound},
    quic::{self, ResetKey, ServerBase, ServerCrypto},
    relay::udp::NodeSessions,
    socket::{self, SocketStats},
    tls::{ALPN_H3, CertificateError, ServerTls},
};

/// Describes a [`Server`]. Every part has a default but the certificate, the address and the
/// authenticator (without one nobody is let in).
pub struct ServerBuilder {
    tls: ServerTls,
    config: ServerConfig,
    listeners: Vec<Listener>,
    authenticator: Arc<dyn Authenticator>,
    outbound: Arc<dyn Outbound>,
    masquerade: Arc<dyn Masquerade>,
    events: Arc<dyn EventSink>,
    reset_key: Option<ResetKey>,
}

enum Listener {
    Address(SocketAddr),
    Socket(std::net::UdpSocket),
    Abstract(Arc<dyn AsyncUdpSocket>),
}

impl fmt::Debug for ServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerBuilder")
            .field("tls", &self.tls)
            .field("config", &self.config)
            .field("listeners", &self.listeners.len())
            .finish_non_exhaustive()
    }
}

impl ServerBuilder {
    pub(super) fn new(tls: ServerTls) -> Self {
        Self {
            tls,
            config: ServerConfig::default(),
            listeners: Vec::new(),
            authenticator: Arc::new(Nobody),
            outbound: Arc::new(Direct::default()),
            masquerade: Arc::new(OrdinarySite::default()),
            events: Arc::new(NoEvents),
            reset_key: None,
        }
    }

    /// Listens on `address` (UDP); may be called more than once. Port 0 picks a free one.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listeners.push(Listener::Address(address));
        self
    }

    /// Listens on a socket that the caller bound.
    pub fn socket(mut self, socket: std::net::UdpSocket) -> Self {
        self.listeners.push(Listener::Socket(socket));
        self
    }

    /// Listens on anything that carries datagrams. Obfuscation and socket options do not apply.
    pub fn abstract_socket(mut self, socket: Arc<dyn AsyncUdpSocket>) -> Self {
        self.listeners.push(Listener::Abstract(socket));
        self
    }

    /// Asks `authenticator` who may pass.
    pub fn authenticator(mut self, authenticator: impl Authenticator) -> Self {
        self.authenticator = Arc::new(authenticator);
        self
    }

    /// Reaches targets through `outbound`. Default: [`Direct`], public addresses only.
    pub fn outbound(mut self, outbound: impl Outbound) -> Self {
        self.outbound = Arc::new(outbound);
        self
    }

    /// Shows `site` to everyone who is not let in. Default: a small ordinary site.
    pub fn masquerade(mut self, site: impl Masquerade + 'static) -> Self {
        self.masquerade = Arc::new(site);
        self
    }

    /// Reports events to `sink`.
    pub fn events(mut self, sink: impl EventSink) -> Self {
        self.events = Arc::new(sink);
        self
    }

    /// Replaces the settings.
    pub fn config(mut self, config: ServerConfig) -> Self {
        self.config = config;
        self
    }

    /// Uses a key that outlives the process, so that clients notice a restart at once.
    pub fn reset_key(mut self, key: ResetKey) -> Self {
        self.reset_key = Some(key);
        self
    }

    /// Binds and starts. Must be called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`BindError`] when a setting is out of range, the certificate is unusable or an address
    /// cannot be bound.
    pub fn bind(self) -> Result<Server, BindError> {
        tokio::runtime::Handle::try_current().map_err(|_| BindError::NoRuntime)?;
        self.config.validate()?;
        if self.listeners.is_empty() {
            return Err(BindError::NoListener);
        }
        let tls = self.tls.rustls(&[ALPN_H3])?;
        let crypto = ServerCrypto::new(tls).ok_or_else(|| {
            CertificateError::Mismatch(rustls::Error::General("no QUIC cipher suite".into()))
        })?;
        let base = ServerBase::new(crypto);
        let runtime = Arc::new(TokioRuntime);
        let key = self.reset_key.unwrap_or_else(ResetKey::random);
        let mut endpoints = Vec::with_capacity(self.listeners.len());
        let mut sockets = Vec::new();
        for listener in self.listeners {
            let address = match &listener {
                Listener::Address(address) => *address,
                Listener::Socket(socket) => socket
                    .local_addr()
                    .unwrap_or_else(|_| ([0, 0, 0, 0], 0).into()),
                Listener::Abstract(socket) => socket
                    .local_addr()
                    .unwrap_or_else(|_| ([0, 0, 0, 0], 0).into()),
            };
            let endpoint = open(listener, &self.config).and_then(|(socket, stats)| {
                sockets.extend(stats);
                Endpoint::new_with_abstract_socket(
                    quic::endpoint_config(Some(&key)),
                    Some(base.listening()),
                    socket,
                    runtime.clone(),
                )
            });
            endpoints.push(endpoint.map_err(|source| BindError::Listen { address, source })?);
        }
        let udp_sessions = NodeSessions::new(self.config.limits.udp_sessions);
        let shared = Arc::new(Shared {
            udp_sessions,
            config: self.config,
            authenticator: self.authenticator,
            outbound: self.outbound,
            masquerade: self.masquerade,
            events: self.events,
            registry: Registry::default(),
            runtime,
            draining: watch::Sender::new(false),
            next_connection: AtomicU64::new(1),
            counts: accept::Counts::default(),
        });
        let mut accepting = JoinSet::new();
        for endpoint in &endpoints {
            accepting.spawn(accept::run(
                Arc::clone(&shared),
                endpoint.clone(),
                base.clone(),
            ));
        }
        let mut supervisor = JoinSet::new();
        supervisor.spawn(accept::supervise(Arc::clone(&shared)));
        Ok(Server {
            endpoints,
            sockets,
            handle: ServerHandle { shared },
            accepting,
            _supervisor: supervisor,
        })
    }
}

/// A socket, and its figures when it is one of ours.
type Opened = (Arc<dyn AsyncUdpSocket>, Option<Arc<SocketStats>>);

fn open(listener: Listener, config: &ServerConfig) -> io::Result<Opened> {
    let socket = match listener {
        Listener::Address(address) => socket::bind(address, &config.socket)?,
        Listener::Socket(socket) => socket,
        Listener::Abstract(socket) => return Ok((socket, None)),
    };
    let socket = socket::server_socket(socket, &config.obfuscation, &config.socket)?;
    Ok((socket.socket(), Some(Arc::clone(socket.stats()))))
}

/// Lets nobody in.
struct Nobody;

impl Authenticator for Nobody {
    fn authenticate<'a>(&'a self, _request: AuthContext<'a>) -> BoxFuture<'a, AuthDecision> {
        Box::pin(std::future::ready(AuthDecision::Deny))
    }
}
