//! Quotas and device limits, lent to nodes in slices and places.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde_json::json;
use tokio::{io::AsyncWriteExt, net::UdpSocket, task::JoinSet};

use crate::{
    client::{Ours, Ping, let_in, ping},
    fleet::{Fleet, Shape, Store},
    load::{Door, Load, OnCut, Plan},
    small_disk::SmallDisk,
};

const SLICE: u64 = 1 << 20;

const PLAN: Plan = Plan {
    streams: 2,
    datagrams: 0,
    chunk: 8 << 10,
    pause: Duration::from_millis(20),
    on_cut: OnCut::Reopen,
};

/// As fast as it goes.
const FAST: Plan = Plan {
    streams: 4,
    datagrams: 0,
    chunk: 64 << 10,
    pause: Duration::ZERO,
    on_cut: OnCut::Reopen,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_over_three_nodes_is_used_up_and_not_exceeded_by_more_than_a_slice() {
    // Enough that every stream has begun before it is used up.
    let quota = 128 * SLICE;
    let fleet = Fleet::start(Store::Sqlite, 3).await;
    let alice = fleet.user("alice", json!({"quota_bytes": quota})).await;
    let links = fleet.links(&alice).await;
    let (mut clients, mut starting) = (Vec::new(), JoinSet::new());
    for uri in &links {
        clients.push(Ours::start(fleet.path(), uri).await);
    }
    for (seed, client) in (0..).zip(&clients) {
        let targets = (alice.origin.tcp, alice.origin.udp);
        starting.spawn(Load::start(client.door, targets, FAST, seed));
    }
    let loads = starting.join_all().await;
    let path = format!("/users/{}", alice.id);
    crate::until("the limit", || async {
        let user = fleet.rest.look(&path).await?;
        match user["status"] == "limited" {
            true => Ok(()),
            false => Err(user.to_string()),
        }
    })
    .await;
    for load in loads {
        load.finish().await;
    }
    for uri in &links {
        let refused = ping(fleet.path(), uri, "", alice.origin.tcp).await;
        assert_eq!(refused.code, Ping::REFUSED, "{}", refused.said);
    }
    fleet.spool_is_store().await;
    let (tx, rx) = fleet.counted(&alice).await.expect("counted");
    assert!(tx + rx >= quota, "all of it could be used: {}", tx + rx);
    // Counted and at the origin, however fast it went.
    let (taken, given) = alice.origin.bytes();
    for moved in [tx + rx, taken + given] {
        assert!(moved <= quota + SLICE, "{} over", moved - quota);
    }
    crate::say(&format!(
        "a quota of {quota}: {} counted, {} at the origin",
        tx + rx,
        taken + given
    ));
    // More quota: as welcome as before.
    fleet
        .rest
        .patch(&path, json!({"quota_bytes": quota * 2}))
        .await;
    for uri in &links {
        crate::until("the way back", || async {
            let found = ping(fleet.path(), uri, "", alice.origin.tcp).await;
            found.arrived().then_some(()).ok_or(found.said)
        })
        .await;
    }
}

/// Sends as much as the tunnel takes, without waiting for an echo.
struct Flood {
    _tasks: JoinSet<()>,
}

impl Flood {
    fn start(door: Door, target: SocketAddr, streams: usize) -> Self {
        let mut tasks = JoinSet::new();
        for _ in 0..streams {
            tasks.spawn(async move {
                loop {
                    if let Ok(stream) = door.tcp(target).await {
                        let (mut echoes, mut up) = stream.into_split();
                        let blob = [7; 64 << 10];
                        let mut sink = tokio::io::sink();
                        tokio::select! {
                            _ = tokio::io::copy(&mut echoes, &mut sink) => {}
                            () = async { while up.write_all(&blob).await.is_ok() {} } => {}
                        }
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            });
        }
        Self { _tasks: tasks }
    }
}

/// What is on its way when a quota ends does not pass: buffers are larger than slices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_over_three_nodes_exceed_a_quota_by_no_more_than_a_slice() {
    let quota = 64 * SLICE;
    let fleet = Fleet::start(Store::Sqlite, 3).await;
    let alice = fleet.user("alice", json!({"quota_bytes": quota})).await;
    let (mut clients, mut floods) = (Vec::new(), Vec::new());
    for uri in fleet.links(&alice).await {
        let client = Ours::start(fleet.path(), &uri).await;
        floods.push(Flood::start(client.door, alice.origin.tcp, 8));
        clients.push(client);
    }
    let path = format!("/users/{}", alice.id);
    crate::until("the limit", || async {
        let user = fleet.rest.look(&path).await?;
        match user["status"] == "limited" {
            true => Ok(()),
            false => Err(user.to_string()),
        }
    })
    .await;
    // Nobody comes in any more; what was under way is over.
    crate::until("the end of every stream", || async {
        match alice.origin.open() {
            0 => Ok(()),
            open => Err(format!("{open} are open")),
        }
    })
    .await;
    drop(floods);
    fleet.spool_is_store().await;
    let (tx, rx) = fleet.counted(&alice).await.expect("counted");
    let (taken, _) = alice.origin.bytes();
    crate::say(&format!(
        "a quota of {quota}: {tx} and {rx} counted, {taken} at the origin"
    ));
    assert!(tx + rx >= quota, "all of it could be used: {}", tx + rx);
    assert!(tx + rx <= quota + SLICE, "{} over", tx + rx - quota);
    // What the kernel had taken and the origin had not when its stream was cut is lost.
    assert!(taken <= tx, "{taken} and {tx}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_master_nodes_go_no_further_than_the_slices_in_hand() {
    let quota = 6 * SLICE;
    let mut fleet = Fleet::start(Store::Sqlite, 3).await;
    let alice = fleet.user("alice", json!({"quota_bytes": quota})).await;
    let links = fleet.links(&alice).await;
    let (mut clients, mut loads) = (Vec::new(), Vec::new());
    for (seed, uri) in links.iter().enumerate() {
        let client = Ours::start(fleet.path(), uri).await;
        let targets = (alice.origin.tcp, alice.origin.udp);
        loads.push(Load::start(client.door, targets, PLAN, seed as u64).await);
        clients.push(client);
    }
    fleet.kill_master().await;
    // A node that is killed knows what is left to it.
    fleet.kill_agent(1).await;
    fleet.start_agent(1);
    for uri in &links {
        crate::until("the end of the slices", || async {
            let found = ping(fleet.path(), uri, "", alice.origin.tcp).await;
            (found.code == Ping::REFUSED)
                .then_some(())
                .ok_or(found.said)
        })
        .await;
    }
    for load in loads {
        load.finish().await;
    }
    let (tx, rx) = alice.origin.bytes();
    assert!(tx + rx > SLICE, "slices were used: {}", tx + rx);
    assert!(tx + rx <= quota + SLICE, "{} of {quota}", tx + rx);
    fleet.start_master();
    fleet.master_ready().await;
    fleet.spool_is_store().await;
    let (stored_tx, stored_rx) = fleet.counted(&alice).await.expect("counted");
    // A kill may lose a chunk of each of two streams. What a target gave and nobody took when its stream was
    // killed, or cut at the end of a slice, never passed.
    let chunk = PLAN.chunk as u64;
    crate::say(&format!(
        "up {tx} and {stored_tx}, down {rx} and {stored_rx}"
    ));
    assert!(tx.abs_diff(stored_tx) <= 2 * chunk, "{tx} and {stored_tx}");
    let ends = (2 + 6) * chunk;
    assert!(
        (stored_rx..=stored_rx + ends).contains(&rx),
        "{rx} and {stored_rx}"
    );
    // What the slices did not take is there for who comes back.
    if stored_tx + stored_rx + SLICE < quota {
        crate::until("the rest of the quota", || async {
            let found = ping(fleet.path(), &links[0], "", alice.origin.tcp).await;
            found.arrived().then_some(()).ok_or(found.said)
        })
        .await;
    }
}

/// What was used cannot be reported, and the slices have to be known all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_while_its_disk_is_full_goes_no_further_than_the_quota() {
    if let Err(why) = SmallDisk::is_possible() {
        crate::skip("a quota on a full disk", &why);
        return;
    }
    // A fourth of it is the largest slice.
    let quota = 12 * SLICE;
    let shape = Shape {
        small_disks: true,
        ..Shape::default()
    };
    let mut fleet = Fleet::start_with(Store::Sqlite, 1, shape).await;
    let alice = fleet.user("alice", json!({"quota_bytes": quota})).await;
    let uri = fleet.links(&alice).await.remove(0);
    fleet.nodes[0].disk.as_ref().expect("a disk").fill();
    let client = Ours::start(fleet.path(), &uri).await;
    let targets = (alice.origin.tcp, alice.origin.udp);
    let load = Load::start(client.door, targets, PLAN, 1).await;
    let passed = || {
        let (tx, rx) = alice.origin.bytes();
        tx + rx
    };
    let folder = fleet.path().to_owned();
    let refused = || async {
        let found = ping(&folder, &uri, "", alice.origin.tcp).await;
        (found.code == Ping::REFUSED)
            .then_some(())
            .ok_or(found.said)
    };
    let mut kills = 0;
    while kills < 8 && refused().await.is_err() {
        let before = passed();
        crate::until("a mebibyte, or the end", || async {
            match passed() >= before + SLICE {
                true => Ok(()),
                false => refused().await,
            }
        })
        .await;
        fleet.kill_agent(0).await;
        fleet.start_agent(0);
        kills += 1;
        crate::until("the node", || async {
            let found = ping(&folder, &uri, "", alice.origin.tcp).await;
            let serves = found.arrived() || found.code == Ping::REFUSED;
            serves.then_some(()).ok_or(found.said)
        })
        .await;
    }
    crate::until("the end of the quota", refused).await;
    load.finish().await;
    let on_full_disk = passed();
    fleet.nodes[0].disk.as_ref().expect("a disk").free();
    fleet.spool_is_store().await;
    let (tx, rx) = fleet.counted(&alice).await.expect("counted");
    crate::say(&format!(
        "a quota of {quota}, {kills} kills: {on_full_disk} at the origin, {} counted",
        tx + rx
    ));
    assert!(kills > 3, "{kills}");
    assert!(on_full_disk <= quota + quota / 4, "{on_full_disk}");
    assert!(tx + rx <= quota + quota / 4, "{tx} and {rx}");
}

/// A node that loses a user gives the rest of the slice back, so nothing of the quota is lost by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_disabled_and_enabled_again_has_the_whole_quota() {
    let quota = 32 * SLICE;
    let fleet = Fleet::start(Store::Sqlite, 2).await;
    let alice = fleet.user("alice", json!({"quota_bytes": quota})).await;
    let links = fleet.links(&alice).await;
    let path = format!("/users/{}", alice.id);
    let target = alice.origin.tcp;
    // A fourth of what is left is lent each time: without it coming back, a tenth would be left in the end.
    for uri in links.iter().cycle().take(8) {
        crate::until("the way in", || async {
            let found = ping(fleet.path(), uri, "", target).await;
            found.arrived().then_some(()).ok_or(found.said)
        })
        .await;
        let client = Ours::start(fleet.path(), uri).await;
        crate::until("a stream", || async {
            let opened = client.door.tcp(target).await;
            opened.map_err(|error| error.to_string())
        })
        .await;
        fleet.rest.patch(&path, json!({"status": "disabled"})).await;
        crate::until("the refusal", || async {
            let found = ping(fleet.path(), uri, "", target).await;
            let refused = found.code == Ping::REFUSED;
            refused.then_some(()).ok_or(found.said)
        })
        .await;
        fleet.rest.patch(&path, json!({"status": "active"})).await;
    }
    crate::until("the way back", || async {
        let found = ping(fleet.path(), &links[0], "", target).await;
        found.arrived().then_some(()).ok_or(found.said)
    })
    .await;
    let client = Ours::start(fleet.path(), &links[0]).await;
    let targets = (alice.origin.tcp, alice.origin.udp);
    let load = Load::start(client.door, targets, FAST, 1).await;
    crate::until("the limit", || async {
        let user = fleet.rest.look(&path).await?;
        match user["status"] == "limited" {
            true => Ok(()),
            false => Err(user.to_string()),
        }
    })
    .await;
    load.finish().await;
    fleet.spool_is_store().await;
    let (tx, rx) = fleet.counted(&alice).await.expect("counted");
    assert!((quota..=quota + SLICE).contains(&(tx + rx)), "{}", tx + rx);
}

/// Gives what it passes on an address of its own, which makes a device of it.
struct Device {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Device {
    async fn new(number: u8, node: SocketAddr) -> Self {
        let near = UdpSocket::bind(("127.0.0.1", 0)).await.expect("a port");
        let far = UdpSocket::bind((IpAddr::from([127, 0, 9, number]), 0))
            .await
            .expect("a port");
        far.connect(node).await.expect("connected");
        let address = near.local_addr().expect("bound");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut client = None;
            let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
            loop {
                tokio::select! {
                    Ok((read, from)) = near.recv_from(&mut up) => {
                        client = Some(from);
                        let _ = far.send(&up[..read]).await;
                    }
                    Ok(read) = far.recv(&mut down) => {
                        if let Some(client) = client {
                            let _ = near.send_to(&down[..read], client).await;
                        }
                    }
                }
            }
        });
        Self {
            address,
            _tasks: tasks,
        }
    }

    /// The link as this device uses it.
    fn link(&self, uri: &str, port: u16) -> String {
        uri.replace(&format!("127.0.0.1:{port}"), &self.address.to_string())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_are_counted_over_all_nodes_and_a_device_that_leaves_makes_room() {
    let fleet = Fleet::start(Store::Sqlite, 3).await;
    let alice = fleet.user("alice", json!({"max_devices": 2})).await;
    let links = fleet.links(&alice).await;
    let node = |at: usize| SocketAddr::from(([127, 0, 0, 1], fleet.nodes[at].port));
    let target = alice.origin.tcp;
    let mut devices = Vec::new();
    for number in 0..3_u8 {
        let at = usize::from(number);
        let device = Device::new(number + 1, node(at)).await;
        let link = device.link(&links[at], fleet.nodes[at].port);
        devices.push((device, link));
    }
    // Two devices on two nodes.
    let mut held = Vec::new();
    for (_, link) in &devices[..2] {
        let client = Ours::start(fleet.path(), link).await;
        crate::until("a device", || async {
            let opened = client.door.tcp(target).await;
            opened.map_err(|error| error.to_string())
        })
        .await;
        held.push(client);
    }
    // A third on the third: no. The first once more, on the same node: it is no other device.
    let third = ping(fleet.path(), &devices[2].1, "", target).await;
    assert_eq!(third.code, Ping::REFUSED, "{}", third.said);
    let same = ping(fleet.path(), &devices[0].1, "", target).await;
    assert!(same.arrived(), "{}", same.said);
    // One leaves: there is room, on another node.
    held.pop();
    crate::until("room for another device", || async {
        let found = ping(fleet.path(), &devices[2].1, "", target).await;
        found.arrived().then_some(()).ok_or(found.said)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_of_who_is_moved_to_another_node_has_its_place_there() {
    let fleet = Fleet::start(Store::Sqlite, 2).await;
    let alice = fleet.user("alice", json!({"max_devices": 1})).await;
    let links = fleet.links(&alice).await;
    let off = |at: usize| format!("/assignments/{}/{}", alice.id, fleet.nodes[at].id);
    let plan = Plan {
        on_cut: OnCut::End,
        ..PLAN
    };
    let targets = (alice.origin.tcp, alice.origin.udp);
    let client = Ours::start(fleet.path(), &links[0]).await;
    let load = Load::start(client.door, targets, plan, 1).await;
    let second = ping(fleet.path(), &links[1], "", targets.0).await;
    assert_eq!(second.code, Ping::REFUSED, "{}", second.said);
    // The node that she was on keeps no place of hers, which was lent for a quarter of an hour.
    fleet.rest.delete(&off(0)).await;
    let_in(&links[1], targets.0).await;
    load.until_cut(plan.streams).await;
    load.finish().await;
    drop(client);
    // And back at once.
    let client = Ours::start(fleet.path(), &links[1]).await;
    let load = Load::start(client.door, targets, plan, 2).await;
    let back = json!({"user_id": alice.id, "node_id": fleet.nodes[0].id});
    fleet.rest.post("/assignments", back).await;
    fleet.rest.delete(&off(1)).await;
    let_in(&links[0], targets.0).await;
    load.until_cut(plan.streams).await;
    load.finish().await;
}
