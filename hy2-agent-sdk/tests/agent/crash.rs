//! The agent is killed in the middle of traffic. It runs in a process of its own: this test binary
//! again, told by an environment variable to be the agent; it prints its port and ends with its
//! standard input.

use std::{
    env,
    io::{BufRead, Write},
    path::Path,
    process::Stdio,
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use hy2_agent_sdk::{
    Agent, AgentConfig,
    config::Enrolment,
    hy2_core::{Client, ClientConfig},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{
    fleet::{World, client_config},
    master::TOKEN,
    origin::{Echo, Traffic},
    soon,
};

const VARIABLE: &str = "HY2_AGENT_PROCESS";
const MARK: &str = "hy2-agent";
const ALICE: &str = "alice's credential";

struct AgentProcess {
    child: Child,
    port: u16,
}

impl AgentProcess {
    async fn start(world: &World) -> Self {
        let options = format!(
            "{} {} {}",
            world.folder.path().display(),
            world.master.address,
            world.master.shared.pki.pin()
        );
        let mut child = Command::new(env::current_exe().expect("this test"))
            .args([
                "--exact",
                "crash::the_agent_process_serves_until_it_ends",
                "--nocapture",
            ])
            .env(VARIABLE, options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a child");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let port = soon("the agent's port", async {
            loop {
                let line = lines
                    .next_line()
                    .await
                    .expect("readable")
                    .expect("it lives");
                if let Some(port) = line.strip_prefix(MARK) {
                    return port.trim().parse().expect("a port");
                }
            }
        })
        .await;
        Self { child, port }
    }

    /// SIGKILL.
    async fn kill(mut self) {
        self.child.kill().await.expect("killed");
    }
}

#[test]
fn the_agent_process_serves_until_it_ends() {
    let Ok(options) = env::var(VARIABLE) else {
        // Not told to be the agent: whoever starts it is tested elsewhere.
        assert!(env::current_exe().expect("this test").exists());
        return;
    };
    serve(&options);
}

#[expect(clippy::print_stdout, reason = "how the parent is told")]
fn serve(options: &str) {
    let mut words = options.split(' ');
    let mut word = || words.next().expect("an option").to_owned();
    let mut config = AgentConfig::new(word(), vec![word()]);
    config.enrolment = Some(Enrolment::new(TOKEN, word().parse().expect("a pin")));
    config.reconnect = (Duration::from_millis(20), Duration::from_millis(200));
    config.traffic_interval = Duration::from_millis(50);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let agent = runtime.block_on(async {
        let agent = Agent::spawn(config).await.expect("starts");
        let mut status = agent.handle().status();
        let serves = |status: &hy2_agent_sdk::reconcile::Status| !status.listening.is_empty();
        status.wait_for(serves).await.expect("alive");
        agent
    });
    println!("\n{MARK} {}", agent.handle().listening()[0].port());
    let _ = std::io::stdout().flush();
    for line in std::io::stdin().lock().lines() {
        if line.is_err() {
            break;
        }
    }
}

fn config(world: &World, port: u16) -> ClientConfig {
    client_config(&world.site, port, ALICE)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_agent_loses_and_doubles_no_byte_that_it_counted() {
    const KILLS: u64 = 8;
    const STREAMS: u64 = 4;
    const CHUNK: u64 = 4000;
    let mut world = World::with_users(&[(1, ALICE)]).await;
    let echo = Echo::start().await;
    for round in 0..KILLS {
        let agent = AgentProcess::start(&world).await;
        let client = soon("connect", Client::connect(config(&world, agent.port)))
            .await
            .expect("let in");
        let traffic =
            Traffic::start(&client, &echo.target(), STREAMS as usize, CHUNK as usize).await;
        // Killed at another place of its work each time: between cuts, in cuts, in deliveries.
        let rounds = 20 + round * 7;
        soon("traffic", async {
            while traffic.rounds.load(Relaxed) < rounds {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        if round % 3 == 2 {
            // Cut without a master, so that batches pile up.
            world.master.stop().await;
        }
        agent.kill().await;
        client.close().await;
        soon("the streams' end", traffic.until_cut()).await;
        if round % 3 == 2 {
            world.master.resume().await;
        }
    }
    let agent = world.start_with(|builder| builder).await;
    let counted = agent.totals();
    world
        .master
        .until_stored("all that was counted", |store| store.total() == counted)
        .await;
    world.shutdown().await;
    // The cells and the store agree to the byte, and both with the origin but for what was on its
    // way when the process died: one chunk per stream.
    assert_eq!(world.master.shared.store.lock().total(), counted);
    let (taken, given) = (echo.taken.load(Relaxed), echo.given.load(Relaxed));
    let bound = KILLS * STREAMS * CHUNK;
    assert!(
        taken.abs_diff(counted.0) <= bound,
        "{taken} and {}",
        counted.0
    );
    assert!(
        given.abs_diff(counted.1) <= bound,
        "{given} and {}",
        counted.1
    );
    assert!(counted.0 > bound, "enough was moved to tell: {}", counted.0);
    assert!(spool_is_small(world.folder.path()));
}

/// What is acknowledged does not stay, but for the newest batch.
fn spool_is_small(folder: &Path) -> bool {
    let spool = folder.join("traffic/spool");
    let mut batches = 0;
    for entry in std::fs::read_dir(spool).expect("a spool").flatten() {
        if entry.path().is_dir() {
            batches += std::fs::read_dir(entry.path()).expect("readable").count();
        }
    }
    batches == 1
}
