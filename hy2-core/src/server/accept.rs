//! Takes connections in, within limits, and watches over their memory.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use quinn::{Endpoint, Incoming, ServerConfig as QuicServerConfig};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{Shared, connection};
use crate::{
    client::FallbackCongestion,
    congestion::{Algorithm, CongestionHandle},
    event::ConnectionId,
    quic::{self, Role, close},
};

/// How much more a connection may hold unacknowledged than the smallest useful window.
const SEND_WINDOW_MIN: u64 = 1 << 20;

/// Connections that exist, by stage.
#[derive(Debug, Default)]
pub(super) struct Counts {
    connections: Arc<AtomicUsize>,
    handshakes: Arc<AtomicUsize>,
    unauthenticated: Arc<AtomicUsize>,
}

impl Counts {
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }
}

/// A place in one of the counts, given back on drop.
#[derive(Debug)]
pub(crate) struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Accepts the connections of one endpoint until it closes.
pub(super) async fn run(shared: Arc<Shared>, endpoint: Endpoint, base: QuicServerConfig) {
    let mut connections = JoinSet::new();
    loop {
        // Both arms are cancel safe.
        tokio::select! {
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => admit(&shared, &base, incoming, &mut connections),
                None => break,
            },
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    // A panic ends one connection, never the process.
                    metrics::counter!("hy2_panics_total").increment(1);
                    tracing::error!(%error, "connection task failed");
                }
            }
        }
    }
    // The endpoint is closed: connections end by themselves and report that they did.
    while connections.join_next().await.is_some() {}
}

fn admit(
    shared: &Arc<Shared>,
    base: &QuicServerConfig,
    incoming: Incoming,
    connections: &mut JoinSet<()>,
) {
    let limits = &shared.config.limits;
    let counts = &shared.counts;
    let handshakes = counts.handshakes.load(Relaxed);
    let refused = |reason: &'static str| {
        metrics::counter!("hy2_connections_refused_total", "reason" => reason).increment(1);
    };
    if handshakes >= limits.handshakes {
        refused("handshakes");
        return incoming.ignore();
    }
    if handshakes >= limits.handshakes_before_retry && incoming.may_retry() {
        // Fails only when the peer may not be asked to retry, which was just checked.
        let _ = incoming.retry();
        return;
    }
    if *shared.draining.borrow() {
        return incoming.refuse();
    }
    if shared.config.memory.refuses_connections()
        || counts.connections.load(Relaxed) >= limits.connections
        || counts.unauthenticated.load(Relaxed) >= limits.unauthenticated
    {
        refused("limit");
        return incoming.refuse();
    }
    let congestion = CongestionHandle::new(match shared.config.congestion {
        FallbackCongestion::Bbr(profile) => Algorithm::Bbr(profile),
        FallbackCongestion::Reno => Algorithm::Reno,
    });
    let mut config = base.clone();
    config.transport_config(quic::transport(
        &shared.config.quic,
        Role::Server {
            unauthenticated: counts.unauthenticated.load(Relaxed),
        },
        &congestion,
        shared.config.obfuscation.overhead(),
        shared.config.socket.gso,
    ));
    let connecting = match incoming.accept_with(Arc::new(config)) {
        Ok(connecting) => connecting,
        Err(error) => {
            tracing::debug!(%error, "connection not accepted");
            return;
        }
    };
    let id = ConnectionId(shared.next_connection.fetch_add(1, Relaxed));
    let connected = Slot::take(&counts.connections);
    let handshake = Slot::take(&counts.handshakes);
    let unauthenticated = Slot::take(&counts.unauthenticated);
    let shared = Arc::clone(shared);
    connections.spawn(async move {
        let _connected = connected;
        let established = timeout(shared.config.limits.handshake_timeout, connecting).await;
        drop(handshake);
        match established {
            Ok(Ok(connection)) => {
                // Boxed: the handshake's memory is not kept for the connection's life.
                Box::pin(connection::serve(
                    shared,
                    connection,
                    congestion,
                    id,
                    unauthenticated,
                ))
                .await;
            }
            Ok(Err(error)) => tracing::debug!(%error, "handshake failed"),
            Err(_) => tracing::debug!("handshake timed out"),
        }
    });
}

/// Once a second, divides what is left of the memory budget among the send windows of the
/// connections, and when there is nothing left resets the one that holds most.
pub(super) async fn supervise(shared: Arc<Shared>) {
    let mut tick = interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let members = shared.registry.members();
        let memory = &shared.config.memory;
        let sending: Vec<_> = members
            .iter()
            .filter(|member| member.congestion.snapshot().in_flight > 0)
            .collect();
        // Half of what is free, shared by those who send; the other half is for receiving.
        let each = memory.free() as u64 / 2 / (sending.len() as u64).max(1);
        for member in &members {
            member
                .congestion
                .set_send_window_limit(each.clamp(SEND_WINDOW_MIN, quic::SEND_WINDOW_MAX));
        }
        if memory.free() < memory.limit() / 64
            && let Some(largest) = sending
                .iter()
                .max_by_key(|member| member.congestion.snapshot().in_flight)
        {
            metrics::counter!("hy2_connections_shed_total").increment(1);
            tracing::warn!(connection = %largest.peer.connection, "memory budget exhausted, connection closed");
            largest.connection.close(close::EXCESSIVE_LOAD, b"");
        }
    }
}
