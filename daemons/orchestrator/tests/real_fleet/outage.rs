//! The master is gone, and agents are killed and started again meanwhile.

use std::time::{Duration, Instant};

use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    client::{Ours, Ping, ping},
    fleet::{Fleet, Store},
    load::{Load, OnCut, Plan},
    random::Random,
};

const CHUNK: usize = 8 << 10;

/// In the long run ten minutes; a day on a clock that is set is in hy2-agent-sdk's tests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_master_users_come_in_time_holds_and_every_byte_is_delivered_later() {
    let outage = Duration::from_secs(if crate::full() { 600 } else { 10 });
    let mut random = Random::seeded("outage");
    let mut fleet = Fleet::start(Store::Sqlite, 3).await;
    let alice = fleet.user("alice", json!({"max_devices": 3})).await;
    let bob = fleet.user("bob", json!({})).await;
    let carol = fleet.user("carol", json!({})).await;
    let (of_alice, of_bob, of_carol) = (
        fleet.links(&alice).await,
        fleet.links(&bob).await,
        fleet.links(&carol).await,
    );
    let plan = |on_cut| Plan {
        streams: 2,
        datagrams: 1,
        chunk: CHUNK,
        pause: Duration::from_millis(20),
        on_cut,
    };
    let (mut clients, mut loads) = (Vec::new(), Vec::new());
    for (user, links) in [(&alice, &of_alice), (&bob, &of_bob)] {
        for uri in links {
            let client = Ours::start(fleet.path(), uri).await;
            let targets = (user.origin.tcp, user.origin.udp);
            loads.push(Load::start(client.door, targets, plan(OnCut::Reopen), random.next()).await);
            clients.push(client);
        }
    }
    let client = Ours::start(fleet.path(), &of_carol[0]).await;
    let targets = (carol.origin.tcp, carol.origin.udp);
    let until_end = Load::start(client.door, targets, plan(OnCut::End), random.next()).await;

    // No sooner: on a busy machine it takes long until all of them are in.
    let ends = OffsetDateTime::now_utc() + outage.mul_f64(0.5) + Duration::from_secs(3);
    let change = json!({"expires_at": ends.format(&Rfc3339).expect("a date")});
    fleet
        .rest
        .patch(&format!("/users/{}", carol.id), change)
        .await;
    fleet.applied(0).await;
    fleet.kill_master().await;
    let gone = Instant::now();
    let mut kills = 0;
    let mut expired = false;
    while gone.elapsed() < outage || kills < 3 || !expired {
        let at = usize::try_from(random.below(3)).expect("few");
        // Not carol's node before her time is over: her end shall be the clock's doing.
        if at > 0 || expired {
            fleet.kill_agent(at).await;
            fleet.start_agent(at);
            kills += 1;
        }
        // From the ledger: everybody comes in again.
        for links in [&of_alice, &of_bob] {
            crate::until("a way in without a master", || async {
                let found = ping(fleet.path(), &links[at], "", bob.origin.tcp).await;
                found.arrived().then_some(()).ok_or(found.said)
            })
            .await;
        }
        for load in &loads {
            load.more(2).await;
        }
        if !expired && OffsetDateTime::now_utc() > ends {
            until_end.until_cut(2).await;
            let late = ping(fleet.path(), &of_carol[0], "", carol.origin.tcp).await;
            assert_eq!(late.code, Ping::REFUSED, "{}", late.said);
            expired = true;
        }
    }
    until_end.finish().await;
    for load in loads {
        load.finish().await;
    }
    fleet.start_master();
    fleet.master_ready().await;
    fleet.spool_is_store().await;
    // Each kill hit one node; of each user two streams and a session were on it.
    let bound = kills * 3 * CHUNK as u64;
    for user in [&alice, &bob] {
        let (origin, rest) = (
            user.origin.bytes(),
            fleet.counted(user).await.expect("counted"),
        );
        let off = (origin.0.abs_diff(rest.0), origin.1.abs_diff(rest.1));
        assert!(
            off.0 <= bound && off.1 <= bound,
            "{}: origin {origin:?}, REST {rest:?}, {kills} kills",
            user.name
        );
        crate::say(&format!(
            "outage of {:.0?}: {} moved {origin:?}, REST {rest:?}; off by {off:?} after {kills} kills",
            gone.elapsed(),
            user.name
        ));
    }
}
