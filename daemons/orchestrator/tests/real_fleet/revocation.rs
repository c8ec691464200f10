//! Whoever is disabled, expired, deleted or kicked is cut off: TCP and UDP, every device, every
//! node. The long run also measures how fast.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::task::JoinSet;

use crate::{
    client::{Ours, Ping, Reference, let_in, ping},
    fleet::{Fleet, Store, User},
    load::{Door, Load, OnCut, Plan},
    random::Random,
    stubs::Stubs,
};

/// Every node has a client of ours and one of the reference's.
struct Devices {
    links: Vec<String>,
    doors: Vec<Door>,
    _ours: Vec<Ours>,
    _reference: Vec<Reference>,
}

const STREAMS: usize = 2;

impl Devices {
    async fn of(fleet: &Fleet, user: &User) -> Self {
        let mut devices = Self {
            links: fleet.links(user).await,
            doors: Vec::new(),
            _ours: Vec::new(),
            _reference: Vec::new(),
        };
        for uri in &devices.links {
            let ours = Ours::start(fleet.path(), uri).await;
            devices.doors.push(ours.door);
            devices._ours.push(ours);
            let mut reference = Reference::start(uri).await;
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Disabled,
    Expired,
    Kicked,
    Deleted,
}

const WAYS: [Way; 4] = [Way::Disabled, Way::Expired, Way::Kicked, Way::Deleted];

/// What was measured of a way.
#[derive(Debug, Default)]
struct Times {
    /// Until the last byte of every stream and session that was live came to the origin.
    last_byte: Vec<Duration>,
    /// Until the slowest of the other nodes had cut.
    stubs: Vec<Duration>,
    /// Until every real node let a client in again, with a byte from the origin.
    back: Vec<Duration>,
}

/// The bar: commit to last byte at the origin p99 below 500 ms, and back as fast, with three real
/// engines and 200 further agents that serve the user too, on the same master. The user has a quota.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocation_and_return_are_fast() {
    // Time is judged in the long run only; the short one shows that the measure measures.
    let (rounds, stubs) = if crate::full() { (50, 200) } else { (1, 20) };
    let mut random = Random::seeded("revocation");
    let fleet = Fleet::start(Store::Sqlite, 3).await;
    let mut stubs = Stubs::join(&fleet, stubs).await;
    let (mut user, mut devices) = everywhere(&fleet, &stubs, "alice-0").await;
    let mut times = BTreeMap::<Way, Times>::new();
    for way in random.order(&WAYS, rounds) {
        let of_way = times.entry(way).or_default();
        round(
            &fleet,
            &mut stubs,
            (&user, &devices),
            way,
            of_way,
            &mut random,
        )
        .await;
        if way == Way::Deleted {
            let name = format!("alice-{}", of_way.last_byte.len());
            (user, devices) = everywhere(&fleet, &stubs, &name).await;
        }
    }
    for (way, times) in &mut times {
        let (last_byte, cut, back) = (
            p99(&mut times.last_byte),
            p99(&mut times.stubs),
            p99(&mut times.back),
        );
        crate::say(&format!(
            "{way:?}, {rounds} rounds, 3 nodes, {} devices, {} more nodes: last byte at the origin \
             p99 {last_byte:.1?}, slowest of the other nodes p99 {cut:.1?}, let in again p99 {back:.1?}",
            devices.doors.len(),
            stubs.ids.len(),
        ));
        if crate::full() {
            for (what, time) in [("out", last_byte), ("cut", cut), ("back", back)] {
                assert!(time < BAR, "{way:?} {what}: {time:?}");
            }
        }
    }
}

const BAR: Duration = Duration::from_millis(500);

/// Makes a user whom every node serves, with devices on the real ones.
async fn everywhere(fleet: &Fleet, stubs: &Stubs, name: &str) -> (User, Devices) {
    // With a quota: whoever comes back waits for a slice, too.
    let quota = json!({"quota_bytes": 1_u64 << 40});
    let user = fleet.user(name, quota).await;
    // A subscription names some nodes of very many: the links are taken while these are all.
    let devices = Devices::of(fleet, &user).await;
    for node in &stubs.ids {
        let assigned = json!({"user_id": user.id, "node_id": node});
        fleet.rest.post("/assignments", assigned).await;
    }
    fleet.everybody_runs_what_is_desired().await;
    (user, devices)
}

async fn round(
    fleet: &Fleet,
    stubs: &mut Stubs,
    (user, devices): (&User, &Devices),
    way: Way,
    times: &mut Times,
    random: &mut Random,
) {
    let path = format!("/users/{}", user.id);
    let loads = devices.load(user, OnCut::End).await;
    let all = devices.doors.len() * (STREAMS + 1);
    let talking = crate::until("every stream and session", || async {
        let talking = user.origin.talking();
        match talking.len() == all {
            true => Ok(talking),
            false => Err(format!("{} of {all}", talking.len())),
        }
    })
    .await;
    // At another place of everybody's work each time.
    tokio::time::sleep(Duration::from_millis(random.below(200))).await;
    // Asked, which is before it is committed.
    let mut asked = Instant::now();
    match way {
        Way::Disabled => {
            fleet.rest.patch(&path, json!({"status": "disabled"})).await;
        }
        Way::Expired => {
            let ahead = Duration::from_millis(700);
            let at = (OffsetDateTime::now_utc() + ahead).format(&Rfc3339);
            asked += ahead;
            let end = json!({"expires_at": at.expect("a date")});
            fleet.rest.patch(&path, end).await;
        }
        Way::Kicked => {
            let reach = fleet.rest.post(&format!("{path}/kick"), json!({})).await;
            assert_eq!(reach["unreachable"], json!([]), "{reach}");
        }
        Way::Deleted => {
            fleet.rest.delete(&path).await;
        }
    }
    for load in &loads {
        load.until_cut(STREAMS).await;
    }
    times.stubs.push(stubs.cut(user.id, asked).await);
    if way == Way::Kicked {
        // Programs come back; what was cut says nothing more.
        crate::until("silence of what was cut", || async {
            let last = user.origin.last_byte_of(&talking).expect("it talked");
            match last.elapsed() > Duration::from_millis(700) {
                true => Ok(()),
                false => Err(format!("{:?} ago", last.elapsed())),
            }
        })
        .await;
    } else {
        silence(user).await;
    }
    let last = user.origin.last_byte_of(&talking).expect("it talked");
    let after = last.saturating_duration_since(asked);
    assert!(
        after > Duration::ZERO || way == Way::Expired,
        "all were cut before it was asked"
    );
    times.last_byte.push(after);
    for load in loads {
        load.finish().await;
    }
    if way == Way::Deleted || way == Way::Kicked {
        return;
    }
    // That a time is over is noted by a task; nodes know it by themselves.
    crate::until("an empty subscription", || async {
        let links = fleet.links_of_disabled(user).await;
        match links.is_empty() {
            true => Ok(()),
            false => Err(links),
        }
    })
    .await;
    let mut returning = JoinSet::new();
    for uri in devices.links.clone() {
        let target = user.origin.tcp;
        returning.spawn(async move { let_in(&uri, target).await });
    }
    let asked = Instant::now();
    let change = match way {
        Way::Disabled => json!({"status": "active"}),
        _ => {
            let later = OffsetDateTime::now_utc() + Duration::from_secs(86_400);
            json!({"expires_at": later.format(&Rfc3339).expect("a date")})
        }
    };
    fleet.rest.patch(&path, change).await;
    let mut back = Duration::ZERO;
    while let Some(at) = returning.join_next().await {
        back = back.max(at.expect("no panic").saturating_duration_since(asked));
    }
    assert!(back > Duration::ZERO, "nobody was in before it was asked");
    times.back.push(back);
    fleet.everybody_runs_what_is_desired().await;
}

/// The time that 99 of 100 stay below; nothing when nothing was measured.
fn p99(times: &mut [Duration]) -> Duration {
    times.sort();
    let at = (times.len() * 99).div_ceil(100);
    at.checked_sub(1).map_or(Duration::ZERO, |at| times[at])
}
