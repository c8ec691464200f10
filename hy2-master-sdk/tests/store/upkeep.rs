//! What holds the store together: leases of tasks, wake-up calls, averages, retention.

use std::task::Poll;
use std::time::Duration;

use hy2_master_sdk::MasterConfig;
use hy2_master_sdk::domain::{AdminId, Timestamp};
use hy2_master_sdk::store::cluster::Lease;
use hy2_master_sdk::store::nodes::{self, Bump};
use hy2_master_sdk::store::observed::MetricsRow;
use hy2_master_sdk::store::{Db, Store, StoreError, Topic, cluster, events, idempotency, upkeep};
use uuid::Uuid;

use crate::backend::Backend;
use crate::rows::{NOW, node};

pub(crate) async fn a_lease_has_one_holder_and_an_old_token_writes_nothing(backend: &Backend) {
    let store = &backend.store;
    let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let ask = async |holder, now, unchanged| {
        let asked = store.acquire_lease("task", holder, now, 1_000, unchanged);
        asked.await.unwrap()
    };
    let mine = |lease| match lease {
        Lease::Mine(fence) => fence,
        Lease::Others(held) => panic!("{held:?}"),
    };
    let others = |lease| match lease {
        Lease::Others(held) => held,
        Lease::Mine(fence) => panic!("{fence:?}"),
    };
    let first = mine(ask(a, NOW, None).await);
    others(ask(b, NOW, None).await);
    assert_eq!(mine(ask(a, NOW, None).await), first);
    let later = Timestamp(NOW.0 + 1_000);
    let second = mine(ask(b, later, None).await);
    assert!(second.token > first.token);
    let mut tx = store.begin().await.unwrap();
    assert!(matches!(
        cluster::check_fence(&mut tx, &first).await,
        Err(StoreError::Fenced("task"))
    ));
    cluster::check_fence(&mut tx, &second).await.unwrap();
    tx.commit().await.unwrap();
    // Given back, it is free for whoever's clock is behind, too.
    store.release_leases(b).await.unwrap();
    let third = mine(ask(a, NOW, None).await);
    // Of a clock that was years ahead: over for who has seen that nobody keeps it.
    let ahead = mine(ask(b, Timestamp(NOW.0 + 1_000_000_000_000), None).await);
    let held = others(ask(a, NOW, None).await);
    assert_eq!(others(ask(a, NOW, None).await), held);
    let fourth = mine(ask(a, NOW, Some(held)).await);
    assert!(third.token < ahead.token && ahead.token < fourth.token);
    // What was seen is another by now.
    others(ask(b, NOW, Some(held)).await);
}

pub(crate) async fn a_transaction_whose_beginning_is_given_up_is_not_left_open(backend: &Backend) {
    const TASKS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    let (store, other) = (&backend.store, backend.reopen().await);
    let (mine, theirs) = (Uuid::from_u128(1), Uuid::from_u128(2));
    // At each place where it waits, and often: whose turn it is then is not always the same.
    for round in 0..60 {
        let place = round % 6 + 1;
        drop(given_up(store.begin(), place).await);
        drop(given_up(store.snapshot(), place).await);
        // What is written next is there for others, whichever connection wrote it.
        let now = NOW.plus(Duration::from_secs(100 * round as u64));
        let taken = TASKS.map(|task| store.acquire_lease(task, mine, now, 60_000, None));
        for lease in futures_util::future::join_all(taken).await {
            assert!(matches!(lease.unwrap(), Lease::Mine(_)));
        }
        for task in TASKS {
            let asked = other.acquire_lease(task, theirs, now, 60_000, None);
            let found = tokio::time::timeout(Duration::from_secs(60), asked).await;
            let found = found.expect("no lock is held").unwrap();
            assert!(matches!(found, Lease::Others(_)), "{task}: {found:?}");
        }
    }
}

/// Waits for a future at most so many times.
async fn given_up<F: Future>(future: F, times: usize) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let mut left = times;
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => {
            left -= 1;
            if left == 0 {
                Poll::Ready(None)
            } else {
                Poll::Pending
            }
        }
    })
    .await
}

pub(crate) async fn calls_arrive_after_the_commit_only(backend: &Backend) {
    let store = &backend.store;
    // On PostgreSQL another process hears it too.
    let other = backend.reopen().await;
    let mut heard = if store.is_postgres() {
        let heard = other.bus().listen();
        let relay = other.clone();
        tokio::spawn(async move { relay.relay_calls().await });
        heard
    } else {
        store.bus().listen()
    };
    let node = node(store, "one").await;
    let deadline = Duration::from_secs(30);
    // Whatever arrived until the listener was ready.
    tokio::time::timeout(deadline, heard.recv())
        .await
        .unwrap()
        .unwrap();
    let mut tx = store.begin().await.unwrap();
    nodes::bump(&mut tx, node, Bump::MANIFEST, NOW)
        .await
        .unwrap();
    tx.rollback().await.unwrap();
    let mut tx = store.begin().await.unwrap();
    tx.call(Topic::Revocations);
    tx.commit().await.unwrap();
    loop {
        let topic = tokio::time::timeout(deadline, heard.recv())
            .await
            .unwrap()
            .unwrap();
        if topic == Topic::Revocations {
            break;
        }
    }
}

pub(crate) async fn averages_and_retention(backend: &Backend) {
    let store = &backend.store;
    let node = node(store, "one").await;
    let start = Timestamp(NOW.0 - NOW.0 % 300_000);
    let samples = (0..20)
        .map(|number| MetricsRow {
            at: Timestamp(start.0 + number * 15_000),
            cpu_permille: number * 10,
            memory_used_bytes: 1,
            memory_total_bytes: 2,
            load1: 0.5,
            disk_free_bytes: 3,
            open_files: 4,
            tx_bytes_per_s: 5,
            rx_bytes_per_s: 6,
            connections: 7,
            users_online: 8,
            tcp_streams: 9,
            udp_sessions: 10,
            auth_accepted: 11,
            auth_rejected: 12,
            handshakes_failed: 13,
            rtt_p50_ms: 1.5,
            rtt_p95_ms: 2.5,
            loss_permille: 14,
            spool_bytes: 15,
            agent_memory_bytes: 16,
            panics: 0,
        })
        .collect::<Vec<_>>();
    store.insert_metrics(node, &samples).await.unwrap();
    store.insert_metrics(node, &samples[..3]).await.unwrap();
    let end = Timestamp(start.0 + 300_000);
    let mut tx = store.begin().await.unwrap();
    for _ in 0..2 {
        upkeep::average_metrics(&mut tx, 15, 300, start, end)
            .await
            .unwrap();
    }
    tx.commit().await.unwrap();
    let averages = store.metrics(node, 300, start, end, 9).await.unwrap();
    assert_eq!(averages.len(), 1);
    assert_eq!((averages[0].at, averages[0].cpu_permille), (start, 95));
    assert!((averages[0].load1 - 0.5).abs() < 1e-9);
    let config = MasterConfig::default();
    let mut tx = store.begin().await.unwrap();
    let later = end.plus(config.keep_metrics);
    let expired = upkeep::expire(&mut tx, &config, later).await.unwrap();
    assert_eq!((expired.rows, expired.more), (20, false));
    tx.commit().await.unwrap();
    assert!(
        store
            .metrics(node, 15, start, end, 99)
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        store.metrics(node, 300, start, end, 9).await.unwrap().len(),
        1
    );
}

pub(crate) async fn a_clock_that_is_ahead_for_a_while_deletes_no_years(backend: &Backend) {
    let at = async |now: Timestamp| {
        let mut tx = backend.store.begin().await.unwrap();
        let at = upkeep::retention_time(&mut tx, now).await.unwrap();
        tx.commit().await.unwrap();
        at
    };
    assert_eq!(at(NOW).await, NOW);
    let soon = NOW.plus(Duration::from_secs(300));
    assert_eq!(at(soon).await, soon);
    let years = NOW.plus(Duration::from_secs(1_000 * 86_400));
    assert_eq!(at(years).await, soon.plus(upkeep::RETENTION_STEP));
    assert_eq!(at(soon).await, soon, "right again");
}

pub(crate) async fn retention_goes_in_pieces_and_keeps_what_is_needed(backend: &Backend) {
    let store = &backend.store;
    let config = MasterConfig::default();
    let many = upkeep::MAX_EXPIRED + 3;
    execute(
        store,
        "insert into traffic_daily (day, user_id, tx, rx) with recursive n (i) as \
         (select 1 union all select i + 1 from n where i < 5003) select 0, i, 1, 1 from n",
    )
    .await;
    assert_eq!(many, 5_003, "as many as the statement makes");
    let mut tx = store.begin().await.unwrap();
    for at in 0..3 {
        let payload = serde_json::json!({"at": at});
        events::emit(&mut tx, "user.created", "1", &payload, None, NOW)
            .await
            .unwrap();
    }
    tx.commit().await.unwrap();
    let claim = async |key, at: Timestamp| {
        let until = at.plus(Duration::from_secs(60));
        let mut tx = store.begin().await.unwrap();
        let claimed = idempotency::claim(&mut tx, AdminId(1), key, b"hash", at, until).await;
        tx.commit().await.unwrap();
        claimed.unwrap().is_none()
    };
    assert!(claim("old", NOW).await);
    let later = NOW.plus(config.keep_events + Duration::from_secs(61));
    assert!(claim("new", later).await);
    let expire = async || {
        let mut tx = store.begin().await.unwrap();
        let expired = upkeep::expire(&mut tx, &config, later).await.unwrap();
        tx.commit().await.unwrap();
        (expired.rows, expired.more)
    };
    // What nobody has numbered yet, nobody has been told of: only the old claim goes.
    let piece = upkeep::MAX_EXPIRED;
    assert_eq!(expire().await, (piece + 1, true));
    assert_eq!(expire().await, (3, false));
    assert_eq!(events::seal(store).await.unwrap(), 3);
    assert_eq!(expire().await, (2, false));
    let left = events::after(store, 0, 10).await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!((left[0].seq, events::newest(store).await.unwrap()), (3, 3));
    assert!(!claim("new", later).await, "kept");
    assert_eq!(expire().await, (0, false));
}

pub(crate) async fn execute(store: &Store, sql: &'static str) {
    match store.db() {
        Db::Pg(pool) => {
            sqlx::query(sql).execute(pool).await.unwrap();
        }
        Db::Sqlite { write, .. } => {
            sqlx::query(sql).execute(write).await.unwrap();
        }
    }
}

// ---------------------------------------------------------------- helpers
