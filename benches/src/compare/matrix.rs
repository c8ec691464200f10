//! Long, lossy and reordering links (scenarios 10 to 13): goodput of one download, and which share
//! of what the server put on the wire was of use.

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

use anyhow::{Context, Result};
use hy2_link_emulator::model::{LinkConfig, Reorder};
use serde_json::{Value, json};

use crate::{
    load,
    machine::{self, Watch},
    pair::{Between, Surroundings, Wanted, Whose},
    progress::Progress,
    report::{by_line, median, paired, spread},
    scenario::Setup,
};

/// Brutal makes up for this much loss and no more, `1 - 0.8` as in the reference.
const MADE_UP: f64 = 0.2;

/// For how long the guard's cells run at least: its bar holds with the start in it.
const GUARD_SECONDS: f64 = 10.0;

/// One cell.
#[derive(Debug, Clone)]
struct Cell {
    number: u32,
    name: String,
    link: LinkConfig,
    /// Of the link, in Mbit/s.
    rate: f64,
    /// Round trip in milliseconds.
    rtt: u64,
    /// The share of packets that the link loses.
    loss: f64,
    /// The rate that the client claims, in Mbit/s; 0 is BBR.
    claimed: f64,
    /// Our server has `overclaimGuard`; the reference has nothing like it.
    guard: bool,
}

impl Cell {
    /// A cell with a clean link of which nine tenths are claimed, as in the plan, or BBR.
    fn new(number: u32, brutal: bool, rate: f64, rtt: u64) -> Self {
        let how = if brutal { "Brutal" } else { "BBR" };
        Self {
            number,
            name: format!("{how}, {rate} Mbit/s, {rtt} ms"),
            link: link(rate, rtt),
            rate,
            rtt,
            loss: 0.0,
            claimed: if brutal { rate * 0.9 } else { 0.0 },
            guard: false,
        }
    }

    fn lossy(self, loss: f64) -> Self {
        Self {
            name: format!("{}, {} % lost", self.name, loss * 100.0),
            link: self.link.with_loss(loss),
            loss,
            ..self
        }
    }

    fn reordering(mut self, share: f64, late: u64) -> Self {
        self.name += &format!(", {} % late by {late} ms", share * 100.0);
        self.link.reorder = Reorder {
            probability: share,
            extra_delay: Duration::from_millis(late),
        };
        self
    }

    fn brutal(&self) -> bool {
        self.claimed > 0.0
    }

    /// Whether Brutal's efficiency has a bar here.
    fn has_efficiency_bar(&self) -> bool {
        self.brutal() && self.number == 10
    }

    /// Whether the link carries the claim and what makes up for loss.
    ///
    /// Where it does not, its queue drops the rest as well. That is Brutal's, of either side: it goes by what
    /// the client claims.
    fn is_wide_enough(&self) -> bool {
        self.claimed / (1.0 - self.loss.min(MADE_UP)) < self.rate
    }

    /// The least share of what is offered that has to be of use, when the link carries the share `carried` of it.
    fn least_efficiency(&self, carried: f64) -> f64 {
        let arrives = 1.0 - self.loss;
        let arrives = if self.is_wide_enough() {
            arrives
        } else {
            arrives.min(carried)
        };
        0.97 * arrives - 0.02
    }

    fn seconds(&self, extent: Extent) -> f64 {
        if self.number == 13 && !extent.quick {
            extent.seconds.max(GUARD_SECONDS)
        } else {
            extent.seconds
        }
    }
}

/// What came of a cell: our runs, then the reference's, none without it.
struct Outcome {
    cell: Cell,
    figures: [Vec<Run>; 2],
}

impl Outcome {
    fn of(&self, side: usize, pick: impl Fn(&Run) -> f64) -> Vec<f64> {
        self.figures[side].iter().map(pick).collect()
    }

    fn rates(&self, side: usize) -> Vec<f64> {
        self.of(side, |run| run.mbps)
    }

    fn efficiency(&self, side: usize) -> f64 {
        median(&self.of(side, |run| run.efficiency))
    }

    fn carried(&self, side: usize) -> f64 {
        median(&self.of(side, |run| run.carried))
    }

    /// What our efficiency must not be below, where that has a bar.
    fn least_efficiency(&self) -> Option<f64> {
        let carried = self.carried(0);
        let judged = self.cell.has_efficiency_bar();
        judged.then(|| self.cell.least_efficiency(carried))
    }

    /// Our goodput over the reference's.
    fn ratio(&self) -> f64 {
        paired(&self.rates(0), &self.rates(1))
    }

    fn runs(&self) -> impl Iterator<Item = &Run> {
        self.figures.iter().flatten()
    }

    fn late(&self) -> usize {
        self.runs().filter(|run| run.late).count()
    }

    fn others(&self) -> Vec<f64> {
        self.runs().map(|run| run.others).collect()
    }

    /// A line of the table.
    fn line(&self, paired: bool) -> String {
        let mut line = format!("| {} {}", self.cell.number, self.cell.name);
        line += &machine::mark(&self.others());
        if self.late() > 0 {
            let _ = write!(
                line,
                " (late: {} of {} runs)",
                self.late(),
                self.runs().count()
            );
        }
        let _ = write!(
            line,
            " | {} | {:.3}",
            spread(&self.rates(0)),
            self.efficiency(0)
        );
        if let Some(least) = self.least_efficiency() {
            let below = self.efficiency(0) < least;
            let bar = if below { "**bar" } else { "bar" };
            let end = if below { "**" } else { "" };
            let of = if self.cell.is_wide_enough() {
                ""
            } else {
                " of carried"
            };
            let _ = write!(line, " ({bar} {least:.3}{of}{end})");
        }
        let _ = write!(line, " | {:.3} |", self.carried(0));
        if paired {
            let _ = write!(
                line,
                " {} | {:.3} | {:.3} | {:.2} |",
                spread(&self.rates(1)),
                self.efficiency(1),
                self.carried(1),
                self.ratio()
            );
        } else {
            line.push_str(" | | | |");
        }
        line
    }

    fn json(&self, paired: bool) -> Value {
        let side = |side| {
            json!({
                "mbps": self.rates(side),
                "efficiency": self.of(side, |run| run.efficiency),
                "carried": self.of(side, |run| run.carried),
                "others_cores": self.of(side, |run| run.others),
                "late": self.figures[side].iter().map(|run| run.late).collect::<Vec<_>>(),
            })
        };
        let mut value = json!({
            "number": self.cell.number, "name": self.cell.name, "hy2": side(0),
            "least_efficiency": self.least_efficiency(),
        });
        if paired {
            value["reference"] = side(1);
            value["ratio"] = self.ratio().into();
        }
        value
    }
}

/// Above [`Outcome::line`].
const HEAD: &str = "\
| cell | hy2 Mbit/s | of use | carried | reference Mbit/s | of use | carried | ratio |
|---|---|---|---|---|---|---|---|";

/// One run of a cell.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    mbps: f64,
    /// Stream bytes over the UDP payload that the server offered to the link for them, to the last byte.
    efficiency: f64,
    /// The share of what was offered that the link carried: neither lost nor dropped at its queue.
    carried: f64,
    /// Datagrams left the emulator late, or never reached it, uncounted: the machine was too busy.
    late: bool,
    /// Cores that other programs used meanwhile.
    others: f64,
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
    for &rate in rates {
        for &rtt in times {
            for &loss in losses {
                for brutal in [true, false] {
                    let number = if brutal || loss > 0.0 { 10 } else { 11 };
                    cells.push(Cell::new(number, brutal, rate, rtt).lossy(loss));
                }
            }
        }
    }
    let times: &[u64] = if quick { &[100] } else { &[100, 200] };
    let orders: &[(f64, u64)] = if quick {
        &[(0.0, 0), (0.3, 4)]
    } else {
        &[
            (0.0, 0),
            (0.1, 1),
            (0.1, 4),
            (0.1, 10),
            (0.3, 1),
            (0.3, 4),
            (0.3, 10),
        ]
    };
    for brutal in [true, false] {
        for &rtt in times {
            for &(share, late) in orders {
                cells.push(Cell::new(12, brutal, 100.0, rtt).reordering(share, late));
            }
        }
    }
    for guard in [false, true] {
        let how = if guard { ", guard on" } else { "" };
        cells.push(Cell {
            name: format!("200 Mbit/s claimed on a link of 20, 50 ms{how}"),
            claimed: 200.0,
            guard,
            ..Cell::new(13, true, 20.0, 50)
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
    println!("\n{HEAD}");
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
         link emulator. Mbit/s: what arrived while the origin sent. Of use: all stream bytes of the \
         download over the UDP payload that the server offered to the link until the last of them had \
         arrived. Carried: the share of that payload which the link neither lost nor dropped at its \
         queue. A link that is too narrow for the claimed rate and what makes up for the loss drops the \
         rest; the bar is then that of what it carried.\n\n",
    );
    let late: usize = outcomes.iter().map(Outcome::late).sum();
    let others: Vec<f64> = outcomes.iter().flat_map(Outcome::others).collect();
    let mut caveats = machine::caveats(machine);
    if late > 0 {
        let of = others.len();
        caveats.push(format!(
            "in {late} of {of} runs the link emulator was late, or missed datagrams"
        ));
    }
    let disturbed = others.iter().filter(|others| **others > machine::OTHERS);
    text += &machine::notes(&caveats, disturbed.count(), others.len());
    let _ = writeln!(
        text,
        "{} runs of {} s of each side in turn, {} cells at once.\n\n{machine}\n",
        extent.runs, extent.seconds, extent.lanes
    );
    let _ = writeln!(text, "{HEAD}");
    for outcome in &outcomes {
        let _ = writeln!(text, "{}", outcome.line(around.peer.is_some()));
    }
    text.push('\n');
    let verdicts = verdicts(&outcomes, around.peer.is_some());
    for Verdict { what, met, gates } in verdicts {
        let line = format!("{what}: {}", if met { "met" } else { "not met" });
        println!("{line}");
        let _ = writeln!(text, "- {line}");
        if gates && !met {
            missed.push(what);
        }
    }
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
            let ran = one(around, *whose, cell, run as u64 + 1, cell.seconds(extent));
            // A connection that dies is a result.
            into.push(ran.unwrap_or_else(|error| {
                eprintln!("  {}: {whose:?} failed: {error:#}", cell.name);
                Run::default()
            }));
        }
    }
    figures
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the cells mean together.
struct Verdict {
    what: String,
    met: bool,
    /// A bar; otherwise a goal.
    gates: bool,
}

/// Judges the cells together.
fn verdicts(outcomes: &[Outcome], paired: bool) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let mut judge = |what: String, met: bool, gates: bool| {
        verdicts.push(Verdict { what, met, gates });
    };
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
            let what = format!(
                "{what}, goodput over the reference's: geometric mean {mean:.2} (bar 1), worst cell {worst:.2} \
                 (bar {bar})"
            );
            judge(what, mean >= 1.0 && worst >= bar, true);
        }
        let long = || lossy(true).filter(|one| one.cell.rtt == 200 && one.cell.loss >= 0.1);
        if long().next().is_some() {
            let below = named(long().filter_map(|one| {
                let ratio = one.ratio();
                (ratio < 1.5).then(|| format!("{} {ratio:.2}", one.cell.name))
            }));
            let of = long().count();
            let what = format!(
                "goal: Brutal at 200 ms with 10 % or more lost, each of {of} cells 1.5 times the reference; below{}",
                below.1
            );
            judge(what, below.0 == 0, false);
        }
    }
    let efficient = || {
        outcomes
            .iter()
            .filter_map(|one| Some((one, one.least_efficiency()?)))
    };
    if efficient().next().is_some() {
        let below = named(efficient().filter_map(|(one, least)| {
            let efficiency = one.efficiency(0);
            // Also when it is no number.
            let met = efficiency >= least;
            (!met).then(|| format!("{} {efficiency:.3} < {least:.3}", one.cell.name))
        }));
        let of = efficient().count();
        let what = format!(
            "Brutal, wire efficiency of {of} cells; below their bars{}",
            below.1
        );
        judge(what, below.0 == 0, true);
    }
    let clean = lossy(false)
        .filter(|outcome| outcome.cell.loss == 0.0)
        .map(|outcome| outcome.efficiency(0))
        .fold(f64::INFINITY, f64::min);
    if clean.is_finite() {
        let what = format!("BBR on clean links, least efficiency {clean:.3} (bar 0.9)");
        judge(what, clean >= 0.9, true);
    }
    for brutal in [true, false] {
        for rtt in [100, 200] {
            let cells = outcomes.iter().filter(|one| {
                (one.cell.number, one.cell.brutal(), one.cell.rtt) == (12, brutal, rtt)
            });
            let rates: Vec<f64> = cells.map(|one| median(&one.rates(0))).collect();
            let [in_order, others @ ..] = rates.as_slice() else {
                continue;
            };
            if others.is_empty() {
                continue;
            }
            let how = if brutal { "Brutal" } else { "BBR" };
            let worst = others.iter().copied().fold(f64::INFINITY, f64::min) / in_order;
            let what = format!(
                "reordering, {how} at {rtt} ms, least goodput over that in order {worst:.3} (bar 0.95)"
            );
            judge(what, worst >= 0.95, true);
        }
    }
    for outcome in outcomes.iter().filter(|outcome| outcome.cell.guard) {
        let sent = 1.0 / outcome.efficiency(0);
        let what = format!(
            "claimed ten times the link, guard on, sent over received {sent:.2}, start included (bar 1.3)"
        );
        judge(what, sent <= 1.3, true);
    }
    verdicts
}

/// Counts names and lists them: ` none`, or ` 2: a, b`.
fn named(names: impl Iterator<Item = String>) -> (usize, String) {
    let names: Vec<String> = names.collect();
    match names.len() {
        0 => (0, " none".to_owned()),
        count => (count, format!(" {count}: {}", names.join(", "))),
    }
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
    let relay = side.relay.as_ref().context("no link")?;
    let before = relay.report().down;
    let dropped = machine::dropped();
    let watch = Watch::start();
    let drained = load::download_to_the_end(side.tcp, Duration::from_secs_f64(seconds))?;
    let others = watch.others();
    let report = relay.report();
    if !drained.whole {
        eprintln!("  {}: {whose:?}: not all has arrived", cell.name);
    }
    let dropped = machine::dropped().saturating_sub(dropped);
    let offered = report.down.offered_packets;
    let late = report.late_packets > offered / 100 || dropped > offered / 1000;
    if late {
        eprintln!(
            "  {}: the machine was too busy: {} datagrams left the emulator late, {dropped} never reached it",
            cell.name, report.late_packets
        );
    }
    let offered = (report.down.offered_bytes - before.offered_bytes).max(1) as f64;
    let carried = (report.down.delivered_bytes - before.delivered_bytes) as f64;
    Ok(Run {
        mbps: drained.in_time as f64 * 8.0 / drained.elapsed.as_secs_f64() / 1e6,
        efficiency: drained.total as f64 / offered,
        carried: carried / offered,
        late,
        others,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(cell: &Cell, ours: Run, reference: Run) -> Outcome {
        Outcome {
            cell: cell.clone(),
            figures: [vec![ours; 5], vec![reference; 5]],
        }
    }

    fn cell(name: &str) -> Cell {
        let all = cells(false);
        all.into_iter()
            .find(|cell| cell.name == name)
            .expect("a cell")
    }

    /// A run as good as it can be.
    fn good(cell: &Cell) -> Run {
        Run {
            mbps: 50.0,
            efficiency: 0.975 * (1.0 - cell.loss),
            carried: 1.0 - cell.loss,
            late: false,
            others: 0.0,
        }
    }

    fn missed(outcomes: &[Outcome]) -> Vec<String> {
        let verdicts = verdicts(outcomes, true).into_iter();
        let missed = verdicts.filter(|verdict| verdict.gates && !verdict.met);
        missed.map(|verdict| verdict.what).collect()
    }

    #[test]
    fn every_rate_path_and_loss_is_run_under_both() {
        let cells = cells(false);
        for how in ["Brutal", "BBR"] {
            let of = |number: &[u32]| {
                let cells = cells.iter().filter(|cell| number.contains(&cell.number));
                cells.filter(|cell| cell.name.starts_with(how)).count()
            };
            assert_eq!((of(&[10, 11]), of(&[12])), (36, 14), "{how}");
        }
        cell("BBR, 200 Mbit/s, 200 ms, 30 % lost");
        cell("BBR, 100 Mbit/s, 200 ms, 10 % late by 4 ms");
    }

    #[test]
    fn waste_on_a_wide_link_is_below_the_bar() {
        let cell = cell("Brutal, 100 Mbit/s, 20 ms, 5 % lost");
        let good = good(&cell);
        assert_eq!(missed(&[outcome(&cell, good, good)]), [""; 0]);
        // Also when the link dropped it: there was room for it.
        for carried in [0.95, 0.8] {
            let waste = Run {
                efficiency: 0.8,
                carried,
                ..good
            };
            let missed = missed(&[outcome(&cell, waste, good)]);
            assert_eq!(missed.len(), 1, "{missed:?}");
            assert!(
                missed[0].contains(&cell.name) && missed[0].contains("0.800 < 0.901"),
                "{missed:?}"
            );
        }
    }

    #[test]
    fn a_narrow_link_is_judged_by_what_it_carried() {
        let cell = cell("Brutal, 100 Mbit/s, 200 ms, 20 % lost");
        // 90 / 0.8 of 100 are offered, 4 of 5 of which survive: the virtual network's figures.
        let run = Run {
            efficiency: 0.693,
            carried: 0.710,
            ..good(&cell)
        };
        assert_eq!(missed(&[outcome(&cell, run, run)]), [""; 0]);
        let waste = Run {
            efficiency: 0.6,
            ..run
        };
        assert_eq!(missed(&[outcome(&cell, waste, run)]).len(), 1);
        // Where it carries more than it should, the bar is that of the loss.
        assert!((cell.least_efficiency(0.9) - 0.756).abs() < 1e-9);
    }

    #[test]
    fn the_goal_names_the_cells_below_and_gates_nothing() {
        let near = cell("Brutal, 100 Mbit/s, 200 ms, 20 % lost");
        let far = cell("Brutal, 200 Mbit/s, 200 ms, 20 % lost");
        let twice = |cell: &Cell| Run {
            mbps: 100.0,
            ..good(cell)
        };
        let outcomes = [
            outcome(&near, good(&near), good(&near)),
            outcome(&far, twice(&far), good(&far)),
        ];
        let verdicts = verdicts(&outcomes, true);
        let goal = verdicts
            .iter()
            .find(|verdict| !verdict.gates)
            .expect("the goal");
        assert!(
            goal.what.ends_with(&format!("below 1: {} 1.00", near.name)),
            "{}",
            goal.what
        );
        assert!(!goal.met);
        assert_eq!(missed(&outcomes), [""; 0]);
    }

    #[test]
    fn each_controller_is_compared_with_itself_in_order() {
        let of =
            |how: &str, rtt: u64, late: &str| cell(&format!("{how}, 100 Mbit/s, {rtt} ms, {late}"));
        let mut outcomes = Vec::new();
        for (how, rtt, slow) in [("Brutal", 100, 49.0), ("BBR", 200, 40.0)] {
            let in_order = of(how, rtt, "0 % late by 0 ms");
            let late = of(how, rtt, "30 % late by 10 ms");
            let run = Run {
                mbps: slow,
                ..good(&late)
            };
            outcomes.push(outcome(&in_order, good(&in_order), good(&in_order)));
            outcomes.push(outcome(&late, run, run));
        }
        let missed = missed(&outcomes);
        assert_eq!(missed.len(), 1, "{missed:?}");
        assert!(
            missed[0].contains("BBR at 200 ms") && missed[0].contains("0.800"),
            "{missed:?}"
        );
    }

    #[test]
    fn the_guard_is_judged_over_ten_seconds_or_more() {
        let cell = cell("200 Mbit/s claimed on a link of 20, 50 ms, guard on");
        let extent = Extent {
            runs: 5,
            seconds: 6.0,
            quick: false,
            lanes: 1,
        };
        assert!((cell.seconds(extent) - 10.0).abs() < f64::EPSILON);
        let quick = Extent {
            quick: true,
            seconds: 2.0,
            ..extent
        };
        assert!((cell.seconds(quick) - 2.0).abs() < f64::EPSILON);
    }
}
