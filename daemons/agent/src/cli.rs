//! The command line.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use hy2_daemon_runtime::logging;

/// Node of a fleet of Hysteria 2 servers.
#[derive(Debug, Parser)]
#[command(name = "hy2-agent", version, about, propagate_version = true)]
pub(crate) struct Cli {
    /// Configuration file, YAML or JSON
    #[arg(short, long, global = true, value_name = "FILE")]
    #[arg(default_value = "/etc/hy2/agent.yaml")]
    pub(crate) config: PathBuf,

    /// How much to log: error, warn, info, debug or trace
    #[arg(short, long, global = true, value_name = "LEVEL", default_value_t)]
    #[arg(env = "HY2_LOG_LEVEL")]
    pub(crate) log_level: logging::Level,

    /// How log lines look: console or json
    #[arg(long, global = true, value_name = "FORMAT", default_value_t)]
    #[arg(env = "HY2_LOG_FORMAT")]
    pub(crate) log_format: logging::Format,

    /// Threads to work on [default: one for each processor]
    #[arg(long, global = true, value_name = "NUMBER", env = "HY2_THREADS")]
    pub(crate) threads: Option<NonZeroUsize>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Trade a one-time token for an identity and exit
    Enrol(Enrol),
    /// Run until SIGTERM
    Run(Run),
    /// Ask the agent that runs on this host how it is
    Status,
    /// Read the configuration, say what is wrong with it and exit
    Check,
}

#[derive(Debug, Args)]
pub(crate) struct Enrol {
    /// The CA that the master must prove to belong to, `sha256:HEX`; shown with the token
    #[arg(long, value_name = "PIN")]
    pub(crate) ca_pin: String,

    /// File that holds the token, "-" for standard input
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub(crate) token_file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Serve Prometheus metrics on this address
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics: Option<SocketAddr>,
}
