use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, SystemTime},
};

use hy2_agent_sdk::{clock::ManualClock, hy2_proto::control::rpc::NodeDesiredState};

use crate::{
    fleet::{World, user, verifier},
    master::farewell,
    origin::{Echo, Traffic, udp_echo},
    soon,
};

const ALICE: &str = "alice's credential";
const BOB: &str = "bob's credential";

#[tokio::test]
async fn a_removed_user_loses_every_connection_and_others_none() {
    let mut world = World::with_users(&[(1, ALICE), (2, BOB)]).await;
    world.start().await;
    let echo = Echo::start().await;
    let (udp, _tasks) = udp_echo().await;
    let bob = world.client(BOB).await;
    let of_bob = Traffic::start(&bob, &echo.target(), 3, 1000).await;
    let mut devices = Vec::new();
    for _ in 0..3 {
        let device = world.client(ALICE).await;
        let traffic = Traffic::start(&device, &echo.target(), 2, 1000).await;
        let session = device.udp().await.expect("a session");
        session.send(b"ping", &udp.to_string()).expect("sent");
        soon("datagram", session.recv()).await.expect("echoed");
        devices.push((device, traffic, session));
    }
    world
        .master
        .publish_acked(|desired| {
            desired.users.remove(&1);
        })
        .await;
    for (device, traffic, session) in devices {
        soon("the streams' end", traffic.until_cut()).await;
        assert!(soon("the session's end", session.recv()).await.is_none());
        drop(device);
    }
    world.is_refused(ALICE).await;
    // As fast back.
    world
        .master
        .publish_acked(|desired| {
            desired.users.insert(1, user(1, ALICE));
        })
        .await;
    world.client(ALICE).await.close().await;
    of_bob.finish().await;
}

#[tokio::test]
async fn a_deleted_node_serves_nobody_until_a_master_welcomes_it_again() {
    let mut world = World::with_users(&[(1, ALICE)]).await;
    let agent = world.start().await;
    world.master.acked(1).await;
    let echo = Echo::start().await;
    let alice = world.client(ALICE).await;
    let traffic = Traffic::start(&alice, &echo.target(), 2, 1000).await;
    world.master.shared.retired.store(true, SeqCst);
    world.master.send(farewell()).await;
    soon("the streams' end", traffic.until_cut()).await;
    world.is_refused(ALICE).await;
    assert!(agent.status().borrow().reason.contains("deleted"));
    // Neither a restart lets anybody in, nor one without its master.
    for master_is_there in [true, false] {
        world.shutdown().await;
        if !master_is_there {
            world.master.stop().await;
        }
        world.start().await;
        world.is_refused(ALICE).await;
    }
    // A master that was restored may have it back, with nothing to tell it.
    world.master.shared.retired.store(false, SeqCst);
    world.master.resume().await;
    soon("alice is let in", async {
        while hy2_core::Client::connect(world.client_config(ALICE))
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    world.shutdown().await;
    world.start().await;
    world.client(ALICE).await.close().await;
}

#[tokio::test]
async fn a_changed_credential_ends_who_came_with_the_old_one() {
    let mut world = World::with_users(&[(1, ALICE)]).await;
    world.start().await;
    let echo = Echo::start().await;
    let alice = world.client(ALICE).await;
    let traffic = Traffic::start(&alice, &echo.target(), 1, 100).await;
    world
        .master
        .publish_acked(|desired| {
            let entry = desired.users.get_mut(&1).expect("there");
            entry.verifier = verifier("another credential").into();
            entry.rev += 1;
        })
        .await;
    soon("the end", traffic.until_cut()).await;
    world.is_refused(ALICE).await;
    world.client("another credential").await.close().await;
}

#[tokio::test]
async fn a_user_is_cut_off_at_the_moment_of_expiry_without_a_master() {
    let now = SystemTime::now();
    let clock = Arc::new(ManualClock::new(now));
    let mut world = World::with_users(&[(2, BOB)]).await;
    let mut entry = user(1, ALICE);
    entry.expires_at = Some((now + Duration::from_secs(3600)).into());
    world.master.shared.desired.lock().users.insert(1, entry);
    let ticking = Arc::clone(&clock);
    world.start_with(|builder| builder.clock(ticking)).await;
    world.master.acked(1).await;
    let echo = Echo::start().await;
    let alice = world.client(ALICE).await;
    let bob = world.client(BOB).await;
    let of_bob = Traffic::start(&bob, &echo.target(), 1, 100).await;
    let of_alice = Traffic::start(&alice, &echo.target(), 1, 100).await;
    world.master.stop().await;
    clock.advance(Duration::from_secs(3590));
    world.client(ALICE).await.close().await;
    clock.advance(Duration::from_secs(10));
    soon("the end", of_alice.until_cut()).await;
    world.is_refused(ALICE).await;
    of_bob.finish().await;
}

#[tokio::test]
async fn connection_limits_and_rates_change_under_live_connections() {
    let mut world = World::with_users(&[(1, ALICE)]).await;
    let agent = world.start().await;
    let echo = Echo::start().await;
    let first = world.client(ALICE).await;
    let kept = Traffic::start(&first, &echo.target(), 1, 100).await;
    let second = world.client(ALICE).await;
    let cut = Traffic::start(&second, &echo.target(), 1, 100).await;
    world
        .master
        .publish_acked(|desired| {
            let entry = desired.users.get_mut(&1).expect("there");
            entry.max_connections = 1;
            entry.down_bytes_per_s = 100_000;
            entry.rev += 1;
        })
        .await;
    soon("the newer one's end", cut.until_cut()).await;
    world.is_refused(ALICE).await;
    kept.finish().await;
    assert_eq!(agent.sessions().len(), 1);
}

#[tokio::test]
async fn a_draining_node_lets_nobody_in_and_its_streams_finish_until_the_deadline() {
    let clock = Arc::new(ManualClock::new(SystemTime::now()));
    let mut world = World::with_users(&[(1, ALICE), (2, BOB)]).await;
    let ticking = Arc::clone(&clock);
    world.start_with(|builder| builder.clock(ticking)).await;
    world.master.acked(1).await;
    let echo = Echo::start().await;
    let busy = world.client(ALICE).await;
    let traffic = Traffic::start(&busy, &echo.target(), 1, 100).await;
    let idle = world.client(BOB).await;
    let deadline = SystemTime::now() + Duration::from_secs(600);
    world
        .master
        .publish_acked(|desired| {
            desired.state = NodeDesiredState::Draining;
            desired.drain_deadline = Some(deadline);
        })
        .await;
    soon("the idle one's end", idle.disconnected()).await;
    world.is_refused(BOB).await;
    let before = traffic.rounds.load(std::sync::atomic::Ordering::Relaxed);
    soon("the busy one goes on", async {
        while traffic.rounds.load(std::sync::atomic::Ordering::Relaxed) < before + 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    clock.advance(Duration::from_secs(601));
    soon("the busy one's end", traffic.until_cut()).await;
    world
        .master
        .publish_acked(|desired| desired.state = NodeDesiredState::Active)
        .await;
    world.client(BOB).await.close().await;
}

#[tokio::test]
async fn who_is_gone_for_a_minute_leaves_the_rest_of_the_slice_to_other_nodes() {
    let clock = Arc::new(ManualClock::new(SystemTime::now()));
    let mut world = World::with_users(&[]).await;
    let mut entry = user(1, ALICE);
    entry.metered = true;
    world.master.shared.desired.lock().users.insert(1, entry);
    {
        let mut quotas = world.master.shared.quotas.lock();
        quotas.left.insert(1, 1 << 20);
        quotas.slice = 1 << 20;
    }
    let ticking = Arc::clone(&clock);
    let agent = world.start_with(|builder| builder.clock(ticking)).await;
    world.master.acked(1).await;
    let echo = Echo::start().await;
    let alice = world.client(ALICE).await;
    let moved = Traffic::start(&alice, &echo.target(), 1, 100)
        .await
        .finish()
        .await;
    assert_eq!(world.master.shared.quotas.lock().left[&1], 0);
    alice.close().await;
    soon("the end", async {
        while !agent.sessions().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    clock.advance(Duration::from_secs(61));
    soon("the rest", async {
        while world.master.shared.quotas.lock().left[&1] != (1 << 20) - 2 * moved {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // And is lent again when the user comes back.
    world.client(ALICE).await.close().await;
}
