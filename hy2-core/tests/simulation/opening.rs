//! A stream opens at once, however much others have to send.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::{
    flow::{Flow, FlowKind},
    world::{Setup, World, millis, seconds},
};

/// Uploads fill the connection's window, and each byte of it that comes free is taken at once. This task has its turn
/// last, as the main task of a program on a runtime with one thread.
#[tokio::test(start_paused = true)]
async fn a_stream_opens_beside_uploads_that_fill_the_window() {
    let setup = Setup::new(200.0, 400.0, millis(200)).loss(false, 0.3);
    let world = World::start(&setup).await;
    let upload = FlowKind::new(false);
    let mut flows = Vec::new();
    let mut longest = Duration::ZERO;
    for port in 1..=12 {
        let start = Instant::now();
        let flow = timeout(seconds(30), Flow::start(&world, port, upload)).await;
        flows.push(flow.expect("a stream"));
        longest = longest.max(start.elapsed());
        world.until(seconds(port.into())).await;
    }
    println!("the slowest of {} took {longest:?}", flows.len());
    // A round trip, and what is lost once more; the seed decides how often.
    assert!(longest < seconds(3), "{longest:?}");
    for flow in &flows {
        assert!(flow.received() > 0);
    }
}
