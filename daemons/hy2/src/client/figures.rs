//! Figures of a running client for the metrics facade.

use std::time::Duration;

use hy2_core::Client;
use metrics::{counter, describe_counter, describe_gauge, gauge};
use tokio_util::task::AbortOnDropHandle;

/// How often the figures are brought up to date.
const PERIOD: Duration = Duration::from_secs(1);

/// Streams and sessions that programs asked for, by what became of it.
pub(super) const STREAMS: &str = "hy2_client_streams_total";
pub(super) const SESSIONS: &str = "hy2_client_udp_sessions_total";
pub(super) const FAILURES: &str = "hy2_client_failures_total";

/// Keeps the figures up to date until the result is dropped.
pub(super) fn export(client: Client) -> AbortOnDropHandle<()> {
    describe_gauge!("hy2_client_connected", "Whether there is a connection.");
    describe_gauge!(
        "hy2_client_rtt_seconds",
        "Round trip time to the server; 0 without a connection."
    );
    describe_gauge!(
        "hy2_client_ack_rate",
        "Share of the packets that arrive, from 0.8, as Brutal sees it; 1 with others."
    );
    describe_counter!(STREAMS, "TCP streams opened for programs.");
    describe_counter!(SESSIONS, "UDP sessions opened for programs.");
    describe_counter!(
        FAILURES,
        "Streams and sessions that could not be opened, the target's refusals included."
    );
    describe_counter!("hy2_panics_total", "Tasks that panicked.");
    for name in [STREAMS, SESSIONS, FAILURES, "hy2_panics_total"] {
        counter!(name).increment(0);
    }
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut ticks = tokio::time::interval(PERIOD);
        loop {
            ticks.tick().await;
            update(&client);
        }
    }))
}

fn update(client: &Client) {
    let connection = client.connection();
    gauge!("hy2_client_connected").set(f64::from(u8::from(connection.is_some())));
    let rtt = connection.as_ref().map_or(Duration::ZERO, |info| info.rtt);
    gauge!("hy2_client_rtt_seconds").set(rtt.as_secs_f64());
    let ack_rate = connection.map_or(1.0, |info| info.congestion.ack_rate);
    gauge!("hy2_client_ack_rate").set(ack_rate);
}
