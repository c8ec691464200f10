//! `hy2 speedtest`: throughput between client and server, both ways.

use std::{
    io::{self, Write},
    time::Duration,
};

use anyhow::Context;
use hy2_core::{
    Client,
    client::{Amount, Direction},
};
use hy2_daemon_runtime::{Progress, human_bytes, human_rate};

use super::Prepared;
use crate::cli;

/// What takes less says nothing of a rate: one burst, or less than a round trip.
const SHORTEST: Duration = Duration::from_millis(10);

/// Measures and prints the directions that were asked for.
pub(crate) async fn speedtest(prepared: Prepared, flags: &cli::Speedtest) -> anyhow::Result<()> {
    let server = prepared.server;
    let client = Client::connect(prepared.config)
        .await
        .with_context(|| format!("cannot connect to {server}"))?;
    let directions = [
        ("download", Direction::Download, flags.skip_download),
        ("upload", Direction::Upload, flags.skip_upload),
    ];
    for (name, direction, skip) in directions {
        if !skip {
            let line = measure(&client, name, direction, flags).await?;
            writeln!(io::stdout(), "{line}")?;
        }
    }
    client.close().await;
    Ok(())
}

async fn measure(
    client: &Client,
    name: &'static str,
    direction: Direction,
    flags: &cli::Speedtest,
) -> anyhow::Result<String> {
    let rate = |bytes: u64, seconds: f64| {
        let rate = bytes as f64 / seconds.max(0.001);
        if flags.use_bytes {
            // A rate in bytes per second fits: it was measured.
            format!("{}/s", human_bytes(rate as u64))
        } else {
            human_rate(rate)
        }
    };
    let (amount, progress) = match flags.data_size {
        Some(bytes) => (Amount::Bytes(bytes), Progress::of_bytes(name, bytes.into())),
        None => (
            Amount::Time(flags.duration),
            Progress::of_time(name, flags.duration),
        ),
    };
    let result = client
        .speed_test(direction, amount, |step| {
            let done = match amount {
                Amount::Time(_) => u64::try_from(step.elapsed.as_millis()).unwrap_or(u64::MAX),
                _ => step.bytes,
            };
            progress.set(done, rate(step.recent_bytes, step.recent.as_secs_f64()));
        })
        .await;
    progress.finish();
    let result = result.with_context(|| format!("{name} test"))?;
    let speed = if result.elapsed < SHORTEST {
        "too little for a rate".to_owned()
    } else {
        rate(result.bytes, result.elapsed.as_secs_f64())
    };
    Ok(format!(
        "{name}: {} in {:.1?}, {speed}",
        human_bytes(result.bytes),
        result.elapsed,
    ))
}
