//! Paired speed runs: hy2 and the reference implementation, as separate processes, in turn, in one
//! run on one machine. Ratios mean something; absolute figures depend on the machine.
#![allow(clippy::print_stdout, reason = "its output is the result")]

mod load;
mod ours;
mod process;
mod reference;
mod report;
mod scenario;

use clap::{Parser, Subcommand};

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(about = "Compares hy2 with the reference implementation on this machine")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Runs of each side per scenario.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Mebibytes per bulk run.
    #[arg(long, default_value_t = 1024)]
    mebibytes: u64,
    /// Only scenarios whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// The reference peer (built by interop/build.sh); without it only our column is printed.
    #[arg(long, default_value = "target/interop/peer")]
    peer: std::path::PathBuf,
    /// Exit with an error unless every ratio meets its bar.
    #[arg(long)]
    bars: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one of our processes; used by the comparison itself.
    #[command(hide = true)]
    Ours(ours::Arguments),
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::Ours(ours)) => ours::run(ours),
        None => scenario::run(&arguments),
    }
}
