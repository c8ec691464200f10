//! Describes a server before it runs.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
};

use arc_swap::ArcSwap;
use quinn::{AsyncUdpSocket, TokioRuntime};
use tokio::{sync::watch, task::JoinSet};

use super::{
    Server, ServerConfig, ServerHandle, Shared, accept,
    listeners::{Listen, Listeners},
    users::Registry,
};
use crate::{
    BoxFuture,
    authenticator::{AuthContext, AuthDecision, Authenticator},
    error::BindError,
    event::{EventSink, NoEvents},
    masquerade::{Masquerade, OrdinarySite},
    outbound::{Direct, Outbound},
    quic::{ResetKey, ServerBase, ServerCrypto},
    relay::udp::NodeSessions,
    tls::{ALPN_H3, CertificateError, ServerTls},
};

/// Describes a [`Server`]. Every part has a default but the certificate, the address and the
/// authenticator (without one nobody is let in).
pub struct ServerBuilder {
    tls: ServerTls,
    config: ServerConfig,
    listeners: Vec<Listen>,
    authenticator: Arc<dyn Authenticator>,
    outbound: Arc<dyn Outbound>,
    masquerade: Arc<dyn Masquerade>,
    events: Arc<dyn EventSink>,
    reset_key: Option<ResetKey>,
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
        self.listeners.push(Listen::Address(address));
        self
    }

    /// Listens on a socket that the caller bound.
    pub fn socket(mut self, socket: std::net::UdpSocket) -> Self {
        self.listeners.push(Listen::Socket(socket));
        self
    }

    /// Listens on anything that carries datagrams. Obfuscation and socket options do not apply.
    pub fn abstract_socket(mut self, socket: Arc<dyn AsyncUdpSocket>) -> Self {
        self.listeners.push(Listen::Abstract(socket));
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
    pub fn bind(mut self) -> Result<Server, BindError> {
        tokio::runtime::Handle::try_current().map_err(|_| BindError::NoRuntime)?;
        self.config.validate()?;
        self.config.quic = self.config.quic.within(self.config.memory.limit());
        if self.listeners.is_empty() {
            return Err(BindError::NoListener);
        }
        let tls = self.tls.rustls(&[ALPN_H3])?;
        let crypto = ServerCrypto::new(tls).map_err(CertificateError::Mismatch)?;
        let base = ServerBase::new(crypto);
        let key = self.reset_key.unwrap_or_else(ResetKey::random);
        let udp_sessions = NodeSessions::new(self.config.limits.udp_sessions);
        let shared = Arc::new(Shared {
            udp_sessions,
            listeners: Listeners::new(base, key, &self.config),
            settings: ArcSwap::from_pointee(self.config.clone()),
            config: self.config,
            authenticator: self.authenticator,
            outbound: self.outbound,
            masquerade: self.masquerade,
            events: self.events,
            registry: Registry::default(),
            runtime: Arc::new(TokioRuntime),
            draining: watch::Sender::new(false),
            next_connection: AtomicU64::new(1),
            counts: accept::Counts::default(),
        });
        let mut supervisor = JoinSet::new();
        supervisor.spawn(accept::supervise(Arc::clone(&shared)));
        let server = Server {
            handle: ServerHandle { shared },
            _supervisor: supervisor,
        };
        let shared = &server.handle.shared;
        for listener in self.listeners {
            // Dropping the server closes those before.
            shared.listeners.open(shared, listener)?;
        }
        Ok(server)
    }
}

/// Lets nobody in.
struct Nobody;

impl Authenticator for Nobody {
    fn authenticate<'a>(&'a self, _request: AuthContext<'a>) -> BoxFuture<'a, AuthDecision> {
        Box::pin(std::future::ready(AuthDecision::Deny))
    }
}
