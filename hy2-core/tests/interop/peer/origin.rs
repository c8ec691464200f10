//! Targets on loopback, and the port fan that stands for a redirect rule and a NAT.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{CallError, Peer, Version};

const COMMAND: Duration = Duration::from_secs(10);

/// What a port counted.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(crate) struct Port {
    /// Connections, or datagrams of a UDP port.
    pub(crate) accepted: u64,
    /// Connections open at the moment.
    pub(crate) open: i64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
}

/// Targets in one process; the fields are `address:port`.
#[derive(Debug)]
pub(crate) struct Origin {
    peer: Peer,
    /// Returns every byte.
    pub(crate) echo: String,
    /// Sends what the line `<bytes> <seed>` asks for.
    pub(crate) source: String,
    /// Swallows what the line `<bytes>` announces and answers with a hash.
    pub(crate) sink: String,
    /// Speaks first.
    pub(crate) banner: String,
    /// A sink that stops reading for a while.
    pub(crate) stall: String,
    /// Closes at once.
    pub(crate) closer: String,
    /// Answers the first byte with a reset.
    pub(crate) resetter: String,
    /// Swallows everything and says nothing.
    pub(crate) silent: String,
    /// Refuses.
    pub(crate) refused: String,
    /// Return every datagram.
    pub(crate) udp_echo: Vec<String>,
    /// Returns every datagram from `udp_cone_reply`.
    pub(crate) udp_cone: String,
    pub(crate) udp_cone_reply: String,
    /// Swallows every datagram.
    pub(crate) udp_sink: String,
}

impl Origin {
    /// What the banner port says.
    pub(crate) const BANNER: &str = "220 banner.hy2.test ready\r\n";

    /// Starts all targets.
    pub(crate) async fn start() -> Self {
        let peer = Peer::spawn("origin", Version::Current, &json!({}))
            .await
            .unwrap_or_else(|fault| panic!("the origin refused its defaults: {fault}"));
        Self {
            echo: peer.ready_text("echo"),
            source: peer.ready_text("source"),
            sink: peer.ready_text("sink"),
            banner: peer.ready_text("banner"),
            stall: peer.ready_text("stall"),
            closer: peer.ready_text("closer"),
            resetter: peer.ready_text("resetter"),
            silent: peer.ready_text("silent"),
            refused: peer.ready_text("refused"),
            udp_echo: peer.ready["udp_echo"]
                .as_array()
                .expect("udp_echo is a list")
                .iter()
                .filter_map(|a| a.as_str().map(str::to_owned))
                .collect(),
            udp_cone: peer.ready_text("udp_cone"),
            udp_cone_reply: peer.ready_text("udp_cone_reply"),
            udp_sink: peer.ready_text("udp_sink"),
            peer,
        }
    }

    /// The counters of each port, by the names in the ready line (`udp_echo_0` and so on).
    ///
    /// # Errors
    /// A fault means that the peer is broken.
    pub(crate) async fn ports(&self) -> Result<BTreeMap<String, Port>, CallError> {
        #[derive(Deserialize)]
        struct Stats {
            ports: BTreeMap<String, Port>,
        }
        self.peer
            .call::<Stats>("stats", json!({}), COMMAND)
            .await
            .map(|s| s.ports)
    }

    /// Waits until no connection is open, which shows that the proxy left nothing behind.
    ///
    /// # Errors
    /// A fault means that the peer is broken.
    ///
    /// # Panics
    /// When connections are still open after `limit`.
    pub(crate) async fn all_closed(&self, limit: Duration) -> Result<(), CallError> {
        let start = tokio::time::Instant::now();
        loop {
            let open: Vec<_> = self
                .ports()
                .await?
                .into_iter()
                .filter(|(_, p)| p.open > 0)
                .collect();
            if open.is_empty() {
                return Ok(());
            }
            assert!(
                start.elapsed() < limit,
                "still open after {limit:?}: {open:?}"
            );
            // The peer has no event for this: ask again.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Ports that all lead to one server, each client address by a socket of its own.
#[derive(Debug)]
pub(crate) struct Fan {
    peer: Peer,
    pub(crate) ports: Vec<u16>,
}

impl Fan {
    /// Opens `ports` loopback ports in front of `target`.
    pub(crate) async fn start(target: impl ToString, ports: u16) -> Self {
        let peer = Peer::spawn(
            "fan",
            Version::Current,
            &json!({"target": target.to_string(), "ports": ports}),
        )
        .await
        .unwrap_or_else(|fault| panic!("the fan refused {ports} ports: {fault}"));
        let ports = Vec::deserialize(&peer.ready["ports"]).expect("ports is a list of numbers");
        Self { peer, ports }
    }

    /// `127.0.0.1:` and the list of ports, as clients with port hopping take it.
    pub(crate) fn addr(&self) -> String {
        let ports: Vec<String> = self.ports.iter().map(ToString::to_string).collect();
        format!("127.0.0.1:{}", ports.join(","))
    }

    /// Moves every flow to a new socket, as a NAT that forgot.
    ///
    /// # Errors
    /// A fault means that the peer is broken.
    pub(crate) async fn rebind(&self) -> Result<(), CallError> {
        self.peer
            .call::<Value>("rebind", json!({}), COMMAND)
            .await
            .map(|_| ())
    }

    /// How many flows there have been: one for each port, client address and rebinding.
    ///
    /// # Errors
    /// A fault means that the peer is broken.
    pub(crate) async fn flows_opened(&self) -> Result<u64, CallError> {
        #[derive(Deserialize)]
        struct Stats {
            flows_opened: u64,
        }
        self.peer
            .call::<Stats>("stats", json!({}), COMMAND)
            .await
            .map(|s| s.flows_opened)
    }
}
