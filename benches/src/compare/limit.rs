//! Little memory and much to do (scenario 16): a server that may hold 256 MiB, four clients that
//! may hold as much each, 32 bulk streams of each client over long and lossy links.

use std::{fmt::Write as _, thread, time::Duration};

use anyhow::{Context, Result};
use hy2_link_emulator::model::LinkConfig;
use serde_json::{Value, json};

use crate::{
    group::Group,
    load,
    pair::{Between, Connected, Surroundings, Wanted, Whose},
    progress::Progress,
    scenario::Way,
};

/// What each process may hold.
const LIMIT: u64 = 256 << 20;
const CLIENTS: u64 = 4;
const STREAMS: u64 = 32;

/// Of each client's link, in Mbit/s; nine tenths of it are claimed.
const LINK: f64 = 100.0;
const LOSS: f64 = 0.05;
const ROUND_TRIP: Duration = Duration::from_millis(200);

/// What the scenario is called.
pub(crate) const NAME: &str = "memory limit of 256 MiB";

/// What came of it.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    down_mbps: f64,
    up_mbps: f64,
    server_peak: u64,
    /// Of the client that held most.
    client_peak: u64,
    killed: u64,
}

/// Runs both sides; returns the line and its figures, and adds to `missed` when one of ours was
/// killed, or when there is no right to make groups: what was not run has met no bar.
pub(crate) fn compare(
    around: &Surroundings,
    span: Duration,
    progress: &mut Progress,
    missed: &mut Vec<String>,
) -> Result<(String, Value)> {
    let name = format!("16 {NAME}, {CLIENTS} clients x {STREAMS} streams, 200 ms, 5 % lost");
    if let Err(error) = Group::new("try", LIMIT) {
        return Ok(not_run(&name, &error, missed));
    }
    let mut line = format!("{name}:");
    let mut value = json!({"name": name});
    for whose in around.sides() {
        progress.step(&format!("{name} ({whose:?})"));
        let who = whose.name();
        // A process that is killed in the middle is a result.
        match one(around, *whose, span) {
            Ok(outcome) => {
                let mebibytes = |bytes: u64| bytes as f64 / 1_048_576.0;
                let _ = write!(
                    line,
                    " {who} down {:.0} and up {:.0} Mbit/s, at most {:.0} MiB in the server and \
                     {:.0} in a client, {} killed;",
                    outcome.down_mbps,
                    outcome.up_mbps,
                    mebibytes(outcome.server_peak),
                    mebibytes(outcome.client_peak),
                    outcome.killed
                );
                value[who] = json!({
                    "down_mbps": outcome.down_mbps, "up_mbps": outcome.up_mbps,
                    "server_peak_mib": mebibytes(outcome.server_peak),
                    "client_peak_mib": mebibytes(outcome.client_peak),
                    "killed": outcome.killed,
                });
                if *whose == Whose::Ours && outcome.killed > 0 {
                    missed.push(format!("{name}: {} killed", outcome.killed));
                }
            }
            Err(error) => {
                let _ = write!(line, " {who} did not live: {error:#};");
                value[who] = json!({"failed": format!("{error:#}")});
                if *whose == Whose::Ours {
                    missed.push(format!("{name}: {error:#}"));
                }
            }
        }
    }
    Ok((line, value))
}

fn not_run(name: &str, error: &anyhow::Error, missed: &mut Vec<String>) -> (String, Value) {
    let why = format!("not run, no memory limit can be set: {error:#}");
    missed.push(format!("{name}: {why}"));
    let value = json!({"name": name, "not_run": format!("{error:#}")});
    (format!("{name}: {why}"), value)
}

fn one(around: &Surroundings, whose: Whose, span: Duration) -> Result<Outcome> {
    let setup = Wanted::default().setup;
    // Before the processes, which are then gone when the groups are removed, also after an error.
    let server_group = Group::new("server", LIMIT)?;
    let client_groups = (0..CLIENTS)
        .map(|number| Group::new(&format!("client-{number}"), LIMIT))
        .collect::<Result<Vec<_>>>()?;
    let (server, address) = around.server(whose, setup, Some(&server_group))?;
    let link = LinkConfig::clean(LINK, ROUND_TRIP / 2, ROUND_TRIP).with_loss(LOSS);
    let rate = (LINK * 0.9 * 1e6 / 8.0) as u64;
    let clients = (1..)
        .zip(&client_groups)
        .map(|(seed, group)| {
            let wanted = Wanted {
                link: Some(Between {
                    up: link,
                    down: link,
                    seed,
                }),
                up: rate,
                down: rate,
                ..Wanted::default()
            };
            around.client(whose, &address, &wanted, Some(group))
        })
        .collect::<Result<Vec<Connected>>>()?;
    let mbps = |way| -> Result<f64> {
        let threads: Vec<_> = clients
            .iter()
            .map(|client| {
                let proxy = client.tcp;
                thread::spawn(move || load::bulk_for(proxy, way, STREAMS, span))
            })
            .collect();
        let mut bytes = 0;
        for thread in threads {
            bytes += load::join(thread)?;
        }
        Ok(bytes as f64 * 8.0 / span.as_secs_f64() / 1e6)
    };
    let down_mbps = mbps(Way::Down).context("downloads")?;
    let up_mbps = mbps(Way::Up).context("uploads")?;
    // Whoever lives answers.
    for client in &clients {
        load::first_bytes(client.tcp, 1).context("after the load")?;
    }
    let mut outcome = Outcome {
        down_mbps,
        up_mbps,
        server_peak: server_group.peak()?,
        client_peak: 0,
        killed: server_group.killed()?,
    };
    for group in &client_groups {
        outcome.client_peak = outcome.client_peak.max(group.peak()?);
        outcome.killed += group.killed()?;
    }
    // Before their groups.
    drop((clients, server));
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_run_has_met_no_bar() {
        let mut missed = Vec::new();
        let error = anyhow::anyhow!("Permission denied");
        let (line, value) = not_run("16", &error, &mut missed);
        assert_eq!(missed.len(), 1, "{missed:?}");
        assert!(missed[0].contains("not run") && missed[0].contains("Permission denied"));
        assert!(line.contains("Permission denied"), "{line}");
        assert_eq!(value["not_run"], "Permission denied");
    }
}
