//! Churn for a long time: connections, streams, UDP sessions, hops, kicks, resets, killed clients and
//! servers, restarts, sockets and names that fail, logs on a full disk. In the pauses everything must
//! be gone, and memory must not grow.
#![allow(clippy::print_stdout, reason = "its output is the result")]

mod actors;
mod fan;
mod origin;
mod sockets;
mod trend;
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
    /// Rounds at least, however long they take; below six there is not much to say about memory
    #[arg(long, default_value_t = 6)]
    rounds: u64,
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
    /// A server that is going to be killed
    #[command(hide = true)]
    Server { password: String },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Plant {
    Memory,
    /// Memory that the server keeps, and that goes with it.
    Server,
    Task,
    File,
}

/// One actor of so many uses the server that is replaced, in every pause, by another on the same port. The others' lasts:
/// what a server keeps for good shows only while it lives.
const REPLACED_HAS: usize = 4;

/// In this many rounds once, for a moment, there are no descriptors to be had.
const STARVE_EVERY: u64 = 3;

const STARVED: Duration = Duration::from_millis(300);

/// How long everything may take to go away on a machine that has other things to do: a killed client
/// is missed after its idle timeout.
const SETTLE: Duration = Duration::from_secs(60);

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
        Some(Command::Server { password }) => runtime.block_on(async {
            let world = World::start(&password).await?;
            println!("{}", world.address);
            std::future::pending().await
        }),
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
    let mut worlds = [
        World::start(world::PASSWORD).await?,
        World::start(world::PASSWORD).await?,
    ];
    let tally = Arc::new(Tally::default());
    let end = Instant::now() + Duration::from_secs_f64(arguments.minutes * 60.0);
    let mut verdict = Verdict::default();
    let mut planted = Planted::default();
    let mut round = 0_u64;
    while round < arguments.rounds || Instant::now() < end {
        round += 1;
        let stop = Arc::new(AtomicBool::new(false));
        let mut actors = JoinSet::new();
        for number in 0..arguments.actors {
            let world = &worlds[usize::from((number + 1).is_multiple_of(REPLACED_HAS))];
            let actors_of = Actors::new(world, Arc::clone(&tally), Arc::clone(&stop));
            actors.spawn(actors_of.run(round, number));
        }
        let churn = Duration::from_secs_f64(arguments.churn);
        sleep(churn / 2).await;
        if round.is_multiple_of(STARVE_EVERY) {
            sockets::starve(STARVED).await?;
            tally.starved.fetch_add(1, Relaxed);
        }
        sleep(churn / 2).await;
        stop.store(true, Relaxed);
        while let Some(ended) = actors.join_next().await {
            ended?;
        }
        let [lasting, replaced] = &mut worlds;
        replaced.restart().await?;
        tally.restarts.fetch_add(1, Relaxed);
        if let Some(plant) = arguments.plant {
            planted.plant(plant, lasting)?;
        }
        let Some(baseline) = verdict.baseline() else {
            verdict.add(read(&worlds, at_rest(&worlds).await?)?);
            report(round, &verdict, &tally);
            continue;
        };
        // What was planted does not go away by waiting.
        let mut most = baseline.counts();
        let since = (round - 1) as usize;
        match arguments.plant {
            Some(Plant::Task) => most[0] += since,
            Some(Plant::File) => most[1] += since,
            Some(Plant::Memory | Plant::Server) | None => {}
        }
        let reading = settled(&worlds, most).await?;
        verdict.add(read(&worlds, reading)?);
        report(round, &verdict, &tally);
    }
    for world in &mut worlds {
        world.end().await;
    }
    let judgement = verdict.judge();
    for line in &judgement.lines {
        println!("{line}");
    }
    let mut wrong = judgement.leaks;
    for broken in tally.broken_promises() {
        wrong.push(format!("broken promise: {broken}"));
    }
    for name in tally.missing() {
        wrong.push(format!("there were no \"{name}\" at all"));
    }
    if wrong.is_empty() {
        println!("PASSED after {round} rounds: {tally}");
        return Ok(());
    }
    bail!("FAILED: {}", wrong.join("; "));
}

/// Adds what memory there is once it was given back.
fn read(worlds: &[World; 2], counted: Reading) -> Result<Reading> {
    watch::give_back();
    let memory = Reading::take(worlds)?;
    Ok(Reading {
        heap_kib: memory.heap_kib,
        resident_kib: memory.resident_kib,
        ..counted
    })
}

fn report(round: u64, verdict: &Verdict, tally: &Tally) {
    if let Some(reading) = verdict.last() {
        println!("{round:>5}: {reading}; {tally}");
    }
}

/// Waits until nothing has changed for longer than every timeout here.
async fn at_rest(worlds: &[World; 2]) -> Result<Reading> {
    let deadline = Instant::now() + 2 * SETTLE;
    let mut before = Reading::take(worlds)?;
    let mut same = 0;
    while same < 24 || before.connections != 0 {
        if Instant::now() > deadline {
            bail!("FAILED: never came to rest: {before}");
        }
        sleep(Duration::from_millis(500)).await;
        let now = Reading::take(worlds)?;
        same = if now.counts() == before.counts() {
            same + 1
        } else {
            0
        };
        before = now;
    }
    Ok(before)
}

/// Waits until there is no more of anything than `most`, or time is up.
async fn settled(worlds: &[World; 2], most: [usize; 6]) -> Result<Reading> {
    let deadline = Instant::now() + SETTLE;
    loop {
        let now = Reading::take(worlds)?;
        if now.no_more_than(most) || Instant::now() > deadline {
            return Ok(now);
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// What was leaked on purpose.
#[derive(Default)]
struct Planted {
    memory: Vec<Vec<u8>>,
    files: Vec<File>,
}

impl Planted {
    fn plant(&mut self, what: Plant, server: &World) -> Result<()> {
        match what {
            Plant::Memory => self.memory.push(vec![1; 2 << 20]),
            Plant::Server => server.leak(vec![1; 2 << 20]),
            Plant::File => self.files.push(File::open("/dev/null")?),
            // Detached on purpose: it is the leak.
            Plant::Task => drop(tokio::spawn(std::future::pending::<()>())),
        }
        Ok(())
    }
}
