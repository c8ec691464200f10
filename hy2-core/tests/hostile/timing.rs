//! Whether the time an answer takes tells what the server did for it.

use std::time::{Duration, Instant};

use crate::{
    attacker::{Answer, Attacker},
    full, say,
    server::{ServerProcess, alone},
    wire,
};

/// Rounds of one wrong password and one other request per connection; the server stops looking at
/// passwords after five.
const ROUNDS: usize = 4;

/// Beyond this many standard deviations a difference is one: p = 0.01, two-sided.
const DETECTED: f64 = 2.575_829;

/// Compares what a wrong password and any other POST take, with the same headers and as many bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_takes_as_long_as_any_other_post() {
    let _alone = alone().await;
    let mut server = ServerProcess::start("auth=table").await;
    let count = if full() { 10_000 } else { 200 };
    let fields = [
        ("hysteria-auth", "alice:wrong guess"),
        ("hysteria-cc-rx", "0"),
    ];
    let wrong = wire::request("POST", "hysteria", "/auth", &fields);
    let others = [
        (
            "another path",
            wire::request("POST", "hysteria", "/auti", &fields),
        ),
        (
            "another host",
            wire::request("POST", "hysterix", "/auth", &fields),
        ),
    ];
    for (what, other) in others {
        assert_eq!(wrong.len(), other.len());
        // One run in a hundred deviates by chance; a difference is there in every run.
        let mut runs = 0;
        loop {
            runs += 1;
            let times = measure(&server, &wrong, &other, count).await;
            let z = mann_whitney(&times);
            let [a, b] = times.map(|mut times| {
                times.sort();
                times[times.len() / 2]
            });
            say(format_args!(
                "wrong password {a:?}, {what} {b:?} (medians of {count}), z = {z:+.2}"
            ));
            if z.abs() < DETECTED || !full() {
                break;
            }
            assert!(runs < 3, "{what}: told apart in {runs} runs");
        }
    }
    server.is_well().await;
}

/// Asks for both in random order, `count` times each, on fresh connections.
async fn measure(
    server: &ServerProcess,
    first: &[u8],
    second: &[u8],
    count: usize,
) -> [Vec<Duration>; 2] {
    let mut times = [Vec::new(), Vec::new()];
    let mut coin = 0x9e37_79b9_7f4a_7c15u64;
    while times[0].len() < count {
        let attacker = Attacker::connect(server).await;
        // What the first request of a connection sets up is not for the second to find done.
        assert!(matches!(
            attacker.ask(&wire::get("/")).await,
            Answer::Bytes(_)
        ));
        for _ in 0..ROUNDS {
            coin ^= coin << 13;
            coin ^= coin >> 7;
            coin ^= coin << 17;
            let flip = usize::from(coin & 1 == 1);
            for which in [flip, 1 - flip] {
                let request = [first, second][which];
                let start = Instant::now();
                let answer = attacker.ask(request).await;
                times[which].push(start.elapsed());
                assert!(matches!(answer, Answer::Bytes(bytes) if !bytes.is_empty()));
            }
        }
        attacker.conn.close(0x100u32.into(), b"");
    }
    times
}

/// Returns by how many standard deviations the rank sum of the first sample is off
/// (Mann-Whitney, with the correction for ties).
fn mann_whitney(samples: &[Vec<Duration>; 2]) -> f64 {
    let mut all: Vec<(Duration, bool)> = samples
        .iter()
        .zip([true, false])
        .flat_map(|(times, first)| times.iter().map(move |time| (*time, first)))
        .collect();
    all.sort();
    let [n, m] = samples.each_ref().map(|times| times.len() as f64);
    let (mut rank_sum, mut ties, mut before) = (0.0, 0.0, 0.0);
    for same in all.chunk_by(|a, b| a.0 == b.0) {
        let size = same.len() as f64;
        let rank = before + (size + 1.0) / 2.0;
        rank_sum += rank * same.iter().filter(|(_, first)| *first).count() as f64;
        ties += size.powi(3) - size;
        before += size;
    }
    let u = rank_sum - n * (n + 1.0) / 2.0;
    let total = n + m;
    let variance = n * m / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)));
    (u - n * m / 2.0) / variance.sqrt()
}

#[test]
fn the_statistic_finds_a_difference_and_none_where_none_is() {
    let times = |range: std::ops::Range<u64>| range.map(Duration::from_micros).collect::<Vec<_>>();
    assert!(mann_whitney(&[times(0..100), times(0..100)]).abs() < 1e-9);
    // By hand: U = 0 of 25, variance 25 / 12 * 11, so z = -12.5 / 4.787.
    let z = mann_whitney(&[times(0..5), times(10..15)]);
    assert!((z + 2.611).abs() < 0.001, "{z}");
    assert!(mann_whitney(&[times(3..1003), times(0..1000)]).abs() < DETECTED);
    assert!(mann_whitney(&[times(100..1100), times(0..1000)]) > DETECTED);
}
