//! Churn for a long time: connections, streams, UDP sessions, hops, kicks, resets, killed clients,
//! restarted servers. In the pauses everything must be gone, and memory must not grow.
#![allow(clippy::print_stdout, reason = "its output is the result")]

mod actors;
mod fan;
mod origin;
mod verdict;
mod watch;
mod world;

use std::{
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use tokio::{task::JoinSet, time::sleep};

use actors::{Actors, Tally};
use verdict::Verdict;
use watch::Reading;
use world::World;

/// Churns a server and many clients and watches memory, tasks and descriptors.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// How long
    #[arg(long, default_value_t = 60.0)]
    minutes: f64,
    /// Seconds of churn between two pauses
    #[arg(long, default_value_t = 12.0)]
    churn: f64,
    /// Actors at once
    #[arg(long, default_value_t = 24)]
    actors: usize,
    /// Leaks something on purpose in every pause, to see that it is found
    #[arg(long, hide = true)]
    plant: Option<Plant>,
}

#[derive(Subcommand)]
enum Command {
    /// A client that is going to be killed; used by the soak itself
    #[command(hide = true)]
    Victim(actors::VictimArguments),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Plant {
    Memory,
    Task,
    File,
}

/// The server is replaced by another on the same port every so many pauses.
const RESTART_EVERY: u64 = 5;

/// How long everything may take to go away: a killed client is missed after its idle timeout.
const SETTLE: Duration = Duration::from_secs(40);

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    match arguments.command {
        Some(Command::Victim(victim)) => {
            runtime.block_on(actors::victim(victim));
            Ok(())
        }
        None => runtime.block_on(soak(arguments)),
    }
}

async fn soak(arguments: Arguments) -> Result<()> {
    // Logs go to a disk that is always full.
    let full = File::options().write(true).open("/dev/full")?;
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .log_internal_errors(false)
        .with_writer(std::sync::Mutex::new(full))
        .init();
    let mut world = World::start().await?;
    let tally = Arc::new(Tally::default());
    let end = Instant::now() + Duration::from_secs_f64(arguments.minutes * 60.0);
    let mut verdict = Verdict::default();
    let mut planted = Planted::default();
    let mut round = 0_u64;
    // Twice at least: the first pause is what the others are compared with.
    while round < 3 || Instant::now() < end {
        round += 1;
        let stop = Arc::new(AtomicBool::new(false));
        let mut actors = JoinSet::new();
        for number in 0..arguments.actors as u64 {
            let actors_of = Actors::new(&world, Arc::clone(&tally), Arc::clone(&stop));
            actors.spawn(actors_of.run(round << 16 | number));
        }
        sleep(Duration::from_secs_f64(arguments.churn)).await;
        stop.store(true, Relaxed);
        while let Some(ended) = actors.join_next().await {
            ended?;
        }
        if round.is_multiple_of(RESTART_EVERY) {
            world.restart().await?;
            tally.restarts.fetch_add(1, Relaxed);
        }
        if let Some(plant) = arguments.plant {
            planted.plant(plant)?;
        }
        let mut reading = settled(&world, verdict.baseline()).await?;
        watch::give_back();
        reading.resident_kib = watch::resident_kib()?;
        println!("{:>5}: {reading}; {tally}", round);
        verdict.add(reading);
    }
    world.end().await;
    let (text, passed) = verdict.judge();
    println!("{text}");
    if tally.nothing_happened() {
        bail!("FAILED: some action never succeeded: {tally}");
    }
    if !passed {
        bail!("FAILED");
    }
    println!("PASSED after {round} rounds: {tally}");
    Ok(())
}

/// Waits until tasks and descriptors are back at what they were, or time is up.
async fn settled(world: &World, baseline: Option<&Reading>) -> Result<Reading> {
    let deadline = Instant::now() + SETTLE;
    let mut before = Reading::take(world)?;
    let mut same = 0;
    loop {
        sleep(Duration::from_millis(500)).await;
        let now = Reading::take(world)?;
        let quiet = match baseline {
            Some(baseline) => now.no_more_than(baseline),
            // The first time there is nothing to compare with: until nothing changes for a while
            // that is longer than every timeout here.
            None => {
                same = if now.counts() == before.counts() {
                    same + 1
                } else {
                    0
                };
                same >= 24 && now.connections == 0
            }
        };
        if quiet || Instant::now() > deadline {
            return Ok(now);
        }
        before = now;
    }
}

/// What was leaked on purpose.
#[derive(Default)]
struct Planted {
    memory: Vec<Vec<u8>>,
    files: Vec<File>,
}

impl Planted {
    fn plant(&mut self, what: Plant) -> Result<()> {
        match what {
            Plant::Memory => self.memory.push(vec![1; 2 << 20]),
            Plant::File => self.files.push(File::open("/dev/null")?),
            // Detached on purpose: it is the leak.
            Plant::Task => drop(tokio::spawn(std::future::pending::<()>())),
        }
        Ok(())
    }
}
