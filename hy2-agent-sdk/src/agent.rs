//! Builds an agent, runs it, ends it.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use hy2_core::{
    authenticator::Authenticator, event::EventSink, outbound::Outbound, quic::ResetKey,
    server::ServerConfig,
};
use hy2_proto::control::rpc::{Alert, NodeInfo};
use parking_lot::Mutex;
use sysinfo::System;
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use crate::{
    CAPABILITIES, VERSION,
    clock::{Clock, MastersClock, SAME, SystemClock},
    config::AgentConfig,
    engine::{CoreEngine, Engine},
    files,
    identity::{Identity, IdentityError},
    leases::{Intervals, Leases},
    ledger::Ledger,
    link::{self, LinkState},
    logs::LogRing,
    manager::{self, LocalSocket},
    reconcile::{self, Reconciler, Status},
    report::{PanicCount, Reporter},
    traffic::{self, Traffic},
    users::{Events, Gate, UserTable},
};

/// Why an agent could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Settings are wrong; every mistake is named.
    #[error("settings: {0}")]
    Config(String),
    /// The folder cannot be used, for example because another agent does.
    #[error("{path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The identity cannot be read or made.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A local listener cannot be bound.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address or path.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Called outside a tokio runtime.
    #[error("must be called inside a tokio runtime")]
    NoRuntime,
}

/// What a custom [`Engine`] is made of.
#[non_exhaustive]
pub struct EngineParts {
    /// Asked for every connection.
    pub authenticator: Arc<dyn Authenticator>,
    /// Told of every connection.
    pub events: Arc<dyn EventSink>,
    /// The agent's clock.
    pub clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for EngineParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineParts").finish_non_exhaustive()
    }
}

type MakeEngine = Box<dyn FnOnce(EngineParts) -> Arc<dyn Engine> + Send>;

/// Describes an [`Agent`].
pub struct AgentBuilder {
    config: AgentConfig,
    clock: Arc<dyn Clock>,
    engine: Option<MakeEngine>,
    outbound: Option<Arc<dyn Outbound>>,
    server: ServerConfig,
    logs: Option<LogRing>,
    panics: PanicCount,
}

impl std::fmt::Debug for AgentBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentBuilder")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl AgentBuilder {
    /// Runs the proxy on an engine of the embedder's. Default: [`CoreEngine`].
    pub fn engine(
        mut self,
        make: impl FnOnce(EngineParts) -> Arc<dyn Engine> + Send + 'static,
    ) -> Self {
        self.engine = Some(Box::new(make));
        self
    }

    /// Reaches targets through `outbound` (default engine only).
    pub fn outbound(mut self, outbound: Arc<dyn Outbound>) -> Self {
        self.outbound = Some(outbound);
        self
    }

    /// Takes limits, memory budget and socket options from `server` (default engine only).
    pub fn server(mut self, server: ServerConfig) -> Self {
        self.server = server;
        self
    }

    /// Tells dates by `clock`. Default: the system's.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Serves the lines in `logs` to whoever may ask; the embedder installs its layer.
    pub fn logs(mut self, logs: LogRing) -> Self {
        self.logs = Some(logs);
        self
    }

    /// Reports `panics` among the node's figures; the embedder counts them. Default: none are.
    pub fn panics(mut self, panics: PanicCount) -> Self {
        self.panics = panics;
        self
    }

    /// Opens the folder and starts. The proxy runs from the ledger at once when there is one.
    ///
    /// # Errors
    ///
    /// [`StartError`]. A master that cannot be reached is none.
    pub async fn spawn(self) -> Result<Agent, StartError> {
        tokio::runtime::Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        let mistakes = self.config.mistakes();
        if !mistakes.is_empty() {
            return Err(StartError::Config(mistakes.join("; ")));
        }
        let folder = self.config.data_dir.clone();
        let fail = |source| StartError::Folder {
            path: folder.clone(),
            source,
        };
        let counters = folder.join("traffic");
        files::private_folder(&folder).map_err(fail)?;
        files::private_folder(&counters).map_err(fail)?;
        let lock = traffic::lock(&folder).map_err(fail)?;
        let identity = Identity::open(&folder)?;
        let masters_clock = Arc::new(MastersClock::new(self.clock));
        let clock: Arc<dyn Clock> = Arc::clone(&masters_clock) as _;
        let traffic = Traffic::open(&counters, self.config.spool_cap, Arc::clone(&clock));
        let traffic = Arc::new(traffic.map_err(fail)?);
        let leases = Arc::new(Leases::open(&folder, Arc::clone(&clock)).map_err(fail)?);
        let users = UserTable::new(
            Arc::clone(&clock),
            Arc::clone(&traffic),
            Arc::clone(&leases),
        );
        let users = Arc::new(users);
        let parts = EngineParts {
            authenticator: Arc::new(Gate(Arc::clone(&users))),
            events: Arc::new(Events(Arc::clone(&users))),
            clock: Arc::clone(&clock),
        };
        let reset_key = ResetKey::new(*identity.key().derive(b"stateless reset v1"));
        let engine: Arc<dyn Engine> = match self.engine {
            Some(make) => make(parts),
            None => {
                let mut engine = CoreEngine::new(parts.authenticator, parts.events, parts.clock)
                    .reset_key(reset_key)
                    .base(self.server);
                if let Some(outbound) = self.outbound {
                    engine = engine.outbound(outbound);
                }
                Arc::new(engine)
            }
        };
        users.connect(&engine);
        let ledger = Ledger::new(&folder, &identity);
        let reconciler = Reconciler::new(
            Arc::clone(&masters_clock),
            identity.clone(),
            Arc::clone(&users),
            Arc::clone(&engine),
            ledger,
            &folder,
        );
        let node = Arc::new(Node {
            reporter: Reporter::new(folder.clone()),
            traffic_interval: watch::Sender::new(self.config.traffic_interval),
            config: self.config,
            started: Instant::now(),
            started_at: clock.now(),
            boot_id: rand::random(),
            clock,
            masters_clock,
            identity,
            users,
            traffic,
            leases,
            engine,
            reconciler,
            logs: self.logs,
            panics: self.panics,
            link: watch::Sender::new(LinkState::Starting),
            alerts: Mutex::default(),
            alerted: Notify::new(),
            renew_now: Notify::new(),
        });
        let mut tasks = JoinSet::new();
        if let Some(path) = &node.config.local_socket {
            let socket = LocalSocket::bind(path).map_err(|source| StartError::Listen {
                address: path.display().to_string(),
                source,
            })?;
            tasks.spawn(socket.run(Arc::clone(&node)));
        }
        let mut loopback = None;
        if let Some(address) = node.config.loopback {
            let fail = |source| StartError::Listen {
                address: address.to_string(),
                source,
            };
            let listener = TcpListener::bind(address).await.map_err(fail)?;
            loopback = listener.local_addr().ok();
            tasks.spawn(manager::serve_loopback(Arc::clone(&node), listener));
        }
        node.cut_by(Traffic::cut_found).await;
        node.reconciler.start().await;
        tasks.spawn(cut_traffic(Arc::clone(&node)));
        tasks.spawn(keep_time(Arc::clone(&node)));
        tasks.spawn(reconcile::restarts(Arc::clone(&node)));
        tasks.spawn(link::run(Arc::clone(&node)));
        Ok(Agent {
            handle: AgentHandle { node },
            tasks,
            loopback,
            _lock: lock,
        })
    }
}

/// A running agent. Dropping it stops everything at once; see [`Agent::shutdown`].
#[derive(Debug)]
pub struct Agent {
    tasks: JoinSet<()>,
    handle: AgentHandle,
    loopback: Option<std::net::SocketAddr>,
    /// Released last.
    _lock: File,
}

impl Agent {
    /// Starts an agent with every default.
    ///
    /// # Errors
    ///
    /// As [`AgentBuilder::spawn`].
    pub async fn spawn(config: AgentConfig) -> Result<Self, StartError> {
        Self::builder(config).spawn().await
    }

    /// Starts describing an agent.
    pub fn builder(config: AgentConfig) -> AgentBuilder {
        AgentBuilder {
            config,
            clock: Arc::new(SystemClock),
            engine: None,
            outbound: None,
            server: ServerConfig::default(),
            logs: None,
            panics: PanicCount::default(),
        }
    }

    /// Returns a handle for watching.
    pub fn handle(&self) -> AgentHandle {
        self.handle.clone()
    }

    /// Returns the loopback address on which NodeManager is served.
    pub fn loopback_addr(&self) -> Option<std::net::SocketAddr> {
        self.loopback
    }

    /// Ends in order: the proxy drains for the configured grace, what was counted is spooled and,
    /// if a master is there, delivered.
    pub async fn shutdown(mut self) {
        let node = Arc::clone(&self.handle.node);
        node.reconciler.stop(node.config.stop_grace).await;
        node.leases.finish();
        node.cut().await;
        if node.link.borrow().connected_since().is_some() {
            let delivered = async {
                while node.traffic.waiting().batches > 0 {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            let _ = timeout(DELIVERY_MAX, delivered).await;
        }
        self.tasks.shutdown().await;
    }
}

/// How long an ending agent waits for the master to take the last batches.
const DELIVERY_MAX: Duration = Duration::from_secs(5);

/// Watches an [`Agent`]; cheap to clone.
#[derive(Clone)]
pub struct AgentHandle {
    node: Arc<Node>,
}

impl std::fmt::Debug for AgentHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentHandle").finish_non_exhaustive()
    }
}

impl AgentHandle {
    /// Returns what runs, and tells of changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.node.reconciler.status()
    }

    /// Returns how the link to the master stands, and tells of changes.
    pub fn link(&self) -> watch::Receiver<LinkState> {
        self.node.link.subscribe()
    }

    /// Returns the identity.
    pub fn identity(&self) -> Identity {
        self.node.identity.clone()
    }

    /// Returns the addresses that take clients.
    pub fn listening(&self) -> Vec<std::net::SocketAddr> {
        self.node.engine.listening()
    }

    /// Returns the live connections.
    pub fn sessions(&self) -> Vec<hy2_proto::control::rpc::LiveSession> {
        crate::report::live_sessions(&self.node)
    }

    /// Returns what users moved since the counters were made, `(tx, rx)`.
    pub fn totals(&self) -> (u64, u64) {
        self.node.traffic.cells.totals()
    }

    /// Returns batches and bytes that wait for the master.
    pub fn spool(&self) -> (u64, u64) {
        let waiting = self.node.traffic.waiting();
        (waiting.batches, waiting.bytes)
    }

    /// Cuts the counters now instead of at the next interval.
    pub async fn cut(&self) {
        self.node.cut().await;
    }
}

/// Everything of one agent.
pub(crate) struct Node {
    pub(crate) config: AgentConfig,
    /// The master's time, as far as it is known.
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) masters_clock: Arc<MastersClock>,
    pub(crate) identity: Identity,
    pub(crate) users: Arc<UserTable>,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) reconciler: Reconciler,
    pub(crate) reporter: Reporter,
    pub(crate) logs: Option<LogRing>,
    pub(crate) panics: PanicCount,
    pub(crate) link: watch::Sender<LinkState>,
    pub(crate) started: Instant,
    started_at: SystemTime,
    boot_id: [u8; 16],
    pub(crate) traffic_interval: watch::Sender<Duration>,
    alerts: Mutex<VecDeque<Alert>>,
    pub(crate) alerted: Notify,
    pub(crate) renew_now: Notify,
}

/// Alerts that wait for a master; the oldest give way.
const ALERTS_MAX: usize = 100;

/// What is wrong for long is said this often; the master takes it for over when it hears nothing for an hour.
const SAY_AGAIN: Duration = Duration::from_secs(600);

impl Node {
    pub(crate) async fn info(&self) -> NodeInfo {
        let (cluster_epoch, manifest_rev, _) = self.reconciler.have().await;
        let credentials = self.identity.credentials();
        let status = self.reconciler.status().borrow().clone();
        let memory = System::new().map(|mut system| {
            system.refresh_memory();
            system.total_memory()
        });
        NodeInfo {
            node_uid: credentials
                .as_ref()
                .map(|one| one.node_uid.to_vec().into())
                .unwrap_or_default(),
            name: credentials.map(|one| one.name.clone()).unwrap_or_default(),
            boot_id: self.boot_id.to_vec().into(),
            agent_version: VERSION.to_owned(),
            capabilities: CAPABILITIES.iter().map(|one| (*one).to_owned()).collect(),
            hostname: System::host_name().unwrap_or_default(),
            kernel: System::kernel_version().unwrap_or_default(),
            cpus: std::thread::available_parallelism()
                .map_or(0, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX)),
            memory_bytes: memory.unwrap_or(0),
            listening: status.listening,
            engine: status.engine.into(),
            cluster_epoch,
            manifest_rev,
            started_at: Some(self.started_at.into()),
            reason: status.reason,
        }
    }

    /// Tells the master of something, now or when it is there.
    pub(crate) fn alert(&self, rule: &str, severity: &str, message: &str) {
        let alert = Alert {
            rule: rule.to_owned(),
            severity: severity.to_owned(),
            message: message.to_owned(),
            at: Some(self.clock.now().into()),
        };
        let mut alerts = self.alerts.lock();
        // What lasts is said once.
        if alerts.iter().any(|known| known.rule == rule) {
            return;
        }
        if alerts.len() >= ALERTS_MAX {
            alerts.pop_front();
        }
        alerts.push_back(alert);
        self.alerted.notify_one();
    }

    /// Tells the master's operators how far the host's clock is from the master's.
    pub(crate) fn clock_is_wrong(&self, skew: Duration) {
        let text = format!("the clock is {} ms from the master's", skew.as_millis());
        self.alert("clock_skew", "warning", &text);
    }

    pub(crate) fn take_alerts(&self) -> Vec<Alert> {
        self.alerts.lock().drain(..).collect()
    }

    /// Spools what was counted. What the disk does not take stays in the cells.
    pub(crate) async fn cut(self: &Arc<Self>) {
        self.cut_by(Traffic::cut).await;
    }

    async fn cut_by(self: &Arc<Self>, cut: fn(&Traffic, &dyn Intervals) -> io::Result<usize>) {
        let node = Arc::clone(self);
        let cut = tokio::task::spawn_blocking(move || {
            let cut = cut(&node.traffic, &*node.leases);
            node.leases.prune(|user| node.traffic.spooled_total(user));
            cut
        });
        match cut.await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "traffic not spooled, counting goes on");
                self.alert("spool_not_written", "error", &error.to_string());
            }
            Err(error) => tracing::error!(%error, "cut failed"),
        }
        let waiting = self.traffic.waiting();
        if waiting.bytes > self.config.spool_cap / 10 * 9 {
            let text = format!("{} bytes wait for the master", waiting.bytes);
            self.alert("spool_nearly_full", "warning", &text);
        }
    }
}

/// Cuts at every interval, whether there is a master or not.
async fn cut_traffic(node: Arc<Node>) {
    let mut interval = node.traffic_interval.subscribe();
    loop {
        let pause = *interval.borrow_and_update();
        tokio::select! {
            () = sleep(pause) => node.cut().await,
            // The sender lives in the node.
            _ = interval.changed() => {}
        }
    }
}

/// Says that the host's clock is wrong when somebody sets it so, and again and again while it is.
#[derive(Default)]
struct HostsClock {
    said: Option<tokio::time::Instant>,
}

impl HostsClock {
    fn look(&mut self, node: &Node) {
        let wrong = node.masters_clock.skew().filter(|skew| *skew > SAME);
        let Some(skew) = wrong else {
            self.said = None;
            return;
        };
        if self.said.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
            let milliseconds = skew.as_millis();
            tracing::warn!(
                milliseconds,
                "the host's clock is not the master's, which goes on"
            );
            node.clock_is_wrong(skew);
            self.said = Some(tokio::time::Instant::now());
        }
    }
}

/// Does what is due by the clock. Looks often, because the clock may be set.
async fn keep_time(node: Arc<Node>) {
    let mut tick = interval(Duration::from_millis(100));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watched = HostsClock::default();
    for round in 0_u64.. {
        tick.tick().await;
        if node.users.is_due() {
            let ticking = Arc::clone(&node);
            if let Err(error) = tokio::task::spawn_blocking(move || ticking.users.tick()).await {
                tracing::error!(%error, "what was due was not done");
            }
        }
        if round % 5 == 0 {
            node.reconciler.tick();
        }
        if round % 50 == 49 {
            watched.look(&node);
            node.reconciler.retry().await;
            // What a power cut may take is bounded, however rare the cuts are.
            let flushing = Arc::clone(&node);
            let flushed = tokio::task::spawn_blocking(move || flushing.traffic.flush()).await;
            if let Ok(Err(error)) = flushed {
                tracing::warn!(%error, "counters not written to the disk");
            }
        }
    }
}
