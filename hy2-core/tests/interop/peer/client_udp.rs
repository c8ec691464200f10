//! UDP through the reference client.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::client::Run;
use super::{CallError, Client};

/// Datagrams echoed one at a time.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Echoes {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Sizes that did not come back in time.
    pub(crate) lost: Vec<u64>,
    /// Source addresses as the client saw them, with counts.
    pub(crate) from: BTreeMap<String, u64>,
}

/// Numbered datagrams sent without waiting.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Burst {
    pub(crate) received: u64,
    pub(crate) duplicates: u64,
    pub(crate) reordered: u64,
}

/// One datagram.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Received {
    pub(crate) from: String,
    #[serde(deserialize_with = "unhex", rename = "hex")]
    pub(crate) data: Vec<u8>,
}

pub(super) fn unhex<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
    hex::decode(String::deserialize(d)?).map_err(serde::de::Error::custom)
}

impl Client {
    /// In one session, sends `count` datagrams of each size and waits for each echo.
    ///
    /// # Errors
    /// `partial` when some were lost (the [`Echoes`] are the result), `mismatch` when changed.
    pub(crate) async fn udp_echo(
        &self,
        addr: impl ToString,
        sizes: &[usize],
        count: u64,
    ) -> Result<Echoes, CallError> {
        self.call(
            "udp_echo",
            json!({"addr": addr.to_string(), "sizes": sizes, "count": count}),
        )
        .await
    }

    /// Sends `n` numbered datagrams, `gap_us` apart, and counts the echoes. Loss is no error.
    ///
    /// # Errors
    /// `mismatch` when a datagram came back changed.
    pub(crate) async fn udp_burst(
        &self,
        addr: impl ToString,
        size: usize,
        n: u64,
        gap_us: u64,
    ) -> Result<Burst, CallError> {
        self.call(
            "udp_burst",
            json!({"addr": addr.to_string(), "size": size, "n": n, "gap_us": gap_us}),
        )
        .await
    }

    /// Keeps `n` sessions open together, with one echo each.
    ///
    /// # Errors
    /// `partial`, with the [`Run`] as result.
    pub(crate) async fn udp_sessions(
        &self,
        addr: impl ToString,
        n: u64,
        size: usize,
    ) -> Result<Run, CallError> {
        self.call(
            "udp_sessions",
            json!({"addr": addr.to_string(), "n": n, "size": size}),
        )
        .await
    }

    /// In one session, echoes with each target in turn and checks where replies come from.
    ///
    /// # Errors
    /// `mismatch` on a wrong source, `timeout` on loss.
    pub(crate) async fn udp_multi_target(
        &self,
        addrs: &[impl ToString],
        size: usize,
        rounds: u64,
    ) -> Result<(), CallError> {
        let addrs: Vec<String> = addrs.iter().map(ToString::to_string).collect();
        self.call::<Value>(
            "udp_multi_target",
            json!({"addrs": addrs, "size": size, "rounds": rounds}),
        )
        .await
        .map(|_| ())
    }

    /// Opens a session that stays until [`Self::udp_close`].
    ///
    /// # Errors
    /// `dial` when the server has UDP disabled.
    pub(crate) async fn udp_open(&self, tag: &str) -> Result<(), CallError> {
        self.call::<Value>("udp_open", json!({"tag": tag}))
            .await
            .map(|_| ())
    }

    /// Sends one datagram in an open session.
    ///
    /// # Errors
    /// What sending reported.
    pub(crate) async fn udp_send(
        &self,
        tag: &str,
        addr: impl ToString,
        data: &[u8],
    ) -> Result<(), CallError> {
        let args = json!({"tag": tag, "addr": addr.to_string(), "hex": hex::encode(data)});
        self.call::<Value>("udp_send", args).await.map(|_| ())
    }

    /// Waits for one datagram in an open session.
    ///
    /// # Errors
    /// `timeout`, or the `eof` cause when the session or connection has ended.
    pub(crate) async fn udp_recv(&self, tag: &str) -> Result<Received, CallError> {
        self.call("udp_recv", json!({"tag": tag})).await
    }

    /// Closes an open session.
    ///
    /// # Errors
    /// `usage` when there is none.
    pub(crate) async fn udp_close(&self, tag: &str) -> Result<(), CallError> {
        self.call("udp_close", json!({"tag": tag})).await
    }
}
