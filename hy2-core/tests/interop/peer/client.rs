//! The reference client: connection and TCP. UDP is in `client_udp`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{CallError, Congestion, Fault, Obfs, Peer, Version};

/// The configuration line of `peer client` and `peer raw`.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct ClientConfig {
    /// `host:port`, or `host:ports` with `hop_interval_ms`.
    pub(crate) server: String,
    pub(crate) auth: String,
    pub(crate) tls: ClientTls,
    pub(crate) obfs: Obfs,
    /// Enables [`Client::tamper`] and wire counters, without GSO.
    pub(crate) tamper: bool,
    /// Bytes per second, 0 for unknown.
    pub(crate) tx: u64,
    pub(crate) rx: u64,
    pub(crate) disable_loss_compensation: bool,
    pub(crate) congestion: Congestion,
    pub(crate) fast_open: bool,
    pub(crate) no_parrot: bool,
    /// 0 for no port hopping; at least 5000.
    pub(crate) hop_interval_ms: u64,
    pub(crate) quic: ClientQuic,
}

impl ClientConfig {
    /// A client with the defaults.
    pub(crate) fn new(server: impl ToString, auth: &str, tls: ClientTls) -> Self {
        Self {
            server: server.to_string(),
            auth: auth.to_owned(),
            tls,
            ..Self::default()
        }
    }
}

/// TLS of a client; `pin` comes on top of normal verification unless `insecure`.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct ClientTls {
    pub(crate) sni: String,
    pub(crate) insecure: bool,
    pub(crate) pin: String,
    /// PEM files.
    pub(crate) ca: String,
    pub(crate) cert: String,
    pub(crate) key: String,
}

/// QUIC numbers, 0 for the library's.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct ClientQuic {
    /// 4 s to 120 s.
    pub(crate) max_idle_timeout_ms: u64,
    /// 2 s to 60 s.
    pub(crate) keep_alive_ms: u64,
    pub(crate) stream_window: u64,
    pub(crate) conn_window: u64,
    pub(crate) disable_path_mtu: bool,
    pub(crate) disable_gso: bool,
}

/// What the client learned in the handshake.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Handshake {
    pub(crate) udp: bool,
    /// The negotiated Brutal rate in bytes per second, 0 for none.
    pub(crate) tx: u64,
    /// Connections made so far, this one included.
    pub(crate) count: u64,
}

/// A checked transfer.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Transfer {
    pub(crate) bytes: u64,
    /// Empty when hashing was off.
    #[serde(default)]
    pub(crate) sha256: String,
    #[serde(default)]
    pub(crate) transfer_ms: f64,
    /// Only of early data: how long the open took.
    #[serde(default)]
    pub(crate) open_ms: f64,
}

/// The first bytes of a target.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Spoken {
    pub(crate) bytes: u64,
    pub(crate) text: String,
}

/// A run of many streams or sessions; `errors` counts the failures by text.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Run {
    #[serde(default)]
    pub(crate) opened: u64,
    pub(crate) completed: u64,
    pub(crate) errors: BTreeMap<String, u64>,
}

/// How a client came back.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Reconnected {
    pub(crate) attempts: u64,
    pub(crate) connections: u64,
    pub(crate) errors: BTreeMap<String, u64>,
}

/// A running reference client. It connects at the first command that needs a connection, and
/// again after the connection died.
#[derive(Debug)]
pub(crate) struct Client {
    pub(super) peer: Peer,
    /// Limit of each command.
    pub(crate) limit: Duration,
}

impl Client {
    /// Starts a client on the current library.
    ///
    /// # Errors
    /// The fault of a refused configuration.
    pub(crate) async fn start(config: &ClientConfig) -> Result<Self, Fault> {
        Self::start_version(Version::Current, config).await
    }

    /// Starts a client on a chosen library.
    ///
    /// # Errors
    /// The fault of a refused configuration.
    pub(crate) async fn start_version(
        version: Version,
        config: &ClientConfig,
    ) -> Result<Self, Fault> {
        let peer = Peer::spawn("client", version, config).await?;
        Ok(Self {
            peer,
            limit: Duration::from_secs(60),
        })
    }

    pub(super) async fn call<R: DeserializeOwned>(
        &self,
        cmd: &str,
        args: Value,
    ) -> Result<R, CallError> {
        self.peer.call(cmd, args, self.limit).await
    }

    /// Makes sure of a connection.
    ///
    /// # Errors
    /// `auth` with the status, or `connect` with the cause.
    pub(crate) async fn connect(&self) -> Result<Handshake, CallError> {
        self.call("connect", json!({})).await
    }

    /// Echoes until it works, as after a restart of the server.
    ///
    /// # Errors
    /// `timeout` when it never did.
    pub(crate) async fn reconnect(&self, echo: impl ToString) -> Result<Reconnected, CallError> {
        self.call("reconnect", json!({"addr": echo.to_string()}))
            .await
    }

    /// Opens and closes a connection to a target.
    ///
    /// # Errors
    /// `dial` with the server's text, `closed` with the cause.
    pub(crate) async fn dial(&self, addr: impl ToString) -> Result<(), CallError> {
        self.call::<Value>("dial", json!({"addr": addr.to_string()}))
            .await
            .map(|_| ())
    }

    /// Opens a connection and waits for the first bytes of the target: with `fast_open`, only
    /// this learns of a refusal.
    ///
    /// # Errors
    /// As [`Self::dial`]; `timeout` from a silent target.
    pub(crate) async fn dial_and_read(&self, addr: impl ToString) -> Result<(), CallError> {
        self.call::<Value>("dial", json!({"addr": addr.to_string(), "read": true}))
            .await
            .map(|_| ())
    }

    /// Sends a pattern and reads it back at the same time.
    ///
    /// # Errors
    /// `mismatch`, or what broke.
    pub(crate) async fn tcp_echo(
        &self,
        addr: impl ToString,
        bytes: u64,
        seed: u64,
    ) -> Result<Transfer, CallError> {
        self.call(
            "tcp_echo",
            json!({"addr": addr.to_string(), "bytes": bytes, "seed": seed}),
        )
        .await
    }

    /// As [`Self::tcp_echo`], but writes before the server can have answered.
    ///
    /// # Errors
    /// `usage` without `fast_open`.
    pub(crate) async fn early_data(
        &self,
        addr: impl ToString,
        bytes: u64,
    ) -> Result<Transfer, CallError> {
        self.call(
            "early_data",
            json!({"addr": addr.to_string(), "bytes": bytes}),
        )
        .await
    }

    /// Reads `bytes` (0: to the end) without having written.
    ///
    /// # Errors
    /// What broke.
    pub(crate) async fn server_speaks(
        &self,
        addr: impl ToString,
        bytes: u64,
    ) -> Result<Spoken, CallError> {
        self.call(
            "server_speaks",
            json!({"addr": addr.to_string(), "bytes": bytes}),
        )
        .await
    }

    /// Opens and closes `n` connections without a byte.
    ///
    /// # Errors
    /// The first failure.
    pub(crate) async fn zero_bytes(&self, addr: impl ToString, n: u64) -> Result<(), CallError> {
        self.call::<Value>("zero_bytes", json!({"addr": addr.to_string(), "n": n}))
            .await
            .map(|_| ())
    }

    /// Reads `bytes` of a pattern from a source and checks them.
    ///
    /// # Errors
    /// `mismatch`, or what broke.
    pub(crate) async fn download(
        &self,
        source: impl ToString,
        bytes: u64,
        seed: u64,
    ) -> Result<Transfer, CallError> {
        self.call(
            "tcp_download",
            json!({"addr": source.to_string(), "bytes": bytes, "seed": seed}),
        )
        .await
    }

    /// A download that stops reading for `pause` once `after` bytes came.
    ///
    /// # Errors
    /// As [`Self::download`].
    pub(crate) async fn download_with_pause(
        &self,
        source: impl ToString,
        bytes: u64,
        after: u64,
        pause: Duration,
    ) -> Result<Transfer, CallError> {
        let pause = pause.as_millis() as u64;
        let args = json!({"addr": source.to_string(), "bytes": bytes, "pause_after": after, "pause_ms": pause});
        self.call("tcp_download", args).await
    }

    /// Sends `bytes` of a pattern to a sink and compares its hash.
    ///
    /// # Errors
    /// `mismatch`, or what broke.
    pub(crate) async fn upload(
        &self,
        sink: impl ToString,
        bytes: u64,
        seed: u64,
    ) -> Result<Transfer, CallError> {
        self.call(
            "tcp_upload",
            json!({"addr": sink.to_string(), "bytes": bytes, "seed": seed}),
        )
        .await
    }

    /// Uploads to a target that reads `first` bytes and then nothing for `stall`.
    ///
    /// # Errors
    /// As [`Self::upload`].
    pub(crate) async fn upload_to_stalled(
        &self,
        stalled: impl ToString,
        bytes: u64,
        first: u64,
        stall: Duration,
    ) -> Result<Transfer, CallError> {
        let stall = stall.as_millis() as u64;
        self.call(
            "tcp_upload",
            json!({"addr": stalled.to_string(), "bytes": bytes, "first": first, "stall_ms": stall}),
        )
        .await
    }

    /// Opens `n` streams, waits until all are open, then echoes on all; after one warm-up stream.
    ///
    /// # Errors
    /// `partial`, with the [`Run`] as result.
    pub(crate) async fn many_streams(
        &self,
        echo: impl ToString,
        n: u64,
        bytes: u64,
    ) -> Result<Run, CallError> {
        self.call(
            "many_streams",
            json!({"addr": echo.to_string(), "n": n, "bytes": bytes, "warm_up": true}),
        )
        .await
    }

    /// Echoes on `n` streams, one after the other.
    ///
    /// # Errors
    /// `partial`, with the [`Run`] as result.
    pub(crate) async fn sequential(
        &self,
        echo: impl ToString,
        n: u64,
        bytes: u64,
    ) -> Result<Run, CallError> {
        self.call(
            "sequential",
            json!({"addr": echo.to_string(), "n": n, "bytes": bytes}),
        )
        .await
    }

    /// Opens `n` streams that stay until [`Self::release`].
    ///
    /// # Errors
    /// The first failure; the streams before it are held.
    pub(crate) async fn hold(
        &self,
        tag: &str,
        addr: impl ToString,
        n: u64,
    ) -> Result<(), CallError> {
        self.call::<Value>(
            "hold",
            json!({"tag": tag, "addr": addr.to_string(), "n": n}),
        )
        .await
        .map(|_| ())
    }

    /// Writes `bytes` on every held stream of a tag.
    ///
    /// # Errors
    /// `partial` when some are dead.
    pub(crate) async fn poke(&self, tag: &str, bytes: u64) -> Result<(), CallError> {
        self.call::<Value>("poke", json!({"tag": tag, "bytes": bytes}))
            .await
            .map(|_| ())
    }

    /// Closes the held streams of a tag.
    ///
    /// # Errors
    /// A fault means that the peer is broken.
    pub(crate) async fn release(&self, tag: &str) -> Result<(), CallError> {
        self.call::<Value>("release", json!({"tag": tag}))
            .await
            .map(|_| ())
    }

    /// Waits until a held stream of a tag ends in a way that `accept`s.
    pub(crate) async fn stream_ended(&self, tag: &str, accept: impl Fn(&Fault) -> bool) -> Fault {
        let event = self
            .peer
            .event("stream_ended", |e| {
                e["tag"] == tag && accept(&super::fault::parse(&e["error"]))
            })
            .await;
        super::fault::parse(&event["error"])
    }

    /// Runs the reference's speed test of `bytes` towards this client.
    ///
    /// # Errors
    /// `dial` when the server has none.
    pub(crate) async fn speedtest_download(&self, bytes: u32) -> Result<Transfer, CallError> {
        self.call("speedtest_download", json!({"bytes": bytes}))
            .await
    }

    /// Runs the reference's speed test of `bytes` towards the server.
    ///
    /// # Errors
    /// `dial` when the server has none.
    pub(crate) async fn speedtest_upload(&self, bytes: u32) -> Result<Transfer, CallError> {
        self.call("speedtest_upload", json!({"bytes": bytes})).await
    }

    /// Relays local TCP connections to a target until the client ends.
    ///
    /// # Errors
    /// What listening reported.
    pub(crate) async fn forward_tcp(&self, target: impl ToString) -> Result<SocketAddr, CallError> {
        self.forward("forward_tcp", target.to_string()).await
    }

    /// Relays local UDP to a target until the client ends.
    ///
    /// # Errors
    /// What listening reported.
    pub(crate) async fn forward_udp(&self, target: impl ToString) -> Result<SocketAddr, CallError> {
        self.forward("forward_udp", target.to_string()).await
    }

    async fn forward(&self, cmd: &str, target: String) -> Result<SocketAddr, CallError> {
        #[derive(Deserialize)]
        struct Listening {
            addr: SocketAddr,
        }
        self.call::<Listening>(cmd, json!({"target": target}))
            .await
            .map(|l| l.addr)
    }

    /// Reverses packets within windows of `reverse_ms` and drops each `drop_every`-th; 0 and 0 is off.
    ///
    /// # Errors
    /// `usage` without `tamper` in the configuration or before the first connection.
    pub(crate) async fn tamper(&self, reverse_ms: u64, drop_every: u64) -> Result<(), CallError> {
        self.call(
            "tamper",
            json!({"reverse_ms": reverse_ms, "drop_every": drop_every}),
        )
        .await
    }

    /// `connections`, `process` and, with `tamper`, `wire`.
    ///
    /// # Errors
    /// A fault means that the peer is broken.
    pub(crate) async fn stats(&self) -> Result<Value, CallError> {
        self.call("stats", json!({})).await
    }

    /// Ends the client for good.
    ///
    /// # Errors
    /// What closing reported.
    pub(crate) async fn close(&self) -> Result<(), CallError> {
        self.call("close", json!({})).await
    }
}
