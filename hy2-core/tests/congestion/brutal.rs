//! Brutal puts exactly its rate on the wire.

use std::time::Duration;

use hy2_core::congestion::{Algorithm, BbrProfile};

use crate::harness::{Setup, Transfer, brutal_mbps, full_matrix, millis, seconds};

/// One measured cell.
#[derive(Debug, Clone, Copy)]
struct Cell {
    mbps: f64,
    rtt: Duration,
    loss: f64,
    late: Duration,
}

impl Cell {
    /// How far a bin of 100 ms may be off its mean.
    ///
    /// A tenth; with late timers a tenth and two packets. What was sent by any time `t` is then between what was due
    /// at `t - late` and what was due at `t`, to a packet at either end, and a bin is the difference of two such sums:
    /// no sender can do better than a bin that begins at the upper bound and ends at the lower.
    fn latitude(&self) -> f64 {
        let packets = if self.late.is_zero() { 0.0 } else { 2.0 };
        0.10_f64.max(self.late.as_secs_f64() / 0.1) + packets * 1452.0 * 8.0 / (self.mbps * 1e5)
    }
}

/// What was measured from second 10 on.
#[derive(Debug)]
struct Outcome {
    /// Wire rate over the rate that it should be, minus 1.
    error: f64,
    /// Largest deviation of a 100 ms bin.
    worst_100ms: f64,
    /// Largest 5 ms bin over the mean.
    worst_5ms: f64,
    goodput_mbps: f64,
    ack_rate: f64,
}

async fn measure(cell: Cell) -> Outcome {
    let bytes_per_second = cell.mbps * 1e6 / 8.0;
    // At least 20 s and 20,000 packets.
    let span = seconds(20).max(Duration::from_secs_f64(
        20_000.0 * 1452.0 / bytes_per_second,
    ));
    let buffer = millis(60).max(Duration::from_secs_f64(20_000.0 / bytes_per_second));
    let mut setup =
        Setup::new(brutal_mbps(cell.mbps), cell.mbps * 1.6, cell.rtt, buffer).loss(cell.loss);
    setup.late = cell.late;
    let transfer = Transfer::start(&setup).await;
    let from = seconds(10);
    let before = transfer.until(from).await;
    let after = transfer.until(from + span).await;
    let wire = (after.counters.offered_bytes - before.counters.offered_bytes) as f64;
    let lost = (after.snapshot.packets_lost - before.snapshot.packets_lost) as f64;
    let acked = (after.snapshot.packets_acked - before.snapshot.packets_acked) as f64;
    let arrived = (acked / (acked + lost)).clamp(0.8, 1.0);
    let expected = bytes_per_second / arrived * span.as_secs_f64();
    let bins = transfer.offered(from + millis(500), from + span);
    let wire_mean = wire / span.as_secs_f64();
    let worst = |size: usize, judge: fn(f64) -> f64| {
        bins.chunks_exact(size)
            .map(|bin| {
                let sum: u64 = bin.iter().copied().map(u64::from).sum();
                judge(sum as f64 / (wire_mean * size as f64 / 1000.0))
            })
            .fold(0.0, f64::max)
    };
    Outcome {
        error: wire / expected - 1.0,
        worst_100ms: worst(100, |ratio| (ratio - 1.0).abs()),
        worst_5ms: worst(5, |ratio| ratio),
        goodput_mbps: (after.received - before.received) as f64 * 8e-6 / span.as_secs_f64(),
        ack_rate: after.snapshot.ack_rate,
    }
}

/// What must be even beside the mean rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Even {
    /// Bins of 100 ms and of 5 ms.
    All,
    /// Bins of 100 ms, as far as the timers allow: see [`Cell::latitude`].
    Coarse,
    /// Nothing: a packet is a quarter of a bin.
    Nothing,
}

async fn check(cells: Vec<Cell>, tolerance: f64, smooth: Even) {
    println!(
        "  Mbit/s  RTT ms  loss %  late ms |  error %  100 ms bin ±%  5 ms bin ×  goodput  ack rate"
    );
    let mut failures = Vec::new();
    for cell in cells {
        let outcome = measure(cell).await;
        println!(
            "{:8.1}{:8}{:8.0}{:9} |{:9.2}{:15.1}{:12.2}{:9.1}{:10.3}",
            cell.mbps,
            cell.rtt.as_millis(),
            cell.loss * 100.0,
            cell.late.as_millis(),
            outcome.error * 100.0,
            outcome.worst_100ms * 100.0,
            outcome.worst_5ms,
            outcome.goodput_mbps,
            outcome.ack_rate,
        );
        let exact = outcome.error.abs() <= tolerance;
        let coarse = smooth == Even::Nothing || outcome.worst_100ms <= cell.latitude();
        let even = coarse && (smooth != Even::All || outcome.worst_5ms <= 2.2);
        if !exact || !even {
            failures.push((cell, outcome));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

fn cells(mbps: &[f64], rtts: &[u64], losses: &[f64]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for &mbps in mbps {
        for &rtt in rtts {
            for &loss in losses {
                cells.push(Cell {
                    mbps,
                    rtt: millis(rtt),
                    loss,
                    late: Duration::ZERO,
                });
            }
        }
    }
    cells
}

#[tokio::test(start_paused = true)]
async fn the_wire_rate_is_the_target_over_the_ack_rate() {
    let cells = if full_matrix() {
        cells(
            &[5.0, 20.0, 100.0, 200.0],
            &[20, 100, 200],
            &[0.0, 0.01, 0.05, 0.1, 0.2, 0.3],
        )
    } else {
        let mut some = cells(&[5.0], &[20, 200], &[0.0, 0.1, 0.3]);
        some.extend(cells(&[20.0], &[100], &[0.0, 0.05, 0.2]));
        some.extend(cells(&[100.0], &[100], &[0.01]));
        some
    };
    check(cells, 0.02, Even::All).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_twice_was_lost() {
    let (rates, rtts): (&[f64], &[u64]) = if full_matrix() {
        (&[100.0, 200.0], &[20, 100, 200])
    } else {
        (&[50.0], &[20, 200])
    };
    let mut failures = Vec::new();
    for cell in cells(rates, rtts, &[0.0, 0.01, 0.05, 0.1, 0.2, 0.3]) {
        let buffer = millis(60);
        let setup = Setup::new(brutal_mbps(cell.mbps), cell.mbps * 1.6, cell.rtt, buffer);
        let transfer = Transfer::start(&setup.loss(cell.loss)).await;
        let before = transfer.until(seconds(5)).await;
        let after = transfer.until(seconds(20)).await;
        let unique = (after.received - before.received) as f64;
        let efficiency =
            unique / (after.counters.offered_bytes - before.counters.offered_bytes) as f64;
        let least = 0.97 * (1.0 - cell.loss) - 0.02;
        println!(
            "{} Mbit/s, {} ms, {:.0} % loss: {efficiency:.3} of what was sent is of use, at least {least:.3}",
            cell.mbps,
            cell.rtt.as_millis(),
            cell.loss * 100.0,
        );
        if efficiency < least {
            failures.push((cell, efficiency));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// The link carries nine tenths of what Brutal sends to make up for a fifth lost, and drops the rest at its queue.
/// Brutal takes that for loss and keeps on, as its rate says; but what the link carried is not sent again.
#[tokio::test(start_paused = true)]
async fn on_a_link_too_narrow_for_the_compensation_only_what_it_dropped_is_sent_twice() {
    let (rates, rtts): (&[f64], &[u64]) = if full_matrix() {
        (&[100.0, 200.0], &[20, 100, 200])
    } else {
        (&[50.0], &[20, 200])
    };
    let mut failures = Vec::new();
    for cell in cells(rates, rtts, &[0.2, 0.3]) {
        let setup = Setup::new(
            brutal_mbps(cell.mbps * 0.9),
            cell.mbps,
            cell.rtt,
            cell.rtt.max(millis(20)),
        );
        let transfer = Transfer::start(&setup.loss(cell.loss)).await;
        let before = transfer.until(seconds(10)).await;
        let after = transfer.until(seconds(40)).await;
        let offered = (after.counters.offered_bytes - before.counters.offered_bytes) as f64;
        let carried =
            (after.counters.delivered_bytes - before.counters.delivered_bytes) as f64 / offered;
        let efficiency = (after.received - before.received) as f64 / offered;
        let least = 0.97 * carried - 0.02;
        println!(
            "{} of {} Mbit/s, {} ms, {:.0} % loss: {carried:.3} of what was sent is carried, {efficiency:.3} of use, \
             at least {least:.3}",
            cell.mbps * 0.9,
            cell.mbps,
            cell.rtt.as_millis(),
            cell.loss * 100.0,
        );
        if efficiency < least {
            failures.push((cell, efficiency));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[tokio::test(start_paused = true)]
async fn low_rates_on_short_paths_are_carried() {
    let cells = if full_matrix() {
        cells(&[0.5, 1.0], &[1, 5, 20], &[0.0])
    } else {
        cells(&[0.5, 1.0], &[1, 20], &[0.0])
    };
    check(cells, 0.05, Even::Nothing).await;
}

#[tokio::test(start_paused = true)]
async fn late_timers_cost_no_rate() {
    let mut cells = if full_matrix() {
        cells(&[5.0, 20.0, 100.0, 200.0], &[20, 100, 200], &[0.0, 0.1])
    } else {
        cells(&[5.0, 20.0], &[20, 100], &[0.0, 0.1])
    };
    for cell in &mut cells {
        cell.late = millis(10);
    }
    check(cells, 0.03, Even::Coarse).await;
}

#[tokio::test(start_paused = true)]
async fn a_rate_just_below_a_shallow_bottleneck_drops_next_to_nothing() {
    let setup = Setup::new(brutal_mbps(90.0), 100.0, millis(50), millis(20));
    let transfer = Transfer::start(&setup).await;
    let before = transfer.until(seconds(5)).await.counters;
    let after = transfer.until(seconds(15)).await.counters;
    let dropped = (after.overflow_packets - before.overflow_packets) as f64;
    let offered = (after.offered_packets - before.offered_packets) as f64;
    println!("dropped {:.3} % of {offered}", dropped / offered * 100.0);
    assert!(dropped / offered <= 0.005);
}

#[tokio::test(start_paused = true)]
async fn the_rate_changes_while_connected() {
    let setup = Setup::new(brutal_mbps(20.0), 100.0, millis(40), millis(60));
    let transfer = Transfer::start(&setup).await;
    transfer.until(seconds(5)).await;
    transfer.handle.set(brutal_mbps(40.0));
    let before = transfer.until(seconds(6)).await.counters;
    let after = transfer.until(seconds(16)).await.counters;
    let mbps = (after.offered_bytes - before.offered_bytes) as f64 * 8e-7;
    assert!((39.2..=40.8).contains(&mbps), "{mbps}");
}

#[tokio::test(start_paused = true)]
async fn polling_statistics_does_not_change_the_rate() {
    let setup = Setup::new(brutal_mbps(20.0), 100.0, millis(40), millis(60));
    let transfer = Transfer::start(&setup).await;
    let before = transfer.until(seconds(5)).await.counters;
    for tick in 0..10_000 {
        transfer.until(seconds(5) + millis(tick)).await;
        let _ = transfer.connection.stats();
    }
    let after = transfer.until(seconds(15)).await.counters;
    let mbps = (after.offered_bytes - before.offered_bytes) as f64 * 8e-7;
    assert!((19.6..=20.4).contains(&mbps), "{mbps}");
}

/// What a faster algorithm saved up on a short path is no part of the rate: a server learns the rate
/// of a connection, and changes a user's, while BBR or a higher rate is in force.
#[tokio::test(start_paused = true)]
async fn a_lower_rate_holds_as_soon_as_it_is_set() {
    for (before, rtt) in [
        (
            Algorithm::Bbr(BbrProfile::Standard),
            Duration::from_micros(200),
        ),
        (Algorithm::Bbr(BbrProfile::Standard), millis(5)),
        (brutal_mbps(150.0), Duration::from_micros(200)),
    ] {
        for download in [false, true] {
            let mut setup = Setup::new(before, 200.0, rtt, millis(50));
            setup.download = download;
            let transfer = Transfer::start(&setup).await;
            let start = transfer.until(seconds(1)).await;
            transfer.handle.set(brutal_mbps(0.5));
            let end = transfer.until(seconds(3)).await;
            let offered = end.counters.offered_bytes - start.counters.offered_bytes;
            println!("from {before:?} at {rtt:?}, download {download}: {offered} bytes in 2 s");
            // Ten packets are ready at once, and those of one batch follow the old rate.
            assert!(offered <= 125_000 + 20 * 1452, "{offered}");
            assert!(offered >= 110_000, "{offered}");
        }
    }
}
