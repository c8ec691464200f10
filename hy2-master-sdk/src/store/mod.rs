//! Everything that has to survive: PostgreSQL or SQLite behind one set of statements.
//!
//! One file per aggregate. Statements are `&'static str` with bound parameters and mostly the same
//! text on both backends; `on!` expands a query once per backend, so one row type serves both.
//! Times come from the caller. A function that takes a [`Tx`] composes with others in one
//! transaction; methods of [`Store`] stand alone.

pub mod admins;
pub mod alerts;
pub mod api_tokens;
pub mod assignments;
pub mod audit;
pub mod bus;
pub mod certificates;
pub mod cluster;
pub mod config_list;
pub mod due;
mod error;
pub mod events;
pub mod idempotency;
pub mod leases;
pub mod node_list;
pub mod nodes;
pub mod observed;
pub mod plans;
pub mod pools;
pub mod published;
pub mod regions;
pub(crate) mod rotation;
pub mod settings;
pub mod traffic;
pub mod traffic_report;
pub mod upkeep;
pub mod user_list;
pub mod users;
pub mod webhooks;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt as _;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPool, PgPoolOptions};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Connection as _, Executor as _, Postgres, Row as _, Sqlite, Transaction};

pub use self::bus::{Bus, Topic};
pub use self::error::StoreError;
use crate::domain::AdminId;

/// A pool of connections to either database.
#[derive(Debug, Clone)]
pub enum Db {
    /// PostgreSQL 14 or later.
    Pg(PgPool),
    /// SQLite: readers beside the one writer that it has.
    Sqlite {
        /// Read-only connections.
        read: SqlitePool,
        /// The one connection that writes.
        write: SqlitePool,
    },
}

/// Runs a query on whichever backend there is: `on!(read store, |ex| sqlx::query(..).execute(ex).await.rows())`,
/// `on!(write store, ..)` outside a transaction, `on!(tx, ..)` inside one. The body is expanded once
/// per backend.
macro_rules! on {
    (read $store:expr, |$ex:ident| $body:expr) => {
        match $store.db() {
            $crate::store::Db::Pg(pool) => {
                let $ex = pool;
                $body
            }
            $crate::store::Db::Sqlite { read, .. } => {
                let $ex = read;
                $body
            }
        }
    };
    (write $store:expr, |$ex:ident| $body:expr) => {
        match $store.db() {
            $crate::store::Db::Pg(pool) => {
                let $ex = pool;
                $body
            }
            $crate::store::Db::Sqlite { write, .. } => {
                let $ex = write;
                $body
            }
        }
    };
    ($tx:expr, |$ex:ident| $body:expr) => {
        match $tx.connection() {
            $crate::store::Connection::Pg(tx) => {
                let $ex = &mut **tx;
                $body
            }
            $crate::store::Connection::Sqlite(tx) => {
                let $ex = &mut **tx;
                $body
            }
        }
    };
}
pub(crate) use on;

/// The store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    db: Db,
    bus: Bus,
    patience: Duration,
}

/// How to open a store.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StoreOptions {
    /// Connections at most (SQLite: readers).
    pub max_connections: u32,
    /// How long to wait for one of them, and SQLite for its lock.
    pub acquire_timeout: Duration,
    /// How long one thing may take that is asked of it, a request or a run of a task: then the connection is given up.
    pub patience: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            max_connections: 16,
            acquire_timeout: Duration::from_secs(5),
            patience: Duration::from_secs(60),
        }
    }
}

/// How often a migration of an SQLite file is tried, and the pause after the first try.
const MIGRATION_TRIES: u32 = 10;
const MIGRATION_PAUSE: Duration = Duration::from_millis(20);

/// Migrates an SQLite file. There is no lock on a migration as in PostgreSQL: of two processes that
/// do the same step one fails, changes nothing, and finds it done when it looks again.
async fn migrate_sqlite(write: &SqlitePool) -> Result<(), sqlx::migrate::MigrateError> {
    let mut tries = 0;
    loop {
        match sqlx::migrate!("migrations/sqlite").run(write).await {
            Err(
                sqlx::migrate::MigrateError::ExecuteMigration(..)
                | sqlx::migrate::MigrateError::Execute(_),
            ) if tries < MIGRATION_TRIES => {
                tries += 1;
                tokio::time::sleep(MIGRATION_PAUSE * tries).await;
            }
            done => return done,
        }
    }
}

/// A pool that gives out no connection with a transaction that the pool believes open. On a full
/// disk SQLite rolls a transaction back by itself; the rollback after it fails, and the count of
/// open transactions stays wrong for good.
fn sqlite_pool(options: &StoreOptions, connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(options.acquire_timeout)
        .before_acquire(|connection, _| {
            Box::pin(async move { Ok(!sqlx::Connection::is_in_transaction(connection)) })
        })
}

impl Store {
    /// Opens or makes an SQLite file: write-ahead log, full durability, one writer.
    ///
    /// # Errors
    ///
    /// The file cannot be opened.
    pub async fn open_sqlite(
        path: impl AsRef<Path>,
        options: &StoreOptions,
    ) -> Result<Self, StoreError> {
        let path = path.as_ref();
        // For its owner alone, whatever the umask; SQLite gives the files beside it the same mode.
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt as _;
            let mut file = std::fs::OpenOptions::new();
            let made = file.write(true).create_new(true).mode(0o600).open(path);
            if let Err(error) = made
                && error.kind() != std::io::ErrorKind::AlreadyExists
            {
                return Err(sqlx::Error::Io(error).into());
            }
        }
        let connect = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(options.acquire_timeout)
            .pragma("secure_delete", "on")
            // A page of a list in one go: rows come from another thread.
            .row_buffer_size(512)
            .statement_cache_capacity(200);
        let write = sqlite_pool(options, 1)
            .connect_with(connect.clone())
            .await?;
        let read = sqlite_pool(options, options.max_connections.clamp(1, 64))
            .connect_with(
                connect
                    .read_only(true)
                    .create_if_missing(false)
                    // In KiB. Each has its own; what they leave out the kernel keeps, once for all.
                    .pragma("cache_size", "-512"),
            )
            .await?;
        Ok(Self {
            db: Db::Sqlite { read, write },
            bus: Bus::new(),
            patience: options.patience,
        })
    }

    /// Opens a PostgreSQL database. Rejects nothing that the address asks for.
    ///
    /// # Errors
    ///
    /// The address is invalid or nobody answers there.
    pub async fn open_postgres(url: &str, options: &StoreOptions) -> Result<Self, StoreError> {
        let connect: PgConnectOptions = url.parse()?;
        let pool = PgPoolOptions::new()
            .max_connections(options.max_connections)
            .acquire_timeout(options.acquire_timeout)
            .after_connect(|connection, _| {
                Box::pin(async move {
                    sqlx::query(SESSION_LIMITS)
                        .execute(connection)
                        .await
                        .map(drop)
                })
            })
            .after_release(|connection, _| Box::pin(settle(connection)))
            .connect_with(connect.application_name("hy2-orchestrator"))
            .await?;
        Ok(Self {
            db: Db::Pg(pool),
            bus: Bus::new(),
            patience: options.patience,
        })
    }

    /// Brings the schema up to date: each migration in its own transaction, under a lock, so that a
    /// run that was killed is finished by the next.
    ///
    /// # Errors
    ///
    /// A migration fails, or the database has been migrated by a newer version.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        match &self.db {
            Db::Pg(pool) => {
                // Without the limit to waiting for locks: another master may migrate for long.
                let options = pool.connect_options().as_ref().clone();
                let own = PgPoolOptions::new()
                    .max_connections(1)
                    .connect_with(options)
                    .await?;
                let migrated = sqlx::migrate!("migrations/postgres").run(&own).await;
                own.close().await;
                migrated
            }
            Db::Sqlite { write, .. } => migrate_sqlite(write).await,
        }
        .map_err(StoreError::Migrate)
    }

    /// Brings the schema of an older version about, in an empty database: what a backup of that
    /// version is restored into.
    ///
    /// # Errors
    ///
    /// A migration fails, or there is no such version.
    pub async fn migrate_to(&self, version: i64) -> Result<(), StoreError> {
        match &self.db {
            Db::Pg(pool) => {
                sqlx::migrate!("migrations/postgres")
                    .run_to(version, pool)
                    .await
            }
            Db::Sqlite { write, .. } => {
                sqlx::migrate!("migrations/sqlite")
                    .run_to(version, write)
                    .await
            }
        }
        .map_err(StoreError::Migrate)
    }

    /// Returns the schema that this version of the library brings about.
    pub fn newest_schema() -> i64 {
        let migrator = sqlx::migrate!("migrations/sqlite");
        migrator
            .iter()
            .map(|migration| migration.version)
            .max()
            .unwrap_or(0)
    }

    /// Returns the tables that the migrations up to a version make, and their columns: the same on both backends.
    pub(crate) async fn made_by(
        version: i64,
    ) -> Result<BTreeMap<String, BTreeSet<String>>, StoreError> {
        const COLUMNS: &str = "select l.name, c.name from pragma_table_list l join pragma_table_info(l.name) c \
            where l.schema = 'main' and l.type = 'table' and l.name not like 'sqlite_%'";
        let options: SqliteConnectOptions = "sqlite::memory:".parse()?;
        let memory = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options)
            .await?;
        sqlx::migrate!("migrations/sqlite")
            .run_to(version, &memory)
            .await
            .map_err(StoreError::Migrate)?;
        let columns: Vec<(String, String)> = sqlx::query_as(COLUMNS).fetch_all(&memory).await?;
        memory.close().await;
        let mut made = BTreeMap::<String, BTreeSet<String>>::new();
        for (table, column) in columns {
            made.entry(table).or_default().insert(column);
        }
        Ok(made)
    }

    /// Returns the schema of the database; none if it was never migrated.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn schema(&self) -> Result<Option<i64>, StoreError> {
        const PG: &str = "select to_regclass('public._sqlx_migrations') is not null";
        const SQLITE: &str =
            "select exists (select 1 from sqlite_master where name = '_sqlx_migrations')";
        const NEWEST: &str = "select max(version) from _sqlx_migrations";
        let migrated: bool = match &self.db {
            Db::Pg(pool) => sqlx::query_scalar(PG).fetch_one(pool).await?,
            Db::Sqlite { write, .. } => sqlx::query_scalar(SQLITE).fetch_one(write).await?,
        };
        if !migrated {
            return Ok(None);
        }
        Ok(match &self.db {
            Db::Pg(pool) => sqlx::query_scalar(NEWEST).fetch_one(pool).await?,
            Db::Sqlite { write, .. } => sqlx::query_scalar(NEWEST).fetch_one(write).await?,
        })
    }

    /// Returns the pools.
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// Returns whether this is PostgreSQL.
    pub fn is_postgres(&self) -> bool {
        matches!(self.db, Db::Pg(_))
    }

    /// Returns the wake-up calls of this process.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Passes on the calls of other masters until the connection is lost: PostgreSQL only, on
    /// SQLite it waits for ever.
    ///
    /// # Errors
    ///
    /// The connection is lost; the caller opens it again, and looks, as after a call.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe; calls of meanwhile are lost.
    pub async fn relay_calls(&self) -> Result<(), StoreError> {
        let Db::Pg(pool) = &self.db else {
            return std::future::pending().await;
        };
        let mut listener = PgListener::connect_with(pool).await?;
        // A lost connection has to be seen: calls of meanwhile are gone.
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        for topic in Topic::ALL {
            self.bus.call(*topic);
        }
        loop {
            // Cancel safe: the connection keeps what it has read.
            match self.in_time(1, listener.try_recv()).await {
                Ok(received) => match received? {
                    Some(notification) => {
                        if let Some(topic) = Topic::parse(notification.payload()) {
                            self.bus.call(topic);
                        }
                    }
                    None => return Ok(()),
                },
                // Nobody has called for long: or nobody can.
                Err(_) => {
                    let asked = sqlx::query("select 1").execute(&mut listener);
                    self.in_time(1, asked).await??;
                }
            }
        }
    }

    /// Waits for work with the store, but not for ever: so many times the patience that the store was opened with. The
    /// host of a database may vanish without a word, and a connection to it says nothing then, not even that it is lost.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unavailable`] when the time is over; the work is dropped then.
    pub(crate) async fn in_time<F: Future>(
        &self,
        times: u32,
        work: F,
    ) -> Result<F::Output, StoreError> {
        let limit = self.patience.saturating_mul(times);
        let done = tokio::time::timeout(limit, work).await;
        done.map_err(|_| StoreError::late())
    }

    /// Begins a transaction that writes. On SQLite the only one at a time.
    ///
    /// # Errors
    ///
    /// No connection within the timeout.
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        let connection = match &self.db {
            Db::Pg(pool) => Connection::Pg(begin_pg(pool, None, self.patience).await?),
            Db::Sqlite { write, .. } => {
                Connection::Sqlite(write.begin_with("BEGIN IMMEDIATE").await?)
            }
        };
        Ok(Tx {
            connection,
            writes: true,
            calls: 0,
            spent: BTreeMap::new(),
            bus: self.bus.clone(),
        })
    }

    /// Begins a transaction that reads one state of the whole store.
    ///
    /// # Errors
    ///
    /// No connection within the timeout.
    pub async fn snapshot(&self) -> Result<Tx, StoreError> {
        let connection = match &self.db {
            Db::Pg(pool) => {
                const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
                Connection::Pg(begin_pg(pool, Some(BEGIN), self.patience).await?)
            }
            Db::Sqlite { read, .. } => Connection::Sqlite(read.begin_with("BEGIN DEFERRED").await?),
        };
        Ok(Tx {
            connection,
            writes: false,
            calls: 0,
            spent: BTreeMap::new(),
            bus: self.bus.clone(),
        })
    }

    /// Closes all connections; those in use first finish.
    pub async fn close(&self) {
        match &self.db {
            Db::Pg(pool) => pool.close().await,
            Db::Sqlite { read, write } => {
                read.close().await;
                write.close().await;
            }
        }
    }
}

/// Begins a transaction, whole or not at all. sqlx forgets one whose beginning is cancelled between the question and the
/// answer: the connection goes back to the pool with an open transaction, in which everything that others do next on it
/// stays, unseen and with its locks. So it is begun in a task of its own, and who gives up waiting drops it there. One
/// that is not begun in time is cut off all the same: [`settle`] knows it.
async fn begin_pg(
    pool: &PgPool,
    with: Option<&'static str>,
    patience: Duration,
) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    let pool = pool.clone();
    let begun = tokio::spawn(tokio::time::timeout(patience, async move {
        match with {
            None => pool.begin().await,
            Some(statement) => pool.begin_with(statement).await,
        }
    }));
    // Without an answer the runtime ends.
    let begun = begun.await.map_err(|_| sqlx::Error::WorkerCrashed)?;
    begun.map_err(|_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))?
}

/// Looks after a connection that comes back to its pool; an error or `false` ends it. sqlx waits for the answer to what
/// was cut off without a limit, and until then a place of the pool is taken.
async fn settle(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let asked = tokio::time::timeout(SETTLE, async {
        let mut rest = std::pin::pin!(connection.flush());
        if let Some(done) = rest.as_mut().now_or_never() {
            return done.map(|()| None);
        }
        rest.await.map(Some)
    });
    match asked.await {
        Ok(Ok(None)) => Ok(true),
        // Whether it is in a transaction that nobody knows of: the time of one stands still.
        Ok(Ok(Some(()))) => {
            let asked = connection.fetch_one("select now() = statement_timestamp()");
            let asked = tokio::time::timeout(SETTLE, asked).await;
            let row = asked.map_err(|_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))??;
            row.try_get(0)
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
    }
}

/// A transaction on either database. Dropped without [`Tx::commit`], nothing of it has happened.
#[derive(Debug)]
pub struct Tx {
    connection: Connection,
    writes: bool,
    calls: u8,
    spent: BTreeMap<AdminId, i64>,
    bus: Bus,
}

/// How many rows a statement changed, the same on both backends.
pub(crate) trait Rows {
    fn rows(self) -> Result<u64, sqlx::Error>;
}

impl Rows for Result<sqlx::postgres::PgQueryResult, sqlx::Error> {
    fn rows(self) -> Result<u64, sqlx::Error> {
        self.map(|done| done.rows_affected())
    }
}

impl Rows for Result<sqlx::sqlite::SqliteQueryResult, sqlx::Error> {
    fn rows(self) -> Result<u64, sqlx::Error> {
        self.map(|done| done.rows_affected())
    }
}

/// The open transaction of a [`Tx`].
#[derive(Debug)]
pub(crate) enum Connection {
    Pg(Transaction<'static, Postgres>),
    Sqlite(Transaction<'static, Sqlite>),
}

impl Tx {
    pub(crate) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Returns whether this is PostgreSQL.
    pub fn is_postgres(&self) -> bool {
        matches!(self.connection, Connection::Pg(_))
    }

    /// Calls every master when the transaction commits.
    pub fn call(&mut self, topic: Topic) {
        self.calls |= topic.bit();
    }

    /// Counts what users of an administrator have used as spent for good. Written at the commit, in one order: rows of
    /// administrators are locked after those of users and nodes, so that nobody waits in a circle.
    pub(crate) fn spend(&mut self, admin: Option<AdminId>, bytes: i64) {
        if let Some(admin) = admin
            && bytes > 0
        {
            let spent = self.spent.entry(admin).or_default();
            *spent = spent.saturating_add(bytes);
        }
    }

    /// Returns what this transaction will have spent of an administrator's quota.
    pub(crate) fn spent(&self, admin: AdminId) -> i64 {
        self.spent.get(&admin).copied().unwrap_or(0)
    }

    /// Lets a long time pass between two statements: PostgreSQL ends a transaction in which nothing is asked for long.
    ///
    /// # Errors
    ///
    /// The connection is lost.
    pub(crate) async fn may_pause(&mut self) -> Result<(), StoreError> {
        if let Connection::Pg(pg) = &mut self.connection {
            sqlx::query("set local idle_in_transaction_session_timeout = 0")
                .execute(&mut **pg)
                .await?;
        }
        Ok(())
    }

    /// Makes everything happen.
    ///
    /// # Errors
    ///
    /// The database refuses, or the connection is lost: then it is not known whether it happened.
    pub async fn commit(mut self) -> Result<(), StoreError> {
        for (admin, bytes) in std::mem::take(&mut self.spent) {
            admins::add_spent(&mut self, admin, bytes).await?;
        }
        if self.writes {
            idempotency::note_acting(&mut self).await?;
        }
        let calls = Topic::ALL
            .iter()
            .copied()
            .filter(|topic| self.calls & topic.bit() != 0)
            .collect::<Vec<_>>();
        match self.connection {
            Connection::Pg(ref mut tx) => {
                for topic in &calls {
                    sqlx::query("select pg_notify($1, $2)")
                        .bind(CHANNEL)
                        .bind(topic.as_str())
                        .execute(&mut **tx)
                        .await?;
                }
            }
            Connection::Sqlite(_) => {}
        }
        match self.connection {
            Connection::Pg(tx) => tx.commit().await?,
            Connection::Sqlite(tx) => tx.commit().await?,
        }
        // On PostgreSQL too: this process need not wait for its own notification.
        for topic in calls {
            self.bus.call(topic);
        }
        Ok(())
    }

    /// Makes nothing happen.
    ///
    /// # Errors
    ///
    /// The connection is lost; nothing happens then either.
    pub async fn rollback(self) -> Result<(), StoreError> {
        match self.connection {
            Connection::Pg(tx) => tx.rollback().await?,
            Connection::Sqlite(tx) => tx.rollback().await?,
        }
        Ok(())
    }
}

/// Nobody waits longer than this for what another session of PostgreSQL has locked: then the store is not available. And a
/// master whose host vanishes without a word keeps its locks no longer than the rest: PostgreSQL ends sessions that are
/// quiet in a transaction, and looks whether who is quiet is there at all. An address, or a server, that sets limits of
/// its own keeps them.
const SESSION_LIMITS: &str = "select set_config(wanted.name, wanted.value, false) from (values \
    ('lock_timeout', '5s'), ('idle_in_transaction_session_timeout', '60s'), ('tcp_keepalives_idle', '30'), \
    ('tcp_keepalives_interval', '10'), ('tcp_keepalives_count', '3'), ('tcp_user_timeout', '60000')) \
    as wanted (name, value) join pg_settings as known on known.name = wanted.name \
    where known.source = 'default' or (wanted.name = 'lock_timeout' and known.setting = '0')";

/// How long a connection that comes back may take for the answer to what was cut off on it.
const SETTLE: Duration = Duration::from_secs(5);

/// PostgreSQL's notification channel.
const CHANNEL: &str = "hy2";
