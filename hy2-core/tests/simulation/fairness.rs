//! A flood of datagrams beside a stream: quinn sends datagrams first, and still the stream lives.

use std::{sync::Arc, time::Duration};

use hy2_core::client::UdpSession;
use tokio::{task::JoinSet, time::interval};

use crate::{
    flow::{Flow, FlowKind, measure},
    origin::Origins,
    world::{Setup, World, full_matrix, millis, rate, seconds},
};

/// The Brutal rate of both ends, in Mbit/s.
const TARGET: f64 = 50.0;

/// Payload of one datagram, in bytes; ten a millisecond are twice the target.
const DATAGRAM: usize = 1250;

const TARGET_ADDRESS: &str = "192.0.2.1:53";

/// Sends 100 Mbit/s of datagrams in one direction.
fn flood(tasks: &mut JoinSet<()>, session: &Arc<UdpSession>, origins: &Origins, download: bool) {
    let (session, origins) = (Arc::clone(session), origins.clone());
    tasks.spawn(async move {
        let data = [0x5a; DATAGRAM];
        let mut tick = interval(millis(1));
        loop {
            tick.tick().await;
            for _ in 0..10 {
                if download {
                    origins.send_udp(&data);
                } else {
                    session.send(&data, TARGET_ADDRESS).expect("connected");
                }
            }
        }
    });
}

async fn run(download: bool) {
    let world = World::start(&Setup::new(TARGET, 200.0, millis(50))).await;
    let session = Arc::new(world.client.udp().await.expect("a session"));
    // Opens the way back.
    session.send(b"first", TARGET_ADDRESS).expect("connected");
    let mut tasks = JoinSet::new();
    let reader = Arc::clone(&session);
    let (report, arrived) = tokio::sync::watch::channel(0u64);
    tasks.spawn(async move {
        while let Some(packet) = reader.recv().await {
            report.send_modify(|bytes| *bytes += packet.data.len() as u64);
        }
    });
    world.until(seconds(1)).await;
    flood(&mut tasks, &session, &world.origins, download);

    let window = seconds(if full_matrix() { 30 } else { 5 });
    let datagrams = || match download {
        true => *arrived.borrow(),
        false => world.origins.udp_bytes(),
    };
    let span = |from: Duration| (from, from + window);
    let (from, to) = span(seconds(2));
    world.until(from).await;
    let before = datagrams();
    world.until(to).await;
    let alone = rate(datagrams() - before, window);

    // The stream opens while the flood is on.
    let flow = Flow::start(&world, 1, FlowKind::new(download)).await;
    let (from, to) = span(to + seconds(1));
    world.until(from).await;
    let before = datagrams();
    let (stream, span) = measure(&world, &flow, from, to).await;
    let (stream, beside) = (rate(stream, span), rate(datagrams() - before, span));
    flow.finish().await;
    let after = datagrams();
    tokio::time::sleep(seconds(1)).await;
    println!(
        "download {download}: datagrams {alone:.1} Mbit/s alone; beside a stream {beside:.1} and \
         {stream:.1} for the stream"
    );
    assert!(stream >= 0.2 * TARGET, "the stream got {stream:.1} Mbit/s");
    // The datagrams are not starved either, and have everything when nobody else wants it.
    assert!(beside >= 0.6 * TARGET, "the datagrams got {beside:.1}");
    assert!(alone >= 0.9 * TARGET, "alone the datagrams got {alone:.1}");
    assert!(datagrams() > after, "the datagrams go on");
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_datagrams_leaves_an_upload_its_part() {
    run(false).await;
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_datagrams_leaves_a_download_its_part() {
    run(true).await;
}
