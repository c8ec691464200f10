//! Who waits sleeps: connections and streams on which nothing happens wake nobody.

use tokio::runtime::Handle;

use crate::{
    flow::{Flow, FlowKind},
    world::{Setup, World, millis, seconds},
};

/// How often the runtime went to sleep so far; it wakes between two of them. In virtual time this
/// depends on timers and packets only.
fn sleeps() -> u64 {
    Handle::current().metrics().worker_park_count(0)
}

/// A minute of the server's supervisor (one look per second, for all connections together), of
/// keep-alives every ten seconds, and of what they cause.
const IDLE_MINUTE: u64 = 60 + 6 * 8;

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
    let before = sleeps();
    world.until(seconds(180)).await;
    let count = sleeps() - before;
    println!("{count} wake-ups in an idle minute");
    assert!(count <= IDLE_MINUTE, "{count} wake-ups in an idle minute");
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
        let (before, had) = (sleeps(), flow.received());
        world.until(seconds(70)).await;
        let count = sleeps() - before;
        println!("{count} wake-ups in a stalled minute");
        assert_eq!(flow.received(), had, "it stalls");
        // Twice, because a sender that may not send asks now and then.
        assert!(
            count <= 2 * IDLE_MINUTE,
            "{count} wake-ups in a stalled minute"
        );
        // It continues where it was: every byte is compared.
        flow.set_reading(true);
        world.until(seconds(72)).await;
        assert!(flow.received() > had + (10 << 20), "it goes on");
        flow.finish().await;
    }
}
