//! Who waits sleeps: connections and streams on which nothing happens wake nobody.

use hy2_link_emulator::memory::Direction;
use tokio::runtime::Handle;

use crate::{
    flow::{Flow, FlowKind},
    world::{Setup, World, millis, seconds},
};

/// How often the runtime goes to sleep, and so wakes, in a minute from now. In virtual time that
/// depends on timers and packets only.
async fn wakes_in_a_minute() -> u64 {
    let parked = || Handle::current().metrics().worker_park_count(0);
    let before = parked();
    tokio::time::sleep(seconds(60)).await;
    parked() - before
}

/// What six keep-alives, each a packet and its acknowledgement, may cost in wakes. One timer that
/// fires every second would cost 60 more at least.
const KEEP_ALIVES: u64 = 6 * 16;

/// What a minute of a client's supervisor costs, which looks after the send window every second
/// while there are streams. A reader that looks every 10 ms would cost 6,000.
const SUPERVISOR: u64 = 60 * 3;

#[tokio::test(start_paused = true)]
async fn an_idle_connection_has_no_timer_of_its_own() {
    let mut world = World::start(&Setup::new(100.0, 200.0, millis(40))).await;
    world.stop_watching().await;
    // One that has been used: a stream and a session that are over leave no timer behind.
    let flow = Flow::start(&world, 1, FlowKind::new(false)).await;
    world.until(seconds(2)).await;
    flow.finish().await;
    let session = world.client.udp().await.expect("session");
    session.send(b"one", "192.0.2.1:53").expect("send");
    drop(session);
    // The server forgets the session after its idle timeout.
    world.until(seconds(120)).await;
    let with = wakes_in_a_minute().await;
    world.until(seconds(180)).await;
    // What the server does anyway.
    let World { client, server, .. } = world;
    drop(client);
    while !server.handle().connections().is_empty() {
        tokio::time::sleep(seconds(1)).await;
    }
    let without = wakes_in_a_minute().await;
    println!("an idle minute: {with} wakes, {without} without the connection");
    assert!(with > without, "keep-alives");
    assert!(with <= without + KEEP_ALIVES, "{with} and {without}");
}

/// What a keep-alive costs a server is looking at the connection, most of all: once, not again 25 ms
/// later for the acknowledgement.
#[tokio::test(start_paused = true)]
async fn a_keep_alive_is_acknowledged_at_once() {
    let world = World::start(&Setup::new(100.0, 200.0, millis(40))).await;
    world.until(seconds(60)).await;
    let moments = |direction| {
        let offered = world.path.offered_per_ms(direction);
        let moments = offered.iter().enumerate().skip(10_000);
        moments
            .filter(|(_, bytes)| **bytes > 0)
            .map(|(at, _)| at)
            .collect::<Vec<_>>()
    };
    let (asked, answered) = (moments(Direction::Up), moments(Direction::Down));
    println!("asked at {asked:?} ms, answered at {answered:?}");
    assert!((4..=6).contains(&asked.len()), "{asked:?}");
    assert_eq!(asked.len(), answered.len());
    for (asked, answered) in asked.iter().zip(&answered) {
        // Half a round trip, and what the clock's milliseconds round.
        let after = answered - asked;
        assert!((20..=22).contains(&after), "after {after} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_held_back_sleeps_until_its_consumer_moves() {
    for download in [false, true] {
        let mut world = World::start(&Setup::new(100.0, 200.0, millis(40))).await;
        world.stop_watching().await;
        let flow = Flow::start(&world, 1, FlowKind::new(download)).await;
        world.until(seconds(2)).await;
        flow.set_reading(false);
        // The windows fill up.
        world.until(seconds(10)).await;
        let had = flow.received();
        let stalled = wakes_in_a_minute().await;
        world.until(seconds(70)).await;
        assert_eq!(flow.received(), had, "it stalls");
        // It continues where it was: every byte is compared.
        flow.set_reading(true);
        world.until(seconds(72)).await;
        assert!(flow.received() > had + (10 << 20), "it goes on");
        flow.finish().await;
        world.until(seconds(80)).await;
        let idle = wakes_in_a_minute().await;
        println!("a stalled minute: {stalled} wakes, an idle one {idle}");
        let bound = idle + KEEP_ALIVES + SUPERVISOR;
        assert!(stalled <= bound, "{stalled} and {idle}");
    }
}
