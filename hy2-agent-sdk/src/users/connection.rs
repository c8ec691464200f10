//! Connections on their way in, while they live, and when they end.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use hy2_core::{
    Bandwidth, BoxFuture,
    authenticator::{AuthContext, AuthDecision, Authenticator, Grant},
    event::{EventSink, Peer},
    meter::{ByteCells, UserCounters},
};
use tokio::time::{Instant, timeout_at};

use super::table::{Doors, User, UserTable, Verifier};
use crate::{leases::Counters, traffic::Cell};

/// How long a client waits for the master to grant what it needs.
const GRANT_WAIT: Duration = Duration::from_secs(3);

/// Judges credentials.
pub(crate) struct Gate(pub(crate) Arc<UserTable>);

impl Authenticator for Gate {
    fn authenticate<'a>(&'a self, request: AuthContext<'a>) -> BoxFuture<'a, AuthDecision> {
        let table = &self.0;
        Box::pin(async move {
            let decision = match table.who(request.auth) {
                Some((user, verifier)) => grant(table, user, verifier, request.remote).await,
                None => None,
            };
            match decision {
                Some(grant) => {
                    table.accepted.fetch_add(1, Relaxed);
                    AuthDecision::Accept(grant)
                }
                None => {
                    table.rejected.fetch_add(1, Relaxed);
                    AuthDecision::Deny
                }
            }
        })
    }
}

pub(super) async fn grant(
    table: &Arc<UserTable>,
    user: Arc<User>,
    verifier: Verifier,
    remote: SocketAddr,
) -> Option<Grant> {
    let may = || table.doors() == Doors::Open && table.permits(&user, &verifier);
    if !may() {
        return None;
    }
    let cell = match table.traffic.cells.of(user.id) {
        Ok(cell) => cell,
        Err(error) => {
            // What cannot be counted is not let through.
            tracing::error!(user = user.id, %error, "no counter for a user");
            return None;
        }
    };
    if user.is_metered() && !has_quota(table, &user).await {
        tracing::info!(user = user.id, "no quota left here");
        return None;
    }
    if user.max_devices() > 0 && !has_place(table, &user, remote.ip()).await {
        tracing::info!(user = user.id, "no place for another device");
        return None;
    }
    // The wait for the master may have been long: the credential may be another by then.
    if !may() {
        return None;
    }
    let admission = user.admit(remote, verifier);
    let cells = ConnectionCells {
        table: Arc::clone(table),
        user: Arc::clone(&user),
        cell,
        tx: AtomicU64::new(0),
        rx: AtomicU64::new(0),
    };
    Some(
        Grant::new(user.id.to_string())
            .limits(user.limits())
            .counters(Arc::new(UserCounters::over(Arc::new(cells))))
            .guard(admission),
    )
}

/// Asks the master for a slice when there is none, and waits a moment for it.
pub(super) async fn has_quota(table: &UserTable, user: &User) -> bool {
    let enough = || user.has_allowance(table.total(user.id));
    if enough() {
        return true;
    }
    let mut answers = table.leases.answers();
    answers.borrow_and_update();
    table.leases.want(user.id);
    let until = Instant::now() + GRANT_WAIT;
    while !enough() {
        if !table.leases.is_online()
            || table.leases.is_exhausted(user.id)
            || timeout_at(until, answers.changed()).await.is_err()
        {
            return enough();
        }
    }
    true
}

/// Asks the master for a place when the devices here take all that there are.
async fn has_place(table: &UserTable, user: &User, from: IpAddr) -> bool {
    let needed = || {
        let mut devices = user.devices();
        devices.insert(from);
        u32::try_from(devices.len()).unwrap_or(u32::MAX)
    };
    let enough = || needed() <= table.leases.places(user.id).min(user.max_devices());
    if enough() {
        return true;
    }
    if needed() > user.max_devices() {
        return false;
    }
    let mut answers = table.leases.answers();
    answers.borrow_and_update();
    let in_use = u32::try_from(user.devices().len()).unwrap_or(u32::MAX);
    table.leases.want_places(user.id, in_use, needed());
    let until = Instant::now() + GRANT_WAIT;
    while !enough() {
        if !table.leases.is_online() || timeout_at(until, answers.changed()).await.is_err() {
            return enough();
        }
    }
    true
}

/// Counts for the user and for one connection, and stops who has used a quota up.
struct ConnectionCells {
    table: Arc<UserTable>,
    user: Arc<User>,
    cell: Cell,
    tx: AtomicU64,
    rx: AtomicU64,
}

impl fmt::Debug for ConnectionCells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionCells")
            .field("cell", &self.cell)
            .finish_non_exhaustive()
    }
}

impl ByteCells for ConnectionCells {
    fn add_tx(&self, bytes: u64) {
        self.cell.add_tx(bytes);
        self.tx.fetch_add(bytes, Relaxed);
        self.table.moved(&self.user, &self.cell);
    }

    fn add_rx(&self, bytes: u64) {
        self.cell.add_rx(bytes);
        self.rx.fetch_add(bytes, Relaxed);
        self.table.moved(&self.user, &self.cell);
    }

    fn read(&self) -> (u64, u64) {
        (self.tx.load(Relaxed), self.rx.load(Relaxed))
    }
}

/// Keeps account of who is here.
pub(crate) struct Events(pub(crate) Arc<UserTable>);

impl EventSink for Events {
    fn connected(&self, peer: &Peer, _tx: Option<Bandwidth>) {
        let Ok(user) = peer.user.as_str().parse() else {
            return;
        };
        let connection = peer.connection.as_u64();
        // Between the judgement and this moment the user may have been removed, or the credential
        // changed.
        if !self.0.entered(user, connection, peer.remote)
            && let Some(engine) = self.0.engine()
        {
            engine.kick_connection(connection);
        }
        tracing::info!(conn = connection, user, "client connected");
    }

    fn disconnected(&self, peer: &Peer, reason: &hy2_core::quinn::ConnectionError) {
        let Ok(user) = peer.user.as_str().parse() else {
            return;
        };
        self.0.left(user, peer.connection.as_u64());
        tracing::info!(conn = peer.connection.as_u64(), user, %reason, "client disconnected");
    }
}
