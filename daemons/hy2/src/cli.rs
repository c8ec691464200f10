//! The command line.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use hy2_daemon_runtime::logging;

/// Hysteria 2: server, client and tools.
#[derive(Debug, Parser)]
#[command(
    name = "hy2",
    version,
    about,
    propagate_version = true,
    after_help = "Exit codes: 0 done, 1 failed or wrong configuration, 2 wrong command line, \
                  3 the server refused the credentials, 4 the server's certificate was not \
                  accepted, 5 no answer from the server."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    /// Without one, a client runs, as with the official program
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Flags of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Configuration file, YAML or JSON [default: config.yaml, config.yml or config.json here, in
    /// ~/.hysteria or in /etc/hysteria]
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// How much to log: error, warn, info, debug or trace
    #[arg(short, long, global = true, value_name = "LEVEL", default_value_t)]
    #[arg(env = "HYSTERIA_LOG_LEVEL")]
    pub(crate) log_level: logging::Level,

    /// How log lines look: console or json
    #[arg(
        short = 'f',
        long,
        global = true,
        value_name = "FORMAT",
        default_value_t
    )]
    #[arg(env = "HYSTERIA_LOG_FORMAT")]
    pub(crate) log_format: logging::Format,

    /// Threads to work on [default: one for each processor]
    #[arg(long, global = true, value_name = "NUMBER", env = "HY2_THREADS")]
    pub(crate) threads: Option<NonZeroUsize>,

    /// Accepted for scripts of the official program; there is no update check
    #[arg(long, global = true, hide = true)]
    pub(crate) disable_update_check: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a server
    Server(Serve),
    /// Run a client
    Client(Run),
    /// Connect to the server and open one TCP connection to a target
    Ping(Ping),
    /// Measure the speed between client and server
    Speedtest(Speedtest),
    /// Print the share link of a client's configuration
    Share(Share),
    /// Make a self-signed certificate
    Cert(Cert),
    /// Print the version
    Version,
}

/// Flags of what runs until it is stopped.
#[derive(Debug, Default, Args)]
pub(crate) struct Run {
    /// Read the configuration, say what is wrong with it and exit
    #[arg(long)]
    pub(crate) check: bool,

    /// Serve Prometheus metrics on this address
    #[arg(long, value_name = "ADDRESS", env = "HY2_METRICS")]
    pub(crate) metrics: Option<SocketAddr>,
}

/// Flags of a server.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    pub(crate) run: Run,

    /// When told to end, wait so long for open streams
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = crate::config::duration)]
    pub(crate) drain: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Ping {
    /// Target, as in example.com:80
    pub(crate) target: String,
}

#[derive(Debug, Args)]
pub(crate) struct Speedtest {
    /// Leave the download out
    #[arg(long)]
    pub(crate) skip_download: bool,

    /// Leave the upload out
    #[arg(long, conflicts_with = "skip_download")]
    pub(crate) skip_upload: bool,

    /// How long each direction runs
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = seconds)]
    pub(crate) duration: Duration,

    /// Bytes per direction, in place of a time
    #[arg(long, value_name = "BYTES", conflicts_with = "duration")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..u32::MAX as i64))]
    pub(crate) data_size: Option<u32>,

    /// Show bytes per second, not bits
    #[arg(long)]
    pub(crate) use_bytes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Share {
    /// Do not print the link as text
    #[arg(long)]
    pub(crate) notext: bool,

    /// Print a QR code
    #[arg(long)]
    pub(crate) qr: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Cert {
    /// Host name or IP address that the certificate is for; may be given several times
    #[arg(long, value_name = "HOST", required = true)]
    pub(crate) host: Vec<String>,

    /// How many days it is valid
    #[arg(long, value_name = "DAYS", default_value_t = 3650)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub(crate) days: u32,

    /// Where to write the certificate
    #[arg(long, value_name = "FILE", default_value = "cert.pem")]
    pub(crate) cert: PathBuf,

    /// Where to write the key
    #[arg(long, value_name = "FILE", default_value = "key.pem")]
    pub(crate) key: PathBuf,

    /// Replace files that exist
    #[arg(long)]
    pub(crate) overwrite: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let duration = crate::config::duration(text)?;
    if duration < Duration::from_millis(100) || duration > Duration::from_secs(3600) {
        return Err("must be from 100ms to 1h".into());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
