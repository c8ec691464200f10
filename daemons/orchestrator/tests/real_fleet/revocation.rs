//! Whoever is disabled, expired, deleted or kicked is cut off: TCP and UDP, every device, every
//! node. The long run also measures how fast.

use std::time::{Duration, Instant};

use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    client::{Ours, Ping, Reference, ping},
    fleet::{Fleet, Store, User},
    load::{Door, Load, OnCut, Plan},
};

/// Every node has a client of ours and one of the reference's.
struct Devices {
    doors: Vec<Door>,
    _ours: Vec<Ours>,
    _reference: Vec<Reference>,
}

const STREAMS: usize = 2;

impl Devices {
    async fn of(fleet: &Fleet, user: &User) -> Self {
        let mut devices = Self {
            doors: Vec::new(),
            _ours: Vec::new(),
            _reference: Vec::new(),
        };
        for uri in fleet.links(user).await {
            let ours = Ours::start(fleet.path(), &uri).await;
            devices.doors.push(ours.door);
            devices._ours.push(ours);
            let mut reference = Reference::start(&uri).await;
            let door = reference.forward(user.origin.tcp, user.origin.udp).await;
            devices.doors.push(door);
            devices._reference.push(reference);
        }
        devices
    }

    async fn load(&self, user: &User, on_cut: OnCut) -> Vec<Load> {
        let plan = Plan {
            streams: STREAMS,
            datagrams: 1,
            chunk: 2000,
            pause: Duration::from_millis(2),
            on_cut,
        };
        let mut loads = Vec::new();
        for (seed, door) in self.doors.iter().enumerate() {
            let targets = (user.origin.tcp, user.origin.udp);
            loads.push(Load::start(*door, targets, plan, seed as u64).await);
        }
        loads
    }
}

/// Waits until nothing comes any more, while programs go on trying.
async fn silence(user: &User) {
    crate::until("silence at the origin", || async {
        let before = (user.origin.bytes(), user.origin.datagrams());
        tokio::time::sleep(Duration::from_millis(700)).await;
        let after = (user.origin.bytes(), user.origin.datagrams());
        match before == after && user.origin.open() == 0 {
            true => Ok(()),
            false => Err(format!("{before:?} {after:?} {} open", user.origin.open())),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_user_is_cut_off_on_every_node_and_device_and_let_in_again() {
    let fleet = Fleet::start(Store::Sqlite, 3).await;
    let bob = fleet.user("bob", json!({})).await;
    let of_bob = Ours::start(fleet.path(), &fleet.links(&bob).await[0]).await;
    let plan = Plan {
        streams: 2,
        datagrams: 1,
        chunk: 1000,
        pause: Duration::from_millis(10),
        on_cut: OnCut::Fail,
    };
    let untouched = Load::start(of_bob.door, (bob.origin.tcp, bob.origin.udp), plan, 9).await;
    let alice = fleet.user("alice", json!({})).await;
    let path = format!("/users/{}", alice.id);
    let links = fleet.links(&alice).await;
    let devices = Devices::of(&fleet, &alice).await;
    for way in ["disabled", "expired", "kicked", "deleted"] {
        let loads = devices.load(&alice, OnCut::End).await;
        match way {
            "disabled" => {
                fleet.rest.patch(&path, json!({"status": "disabled"})).await;
            }
            "expired" => {
                let soon = OffsetDateTime::now_utc() + Duration::from_millis(1500);
                let at = soon.format(&Rfc3339).expect("a date");
                fleet.rest.patch(&path, json!({"expires_at": at})).await;
            }
            "kicked" => {
                let reach = fleet.rest.post(&format!("{path}/kick"), json!({})).await;
                assert_eq!(reach["unreachable"], json!([]), "{reach}");
            }
            _ => {
                fleet.rest.delete(&path).await;
            }
        }
        for load in &loads {
            load.until_cut(STREAMS).await;
        }
        if way != "kicked" {
            silence(&alice).await;
            for uri in &links {
                let refused = ping(fleet.path(), uri, "", alice.origin.tcp).await;
                assert_eq!(refused.code, Ping::REFUSED, "{way}: {}", refused.said);
            }
        }
        for load in loads {
            load.finish().await;
        }
        match way {
            "disabled" => {
                fleet.rest.patch(&path, json!({"status": "active"})).await;
            }
            "expired" => {
                // That the time is over is noted by a task.
                fleet.rest.patch(&path, json!({"expires_at": null})).await;
            }
            _ => {}
        }
        if way != "deleted" {
            for uri in &links {
                crate::until("the way back", || async {
                    let found = ping(fleet.path(), uri, "", alice.origin.tcp).await;
                    found.arrived().then_some(()).ok_or(found.said)
                })
                .await;
            }
        }
    }
    untouched.finish().await;
    fleet.counted_exactly(&bob).await;
}

/// The bar: commit to last byte at the origin, p99 below 500 ms; back as fast.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocation_and_return_are_fast() {
    // Time is judged in the long run only; the short one shows that the measure measures.
    let rounds = if crate::full() { 100 } else { 2 };
    let fleet = Fleet::start(Store::Sqlite, 3).await;
    let alice = fleet.user("alice", json!({})).await;
    let path = format!("/users/{}", alice.id);
    let devices = Devices::of(&fleet, &alice).await;
    let (mut out, mut back) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let loads = devices.load(&alice, OnCut::End).await;
        // Asked, which is before it is committed.
        let asked = Instant::now();
        fleet.rest.patch(&path, json!({"status": "disabled"})).await;
        for load in &loads {
            load.until_cut(STREAMS).await;
        }
        silence(&alice).await;
        out.push(alice.origin.last_byte().saturating_duration_since(asked));
        for load in loads {
            load.finish().await;
        }
        let links = fleet.links_of_disabled(&alice).await;
        assert!(
            links.is_empty(),
            "a disabled user's subscription is empty: {links}"
        );
        let asked = Instant::now();
        fleet.rest.patch(&path, json!({"status": "active"})).await;
        for at in 0..fleet.nodes.len() {
            fleet.applied(at).await;
        }
        back.push(asked.elapsed());
    }
    let p99 = |times: &mut Vec<Duration>| {
        times.sort();
        times[(times.len() * 99).div_ceil(100) - 1]
    };
    let (out, back) = (p99(&mut out), p99(&mut back));
    crate::say(&format!(
        "revocation, {rounds} rounds, 3 nodes, {} devices: asked to last byte p99 {out:.1?}; asked \
         to let in again p99 {back:.1?}",
        devices.doors.len()
    ));
    assert!(out > Duration::ZERO);
    if crate::full() {
        assert!(out < Duration::from_millis(500), "{out:?}");
        assert!(back < Duration::from_millis(500), "{back:?}");
    }
}
