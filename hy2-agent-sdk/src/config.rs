//! What an embedder configures.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use zeroize::Zeroizing;

/// Settings of an agent. Only the folder and, until the node is enrolled, [`Enrolment`] are
/// needed; the masters' addresses come with it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AgentConfig {
    /// Where the agent keeps its key, its state and its counters; for the agent alone.
    pub data_dir: PathBuf,
    /// The masters, `host:port`, tried in turn.
    pub masters: Vec<String>,
    /// How to become a node. Not looked at when the node has an identity already.
    pub enrolment: Option<Enrolment>,
    /// Name to ask for; empty: the host's name.
    pub name: String,
    /// Name or address under which clients reach the node; empty: what the master sees.
    pub public_host: String,
    /// Hysteria port to announce; 0: 8080.
    pub listen_port: u16,
    /// Unix socket on which NodeManager is served, mode 0600. Default: `agent.sock` in the data
    /// folder. `None`: none.
    pub local_socket: Option<PathBuf>,
    /// TCP address on which NodeManager is served with mutual TLS. Must be loopback; users of the
    /// proxy may reach it. Default: none.
    pub loopback: Option<SocketAddr>,
    /// Bytes that unacknowledged traffic may take on disk before batches are merged. Default
    /// 256 MiB.
    pub spool_cap: u64,
    /// Time between two cuts of the counters, until the master says otherwise. Default 10 s.
    pub traffic_interval: Duration,
    /// Shortest and longest pause before the master is dialled again. Default 0.5 s to 60 s.
    pub reconnect: (Duration, Duration),
    /// How long connections may finish when the agent ends. Default 10 s.
    pub stop_grace: Duration,
}

impl AgentConfig {
    /// Returns settings with defaults around the two that have none.
    pub fn new(data_dir: impl Into<PathBuf>, masters: Vec<String>) -> Self {
        let data_dir = data_dir.into();
        Self {
            local_socket: Some(data_dir.join("agent.sock")),
            data_dir,
            masters,
            enrolment: None,
            name: String::new(),
            public_host: String::new(),
            listen_port: 0,
            loopback: None,
            spool_cap: 256 << 20,
            traffic_interval: Duration::from_secs(10),
            reconnect: (Duration::from_millis(500), Duration::from_secs(60)),
            stop_grace: Duration::from_secs(10),
        }
    }

    /// Names everything that is wrong, each with its field; nothing works with such settings.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if self.masters.is_empty() {
            mistakes.push("masters: at least one address is needed".to_owned());
        }
        for (at, master) in self.masters.iter().enumerate() {
            if !master
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
            {
                mistakes.push(format!("masters[{at}]: {master:?} is not host:port"));
            }
        }
        if let Some(address) = self.loopback
            && !address.ip().is_loopback()
        {
            mistakes.push(format!("loopback: {address} is not a loopback address"));
        }
        if self.spool_cap < MIN_SPOOL_CAP {
            mistakes.push(format!("spool_cap: must be at least {MIN_SPOOL_CAP} bytes"));
        }
        if self.traffic_interval.is_zero() {
            mistakes.push("traffic_interval: must not be 0".to_owned());
        }
        if self.reconnect.0.is_zero() || self.reconnect.0 > self.reconnect.1 {
            mistakes.push("reconnect: must be a range above 0".to_owned());
        }
        mistakes
    }
}

const MIN_SPOOL_CAP: u64 = 64 << 10;

/// The one-time trade of a token for an identity.
#[derive(Clone)]
#[non_exhaustive]
pub struct Enrolment {
    /// The token, shown once by the master. Never written to disk by the agent.
    pub token: Zeroizing<String>,
    /// The CA that the master must prove to belong to.
    pub ca_pin: CaPin,
}

impl Enrolment {
    /// Trades `token` with a master whose CA has the pinned key.
    pub fn new(token: impl Into<String>, ca_pin: CaPin) -> Self {
        Self {
            token: Zeroizing::new(token.into()),
            ca_pin,
        }
    }
}

impl fmt::Debug for Enrolment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enrolment")
            .field("token", &"***")
            .field("ca_pin", &self.ca_pin)
            .finish()
    }
}

/// SHA-256 of a CA's public key (SubjectPublicKeyInfo, DER), written `sha256:<hex>`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CaPin(pub(crate) [u8; 32]);

/// The text is not `sha256:` and 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a CA pin is \"sha256:\" and 64 hexadecimal digits")]
pub struct CaPinError;

impl FromStr for CaPin {
    type Err = CaPinError;

    fn from_str(text: &str) -> Result<Self, CaPinError> {
        let digits = text.trim().strip_prefix("sha256:").ok_or(CaPinError)?;
        let mut pin = [0; 32];
        hex::decode_to_slice(digits, &mut pin).map_err(|_| CaPinError)?;
        Ok(Self(pin))
    }
}

impl fmt::Display for CaPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl fmt::Debug for CaPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaPin({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_read_as_they_are_printed_and_nothing_else_is() {
        let pin = CaPin([0xab; 32]);
        assert_eq!(pin.to_string().parse(), Ok(pin));
        for wrong in ["", "sha256:", "sha256:abcd", &"ab".repeat(32), "sha1:00"] {
            assert_eq!(wrong.parse::<CaPin>(), Err(CaPinError), "{wrong}");
        }
    }

    #[test]
    fn every_mistake_is_named_and_the_token_is_not_printed() {
        let mut config = AgentConfig::new("/tmp/x", vec!["master".into(), ":1".into()]);
        config.loopback = Some(([10, 0, 0, 1], 50051).into());
        config.spool_cap = 1;
        config.traffic_interval = Duration::ZERO;
        config.reconnect = (Duration::from_secs(2), Duration::from_secs(1));
        let text = config.mistakes().join("\n");
        for path in [
            "masters[0]",
            "masters[1]",
            "loopback",
            "spool_cap",
            "traffic_interval",
            "reconnect",
        ] {
            assert!(text.contains(path), "{path} not in {text}");
        }
        let enrolment = Enrolment {
            token: Zeroizing::new("hunter2".into()),
            ca_pin: CaPin([0; 32]),
        };
        assert!(!format!("{enrolment:?}").contains("hunter2"));
    }
}
