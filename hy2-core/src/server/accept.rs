//! Takes connections in, within limits, and watches over their memory.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use quinn::{Connection, Endpoint, Incoming};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{Shared, connection};
use crate::{
    client::FallbackCongestion,
    congestion::{Algorithm, CongestionHandle},
    event::ConnectionId,
    quic::{self, Role, ServerBase, Vigil, close},
};

/// How much more a connection may hold unacknowledged than the smallest useful window.
const SEND_WINDOW_MIN: u64 = 1 << 20;

/// Connections that exist, by stage.
#[derive(Debug, Default)]
pub(super) struct Counts {
    connections: Arc<AtomicUsize>,
    handshakes: Arc<AtomicUsize>,
    unauthenticated: Arc<AtomicUsize>,
    /// Those that are established and that nobody let in, the oldest first.
    strangers: Mutex<BTreeMap<ConnectionId, (Instant, Connection)>>,
}

/// How long a stranger's place is its own when places are short. Users log in at once.
const STRANGER_GRACE: Duration = Duration::from_secs(3);

impl Counts {
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// Notes a connection that nobody let in yet.
    pub(super) fn meet(&self, id: ConnectionId, connection: &Connection) {
        let met = (Instant::now(), connection.clone());
        self.strangers.lock().insert(id, met);
    }

    /// Forgets one that is let in or gone.
    pub(super) fn part(&self, id: ConnectionId) {
        self.strangers.lock().remove(&id);
    }

    /// Closes the stranger that has been here longest, to make room; `false` when all of them came
    /// just now.
    fn evict_stranger(&self) -> bool {
        let mut strangers = self.strangers.lock();
        let Some(oldest) = strangers.first_entry() else {
            return false;
        };
        if oldest.get().0.elapsed() < STRANGER_GRACE {
            return false;
        }
        let (_, connection) = oldest.remove();
        metrics::counter!("hy2_connections_evicted_total").increment(1);
        // As a web server closes whom it has no room for.
        connection.close(close::OK, b"");
        true
    }

    pub(super) fn unauthenticated(&self) -> usize {
        self.unauthenticated.load(Relaxed)
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
pub(super) async fn run(shared: Arc<Shared>, endpoint: Endpoint, base: ServerBase) {
    let mut connections = JoinSet::new();
    let mut arrivals = Arrivals::new();
    loop {
        // Both arms are cancel safe.
        tokio::select! {
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => {
                    admit(&shared, &base, incoming, &mut arrivals, &mut connections);
                }
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

/// Counts the handshakes that begin within a second.
struct Arrivals {
    second: Instant,
    count: u32,
}

impl Arrivals {
    fn new() -> Self {
        Self {
            second: Instant::now(),
            count: 0,
        }
    }

    /// Counts one more and returns how many there were in this second.
    fn add(&mut self) -> u32 {
        let now = Instant::now();
        if now.duration_since(self.second) >= Duration::from_secs(1) {
            self.second = now;
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        self.count
    }
}

fn admit(
    shared: &Arc<Shared>,
    base: &ServerBase,
    incoming: Incoming,
    arrivals: &mut Arrivals,
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
    // The addresses of those who come back with a token are proven: they do not count.
    if incoming.may_retry()
        && (handshakes >= limits.handshakes_before_retry
            || arrivals.add() > limits.handshakes_per_second_before_retry)
    {
        // Fails only when the peer may not be asked to retry, which was just checked.
        let _ = incoming.retry();
        return;
    }
    if *shared.draining.borrow() {
        return incoming.refuse();
    }
    if shared.config.memory.refuses_connections()
        || counts.connections.load(Relaxed) >= limits.connections
        || (counts.unauthenticated.load(Relaxed) >= limits.unauthenticated
            && !counts.evict_stranger())
    {
        refused("limit");
        return incoming.refuse();
    }
    let congestion = CongestionHandle::new(match shared.config.congestion {
        FallbackCongestion::Bbr(profile) => Algorithm::Bbr(profile),
        FallbackCongestion::Reno => Algorithm::Reno,
    });
    let transport = quic::transport(
        &shared.config.quic,
        Role::Server {
            unauthenticated: counts.unauthenticated.load(Relaxed),
        },
        &congestion,
        shared.config.obfuscation.overhead(),
        shared.config.socket.gso,
    );
    let vigil = Arc::new(Vigil::default());
    let connecting = match incoming.accept_with(base.connection(transport, &vigil)) {
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
                    vigil,
                ))
                .await;
            }
            Ok(Err(error)) => tracing::debug!(%error, "handshake failed"),
            Err(_) => tracing::debug!("handshake timed out"),
        }
    });
}

/// Seconds for which the budget may be so short that nobody new is let in. A burst passes sooner;
/// who holds memory to keep others out does not let go.
const PATIENCE: u32 = 5;

/// Once a second, divides what is left of the memory budget among the send windows of the
/// connections. When there is nothing left, or too little for newcomers and that for some time,
/// resets the connection that holds most.
pub(super) async fn supervise(shared: Arc<Shared>) {
    let mut pressed = 0;
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
        pressed = if memory.refuses_connections() {
            pressed + 1
        } else {
            0
        };
        if (pressed > PATIENCE || memory.free() < memory.limit() / 64)
            && let Some(largest) = members.iter().max_by_key(|member| member.held())
        {
            pressed = 0;
            metrics::counter!("hy2_connections_shed_total").increment(1);
            tracing::warn!(
                connection = %largest.peer.connection,
                "memory budget exhausted, connection closed"
            );
            largest.connection.close(close::EXCESSIVE_LOAD, b"");
        }
    }
}
