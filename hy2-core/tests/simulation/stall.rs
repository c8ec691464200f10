//! A receiver that stalls while its path loses packets hurts nobody else and continues afterwards.

use std::time::Duration;

use crate::{
    flow::{Flow, FlowKind},
    world::{Setup, World, full_matrix, mebibytes, millis, rate, seconds},
};

struct Stall {
    target: f64,
    rtt_ms: u64,
    loss: f64,
    memory: Option<usize>,
    length: Duration,
    /// Streams that stall.
    count: u16,
}

impl Stall {
    const fn bar() -> Self {
        Self {
            target: 200.0,
            rtt_ms: 200,
            loss: 0.3,
            memory: None,
            length: Duration::from_secs(5),
            count: 1,
        }
    }

    /// Tells whether a stalled reader may leave more gaps unread than quinn suffers, which closes a
    /// connection at 1,024 (docs/benchmarks.md): in a window of 8 MiB, whose packets were lost once, and
    /// those of each round trip before once more. What `RelayRecv` can do about it ends there.
    fn is_beyond(&self) -> bool {
        let round_trip = self.target * 1e6 / 8.0 * self.rtt_ms as f64 / 1e3 / 1432.0;
        let mut left = f64::from(8_u32 << 20) / 1432.0;
        let mut missing = self.loss;
        let mut gaps = 0.0;
        while left > 0.0 && missing > 0.001 {
            let packets = round_trip.min(left);
            gaps += packets * missing * (1.0 - missing);
            left -= packets;
            missing *= self.loss;
        }
        // Runs differ by some dozens; the bar has 927.
        gaps > 960.0
    }
}

async fn run(stall: &Stall, kind: FlowKind) {
    let mut setup = Setup::new(stall.target, stall.target * 2.0, millis(stall.rtt_ms))
        .loss(kind.download, stall.loss);
    setup.memory = stall.memory;
    let world = World::start(&setup).await;
    let mut stalling = Vec::new();
    for port in 1..=stall.count {
        stalling.push(Flow::start(&world, port, kind).await);
    }
    let other = Flow::start(&world, 100, kind).await;

    let window = seconds(if full_matrix() { 20 } else { 10 });
    let stalled_at = seconds(5) + window;
    let resumed_at = stalled_at + stall.length;
    let later = stalled_at + window.max(stall.length + seconds(5));
    let total = || stalling.iter().map(Flow::received).sum::<u64>();
    let mut marks = Vec::new();
    for at in [seconds(5), stalled_at, resumed_at, later, later + window] {
        world.until(at).await;
        marks.push((total(), other.received()));
        let reading = at != stalled_at;
        stalling.iter().for_each(|flow| flow.set_reading(reading));
    }
    let peaks = world.memory_peaks().map(mebibytes);
    // Rates of the stalling streams and of the other one.
    let rates = |from: usize, to: usize, span| {
        let (before, after): ((u64, u64), _) = (marks[from], marks[to]);
        (
            rate(after.0 - before.0, span),
            rate(after.1 - before.1, span),
        )
    };
    let before = rates(0, 1, window);
    // Streams share unevenly where half of the packets are lost: who had less is not hurt by having it still.
    let fair = before
        .1
        .min((before.0 + before.1) / f64::from(stall.count + 1));
    let during = rates(1, 2, stall.length);
    let meanwhile = rates(1, 3, later - stalled_at);
    let after = rates(3, 4, window);
    println!(
        "{} {} Mbit/s x {} ms x {} %, {} of {} stall for {:?}, memory {}: (stalling, other) before \
         {before:.1?}, in the stall {during:.1?}, until the stalled ones have caught up \
         {meanwhile:.1?}, later {after:.1?}; reserved at most {:.1} (client) and {:.1} MiB (server)",
        kind.name(),
        stall.target,
        stall.rtt_ms,
        stall.loss * 100.0,
        stall.count,
        stall.count + 1,
        stall.length,
        stall.memory.map_or_else(
            || "default".to_owned(),
            |bytes| format!("{} MiB", bytes >> 20)
        ),
        peaks[0],
        peaks[1],
    );
    // What stalled streams have not read counts against the window of the connection, 20 MiB as the reference's; three
    // full windows of 8 MiB leave nothing of it.
    let room = stall.count < 3;
    // Where half of the packets are lost two equal streams differ by a tenth over 20 s, without any stall.
    let part = if stall.loss < 0.5 { 0.9 } else { 0.8 };
    assert!(
        !room || meanwhile.1 >= part * fair,
        "the other stream fell to {:.1} of {fair:.1}",
        meanwhile.1
    );
    // Bytes arrive behind the oldest gap, which takes up to four round trips longer at one time than at another.
    let uneven = match stall.loss {
        0.0 => 0.0,
        _ => 4.0 * millis(stall.rtt_ms).as_secs_f64() / stall.length.as_secs_f64(),
    };
    assert!(
        !room || during.1 >= part * (1.0 - uneven) * fair,
        "the other stream fell to {:.1} of {fair:.1} in the stall",
        during.1
    );
    let both = (after.0 + after.1) / (before.0 + before.1);
    assert!(both >= 0.85, "the connection came back with {both:.2}");
    for flow in stalling {
        flow.finish().await;
    }
    other.finish().await;
    world.memory_returns().await;
}

#[tokio::test(start_paused = true)]
async fn a_stalled_target_hurts_no_other_stream() {
    run(&Stall::bar(), FlowKind::new(false)).await;
}

#[tokio::test(start_paused = true)]
async fn a_stalled_application_hurts_no_other_stream() {
    run(&Stall::bar(), FlowKind::new(true)).await;
}

#[tokio::test(start_paused = true)]
async fn stalls_of_every_kind_end_well() {
    let mut cells = vec![
        Stall {
            target: 100.0,
            rtt_ms: 300,
            ..Stall::bar()
        },
        Stall {
            rtt_ms: 100,
            ..Stall::bar()
        },
    ];
    if full_matrix() {
        for target in [20.0, 100.0, 200.0] {
            for rtt_ms in [20, 100, 300] {
                for loss in [0.0, 0.05, 0.3, 0.5] {
                    cells.push(Stall {
                        target,
                        rtt_ms,
                        loss,
                        ..Stall::bar()
                    });
                }
            }
        }
        for count in [3, 10] {
            cells.push(Stall {
                count,
                length: seconds(60),
                ..Stall::bar()
            });
        }
    }
    for cell in cells.iter().filter(|cell| !cell.is_beyond()) {
        run(cell, FlowKind::new(false)).await;
    }
}
