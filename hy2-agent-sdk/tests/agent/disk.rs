//! The disk is full, or fails. The disk that is full is a small memory file system, so that test needs the right to mount.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::Ordering::SeqCst,
    time::Duration,
};

use hy2_agent_sdk::{Agent, AgentHandle};

use crate::{
    fleet::World,
    master::{Desired, Seen},
    origin::{Echo, Traffic},
    soon,
};

const ALICE: &str = "alice's credential";

struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(at: &'a Path) -> Self {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
            .arg(at)
            .status()
            .expect("mount is installed");
        assert!(mounted.success(), "this test has to run as root");
        Self(at)
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[tokio::test]
async fn on_a_full_disk_counting_goes_on_and_every_byte_arrives_when_there_is_room() {
    let mut world = World::with_users(&[(1, ALICE)]).await;
    let place = tempfile::tempdir().expect("a folder");
    let disk = SmallDisk::mount(place.path());
    let mut config = world.agent_config();
    config.data_dir = place.path().join("agent");
    config.local_socket = None;
    world.agent = Some(Agent::spawn(config).await.expect("starts"));
    world.master.acked(1).await;
    let echo = Echo::start().await;
    let alice = world.client(ALICE).await;
    let traffic = Traffic::start(&alice, &echo.target(), 2, 1000).await;
    world
        .master
        .until_stored("a first batch", |store| store.batches > 0)
        .await;
    let filler = place.path().join("filler");
    // Fails when there is no room left, which is what it is for.
    let _ = std::fs::write(&filler, vec![1; 8 << 20]);
    let full = |seen: &Seen| {
        seen.alerts
            .iter()
            .any(|alert| alert.rule == "spool_not_written")
    };
    world.master.until_seen("the alert", full).await;
    // A revocation does not wait for room on the disk.
    world
        .master
        .publish_acked(|desired| {
            desired
                .users
                .insert(2, crate::fleet::user(2, "bob's credential"));
        })
        .await;
    world.client("bob's credential").await.close().await;
    let before = traffic.rounds.load(SeqCst);
    soon("traffic on a full disk", async {
        while traffic.rounds.load(SeqCst) < before + 50 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    std::fs::remove_file(&filler).expect("removed");
    let moved = traffic.finish().await;
    world
        .master
        .until_stored("every byte", |store| {
            store.bytes.get(&1) == Some(&(moved, moved))
        })
        .await;
    world.shutdown().await;
    assert_eq!(world.master.shared.store.lock().bytes[&1], (moved, moved));
    drop(disk);
}

#[tokio::test]
async fn a_batch_that_is_damaged_while_it_waits_ends_no_session() {
    let mut world = World::with_users(&[(1, ALICE)]).await;
    let agent = world.start().await;
    let echo = Echo::start().await;
    world.master.stop().await;
    let alice = world.client(ALICE).await;
    let traffic = Traffic::start(&alice, &echo.target(), 1, 1000).await;
    soon("two batches", async {
        while agent.spool().0 < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    traffic.finish().await;
    agent.cut().await;
    let batch = batches(&world).remove(0);
    let mut bytes = std::fs::read(&batch).expect("a batch");
    *bytes.last_mut().expect("bytes") ^= 1;
    std::fs::write(&batch, bytes).expect("written");
    world.master.resume().await;
    all_delivered(&agent).await;
    assert!(world.master.shared.store.lock().batches > 0);
    let gap = |seen: &Seen| seen.alerts.iter().any(|alert| alert.rule == "traffic_gap");
    let seen = world.master.until_seen("the alert", gap).await;
    assert_eq!(seen.sessions, 2);
}

#[tokio::test]
async fn a_spool_that_cannot_go_on_for_want_of_room_keeps_no_revocation_from_the_node() {
    let mut world = World::with_users(&[(1, ALICE), (2, "bob's credential")]).await;
    let agent = world.start().await;
    let echo = Echo::start().await;
    world.master.stop().await;
    let alice = world.client(ALICE).await;
    let traffic = Traffic::start(&alice, &echo.target(), 1, 1000).await;
    soon("a batch", async {
        while agent.spool().0 < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    traffic.finish().await;
    agent.cut().await;
    // Nothing here can follow this: a new spool has to be made.
    let spool = world.folder.path().join("traffic/spool");
    let noted = std::fs::read_to_string(spool.join("current")).expect("an id");
    let id = hex::decode(noted.trim()).expect("hex");
    let cursors = &world.master.shared.store;
    cursors.lock().cursors.insert(id, 1_000_000);
    let in_the_way = spool.join("current.tmp");
    std::fs::create_dir(&in_the_way).expect("in the way");
    world.master.resume().await;
    let said = |seen: &Seen| {
        let mut rules = seen.alerts.iter().map(|alert| &*alert.rule);
        rules.any(|rule| rule == "spool_not_delivered")
    };
    world.master.until_seen("the alert", said).await;
    let without_bob = |desired: &mut Desired| {
        desired.users.remove(&2);
    };
    world.master.publish_acked(without_bob).await;
    world.is_refused("bob's credential").await;
    world.client(ALICE).await.close().await;
    assert_eq!(world.master.shared.seen.borrow().sessions, 2);
    std::fs::remove_dir(&in_the_way).expect("empty");
    // The master says that it has what was numbered so far; every byte from here on arrives.
    soon("the new spool", async {
        while std::fs::read_to_string(spool.join("current")).is_ok_and(|now| now == noted) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let traffic = Traffic::start(&alice, &echo.target(), 1, 1000).await;
    soon("a round", async {
        while traffic.rounds.load(SeqCst) < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let moved = traffic.finish().await;
    world
        .master
        .until_stored("every byte", |store| {
            store.bytes.get(&1) == Some(&(moved, moved))
        })
        .await;
    assert_eq!(world.master.shared.seen.borrow().sessions, 2);
}

async fn all_delivered(agent: &AgentHandle) {
    soon("delivery", async {
        while agent.spool().0 > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// The files of the batches that are in the spool, in order.
fn batches(world: &World) -> Vec<PathBuf> {
    let spool = world.folder.path().join("traffic/spool");
    let id = std::fs::read_to_string(spool.join("current")).expect("an id");
    let entries = std::fs::read_dir(spool.join(id.trim())).expect("a spool");
    let mut found: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            let kind = path.extension().and_then(|kind| kind.to_str());
            matches!(kind, Some("batch" | "sent"))
        })
        .collect();
    found.sort();
    found
}
