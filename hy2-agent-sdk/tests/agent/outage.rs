use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, SystemTime},
};

use hy2_agent_sdk::{
    clock::ManualClock,
    hy2_core::Client,
    hy2_proto::control::rpc::{EngineState, ExpiryPolicy},
};

use crate::{
    fleet::{World, user},
    origin::{Echo, Traffic},
    soon,
};

const ALICE: &str = "alice's credential";
const BOB: &str = "bob's credential";
const CAROL: &str = "carol's credential";

/// What carol may use without a master.
const SLICE: u64 = 512 << 10;

/// One chunk of the relay may be on its way on each stream when the slice ends.
const CHUNK: u64 = 256 << 10;

#[tokio::test]
async fn a_day_without_a_master_loses_no_byte_and_nobody_who_may_stay() {
    let now = SystemTime::now();
    let clock = Arc::new(ManualClock::new(now));
    let mut world = World::with_users(&[(1, ALICE)]).await;
    let mut entry = user(2, BOB);
    entry.expires_at = Some((now + Duration::from_secs(12 * 3600)).into());
    let mut metered = user(3, CAROL);
    metered.metered = true;
    world
        .master
        .shared
        .desired
        .lock()
        .users
        .extend([(2, entry), (3, metered)]);
    {
        let mut quotas = world.master.shared.quotas.lock();
        quotas.left.insert(3, 64 * SLICE);
        quotas.slice = SLICE;
    }
    *world.master.shared.clock.lock() = Arc::clone(&clock) as _;
    let ticking = Arc::clone(&clock);
    world.start_with(|builder| builder.clock(ticking)).await;
    world.master.acked(1).await;
    let echo = Echo::start().await;
    // Carol has a slice when the master goes.
    let carol = world.client(CAROL).await;
    let warm = Traffic::start(&carol, &echo.target(), 1, 1000).await;
    soon("a round", async {
        while warm.rounds.load(SeqCst) < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    world.master.stop().await;
    let granted: u64 = world.master.shared.quotas.lock().granted.values().sum();
    warm.finish().await;
    let rest = Traffic::start(&carol, &echo.target(), 2, 16 << 10).await;
    soon("the end of the slice", rest.until_cut()).await;
    let (mut moved_alice, mut moved_bob) = (0, 0);
    for hour in 0..24 {
        let alice = world.client(ALICE).await;
        let traffic = Traffic::start(&alice, &echo.target(), 1, 1000).await;
        soon("a round", async {
            while traffic.rounds.load(SeqCst) < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        moved_alice += traffic.finish().await;
        if hour < 12 {
            let bob = world.client(BOB).await;
            let traffic = Traffic::start(&bob, &echo.target(), 1, 100).await;
            moved_bob += traffic.finish().await;
        } else {
            world.is_refused(BOB).await;
        }
        // What she was lent is used up, all day long.
        world.is_refused(CAROL).await;
        drop(alice);
        if hour % 8 == 3 {
            // It starts again on its own.
            world.shutdown().await;
            let ticking = Arc::clone(&clock);
            let agent = world.start_with(|builder| builder.clock(ticking)).await;
            assert_eq!(agent.status().borrow().engine, EngineState::Serving);
        }
        clock.advance(Duration::from_secs(3600));
    }
    world.master.resume().await;
    world
        .master
        .until_stored("the day's traffic", |store| {
            store.bytes.get(&1) == Some(&(moved_alice, moved_alice))
                && store.bytes.get(&2).copied().unwrap_or_default() == (moved_bob, moved_bob)
        })
        .await;
    let (tx, rx) = world.agent.as_ref().expect("runs").handle().totals();
    world
        .master
        .until_stored("what carol used", |store| store.total() == (tx, rx))
        .await;
    let store = world.master.shared.store.lock();
    let (up, down) = store.bytes[&3];
    let used = up + down;
    assert!(
        used >= granted,
        "all of it could be used: {used} of {granted}"
    );
    assert!(used <= granted + 2 * CHUNK, "{used} of {granted}");
    assert_eq!(store.duplicates, 0);
}

#[tokio::test]
async fn a_manifest_past_its_validity_serves_or_drains_as_the_policy_says() {
    for policy in [ExpiryPolicy::Serve, ExpiryPolicy::Drain] {
        let clock = Arc::new(ManualClock::new(SystemTime::now()));
        let mut world = World::with_users(&[(1, ALICE)]).await;
        world.master.shared.desired.lock().config.expiry_policy = policy.into();
        let ticking = Arc::clone(&clock);
        world.start_with(|builder| builder.clock(ticking)).await;
        world.master.acked(1).await;
        world.master.stop().await;
        let echo = Echo::start().await;
        let alice = world.client(ALICE).await;
        let traffic = Traffic::start(&alice, &echo.target(), 1, 100).await;
        clock.advance(Duration::from_secs(7 * 86_400 + 60));
        if policy == ExpiryPolicy::Drain {
            let agent = world.agent.as_ref().expect("runs").handle();
            let mut status = agent.status();
            let drains =
                |status: &hy2_agent_sdk::reconcile::Status| status.engine == EngineState::Draining;
            let found = soon("the drain", status.wait_for(drains)).await;
            let found = found.expect("alive").reason.clone();
            assert_eq!(found, "what the master said last has run out");
            world.is_refused(ALICE).await;
        } else {
            world.client(ALICE).await.close().await;
        }
        // Who is in stays.
        traffic.finish().await;
    }
}

#[tokio::test]
async fn a_host_that_starts_with_a_lost_clock_serves_whom_it_should_without_its_master() {
    let now = SystemTime::now();
    let mut world = World::with_users(&[(1, ALICE)]).await;
    let mut over = user(2, BOB);
    over.expires_at = Some((now - Duration::from_secs(3600)).into());
    world.master.shared.desired.lock().users.insert(2, over);
    world.start().await;
    world.master.acked(1).await;
    world.master.stop().await;
    world.shutdown().await;
    for lost in [SystemTime::UNIX_EPOCH, now - Duration::from_secs(86_400)] {
        let clock = Arc::new(ManualClock::new(lost));
        let agent = world.start_with(|builder| builder.clock(clock)).await;
        assert_eq!(agent.status().borrow().engine, EngineState::Serving);
        world.client(ALICE).await.close().await;
        if lost == SystemTime::UNIX_EPOCH {
            world.is_refused(BOB).await;
        }
        world.shutdown().await;
    }
}

#[tokio::test]
async fn a_master_whose_clock_is_set_is_followed_while_the_session_lasts() {
    const DAY: Duration = Duration::from_secs(86_400);
    let now = SystemTime::now();
    let mut world = World::with_users(&[(1, ALICE)]).await;
    let mut entry = user(2, BOB);
    entry.expires_at = Some((now + DAY).into());
    world.master.shared.desired.lock().users.insert(2, entry);
    let clock = Arc::new(ManualClock::new(now + 2 * DAY));
    world.master.shared.tells_time.store(true, SeqCst);
    *world.master.shared.clock.lock() = Arc::clone(&clock) as _;
    world.start().await;
    for (master, is_in) in [
        (now + 2 * DAY, false),
        (now, true),
        (now + 3 * DAY, false),
        (now, true),
    ] {
        clock.set(master);
        soon("the master's time", async {
            loop {
                let connected = soon("an answer", Client::connect(world.client_config(BOB)));
                if connected.await.is_ok() == is_in {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        world.client(ALICE).await.close().await;
    }
    // Who came in after the clock was set back is cut when the time comes.
    let bob = world.client(BOB).await;
    let echo = Echo::start().await;
    let traffic = Traffic::start(&bob, &echo.target(), 1, 100).await;
    assert_eq!(world.master.shared.seen.borrow().sessions, 1);
    clock.set(now + DAY);
    soon("the end of bob's time", traffic.until_cut()).await;
    assert_eq!(world.master.shared.seen.borrow().sessions, 1);
}
