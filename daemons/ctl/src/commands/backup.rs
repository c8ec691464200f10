//! Backups.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, anyhow};
use clap::Args;
use http::Method;
use http_body_util::BodyExt;
use hy2_daemon_runtime::NewFile;
use hyper::body::Incoming;
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
        let making = || format!("cannot make {shown}");
        let mut file = NewFile::create(&self.out).with_context(making)?;
        let bytes = receive(response.into_body(), file.file(), output).await?;
        file.keep().with_context(making)?;
        output.note("the master key file is not in it: keep a copy of it elsewhere");
        output.done(
            &json!({"file": shown, "bytes": bytes}),
            &format!("{shown}: {bytes} bytes"),
        )
    }
}

/// Takes a backup as it comes.
async fn receive(mut body: Incoming, file: &mut fs::File, output: &Output) -> Result<u64, Failure> {
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
            file.write_all(data).context("cannot write the backup")?;
            bytes += data.len() as u64;
            progress.set(bytes);
        }
    }
    progress.finish();
    Ok(bytes)
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
    pub(crate) fn run(self, common: &Common, output: &Output) -> Result<(), Failure> {
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
        let running = || format!("cannot run {}", program.display());
        if !output.is_json() {
            let status = command.status().with_context(running)?;
            return match status.success() {
                true => Ok(()),
                // It has said why.
                false => Err(Failure::Said),
            };
        }
        let ran = command
            .stdin(Stdio::inherit())
            .output()
            .with_context(running)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if !ran.status.success() {
            let said = text(&ran.stderr);
            let said = said.strip_prefix("hy2-orchestrator: ").unwrap_or(&said);
            return Err(Failure::Local(match said.is_empty() {
                true => anyhow!("hy2-orchestrator ended with {}", ran.status),
                false => anyhow!("{said}"),
            }));
        }
        let file = self.input.display().to_string();
        let answer = json!({"file": file, "restored": !self.check, "said": text(&ran.stdout)});
        output.done(&answer, "")
    }
}
