//! A client that moves in the middle of a transfer: port, address, family.

use std::time::Duration;

use hy2_core::congestion::{Algorithm, CongestionSnapshot};
use hy2_link_emulator::memory::Direction;

use crate::{
    flow::{Flow, FlowKind},
    world::{CLIENT, Setup, World, address, full_matrix, millis, rate, seconds},
};

/// The Brutal rate in Mbit/s.
const TARGET: f64 = 50.0;
const RTT: Duration = millis(200);
const EVERY: Duration = seconds(5);
const STEP: Duration = millis(10);

const PORTS: [&str; 3] = ["10.0.0.2:40001", "10.0.0.2:40002", CLIENT];
const HOSTS: [&str; 3] = ["10.0.0.3:40000", "10.0.0.4:40000", "10.0.0.5:40001"];
const FAMILIES: [&str; 3] = ["[fd00::2]:40000", "[fd00::3]:40000", "10.0.0.6:40000"];
const V6_PORTS: [&str; 3] = ["[fd00::7]:1000", "[fd00::7]:1001", "[fd00::8]:1001"];

/// The figures of the end that sends.
async fn sender(world: &World, download: bool) -> CongestionSnapshot {
    if download {
        world.status().congestion
    } else {
        world.client.info().await.expect("connected").congestion
    }
}

async fn move_through(addresses: &[&str], download: bool) {
    let world = World::start(&Setup::new(TARGET, 100.0, RTT)).await;
    let flow = Flow::start(&world, 1, FlowKind::new(download)).await;
    let direction = if download {
        Direction::Down
    } else {
        Direction::Up
    };
    let offered = || world.path.counters(direction).offered_bytes;
    world.until(seconds(3)).await;
    let before = flow.received();
    let mut at = seconds(5);
    world.until(at).await;
    let usual = rate(flow.received() - before, seconds(2));
    for to in addresses {
        let before = (flow.received(), offered());
        world.socket.set_address(address(to));
        let (mut silence, mut longest) = (Duration::ZERO, Duration::ZERO);
        let mut last = before.0;
        for _ in 0..200 {
            at += STEP;
            world.until(at).await;
            silence = if flow.received() == last {
                silence + STEP
            } else {
                Duration::ZERO
            };
            longest = longest.max(silence);
            last = flow.received();
        }
        let after = rate(last - before.0, seconds(2));
        let settled = offered();
        at += EVERY - seconds(2);
        world.until(at).await;
        assert_eq!(world.status().remote, address(to), "the server follows");
        let wire = rate(offered() - settled, EVERY - seconds(2));
        let figures = sender(&world, download).await;
        println!(
            "download {download}, to {to}: {after:.1} of {usual:.1} Mbit/s in the 2 s after it, \
             longest silence {longest:?}, ack rate {:.3}, then {wire:.2} Mbit/s on the wire",
            figures.ack_rate
        );
        assert!(after >= 0.9 * usual, "{after:.1} of {usual:.1}");
        assert!(longest <= 2 * RTT, "{longest:?}");
        assert!(figures.ack_rate >= 0.99, "{}", figures.ack_rate);
        assert!(
            matches!(figures.algorithm, Algorithm::Brutal { rate, .. } if rate == 6_250_000),
            "{:?}",
            figures.algorithm
        );
        // As much as what is not acknowledged makes it send more.
        let due = TARGET / figures.ack_rate;
        assert!((wire / due - 1.0).abs() <= 0.02, "{wire:.2} of {due:.2}");
    }
    // Every byte is compared on its way.
    flow.finish().await;
    world.memory_returns().await;
}

async fn keeps_its_rate(download: bool) {
    if full_matrix() {
        for addresses in [PORTS, HOSTS, FAMILIES, V6_PORTS] {
            move_through(&addresses, download).await;
        }
    } else {
        move_through(&[PORTS[0], HOSTS[0], FAMILIES[0]], download).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_keeps_its_rate_while_the_client_moves() {
    keeps_its_rate(false).await;
}

#[tokio::test(start_paused = true)]
async fn a_download_keeps_its_rate_while_the_client_moves() {
    keeps_its_rate(true).await;
}
