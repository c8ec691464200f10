//! The reference server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::ClientTls;
use super::{CallError, Congestion, Fault, Obfs, Peer, Version};

const COMMAND: Duration = Duration::from_secs(10);

/// The configuration line of `peer server`; `default()` needs only a password.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct ServerConfig {
    pub(crate) listen: String,
    pub(crate) tls_cert: String,
    pub(crate) tls_key: String,
    pub(crate) client_ca: String,
    pub(crate) password: String,
    pub(crate) users: BTreeMap<String, String>,
    pub(crate) obfs: Obfs,
    /// Enables [`Server::tamper`] and wire counters, without GSO.
    pub(crate) tamper: bool,
    /// Bytes per second, 0 for no limit.
    pub(crate) tx: u64,
    pub(crate) rx: u64,
    pub(crate) ignore_client_bandwidth: bool,
    pub(crate) disable_loss_compensation: bool,
    pub(crate) congestion: Congestion,
    pub(crate) disable_udp: bool,
    /// 0 for 60 s; at least 2 s.
    pub(crate) udp_idle_timeout_ms: u64,
    /// Accept TCP requests before the target is dialled.
    pub(crate) hook_tcp: bool,
    pub(crate) speedtest: bool,
    pub(crate) masquerade: Masquerade,
    pub(crate) outbound: Outbound,
    pub(crate) quic: ServerQuic,
    pub(crate) no_traffic: bool,
    /// Empty or `all`, `connections`, `none`.
    pub(crate) events: &'static str,
    pub(crate) fixed_reset_key: bool,
}

impl ServerConfig {
    /// A server with one password and the defaults.
    pub(crate) fn with_password(password: &str) -> Self {
        Self {
            password: password.to_owned(),
            ..Self::default()
        }
    }
}

/// The site for the unauthenticated; `default()` is the library's 404.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Masquerade {
    pub(crate) content: &'static str,
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<&'static str, &'static str>,
}

/// Where the server may connect; `default()` is loopback only.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Outbound {
    pub(crate) any: bool,
    pub(crate) dial_delay_ms: u64,
}

/// QUIC numbers, 0 for the library's.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct ServerQuic {
    pub(crate) max_idle_timeout_ms: u64,
    pub(crate) max_incoming_streams: u64,
    pub(crate) stream_window: u64,
    pub(crate) conn_window: u64,
    pub(crate) disable_path_mtu: bool,
    pub(crate) disable_gso: bool,
}

/// Bytes of one user, as the reference counts them: `tx` is towards the target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Traffic {
    pub(crate) tx: u64,
    pub(crate) rx: u64,
}

/// The `stats` answer, without what only benches read.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ServerStats {
    pub(crate) running: bool,
    pub(crate) traffic: BTreeMap<String, Traffic>,
    /// Connections of each user.
    pub(crate) online: BTreeMap<String, u64>,
    pub(crate) process: Value,
    #[serde(default)]
    pub(crate) wire: Value,
}

/// A running reference server.
#[derive(Debug)]
pub(crate) struct Server {
    peer: Peer,
    pub(crate) addr: SocketAddr,
    /// SHA-256 of the leaf certificate, hex.
    pub(crate) pin: String,
    /// A name in the certificate.
    pub(crate) sni: String,
    /// PEM files.
    pub(crate) cert: String,
    pub(crate) key: String,
}

impl Server {
    /// Starts a server on the current library.
    ///
    /// # Errors
    /// The fault of a refused configuration.
    pub(crate) async fn start(config: &ServerConfig) -> Result<Self, Fault> {
        Self::start_version(Version::Current, config).await
    }

    /// Starts a server on a chosen library.
    ///
    /// # Errors
    /// The fault of a refused configuration.
    pub(crate) async fn start_version(
        version: Version,
        config: &ServerConfig,
    ) -> Result<Self, Fault> {
        let peer = Peer::spawn("server", version, config).await?;
        let addr = peer
            .ready_text("addr")
            .parse()
            .expect("the server prints its socket address");
        Ok(Self {
            addr,
            pin: peer.ready_text("pin"),
            sni: peer.ready_text("sni"),
            cert: peer.ready_text("cert"),
            key: peer.ready_text("key"),
            peer,
        })
    }

    /// TLS settings of a reference client that trusts this server by its pin.
    pub(crate) fn trust(&self) -> ClientTls {
        ClientTls {
            sni: self.sni.clone(),
            insecure: true,
            pin: self.pin.clone(),
            ..ClientTls::default()
        }
    }

    /// Takes an `auth` event: `accepted`, `user`, `client_rx` (the announced CC-RX).
    pub(crate) async fn auth(&self) -> Value {
        self.peer.event("auth", |_| true).await
    }

    /// Takes a `connect` event of a user and returns the Brutal rate in use, 0 for none.
    pub(crate) async fn connected(&self, user: &str) -> u64 {
        let event = self.peer.event("connect", |e| e["user"] == user).await;
        event["tx"].as_u64().expect("connect events carry tx")
    }

    /// Takes a `disconnect` event of a user and returns its fault, if it was not clean.
    pub(crate) async fn disconnected(&self, user: &str) -> Option<Fault> {
        let event = self.peer.event("disconnect", |e| e["user"] == user).await;
        event.get("error").map(super::fault::parse)
    }

    /// Waits until a TCP request for `target` has come.
    pub(crate) async fn tcp_requested(&self, target: &str) {
        self.peer
            .event("tcp_request", |e| e["target"] == target)
            .await;
    }

    /// Waits for the end of a TCP stream to `target` and returns its fault, if it was not clean.
    pub(crate) async fn tcp_ended(&self, target: &str) -> Option<Fault> {
        let event = self.peer.event("tcp_end", |e| e["target"] == target).await;
        event.get("error").map(super::fault::parse)
    }

    /// Waits for a new UDP session to `target` and returns its number.
    pub(crate) async fn udp_requested(&self, target: &str) -> u64 {
        let event = self
            .peer
            .event("udp_request", |e| e["target"] == target)
            .await;
        event["session"]
            .as_u64()
            .expect("udp_request events carry the session")
    }

    /// Waits for the end of a UDP session.
    pub(crate) async fn udp_ended(&self, session: u64) -> Option<Fault> {
        let event = self
            .peer
            .event("udp_end", |e| e["session"] == session)
            .await;
        event.get("error").map(super::fault::parse)
    }

    /// Takes all events of a name that have arrived.
    pub(crate) fn events_so_far(&self, name: &str) -> Vec<Value> {
        self.peer.events_so_far(name)
    }

    /// Counters and connections.
    ///
    /// # Errors
    /// A fault means that the peer is broken.
    pub(crate) async fn stats(&self) -> Result<ServerStats, CallError> {
        self.peer.call("stats", json!({}), COMMAND).await
    }

    /// Arms the reference's kick: one connection of the user, at its next byte, with 0x107.
    ///
    /// # Errors
    /// `usage` with `no_traffic`.
    pub(crate) async fn kick(&self, user: &str) -> Result<(), CallError> {
        self.peer.call("kick", json!({"user": user}), COMMAND).await
    }

    /// Kicks every connection of the user at its next byte, until [`Self::unban`].
    ///
    /// # Errors
    /// `usage` with `no_traffic`.
    pub(crate) async fn ban(&self, user: &str) -> Result<(), CallError> {
        self.peer
            .call("kick", json!({"user": user, "sticky": true}), COMMAND)
            .await
    }

    /// Ends [`Self::ban`].
    ///
    /// # Errors
    /// A fault means that the peer is broken.
    pub(crate) async fn unban(&self, user: &str) -> Result<(), CallError> {
        self.peer
            .call("unkick", json!({"user": user}), COMMAND)
            .await
    }

    /// Reverses packets within windows of `reverse_ms` and drops each `drop_every`-th; 0 and 0 is off.
    ///
    /// # Errors
    /// `usage` without `tamper` in the configuration.
    pub(crate) async fn tamper(&self, reverse_ms: u64, drop_every: u64) -> Result<(), CallError> {
        self.peer
            .call(
                "tamper",
                json!({"reverse_ms": reverse_ms, "drop_every": drop_every}),
                COMMAND,
            )
            .await
    }

    /// Closes the sockets without a word to the clients, which is all the reference can do.
    ///
    /// # Errors
    /// What closing reported.
    pub(crate) async fn stop(&self) -> Result<(), CallError> {
        self.peer.call("stop", json!({}), COMMAND).await
    }

    /// Listens again on the same port.
    ///
    /// # Errors
    /// What listening reported.
    pub(crate) async fn start_again(&self) -> Result<(), CallError> {
        self.peer
            .call::<Value>("start", json!({}), COMMAND)
            .await
            .map(|_| ())
    }
}
