//! What an embedder decides of a master.

use std::time::Duration;

/// Settings of a master. Every default is safe.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MasterConfig {
    /// Names and addresses under which agents reach the master, beside the fixed name in its
    /// certificate.
    pub names: Vec<String>,
    /// How often agents send a heartbeat.
    pub heartbeat_interval: Duration,
    /// How often agents send figures.
    pub metrics_interval: Duration,
    /// How often agents report traffic.
    pub traffic_interval: Duration,
    /// After how much silence a node is suspect.
    pub suspect_after: Duration,
    /// After how much silence a node is offline.
    pub offline_after: Duration,
    /// For how long after the master's start silence means nothing: agents need time to come back.
    pub start_grace: Duration,
    /// How often heartbeats are written to the store, all in one statement.
    pub seen_flush: Duration,
    /// Whether users with too few nodes are given some.
    pub auto_assign: bool,
    /// How often tasks look even when nobody calls.
    pub reconcile_interval: Duration,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// Handshakes that may be under way at once; more connections are closed at once.
    pub max_pending_handshakes: usize,
    /// Connections of agents at most.
    pub max_connections: usize,
    /// Requests of one address, or IPv6 /64, without a certificate within a minute.
    pub max_anonymous_per_minute: u32,
    /// How long an agent has to acknowledge a manifest before it is sent again.
    pub ack_timeout: Duration,
    /// How long a renewed certificate's predecessor stays good.
    pub certificate_grace: Duration,
    /// How long raw figures are kept; averages of 5 min and 1 h: 15 and 360 times that.
    pub keep_metrics: Duration,
    /// How long hourly traffic is kept.
    pub keep_hourly: Duration,
    /// How long daily traffic is kept.
    pub keep_daily: Duration,
    /// How long events are kept, for listeners and webhooks that were away, and finished deliveries.
    pub keep_events: Duration,
    /// How long released assignments are kept: for so long a node may be away and still deliver.
    pub keep_released: Duration,
}

impl Default for MasterConfig {
    fn default() -> Self {
        const DAY: u64 = 86_400;
        Self {
            names: Vec::new(),
            heartbeat_interval: Duration::from_secs(10),
            metrics_interval: Duration::from_secs(15),
            traffic_interval: Duration::from_secs(10),
            suspect_after: Duration::from_secs(25),
            offline_after: Duration::from_secs(40),
            start_grace: Duration::from_secs(60),
            seen_flush: Duration::from_secs(10),
            auto_assign: true,
            reconcile_interval: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(5),
            max_pending_handshakes: 256,
            max_connections: 20_000,
            max_anonymous_per_minute: 20,
            ack_timeout: Duration::from_secs(30),
            certificate_grace: Duration::from_secs(4 * 3_600),
            keep_metrics: Duration::from_secs(2 * DAY),
            keep_hourly: Duration::from_secs(90 * DAY),
            keep_daily: Duration::from_secs(2 * 365 * DAY),
            keep_events: Duration::from_secs(30 * DAY),
            keep_released: Duration::from_secs(180 * DAY),
        }
    }
}
