//! Rows of traffic per second, through TLS and gRPC into counters, hourly and daily rows, each batch
//! committed with full durability before it is acknowledged.
//!
//! `cargo bench -p hy2-master-sdk --bench ingest -- [sqlite|postgres] [seconds]`. PostgreSQL is
//! `HY2_TEST_POSTGRES`, or a server that `scripts/test-postgres.sh` starts with fsync on. `HY2_BARS=1`: an
//! error below a bar.

#![allow(
    clippy::cast_precision_loss,
    clippy::print_stdout,
    reason = "figures for people"
)]

#[path = "../tests/fleet/agent.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod agent;

#[path = "../tests/support/bars.rs"]
mod bars;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hy2_master_sdk::domain::{AssignmentSource, NodeId, SystemClock, UserId};
use hy2_master_sdk::store::Store;
use hy2_master_sdk::store::assignments::{self, NewAssignment};
use hy2_proto::control::rpc;
use prost::Message;

use crate::agent::{Agent, TestMaster};
use crate::bars::Bars;

const NODES: usize = 8;
const USERS: usize = 10_000;
const ROWS: usize = 200;

/// Rows per second at least.
const BARS: [(&str, f64); 2] = [("sqlite", 25_000.0), ("postgres", 50_000.0)];

#[tokio::main]
async fn main() {
    let words = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"))
        .collect::<Vec<_>>();
    let seconds = words
        .iter()
        .find_map(|word| word.parse().ok())
        .unwrap_or(10);
    let mut bars = Bars::start();
    for (backend, bar) in BARS {
        if words.iter().any(|word| word.parse::<u64>().is_err())
            && !words.iter().any(|word| word == backend)
        {
            continue;
        }
        let rate = run(backend, Duration::from_secs(seconds)).await;
        bars.judge(
            &format!("ingest into {backend}, {NODES} nodes, batches of {ROWS}"),
            &format!("{rate:.0} rows/s"),
            &format!("{bar:.0} rows/s"),
            rate >= bar,
        );
    }
    bars.end();
}

/// Returns rows per second.
async fn run(backend: &str, length: Duration) -> f64 {
    let master = TestMaster::on(backend, true, Arc::new(SystemClock), |_| {}).await;
    let mut agents = Vec::new();
    for number in 0..NODES {
        agents.push(master.agent(&format!("node-{number}")).await);
    }
    let store = master.master.store();
    let mut users = Vec::new();
    let mut tx = store.begin().await.expect("a transaction");
    for number in 0..USERS {
        users.push(
            master
                .user_in(&mut tx, &format!("user-{number}"), None, None)
                .await,
        );
    }
    tx.commit().await.expect("a commit");
    for agent in &agents {
        assign(store, agent.node().await, &users).await;
    }
    let rows = Arc::new(AtomicU64::new(0));
    let (start, until) = (Instant::now(), Instant::now() + length);
    let mut streams = Vec::new();
    for (number, agent) in agents.into_iter().enumerate() {
        let (users, rows) = (users.clone(), Arc::clone(&rows));
        streams.push(tokio::spawn(stream(agent, number, users, rows, until)));
    }
    let mut slowest = Vec::new();
    for stream in streams {
        slowest.extend(stream.await.expect("a stream ends well"));
    }
    slowest.sort_unstable();
    let took = start.elapsed().as_secs_f64();
    let count = rows.load(Ordering::SeqCst);
    let mut counted = 0;
    let mut after = None;
    loop {
        let page = store.users(after, 500).await.expect("users");
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        counted += page.iter().map(|user| user.tx).sum::<i64>();
    }
    assert_eq!(counted.unsigned_abs(), count * 3, "every row counts once");
    let rate = count as f64 / took;
    println!(
        "{backend}: {rate:.0} rows/s ({count} rows in {took:.1} s, {NODES} nodes, batches of {ROWS}, {USERS} users); \
         acknowledged p50 {:?}, p99 {:?}",
        slowest[slowest.len() / 2],
        slowest[slowest.len() * 99 / 100],
    );
    rate
}

/// One node's stream: one batch in flight, as the contract says.
async fn stream(
    agent: Agent,
    number: usize,
    users: Vec<UserId>,
    rows: Arc<AtomicU64>,
    until: Instant,
) -> Vec<Duration> {
    let (send, outbound) = tokio::sync::mpsc::channel(1);
    let mut client = agent.client().await;
    let answers = client.report_traffic(tokio_stream::wrappers::ReceiverStream::new(outbound));
    let mut seq = 1;
    let mut at = number * 1_237;
    send.send(batch(number, seq, &users, &mut at))
        .await
        .expect("the stream is open");
    let mut answers = answers.await.expect("the master answers").into_inner();
    let mut took = Vec::new();
    let mut sent = Instant::now();
    while let Some(answer) = answers.message().await.expect("an answer") {
        let ack = answer.ack.expect("an acknowledgement");
        assert_eq!((ack.durable_seq, ack.quarantined), (seq, 0));
        rows.fetch_add(ROWS as u64, Ordering::SeqCst);
        took.push(sent.elapsed());
        if Instant::now() >= until {
            break;
        }
        seq += 1;
        sent = Instant::now();
        send.send(batch(number, seq, &users, &mut at))
            .await
            .expect("the stream is open");
    }
    took
}

fn batch(number: usize, seq: u64, users: &[UserId], at: &mut usize) -> rpc::ReportTrafficRequest {
    let rows = (0..ROWS)
        .map(|_| {
            // A step without a common divisor visits everybody.
            *at = (*at + 7_919) % users.len();
            rpc::UserTraffic {
                user_id: users[*at].to_wire(),
                tx: 3,
                rx: 4,
                ..Default::default()
            }
        })
        .collect();
    let batch = rpc::TrafficBatch {
        spool_id: vec![u8::try_from(number).expect("few nodes"); 16].into(),
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

async fn assign(store: &Store, node: NodeId, users: &[UserId]) {
    let new = users
        .iter()
        .map(|user| NewAssignment {
            user_id: *user,
            node_id: node,
            rank: 0,
            source: AssignmentSource::Pinned,
            score: None,
        })
        .collect::<Vec<_>>();
    let mut tx = store.begin().await.expect("a transaction");
    assignments::assign_many(&mut tx, &new, hy2_master_sdk::domain::Timestamp(1))
        .await
        .expect("assignments");
    tx.commit().await.expect("a commit");
}
