//! Paths that reorder, and clients that move.

use std::time::Duration;

use hy2_link_emulator::model::Reorder;

use crate::harness::{CLIENT, Setup, Transfer, address, brutal_mbps, full_matrix, millis, seconds};

#[tokio::test(start_paused = true)]
async fn reordering_is_not_loss() {
    let (rates, rtts): (&[f64], &[u64]) = if full_matrix() {
        (&[20.0, 100.0, 200.0], &[100, 200])
    } else {
        (&[100.0], &[100])
    };
    let late: &[(f64, u64)] = if full_matrix() {
        &[
            (0.0, 0),
            (0.1, 1),
            (0.1, 4),
            (0.1, 10),
            (0.3, 1),
            (0.3, 4),
            (0.3, 10),
        ]
    } else {
        &[(0.0, 0), (0.3, 4), (0.3, 10)]
    };
    let mut failures = Vec::new();
    for (&mbps, &rtt) in rates
        .iter()
        .flat_map(|rate| rtts.iter().map(move |rtt| (rate, rtt)))
    {
        let mut in_order = None;
        for &(share, delay) in late {
            let mut setup = Setup::new(brutal_mbps(mbps), mbps * 2.0, millis(rtt), millis(60));
            setup.link.reorder = Reorder {
                probability: share,
                extra_delay: millis(delay),
            };
            let transfer = Transfer::start(&setup).await;
            let before = transfer.until(seconds(5)).await;
            let after = transfer.until(seconds(15)).await;
            let goodput = (after.received - before.received) as f64 * 8e-7;
            let kept = goodput / *in_order.get_or_insert(goodput);
            println!(
                "{mbps} Mbit/s, {rtt} ms, {:.0} % late by {delay} ms: {goodput:.1} Mbit/s, {kept:.3} of that in order, \
                 ack rate {:.3}",
                share * 100.0,
                after.snapshot.ack_rate
            );
            // More packets overtake these than may, see `congestion::tune`: nearly all are taken for lost, and
            // Brutal makes up for a fifth (docs/deviations.md).
            let beyond = delay == 10 && share > 0.2 && mbps > 150.0;
            if kept < if beyond { 0.8 } else { 0.95 } {
                failures.push((mbps, rtt, share, delay, kept));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
}

/// Moves every 5 s through `addresses` and returns, per change, the share of the rate in the two
/// seconds after it and the longest silence; and the ack rate at the end.
async fn move_through(addresses: &[&str], download: bool) -> (Vec<(f64, Duration)>, f64) {
    let mbps = 50.0;
    let mut setup = Setup::new(brutal_mbps(mbps), 100.0, millis(200), millis(60));
    setup.download = download;
    let transfer = Transfer::start(&setup).await;
    let mut at = seconds(5);
    let mut changes = Vec::new();
    for to in addresses {
        let before = transfer.until(at).await;
        transfer.socket.set_address(address(to));
        let mut last = before.received;
        let mut silence = Duration::ZERO;
        let mut longest = Duration::ZERO;
        let mut after = before;
        for _ in 0..200 {
            at += millis(10);
            after = transfer.until(at).await;
            silence = if after.received == last {
                silence + millis(10)
            } else {
                Duration::ZERO
            };
            longest = longest.max(silence);
            last = after.received;
        }
        let rate = (after.received - before.received) as f64 * 8.0 / 2.0;
        changes.push((rate / (mbps * 1e6), longest));
        at += seconds(3);
    }
    let end = transfer.until(at).await;
    (changes, end.snapshot.ack_rate)
}

async fn keeps_its_rate(download: bool) {
    let ports = ["10.0.0.2:40001", "10.0.0.2:40002", CLIENT];
    let hosts = ["10.0.0.3:40000", "10.0.0.4:40000", "10.0.0.5:40001"];
    let v6 = ["[fd00::2]:40000", "[fd00::3]:40000", "[fd00::3]:40001"];
    for addresses in [ports, hosts, v6] {
        let (changes, ack_rate) = move_through(&addresses, download).await;
        println!("download {download}, {addresses:?}: {changes:?}, ack rate {ack_rate:.3}");
        assert!(ack_rate >= 0.99, "{ack_rate}");
        for (share, silence) in changes {
            // Headers of QUIC take 3 % of the rate.
            assert!(share >= 0.90 * 0.97, "{share}");
            assert!(silence <= millis(400), "{silence:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_moves_keeps_uploading() {
    keeps_its_rate(false).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_moves_keeps_downloading() {
    keeps_its_rate(true).await;
}
