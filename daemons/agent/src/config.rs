//! The configuration file.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::bail;
use hy2_agent_sdk::AgentConfig;
use hy2_daemon_runtime::configuration;
use serde::Deserialize;

/// What the file says. Every key but `dataDir` and `masters` has a default.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Config {
    /// Key, state and counters; for the agent alone.
    data_dir: PathBuf,
    /// `host:port` of each master.
    masters: Vec<String>,
    /// Wanted name. Default: the host's.
    #[serde(default)]
    name: String,
    /// How clients reach this node. Default: what the master sees.
    #[serde(default)]
    public_host: String,
    /// Hysteria port to announce at enrolment. Default: 8080.
    #[serde(default)]
    listen_port: u16,
    /// NodeManager for this host, mode 0600. Default: agent.sock in `dataDir`.
    #[serde(default)]
    local_socket: Option<PathBuf>,
    /// NodeManager over loopback with mutual TLS, such as 127.0.0.1:50051. Default: none.
    #[serde(default)]
    loopback: Option<SocketAddr>,
    /// What unacknowledged traffic may take on disk before batches are merged. Default: 256.
    #[serde(default)]
    spool_mebibytes: Option<u64>,
    /// Longest pause before a master that cannot be reached is dialled again, such as `30s`.
    /// Default: 60s.
    #[serde(default)]
    reconnect_max: Option<Interval>,
}

/// A span of time from 100 ms to an hour.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct Interval(Duration);

impl TryFrom<String> for Interval {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        hy2_daemon_runtime::interval(&text).map(Self)
    }
}

impl Config {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let config: Self = configuration(path)?;
        match config.check() {
            Ok(()) => Ok(config),
            Err(mistakes) => bail!("{}: {mistakes}", path.display()),
        }
    }

    /// Judges what the types of the values do not.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut mistakes = self.agent().mistakes();
        if self.data_dir.as_os_str().is_empty() {
            mistakes.push("dataDir: must be a folder".to_owned());
        }
        let is_host = |host: &str| host.parse::<IpAddr>().is_ok() || url::Host::parse(host).is_ok();
        if !self.public_host.is_empty() && !is_host(&self.public_host) {
            mistakes.push("publicHost: must be a host name or an address".to_owned());
        }
        if mistakes.is_empty() {
            return Ok(());
        }
        // As the file calls them.
        Err(mistakes.join("; ").replace("spool_cap", "spoolMebibytes"))
    }

    /// Returns what the agent is configured with.
    pub(crate) fn agent(&self) -> AgentConfig {
        let mut config = AgentConfig::new(&self.data_dir, self.masters.clone());
        config.name.clone_from(&self.name);
        config.public_host.clone_from(&self.public_host);
        config.listen_port = self.listen_port;
        config.loopback = self.loopback;
        if let Some(socket) = &self.local_socket {
            config.local_socket = Some(socket.clone());
        }
        if let Some(Interval(longest)) = self.reconnect_max {
            config.reconnect = (config.reconnect.0.min(longest), longest);
        }
        if let Some(mebibytes) = self.spool_mebibytes {
            config.spool_cap = mebibytes.saturating_mul(1 << 20);
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        Config::read(file.path()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn the_least_file_is_enough() {
        let agent = read("dataDir: /var/lib/hy2\nmasters: ['master:50052']\n")
            .expect("right")
            .agent();
        assert_eq!(agent.local_socket, Some("/var/lib/hy2/agent.sock".into()));
        assert_eq!(agent.spool_cap, 256 << 20);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, wanted) in [
            ("masters: ['a:1']", "dataDir"),
            ("dataDir: /x", "masters"),
            ("dataDir: /x\nmasters: ['a:1']\ncolour: red", "colour"),
            (
                "dataDir: /x\nmasters: ['a:1']\nlistenPort: 99999",
                "listenPort",
            ),
            ("dataDir: /x\nmasters: ['a:1']\nloopback: here", "loopback"),
            ("dataDir: ''\nmasters: ['a:1']", "dataDir: must be a folder"),
            ("dataDir: /x\nmasters: []", "masters: at least one"),
            ("dataDir: /x\nmasters: ['a:1', nohost]", "masters[1]"),
            (
                "dataDir: /x\nmasters: ['a:1']\nloopback: 0.0.0.0:50051",
                "loopback: 0.0.0.0",
            ),
            (
                "dataDir: /x\nmasters: ['a:1']\nspoolMebibytes: 0",
                "spoolMebibytes: must",
            ),
            (
                "dataDir: /x\nmasters: ['a:1']\npublicHost: 'bad host!/'",
                "publicHost",
            ),
            (
                "dataDir: /x\nmasters: ['a:1']\nreconnectMax: 2h",
                "between 100ms and 60m",
            ),
        ] {
            let error = read(text).expect_err(text);
            assert!(!error.contains('\n'), "{error}");
            assert!(
                error.to_lowercase().contains(&wanted.to_lowercase()),
                "{wanted} not in {error}"
            );
        }
    }
}
