//! What a steady fleet costs the master: the real `hy2-orchestrator` on SQLite with 100,000 users, each on
//! three of 1,000 connected nodes, that all send heartbeats, figures and traffic. Prints the
//! resident memory of its process once all nodes have what it wants them to have, and its
//! processor time.
//!
//! `cargo build --release -p hy2-orchestrator && cargo bench -p hy2-master-sdk --bench steady --
//! [seconds] [nodes] [users]`. `HY2_ORCHESTRATOR` names another build; `HY2_BARS=1`: an error above the
//! bar.

#![allow(clippy::print_stdout, reason = "figures for people")]

#[path = "../tests/fleet/agent.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod agent;

#[path = "../tests/support/bars.rs"]
mod bars;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hy2_master_sdk::Master;
use hy2_master_sdk::domain::{AssignmentSource, NodeId, Timestamp, UserId};
use hy2_master_sdk::secrets::UserSecrets;
use hy2_master_sdk::store::assignments::{self, NewAssignment};
use hy2_master_sdk::store::users::{self, NewUser};
use hy2_proto::control::rpc;
use hy2_proto::control::rpc::session_request::Event as Up;
use hy2_proto::control::rpc::session_response::Event as Down;
use prost::Message;
use tokio::sync::Semaphore;
use tokio_stream::wrappers::ReceiverStream;

use crate::agent::{Agent, TestMaster};
use crate::bars::Bars;

/// Resident memory of the master at most, in KiB.
const BAR_KIB: u64 = 150 << 10;

/// Rows that each node reports every ten seconds.
const ROWS: usize = 20;

#[tokio::main]
async fn main() {
    let mut bars = Bars::start();
    let numbers: Vec<usize> = std::env::args()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    let number = |at: usize, default| numbers.get(at).copied().unwrap_or(default);
    let (seconds, nodes, users) = (number(0, 60), number(1, 1_000), number(2, 100_000));
    let binary = binary();
    let dir = tempfile::tempdir().expect("a folder");
    let files = dir.path().to_owned();
    println!("making {users} users and {nodes} nodes ...");
    let (agents, port) = prepare(dir, &files, nodes, users).await;
    let orchestrator = Orchestrator::start(&binary, &files, port).await;
    println!("empty: {} MiB resident", orchestrator.resident() >> 10);

    let served = Arc::new(AtomicUsize::new(0));
    let gate = Arc::new(Semaphore::new(16));
    let mut running = tokio::task::JoinSet::new();
    let start = Instant::now();
    for (number, (agent, users)) in agents.into_iter().enumerate() {
        running.spawn(run(
            agent,
            number,
            users,
            Arc::clone(&gate),
            Arc::clone(&served),
        ));
    }
    while served.load(Ordering::SeqCst) < nodes {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(running.try_join_next().is_none(), "an agent has ended");
    }
    println!(
        "all nodes served after {:.1} s",
        start.elapsed().as_secs_f64()
    );
    let (mut resident, busy) = (Vec::new(), orchestrator.processor_ticks());
    for _ in 0..seconds {
        tokio::time::sleep(Duration::from_secs(1)).await;
        resident.push(orchestrator.resident());
        assert!(running.try_join_next().is_none(), "an agent has ended");
    }
    let ticks = orchestrator.processor_ticks() - busy;
    resident.sort_unstable();
    let most = resident.last().copied().unwrap_or_default();
    println!(
        "steady for {seconds} s: {} MiB resident in the middle, {} MiB at most; {} MiB at most since \
         the start; processor {}.{:02} s",
        resident[resident.len() / 2] >> 10,
        most >> 10,
        orchestrator.status("VmHWM") >> 10,
        ticks / 100,
        ticks % 100,
    );
    bars.judge(
        &format!("resident memory of a master on SQLite with {nodes} agents and {users} users"),
        &format!("{} MiB", most.div_ceil(1 << 10)),
        &format!("{} MiB", BAR_KIB >> 10),
        most <= BAR_KIB,
    );
    // `end` may end the process: the master goes first, and before it those that would miss it.
    running.shutdown().await;
    drop(orchestrator);
    bars.end();
}

/// Fills a database with a master in this process; returns the nodes' agents, each with its users.
async fn prepare(
    dir: tempfile::TempDir,
    files: &Path,
    nodes: usize,
    users: usize,
) -> (Vec<(Agent, Vec<UserId>)>, u16) {
    let builder = Master::sqlite(files.join("fleet.db")).key_file(files.join("master.key"));
    let master = TestMaster::built(builder, dir, |_| {}).await;
    let port = master.address.port();
    let mut made = Vec::new();
    for batch in 0..users.div_ceil(1_000) {
        let mut tx = master.master.store().begin().await.expect("a transaction");
        for number in batch * 1_000..((batch + 1) * 1_000).min(users) {
            made.push(user(&master, &mut tx, number).await);
        }
        tx.commit().await.expect("a commit");
    }
    let mut agents = Vec::new();
    let mut by_node: HashMap<usize, Vec<UserId>> = HashMap::new();
    for (number, user) in made.iter().enumerate() {
        for copy in 0..3.min(nodes) {
            let node = (number * 3 + copy * 331) % nodes;
            by_node.entry(node).or_default().push(*user);
        }
    }
    for number in 0..nodes {
        let agent = master.agent(&format!("node-{number:04}")).await;
        let users = by_node.remove(&number).unwrap_or_default();
        assign(&master, agent.node().await, &users).await;
        agents.push((agent, users));
    }
    master.master.shutdown().await;
    // The folder stays until the process ends.
    std::mem::forget(master);
    (agents, port)
}

async fn user(master: &TestMaster, tx: &mut hy2_master_sdk::store::Tx, number: usize) -> UserId {
    let uid = uuid::Uuid::new_v4();
    let secrets = UserSecrets::generate(master.master.vault(), uid).expect("secrets");
    let new = NewUser {
        uid,
        username: format!("user-{number:06}"),
        admin_id: None,
        plan_id: None,
        status: hy2_master_sdk::domain::UserStatus::Active,
        seed_enc: secrets.seed_enc,
        credential_enc: None,
        auth_hash: None,
        subscription_hash: secrets.subscription_hash,
        subscription_enc: secrets.subscription_enc,
        expires_at: Some(Timestamp(i64::MAX / 2)),
        hold_duration_ms: None,
        hold_deadline: None,
        quota_bytes: None,
        max_devices: Some(3),
        max_connections: None,
        up_bytes_per_s: None,
        down_bytes_per_s: None,
        home_region_id: None,
        email: None,
        telegram_id: None,
        note: String::new(),
        tags: Vec::new(),
    };
    users::create(tx, &new, Timestamp(1))
        .await
        .expect("a user")
        .id
}

async fn assign(master: &TestMaster, node: NodeId, users: &[UserId]) {
    let new: Vec<NewAssignment> = users
        .iter()
        .map(|user| NewAssignment {
            user_id: *user,
            node_id: node,
            rank: 0,
            source: AssignmentSource::Pinned,
            score: None,
        })
        .collect();
    let mut tx = master.master.store().begin().await.expect("a transaction");
    assignments::assign_many(&mut tx, &new, Timestamp(1))
        .await
        .expect("assignments");
    tx.commit().await.expect("a commit");
}

/// One node: takes what the master wants, then reports for ever.
async fn run(
    agent: Agent,
    number: usize,
    users: Vec<UserId>,
    gate: Arc<Semaphore>,
    served: Arc<AtomicUsize>,
) {
    let turn = gate.acquire().await.expect("open");
    // One connection, as an agent has.
    let mut client = agent.client().await;
    let mut session = agent.session_on(client.clone()).await;
    let update = session.update().await;
    assert_eq!(session.users.len(), users.len(), "node {number}");
    session.ack(&update).await;
    // A real node keeps its table; here it is in the way.
    session.users = Vec::new();
    let (send, outbound) = tokio::sync::mpsc::channel(1);
    let mut metrics = client.clone();
    send.send(batch(number, 1, &users)).await.expect("open");
    let mut answers = client
        .report_traffic(ReceiverStream::new(outbound))
        .await
        .expect("an answer")
        .into_inner();
    answers.message().await.expect("an answer").expect("open");
    drop(turn);
    served.fetch_add(1, Ordering::SeqCst);
    // Not all at once.
    let offset = Duration::from_millis(number as u64 * 10);
    let start = tokio::time::Instant::now() + offset;
    let mut beat = tokio::time::interval_at(start, Duration::from_secs(10));
    let mut figures = tokio::time::interval_at(start, Duration::from_secs(15));
    let mut seq = 1;
    loop {
        tokio::select! {
            event = session.down.message() => match event.expect("the session lives").and_then(|m| m.event) {
                Some(Down::Update(part)) => {
                    if let Some(signed) = part.manifest {
                        let manifest = rpc::Manifest::decode(signed.manifest).expect("a manifest");
                        session.send(Up::Ack(rpc::ResourceAck {
                            manifest_rev: manifest.rev,
                            cluster_epoch: manifest.cluster_epoch,
                        })).await;
                    }
                }
                Some(_) => {}
                None => panic!("the session has ended"),
            },
            _ = beat.tick() => {
                let heartbeat = rpc::Heartbeat { connections: 7, users_online: 7, ..Default::default() };
                session.send(Up::Heartbeat(heartbeat)).await;
                seq += 1;
                send.send(batch(number, seq, &users)).await.expect("open");
                answers.message().await.expect("an answer").expect("open");
            }
            _ = figures.tick() => {
                let sample = rpc::NodeMetrics {
                    at: Some(std::time::SystemTime::now().into()),
                    cpu_permille: 7,
                    ..Default::default()
                };
                let request = rpc::ReportMetricsRequest { samples: vec![sample] };
                metrics.report_metrics(request).await.expect("taken");
            }
        }
    }
}

fn batch(number: usize, seq: u64, users: &[UserId]) -> rpc::ReportTrafficRequest {
    let first = usize::try_from(seq).expect("few") * ROWS;
    let rows = (first..first + ROWS.min(users.len()))
        .map(|at| rpc::UserTraffic {
            user_id: users[at % users.len()].to_wire(),
            tx: 1_000,
            rx: 100_000,
            ..Default::default()
        })
        .collect();
    let batch = rpc::TrafficBatch {
        spool_id: (number as u128).to_be_bytes().to_vec().into(),
        first_seq: seq,
        last_seq: seq,
        users: rows,
        ..Default::default()
    };
    let batch = bytes::Bytes::from(batch.encode_to_vec());
    rpc::ReportTrafficRequest {
        crc32c: crc32c::crc32c(&batch),
        batch,
    }
}

fn binary() -> PathBuf {
    let binary = std::env::var_os("HY2_ORCHESTRATOR").map_or_else(
        || {
            let mut path = std::env::current_exe().expect("a path");
            path.pop();
            path.pop();
            path.join("hy2-orchestrator")
        },
        PathBuf::from,
    );
    assert!(
        binary.exists(),
        "{} is missing: cargo build --release -p hy2-orchestrator",
        binary.display()
    );
    binary
}

/// The process that is measured; ends with this one.
struct Orchestrator(Child);

impl Orchestrator {
    async fn start(binary: &Path, files: &Path, port: u16) -> Self {
        let at = files.display();
        let config = format!(
            "database: sqlite:{at}/fleet.db\nkeyFile: {at}/master.key\n\
             agents: {{listen: '127.0.0.1:{port}'}}\napi: {{listen: '127.0.0.1:0'}}\n\
             public: {{listen: '127.0.0.1:0', url: 'http://127.0.0.1/'}}\n"
        );
        let file = files.join("orchestrator.yaml");
        std::fs::write(&file, config).expect("written");
        let log = std::fs::File::create(files.join("log")).expect("a log");
        let child = Command::new(binary)
            .arg("run")
            .arg("-c")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("it starts");
        let mut this = Self(child);
        while tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .is_err()
        {
            let ended = this.0.try_wait().expect("a state");
            let log = || std::fs::read_to_string(files.join("log"));
            assert!(ended.is_none(), "it has ended: {:?}", log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        this
    }

    /// A line of `/proc/PID/status`, in KiB.
    fn status(&self, name: &str) -> u64 {
        let path = format!("/proc/{}/status", self.0.id());
        let text = std::fs::read_to_string(path).expect("it runs");
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .expect("a figure")
    }

    fn resident(&self) -> u64 {
        self.status("VmRSS")
    }

    /// Processor time in hundredths of a second.
    fn processor_ticks(&self) -> u64 {
        let path = format!("/proc/{}/stat", self.0.id());
        let text = std::fs::read_to_string(path).expect("it runs");
        let rest = text.rsplit(") ").next().expect("a state");
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |at: usize| fields[at].parse::<u64>().expect("a figure");
        ticks(11) + ticks(12)
    }
}

impl Drop for Orchestrator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
