//! Empty stores on either backend.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use hy2_master_sdk::store::{Store, StoreOptions};
use tempfile::TempDir;
use uuid::Uuid;

pub(crate) struct Backend {
    pub(crate) store: Store,
    /// Where to open it again.
    pub(crate) place: Place,
    _dir: Option<TempDir>,
}

pub(crate) enum Place {
    Sqlite(PathBuf),
    Postgres(String),
}

impl Backend {
    pub(crate) async fn sqlite() -> Self {
        let backend = Self::empty_sqlite().await;
        backend.store.migrate().await.expect("migrations run");
        backend
    }

    pub(crate) async fn postgres() -> Self {
        let backend = Self::empty_postgres().await;
        backend.store.migrate().await.expect("migrations run");
        backend
    }

    pub(crate) async fn empty_sqlite() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("master.db");
        Self {
            store: open_sqlite(&path).await,
            place: Place::Sqlite(path),
            _dir: Some(dir),
        }
    }

    pub(crate) async fn empty_postgres() -> Self {
        let url = database_on(server()).await;
        Self {
            store: open_postgres(&url).await,
            place: Place::Postgres(url),
            _dir: None,
        }
    }

    pub(crate) async fn reopen(&self) -> Store {
        match &self.place {
            Place::Sqlite(path) => open_sqlite(path).await,
            Place::Postgres(url) => open_postgres(url).await,
        }
    }
}

pub(crate) async fn open_sqlite(path: &Path) -> Store {
    Store::open_sqlite(path, &options())
        .await
        .expect("SQLite opens")
}

pub(crate) async fn open_postgres(url: &str) -> Store {
    Store::open_postgres(url, &options())
        .await
        .expect("PostgreSQL opens")
}

/// Makes a database on a server and returns its address.
pub(crate) async fn database_on(server: &str) -> String {
    let name = format!("t_{}", Uuid::new_v4().simple());
    let admin = sqlx::PgPool::connect(server)
        .await
        .expect("the server answers");
    sqlx::query(sqlx::AssertSqlSafe(format!("create database {name}")))
        .execute(&admin)
        .await
        .expect("a database is made");
    admin.close().await;
    let (base, _) = server.rsplit_once('/').expect("an address with a database");
    format!("{base}/{name}")
}

fn options() -> StoreOptions {
    let mut options = StoreOptions::default();
    options.max_connections = 8;
    options.acquire_timeout = std::time::Duration::from_secs(30);
    options
}

/// The server of ordinary tests, started once.
fn server() -> &'static str {
    static SERVER: OnceLock<String> = OnceLock::new();
    SERVER.get_or_init(|| match std::env::var("HY2_TEST_POSTGRES") {
        Ok(url) => url,
        Err(_) => Server::start(false).url,
    })
}

/// A server of its own, for tests that kill it.
pub(crate) struct Server {
    pub(crate) url: String,
    dir: PathBuf,
}

impl Server {
    pub(crate) fn start(durable: bool) -> Self {
        let dir = std::env::temp_dir().join(format!("hy2-postgres-{}", Uuid::new_v4().simple()));
        let mut command = script();
        command
            .arg("start")
            .arg(&dir)
            .arg(std::process::id().to_string());
        if durable {
            command.arg("durable");
        }
        let output = command.output().expect("the script runs");
        assert!(
            output.status.success(),
            "PostgreSQL starts: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Self {
            url: String::from_utf8(output.stdout)
                .expect("an address")
                .trim()
                .to_owned(),
            dir,
        }
    }

    /// Stops it as a power failure would stop the process, and starts it again.
    pub(crate) fn crash_and_resume(&self) {
        for step in ["crash", "resume"] {
            let status = script()
                .arg(step)
                .arg(&self.dir)
                .status()
                .expect("the script runs");
            assert!(status.success(), "{step}");
        }
    }

    pub(crate) fn stop(self) {
        let status = script()
            .arg("stop")
            .arg(&self.dir)
            .status()
            .expect("the script runs");
        assert!(status.success());
    }
}

fn script() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/test-postgres.sh"))
}
