//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use hy2_daemon_runtime::logging;

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
    Run,
    /// Read the configuration, say what is wrong with it and exit
    Check,
    /// Bring the database to this version's schema and exit
    Migrate,
    /// Exchange the private authority that nodes trust: prepare, activate, retire
    #[command(subcommand)]
    Ca(Ca),
    /// Give an administrator a new password, print it, and end that administrator's sessions
    RecoverAdmin {
        /// Login name
        username: String,
    },
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
    /// Remove the ones before; nodes trust them no more
    Retire {
        /// Leave behind nodes that have not renewed
        #[arg(long)]
        force: bool,
    },
}
