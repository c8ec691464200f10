//! Takes connections in, within limits, and watches over their memory.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use quinn::{Connection, Endpoint, Incoming};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{Shared, connection, listeners::Present, users::Member};
use crate::{
    client::FallbackCongestion,
    congestion::{Algorithm, CongestionHandle, Roused},
    event::ConnectionId,
    quic::{self, Role, ServerBase, Vigil, close},
};

/// Connections that exist, by stage.
#[derive(Debug, Default)]
pub(super) struct Counts {
    connections: Arc<AtomicUsize>,
    handshakes: Arc<AtomicUsize>,
    unauthenticated: Arc<AtomicUsize>,
    /// Handshakes that came to nothing since the start.
    pub(super) handshakes_failed: AtomicU64,
    /// Those that are established and that nobody let in, the oldest first.
    strangers: Mutex<BTreeMap<ConnectionId, (Instant, Connection)>>,
    /// Somebody was turned away for want of memory since the supervisor last looked.
    turned_away: AtomicBool,
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

    /// Returns the connections that nobody let in.
    pub(super) fn strangers(&self) -> Vec<Connection> {
        let strangers = self.strangers.lock();
        strangers.values().map(|(_, c)| c.clone()).collect()
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
pub(super) async fn run(
    shared: Arc<Shared>,
    endpoint: Endpoint,
    base: ServerBase,
    present: Arc<Present>,
) {
    let mut connections = JoinSet::new();
    let mut arrivals = Arrivals::new();
    loop {
        // Both arms are cancel safe.
        tokio::select! {
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => {
                    admit(&shared, &base, &present, incoming, &mut arrivals, &mut connections);
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
    present: &Arc<Present>,
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
    let short = shared.config.memory.refuses_connections();
    if short {
        counts.turned_away.store(true, Relaxed);
    }
    if short
        || counts.connections.load(Relaxed) >= limits.connections
        || (counts.unauthenticated.load(Relaxed) >= limits.unauthenticated
            && !counts.evict_stranger())
    {
        refused("limit");
        return incoming.refuse();
    }
    let settings = shared.settings();
    let congestion = CongestionHandle::new(match settings.congestion {
        FallbackCongestion::Bbr(profile) => Algorithm::Bbr(profile),
        FallbackCongestion::Reno => Algorithm::Reno,
    });
    let transport = quic::transport(
        &settings.quic,
        Role::Server {
            unauthenticated: counts.unauthenticated.load(Relaxed),
        },
        &congestion,
        shared.listeners.overhead(),
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
    let (shared, present) = (Arc::clone(shared), Arc::clone(present));
    connections.spawn(async move {
        let _connected = connected;
        let established = timeout(shared.config.limits.handshake_timeout, connecting).await;
        drop(handshake);
        match established {
            Ok(Ok(connection)) => {
                let _entered = present.enter(id, &connection);
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
            Ok(Err(error)) => {
                shared.counts.handshakes_failed.fetch_add(1, Relaxed);
                tracing::debug!(%error, "handshake failed");
            }
            Err(_) => {
                shared.counts.handshakes_failed.fetch_add(1, Relaxed);
                tracing::debug!("handshake timed out");
            }
        }
    });
}

/// Seconds for which the budget may be too short for newcomers while one is wanted, or while what
/// is held does not move. Whoever turns memory over gives way sooner; who holds it to keep others
/// out does not let go.
const PATIENCE: u32 = 5;

/// Seconds for which connections leave room after somebody was turned away.
const CONTENDED: u32 = 30;

/// The part of the budget from which on memory that does not move counts as the reason why there
/// is no more of it.
const STAGNANT_PART: u64 = 4;

/// Seconds between two looks at a connection at rest, which tells when it moves: of many thousands, most rest, and each
/// look fetches memory that nobody else touches.
const REST: u64 = 64;

/// What the supervisor remembers from one second to the next.
#[derive(Debug, Default)]
struct Pressure {
    /// Seconds under pressure.
    pressed: u32,
    /// Seconds for which room must be left.
    contended: u32,
}

impl Pressure {
    /// Tells whether room must be left, given whether somebody was turned away in this second.
    fn is_contended(&mut self, turned_away: bool) -> bool {
        self.contended = match turned_away {
            true => CONTENDED,
            false => self.contended.saturating_sub(1),
        };
        self.contended > 0
    }

    /// Judges one second; `stagnant` bytes of `limit` are held without moving. Tells whether a
    /// connection must go.
    fn judge(&mut self, short: bool, stagnant: u64, limit: u64) -> bool {
        if !short {
            self.pressed = 0;
        } else if self.contended > 0 || stagnant >= limit / STAGNANT_PART {
            self.pressed += 1;
        }
        let must_go = self.pressed > PATIENCE;
        if must_go {
            // A second for its memory to come back, then the next one.
            self.pressed = PATIENCE - 1;
        }
        must_go
    }
}

/// Once a second, fits the send windows of all connections that move into the memory budget and, when there
/// has been too little left for newcomers for some time, resets the connection that holds most:
/// of those whose memory does not move, when that is what is missing.
pub(super) async fn supervise(shared: Arc<Shared>) {
    let mut pressure = Pressure::default();
    let roused = Arc::new(Roused::default());
    let mut tick = interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for second in 0_u64.. {
        tick.tick().await;
        let memory = &shared.config.memory;
        let turned_away = shared.counts.turned_away.swap(false, Relaxed);
        memory.set_contended(pressure.is_contended(turned_away));
        let mut stagnant = Vec::new();
        shared.registry.rouse(&roused.take());
        shared.registry.for_each(|member| {
            let turn = member.peer.connection.as_u64().wrapping_add(second);
            if member.at_rest && !turn.is_multiple_of(REST) {
                return;
            }
            let mut window = member.send_window.lock();
            window.adjust(&member.congestion);
            let at_rest = window.is_at_rest();
            if window.is_stagnant() {
                stagnant.push(member.clone());
            }
            drop(window);
            member.at_rest = at_rest;
            if at_rest {
                let id = member.peer.connection.as_u64();
                member.congestion.rest(id, &roused);
            }
        });
        let held = stagnant.iter().map(Member::held).sum();
        let limit = memory.limit() as u64;
        let must_go = pressure.judge(memory.refuses_connections(), held, limit);
        let largest = if held >= limit / STAGNANT_PART {
            stagnant
        } else if must_go {
            shared.registry.members()
        } else {
            continue;
        };
        let largest = largest.into_iter().max_by_key(Member::held);
        if let Some(largest) = largest.filter(|_| must_go) {
            metrics::counter!("hy2_connections_shed_total").increment(1);
            tracing::warn!(
                connection = %largest.peer.connection,
                user = %largest.peer.user,
                held = largest.held(),
                "memory budget exhausted, connection closed"
            );
            largest.connection.close(close::EXCESSIVE_LOAD, b"");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1 << 24;

    #[test]
    fn a_budget_that_is_full_of_moving_memory_is_nobodys_fault() {
        let mut pressure = Pressure::default();
        for _ in 0..100 {
            assert!(!pressure.judge(true, LIMIT / 5, LIMIT));
        }
    }

    #[test]
    fn memory_that_does_not_move_is_taken_back_within_seconds() {
        let mut pressure = Pressure::default();
        let seconds = (1..20).find(|_| pressure.judge(true, LIMIT / 2, LIMIT));
        assert_eq!(seconds, Some(PATIENCE + 1));
        // The next one goes sooner, but not before the memory of the first is back.
        assert!(!pressure.judge(true, LIMIT / 2, LIMIT));
        assert!(pressure.judge(true, LIMIT / 2, LIMIT));
    }

    #[test]
    fn who_is_turned_away_again_and_again_is_let_in_within_seconds() {
        let mut pressure = Pressure::default();
        // A client that tries again every four seconds.
        let seconds = (1..20).find(|second| {
            pressure.is_contended(second % 4 == 1);
            pressure.judge(true, 0, LIMIT)
        });
        assert_eq!(seconds, Some(PATIENCE + 1));
    }

    #[test]
    fn who_gives_way_stays() {
        let mut pressure = Pressure::default();
        for second in 0..100 {
            // Two seconds of every seven are short, and somebody is turned away each time.
            let short = second % 7 < 2;
            pressure.is_contended(short);
            assert!(!pressure.judge(short, 0, LIMIT));
        }
    }
}
