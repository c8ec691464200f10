//! How long it takes to connect over a link that loses much.

use std::time::Duration;

use tokio::{task::JoinSet, time::Instant};

use crate::world::{Setup, World, millis, seconds};

/// What `connect_timeout` and the server's `handshake_timeout` are when nobody sets them.
const PATIENCE: Duration = seconds(10);

#[tokio::test(start_paused = true)]
async fn a_third_of_all_packets_lost_keeps_few_out() {
    let mut in_time = 0;
    for seed in 1..=4 {
        in_time += sixty(seed).await;
    }
    println!("{in_time} of 240 in time");
    // 229 to 235 with a first round trip taken for 100 ms, 214 and 216 with RFC 9002's 333.
    assert!(in_time >= 224, "{in_time}");
}

/// Returns how many of sixty clients come in before they give up.
async fn sixty(seed: u64) -> usize {
    let mut clean = Setup::new(0.0, 100.0, millis(20));
    clean.seed = seed;
    let mut world = World::start(&clean).await;
    world.stop_watching().await;
    let lossy = Setup::new(0.0, 100.0, millis(200)).loss_both(0.3);
    let mut connecting = JoinSet::new();
    for number in 1..=60 {
        let client = world.another_client(&lossy, &format!("10.0.1.{number}:4000"));
        connecting.spawn(async move {
            let start = Instant::now();
            client.udp().await.is_ok() && start.elapsed() < PATIENCE
        });
    }
    let came = connecting.join_all().await;
    came.into_iter().filter(|came| *came).count()
}
