//! Long, lossy and reordering links (scenarios 10 to 13): goodput of one download, and which share
//! of what the server put on the wire it was.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use anyhow::Result;
use hy2_link_emulator::model::{LinkConfig, Reorder};
use serde_json::{Value, json};

use crate::{
    load,
    pair::{Between, Surroundings, Wanted, Whose},
    progress::Progress,
    report::{by_line, median, paired, spread},
    scenario::Setup,
};

/// One cell.
#[derive(Debug, Clone)]
struct Cell {
    number: u32,
    name: String,
    link: LinkConfig,
    /// The share of packets that the link loses.
    loss: f64,
    /// The rate that the client claims, in Mbit/s; 0 is BBR.
    claimed: f64,
    /// Our server has `overclaimGuard`; the reference has nothing like it.
    guard: bool,
}

impl Cell {
    fn brutal(&self) -> bool {
        self.claimed > 0.0
    }
}

/// What came of a cell: our runs, then the reference's, none without it.
struct Outcome {
    cell: Cell,
    figures: [Vec<Run>; 2],
}

impl Outcome {
    fn rates(&self, side: usize) -> Vec<f64> {
        self.figures[side].iter().map(|run| run.mbps).collect()
    }

    fn efficiencies(&self, side: usize) -> Vec<f64> {
        self.figures[side]
            .iter()
            .map(|run| run.efficiency)
            .collect()
    }

    /// Our goodput over the reference's.
    fn ratio(&self) -> f64 {
        paired(&self.rates(0), &self.rates(1))
    }

    /// A line of the table.
    fn line(&self, paired: bool) -> String {
        let mut line = format!(
            "| {} {} | {} | {:.3} |",
            self.cell.number,
            self.cell.name,
            spread(&self.rates(0)),
            median(&self.efficiencies(0))
        );
        if paired {
            let _ = write!(
                line,
                " {} | {:.3} | {:.2} |",
                spread(&self.rates(1)),
                median(&self.efficiencies(1)),
                self.ratio()
            );
        } else {
            line.push_str(" | | |");
        }
        line
    }

    fn json(&self, paired: bool) -> Value {
        let mut value = json!({
            "number": self.cell.number, "name": self.cell.name,
            "hy2": {"mbps": self.rates(0), "efficiency": self.efficiencies(0)},
        });
        if paired {
            value["reference"] = json!({"mbps": self.rates(1), "efficiency": self.efficiencies(1)});
            value["ratio"] = self.ratio().into();
        }
        value
    }
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
                        loss: *loss,
                        // As in the plan: nine tenths of the link.
                        claimed: if brutal { rate * 0.9 } else { 0.0 },
                        guard: false,
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
            loss: 0.0,
            claimed: 90.0,
            guard: false,
        });
    }
    for guard in [false, true] {
        let how = if guard { ", guard on" } else { "" };
        cells.push(Cell {
            number: 13,
            name: format!("200 Mbit/s claimed on a link of 20, 50 ms{how}"),
            link: link(20.0, 50),
            loss: 0.0,
            claimed: 200.0,
            guard,
        });
    }
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

/// How the matrix is run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// Of each side in each cell.
    pub(crate) runs: usize,
    /// Of each run.
    pub(crate) seconds: f64,
    pub(crate) quick: bool,
    /// Cells at once. Their links are far slower than the machine; a run during which the emulator was
    /// late says so.
    pub(crate) lanes: usize,
}

/// Runs every cell whose name contains `only`, and writes `matrix.json` and `matrix.md`; adds to `missed` what is below its bar.
pub(crate) fn run(
    around: &Surroundings,
    extent: Extent,
    only: &str,
    out: Option<&Path>,
    machine: &Value,
    missed: &mut Vec<String>,
) -> Result<()> {
    let mut cells = cells(extent.quick);
    cells.retain(|cell| cell.name.contains(only));
    let progress = Mutex::new(Progress::new(
        cells.len() * extent.runs * around.sides().len(),
    ));
    let next = AtomicUsize::new(0);
    // With the cell's place, as lanes end in any order.
    let ended = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..extent.lanes.max(1) {
            scope.spawn(|| {
                while let Some((place, cell)) = {
                    let place = next.fetch_add(1, Relaxed);
                    cells.get(place).map(|cell| (place, cell))
                } {
                    let figures = pairs(around, cell, extent, &progress);
                    let outcome = Outcome {
                        cell: cell.clone(),
                        figures,
                    };
                    println!("{}", outcome.line(around.peer.is_some()));
                    lock(&ended).push((place, outcome));
                }
            });
        }
    });
    let mut ended = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
    ended.sort_by_key(|(place, _)| *place);
    let outcomes: Vec<Outcome> = ended.into_iter().map(|(_, outcome)| outcome).collect();
    let mut text = String::from(
        "# Long, lossy and reordering links\n\nOne download per run, start-up included, over the \
         link emulator. Efficiency: delivered stream bytes over UDP payload offered to the link, of \
         which some is still on its way when a run ends.\n",
    );
    let _ = writeln!(
        text,
        "{} runs of {} s of each side in turn, {} cells at once.\n\n{machine}\n",
        extent.runs, extent.seconds, extent.lanes
    );
    text.push_str(
        "| cell | hy2 Mbit/s | efficiency | reference Mbit/s | efficiency | ratio |\n|---|---|---|---|---|---|\n",
    );
    for outcome in &outcomes {
        let _ = writeln!(text, "{}", outcome.line(around.peer.is_some()));
    }
    text.push('\n');
    let verdicts = verdicts(&outcomes, around.peer.is_some());
    for (verdict, met) in &verdicts {
        let met = if *met { "met" } else { "not met" };
        println!("{verdict}: {met}");
        let _ = writeln!(text, "- {verdict}: {met}");
    }
    missed.extend(
        verdicts
            .into_iter()
            .filter(|(_, met)| !met)
            .map(|(text, _)| text),
    );
    if let Some(out) = out {
        let cells: Vec<Value> = outcomes
            .iter()
            .map(|outcome| outcome.json(around.peer.is_some()))
            .collect();
        let json = json!({
            "machine": machine, "seconds": extent.seconds, "quick": extent.quick,
            "runs": extent.runs, "lanes": extent.lanes, "cells": cells,
        });
        fs::create_dir_all(out)?;
        fs::write(out.join("matrix.json"), by_line(&json))?;
        fs::write(out.join("matrix.md"), text)?;
    }
    Ok(())
}

/// Runs a cell in turn on both sides.
fn pairs(
    around: &Surroundings,
    cell: &Cell,
    extent: Extent,
    progress: &Mutex<Progress>,
) -> [Vec<Run>; 2] {
    let mut figures = [Vec::new(), Vec::new()];
    for run in 0..extent.runs {
        for (whose, into) in around.sides().iter().zip(&mut figures) {
            lock(progress).step(&format!("{} ({whose:?})", cell.name));
            // The same seed for both of a pair.
            let ran = one(around, *whose, cell, run as u64 + 1, extent.seconds);
            // A connection that dies is a result.
            into.push(ran.unwrap_or_else(|error| {
                eprintln!("  {}: {whose:?} failed: {error:#}", cell.name);
                Run {
                    mbps: 0.0,
                    efficiency: 0.0,
                }
            }));
        }
    }
    figures
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Judges the cells together; whether each bar is met.
fn verdicts(outcomes: &[Outcome], paired: bool) -> Vec<(String, bool)> {
    let mut verdicts = Vec::new();
    let lossy = |brutal: bool| {
        outcomes.iter().filter(move |outcome| {
            [10, 11].contains(&outcome.cell.number) && outcome.cell.brutal() == brutal
        })
    };
    if paired {
        for (what, brutal, bar) in [("Brutal", true, 0.95), ("BBR", false, 0.9)] {
            let ratios: Vec<f64> = lossy(brutal).map(Outcome::ratio).collect();
            if ratios.is_empty() {
                continue;
            }
            let mean = geometric_mean(&ratios);
            let worst = ratios.iter().copied().fold(f64::INFINITY, f64::min);
            verdicts.push((
                format!(
                    "{what}, goodput over the reference's: geometric mean {mean:.2} (bar 1), worst \
                     cell {worst:.2} (bar {bar})"
                ),
                mean >= 1.0 && worst >= bar,
            ));
        }
    }
    let clean = lossy(false)
        .filter(|outcome| outcome.cell.loss == 0.0)
        .map(|outcome| median(&outcome.efficiencies(0)))
        .fold(f64::INFINITY, f64::min);
    if clean.is_finite() {
        verdicts.push((
            format!("BBR on clean links, least efficiency {clean:.3} (bar 0.9)"),
            clean >= 0.9,
        ));
    }
    let reordered: Vec<f64> = outcomes
        .iter()
        .filter(|outcome| outcome.cell.number == 12)
        .map(|outcome| median(&outcome.rates(0)))
        .collect();
    if let [in_order, others @ ..] = reordered.as_slice()
        && !others.is_empty()
    {
        let worst = others.iter().copied().fold(f64::INFINITY, f64::min) / in_order;
        verdicts.push((
            format!("reordering, least goodput over that in order {worst:.3} (bar 0.95)"),
            worst >= 0.95,
        ));
    }
    for outcome in outcomes.iter().filter(|outcome| outcome.cell.guard) {
        let sent = 1.0 / median(&outcome.efficiencies(0));
        verdicts.push((
            format!("claimed ten times the link, guard on, sent over received {sent:.2} (bar 1.3)"),
            sent <= 1.3,
        ));
    }
    verdicts
}

fn geometric_mean(values: &[f64]) -> f64 {
    (values.iter().map(|value| value.ln()).sum::<f64>() / values.len() as f64).exp()
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
        setup: Setup {
            guard: cell.guard,
            ..Setup::default()
        },
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
            "  {}: the machine was too busy: {} datagrams left the emulator late",
            cell.name, report.late_packets
        );
    }
    Ok(Run {
        mbps: outcome.operations as f64 * 8.0 / outcome.elapsed.as_secs_f64() / 1e6,
        efficiency: outcome.operations as f64 / offered.max(1) as f64,
    })
}
