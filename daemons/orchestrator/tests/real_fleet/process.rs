//! A running program of ours, with its log in a file.

use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use tokio::process::{Child, Command};

/// Returns the path of a binary of this workspace.
pub(crate) fn binary(name: &str) -> PathBuf {
    let path = assert_cmd::cargo::cargo_bin!("hy2-orchestrator").with_file_name(name);
    assert!(
        path.exists(),
        "{} is not built: cargo build --workspace --bins --tests",
        path.display()
    );
    path
}

/// Killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts `program`; its standard error is appended to `log`, its output to `log` with `.out`.
    pub(crate) fn start(program: &Path, arguments: &[&str], log: &Path) -> Self {
        let open = |path: &Path| -> File {
            let opened = OpenOptions::new().create(true).append(true).open(path);
            opened.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(open(&log.with_extension("out")))
            .stderr(open(log))
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        Self { child }
    }

    /// SIGKILL.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.expect("killed");
    }

    /// SIGTERM, and waits for the end.
    pub(crate) async fn terminate(mut self) -> ExitStatus {
        let id = self.child.id().expect("it runs").to_string();
        let sent = Command::new("kill").arg(&id).status().await.expect("kill");
        assert!(sent.success(), "kill {id}");
        crate::soon("the end of a process", self.child.wait())
            .await
            .expect("ended")
    }

    /// Whether it has ended by itself.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child")
    }
}

/// Returns the last lines of every log in `folder`.
pub(crate) fn logs(folder: &Path) -> String {
    const LINES: usize = 25;
    let mut text = String::new();
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "log"))
        .collect();
    files.sort();
    for file in files {
        let Ok(log) = std::fs::read_to_string(&file) else {
            continue;
        };
        let lines: Vec<&str> = log.lines().collect();
        text += &format!("--- {}\n", file.display());
        for line in &lines[lines.len().saturating_sub(LINES)..] {
            text += line;
            text.push('\n');
        }
    }
    text
}
