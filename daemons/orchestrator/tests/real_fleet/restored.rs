//! The master's host is lost: a backup is restored on an empty one, and the nodes find it again.

use std::{
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use serde_json::json;
use tokio::process::Command;

use crate::{
    client::{Ours, Ping, ping},
    fleet::{Fleet, Store, User},
    load::{Load, OnCut, Plan},
    process::binary,
};

const PLAN: Plan = Plan {
    streams: 2,
    datagrams: 1,
    chunk: 8 << 10,
    pause: Duration::from_millis(10),
    // The nodes go on without their master and do not notice the new one.
    on_cut: OnCut::Fail,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_come_back_by_the_new_epoch_to_a_restored_sqlite() {
    run(Store::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_come_back_by_the_new_epoch_to_a_restored_postgresql() {
    run(Store::Postgres).await;
}

async fn run(store: Store) {
    let mut fleet = Fleet::start(store, 3).await;
    // With a quota: what the nodes hold of it is lent anew by the restored master, and no stream notices.
    let alice = fleet
        .user("alice", json!({"quota_bytes": 1_u64 << 30}))
        .await;
    let links = fleet.links(&alice).await;
    let (mut clients, mut loads) = (Vec::new(), Vec::new());
    for (seed, uri) in links.iter().enumerate() {
        let client = Ours::start(fleet.path(), uri).await;
        let targets = (alice.origin.tcp, alice.origin.udp);
        loads.push(Load::start(client.door, targets, PLAN, seed as u64).await);
        clients.push(client);
    }
    for load in &loads {
        load.more(20).await;
    }
    let backup = fleet.path().join("fleet.backup");
    orchestrator(fleet.path(), &["backup", "--out", &text(&backup)]).await;
    // What is told to the old master from here on is gone with it.
    for load in &loads {
        load.more(20).await;
    }
    let bob = fleet.user("bob", json!({})).await;
    let of_bob = fleet.links(&bob).await;

    fleet.kill_master().await;
    // He is only the nodes' user now, and what he moves is nobody's who is made after the restore.
    for (seed, uri) in of_bob.iter().enumerate() {
        let client = Ours::start(fleet.path(), uri).await;
        let targets = (bob.origin.tcp, bob.origin.udp);
        let load = Load::start(client.door, targets, PLAN, 50 + seed as u64).await;
        load.more(5).await;
        load.finish().await;
    }
    assert!(bob.origin.bytes().0 > 0);
    fleet.empty_database().await;
    let said = orchestrator(fleet.path(), &["restore", "--in", &text(&backup)]).await;
    let epoch = said
        .split_once("epoch ")
        .and_then(|(_, rest)| rest.split_once(" begins. Nodes come back"))
        .and_then(|(number, _)| number.parse::<u64>().ok());
    // Seconds since 1970, of this century at least.
    assert!(epoch.is_some_and(|epoch| epoch > 1_700_000_000), "{said}");
    fleet.start_master();
    fleet.master_ready().await;
    // A change that every node runs: of the new epoch, whose revisions are below those of the old.
    let carol = fleet.user("carol", json!({})).await;
    fleet.serving().await;

    // Nobody whom the backup knows was cut; who is in it no more is let in no more.
    for load in &loads {
        load.more(20).await;
    }
    let of_carol = fleet.links(&carol).await;
    for (at, load) in loads.into_iter().enumerate() {
        load.finish().await;
        for uri in [&links[at], &of_carol[at]] {
            let found = ping(fleet.path(), uri, "", carol.origin.tcp).await;
            assert!(found.arrived(), "{}", found.said);
        }
        let refused = ping(fleet.path(), &of_bob[at], "", bob.origin.tcp).await;
        assert_eq!(refused.code, Ping::REFUSED, "{}", refused.said);
    }
    crate::until("carol's own bytes and no others", || async {
        let (origin, rest) = (carol.origin.bytes(), fleet.counted(&carol).await?);
        match origin == rest {
            true => Ok(()),
            false => Err(format!("{origin:?} moved, {rest:?} counted")),
        }
    })
    .await;
    // What was told to the old master only is the gap; nothing is counted twice.
    let (before, after) = settled(&fleet, &alice).await;
    assert!(
        after.0 <= before.0 && after.1 <= before.1,
        "{before:?} {after:?}"
    );
    let missing = (before.0 - after.0, before.1 - after.1);

    // From here on every byte counts again.
    let mut loads = Vec::new();
    for (seed, client) in clients.iter().enumerate() {
        let targets = (alice.origin.tcp, alice.origin.udp);
        loads.push(Load::start(client.door, targets, PLAN, 100 + seed as u64).await);
    }
    for load in &loads {
        load.more(20).await;
    }
    for load in loads {
        load.finish().await;
    }
    crate::until("every byte since the restore", || async {
        let (origin, rest) = (alice.origin.bytes(), fleet.counted(&alice).await?);
        let found = (origin.0 - rest.0, origin.1 - rest.1);
        match found == missing {
            true => Ok(()),
            false => Err(format!("missing {found:?}, before {missing:?}")),
        }
    })
    .await;
    crate::say(&format!(
        "restored on {store:?}: {:?} moved, {missing:?} of it told to the lost master only",
        alice.origin.bytes()
    ));
}

/// What the origin and REST say when no agent has anything to tell.
async fn settled(fleet: &Fleet, user: &User) -> ((u64, u64), (u64, u64)) {
    for at in 0..fleet.nodes.len() {
        crate::until("an empty spool", || async {
            match fleet.agent_says(at).await? {
                (_, 0) => Ok(()),
                (_, batches) => Err(format!("{batches} batches wait")),
            }
        })
        .await;
    }
    crate::soon("the same figures twice", async {
        let mut before = None;
        loop {
            // Longer than a cut of the counters and its delivery take.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            let rest = fleet.counted(user).await.expect("counted");
            let found = (user.origin.bytes(), rest);
            if before == Some(found) {
                return found;
            }
            before = Some(found);
        }
    })
    .await
}

fn text(path: &Path) -> String {
    path.to_str().expect("text").to_owned()
}

/// Runs a command of the orchestrator to its end.
pub(crate) async fn orchestrator(folder: &Path, arguments: &[&str]) -> String {
    let output = command(folder, arguments).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}{error}");
    said
}

/// Runs a command of the orchestrator and returns how it ended and what it said.
pub(crate) async fn command(folder: &Path, arguments: &[&str]) -> Output {
    let run = Command::new(binary("hy2-orchestrator"))
        .args(arguments)
        .arg("-c")
        .arg(folder.join("orchestrator.yaml"))
        .env("HY2_BACKUP_PASSPHRASE", "a passphrase for backups")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    crate::soon("a command", run).await.expect("runs")
}
