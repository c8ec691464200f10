//! Empty stores on either backend.

#[path = "../support/postgres.rs"]
pub(crate) mod postgres;

use std::path::{Path, PathBuf};

use hy2_master_sdk::store::{Store, StoreOptions};
use tempfile::TempDir;

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
        let url = postgres::database(false).await;
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

fn options() -> StoreOptions {
    let mut options = StoreOptions::default();
    options.max_connections = 8;
    options.acquire_timeout = std::time::Duration::from_secs(30);
    options
}
