//! Faults of every kind during traffic. The witness is the origin.
//!
//! First the faults that cost no byte, with streams that must not be cut, and an exact account at
//! the end. Then all of them with agents killed among them: each kill may cost what was on its way
//! in one relay buffer of each stream and direction, and nothing else.

use std::{collections::BTreeMap, process::Command, time::Duration};

use serde_json::json;

use crate::{
    client::Ours,
    delivery,
    fleet::{Fleet, Shape, Store, User},
    load::{Load, OnCut, Plan},
    random::Random,
    small_disk::SmallDisk,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    MasterKilled,
    /// PostgreSQL only: SQLite dies with the master.
    DatabaseKilled,
    /// A batch is committed and its answer is lost.
    AnswerLost,
    /// The wire breaks in the middle of a request.
    RequestCut,
    /// A batch comes again although it was acknowledged.
    DeliveredAgain,
    /// Agents can write nothing.
    AgentDiskFull,
    /// SQLite only: the master can write nothing.
    MasterDiskFull,
    /// PostgreSQL only: the database can write nothing, and ends when its log has no room.
    DatabaseDiskFull,
    AgentKilled,
}

const STREAMS: usize = 2;
const CHUNK: usize = 8 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_is_lost_or_doubled_by_any_fault_on_sqlite() {
    run(Store::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_is_lost_or_doubled_by_any_fault_on_postgresql() {
    run(Store::Postgres).await;
}

async fn run(store: Store) {
    // Two parts of so many each.
    let each = if crate::full() { 20 } else { 1 };
    let mut random = Random::seeded(&format!("chaos on {store:?}"));
    let shape = Shape {
        small_disks: true,
        ..Shape::default()
    };
    let mut fleet = Fleet::start_with(store, 3, shape).await;
    let mut kinds = vec![
        Fault::MasterKilled,
        Fault::AnswerLost,
        Fault::RequestCut,
        Fault::DeliveredAgain,
    ];
    if store == Store::Postgres {
        kinds.push(Fault::DatabaseKilled);
    }
    kinds.extend(of_full_disks(store));
    let users = [
        fleet.user("alice", json!({})).await,
        fleet.user("bob", json!({})).await,
    ];
    let mut clients = Vec::new();
    for user in &users {
        for uri in fleet.links(user).await {
            clients.push((user, Ours::start(fleet.path(), &uri).await));
        }
    }
    let mut done = BTreeMap::<Fault, u32>::new();

    let loads = start(&clients, OnCut::Fail, &mut random).await;
    for fault in random.order(&kinds, each) {
        happen(&mut fleet, fault, &loads, &mut random).await;
        *done.entry(fault).or_default() += 1;
    }
    for load in loads {
        load.finish().await;
    }
    for user in &users {
        fleet.counted_exactly(user).await;
    }
    fleet.spool_is_store().await;
    let exact: u64 = users.iter().map(|user| user.origin.bytes().0).sum();

    let loads = start(&clients, OnCut::Reopen, &mut random).await;
    kinds.extend([Fault::AgentKilled, Fault::AgentKilled]);
    let mut kills = 0;
    for fault in random.order(&kinds, each) {
        happen(&mut fleet, fault, &loads, &mut random).await;
        *done.entry(fault).or_default() += 1;
        kills += u64::from(fault == Fault::AgentKilled);
    }
    for load in loads {
        load.finish().await;
    }
    fleet.spool_is_store().await;
    // Of each user, on one node.
    let bound = kills * (STREAMS + 1) as u64 * CHUNK as u64;
    let (mut moved, mut most) = (0, 0);
    for user in &users {
        let (origin, rest) = (
            user.origin.bytes(),
            fleet.counted(user).await.expect("counted"),
        );
        let off = (origin.0.abs_diff(rest.0), origin.1.abs_diff(rest.1));
        assert!(
            off.0 <= bound && off.1 <= bound,
            "{}: origin {origin:?}, REST {rest:?}, {kills} kills, bound {bound}",
            user.name
        );
        moved += origin.0 + origin.1;
        most = most.max(off.0).max(off.1);
    }
    for kind in &kinds {
        assert!(
            done[kind] >= 2 * u32::try_from(each).expect("few"),
            "{kind:?}: {done:?}"
        );
    }
    crate::say(&format!(
        "chaos on {store:?}: {} faults {done:?}; {moved} bytes, the first {exact} up exact; store = \
         spool; origin and store differ by {most} at most, {bound} allowed for {kills} kills",
        done.values().sum::<u32>()
    ));
}

/// The faults that need a disk of their own, where this process may mount one.
fn of_full_disks(store: Store) -> Vec<Fault> {
    let kinds = match store {
        Store::Sqlite => vec![Fault::AgentDiskFull, Fault::MasterDiskFull],
        Store::Postgres => vec![Fault::AgentDiskFull, Fault::DatabaseDiskFull],
    };
    match SmallDisk::is_possible() {
        Ok(()) => kinds,
        Err(why) => {
            crate::skip(&format!("{kinds:?} on {store:?}"), &why);
            Vec::new()
        }
    }
}

/// On a host that may not mount, as one without the program is. In a process of its own: this test again.
#[test]
fn full_disks_that_cannot_be_are_said_and_fail_the_long_run() {
    const CHILD: &str = "HY2_WITHOUT_MOUNT";
    if std::env::var_os(CHILD).is_some() {
        assert_eq!(of_full_disks(Store::Sqlite), []);
        return;
    }
    let nothing = tempfile::tempdir().expect("a folder");
    for full in [false, true] {
        let mut child = Command::new(std::env::current_exe().expect("this test"));
        child
            .args([
                "--exact",
                "chaos::full_disks_that_cannot_be_are_said_and_fail_the_long_run",
            ])
            .env(CHILD, "1")
            .env("PATH", nothing.path())
            .env_remove("HY2_FULL");
        if full {
            child.env("HY2_FULL", "1");
        }
        let output = child.output().expect("it runs");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(output.status.success(), !full, "{said}");
        let word = if full { "HY2_FULL wants" } else { "SKIPPED:" };
        for part in [word, "MasterDiskFull", "needs root"] {
            assert!(said.contains(part), "{part:?} not in {said}");
        }
    }
}

async fn start(clients: &[(&User, Ours)], on_cut: OnCut, random: &mut Random) -> Vec<Load> {
    let plan = Plan {
        streams: STREAMS,
        datagrams: 1,
        chunk: CHUNK,
        pause: Duration::from_millis(20),
        on_cut,
    };
    let mut loads = Vec::new();
    for (user, client) in clients {
        let targets = (user.origin.tcp, user.origin.udp);
        loads.push(Load::start(client.door, targets, plan, random.next()).await);
    }
    loads
}

async fn happen(fleet: &mut Fleet, fault: Fault, loads: &[Load], random: &mut Random) {
    let at = usize::try_from(random.below(fleet.nodes.len() as u64)).expect("few");
    let pause = Duration::from_millis(random.below(700));
    // At another place of everybody's work each time.
    tokio::time::sleep(Duration::from_millis(random.below(300))).await;
    match fault {
        Fault::MasterKilled => {
            fleet.kill_master().await;
            tokio::time::sleep(pause).await;
            fleet.start_master();
            fleet.master_ready().await;
        }
        Fault::DatabaseKilled => {
            let postgres = fleet.postgres.as_ref().expect("PostgreSQL");
            tokio::task::block_in_place(|| postgres.kill_and_resume());
            fleet.master_ready().await;
        }
        Fault::AnswerLost => {
            let wire = &fleet.nodes[at].wire;
            loop {
                // The link is up: it may still be on its way back from the fault before.
                reported(fleet, at, crate::PATIENCE)
                    .await
                    .expect("a report");
                wire.hold_answers();
                // One answer may be under way; what is committed after it is answered by nobody.
                let committed = reported(fleet, at, Duration::from_secs(5)).await;
                if committed.is_some() {
                    break;
                }
                // The link went down just before.
                wire.cut();
            }
            wire.cut();
        }
        Fault::RequestCut => {
            let bytes = random.below(3000);
            fleet.nodes[at].wire.break_after(bytes).await;
        }
        Fault::DeliveredAgain => {
            let copies = 2 + usize::try_from(random.below(3)).expect("few");
            delivery::again(fleet.agents, &fleet.agent_folder(at), copies).await;
        }
        Fault::AgentDiskFull => {
            let disk = fleet.nodes[at].disk.as_ref().expect("a disk");
            disk.fill();
            tokio::time::sleep(Duration::from_millis(600) + pause).await;
            disk.free();
        }
        Fault::MasterDiskFull => {
            let disk = fleet.disk.as_ref().expect("a disk");
            disk.fill();
            tokio::time::sleep(Duration::from_millis(600) + pause).await;
            disk.free();
            fleet.master_ready().await;
        }
        Fault::DatabaseDiskFull => {
            let postgres = fleet.postgres.as_ref().expect("PostgreSQL");
            postgres.fill().await;
            tokio::time::sleep(Duration::from_millis(600) + pause).await;
            tokio::task::block_in_place(|| postgres.free());
            fleet.master_ready().await;
        }
        Fault::AgentKilled => {
            fleet.kill_agent(at).await;
            tokio::time::sleep(pause).await;
            fleet.start_agent(at);
            crate::until("the agent", || fleet.agent_says(at)).await;
        }
    }
    // Everybody goes on.
    for load in loads {
        load.more(3).await;
    }
}

/// Waits until the master has more of a node's traffic than at this moment.
async fn reported(fleet: &Fleet, at: usize, patience: Duration) -> Option<()> {
    let more = async {
        let before = crate::until("the node's account", || fleet.counted_of_node(at)).await;
        while fleet
            .counted_of_node(at)
            .await
            .is_ok_and(|after| after == before)
        {
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    };
    tokio::time::timeout(patience, more).await.ok()
}
