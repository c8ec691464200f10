//! How long it takes to connect over a link that loses much.

use std::time::Duration;

use tokio::{task::JoinSet, time::Instant};

use crate::world::{Setup, World, millis, seconds};

/// What `connect_timeout` and the server's `handshake_timeout` are when nobody sets them.
const PATIENCE: Duration = seconds(10);

#[tokio::test(start_paused = true)]
async fn a_third_of_all_packets_lost_keeps_few_out() {
    let clean = Setup::new(0.0, 100.0, millis(20));
    let mut world = World::start(&clean).await;
    world.stop_watching().await;
    let lossy = Setup::new(0.0, 100.0, millis(200)).loss_both(0.3);
    let mut connecting = JoinSet::new();
    for number in 1..=60 {
        let client = world.another_client(&lossy, &format!("10.0.1.{number}:4000"));
        connecting.spawn(async move {
            let start = Instant::now();
            client.udp().await.is_ok().then(|| start.elapsed())
        });
    }
    let took = connecting.join_all().await;
    let in_time = took.into_iter().flatten().filter(|took| *took < PATIENCE);
    let in_time: Vec<Duration> = in_time.collect();
    let count = in_time.len();
    let mean = in_time.iter().sum::<Duration>() / u32::try_from(count.max(1)).expect("few");
    println!("{count} of 60 in time, {mean:?} on average");
    // 57 and 58 with a first round trip taken for 100 ms, 50 with RFC 9002's 333.
    assert!(count >= 55, "{count}");
}
