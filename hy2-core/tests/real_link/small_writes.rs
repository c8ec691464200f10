//! What it costs when an origin writes little at a time over a long and lossy path.

use std::time::{Duration, Instant};

use hy2_link_emulator::model::LinkConfig;

use crate::{
    full, median, say,
    setup::{World, alone},
};

/// A packet's worth, as an origin behind another tunnel writes.
const SMALL: usize = 1400;
const LARGE: usize = 64 << 10;

/// quinn walks through its send queue segment by segment, and 100 Mbit/s over 300 ms with a fifth
/// lost is a long queue: without gathering, small writes cost many times what large ones do.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn small_writes_cost_little_more_than_large_ones() {
    let _alone = alone().await;
    let link = LinkConfig::clean(
        100.0,
        Duration::from_millis(150),
        Duration::from_millis(100),
    )
    .with_loss(0.2);
    // Compensated for the loss this fills the link; the origin's own rate leaves it no backlog,
    // which would make large reads of small writes.
    let (target, rate) = (78.0, 70.0);
    let (runs, mebibytes) = if full() { (3, 64) } else { (1, 4) };
    let (mut ratios, mut spent) = (Vec::new(), [Vec::new(), Vec::new()]);
    for _ in 0..runs {
        let mut pair = [0.0; 2];
        for (which, chunk) in [SMALL, LARGE].into_iter().enumerate() {
            let world = World::start(link, target).await;
            // The rate, the window and the ack rate settle first.
            world.download(4 << 20, LARGE, Some(rate)).await;
            let (start, before) = (Instant::now(), World::server_cpu());
            world.download(mebibytes << 20, chunk, Some(rate)).await;
            let cpu = World::server_cpu() - before;
            say(format_args!(
                "{mebibytes} MiB in {chunk} B writes: {:.1} s, {:.2} s of the server's CPU",
                start.elapsed().as_secs_f64(),
                cpu.as_secs_f64()
            ));
            pair[which] = cpu.as_secs_f64() * 1024.0 / mebibytes as f64;
            spent[which].push(pair[which]);
        }
        ratios.push(pair[0] / pair[1]);
    }
    let [small, large] = spent.each_mut().map(|figures| median(figures));
    let ratio = median(&mut ratios);
    say(format_args!(
        "server CPU s/GiB: {small:.2} for {SMALL} B writes, {large:.2} for 64 KiB; ratio {ratio:.2}"
    ));
    if full() {
        assert!(ratio <= 1.5, "{ratios:.2?}");
    }
}
