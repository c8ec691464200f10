//! Many connections, all made by our client, so that the servers are compared: idle ones, and ones
//! that come and go.

use std::{fmt, thread, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    pair::{Surroundings, Wanted, Whose},
    process::Process,
    report::Sample,
    scenario::Setup,
};

/// What a server spends on authenticated connections that only keep themselves alive.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Idle {
    /// Memory per connection.
    pub(crate) kibibytes: f64,
    /// CPU of 1,000 of them, in percent of a core.
    pub(crate) percent: f64,
}

/// Bar for [`Idle::percent`].
pub(crate) const CPU_BAR: f64 = 0.5;

/// Bar for [`Idle::kibibytes`], for connections that never relayed and for used ones.
pub(crate) const fn memory_bar(used: bool) -> f64 {
    if used { 128.0 } else { 48.0 }
}

/// Holds `count` connections for `span`, which should be some keep-alives of ten seconds.
pub(crate) fn idle(
    around: &Surroundings,
    whose: Whose,
    setup: Setup,
    count: u64,
    used: bool,
    span: Duration,
) -> Result<Idle> {
    let (server, address) = around.server(whose, setup, None)?;
    let mut config = around.client_config(&address, &Wanted::default());
    config["use"] = used.into();
    let crowd = |config: &Value| -> Result<Process> {
        let (mut crowd, _) = Process::start(around.ourselves("crowd")?, config)?;
        if used {
            crowd.hear("used")?;
        }
        Ok(crowd)
    };
    // What the first connections allocate once is not counted.
    config["count"] = 20.into();
    let _first = crowd(&config)?;
    let before = server.resident()?;
    config["count"] = count.into();
    let _many = crowd(&config)?;
    thread::sleep(Duration::from_secs(3));
    let after = server.resident()?;
    let spent = server.cpu_seconds()?;
    thread::sleep(span);
    let spent = server.cpu_seconds()? - spent;
    let thousands = (count + 20) as f64 / 1e3;
    Ok(Idle {
        kibibytes: after.saturating_sub(before) as f64 / 1024.0 / count as f64,
        percent: spent / span.as_secs_f64() * 100.0 / thousands,
    })
}

/// Connects for `seconds`, `at_once` at a time, to a server that is running.
pub(crate) fn connects(
    around: &Surroundings,
    server: &Process,
    address: &str,
    at_once: u64,
    seconds: f64,
) -> Result<Sample> {
    let mut config = around.client_config(address, &Wanted::default());
    config["at_once"] = at_once.into();
    config["seconds"] = seconds.into();
    let (mut client, _) = Process::start(around.ourselves("connects")?, &config)?;
    let before = (server.cpu_seconds()?, client.cpu_seconds()?);
    let done = client.hear("done")?;
    let spent = server.cpu_seconds()? - before.0;
    let client_spent = client.cpu_seconds()? - before.1;
    let listed = done["latencies_us"].as_array().context("latencies")?;
    let mut sorted: Vec<f64> = listed.iter().filter_map(Value::as_f64).collect();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len() as f64;
    let quantile = |q: f64| {
        let at = (sorted.len().saturating_sub(1) as f64 * q).round() as usize;
        sorted.get(at).copied().unwrap_or(0.0)
    };
    Ok(Sample {
        rate: count / done["seconds"].as_f64().context("seconds")?,
        server: spent / count * 1e6,
        client: client_spent / count * 1e6,
        p50: quantile(0.5),
        p99: quantile(0.99),
        lost: 0,
        server_mib: server.resident()? as f64 / 1_048_576.0,
        client_mib: client.resident()? as f64 / 1_048_576.0,
        others: 0.0,
    })
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.1} KiB of server memory each, {:.2} % of a core per 1,000",
            self.kibibytes, self.percent
        )
    }
}

impl Idle {
    pub(crate) fn json(self) -> Value {
        json!({"kib_each": self.kibibytes, "percent_of_a_core_per_1000": self.percent})
    }
}
