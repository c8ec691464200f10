use std::sync::atomic::Ordering::SeqCst;

use hy2_agent_sdk::{hy2_proto::control::rpc::EngineState, report::PanicCount};

use crate::{
    fleet::World,
    origin::{Echo, Traffic, udp_echo},
    soon,
};

#[tokio::test]
async fn a_new_node_enrols_serves_a_user_and_its_bytes_arrive_once() {
    let mut world = World::with_users(&[(1, "alice's credential"), (2, "bob's credential")]).await;
    let agent = world.start().await;
    assert_eq!(agent.status().borrow().engine, EngineState::Serving);
    let echo = Echo::start().await;
    let alice = world.client("alice's credential").await;
    let bob = world.client("bob's credential").await;
    let of_alice = Traffic::start(&alice, &echo.target(), 3, 5000).await;
    let of_bob = Traffic::start(&bob, &echo.target(), 2, 777).await;
    let (udp, _tasks) = udp_echo().await;
    let session = alice.udp().await.expect("a session");
    session.send(&[9; 300], &udp.to_string()).expect("sent");
    soon("datagram", session.recv()).await.expect("echoed");
    // Answers get lost on the way: batches are sent again, and count once.
    world.master.shared.lose_answers.store(3, SeqCst);
    world
        .master
        .until_stored("three repeated batches", |store| {
            store.duplicates >= 1 || store.batches > 30
        })
        .await;
    let (moved_alice, moved_bob) = (of_alice.finish().await, of_bob.finish().await);
    let wanted_alice = (moved_alice + 300, moved_alice + 300);
    world
        .master
        .until_stored("every byte", |store| {
            store.bytes.get(&1) == Some(&wanted_alice)
                && store.bytes.get(&2) == Some(&(moved_bob, moved_bob))
        })
        .await;
    drop((alice, bob, session));
    world.shutdown().await;
    let store = world.master.shared.store.lock();
    assert_eq!(store.bytes[&1], wanted_alice, "nothing more");
    assert_eq!(store.bytes[&2], (moved_bob, moved_bob));
}

#[tokio::test]
async fn an_answer_that_comes_again_acknowledges_no_other_batch() {
    let mut world = World::with_users(&[(1, "alice's credential")]).await;
    world.master.shared.extra_answers.store(2, SeqCst);
    world.start().await;
    let echo = Echo::start().await;
    let alice = world.client("alice's credential").await;
    let traffic = Traffic::start(&alice, &echo.target(), 2, 1000).await;
    world
        .master
        .until_stored("batches", |store| store.batches >= 20)
        .await;
    let moved = traffic.finish().await;
    let all = (moved, moved);
    world
        .master
        .until_stored("every byte", |store| store.bytes.get(&1) == Some(&all))
        .await;
    drop(alice);
    world.shutdown().await;
    let store = world.master.shared.store.lock();
    assert_eq!(store.bytes[&1], all, "nothing more");
    assert_eq!(store.cursors.len(), 1, "no spool but the first");
    assert_eq!(store.duplicates, 0, "no batch is sent twice for it");
    let seen = world.master.shared.seen.borrow();
    assert!(seen.alerts.is_empty(), "{:?}", seen.alerts);
}

#[tokio::test]
async fn heartbeats_status_figures_and_sessions_are_reported() {
    let mut world = World::with_users(&[(1, "alice's credential")]).await;
    let panics = PanicCount::default();
    let counted = panics.clone();
    world.start_with(|builder| builder.panics(counted)).await;
    let rev = world.master.shared.desired.lock().rev;
    world.master.acked(rev).await;
    panics.note();
    panics.note();
    let echo = Echo::start().await;
    let alice = world.client("alice's credential").await;
    let traffic = Traffic::start(&alice, &echo.target(), 2, 1000).await;
    let seen = world
        .master
        .until_seen("reports", |seen| {
            seen.heartbeats > 1
                && seen
                    .metrics
                    .iter()
                    .any(|one| one.tcp_streams == 2 && one.tx_bytes > 0)
                && seen
                    .statuses
                    .iter()
                    .any(|one| one.engine() == EngineState::Serving)
                && seen
                    .live
                    .values()
                    .any(|one| one.tcp_streams == 2 && one.tx_bytes > 0)
        })
        .await;
    let sample = seen.metrics.last().expect("one");
    assert_eq!(
        (
            sample.connections,
            sample.users_online,
            sample.auth_accepted
        ),
        (1, 1, 1)
    );
    assert!(
        sample.memory_total_bytes > 0 && sample.open_files > 0,
        "{sample:?}"
    );
    assert_eq!(sample.panics, 2);
    let live = seen.live.values().next().expect("one");
    assert_eq!(live.user_id, 1);
    assert!(live.since.is_some() && live.mtu >= 1200, "{live:?}");
    traffic.finish().await;
    alice.close().await;
    world
        .master
        .until_seen("the end", |seen| seen.live.is_empty())
        .await;
}
