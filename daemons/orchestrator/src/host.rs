//! What an operator does on the host, beside or before a running orchestrator.

use std::{
    io::{self, Read},
    path::Path,
};

use anyhow::{Context, bail};
use hy2_daemon_runtime::NewFile;
use hy2_master_sdk::{Master, backup::envelope::BackupKey, front::Front};
use zeroize::Zeroizing;

use crate::{
    cli::{Backup, Restore},
    config::Config,
    say, show,
};

/// Where a passphrase may come from.
const PASSPHRASE: &str = "HY2_BACKUP_PASSPHRASE";

/// Writes a backup, also while an orchestrator runs on the same store.
pub(crate) async fn backup(config: &Config, flags: &Backup) -> anyhow::Result<()> {
    let key = key(flags.passphrase_file.as_deref())?;
    let shown = flags.out.display();
    let making = || format!("cannot make {shown}");
    let mut file = NewFile::create(&flags.out).with_context(making)?;
    let out = tokio::fs::File::from_std(file.file().try_clone().with_context(making)?);
    let bytes = config.master().backup(&key, out).await?;
    file.keep().with_context(making)?;
    say(&format!(
        "{shown}: {bytes} bytes\nThe master key file is not in it: keep a copy of {} elsewhere.",
        config.key_file().display()
    ))
}

/// Restores a backup into a store that is empty, or only sees whether it would.
pub(crate) async fn restore(config: &Config, flags: &Restore) -> anyhow::Result<()> {
    let key = key(flags.passphrase_file.as_deref())?;
    let shown = flags.input.display();
    let file = tokio::fs::File::open(&flags.input).await;
    let file = file.with_context(|| format!("cannot read {shown}"))?;
    if flags.check {
        let found = config.master().check_backup(&key, file).await;
        let found = found.with_context(|| format!("{shown} cannot be restored"))?;
        return say(&format!("{shown}: ok, {} rows", found.rows));
    }
    let restored = config.master().restore(&key, file).await;
    let restored = restored.with_context(|| format!("{shown} was not restored"))?;
    say(&format!(
        "{} rows are restored, epoch {} begins. Nodes come back by themselves once an orchestrator \
         runs here and is reached by the names that they know.",
        restored.rows, restored.epoch
    ))
}

/// Gives an administrator a new password.
pub(crate) async fn recover(config: &Config, username: &str) -> anyhow::Result<()> {
    let (master, front) = quiet(config).await?;
    let credentials = front.service().recover_admin(username).await;
    front.shutdown().await;
    master.shutdown().await;
    show(&credentials?)
}

/// Signs access tokens with a new key.
pub(crate) async fn rotate_tokens(config: &Config) -> anyhow::Result<()> {
    let (master, front) = quiet(config).await?;
    let rotated = front.service().rotate_token_keys().await;
    front.shutdown().await;
    master.shutdown().await;
    rotated?;
    say("access tokens are signed with a new key")
}

/// Starts what there is to ask, without ports.
async fn quiet(config: &Config) -> anyhow::Result<(Master, Front)> {
    let master = config.master().start().await?;
    let mut settings = config.front();
    (settings.api, settings.public) = (None, None);
    // Its password would be seen by nobody: `run` makes it.
    settings.make_first_admin = false;
    let front = Front::start(&master, settings).await?;
    Ok((master, front))
}

/// Takes the passphrase from a file (`-`: standard input) or from the environment.
fn key(file: Option<&Path>) -> anyhow::Result<BackupKey> {
    let text = match file {
        Some(path) if path == Path::new("-") => {
            let mut text = Zeroizing::new(String::new());
            io::stdin()
                .read_to_string(&mut text)
                .context("passphrase")?;
            text
        }
        Some(path) => Zeroizing::new(
            std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?,
        ),
        None => Zeroizing::new(std::env::var(PASSPHRASE).unwrap_or_default()),
    };
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        bail!("no passphrase: give it in a file, on standard input, or in {PASSPHRASE}");
    }
    Ok(BackupKey::Passphrase(line.into()))
}
