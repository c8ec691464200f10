use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use hy2_agent_sdk::{
    clock::ManualClock,
    hy2_core::{Client, relay::TcpStream, socket::SocketFactory},
    hy2_proto::control::rpc::{Goodbye, LeaseRecall, session_response},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
};

use crate::{
    fleet::{World, user},
    origin::{Echo, Traffic},
    soon,
};

const ALICE: &str = "alice's credential";
const BOB: &str = "bob's credential";
/// One chunk of the relay may be on its way on each stream when the quota ends.
const CHUNK: u64 = 256 << 10;

async fn metered(quota: u64, slice: u64) -> World {
    let world = World::with_users(&[]).await;
    let mut entry = user(1, ALICE);
    entry.metered = true;
    world.master.shared.desired.lock().users.insert(1, entry);
    {
        let mut quotas = world.master.shared.quotas.lock();
        quotas.left.insert(1, quota);
        quotas.slice = slice;
    }
    world
}

#[tokio::test]
async fn a_quota_is_used_slice_by_slice_and_ends_every_connection() {
    let (quota, slice) = (4 << 20, 1 << 20);
    let mut world = metered(quota, slice).await;
    let agent = world.start().await;
    let echo = Echo::start().await;
    let (one, two) = (world.client(ALICE).await, world.client(ALICE).await);
    let first = Traffic::start(&one, &echo.target(), 2, 32 << 10).await;
    let second = Traffic::start(&two, &echo.target(), 2, 32 << 10).await;
    soon("the end of the quota", first.until_cut()).await;
    soon("the end of the quota", second.until_cut()).await;
    world.is_refused(ALICE).await;
    let (tx, rx) = agent.totals();
    assert!(tx + rx >= quota, "all of it could be used: {}", tx + rx);
    assert!(tx + rx <= quota + 4 * CHUNK, "{} over", tx + rx - quota);
    // Each slice was consumed to the byte in the batches.
    world
        .master
        .until_stored("the slices", |store| {
            store.leases.values().sum::<u64>() == quota
        })
        .await;
    {
        let (store, quotas) = (
            world.master.shared.store.lock(),
            world.master.shared.quotas.lock(),
        );
        assert_eq!(store.leases, quotas.granted);
        assert!(quotas.granted.len() >= 4);
    }
    // More quota: as welcome as before.
    world.master.shared.quotas.lock().left.insert(1, 8 << 20);
    world.client(ALICE).await.close().await;
}

#[tokio::test]
async fn a_node_whose_clock_is_wrong_keeps_the_masters_time() {
    const DAY: Duration = Duration::from_secs(86_400);
    let now = SystemTime::now();
    let echo = Echo::start().await;
    for wrong in [now + DAY * 10, now - DAY * 10] {
        let mut world = metered(64 << 20, 1 << 20).await;
        let mut bob = user(2, BOB);
        bob.expires_at = Some((SystemTime::now() + Duration::from_secs(5)).into());
        {
            let mut desired = world.master.shared.desired.lock();
            let alice = desired.users.get_mut(&1).expect("there");
            alice.expires_at = Some((now + DAY).into());
            desired.users.insert(2, bob);
        }
        let clock = Arc::new(ManualClock::new(wrong));
        let ticking = Arc::clone(&clock);
        world.start_with(|builder| builder.clock(ticking)).await;
        world.master.acked(1).await;
        // Her day is not over, nor is the slice that she is lent.
        let alice = world.client(ALICE).await;
        let mut stream = alice.tcp(&echo.target()).await.expect("a stream");
        round(&mut stream, 1000).await.expect("a round");
        // His seconds pass here as they do there.
        clock.advance(Duration::from_secs(6));
        world.is_refused(BOB).await;
        round(&mut stream, 1000).await.expect("a round");
        world.shutdown().await;
    }
}

#[tokio::test]
async fn a_clock_that_is_set_while_the_master_is_there_cuts_nobody() {
    const DAY: Duration = Duration::from_secs(86_400);
    let now = SystemTime::now();
    let echo = Echo::start().await;
    let mut world = metered(64 << 20, 1 << 20).await;
    {
        let mut desired = world.master.shared.desired.lock();
        let alice = desired.users.get_mut(&1).expect("there");
        alice.expires_at = Some((now + DAY).into());
    }
    let clock = Arc::new(ManualClock::new(now));
    let ticking = Arc::clone(&clock);
    world.start_with(|builder| builder.clock(ticking)).await;
    world.master.acked(1).await;
    let alice = world.client(ALICE).await;
    let mut stream = alice.tcp(&echo.target()).await.expect("a stream");
    for set in [now + DAY * 10, now - DAY * 10] {
        clock.set(set);
        round(&mut stream, 1000).await.expect("a round");
        world.client(ALICE).await.close().await;
    }
    let told = |seen: &crate::master::Seen| {
        let alert = seen.alerts.iter().find(|alert| alert.rule == "clock_skew");
        alert.is_some_and(|alert| alert.message.contains(" ms from the master's"))
    };
    world.master.until_seen("the alert", told).await;
    round(&mut stream, 1000).await.expect("a round");
    // Her day passes all the same.
    clock.advance(DAY);
    world.is_refused(ALICE).await;
}

#[tokio::test]
async fn without_a_master_a_user_goes_no_further_than_the_slice_in_hand() {
    let slice = 1 << 20;
    let mut world = metered(u64::MAX / 2, slice).await;
    let agent = world.start().await;
    let echo = Echo::start().await;
    let alice = world.client(ALICE).await;
    let warm = Traffic::start(&alice, &echo.target(), 1, 1000).await;
    soon("traffic", async {
        while warm.rounds.load(SeqCst) < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    world.master.stop().await;
    let granted: u64 = world.master.shared.quotas.lock().granted.values().sum();
    // Restarted meanwhile: it knows what is left.
    warm.finish().await;
    world.shutdown().await;
    let before = {
        let agent = world.start_with(|builder| builder).await;
        agent.totals()
    };
    assert!(before.0 > 0, "{before:?}");
    let alice = world.client(ALICE).await;
    let traffic = Traffic::start(&alice, &echo.target(), 2, 16 << 10).await;
    soon("the end of the slice", traffic.until_cut()).await;
    world.is_refused(ALICE).await;
    drop(agent);
    let (tx, rx) = world.agent.as_ref().expect("runs").handle().totals();
    assert!(tx + rx <= granted + 2 * CHUNK, "{} of {granted}", tx + rx);
}

/// Sends bytes through an echo and reads them back.
async fn round(stream: &mut TcpStream, len: usize) -> io::Result<()> {
    stream.write_all(&vec![7; len]).await?;
    stream.read_exact(&mut vec![0; len]).await?;
    Ok(())
}

/// Rounds through an echo until the stream ends; returns how many there were.
fn rounds(mut stream: TcpStream, len: usize) -> (Arc<AtomicU64>, JoinHandle<()>) {
    let done = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&done);
    let task = tokio::spawn(async move {
        while round(&mut stream, len).await.is_ok() {
            counted.fetch_add(1, SeqCst);
        }
    });
    (done, task)
}

async fn until(what: &str, is: impl Fn() -> bool) {
    soon(what, async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_user_waits_for_the_answer_at_the_end_of_a_slice_and_is_cut_when_none_comes() {
    const LEN: usize = 1000;
    let slice = 256 << 10;
    let mut world = metered(64 << 20, slice).await;
    let clock = Arc::new(ManualClock::new(SystemTime::now()));
    let ticking = Arc::clone(&clock);
    world.start_with(|builder| builder.clock(ticking)).await;
    world.master.acked(1).await;
    let echo = Echo::start().await;
    let alice = world.client(ALICE).await;
    let stream = alice.tcp(&echo.target()).await.expect("a stream");
    let agent = world.agent.as_ref().expect("runs").handle();
    let moved = || {
        let (tx, rx) = agent.totals();
        tx + rx
    };
    let granted = || -> u64 { world.master.shared.quotas.lock().granted.values().sum() };
    let (done, task) = rounds(stream, LEN);
    world.master.shared.hold_leases.send_replace(true);
    for _ in 0..2 {
        until("the end of the slice", || moved() >= granted()).await;
        // Nothing moves, and nothing ends, for as long as the answer takes.
        let stopped = moved();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(
            moved() <= stopped + 2 * LEN as u64,
            "{stopped}: {}",
            moved()
        );
        assert!(!task.is_finished());
        let (before, had) = (done.load(SeqCst), granted());
        world.master.shared.hold_leases.send_replace(false);
        until("the answer", || granted() > had).await;
        world.master.shared.hold_leases.send_replace(true);
        until("the rest", || done.load(SeqCst) > before + 10).await;
    }
    until("the end of the slice", || moved() >= granted()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!task.is_finished());
    clock.advance(Duration::from_secs(11));
    soon("the cut", task).await.expect("a task");
    let most = granted() + 4 * LEN as u64;
    assert!(moved() <= most, "{} of {most}", moved());
    world.master.shared.hold_leases.send_replace(false);
    // Cut, not locked out: the answer is there for whoever comes.
    let again = world.client(ALICE).await;
    let mut stream = again.tcp(&echo.target()).await.expect("a stream");
    soon("a round", round(&mut stream, LEN))
        .await
        .expect("goes on");
}

#[tokio::test]
async fn slices_far_smaller_than_what_is_on_its_way_cut_nobody_before_the_end_of_the_quota() {
    let (quota, slice) = (32 << 20, 128 << 10);
    let mut world = metered(quota, slice).await;
    let agent = world.start().await;
    let echo = Echo::start().await;
    let alice = world.client(ALICE).await;
    let traffic = Traffic::start(&alice, &echo.target(), 8, 64 << 10).await;
    soon("the end of the quota", traffic.until_cut()).await;
    let (tx, rx) = agent.totals();
    assert!(tx + rx >= quota, "cut at {} of {quota}", tx + rx);
    assert!(tx + rx <= quota + 8 * CHUNK, "{} over", tx + rx - quota);
}

#[tokio::test]
async fn a_node_that_ends_while_it_waits_for_a_slice_delivers_what_went_over() {
    const LEN: usize = 1000;
    let mut world = metered(64 << 20, 256 << 10).await;
    let agent = world.start().await;
    let echo = Echo::start().await;
    let alice = world.client(ALICE).await;
    let stream = alice.tcp(&echo.target()).await.expect("a stream");
    let moved = || {
        let (tx, rx) = agent.totals();
        tx + rx
    };
    world.master.shared.hold_leases.send_replace(true);
    let granted: u64 = world.master.shared.quotas.lock().granted.values().sum();
    // The slice is no multiple of a round.
    let (_, task) = rounds(stream, LEN);
    until("more than the slice", || moved() > granted).await;
    world.shutdown().await;
    soon("the cut", task).await.expect("a task");
    let (tx, rx) = world.master.shared.store.lock().total();
    assert_eq!(tx + rx, moved());
    assert!(moved() > granted);
    world.master.shared.hold_leases.send_replace(false);
}

#[tokio::test]
async fn places_go_back_when_devices_leave_and_stay_without_a_master() {
    let mut world = World::with_users(&[]).await;
    let mut entry = user(1, ALICE);
    entry.max_devices = 2;
    world.master.shared.desired.lock().users.insert(1, entry);
    world.master.shared.quotas.lock().places.insert(1, 2);
    world.start().await;
    let base = world.client_config(ALICE);
    let from = |last: u8| {
        let mut config = base.clone();
        config.socket_factory = Some(Arc::new(From([127, 0, 0, last].into())));
        Client::connect(config)
    };
    let lent = |wanted| {
        let shared = Arc::clone(&world.master.shared);
        async move {
            while shared.quotas.lock().lent.get(&1) != Some(&wanted) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    let first = soon("connect", from(1)).await.expect("a place");
    let second = soon("connect", from(2)).await.expect("a place");
    soon("two places", lent(2)).await;
    second.close().await;
    soon("one place", lent(1)).await;
    // It is there again for whoever comes.
    let third = soon("connect", from(3)).await.expect("a place");
    soon("two places", lent(2)).await;
    world.master.stop().await;
    third.close().await;
    first.close().await;
    let (again, other) = (
        soon("connect", from(4)).await,
        soon("connect", from(5)).await,
    );
    for client in [again, other] {
        client.expect("a place").close().await;
    }
}

/// Waits until all of a user's quota is with the master again.
async fn all_back(world: &World, quota: u64) {
    until("all of the quota is back", || {
        world.master.shared.quotas.lock().left.get(&1) == Some(&quota)
    })
    .await;
}

/// More than the minute after which a slice goes back.
const IDLE: Duration = Duration::from_secs(61);

#[tokio::test]
async fn a_slice_goes_back_of_who_does_not_come_back_after_a_restart() {
    let quota = 64 << 20;
    let mut world = metered(quota, 1 << 20).await;
    world.start().await;
    world.client(ALICE).await.close().await;
    world.shutdown().await;
    assert!(world.master.shared.quotas.lock().left[&1] < quota);
    let clock = Arc::new(ManualClock::new(SystemTime::now()));
    let ticking = Arc::clone(&clock);
    *world.master.shared.clock.lock() = Arc::clone(&clock) as _;
    let agent = world.start_with(|builder| builder.clock(ticking)).await;
    // From then on it has the master's time.
    until("a session", || {
        agent.link().borrow().connected_since().is_some()
    })
    .await;
    clock.advance(IDLE);
    all_back(&world, quota).await;
}

#[tokio::test]
async fn a_slice_goes_back_of_who_had_no_place_for_a_device() {
    let quota = 64 << 20;
    let mut world = metered(quota, 1 << 20).await;
    {
        let mut desired = world.master.shared.desired.lock();
        desired.users.get_mut(&1).expect("there").max_devices = 1;
    }
    let clock = Arc::new(ManualClock::new(SystemTime::now()));
    let ticking = Arc::clone(&clock);
    *world.master.shared.clock.lock() = Arc::clone(&clock) as _;
    world.start_with(|builder| builder.clock(ticking)).await;
    world.master.acked(1).await;
    world.is_refused(ALICE).await;
    assert!(world.master.shared.quotas.lock().left[&1] < quota);
    clock.advance(IDLE);
    all_back(&world, quota).await;
}

#[tokio::test]
async fn a_slice_goes_back_whose_idle_minute_was_over_while_the_master_was_away() {
    let quota = 64 << 20;
    let mut world = metered(quota, 1 << 20).await;
    let clock = Arc::new(ManualClock::new(SystemTime::now()));
    let ticking = Arc::clone(&clock);
    *world.master.shared.clock.lock() = Arc::clone(&clock) as _;
    let agent = world.start_with(|builder| builder.clock(ticking)).await;
    world.master.acked(1).await;
    let alice = world.client(ALICE).await;
    world.master.stop().await;
    until("no session", || {
        agent.link().borrow().connected_since().is_none()
    })
    .await;
    alice.close().await;
    until("nobody is here", || agent.sessions().is_empty()).await;
    clock.advance(IDLE);
    // Looked at meanwhile, in vain.
    tokio::time::sleep(Duration::from_millis(500)).await;
    world.master.resume().await;
    all_back(&world, quota).await;
}

#[tokio::test]
async fn what_was_on_its_way_back_when_the_session_ended_goes_back_in_the_next() {
    let quota = 64 << 20;
    let mut world = metered(quota, 1 << 20).await;
    let clock = Arc::new(ManualClock::new(SystemTime::now()));
    let ticking = Arc::clone(&clock);
    *world.master.shared.clock.lock() = Arc::clone(&clock) as _;
    let agent = world.start_with(|builder| builder.clock(ticking)).await;
    world.master.acked(1).await;
    world.client(ALICE).await.close().await;
    until("nobody is here", || agent.sessions().is_empty()).await;
    let held = &world.master.shared.hold_leases;
    held.send_replace(true);
    clock.advance(IDLE);
    until("a request", || held.receiver_count() > 0).await;
    // The session ends, not the connection under it.
    let goodbye = session_response::Event::Goodbye(Goodbye {
        retry_after: None,
        reason: "a restart".to_owned(),
        retired: false,
    });
    let sessions = world.master.shared.seen.borrow().sessions;
    world.master.send(goodbye).await;
    world
        .master
        .until_seen("the next", |seen| seen.sessions > sessions)
        .await;
    world.master.shared.hold_leases.send_replace(false);
    all_back(&world, quota).await;
}

#[tokio::test]
async fn places_of_devices_that_are_gone_after_a_restart_go_back() {
    let mut world = World::with_users(&[]).await;
    let mut entry = user(1, ALICE);
    entry.max_devices = 1;
    world.master.shared.desired.lock().users.insert(1, entry);
    world.master.shared.quotas.lock().places.insert(1, 1);
    world.start().await;
    let alice = world.client(ALICE).await;
    world.shutdown().await;
    drop(alice);
    assert_eq!(world.master.shared.quotas.lock().lent[&1], 1);
    world.start().await;
    until("the place is back", || {
        world.master.shared.quotas.lock().lent[&1] == 0
    })
    .await;
}

#[tokio::test]
async fn the_place_of_who_is_removed_goes_back_and_is_there_for_who_comes_back() {
    let mut world = World::with_users(&[]).await;
    let mut entry = user(1, ALICE);
    entry.max_devices = 1;
    let desired = &world.master.shared.desired;
    desired.lock().users.insert(1, entry.clone());
    world.master.shared.quotas.lock().places.insert(1, 1);
    world.start().await;
    let lent = |world: &World| world.master.shared.quotas.lock().lent[&1];
    let alice = world.client(ALICE).await;
    assert_eq!(lent(&world), 1);
    world
        .master
        .publish_acked(|desired| {
            desired.users.remove(&1);
        })
        .await;
    until("the place is back", || lent(&world) == 0).await;
    drop(alice);
    world
        .master
        .publish_acked(|desired| {
            desired.users.insert(1, entry);
        })
        .await;
    let alice = world.client(ALICE).await;
    assert_eq!(lent(&world), 1);
    alice.close().await;
}

#[tokio::test]
async fn devices_for_which_the_master_has_no_place_any_more_are_cut_the_newest_first() {
    let mut world = World::with_users(&[]).await;
    let mut entry = user(1, ALICE);
    entry.max_devices = 4;
    world.master.shared.desired.lock().users.insert(1, entry);
    world.master.shared.quotas.lock().places.insert(1, 2);
    let agent = world.start().await;
    let base = world.client_config(ALICE);
    let from = |last: u8| {
        let mut config = base.clone();
        config.socket_factory = Some(Arc::new(From([127, 0, 0, last].into())));
        Client::connect(config)
    };
    let first = soon("connect", from(1)).await.expect("a place");
    let second = soon("connect", from(2)).await.expect("a place");
    // Two are within the new limit, but one of them is in use elsewhere.
    world.master.shared.quotas.lock().places.insert(1, 1);
    world
        .master
        .publish_acked(|desired| {
            desired.users.get_mut(&1).expect("there").max_devices = 3;
        })
        .await;
    until("one is left", || agent.sessions().len() == 1).await;
    assert!(agent.sessions()[0].remote.starts_with("127.0.0.1:"));
    drop((first, second));
}

#[tokio::test]
async fn a_slice_that_is_taken_back_ends_the_user_here() {
    let mut world = metered(64 << 20, 16 << 20).await;
    world.start().await;
    let echo = Echo::start().await;
    let alice = world.client(ALICE).await;
    let traffic = Traffic::start(&alice, &echo.target(), 2, 1000).await;
    world.master.shared.quotas.lock().left.insert(1, 0);
    let lease_ids = world
        .master
        .shared
        .quotas
        .lock()
        .granted
        .keys()
        .copied()
        .collect();
    let recall = session_response::Event::Recall(LeaseRecall { lease_ids });
    world.master.send(recall).await;
    soon("the end", traffic.until_cut()).await;
    world.is_refused(ALICE).await;
}

#[tokio::test]
async fn devices_take_places_that_the_master_lends() {
    let mut world = World::with_users(&[]).await;
    let mut entry = user(1, ALICE);
    entry.max_devices = 2;
    world.master.shared.desired.lock().users.insert(1, entry);
    world.start().await;
    let base = world.client_config(ALICE);
    let from = |last: u8| {
        let mut config = base.clone();
        config.socket_factory = Some(Arc::new(From([127, 0, 0, last].into())));
        Client::connect(config)
    };
    // None: nobody.
    soon("refusal", from(1)).await.expect_err("no place");
    world.master.shared.quotas.lock().places.insert(1, 1);
    let first = soon("connect", from(1)).await.expect("a place");
    let again = soon("connect", from(1)).await.expect("the same device");
    soon("refusal", from(2)).await.expect_err("no second place");
    world.master.shared.quotas.lock().places.insert(1, 2);
    let second = soon("connect", from(2)).await.expect("a place");
    soon("refusal", from(3))
        .await
        .expect_err("beyond the user's limit");
    // Without a master, the places that were lent stay.
    world.master.stop().await;
    let third = soon("connect", from(2)).await.expect("a place");
    soon("refusal", from(3)).await.expect_err("no place");
    for client in [first, again, second, third] {
        client.close().await;
    }
}

/// Binds a client to one address of this host, which makes it a device of its own.
#[derive(Debug)]
struct From(IpAddr);

impl SocketFactory for From {
    fn open(&self, _remote: SocketAddr) -> io::Result<UdpSocket> {
        UdpSocket::bind((self.0, 0))
    }
}
