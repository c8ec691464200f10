//! Long, lossy and reordering links (scenarios 10 to 13): goodput of one download, and which share
//! of what the server put on the wire it was.

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use anyhow::Result;
use hy2_link_emulator::model::{LinkConfig, Reorder};
use serde_json::{Value, json};

use crate::{
    load,
    pair::{Between, Surroundings, Wanted, Whose},
    progress::Progress,
    report::{median, paired, spread},
};

/// One cell.
#[derive(Debug, Clone)]
struct Cell {
    number: u32,
    name: String,
    link: LinkConfig,
    /// The rate that the client claims, in Mbit/s; 0 is BBR.
    claimed: f64,
}

/// One run of a cell.
#[derive(Debug, Clone, Copy)]
struct Run {
    mbps: f64,
    /// Delivered stream bytes over UDP payload offered to the link by the server.
    efficiency: f64,
}

fn cells(quick: bool) -> Vec<Cell> {
    let mut cells = Vec::new();
    let rates: &[f64] = if quick { &[100.0] } else { &[100.0, 200.0] };
    let times: &[u64] = if quick { &[100] } else { &[20, 100, 200] };
    let losses: &[f64] = if quick {
        &[0.0, 0.1]
    } else {
        &[0.0, 0.01, 0.05, 0.1, 0.2, 0.3]
    };
    for rate in rates {
        for rtt in times {
            for loss in losses {
                // BBR above 10 % has no bar: nobody offers it there.
                for brutal in [true, false] {
                    if !brutal && *loss > 0.1 {
                        continue;
                    }
                    let how = if brutal { "Brutal" } else { "BBR" };
                    cells.push(Cell {
                        number: if brutal || *loss > 0.0 { 10 } else { 11 },
                        name: format!("{how}, {rate} Mbit/s, {rtt} ms, {} % lost", loss * 100.0),
                        link: link(*rate, *rtt).with_loss(*loss),
                        // As in the plan: nine tenths of the link.
                        claimed: if brutal { rate * 0.9 } else { 0.0 },
                    });
                }
            }
        }
    }
    let orders: &[(f64, u64)] = if quick {
        &[(0.3, 4)]
    } else {
        &[(0.0, 0), (0.1, 1), (0.1, 10), (0.3, 1), (0.3, 4), (0.3, 10)]
    };
    for (share, late) in orders {
        cells.push(Cell {
            number: 12,
            name: format!(
                "Brutal, 100 Mbit/s, 100 ms, {} % late by {late} ms",
                share * 100.0
            ),
            link: LinkConfig {
                reorder: Reorder {
                    probability: *share,
                    extra_delay: Duration::from_millis(*late),
                },
                ..link(100.0, 100)
            },
            claimed: 90.0,
        });
    }
    cells.push(Cell {
        number: 13,
        name: "200 Mbit/s claimed on a link of 20, 50 ms".to_owned(),
        link: link(20.0, 50),
        claimed: 200.0,
    });
    cells
}

/// A link with a buffer of one round trip, at least 250 kB.
fn link(mbps: f64, rtt: u64) -> LinkConfig {
    let buffer = (mbps * 1e6 / 8.0 * rtt as f64 / 1e3).max(250e3) / (mbps * 1e6 / 8.0);
    LinkConfig::clean(
        mbps,
        Duration::from_millis(rtt) / 2,
        Duration::from_secs_f64(buffer),
    )
}

/// Runs every cell and returns the table, after writing `matrix.json` and `matrix.md`.
pub(crate) fn run(
    around: &Surroundings,
    runs: usize,
    seconds: f64,
    quick: bool,
    out: Option<&Path>,
    machine: &Value,
) -> Result<()> {
    let cells = cells(quick);
    let mut progress = Progress::new(cells.len() * runs * around.sides().len());
    let mut lines = Vec::new();
    let mut values = Vec::new();
    let mut brutal_ratios = Vec::new();
    for cell in &cells {
        let mut figures = [Vec::new(), Vec::new()];
        for run in 0..runs {
            for (whose, into) in around.sides().iter().zip(&mut figures) {
                progress.step(&format!("{} ({whose:?})", cell.name));
                // The same seed for both of a pair.
                match one(around, *whose, cell, run as u64 + 1, seconds) {
                    Ok(run) => into.push(run),
                    // A connection that dies is a result.
                    Err(error) => {
                        eprintln!("  {whose:?} failed: {error:#}");
                        into.push(Run {
                            mbps: 0.0,
                            efficiency: 0.0,
                        });
                    }
                }
            }
        }
        let rates = |at: usize| figures[at].iter().map(|run| run.mbps).collect::<Vec<_>>();
        let shares =
            |at: usize| -> Vec<f64> { figures[at].iter().map(|run| run.efficiency).collect() };
        let mut line = format!(
            "| {} {} | {} | {:.3} |",
            cell.number,
            cell.name,
            spread(&rates(0)),
            median(&shares(0))
        );
        let mut value = json!({
            "number": cell.number, "name": cell.name,
            "hy2": {"mbps": rates(0), "efficiency": shares(0)},
        });
        if around.peer.is_some() {
            let ratio = paired(&rates(0), &rates(1));
            let _ = write!(
                line,
                " {} | {:.3} | {ratio:.2} |",
                spread(&rates(1)),
                median(&shares(1))
            );
            value["reference"] = json!({"mbps": rates(1), "efficiency": shares(1)});
            value["ratio"] = ratio.into();
            if cell.number == 10 && cell.claimed > 0.0 {
                brutal_ratios.push(ratio);
            }
        } else {
            line.push_str(" | | |");
        }
        println!("{line}");
        lines.push(line);
        values.push(value);
    }
    let mut text = String::from(
        "# Long, lossy and reordering links\n\nOne download per run, start-up included, over the \
         link emulator. Efficiency: delivered stream bytes over UDP payload offered to the link.\n",
    );
    let _ = writeln!(text, "\n{machine}\n");
    text.push_str(
        "| cell | hy2 Mbit/s | efficiency | reference Mbit/s | efficiency | ratio |\n|---|---|---|---|---|---|\n",
    );
    for line in &lines {
        let _ = writeln!(text, "{line}");
    }
    if !brutal_ratios.is_empty() {
        let mean =
            brutal_ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / brutal_ratios.len() as f64;
        let worst = brutal_ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let summary = format!(
            "Brutal: geometric mean of the ratios {:.2} (bar 1), worst cell {worst:.2} (bar 0.95).",
            mean.exp()
        );
        println!("{summary}");
        let _ = writeln!(text, "\n{summary}");
    }
    if let Some(out) = out {
        let json = json!({"machine": machine, "seconds": seconds, "quick": quick, "cells": values});
        fs::write(out.join("matrix.json"), format!("{json:#}\n"))?;
        fs::write(out.join("matrix.md"), text)?;
    }
    Ok(())
}

fn one(around: &Surroundings, whose: Whose, cell: &Cell, seed: u64, seconds: f64) -> Result<Run> {
    let rate = (cell.claimed * 1e6 / 8.0) as u64;
    let wanted = Wanted {
        link: Some(Between {
            up: cell.link,
            down: cell.link,
            seed,
        }),
        up: rate,
        down: rate,
        ..Wanted::default()
    };
    let side = around.side(whose, &wanted)?;
    let before = side.relay.as_ref().map(|relay| relay.report().down);
    let outcome = load::download_for(side.tcp, Duration::from_secs_f64(seconds))?;
    let after = side.relay.as_ref().map(|relay| relay.report());
    let offered = before.zip(after).map_or(0, |(before, after)| {
        after.down.offered_bytes - before.offered_bytes
    });
    if let Some(report) =
        after.filter(|report| report.late_packets > report.down.offered_packets / 100)
    {
        eprintln!(
            "  the machine was too busy: {} datagrams left the emulator late",
            report.late_packets
        );
    }
    Ok(Run {
        mbps: outcome.operations as f64 * 8.0 / outcome.elapsed.as_secs_f64() / 1e6,
        efficiency: outcome.operations as f64 / offered.max(1) as f64,
    })
}
