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
    fleet.counted_exactly(&alice).await;
    fleet.rest.delete(&first).await;
    refused(&fleet, &links[0], &alice).await;
    // Neither a start of the agent nor another set of users brings it back.
    fleet.kill_agent(0).await;
    fleet.start_agent(0);
    fleet.user("bob", json!({})).await;
    refused(&fleet, &links[0], &alice).await;
    fleet.counted_exactly(&alice).await;

    // One that is away: what it has on its disk is good for days without a master.
    let before = ping(fleet.path(), &links[1], "", alice.origin.tcp).await;
    assert!(before.arrived(), "{}", before.said);
    fleet.kill_agent(1).await;
    let second = format!("/nodes/{}", fleet.nodes[1].id);
    crate::until("the deletion of a node that is away", || async {
        let asked = fleet.rest.try_call(Method::DELETE, &second, None).await?;
        match asked.0.is_success() {
            true => Ok(()),
            false => Err(asked.1.to_string()),
        }
    })
    .await;
    fleet.start_agent(1);
    refused(&fleet, &links[1], &alice).await;
    fleet.kill_master().await;
    fleet.kill_agent(1).await;
    fleet.start_agent(1);
    crate::until("the agent", || fleet.agent_says(1)).await;
    let after = ping(fleet.path(), &links[1], "", alice.origin.tcp).await;
    assert!(!after.arrived(), "{}", after.said);
}

/// Waits until a node lets a user in no more, or does not answer at all.
async fn refused(fleet: &Fleet, uri: &str, user: &User) {
    crate::until("the refusal", || async {
        let found = ping(fleet.path(), uri, "timeout: 2s\n", user.origin.tcp).await;
        match found.arrived() {
            true => Err(found.said),
            false => Ok(()),
        }
    })
    .await;
}
