//! What was timed as the table of docs/benchmarks.md, with the goals beside it: a look, no gate, because
//! nanoseconds are the machine's as much as ours.
#![allow(clippy::print_stdout, reason = "the table")]

use std::{collections::BTreeMap, time::Duration};

use hy2_microbenches::Case;
use parking_lot::Mutex;

/// A row: one case, or several that make one figure together.
struct Row {
    what: &'static str,
    /// Nanoseconds per item at most.
    goal: Option<f64>,
    cases: &'static [&'static str],
    /// What the bench does and the program does not.
    without: Option<&'static str>,
}

const fn row(what: &'static str, goal: Option<f64>, cases: &'static [&'static str]) -> Row {
    Row {
        what,
        goal,
        cases,
        without: None,
    }
}

const ROWS: [Row; 18] = [
    row(
        "UDP message of 1,200 B, decoded",
        Some(25.0),
        &["udp/message decode 1200"],
    ),
    row(
        "the same encoded, with its copy",
        Some(25.0),
        &["udp/message encode 1200"],
    ),
    row(
        "4,000 B into 4 fragments, per fragment",
        Some(150.0),
        &["fragments/split 4000 into 4"],
    ),
    row(
        "4 fragments joined, per fragment",
        Some(150.0),
        &["fragments/join in order"],
    ),
    row("Salamander key alone", None, &["salamander/key"]),
    row(
        "Salamander XOR, 1,452 B",
        Some(20.0),
        &["salamander/xor 1452"],
    ),
    row(
        "Salamander packet out, 1,452 B",
        Some(130.0),
        &["salamander/packet out 1452"],
    ),
    row(
        "Salamander packet in, 1,452 B",
        Some(130.0),
        &["salamander/packet in 1452"],
    ),
    row(
        "packet of a batch of 44, Salamander out",
        Some(90.0),
        &["batch/salamander out"],
    ),
    Row {
        without: Some("batch/copy"),
        ..row(
            "packet of a batch of 44, Salamander in",
            Some(90.0),
            &["batch/salamander in, compacted"],
        )
    },
    row(
        "Brutal: acknowledged packet, and whether the next may be sent (with the bench's clock)",
        Some(20.0),
        &["brutal/acknowledged packet", "brutal/may send, and sent"],
    ),
    row(
        "Brutal: acknowledged packet alone",
        Some(20.0),
        &["brutal/acknowledged packet"],
    ),
    row(
        "BBR: acknowledged packet",
        None,
        &["bbr/acknowledged packet"],
    ),
    row(
        "datagram to a UDP session, 1 of 1,024",
        None,
        &["sessions/out, 1,024 sessions"],
    ),
    row(
        "datagram from a target to the client",
        None,
        &["sessions/back"],
    ),
    row("stream chunk in order", None, &["reassembler/in order"]),
    row("stream chunk, 1 % lost", None, &["reassembler/1 % lost"]),
    row(
        "authentication request, once per connection",
        None,
        &["auth/section to request"],
    ),
];

static SAMPLES: Mutex<BTreeMap<&str, Vec<f64>>> = Mutex::new(BTreeMap::new());

/// Takes a sample of a case.
pub(crate) fn note(case: &'static str, took: Duration, rounds: u64) {
    let nanos = took.as_secs_f64() * 1e9 / rounds as f64;
    SAMPLES.lock().entry(case).or_default().push(nanos);
}

/// Prints the rows of which all was timed, from the last `measured` samples of each case: those before
/// are of the warm-up.
pub(crate) fn print(cases: &[Case], measured: usize) {
    let mut lines = Vec::new();
    for row in &ROWS {
        let sum = row.cases.iter().try_fold((0.0, 0.0), |sum, name| {
            let (nanos, allocations) = each(cases, name, measured)?;
            Some((sum.0 + nanos, sum.1 + allocations))
        });
        let without = row
            .without
            .map_or(Some((0.0, 0.0)), |name| each(cases, name, measured));
        if let (Some((nanos, allocations)), Some((less, _))) = (sum, without) {
            lines.push(line(row, nanos - less, allocations));
        }
    }
    if lines.is_empty() {
        return;
    }
    println!("CPU time in nanoseconds, median; allocations at most, as a test checks\n");
    println!("| part | goal | measured | | allocations |\n|---|---|---|---|---|");
    for line in lines {
        println!("{line}");
    }
}

fn line(row: &Row, nanos: f64, allocations: f64) -> String {
    let (goal, verdict) = match row.goal {
        Some(goal) if nanos <= goal => (goal.to_string(), "met"),
        Some(goal) => (goal.to_string(), "not met"),
        None => (String::new(), ""),
    };
    let what = row.what;
    let allocations = (allocations * 100.0).round() / 100.0;
    format!("| {what} | {goal} | {nanos:.1} | {verdict} | {allocations} |")
}

/// Nanoseconds and allocations of one item of a case; `None` where it was not timed, or only tried.
fn each(cases: &[Case], name: &str, measured: usize) -> Option<(f64, f64)> {
    let case = cases.iter().find(|case| case.name == name);
    let case = case.unwrap_or_else(|| panic!("no case is named '{name}'"));
    let samples = SAMPLES.lock();
    let samples = samples.get(name)?;
    let mut last = samples[samples.len().checked_sub(measured)?..].to_vec();
    last.sort_by(f64::total_cmp);
    let items = case.items as f64;
    Some((last[measured / 2] / items, case.allocations / items))
}
