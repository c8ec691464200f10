//! BBR fills the pipe and not the queue.

use hy2_core::congestion::{Algorithm, BbrProfile};

use crate::harness::{Setup, Transfer, full_matrix, millis, seconds};

/// Runs standard BBR for 35 s on 100 Mbit/s with one bandwidth-delay product of buffer; returns
/// the share of the link used and the wire efficiency from second 5 on.
async fn measure(profile: BbrProfile, rtt: u64, loss: f64) -> (f64, f64) {
    let setup = Setup::new(Algorithm::Bbr(profile), 100.0, millis(rtt), millis(rtt)).loss(loss);
    let transfer = Transfer::start(&setup).await;
    let before = transfer.until(seconds(5)).await;
    let after = transfer.until(seconds(35)).await;
    let received = (after.received - before.received) as f64;
    let offered = (after.counters.offered_bytes - before.counters.offered_bytes) as f64;
    let used = received * 8.0 / 30.0 / 100e6;
    let efficiency = received / offered;
    println!(
        "{profile:?} {rtt} ms {:.0} % loss: {:.1} % of the link, efficiency {efficiency:.3}, estimate {:.1} Mbit/s",
        loss * 100.0,
        used * 100.0,
        after.snapshot.target_rate as f64 * 8e-6,
    );
    (used, efficiency)
}

#[tokio::test(start_paused = true)]
async fn standard_uses_a_clean_link_and_wastes_little() {
    for (rtt, share) in [(20, 0.85), (100, 0.85), (200, 0.75)] {
        let (used, efficiency) = measure(BbrProfile::Standard, rtt, 0.0).await;
        assert!(used >= share, "{rtt} ms: {used}");
        assert!(efficiency >= 0.90, "{rtt} ms: {efficiency}");
    }
}

/// A connection that has only received knows nothing of what it may send: what it acknowledged
/// meanwhile must not count as what the path carries.
#[tokio::test(start_paused = true)]
async fn a_direction_that_comes_second_starts_like_a_new_connection() {
    for rtt in [20, 100, 200] {
        for first in [3, 12] {
            let algorithm = Algorithm::Bbr(BbrProfile::Standard);
            let mut setup = Setup::new(algorithm, 100.0, millis(rtt), millis(rtt));
            setup.other_first = seconds(first);
            let transfer = Transfer::start(&setup).await;
            let begin = millis(12 * rtt);
            let before = transfer.until(begin).await.received;
            let after = transfer.until(begin + seconds(3)).await.received;
            let used = (after - before) as f64 * 8.0 / 3.0 / 100e6;
            println!(
                "{rtt} ms, after {first} s of the other: {:.1} %",
                used * 100.0
            );
            assert!(used >= 0.80, "{rtt} ms, {first} s: {used}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn random_loss_does_not_stop_it() {
    let (used, _) = measure(BbrProfile::Standard, 100, 0.05).await;
    assert!(used >= 0.60, "{used}");
}

#[tokio::test(start_paused = true)]
async fn the_other_profiles_work_too() {
    for profile in [BbrProfile::Conservative, BbrProfile::Aggressive] {
        let rtts: &[u64] = if full_matrix() {
            &[20, 100, 200]
        } else {
            &[100]
        };
        for &rtt in rtts {
            let (used, _) = measure(profile, rtt, 0.0).await;
            assert!(used >= 0.70, "{profile:?} {rtt} ms: {used}");
        }
    }
}
