//! Backups.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::Context;
use clap::Args;
use http::Method;
use http_body_util::BodyExt;
use serde_json::json;

use crate::{
    ask::{self, confirm},
    cli::Common,
    client::{Client, SILENCE, in_time},
    failure::Failure,
    output::Output,
};

/// Where a passphrase may come from.
const PASSPHRASE: &str = "HY2_BACKUP_PASSPHRASE";

/// Fetches an encrypted backup. The master key file is not in it: keep it apart.
#[derive(Debug, Args)]
pub(crate) struct Backup {
    /// Write it to this file, which must not exist
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,

    /// File with the passphrase, at least 12 characters, "-" for standard input; else
    /// HY2_BACKUP_PASSPHRASE or a question
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl Backup {
    pub(crate) async fn run(self, client: &Client, output: &Output) -> Result<(), Failure> {
        let shown = self.out.display().to_string();
        if self.out.exists() {
            return Err(Failure::Usage(format!("{shown} exists")));
        }
        let file = self.passphrase_file.as_deref();
        let passphrase = ask::secret("passphrase", file, PASSPHRASE, true)?;
        let request = json!({"passphrase": passphrase.as_str()});
        let opening = client.open(Method::POST, "/backups", &[], Some(&request), &[]);
        // Stretching the passphrase takes its time before the first byte comes.
        let response = in_time(SILENCE, opening).await??;
        let part = Part::create(&self.out)?;
        let bytes = part.fill(response.into_body(), output).await?;
        part.keep(&self.out)?;
        output.note("the master key file is not in it: keep a copy of it elsewhere");
        output.done(
            &json!({"file": shown, "bytes": bytes}),
            &format!("{shown}: {bytes} bytes"),
        )
    }
}

/// A file beside its later name; gone unless it is kept.
struct Part {
    path: PathBuf,
    kept: bool,
}

impl Part {
    fn create(out: &Path) -> Result<Self, Failure> {
        let mut name = out.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let path = out.with_file_name(name);
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            options.mode(0o600);
        }
        let opened = options.open(&path);
        opened.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path, kept: false })
    }

    async fn fill(&self, mut body: hyper::body::Incoming, output: &Output) -> Result<u64, Failure> {
        let writing = || format!("cannot write {}", self.path.display());
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(&self.path)
            .with_context(writing)?;
        let progress = output.counting("backup");
        let mut bytes = 0;
        loop {
            // Cut off, the stream ends with an error: only a whole backup ends in order.
            let frame = match in_time(SILENCE, body.frame()).await? {
                None => break,
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    return Err(Failure::Unreachable(format!(
                        "the backup broke off: {error}"
                    )));
                }
            };
            if let Some(data) = frame.data_ref() {
                file.write_all(data).with_context(writing)?;
                bytes += data.len() as u64;
                progress.set(bytes);
            }
        }
        progress.finish();
        file.sync_all().with_context(writing)?;
        Ok(bytes)
    }

    fn keep(mut self, out: &Path) -> Result<(), Failure> {
        // Does not replace what was made meanwhile.
        fs::hard_link(&self.path, out)
            .or_else(|error| match error.kind() {
                std::io::ErrorKind::AlreadyExists => Err(error),
                // A file system without links.
                _ => {
                    self.kept = true;
                    fs::rename(&self.path, out)
                }
            })
            .with_context(|| format!("cannot make {}", out.display()))?;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Restores a backup into an empty store, on the orchestrator's host: it runs `hy2-orchestrator
/// restore`, which needs the configuration and the master key file that belongs to the backup.
///
/// There is no such request to a running orchestrator: it would have to change authority, signing
/// keys and accounts under its own feet, and whoever may send it would own the fleet.
#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// The backup
    #[arg(short, long = "in", value_name = "FILE")]
    input: PathBuf,

    /// The orchestrator's configuration
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "/etc/hy2/orchestrator.yaml"
    )]
    config: PathBuf,

    /// File with the passphrase, "-" for standard input; else HY2_BACKUP_PASSPHRASE or a question
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,

    /// Only see whether the backup opens and fits, and change nothing
    #[arg(long)]
    check: bool,
}

impl Restore {
    pub(crate) fn run(self, common: &Common) -> Result<ExitCode, Failure> {
        if !self.check {
            let what = format!(
                "Restore {} into the store of this host",
                self.input.display()
            );
            confirm(common.yes, &what)?;
        }
        let file = self.passphrase_file.as_deref();
        let passphrase = ask::secret("passphrase", file, PASSPHRASE, false)?;
        // Beside this program, or wherever programs are.
        let name = format!("hy2-orchestrator{}", std::env::consts::EXE_SUFFIX);
        let beside = std::env::current_exe()
            .ok()
            .map(|me| me.with_file_name(&name));
        let program = beside
            .filter(|path| path.exists())
            .unwrap_or_else(|| name.into());
        let mut command = Command::new(&program);
        command
            .arg("--config")
            .arg(&self.config)
            .args(["restore", "--in"])
            .arg(&self.input)
            .env(PASSPHRASE, passphrase.as_str());
        if self.check {
            command.arg("--check");
        }
        let status = command
            .status()
            .with_context(|| format!("cannot run {}", program.display()))?;
        match status.code() {
            Some(0) => Ok(ExitCode::SUCCESS),
            _ => Ok(ExitCode::FAILURE),
        }
    }
}
