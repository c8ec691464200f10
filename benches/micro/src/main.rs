//! Runs one case a number of times, for whoever counts from outside: `hy2-instructions` alone
//! lists the names, `hy2-instructions NAME COUNT` runs one. See `scripts/instructions.sh`.
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
const STACK: [&str; 4] = [
    "stack/download 1 MiB",
    "stack/upload 1 MiB",
    "stack/request",
    "stack/connect",
];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(name) = arguments.next() else {
        for case in cases() {
            println!("{}\t{}", case.name, case.items);
        }
        for name in STACK {
            println!("{name}\t1");
        }
        return ExitCode::SUCCESS;
    };
    let count = arguments.next().and_then(|count| count.parse().ok());
    let count: u64 = count.unwrap_or(1);
    if STACK.contains(&name.as_str()) {
        runtime().block_on(through_stack(&name, count));
        return ExitCode::SUCCESS;
    }
    let Some(case) = cases().into_iter().find(|case| case.name == name) else {
        eprintln!("error: no case is named '{name}'; without arguments all are listed");
        return ExitCode::FAILURE;
    };
    let mut run = (case.make)();
    for _ in 0..count {
        run();
    }
    ExitCode::SUCCESS
}

async fn through_stack(name: &str, count: u64) {
    let stack = Stack::start().await;
    let before = (allocations(), stack.packets());
    for _ in 0..count {
        match name {
            "stack/download 1 MiB" => stack.download(MEBIBYTE).await,
            "stack/upload 1 MiB" => stack.upload(MEBIBYTE).await,
            "stack/request" => stack.request().await,
            _ => stack.connect().await,
        }
    }
    println!(
        "allocations {} packets {}",
        allocations() - before.0,
        stack.packets() - before.1
    );
}
