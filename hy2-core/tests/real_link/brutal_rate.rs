//! Brutal's rate as the wire sees it.

use std::time::Duration;

use hy2_link_emulator::{memory::Direction, model::LinkConfig};

use crate::{
    full, median, say,
    setup::{World, alone},
};

/// What the server is to send, in Mbit/s.
const TARGET: f64 = 100.0;

fn link() -> LinkConfig {
    LinkConfig::clean(200.0, Duration::from_millis(25), Duration::from_millis(50))
}

/// Mbit/s at the entry of the link over a window of milliseconds.
fn rate(offered: &[u32]) -> f64 {
    let bytes: u64 = offered.iter().copied().map(u64::from).sum();
    bytes as f64 * 8.0 / (offered.len() as f64 * 1e3)
}

/// What a slow machine cannot do is send too much: the literal port of the reference's window to
/// quinn sent twice the target.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_wire_carries_the_rate_and_not_more() {
    let _alone = alone().await;
    let mut measured = Vec::new();
    let (runs, seconds) = if full() { (5, 8) } else { (1, 2) };
    for _ in 0..runs {
        let world = World::start(link(), TARGET).await;
        // What fits into the time at the target, and some.
        let bytes = (TARGET * 1e6 / 8.0 * f64::from(seconds)) as u64;
        world.download(bytes, 64 << 10, None).await;
        let offered = world.relay.offered_per_ms(Direction::Down);
        let first = offered
            .iter()
            .position(|bytes| *bytes > 0)
            .expect("traffic");
        let last = offered
            .iter()
            .rposition(|bytes| *bytes > 0)
            .expect("traffic");
        if full() {
            // Without the beginning, in which the round trip is still being learned, and the end.
            let steady = &offered[first + 1500..last - 500];
            measured.push(rate(steady));
        }
        let average = rate(&offered[first..=last]);
        let report = world.relay.report();
        say(format_args!(
            "{:.2} Mbit/s on average, {:.2} steady; {} of {} packets lost, {} sent late",
            average,
            measured.last().copied().unwrap_or(f64::NAN),
            report.down.overflow_packets,
            report.down.offered_packets,
            report.late_packets
        ));
        // Brutal makes up for loss, at most a quarter.
        assert!(average < TARGET * 1.25 * 1.03, "{average}");
    }
    if full() {
        let middle = median(&mut measured);
        say(format_args!(
            "median of {runs}: {middle:.2} Mbit/s of {TARGET}"
        ));
        assert!((middle / TARGET - 1.0).abs() <= 0.03, "{measured:.2?}");
    }
}
