//! PostgreSQL for tests.

#![allow(dead_code, reason = "each test program uses a part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use uuid::Uuid;

/// Makes a database of its own and returns its address: on `HY2_TEST_POSTGRES`, or on a server that
/// is started once and ends with this process. `durable`: with fsync.
pub(crate) async fn database(durable: bool) -> String {
    static SERVERS: [OnceLock<String>; 2] = [OnceLock::new(), OnceLock::new()];
    let server =
        SERVERS[usize::from(durable)].get_or_init(|| match std::env::var("HY2_TEST_POSTGRES") {
            Ok(url) => url,
            Err(_) => Server::start(durable).url,
        });
    database_on(server).await
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

    /// Returns what it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("data/log")).expect("a log")
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
