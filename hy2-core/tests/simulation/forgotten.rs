//! A NAT forgets a client that only receives.

use tokio::time::{Instant, sleep};

use crate::{
    flow::{Flow, FlowKind},
    world::{CLIENT, Setup, World, address, millis, seconds},
};

/// With the keep-alive alone it would be up to ten seconds.
#[tokio::test(start_paused = true)]
async fn a_download_goes_on_soon_after_a_nat_forgot_its_client() {
    let world = World::start(&Setup::new(20.0, 40.0, millis(40))).await;
    let flow = Flow::start(&world, 1, FlowKind::new(true)).await;
    let mut old = CLIENT.to_owned();
    for round in 1..=3 {
        world.until(seconds(10 * round)).await;
        world.socket.forget_address(address(&old));
        // All that came is acknowledged by then.
        sleep(millis(200)).await;
        let received = flow.received();
        old = format!("10.0.0.2:{}", 40_000 + round);
        world.socket.set_address(address(&old));
        let since = Instant::now();
        while flow.received() == received {
            assert!(since.elapsed() < seconds(2), "round {round}: still nothing");
            sleep(millis(10)).await;
        }
        println!("goes on after {:?}", since.elapsed());
        assert_eq!(world.status().remote, address(&old));
    }
    flow.finish().await;
}

/// Nothing is asked for again and again where nothing is to come.
#[tokio::test(start_paused = true)]
async fn a_stream_that_waits_makes_no_traffic() {
    let world = World::start(&Setup::new(20.0, 40.0, millis(40))).await;
    let mut accepted = world.origins.listen(1);
    let mut stream = world.client.tcp("origin.test:1").await.expect("stream");
    let mut origin = accepted.recv().await.expect("origin");
    let bytes = vec![7; 500_000];
    let mut received = vec![0; bytes.len()];
    let (sent, read) = tokio::join!(
        tokio::io::AsyncWriteExt::write_all(&mut origin, &bytes),
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut received)
    );
    sent.expect("sent");
    read.expect("received");
    let packets = || world.status().sent_packets;
    world.until(seconds(5)).await;
    let before = packets();
    world.until(seconds(65)).await;
    // Six keep-alives, and what else acknowledges them.
    assert!(packets() - before <= 12, "{}", packets() - before);
}
