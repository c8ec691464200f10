//! The engine on hy2-core.

use std::{collections::BTreeMap, fmt, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use hy2_core::{
    Server, ServerHandle,
    authenticator::{Authenticator, UserId, UserLimits},
    congestion::Algorithm,
    error::BindError,
    event::{ConnectionId, EventSink},
    http::{Request, Response},
    masquerade::{Body, Masquerade},
    outbound::Outbound,
    quic::ResetKey,
    server::ServerConfig,
    socket::Obfuscation,
    tls::ServerTls,
};
use hy2_proto::control::rpc::{ApplyEffect, ErrorCode, FieldError};
use tokio::{sync::Mutex, time::Instant};

use super::{
    Engine, EngineSession,
    parts::{OutboundSwitch, SiteSwitch, chain_of, direct, load},
};
use crate::{BoxFuture, clock::Clock, ledger::field_error, settings::NodeSettings};

/// Runs [`hy2_core::Server`].
pub struct CoreEngine {
    authenticator: Arc<dyn Authenticator>,
    events: Arc<dyn EventSink>,
    clock: Arc<dyn Clock>,
    reset_key: Option<ResetKey>,
    /// The embedder's way to targets; without one, the settings decide.
    outbound: Option<Arc<dyn Outbound>>,
    /// Settings that no configuration names.
    base: ServerConfig,
    running: Mutex<Option<Running>>,
    handle: ArcSwapOption<ServerHandle>,
}

struct Running {
    server: Server,
    tls: ServerTls,
    site: Arc<SiteSwitch>,
    outbound: Arc<OutboundSwitch>,
    settings: NodeSettings,
    /// As asked for, as bound.
    listeners: BTreeMap<SocketAddr, SocketAddr>,
}

impl fmt::Debug for CoreEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoreEngine")
            .field("listening", &self.listening())
            .finish_non_exhaustive()
    }
}

impl CoreEngine {
    /// Makes an engine that asks `authenticator` and reports to `events`.
    pub fn new(
        authenticator: Arc<dyn Authenticator>,
        events: Arc<dyn EventSink>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            authenticator,
            events,
            clock,
            reset_key: None,
            outbound: None,
            base: ServerConfig::default(),
            running: Mutex::default(),
            handle: ArcSwapOption::empty(),
        }
    }

    /// Uses a key that outlives the process, so that clients notice a restart at once.
    pub fn reset_key(mut self, key: ResetKey) -> Self {
        self.reset_key = Some(key);
        self
    }

    /// Reaches targets through `outbound`, whatever the settings say about private addresses.
    pub fn outbound(mut self, outbound: Arc<dyn Outbound>) -> Self {
        self.outbound = Some(outbound);
        self
    }

    /// Takes limits, socket options and memory budget from `base`.
    pub fn base(mut self, base: ServerConfig) -> Self {
        self.base = base;
        self
    }

    fn outbound_of(&self, settings: &NodeSettings) -> Box<dyn Outbound> {
        match &self.outbound {
            Some(own) => Box::new(Arc::clone(own)),
            None => direct(settings.allow_private_targets),
        }
    }

    /// The second obfuscation with its end on tokio's clock; `None` when it is over.
    fn previous(&self, settings: &NodeSettings) -> Option<(Obfuscation, Instant)> {
        let (obfuscation, until) = settings.previous_obfuscation.clone()?;
        let left = until.duration_since(self.clock.now()).ok()?;
        Some((obfuscation, Instant::now() + left.min(PREVIOUS_MAX)))
    }

    async fn start(&self, settings: &NodeSettings) -> Result<Running, Vec<FieldError>> {
        let (tls, site) = blocking(settings).await?;
        let site = Arc::new(SiteSwitch::new(site));
        let outbound = Arc::new(OutboundSwitch::new(self.outbound_of(settings)));
        let mut config = self.base.clone();
        settings.fill(&mut config);
        let mut builder = Server::builder(tls.clone())
            .config(config)
            .authenticator(Arc::clone(&self.authenticator))
            .events(Arc::clone(&self.events))
            .outbound(Arc::clone(&outbound))
            .masquerade(SharedSite(Arc::clone(&site)));
        if let Some(key) = &self.reset_key {
            builder = builder.reset_key(key.clone());
        }
        for address in &settings.listen {
            builder = builder.listen(*address);
        }
        let server = builder
            .bind()
            .map_err(|error| vec![bind_error(settings, &error)])?;
        let bound = server.local_addrs();
        let listeners = settings.listen.iter().copied().zip(bound).collect();
        if let Some(previous) = self.previous(settings) {
            let handle = server.handle();
            handle.set_obfuscation(settings.obfuscation.clone(), Some(previous));
        }
        Ok(Running {
            server,
            tls,
            site,
            outbound,
            settings: settings.clone(),
            listeners,
        })
    }

    async fn change(
        &self,
        running: &mut Running,
        settings: &NodeSettings,
    ) -> Result<(), Vec<FieldError>> {
        let (tls, site) = blocking(settings).await?;
        let handle = running.server.handle();
        let before = handle.config();
        let mut config = before.clone();
        settings.fill(&mut config);
        handle
            .set_config(config)
            .map_err(|error| vec![bind_error(settings, &error)])?;
        let mut listeners = running.listeners.clone();
        listeners.retain(|asked, _| settings.listen.contains(asked));
        let mut opened = Vec::new();
        for address in &settings.listen {
            if listeners.contains_key(address) {
                continue;
            }
            match handle.listen(*address) {
                Ok(bound) => {
                    opened.push(bound);
                    listeners.insert(*address, bound);
                }
                Err(error) => {
                    for bound in opened {
                        handle.unlisten(bound, Duration::ZERO);
                    }
                    // It was in force before, so it is in range.
                    let _ = handle.set_config(before);
                    let mut error = bind_error(settings, &error);
                    let port = address.port();
                    if let Some(own) = running.listeners.values().find(|own| own.port() == port) {
                        let text = format!(
                            "; the node itself listens on {own}: take that out first, and put this \
                             in when the drain grace is over"
                        );
                        error.message.push_str(&text);
                    }
                    return Err(vec![error]);
                }
            }
        }
        // Nothing from here on can fail.
        running.tls.adopt(&tls);
        running.site.set(site);
        running.outbound.set(self.outbound_of(settings));
        let old = &running.settings;
        if old.obfuscation != settings.obfuscation
            || old.previous_obfuscation != settings.previous_obfuscation
        {
            handle.set_obfuscation(settings.obfuscation.clone(), self.previous(settings));
        }
        for (asked, bound) in &running.listeners {
            if !listeners.contains_key(asked) {
                handle.unlisten(*bound, settings.drain_grace);
            }
        }
        running.listeners = listeners;
        running.settings = settings.clone();
        Ok(())
    }
}

/// A second obfuscation whose end lies beyond this has none, as far as anybody can tell: a timer
/// does not reach every moment that a message names.
const PREVIOUS_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);

/// What lies between two settings.
fn effect(old: Option<&NodeSettings>, new: &NodeSettings) -> ApplyEffect {
    match old {
        Some(old) if old.message == new.message => ApplyEffect::Nothing,
        Some(old) if old.listen == new.listen => ApplyEffect::Hot,
        _ => ApplyEffect::Listeners,
    }
}

async fn blocking(
    settings: &NodeSettings,
) -> Result<(ServerTls, Box<dyn Masquerade>), Vec<FieldError>> {
    let settings = settings.clone();
    let loaded = tokio::task::spawn_blocking(move || load(&settings)).await;
    loaded.unwrap_or_else(|error| {
        Err(vec![field_error(
            ErrorCode::Storage,
            "",
            &error.to_string(),
        )])
    })
}

fn bind_error(settings: &NodeSettings, error: &BindError) -> FieldError {
    let text = chain_of(error);
    match error {
        BindError::Listen { address, .. } => {
            let at = settings.listen.iter().position(|asked| asked == address);
            let path = at.map_or_else(|| "listen".to_owned(), |at| format!("listen[{at}]"));
            field_error(ErrorCode::CannotBind, &path, &text)
        }
        BindError::Certificate(_) => field_error(ErrorCode::Certificate, "tls", &text),
        _ => field_error(ErrorCode::InvalidField, "", &text),
    }
}

impl Engine for CoreEngine {
    fn check<'a>(
        &'a self,
        settings: &'a NodeSettings,
    ) -> BoxFuture<'a, Result<ApplyEffect, Vec<FieldError>>> {
        Box::pin(async move {
            blocking(settings).await?;
            let running = self.running.lock().await;
            Ok(effect(
                running.as_ref().map(|running| &running.settings),
                settings,
            ))
        })
    }

    fn apply<'a>(
        &'a self,
        settings: &'a NodeSettings,
    ) -> BoxFuture<'a, Result<ApplyEffect, Vec<FieldError>>> {
        Box::pin(async move {
            let mut running = self.running.lock().await;
            let effect = effect(running.as_ref().map(|running| &running.settings), settings);
            match &mut *running {
                None => {
                    let started = self.start(settings).await?;
                    self.handle.store(Some(Arc::new(started.server.handle())));
                    *running = Some(started);
                }
                // Also without a change: files may have another content.
                Some(running) => self.change(running, settings).await?,
            }
            Ok(effect)
        })
    }

    fn listening(&self) -> Vec<SocketAddr> {
        let handle = self.handle.load();
        handle
            .as_ref()
            .map(|handle| handle.local_addrs())
            .unwrap_or_default()
    }

    fn kick_user(&self, user: u64) -> usize {
        let handle = self.handle.load();
        handle.as_ref().map_or(0, |handle| handle.kick(&name(user)))
    }

    fn hold_user(&self, user: u64, held: bool) -> bool {
        let handle = self.handle.load();
        handle
            .as_ref()
            .is_some_and(|handle| handle.hold(&name(user), held))
    }

    fn kick_connection(&self, connection: u64) -> bool {
        let handle = self.handle.load();
        handle
            .as_ref()
            .is_some_and(|handle| handle.kick_connection(ConnectionId::from(connection)))
    }

    fn set_limits(&self, user: u64, limits: UserLimits) {
        if let Some(handle) = &*self.handle.load() {
            handle.set_limits(&name(user), limits);
        }
    }

    fn sessions(&self) -> Vec<EngineSession> {
        let handle = self.handle.load();
        let Some(handle) = handle.as_ref() else {
            return Vec::new();
        };
        let connections = handle.connections().into_iter();
        connections
            .filter_map(|status| {
                let user = status.peer.user.as_str().parse().ok()?;
                let connection = status.peer.connection.as_u64();
                let mut session = EngineSession::new(connection, user, status.remote);
                session.tx = status.traffic.tx;
                session.rx = status.traffic.rx;
                session.tcp_streams = status.traffic.streams;
                session.udp_sessions = status.traffic.udp_sessions;
                session.rtt = status.rtt;
                session.lost_packets = status.lost_packets;
                session.sent_packets = status.sent_packets;
                if let Algorithm::Brutal { rate, .. } = status.congestion.algorithm {
                    session.send_rate = rate;
                }
                session.ack_rate_permille = permille(status.congestion.ack_rate);
                session.mtu = status.mtu;
                session.max_datagram = status.max_datagram.unwrap_or(0);
                Some(session)
            })
            .collect()
    }

    fn handshakes_failed(&self) -> u64 {
        let handle = self.handle.load();
        handle
            .as_ref()
            .map_or(0, |handle| handle.handshakes_failed())
    }

    fn stop(&self, grace: Duration) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let running = self.running.lock().await.take();
            if let Some(running) = running {
                running.server.drain(grace).await;
            }
            self.handle.store(None);
        })
    }
}

fn name(user: u64) -> UserId {
    UserId::from(user.to_string())
}

fn permille(share: f64) -> u32 {
    (share.clamp(0.0, 1.0) * 1000.0) as u32
}

/// The shared switch as a site.
#[derive(Debug)]
struct SharedSite(Arc<SiteSwitch>);

impl Masquerade for SharedSite {
    fn serve(&self, request: Request<Body>) -> BoxFuture<'_, Response<Body>> {
        self.0.serve(request)
    }
}
