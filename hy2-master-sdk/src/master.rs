//! A master: built from a store and a key file, bound, running until it is shut down.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use arc_swap::ArcSwap;
use hy2_proto::control::rpc;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::backup::envelope::BackupKey;
use crate::backup::restore::{self, Restored};
use crate::backup::{self, BackupError};
use crate::config::MasterConfig;
use crate::core::{Core, FLEET_KEYS, KeysError, load_keys};
use crate::domain::{Clock, NodeId, SystemClock, Timestamp, UserId};
use crate::reconcile;
use crate::rpc::reverse::{NodeClient, ReverseError};
use crate::rpc::{Listener, LiveNode, TlsError, refresh_tls};
use crate::secrets::{FleetKeys, KeyFileError, MasterKeys, RandomError, Vault, random, sha256};
use crate::store::audit::{self, NewEntry};
use crate::store::certificates::{self, NewToken, TokenRow};
use crate::store::{Db, Store, StoreError, StoreOptions, events};

/// Builds a [`Master`].
#[derive(Debug)]
#[must_use]
pub struct Builder {
    backend: Backend,
    options: StoreOptions,
    keys: Option<Keys>,
    config: MasterConfig,
    clock: Arc<dyn Clock>,
    agents: Option<AgentsAddress>,
}

#[derive(Debug)]
enum Backend {
    Sqlite(PathBuf),
    Postgres(String),
    Store(Store),
}

#[derive(Debug)]
enum Keys {
    File(PathBuf),
    Given(MasterKeys),
}

#[derive(Debug)]
enum AgentsAddress {
    Bind(String),
    Listener(TcpListener),
}

/// A master cannot start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// The store cannot be opened or migrated.
    #[error("cannot open the store")]
    Store(#[from] StoreError),
    /// There is no key file.
    #[error("no master key file is configured")]
    NoKeys,
    /// The key file cannot be used.
    #[error("cannot use the master keys")]
    KeyFile(#[from] KeyFileError),
    /// The cluster's keys cannot be loaded or made.
    #[error("cannot load the cluster's keys")]
    Keys(#[from] KeysError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The port for agents cannot be bound.
    #[error("cannot listen for agents on {address}")]
    Bind {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// An enrolment token, shown once.
#[derive(Clone)]
#[non_exhaustive]
pub struct IssuedToken {
    /// What the store keeps.
    pub row: TokenRow,
    /// What the node presents.
    pub secret: String,
    /// What the node pins: `sha256:<hex>`.
    pub ca_pin: String,
}

impl std::fmt::Debug for IssuedToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuedToken")
            .field("row", &self.row)
            .field("secret", &"***")
            .field("ca_pin", &self.ca_pin)
            .finish()
    }
}

/// A token cannot be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The store fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No randomness.
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// A running master. Cheap to clone; dropping the last one stops everything.
#[derive(Debug, Clone)]
pub struct Master {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    core: Arc<Core>,
    tasks: Mutex<JoinSet<()>>,
    agents: Option<SocketAddr>,
}

impl Master {
    /// Begins with an SQLite file.
    pub fn sqlite(path: impl AsRef<Path>) -> Builder {
        Builder::new(Backend::Sqlite(path.as_ref().to_owned()))
    }

    /// Begins with a PostgreSQL database: `postgres://user@host/name`.
    pub fn postgres(url: impl Into<String>) -> Builder {
        Builder::new(Backend::Postgres(url.into()))
    }

    /// Begins with an open store.
    pub fn with_store(store: Store) -> Builder {
        Builder::new(Backend::Store(store))
    }

    /// Returns where agents are awaited, as bound.
    pub fn agents_address(&self) -> Option<SocketAddr> {
        self.inner.agents
    }

    /// Returns the store.
    pub fn store(&self) -> &Store {
        &self.inner.core.store
    }

    /// Returns the clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.core.clock
    }

    /// Returns what seals secrets.
    pub fn vault(&self) -> &Vault {
        &self.inner.core.vault
    }

    /// Returns what hashes credentials.
    pub fn fleet_keys(&self) -> &FleetKeys {
        &self.inner.core.keys
    }

    /// Returns the settings.
    pub fn config(&self) -> &MasterConfig {
        &self.inner.core.config
    }

    /// Returns the master's UUID, new with each start.
    pub fn id(&self) -> Uuid {
        self.inner.core.id
    }

    /// Returns the cluster's epoch.
    pub fn epoch(&self) -> i64 {
        self.inner.core.epoch()
    }

    /// Returns what agents pin: `sha256:<hex>` of the authority's public key.
    pub fn ca_pin(&self) -> String {
        self.inner.core.trust.load().authority.pin()
    }

    /// Makes an enrolment token: 256 random bits, one use.
    ///
    /// # Errors
    ///
    /// The store fails; [`StoreError::Reference`] of the region.
    pub async fn create_enrolment_token(
        &self,
        label: &str,
        valid: Duration,
        shape: impl FnOnce(&mut NewToken),
    ) -> Result<IssuedToken, TokenError> {
        use base64::Engine;
        let secret = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(*random::<32>()?);
        let now = self.inner.core.now();
        let mut token = NewToken {
            secret_hash: sha256(secret.as_bytes()),
            label: label.to_owned(),
            bind_cidr: None,
            region_id: None,
            tags: Vec::new(),
            expires_at: now.plus(valid),
            created_by: None,
        };
        shape(&mut token);
        let mut tx = self.inner.core.store.begin().await?;
        let row = certificates::create_token(&mut tx, &token, now).await?;
        tx.commit().await?;
        Ok(IssuedToken {
            row,
            secret,
            ca_pin: self.ca_pin(),
        })
    }

    /// Revokes a node's identity: its connections are cut within 5 s, and it cannot come back.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`].
    pub async fn revoke_node(&self, node: NodeId, reason: &str) -> Result<(), StoreError> {
        let mut tx = self.inner.core.store.begin().await?;
        certificates::revoke_node(&mut tx, node, reason, self.inner.core.now()).await?;
        tx.commit().await
    }

    /// Returns a client for commands to a node; opens a connection when there is none.
    ///
    /// # Errors
    ///
    /// The node has no Session with this master, or does not open the connection in 10 s.
    pub async fn node_client(&self, node: NodeId) -> Result<NodeClient, ReverseError> {
        let core = &self.inner.core;
        core.reverse
            .client(&core.live, node, Duration::from_secs(10))
            .await
    }

    /// Returns the nodes that have a Session with this master.
    pub fn live_nodes(&self) -> Vec<LiveNode> {
        self.inner.core.live.list()
    }

    /// Returns live sessions of nodes that are connected to this master, at most `limit`.
    pub fn live_sessions(
        &self,
        node: Option<NodeId>,
        user: Option<UserId>,
        limit: usize,
    ) -> Vec<(NodeId, rpc::LiveSession)> {
        self.inner
            .core
            .live
            .list_sessions(node, user.map(UserId::to_wire), limit)
    }

    /// Returns the moment the master's clock shows.
    pub fn now(&self) -> Timestamp {
        self.inner.core.now()
    }

    /// Returns a token that is cancelled when the master shuts down, for what an embedder runs beside.
    pub fn shutdown_token(&self) -> CancellationToken {
        self.inner.core.shutdown.clone()
    }

    /// Says goodbye to agents, stops every task, waits for them, and closes the store.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, everything is still told to stop, but not awaited.
    pub async fn shutdown(&self) {
        let core = &self.inner.core;
        core.live.goodbye("the master restarts");
        core.shutdown.cancel();
        core.tasks.close();
        let mut tasks = self.inner.tasks.lock().await;
        let all = async {
            core.tasks.wait().await;
            while tasks.join_next().await.is_some() {}
        };
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, all).await.is_err() {
            tracing::warn!("some tasks did not stop in time");
            tasks.shutdown().await;
        }
        // Best effort: another master would wait for the leases to run out.
        let closed = async {
            let _ = core.store.release_leases(core.id).await;
            core.store.close().await;
        };
        // Connections to a database that has vanished do not end.
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, closed)
            .await
            .is_err()
        {
            tracing::warn!("the store did not close in time");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.core.shutdown.cancel();
    }
}

/// The audit log and the events have it that a backup was made on the host.
async fn note_backup(store: &Store, now: Timestamp) -> Result<(), StoreError> {
    let entry = NewEntry {
        at: now,
        actor_kind: "host",
        actor: "host".to_owned(),
        address: None,
        action: "create_backup".to_owned(),
        object_kind: "backup",
        object_id: now.to_string(),
        before: None,
        after: None,
        request_id: None,
    };
    let mut tx = store.begin().await?;
    audit::append(&mut tx, &entry).await?;
    let nothing = serde_json::Value::Null;
    events::emit(
        &mut tx,
        "backup.made",
        &entry.object_id,
        &nothing,
        None,
        now,
    )
    .await?;
    tx.commit().await
}

impl Builder {
    fn new(backend: Backend) -> Self {
        Self {
            backend,
            options: StoreOptions::default(),
            keys: None,
            config: MasterConfig::default(),
            clock: Arc::new(SystemClock),
            agents: None,
        }
    }

    /// Sets how the store is opened.
    pub fn store_options(mut self, options: StoreOptions) -> Self {
        self.options = options;
        self
    }

    /// Sets the master key file; it is made when there is none.
    pub fn key_file(mut self, path: impl AsRef<Path>) -> Self {
        self.keys = Some(Keys::File(path.as_ref().to_owned()));
        self
    }

    /// Sets the master keys.
    pub fn keys(mut self, keys: MasterKeys) -> Self {
        self.keys = Some(Keys::Given(keys));
        self
    }

    /// Sets everything else.
    pub fn config(mut self, config: MasterConfig) -> Self {
        self.config = config;
        self
    }

    /// Sets the clock.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Waits for agents on an address: `0.0.0.0:50052`.
    pub fn agents(mut self, address: impl Into<String>) -> Self {
        self.agents = Some(AgentsAddress::Bind(address.into()));
        self
    }

    /// Waits for agents on a bound listener.
    pub fn agents_listener(mut self, listener: TcpListener) -> Self {
        self.agents = Some(AgentsAddress::Listener(listener));
        self
    }

    /// Writes a backup of the store, whether or not masters run on it. Returns how many bytes.
    ///
    /// # Errors
    ///
    /// [`BackupError`]; what has been written does not open then.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, the backup is cut off, and does not open.
    pub async fn backup(
        self,
        key: &BackupKey,
        mut out: impl AsyncWrite + Unpin,
    ) -> Result<u64, BackupError> {
        if let Backend::Sqlite(path) = &self.backend
            && !path.exists()
        {
            return Err(BackupError::NoStore);
        }
        let clock = Arc::clone(&self.clock);
        let lent = matches!(self.backend, Backend::Store(_));
        let store = self.open().await?;
        if store.schema().await?.is_none() {
            return Err(BackupError::NoStore);
        }
        let (sender, mut pieces) = mpsc::channel::<bytes::Bytes>(4);
        let writing = backup::dump::write(&store, key, sender);
        let passing = async {
            let mut bytes = 0;
            while let Some(piece) = pieces.recv().await {
                out.write_all(&piece).await?;
                bytes += piece.len() as u64;
            }
            out.flush().await?;
            Ok::<_, std::io::Error>(bytes)
        };
        // Whichever fails ends the other: one drops what the other waits for.
        let done = tokio::try_join!(writing, async { passing.await.map_err(BackupError::from) });
        if done.is_ok()
            && let Err(error) = note_backup(&store, clock.now()).await
        {
            tracing::warn!(%error, "the backup is made, and not in the audit log");
        }
        if !lent {
            store.close().await;
        }
        Ok(done?.1)
    }

    /// Restores a backup into the store, which has to be empty: best one that is not there yet. The
    /// master key file has to be there, and to be the one that the backup's secrets are sealed with.
    ///
    /// # Errors
    ///
    /// [`BackupError`]; nothing is in the store then.
    pub async fn restore(
        self,
        key: &BackupKey,
        from: impl AsyncRead + Unpin,
    ) -> Result<Restored, BackupError> {
        self.restore_as(false, key, from).await
    }

    async fn restore_as(
        self,
        for_postgres: bool,
        key: &BackupKey,
        from: impl AsyncRead + Unpin,
    ) -> Result<Restored, BackupError> {
        let vault = self.vault()?;
        let now = self.clock.now();
        let lent = matches!(self.backend, Backend::Store(_));
        let store = self.open().await?;
        let vault = Some(&vault);
        let restored = restore::read_checked(&store, key, vault, for_postgres, from, now).await;
        if !lent {
            store.close().await;
        }
        restored
    }

    /// Restores a backup into a store that is thrown away, to see that it would: every row of it, that
    /// this store's kind of database takes it, and that the master keys are the right ones.
    ///
    /// # Errors
    ///
    /// [`BackupError`].
    pub async fn check_backup(
        mut self,
        key: &BackupKey,
        from: impl AsyncRead + Unpin,
    ) -> Result<Restored, BackupError> {
        let for_postgres = match &self.backend {
            Backend::Sqlite(_) => false,
            Backend::Postgres(_) => true,
            Backend::Store(store) => matches!(store.db(), Db::Pg(_)),
        };
        let folder = Scratch::make()?;
        self.backend = Backend::Sqlite(folder.0.join("check.db"));
        self.restore_as(for_postgres, key, from).await
    }

    /// Reads the master keys; makes none.
    fn vault(&self) -> Result<Vault, BackupError> {
        Ok(Vault::new(match &self.keys {
            Some(Keys::File(path)) => MasterKeys::load(path)?,
            Some(Keys::Given(keys)) => keys.clone(),
            None => return Err(KeyFileError::Empty.into()),
        }))
    }

    async fn open(self) -> Result<Store, StoreError> {
        match self.backend {
            Backend::Sqlite(path) => Store::open_sqlite(path, &self.options).await,
            Backend::Postgres(url) => Store::open_postgres(&url, &self.options).await,
            Backend::Store(store) => Ok(store),
        }
    }

    /// Opens and migrates the store, loads or makes the cluster's keys, binds, and starts.
    ///
    /// # Errors
    ///
    /// See [`StartError`]. Nothing runs then.
    pub async fn start(self) -> Result<Master, StartError> {
        let store = match self.backend {
            Backend::Sqlite(path) => Store::open_sqlite(path, &self.options).await?,
            Backend::Postgres(url) => Store::open_postgres(&url, &self.options).await?,
            Backend::Store(store) => store,
        };
        let keys = match self.keys {
            // A new key would open nothing, and look like the old one to whoever comes to help.
            Some(Keys::File(path)) if !path.exists() && has_secrets(&store).await? => {
                return Err(KeyFileError::Missing { path }.into());
            }
            Some(Keys::File(path)) => MasterKeys::load_or_create(&path)?,
            Some(Keys::Given(keys)) => keys,
            None => return Err(StartError::NoKeys),
        };
        store.migrate().await?;
        let vault = Vault::new(keys);
        let now = self.clock.now();
        let loaded = load_keys(&store, &vault, now).await?;
        let core = Arc::new(Core {
            id: Uuid::new_v4(),
            store,
            clock: self.clock,
            vault,
            keys: loaded.fleet,
            config: self.config,
            trust: ArcSwap::from_pointee(loaded.trust),
            epoch: AtomicI64::new(loaded.epoch),
            epoch_started_at: AtomicI64::new(loaded.epoch_started_at.0),
            started_at: now,
            tls_made_at: AtomicI64::new(now.0),
            live: Default::default(),
            peers: Arc::default(),
            reverse: Default::default(),
            views: Default::default(),
            tasks: TaskTracker::new(),
            grown: Default::default(),
            shutdown: CancellationToken::new(),
        });
        let tls = Arc::new(ArcSwap::new(refresh_tls(&core, &core.trust.load())?));
        let listener = match self.agents {
            None => None,
            Some(AgentsAddress::Listener(listener)) => Some(listener),
            Some(AgentsAddress::Bind(address)) => Some(
                TcpListener::bind(&address)
                    .await
                    .map_err(|source| StartError::Bind { address, source })?,
            ),
        };
        let agents = listener
            .as_ref()
            .and_then(|listener| listener.local_addr().ok());
        let mut tasks = JoinSet::new();
        if let Some(listener) = listener {
            tasks.spawn(Listener::new(Arc::clone(&core), Arc::clone(&tls)).serve(listener));
        }
        reconcile::spawn_all(&mut tasks, &core, &tls);
        Ok(Master {
            inner: Arc::new(Inner {
                core,
                tasks: Mutex::new(tasks),
                agents,
            }),
        })
    }
}

/// Whether something is sealed in the store.
async fn has_secrets(store: &Store) -> Result<bool, StoreError> {
    if store.schema().await?.is_none() {
        return Ok(false);
    }
    match store.secret(FLEET_KEYS).await {
        Ok(_) => Ok(true),
        Err(StoreError::NotFound(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A directory for its owner only, gone when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("hy2-{}", Uuid::new_v4()));
        let mut builder = std::fs::DirBuilder::new();
        #[cfg(unix)]
        {
            use std::os::unix::fs::DirBuilderExt;
            builder.mode(0o700);
        }
        builder.create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
