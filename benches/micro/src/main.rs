//! Runs one case a number of times, for whoever counts from outside: `hy2-instructions` alone
//! lists the names, each with how many calls are worth counting, `hy2-instructions NAME COUNT` runs
//! one. Only what is below `counted` counts, which leaves the preparation out: see
//! `scripts/instructions.sh`.
#![allow(clippy::print_stdout, reason = "its output is the result")]

use std::process::ExitCode;

use hy2_microbenches::{
    cases,
    counting::{Counting, allocations},
    stack::{Stack, runtime},
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Moved at a time through the whole stack.
const MEBIBYTE: u64 = 1 << 20;

/// Cases that need a runtime.
const STACK: [&str; 5] = [
    "stack/download 1 MiB",
    "stack/upload 1 MiB",
    "stack/request",
    "stack/datagram",
    "stack/connect",
];

/// One call in so many more is made first and not counted: buffers have grown and what is remembered of the
/// preparation is gone.
const WARM_UP: u64 = 4;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(name) = arguments.next() else {
        let names = cases().into_iter().map(|case| case.name);
        for name in names.chain(STACK) {
            println!("{name}\t{}", worth_counting(name));
        }
        return ExitCode::SUCCESS;
    };
    let Some(count) = arguments.next().and_then(|count| count.parse().ok()) else {
        eprintln!("error: how many calls of '{name}'?");
        return ExitCode::FAILURE;
    };
    if STACK.contains(&name.as_str()) {
        through_stack(&name, count);
        return ExitCode::SUCCESS;
    }
    let Some(case) = cases().into_iter().find(|case| case.name == name) else {
        eprintln!("error: no case is named '{name}'; without arguments all are listed");
        return ExitCode::FAILURE;
    };
    let mut run = (case.make)();
    for _ in 0..count.div_ceil(WARM_UP) {
        run();
    }
    counted(&mut run, count);
    ExitCode::SUCCESS
}

/// Few calls of what takes long; many of what does not cost the same each time.
fn worth_counting(name: &str) -> u64 {
    let (group, what) = name.split_once('/').unwrap_or_default();
    match group {
        "stack" if what == "datagram" => 500,
        "stack" if what == "request" => 40,
        "stack" => 10,
        "reassembler" | "batch" => 100,
        "gecko" if what.ends_with("bulk") => 100,
        "control" if what.starts_with("traffic batch") => 20,
        // Phases of probing, seconds of statistics.
        "brutal" | "bbr" => 20_000,
        _ => 2_000,
    }
}

/// callgrind counts from its start to its end, by its name.
#[inline(never)]
fn counted(run: &mut dyn FnMut(), count: u64) {
    for _ in 0..count {
        run();
    }
}

fn through_stack(name: &str, count: u64) {
    let runtime = runtime();
    let stack = runtime.block_on(Stack::start());
    let mut once = || {
        runtime.block_on(async {
            match name {
                "stack/download 1 MiB" => stack.download(MEBIBYTE).await,
                "stack/upload 1 MiB" => stack.upload(MEBIBYTE).await,
                "stack/request" => stack.request().await,
                "stack/datagram" => stack.datagrams(1).await,
                _ => stack.connect().await,
            }
        });
    };
    for _ in 0..count.div_ceil(WARM_UP) {
        once();
    }
    let before = (allocations(), stack.packets());
    counted(&mut once, count);
    println!(
        "allocations {} packets {}",
        allocations() - before.0,
        stack.packets() - before.1
    );
}
