//! The disk is full. The disk is a small memory file system, so this test needs the right to mount.

use std::{path::Path, process::Command, time::Duration};

use hy2_agent_sdk::Agent;

use crate::{
    fleet::World,
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
    let full = |seen: &crate::master::Seen| {
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
    let before = traffic.rounds.load(std::sync::atomic::Ordering::Relaxed);
    soon("traffic on a full disk", async {
        while traffic.rounds.load(std::sync::atomic::Ordering::Relaxed) < before + 50 {
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
