//! Logs of a process: for people on a terminal, as JSON for machines, always on stderr.

use std::{fmt, io, io::IsTerminal, str::FromStr};

use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    fmt::time::SystemTime,
    layer::{Identity, SubscriberExt},
    util::SubscriberInitExt,
};

/// Crates whose logs the level is about; the others only warn, unless everything is asked for.
const OURS: [&str; 8] = [
    "hy2",
    "hy2_agent",
    "hy2_agent_sdk",
    "hy2_core",
    "hy2_daemon_runtime",
    "hy2_master_sdk",
    "hy2_orchestrator",
    "hy2_proto",
];

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people; coloured if stderr is a terminal.
    #[default]
    Console,
    /// One JSON object per line.
    Json,
}

impl FromStr for Format {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            // A variable that compose files set to nothing is not set.
            "" => Ok(Self::default()),
            "console" => Ok(Self::Console),
            "json" => Ok(Self::Json),
            _ => Err("must be console or json"),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Console => "console",
            Self::Json => "json",
        })
    }
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    /// What is broken.
    Error,
    /// What is odd, too.
    Warn,
    /// What changes, too.
    #[default]
    Info,
    /// Decisions about single connections, too. Addresses and destinations appear from here on.
    Debug,
    /// Everything, dependencies included.
    Trace,
}

impl FromStr for Level {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "" => Ok(Self::default()),
            "error" => Ok(Self::Error),
            "warn" | "warning" => Ok(Self::Warn),
            "info" => Ok(Self::Info),
            "debug" => Ok(Self::Debug),
            "trace" => Ok(Self::Trace),
            _ => Err("must be error, warn, info, debug or trace"),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        })
    }
}

/// Installs the process's log subscriber, once.
///
/// # Errors
///
/// If one is installed already.
pub fn init(level: Level, format: Format) -> anyhow::Result<()> {
    init_with(level, format, None::<Identity>)
}

/// Installs the process's log subscriber and `extra` beside it, which sees debug and above of our
/// own crates.
///
/// # Errors
///
/// If one is installed already.
pub fn init_with<L>(level: Level, format: Format, extra: Option<L>) -> anyhow::Result<()>
where
    L: Layer<Registry> + Send + Sync + 'static,
{
    let extra = extra.map(|layer| layer.with_filter(filter(Level::Debug)));
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = match format {
        Format::Json => lines.json().flatten_event(true).boxed(),
        Format::Console => lines
            .with_timer(SystemTime)
            .with_target(level >= Level::Debug)
            .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(extra)
        .with(lines.with_filter(filter(level)))
        .try_init()
        .map_err(|error| anyhow::anyhow!("cannot install the log subscriber: {error}"))
}

fn filter(level: Level) -> EnvFilter {
    if level == Level::Trace {
        return EnvFilter::new("trace");
    }
    let others = level.min(Level::Warn);
    let mut filter = others.to_string();
    for name in OURS {
        filter.push_str(&format!(",{name}={level}"));
    }
    EnvFilter::new(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_any_case_and_printed_back() {
        for name in ["error", "warn", "info", "debug", "trace"] {
            assert_eq!(
                name.to_uppercase()
                    .parse::<Level>()
                    .expect(name)
                    .to_string(),
                name
            );
        }
        for name in ["console", "json"] {
            assert_eq!(name.parse::<Format>().expect(name).to_string(), name);
        }
        assert_eq!("".parse(), Ok(Level::default()));
        assert_eq!("".parse(), Ok(Format::default()));
        assert!("loud".parse::<Level>().is_err() && "xml".parse::<Format>().is_err());
    }

    #[test]
    fn dependencies_are_quieter_than_we_are() {
        let text = filter(Level::Debug).to_string();
        assert!(
            text.contains("hy2_core=debug") && text.contains("warn"),
            "{text}"
        );
        assert!(filter(Level::Error).to_string().contains("hy2=error"));
    }
}
