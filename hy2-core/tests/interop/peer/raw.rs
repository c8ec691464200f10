//! The reference's QUIC stack without its client: bytes of the test's choice.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::client_udp::unhex;
use super::fault::{self, CallError, Fault};
use super::{ClientConfig, Peer, Version};

const COMMAND: Duration = Duration::from_secs(15);

/// The facts of a handshake.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Connected {
    pub(crate) cipher: String,
    pub(crate) gso: bool,
    /// SHA-256 of the server's leaf certificate, hex.
    pub(crate) leaf: String,
}

/// An HTTP/3 answer; header names in Go's canonical case.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, Vec<String>>,
    pub(crate) body: String,
}

/// What came back on a bidirectional stream.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct StreamEnd {
    #[serde(deserialize_with = "unhex", rename = "hex")]
    pub(crate) data: Vec<u8>,
    /// `fin`, `enough`, `silence` or `error`.
    pub(crate) end: String,
    /// Set when `end` is `error`.
    pub(crate) error: Option<Fault>,
}

/// A raw QUIC connection in the making.
#[derive(Debug)]
pub(crate) struct Raw {
    peer: Peer,
}

impl Raw {
    /// Starts a probe; it does not connect yet.
    ///
    /// # Errors
    /// The fault of a refused configuration.
    pub(crate) async fn start(config: &ClientConfig) -> Result<Self, Fault> {
        Ok(Self {
            peer: Peer::spawn("raw", Version::Current, config).await?,
        })
    }

    /// Does the QUIC handshake and nothing more.
    ///
    /// # Errors
    /// What the handshake met.
    pub(crate) async fn connect(&self) -> Result<Connected, CallError> {
        self.peer.call("connect", json!({}), COMMAND).await
    }

    /// Makes one HTTP/3 request.
    ///
    /// # Errors
    /// What broke the stream or the connection.
    pub(crate) async fn request(
        &self,
        method: &str,
        authority: &str,
        path: &str,
    ) -> Result<Response, CallError> {
        self.peer
            .call(
                "request",
                json!({"method": method, "authority": authority, "path": path}),
                COMMAND,
            )
            .await
    }

    /// Sends an authentication request with this secret and CC-RX; 233 is success.
    ///
    /// # Errors
    /// What broke the stream or the connection.
    pub(crate) async fn auth(&self, secret: &str, rx: u64) -> Result<Response, CallError> {
        self.peer
            .call("auth", json!({"auth": secret, "rx": rx}), COMMAND)
            .await
    }

    /// Opens a bidirectional stream, makes one write of each part, and reads until the stream
    /// ends, `expect` bytes came (0: any number), or nothing ended it for `wait`.
    ///
    /// # Errors
    /// What opening or writing reported; the way the read ended is in the result.
    pub(crate) async fn stream(
        &self,
        parts: &[&[u8]],
        fin: bool,
        expect: usize,
        wait: Duration,
    ) -> Result<StreamEnd, CallError> {
        let parts: Vec<String> = parts.iter().map(hex::encode).collect();
        let args =
            json!({"hex": parts, "fin": fin, "expect": expect, "wait_ms": wait.as_millis() as u64});
        self.peer.call("stream", args, wait + COMMAND).await
    }

    /// Sends QUIC datagrams in this order and collects up to `expect` that come within `wait`.
    ///
    /// # Errors
    /// What sending or the connection reported.
    pub(crate) async fn datagrams(
        &self,
        datagrams: &[Vec<u8>],
        expect: usize,
        wait: Duration,
    ) -> Result<Vec<Vec<u8>>, CallError> {
        #[derive(Deserialize)]
        struct Collected {
            hex: Vec<String>,
        }
        let datagrams: Vec<String> = datagrams.iter().map(hex::encode).collect();
        let args = json!({"hex": datagrams, "expect": expect, "wait_ms": wait.as_millis() as u64});
        let got: Collected = self.peer.call("datagrams", args, wait + COMMAND).await?;
        Ok(got
            .hex
            .iter()
            .map(|h| hex::decode(h).expect("the peer prints hex"))
            .collect())
    }

    /// Waits for the end of the connection.
    ///
    /// # Errors
    /// `timeout` while it lives.
    pub(crate) async fn closed(&self, limit: Duration) -> Result<Fault, CallError> {
        let how: Value = self.peer.call("closed", json!({}), limit).await?;
        Ok(fault::parse(&how["error"]))
    }

    /// Closes the connection with an application code.
    ///
    /// # Errors
    /// `usage` before the connection exists.
    pub(crate) async fn hang_up(&self, code: u64) -> Result<(), CallError> {
        self.peer
            .call("hang_up", json!({"code": code}), COMMAND)
            .await
    }
}
