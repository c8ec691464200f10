//! The guard against rates that the path does not carry.

use std::time::Duration;

use hy2_core::congestion::Algorithm;

use crate::harness::{Setup, Transfer, full_matrix, millis, seconds};

const fn guarded(mbps: f64, overclaim_guard: bool) -> Algorithm {
    Algorithm::Brutal {
        rate: (mbps * 1e6 / 8.0) as u64,
        loss_compensation: true,
        overclaim_guard,
    }
}

/// Bytes sent for each that arrived, and Mbit/s that arrived, of UDP payload.
async fn ratio(transfer: &Transfer, from: Duration, to: Duration) -> (f64, f64) {
    let before = transfer.until(from).await.snapshot;
    let after = transfer.until(to).await.snapshot;
    let sent = (after.bytes_sent - before.bytes_sent) as f64;
    let acked = (after.bytes_acked - before.bytes_acked) as f64;
    (sent / acked, acked * 8e-6 / (to - from).as_secs_f64())
}

#[tokio::test(start_paused = true)]
async fn a_narrow_path_is_sent_little_more_than_it_carries() {
    let (rtts, buffers): (&[u64], &[u64]) = if full_matrix() {
        (&[20, 100, 200], &[5, 20, 100, 500])
    } else {
        (&[20, 200], &[20, 200])
    };
    let mut failures = Vec::new();
    for &rtt in rtts {
        for &buffer in buffers {
            for claim in [30.0, 200.0] {
                let setup = Setup::new(guarded(claim, true), 20.0, millis(rtt), millis(buffer));
                let transfer = Transfer::start(&setup).await;
                let start = transfer.until(Duration::ZERO).await.snapshot;
                let (later, goodput) = ratio(&transfer, seconds(30), seconds(60)).await;
                let end = transfer.until(seconds(60)).await.snapshot;
                let sent = (end.bytes_sent - start.bytes_sent) as f64;
                let whole = sent / (end.bytes_acked - start.bytes_acked) as f64;
                println!(
                    "claimed {claim} on 20 Mbit/s, {rtt} ms, buffer {buffer} ms: sent / arrived {whole:.3} in the \
                     first minute, {later:.3} in its second half, {goodput:.1} Mbit/s arrive"
                );
                if whole > 1.3 || later > 1.25 || goodput < 18.0 {
                    failures.push((claim, rtt, buffer));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
}

#[tokio::test(start_paused = true)]
async fn without_the_guard_a_narrow_path_is_flooded() {
    let setup = Setup::new(guarded(200.0, false), 20.0, millis(100), millis(100));
    let transfer = Transfer::start(&setup).await;
    let (sent, _) = ratio(&transfer, seconds(5), seconds(15)).await;
    assert!(sent > 5.0, "{sent}");
}

#[tokio::test(start_paused = true)]
async fn random_loss_is_not_mistaken_for_a_narrow_path() {
    let cells: &[(f64, u64)] = if full_matrix() {
        &[
            (5.0, 20),
            (20.0, 100),
            (20.0, 200),
            (100.0, 20),
            (100.0, 100),
            (100.0, 200),
            (200.0, 200),
        ]
    } else {
        &[(5.0, 100), (20.0, 200), (50.0, 20)]
    };
    let mut failures = Vec::new();
    for &(mbps, rtt) in cells {
        let mut goodput = [0.0; 2];
        for (guard, goodput) in [false, true].into_iter().zip(&mut goodput) {
            let buffer = millis(60).max(Duration::from_secs_f64(0.16 / mbps));
            let setup = Setup::new(guarded(mbps, guard), 1.6 * mbps, millis(rtt), buffer).loss(0.3);
            let transfer = Transfer::start(&setup).await;
            *goodput = ratio(&transfer, Duration::ZERO, seconds(60)).await.1;
        }
        let kept = goodput[1] / goodput[0];
        println!(
            "{mbps} Mbit/s, {rtt} ms, 30 % loss: {:.2} Mbit/s without the guard, {:.2} with it ({kept:.3})",
            goodput[0], goodput[1]
        );
        if kept < 0.95 {
            failures.push((mbps, rtt, kept));
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
}

#[tokio::test(start_paused = true)]
async fn a_path_that_widens_is_used_again() {
    let setup = Setup::new(guarded(50.0, true), 10.0, millis(50), millis(50));
    let transfer = Transfer::start(&setup).await;
    let (_, narrow) = ratio(&transfer, seconds(10), seconds(20)).await;
    let mut wide = setup.link;
    wide.rate_bps = Some(100_000_000);
    transfer.reconfigure(wide);
    // Half a minute may pass until more is tried.
    let (_, after) = ratio(&transfer, seconds(65), seconds(75)).await;
    println!("{narrow:.1} Mbit/s of 10, then {after:.1} of the 50 that were claimed");
    assert!(narrow > 9.0 && after > 48.0, "{narrow} {after}");
}

#[tokio::test(start_paused = true)]
async fn a_path_that_narrows_is_noticed() {
    let setup = Setup::new(guarded(50.0, true), 100.0, millis(50), millis(50));
    let transfer = Transfer::start(&setup).await;
    let (_, wide) = ratio(&transfer, seconds(5), seconds(10)).await;
    let mut narrow = setup.link;
    narrow.rate_bps = Some(10_000_000);
    transfer.reconfigure(narrow);
    let (sent, after) = ratio(&transfer, seconds(12), seconds(22)).await;
    println!("{wide:.1} Mbit/s of 50, then {after:.1} of 10 with {sent:.2} sent for each");
    assert!(
        wide > 48.0 && after > 9.0 && sent < 1.3,
        "{wide} {after} {sent}"
    );
}
