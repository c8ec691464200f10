//! Nodes that are deleted, while they serve and while they are away.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::json;

use crate::{
    client::{Ours, Ping, ping},
    fleet::{Fleet, Store, User},
    load::{Load, OnCut, Plan},
};

const PLAN: Plan = Plan {
    streams: 2,
    datagrams: 1,
    chunk: 8 << 10,
    pause: Duration::from_millis(10),
    on_cut: OnCut::End,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_node_serves_nobody_and_what_it_counted_stays() {
    let mut fleet = Fleet::start(Store::Sqlite, 2).await;
    let alice = fleet.user("alice", json!({})).await;
    let links = fleet.links(&alice).await;
    let client = Ours::start(fleet.path(), &links[0]).await;
    let targets = (alice.origin.tcp, alice.origin.udp);
    let load = Load::start(client.door, targets, PLAN, 1).await;
    load.more(20).await;

    // Of one that serves, what it has not reported yet would be lost.
    let first = format!("/nodes/{}", fleet.nodes[0].id);
    let (status, why) = fleet
        .rest
        .try_call(Method::DELETE, &first, None)
        .await
        .expect("an answer");
    assert_eq!(status, StatusCode::CONFLICT, "{why}");
    assert_eq!(why["code"], "node_serving", "{why}");
    load.more(20).await;

    let disabled = json!({"state": "disabled"});
    fleet.rest.put(&format!("{first}/state"), disabled).await;
    load.until_cut(PLAN.streams).await;
    load.finish().await;
    counted_but_for_last_answers(&fleet, &alice).await;
    fleet.rest.delete(&first).await;
    refused(&fleet, &links[0], &alice).await;
    // Neither a start of the agent nor another set of users brings it back.
    fleet.kill_agent(0).await;
    fleet.start_agent(0);
    let bob = json!({"username": "bob", "node_ids": [fleet.nodes[1].id]});
    fleet.rest.post("/users", bob).await;
    refused(&fleet, &links[0], &alice).await;
    counted_but_for_last_answers(&fleet, &alice).await;

    // One that is away: what it has on its disk is good for days without a master.
    let before = ping(fleet.path(), &links[1], "", alice.origin.tcp).await;
    assert!(before.arrived(), "{}", before.said);
    fleet.kill_agent(1).await;
    let second = format!("/nodes/{}", fleet.nodes[1].id);
    // Without the disabling it goes once the master calls it offline.
    let disabled = json!({"state": "disabled"});
    fleet.rest.put(&format!("{second}/state"), disabled).await;
    fleet.rest.delete(&second).await;
    fleet.start_agent(1);
    refused(&fleet, &links[1], &alice).await;
    fleet.kill_master().await;
    fleet.kill_agent(1).await;
    fleet.start_agent(1);
    refused(&fleet, &links[1], &alice).await;
}

/// Waits until REST says what the origin says, but for the answers on their way when the user was cut off: the origin
/// has written them, and nobody read them any more.
async fn counted_but_for_last_answers(fleet: &Fleet, user: &User) {
    let most = (PLAN.streams + PLAN.datagrams) as u64 * PLAN.chunk as u64;
    crate::until("REST to say what the origin says", || async {
        let (origin, rest) = (user.origin.bytes(), fleet.counted(user).await?);
        let unread = origin.1.checked_sub(rest.1);
        match origin.0 == rest.0 && unread.is_some_and(|unread| unread <= most) {
            true => Ok(()),
            false => Err(format!("origin {origin:?}, REST {rest:?}")),
        }
    })
    .await;
}

/// Waits until a node runs and lets a user in no more.
async fn refused(fleet: &Fleet, uri: &str, user: &User) {
    crate::until("the refusal", || async {
        let found = ping(fleet.path(), uri, "", user.origin.tcp).await;
        let refused = found.code == Ping::REFUSED;
        refused.then_some(()).ok_or(found.said)
    })
    .await;
}
