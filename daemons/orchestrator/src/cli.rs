//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use hy2_daemon_runtime::logging;

use crate::config::Role;

/// Orchestrator of a fleet of Hysteria 2 nodes.
#[derive(Debug, Parser)]
#[command(name = "hy2-orchestrator", version, about, propagate_version = true)]
pub(crate) struct Cli {
    /// Configuration file, YAML or JSON
    #[arg(short, long, global = true, value_name = "FILE")]
    #[arg(default_value = "/etc/hy2/orchestrator.yaml")]
    pub(crate) config: PathBuf,

    /// How much to log: error, warn, info, debug or trace
    #[arg(short, long, global = true, value_name = "LEVEL", default_value_t)]
    #[arg(env = "HY2_LOG_LEVEL")]
    pub(crate) log_level: logging::Level,

    /// How log lines look: console or json
    #[arg(long, global = true, value_name = "FORMAT", default_value_t)]
    #[arg(env = "HY2_LOG_FORMAT")]
    pub(crate) log_format: logging::Format,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run until SIGTERM. The first run prints the first administrator's password, once
    Run(Run),
    /// Read the configuration, say what is wrong with it and exit
    Check,
    /// Bring the database to this version's schema and exit
    Migrate,
    /// Write an encrypted backup of the whole store; an orchestrator may run meanwhile
    Backup(Backup),
    /// Restore a backup into a store that is empty, best one that is not there yet
    Restore(Restore),
    /// Sign access tokens with a new key, as after a theft: those in use are refused within a minute;
    /// sessions go on
    RotateTokens,
    /// Exchange the private authority that nodes trust: prepare, activate, retire
    #[command(subcommand)]
    Ca(Ca),
    /// Give an administrator a new password, print it, and end that administrator's sessions
    RecoverAdmin {
        /// Login name
        username: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Do only this; may be given several times, and goes before `roles` of the file
    #[arg(long = "role", value_name = "ROLE")]
    pub(crate) roles: Vec<Role>,

    /// Serve Prometheus metrics on this address, to whoever reaches it
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics: Option<SocketAddr>,
}

#[derive(Debug, Args)]
pub(crate) struct Backup {
    /// Write it to this file, which must not exist
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,

    /// File with the passphrase, at least 12 characters, "-" for standard input; else
    /// HY2_BACKUP_PASSPHRASE
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// The backup
    #[arg(long = "in", value_name = "FILE")]
    pub(crate) input: PathBuf,

    /// File with the passphrase, "-" for standard input; else HY2_BACKUP_PASSPHRASE
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,

    /// Only see whether it opens and fits, and change nothing
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ca {
    /// List the authorities: pin, state and end
    Show,
    /// Make the next one; nodes learn to trust it
    Prepare,
    /// Let the next one take over; nodes renew their certificates
    Activate {
        /// Leave behind nodes that have not been here since it was prepared
        #[arg(long)]
        force: bool,
    },
    /// Issue a certificate with which an operator reaches NodeManager on the loopback port of every node
    IssueOperator {
        /// Whose it is, for the audit log
        #[arg(long)]
        name: String,

        /// How long it is valid; nodes do not ask whether it was revoked
        #[arg(long, default_value_t = 7)]
        days: u32,

        /// Write key, certificate and the authority to this file (PEM), which must not exist; - is standard output
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Remove the ones before; nodes trust them no more
    Retire {
        /// Leave behind nodes that have not renewed
        #[arg(long)]
        force: bool,
    },
}
