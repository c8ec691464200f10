//! A PostgreSQL of its own that can be killed, with fsync on.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::small_disk::SmallDisk;

#[derive(Debug)]
pub(crate) struct Postgres {
    pub(crate) url: String,
    /// All of it is there.
    pub(crate) disk: Option<SmallDisk>,
    dir: PathBuf,
}

fn script(arguments: &[&str]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/test-postgres.sh");
    let output = Command::new(script)
        .args(arguments)
        .output()
        .expect("the script runs");
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)
        .expect("text")
        .trim()
        .to_owned()
}

impl Postgres {
    /// Starts one, with `options` beside the usual ones, on a small disk if wanted and allowed.
    pub(crate) fn start(options: &str, small_disk: bool) -> Self {
        let dir = std::env::temp_dir().join(format!("hy2-fleet-{:016x}", rand::random::<u64>()));
        let mut options = options.to_owned();
        let disk = small_disk
            .then(|| SmallDisk::mount(&dir, 256).ok())
            .flatten();
        if disk.is_some() {
            options.push_str(" -c min_wal_size=32MB -c max_wal_size=48MB");
        }
        let shown = dir.to_str().expect("text");
        let owner = std::process::id().to_string();
        let url = script(&["start", shown, &owner, "durable", &options]);
        Self { url, disk, dir }
    }

    /// Leaves it no byte to write to, also none that it had put by, until [`Self::free`].
    pub(crate) async fn fill(&self) {
        let pool = sqlx::postgres::PgPoolOptions::new()
            .max_connections(1)
            .connect(&self.url);
        let pool = pool.await.expect("it answers");
        let made = sqlx::query("create table if not exists ballast (x text)").execute(&pool);
        made.await.expect("a table");
        self.disk.as_ref().expect("a disk").fill();
        let more = "insert into ballast select repeat('x', 1000) from generate_series(1, 1000)";
        let error = loop {
            if let Err(error) = sqlx::query(more).execute(&pool).await {
                break error;
            }
        };
        // It says so, or ends itself when the write-ahead log has no room.
        let is_full = match &error {
            sqlx::Error::Database(error) => error.code().as_deref() == Some("53100"),
            error => matches!(error, sqlx::Error::Io(_)),
        };
        assert!(is_full, "{error:?}");
        pool.close().await;
    }

    /// Ends [`Self::fill`], and starts the server again if that was its end.
    pub(crate) fn free(&self) {
        self.disk.as_ref().expect("a disk").free();
        let postmaster = || -> Option<u32> {
            let file = std::fs::read_to_string(self.dir.join("data/postmaster.pid")).ok()?;
            file.lines().next()?.parse().ok()
        };
        if !postmaster().is_some_and(alive) {
            self.resume();
        }
    }

    /// Makes another, empty database and returns its address.
    pub(crate) async fn another(&self) -> String {
        let pool = sqlx::PgPool::connect(&self.url).await.expect("it answers");
        let made = sqlx::query("create database another").execute(&pool).await;
        made.expect("a database");
        pool.close().await;
        let (base, _) = self.url.rsplit_once('/').expect("a database");
        format!("{base}/another")
    }

    /// Where it keeps everything: data, write-ahead log, its own log.
    pub(crate) fn folder(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Sends a signal to the server and each of its processes; to the server first.
    pub(crate) fn signal(&self, name: &str) -> Vec<u32> {
        let file = std::fs::read_to_string(self.dir.join("data/postmaster.pid")).expect("it runs");
        let postmaster: u32 = file
            .lines()
            .next()
            .and_then(|id| id.parse().ok())
            .expect("a number");
        let send = |ids: &[u32]| {
            let ids = ids.iter().map(ToString::to_string);
            let name = format!("-{name}");
            Command::new("kill").arg(name).args(ids).output()
        };
        let sent = send(&[postmaster]);
        assert!(sent.is_ok_and(|sent| sent.status.success()), "{name}");
        let mut family = children(postmaster);
        // Some may have ended with the first.
        let _ = send(&family);
        family.insert(0, postmaster);
        family
    }

    /// Ends it in order, which ends its connections, and starts it again.
    pub(crate) fn restart(&self) {
        let dir = self.dir.to_str().expect("text");
        script(&["end", dir]);
        script(&["resume", dir]);
    }

    /// SIGKILL to the server and each of its processes; then it starts again.
    pub(crate) fn kill_and_resume(&self) {
        // Stopped first, so that it makes no more.
        let family = self.signal("STOP");
        let ids: Vec<String> = family.iter().map(ToString::to_string).collect();
        // Some may have ended with the first.
        let _ = Command::new("kill").arg("-9").args(&ids).output();
        while family.iter().any(|id| alive(*id)) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        // Where nobody collects the dead, its number looks as if it were in use.
        for entry in std::fs::read_dir(self.dir.join("data"))
            .expect("a folder")
            .flatten()
        {
            let name = entry.file_name();
            let name = name.to_str().unwrap_or_default();
            if name == "postmaster.pid" || name.starts_with(".s.PGSQL.") {
                std::fs::remove_file(entry.path()).expect("removed");
            }
        }
        self.resume();
    }

    fn resume(&self) {
        let log = self.dir.join("data/log");
        let resumed = std::panic::catch_unwind(|| {
            script(&["resume", self.dir.to_str().expect("text")]);
        });
        if resumed.is_err() {
            let log = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(15).collect();
            panic!(
                "PostgreSQL does not start again; its log, backwards:\n{}",
                lines.join("\n")
            );
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(dir) = self.dir.to_str() {
            let script =
                Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/test-postgres.sh");
            let _ = Command::new(script).args(["stop", dir]).output();
        }
        // What a disk is mounted on stays.
        if self.disk.take().is_some() {
            let _ = std::fs::remove_dir(&self.dir);
        }
    }
}

/// State and parent of a process.
fn stat(id: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn alive(id: u32) -> bool {
    stat(id).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

fn children(parent: u32) -> Vec<u32> {
    std::fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|id| stat(*id).is_some_and(|(_, of)| of == parent))
        .collect()
}
