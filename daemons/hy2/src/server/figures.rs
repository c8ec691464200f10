//! Figures of a running server for the metrics facade.

use std::time::Duration;

use hy2_core::ServerHandle;
use metrics::{counter, describe_counter, describe_gauge, gauge};
use tokio_util::task::AbortOnDropHandle;

/// How often the figures are brought up to date.
const PERIOD: Duration = Duration::from_secs(1);

/// Keeps the figures up to date until the result is dropped.
pub(super) fn export(server: ServerHandle) -> AbortOnDropHandle<()> {
    describe_gauge!(
        "hy2_server_connections",
        "Connections, authenticated or not."
    );
    describe_gauge!("hy2_server_users", "Users with at least one connection.");
    describe_gauge!("hy2_server_streams", "TCP streams being relayed.");
    describe_gauge!("hy2_server_udp_sessions", "UDP sessions being relayed.");
    describe_counter!(
        "hy2_server_tx_bytes_total",
        "Payload bytes from clients to targets."
    );
    describe_counter!(
        "hy2_server_rx_bytes_total",
        "Payload bytes from targets to clients."
    );
    describe_counter!("hy2_panics_total", "Tasks that panicked.");
    counter!("hy2_panics_total").increment(0);
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut ticks = tokio::time::interval(PERIOD);
        loop {
            ticks.tick().await;
            update(&server);
        }
    }))
}

fn update(server: &ServerHandle) {
    let (mut users, mut streams, mut sessions, mut tx, mut rx) =
        (0_u32, 0_u32, 0_u32, 0_u64, 0_u64);
    for user in server.users() {
        users += u32::from(user.traffic.connections > 0);
        streams += user.traffic.streams;
        sessions += user.traffic.udp_sessions;
        tx += user.traffic.tx;
        rx += user.traffic.rx;
    }
    let connections = u32::try_from(server.connection_count()).unwrap_or(u32::MAX);
    gauge!("hy2_server_connections").set(connections);
    gauge!("hy2_server_users").set(users);
    gauge!("hy2_server_streams").set(streams);
    gauge!("hy2_server_udp_sessions").set(sessions);
    counter!("hy2_server_tx_bytes_total").absolute(tx);
    counter!("hy2_server_rx_bytes_total").absolute(rx);
}
