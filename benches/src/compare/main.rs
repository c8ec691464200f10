//! Paired speed runs: hy2 and the reference implementation, as separate processes, in turn, in one
//! run on one machine. Ratios mean something; absolute figures depend on the machine.
#![allow(clippy::print_stdout, reason = "its output is the result")]

mod crowd;
mod group;
mod limit;
mod load;
mod machine;
mod matrix;
mod ours;
mod pair;
mod plot;
mod process;
mod progress;
mod reference;
mod report;
mod run;
mod scenario;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Compares hy2 with the reference implementation on this machine.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Counted runs of each side per scenario; one more of each comes first and is not counted
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Mebibytes per bulk run
    #[arg(long, default_value_t = 1024)]
    mebibytes: u64,
    /// Seconds per run of everything that is not bulk
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Idle connections to hold
    #[arg(long, default_value_t = 10_000)]
    idle: u64,
    /// Worker threads of our processes; with 1 each runs on one thread alone, with more on tokio's
    /// multi-threaded runtime, as the daemons do. The reference takes what it wants
    #[arg(long, default_value_t = 1)]
    threads: u64,
    /// Only scenarios whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// The reference peer (built by interop/build.sh); without it only our column is printed
    #[arg(long, default_value = "target/interop/peer")]
    peer: PathBuf,
    /// Where to write results.json, results.md and the plots
    #[arg(long)]
    out: Option<PathBuf>,
    /// Run although the machine is busy; the results say so
    #[arg(long)]
    force: bool,
    /// A tenth of everything, to see that the harness works; the results say so
    #[arg(long)]
    quick: bool,
    /// The matrix of lossy, long and reordering links in addition
    #[arg(long)]
    matrix: bool,
    /// Seconds per cell of the matrix
    #[arg(long, default_value_t = 10.0)]
    cell_seconds: f64,
    /// Only cells of the matrix whose name contains this
    #[arg(long, default_value = "")]
    cells: String,
    /// Cells of the matrix at once; their links are far slower than the machine
    #[arg(long, default_value_t = 1)]
    lanes: usize,
    /// Exit with an error unless every ratio meets its bar
    #[arg(long)]
    bars: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one of our processes; used by the comparison itself
    #[command(hide = true)]
    Ours(ours::Arguments),
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::Ours(ours)) => ours::run(ours),
        None => run::run(arguments),
    }
}
