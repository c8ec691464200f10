//! A PostgreSQL of its own that can be killed, with fsync on.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

#[derive(Debug)]
pub(crate) struct Postgres {
    pub(crate) url: String,
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
    pub(crate) fn start() -> Self {
        let dir = std::env::temp_dir().join(format!("hy2-fleet-{:016x}", rand::random::<u64>()));
        let shown = dir.to_str().expect("text");
        let owner = std::process::id().to_string();
        let url = script(&["start", shown, &owner, "durable"]);
        Self { url, dir }
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
