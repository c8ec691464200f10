//! The master's side towards people and programs: REST and AdminService on one port, subscriptions on
//! another, the sealer and the webhooks behind them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use axum::{Router, middleware};
use futures_util::future::BoxFuture;
use http::{HeaderValue, header};
use hy2_proto::control::rpc;
use ipnet::IpNet;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::Master;
use crate::api::{self, ApiState, Keyed};
use crate::auth::external::Authenticator;
use crate::auth::jwt::TokenSigner;
use crate::auth::password::{Cost, DEFAULT_COST, PasswordError, Passwords};
use crate::cache::Cache;
use crate::domain::{Clock, NodeId, Timestamp, UserId};
use crate::events::{self, EventHub, EventSink, Sealer};
use crate::ratelimit::RateLimiter;
use crate::secrets::Vault;
use crate::serve::{self, Limits};
use crate::service::admins::Credentials;
use crate::service::fleet::{NodeLogError, NodeLogLine, NodeSession, Reach};
use crate::service::system::{KEYS_READ_EVERY, keep_token_keys, load_api_keys};
use crate::service::{Fleet, Parts, Service, ServiceError};
use crate::store::{Store, Topic};
use crate::subscription;
use crate::targets::TargetPolicy;
use crate::tls::ListenerTls;
use crate::webhook::Deliverer;

/// How long a node may take to carry out a command.
const NODE_PATIENCE: Duration = Duration::from_secs(10);

/// Live connections that are listed at once.
const MAX_SESSIONS: usize = 10_000;

/// Settings of a [`Front`].
#[derive(Clone)]
#[non_exhaustive]
pub struct FrontConfig {
    /// Where REST and AdminService listen; none: not at all. Without TLS, here or in front of it,
    /// loopback.
    pub api: Option<SocketAddr>,
    /// TLS of `api`; none: whoever reaches it speaks in clear.
    pub api_tls: Option<ListenerTls>,
    /// Where subscriptions are served; none: not at all.
    pub public: Option<SocketAddr>,
    /// TLS of `public`; none: it has to be in front of it.
    pub public_tls: Option<ListenerTls>,
    /// Where clients reach what `public` serves here or elsewhere; none: addresses of subscriptions are paths, `/sub/TOKEN`.
    pub public_url: Option<Url>,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// What an administrator's password costs.
    pub password_cost: Cost,
    /// Counts attempts.
    pub limiter: RateLimiter,
    /// Keeps rendered subscriptions.
    pub cache: Cache,
    /// Where webhooks may be sent to.
    pub targets: TargetPolicy,
    /// Recognises administrators by other means than the master's own; none: nobody else does.
    pub authenticator: Option<Arc<dyn Authenticator>>,
    /// Told of every event; none: nobody is.
    pub event_sink: Option<Arc<dyn EventSink>>,
    /// What `/metrics` shows.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Whether a store without administrators gets a first owner ([`Front::first_admin`]). Not for a start that nobody
    /// reads the password of.
    pub make_first_admin: bool,
}

impl std::fmt::Debug for FrontConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrontConfig")
            .field("api", &self.api)
            .field("public", &self.public)
            .field("public_url", &self.public_url.as_ref().map(Url::as_str))
            .finish_non_exhaustive()
    }
}

impl FrontConfig {
    /// REST on 127.0.0.1:8081, subscriptions on every address at 8080, reached under `public_url`.
    #[must_use]
    pub fn new(public_url: Url) -> Self {
        Self {
            public: Some(SocketAddr::from(([0, 0, 0, 0], 8080))),
            public_url: Some(public_url),
            ..Self::without_public()
        }
    }

    /// REST on 127.0.0.1:8081 and no subscriptions.
    #[must_use]
    pub fn without_public() -> Self {
        Self {
            api: Some(SocketAddr::from(([127, 0, 0, 1], 8081))),
            api_tls: None,
            public: None,
            public_tls: None,
            public_url: None,
            trusted_proxies: Vec::new(),
            password_cost: DEFAULT_COST,
            limiter: RateLimiter::local(),
            cache: Cache::memory(),
            targets: TargetPolicy::Public,
            authenticator: None,
            event_sink: None,
            metrics: Arc::new(String::new),
            make_first_admin: true,
        }
    }
}

/// The front cannot start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FrontError {
    /// A port cannot be bound.
    #[error("cannot listen on {address}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Passwords cannot be hashed with this cost.
    #[error(transparent)]
    Passwords(#[from] PasswordError),
    /// The store fails, or a key does not open.
    #[error("cannot load what the API needs")]
    Service(#[from] ServiceError),
}

/// A running front. Dropping it stops it.
#[derive(Debug)]
pub struct Front {
    service: Service,
    api: Option<SocketAddr>,
    public: Option<SocketAddr>,
    first_admin: Option<Credentials>,
    stop: CancellationToken,
    tasks: Mutex<JoinSet<()>>,
    keyed: Keyed,
}

impl Front {
    /// Starts beside a running master.
    ///
    /// # Errors
    ///
    /// A port cannot be bound, or the store fails.
    pub async fn start(master: &Master, config: FrontConfig) -> Result<Self, FrontError> {
        let (store, clock) = (master.store().clone(), Arc::clone(master.clock()));
        let keys = load_api_keys(&store, master.vault(), &*clock).await?;
        let tokens = keys.tokens.clone();
        let service = Service::new(Parts {
            store: store.clone(),
            clock: Arc::clone(&clock),
            vault: master.vault().clone(),
            fleet_keys: master.fleet_keys().clone(),
            session_keys: keys.sessions,
            fleet: Arc::new(MasterFleet(master.clone())),
            limiter: config.limiter,
            cache: config.cache,
            passwords: Passwords::new(config.password_cost)?,
            tokens: keys.tokens,
            public_url: config.public_url,
            targets: config.targets,
            authenticator: config.authenticator,
            keep_hourly: master.config().keep_hourly,
            keep_daily: master.config().keep_daily,
        });
        // Before anything is made: a start that fails later would keep the first password to itself.
        let api_listener = bind(config.api).await?;
        let public_listener = bind(config.public).await?;
        let first_admin = match config.make_first_admin {
            true => service.bootstrap_admins().await?,
            false => None,
        };
        let hub = EventHub::default();
        let stop = master.shutdown_token().child_token();
        let mut tasks = JoinSet::new();
        let keeping = KeepTokenKeys {
            store: store.clone(),
            vault: master.vault().clone(),
            clock: Arc::clone(&clock),
            tokens,
        };
        tasks.spawn(keeping.run(stop.clone()));
        if let Some(sink) = config.event_sink {
            // Known before anybody can cause an event.
            let newest = events::newest(&store).await.map_err(ServiceError::from)?;
            // A number that was not given yet comes from before a restore: what comes next is new.
            let after = sink.last().await.map_or(newest, |last| last.min(newest));
            let fed = (store.clone(), hub.clone(), stop.clone());
            tasks.spawn(events::feed(fed, sink, after));
        }
        let sealer = Sealer::new(store, clock, hub.clone(), keys.audit);
        tasks.spawn(sealer.run(stop.clone()));
        tasks.spawn(Deliverer::new(service.clone(), hub.clone()).run(stop.clone()));

        let metrics = config.metrics;
        let proxies = config.trusted_proxies;
        let state = ApiState::new(service.clone(), hub, proxies.clone(), move || metrics())
            .until(stop.clone());
        let keyed = state.keyed().clone();
        let api = api_listener.map(|listener| {
            let router = api::router(state.clone()).merge(api::grpc::router(state));
            serve(&mut tasks, listener, config.api_tls, router, &stop)
        });
        let public = public_listener.map(|listener| {
            let router = subscription::router(service.clone(), proxies);
            serve(&mut tasks, listener, config.public_tls, router, &stop)
        });
        Ok(Self {
            service,
            api,
            public,
            first_admin,
            stop,
            tasks: Mutex::new(tasks),
            keyed,
        })
    }

    /// Returns what can be asked of the fleet.
    #[must_use]
    pub const fn service(&self) -> &Service {
        &self.service
    }

    /// Returns where REST listens, as bound.
    #[must_use]
    pub const fn api_address(&self) -> Option<SocketAddr> {
        self.api
    }

    /// Returns where subscriptions are served, as bound.
    #[must_use]
    pub const fn public_address(&self) -> Option<SocketAddr> {
        self.public
    }

    /// Returns the first owner's password, if this start made one. It is nowhere else.
    #[must_use]
    pub const fn first_admin(&self) -> Option<&Credentials> {
        self.first_admin.as_ref()
    }

    /// Stops listening, lets requests finish for a while, and waits for every task.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, everything is still told to stop, but not awaited.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        let mut tasks = self.tasks.lock().await;
        let all = async {
            while tasks.join_next().await.is_some() {}
            self.keyed.wait().await;
        };
        if tokio::time::timeout(NODE_PATIENCE, all).await.is_err() {
            tasks.shutdown().await;
        }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Reads the keys that sign access tokens again, called and by time, and makes new ones in time.
struct KeepTokenKeys {
    store: Store,
    vault: Vault,
    clock: Arc<dyn Clock>,
    tokens: TokenSigner,
}

impl KeepTokenKeys {
    async fn run(self, stop: CancellationToken) {
        let mut calls = self.store.bus().listen();
        let mut read_at = self.clock.now();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                // Cancel safe: a call that is lost is made up for by the time.
                call = calls.recv() => match call {
                    Ok(Topic::Settings) | Err(RecvError::Lagged(_)) => {}
                    Ok(_) => continue,
                    // The store outlives this task.
                    Err(RecvError::Closed) => return,
                },
                // By the master's clock, which need not be that of the system.
                () = tokio::time::sleep(Duration::from_secs(1)) => {
                    if self.clock.now().since(read_at) < KEYS_READ_EVERY {
                        continue;
                    }
                }
            }
            let now = self.clock.now();
            let kept = keep_token_keys(&self.store, &self.vault, &self.tokens, now);
            let kept = self.store.in_time(1, kept).await;
            match kept.map_err(ServiceError::from).flatten() {
                Ok(()) => read_at = now,
                Err(error) => tracing::warn!(%error, "the keys of tokens are not read"),
            }
        }
    }
}

/// Binds a port, if there is to be one; returns where as well.
async fn bind(
    address: Option<SocketAddr>,
) -> Result<Option<(TcpListener, SocketAddr)>, FrontError> {
    let Some(address) = address else {
        return Ok(None);
    };
    let bind = |source| FrontError::Bind { address, source };
    let listener = TcpListener::bind(address).await.map_err(bind)?;
    let bound = listener.local_addr().map_err(bind)?;
    Ok(Some((listener, bound)))
}

/// Serves a router until `stop`; then requests may finish for a short while.
fn serve(
    tasks: &mut JoinSet<()>,
    (listener, bound): (TcpListener, SocketAddr),
    tls: Option<ListenerTls>,
    router: Router,
    stop: &CancellationToken,
) -> SocketAddr {
    let encrypted = tls.is_some();
    let router = router.layer(middleware::map_response(move |mut response: Response| {
        if encrypted {
            let headers = response.headers_mut();
            headers.insert(header::STRICT_TRANSPORT_SECURITY, HSTS);
        }
        std::future::ready(response)
    }));
    tasks.spawn(serve::serve(
        listener,
        tls,
        router,
        stop.clone(),
        Limits::default(),
    ));
    bound
}

/// Browsers come back over TLS only, for a year.
const HSTS: HeaderValue = HeaderValue::from_static("max-age=31536000");

/// Reaches the nodes that are connected to this master.
#[derive(Debug)]
struct MasterFleet(Master);

impl MasterFleet {
    /// Asks every node at once; one that fails or takes too long counts as unreachable.
    async fn ask<'a, F>(&'a self, nodes: &[NodeId], ask: F) -> Reach
    where
        F: Fn(crate::rpc::reverse::NodeClient) -> BoxFuture<'a, Result<u64, tonic::Status>>,
    {
        let asked = nodes.iter().map(|node| {
            let ask = &ask;
            async move {
                let answer = tokio::time::timeout(NODE_PATIENCE, async {
                    let client = self.0.node_client(*node).await.ok()?;
                    ask(client).await.ok()
                });
                (*node, answer.await.ok().flatten())
            }
        });
        let mut reach = Reach::default();
        for (node, answer) in futures_util::future::join_all(asked).await {
            match answer {
                Some(connections) => {
                    reach.reached.push(node);
                    reach.connections += connections;
                }
                None => reach.unreachable.push(node),
            }
        }
        reach
    }
}

impl Fleet for MasterFleet {
    fn kick_user<'a>(&'a self, nodes: &'a [NodeId], user: UserId) -> BoxFuture<'a, Reach> {
        Box::pin(self.ask(nodes, move |mut client| {
            Box::pin(async move {
                let request = rpc::KickSessionsRequest {
                    user_ids: vec![user.to_wire()],
                    ..Default::default()
                };
                let answer = client.kick_sessions(request).await?;
                Ok(u64::from(answer.into_inner().closed))
            })
        }))
    }

    fn set_user_rate<'a>(
        &'a self,
        nodes: &'a [NodeId],
        user: UserId,
        up_bytes_per_s: u64,
        down_bytes_per_s: u64,
        for_s: u32,
    ) -> BoxFuture<'a, Reach> {
        Box::pin(self.ask(nodes, move |mut client| {
            Box::pin(async move {
                let lasting = (for_s > 0).then(|| prost_types::Duration {
                    seconds: i64::from(for_s),
                    nanos: 0,
                });
                let request = rpc::SetUserRateRequest {
                    user_id: user.to_wire(),
                    up_bytes_per_s,
                    down_bytes_per_s,
                    r#for: lasting,
                };
                let answer = client.set_user_rate(request).await?;
                Ok(u64::from(answer.into_inner().connections))
            })
        }))
    }

    fn sessions<'a>(
        &'a self,
        nodes: &'a [NodeId],
        user: Option<UserId>,
    ) -> BoxFuture<'a, (Vec<NodeSession>, Reach)> {
        let live: std::collections::HashSet<NodeId> = self
            .0
            .live_nodes()
            .into_iter()
            .map(|node| node.node)
            .collect();
        let mut reach = Reach::default();
        let mut sessions = Vec::new();
        for node in nodes {
            if !live.contains(node) {
                reach.unreachable.push(*node);
                continue;
            }
            reach.reached.push(*node);
            let listed = self.0.live_sessions(Some(*node), user, MAX_SESSIONS);
            sessions.extend(
                listed
                    .into_iter()
                    .map(|(node, session)| NodeSession { node, session }),
            );
        }
        reach.connections = u64::try_from(sessions.len()).unwrap_or(u64::MAX);
        Box::pin(std::future::ready((sessions, reach)))
    }

    fn logs<'a>(
        &'a self,
        node: NodeId,
        lines: u32,
        level: &'a str,
    ) -> BoxFuture<'a, Result<Vec<NodeLogLine>, NodeLogError>> {
        Box::pin(async move {
            let request = rpc::TailLogsRequest {
                lines,
                follow: false,
                level: level.to_owned(),
            };
            let read = async {
                let client = self.0.node_client(node).await;
                let mut client = client.map_err(|_| NodeLogError::Unreachable)?;
                let answer = client.tail_logs(request).await.map_err(no_log)?;
                let mut answer = answer.into_inner();
                let mut read = Vec::new();
                // A node that sends more than was asked for is not listened to any longer.
                while read.len() < usize::try_from(lines).unwrap_or(usize::MAX) {
                    let Some(line) = answer.message().await.map_err(no_log)? else {
                        break;
                    };
                    read.push(NodeLogLine {
                        at: line.at.as_ref().map_or(Timestamp(0), Timestamp::from_proto),
                        level: line.level,
                        target: line.target,
                        message: line.message,
                    });
                }
                Ok(read)
            };
            tokio::time::timeout(NODE_PATIENCE, read)
                .await
                .unwrap_or(Err(NodeLogError::Unreachable))
        })
    }
}

/// An agent without a ring of lines says that it does not do that.
fn no_log(status: tonic::Status) -> NodeLogError {
    match status.code() {
        tonic::Code::Unimplemented => NodeLogError::NoLog,
        _ => NodeLogError::Unreachable,
    }
}
