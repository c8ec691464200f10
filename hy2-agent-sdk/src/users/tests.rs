use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use hy2_core::{BoxFuture, authenticator::UserLimits};
use hy2_proto::control::{
    MULTIPLIER_ONE,
    rpc::{ApplyEffect, DeviceLease, FieldError, LeaseResponse, QuotaLease, UserEntry},
};
use tempfile::TempDir;
use tokio::time::Instant;

use super::{
    connection::{grant, has_quota},
    table::{User, UserTable},
};
use crate::{
    clock::{Clock, ManualClock, from_unix_ms},
    engine::{Engine, EngineSession},
    leases::Leases,
    ledger::{StoredUser, UserChanges},
    settings::{NodeSettings, VerifierKeys},
    traffic::{NoCut, Traffic},
};

/// Knows whether it was told to hold its only user back.
#[derive(Default)]
struct Held(AtomicBool);

impl Engine for Held {
    fn check<'a>(
        &'a self,
        _: &'a NodeSettings,
    ) -> BoxFuture<'a, Result<ApplyEffect, Vec<FieldError>>> {
        Box::pin(async { Ok(ApplyEffect::Hot) })
    }

    fn apply<'a>(
        &'a self,
        _: &'a NodeSettings,
    ) -> BoxFuture<'a, Result<ApplyEffect, Vec<FieldError>>> {
        Box::pin(async { Ok(ApplyEffect::Hot) })
    }

    fn listening(&self) -> Vec<SocketAddr> {
        Vec::new()
    }

    fn kick_user(&self, _: u64) -> usize {
        1
    }

    fn hold_user(&self, _: u64, held: bool) -> bool {
        self.0.store(held, SeqCst);
        true
    }

    fn kick_connection(&self, _: u64) -> bool {
        true
    }

    fn set_limits(&self, _: u64, _: UserLimits) {}

    fn sessions(&self) -> Vec<EngineSession> {
        Vec::new()
    }

    fn stop(&self, _: Duration) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// A table, with the folder of its counters.
struct Node {
    table: Arc<UserTable>,
    _folder: TempDir,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(from_unix_ms(1_000_000)));
        let traffic = Traffic::open(folder.path(), 1 << 20, Arc::clone(&clock)).unwrap();
        let leases = Leases::open(folder.path(), Arc::clone(&clock)).unwrap();
        let table = UserTable::new(clock, Arc::new(traffic), Arc::new(leases));
        table.set_keys(&VerifierKeys {
            fleet: [1; 32],
            node: [2; 32],
        });
        table.leases.set_online(true);
        Self {
            table: Arc::new(table),
            _folder: folder,
        }
    }

    /// The only user, with a credential.
    fn entry(&self, credential: &str) -> UserEntry {
        let verifier = self.table.verifier(credential).unwrap();
        UserEntry {
            user_id: 1,
            verifier: verifier.to_vec().into(),
            ..UserEntry::default()
        }
    }

    /// Makes the table what is desired.
    fn has(&self, entry: Option<UserEntry>) {
        let all = UserChanges {
            upsert: Vec::new(),
            remove: Vec::new(),
            all: true,
        };
        let users: BTreeMap<_, _> = entry
            .into_iter()
            .map(|entry| (entry.user_id, StoredUser::unsigned(entry)))
            .collect();
        self.table.apply(&users, &all);
    }

    fn lent(&self, lent: &LeaseResponse) {
        self.table
            .leases
            .grant(lent, &*self.table, &NoCut::NO_COUNTERS);
    }

    fn user(&self) -> Arc<User> {
        self.table.user(1).unwrap()
    }
}

fn places(slots: u32) -> LeaseResponse {
    LeaseResponse {
        devices: vec![DeviceLease {
            user_id: 1,
            slots,
            expires_at: at(2000),
        }],
        ..LeaseResponse::default()
    }
}

fn slice(lease_id: u64, granted_bytes: u64) -> LeaseResponse {
    LeaseResponse {
        quotas: vec![QuotaLease {
            lease_id,
            user_id: 1,
            granted_bytes,
            expires_at: at(2000),
            billing_multiplier: MULTIPLIER_ONE,
        }],
        ..LeaseResponse::default()
    }
}

fn at(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds, nanos: 0 })
}

fn from(last: u8) -> SocketAddr {
    ([192, 0, 2, last], 4000).into()
}

#[test]
fn devices_that_were_judged_at_the_same_time_share_no_place() {
    let node = Node::new();
    let mut entry = node.entry("hers");
    entry.max_devices = 3;
    node.has(Some(entry));
    node.lent(&places(1));
    let (user, verifier) = node.table.who("hers").unwrap();
    let entered = |connection, remote| {
        let admission = user.admit(remote, verifier);
        let entered = node.table.entered(1, connection, remote);
        drop(admission);
        entered
    };
    let (one, other) = (from(1), from(2));
    assert!(entered(11, one));
    assert!(!entered(12, other), "one place for two devices");
    assert!(entered(13, one), "the same device once more");
    node.table.left(1, 12);
    node.table.left(1, 11);
    assert!(!entered(14, other));
    node.table.left(1, 13);
    assert!(entered(15, other), "its place is free");
}

#[test]
fn a_chunk_on_its_way_when_its_user_is_removed_holds_nobody_who_comes_back() {
    let node = Node::new();
    let engine = Arc::new(Held::default());
    let as_engine: Arc<dyn Engine> = Arc::clone(&engine) as _;
    node.table.connect(&as_engine);
    let mut entry = node.entry("hers");
    entry.metered = true;
    node.has(Some(entry.clone()));
    node.lent(&slice(1, 1000));
    node.table.refresh([1]);
    let removed = node.user();
    let cell = node.table.traffic.cells.of(1).unwrap();
    cell.add_tx(1000);
    node.table.moved(&removed, &cell);
    assert!(engine.0.load(SeqCst), "at the end of the slice");
    node.has(None);
    assert!(!engine.0.load(SeqCst));
    cell.add_tx(100);
    node.table.moved(&removed, &cell);
    assert!(!engine.0.load(SeqCst));
    // Whatever was held by this number before: who is new is not.
    engine.hold_user(1, true);
    node.has(Some(entry));
    assert!(!engine.0.load(SeqCst));
    // The new one is held at the end of the slice, whatever the old one moves.
    node.lent(&slice(2, 1000));
    node.table.refresh([1]);
    cell.add_tx(1000);
    node.table.moved(&node.user(), &cell);
    assert!(engine.0.load(SeqCst));
}

#[test]
fn places_of_who_is_removed_go_back_once_and_who_comes_back_asks_for_one() {
    let node = Node::new();
    let engine: Arc<dyn Engine> = Arc::new(Held::default());
    node.table.connect(&engine);
    let leases = &node.table.leases;
    let asked = || {
        let request = leases.request(&*node.table)?;
        let wanted = request.devices.iter().map(|want| want.wanted);
        Some(wanted.collect::<Vec<_>>())
    };
    let mut entry = node.entry("hers");
    entry.max_devices = 2;
    node.has(Some(entry.clone()));
    node.lent(&places(1));
    node.table.refresh([1]);
    assert_eq!(asked(), None);
    node.has(None);
    assert_eq!(asked(), Some(vec![0]));
    // What was on its way here goes back, too.
    node.lent(&places(1));
    node.table.refresh([1]);
    assert_eq!(asked(), Some(vec![0]));
    node.lent(&places(0));
    node.table.refresh([1]);
    assert_eq!(asked(), None);
    // Who is back before that was said has no place from before, and is asked for alone.
    node.has(Some(entry.clone()));
    node.lent(&places(1));
    node.table.refresh([1]);
    node.has(None);
    node.has(Some(entry));
    assert_eq!(leases.places(1), 0);
    leases.want_places(1, 0, 1);
    assert_eq!(asked(), Some(vec![1]));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_slice_is_let_in_when_it_is_there() {
    let node = Node::new();
    let mut entry = node.entry("hers");
    entry.metered = true;
    node.has(Some(entry));
    let begun = Instant::now();
    let (table, user) = (Arc::clone(&node.table), node.user());
    let waiting = tokio::spawn(async move { has_quota(&table, &user).await });
    let settled = async || {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    };
    settled().await;
    node.lent(&slice(1, 1000));
    // Whoever looks between these two sees nothing yet.
    settled().await;
    node.table.refresh([1]);
    assert!(waiting.await.unwrap());
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_credential_that_changes_while_its_client_waits_lets_nobody_in() {
    let node = Node::new();
    let limited = |credential| {
        let mut entry = node.entry(credential);
        entry.max_devices = 2;
        Some(entry)
    };
    node.has(limited("old"));
    let (user, verifier) = node.table.who("old").unwrap();
    let table = Arc::clone(&node.table);
    let waiting = tokio::spawn(async move { grant(&table, user, verifier, from(1)).await });
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    node.has(limited("new"));
    node.lent(&places(1));
    node.table.refresh([1]);
    assert!(waiting.await.unwrap().is_none());
    // Nor between the judgement and the moment of coming in.
    let (user, verifier) = node.table.who("new").unwrap();
    let granted = grant(&node.table, user, verifier, from(1)).await;
    assert!(granted.is_some());
    node.has(limited("newer"));
    assert!(!node.table.entered(1, 11, from(1)));
    node.table.left(1, 11);
    let (user, verifier) = node.table.who("newer").unwrap();
    let granted = grant(&node.table, user, verifier, from(1)).await;
    assert!(granted.is_some() && node.table.entered(1, 12, from(1)));
    assert!(!node.table.entered(1, 13, from(1)), "nobody was let in");
}

#[test]
fn who_was_over_by_a_clock_that_was_ahead_is_looked_at_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(from_unix_ms(1_000_000)));
    let given: Arc<dyn Clock> = Arc::clone(&clock) as _;
    let traffic = Traffic::open(folder.path(), 1 << 20, Arc::clone(&given)).unwrap();
    let leases = Leases::open(folder.path(), Arc::clone(&given)).unwrap();
    let table = UserTable::new(given, Arc::new(traffic), Arc::new(leases));
    let entry = UserEntry {
        user_id: 1,
        verifier: vec![1; 32].into(),
        expires_at: Some(prost_types::Timestamp {
            seconds: 2000,
            nanos: 0,
        }),
        ..UserEntry::default()
    };
    let all = UserChanges {
        upsert: Vec::new(),
        remove: Vec::new(),
        all: true,
    };
    table.apply(&BTreeMap::from([(1, StoredUser::unsigned(entry))]), &all);
    clock.set(from_unix_ms(3_000_000));
    assert!(table.is_due());
    table.tick();
    clock.set(from_unix_ms(1_000_000));
    table.refresh_all();
    assert!(!table.is_due());
    clock.set(from_unix_ms(2_000_000));
    assert!(table.is_due());
}
