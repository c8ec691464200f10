//! From REST to a subscription to real clients on every node, and back to REST.

use std::time::Duration;

use serde_json::json;

use crate::{
    client::{Ours, Reference},
    fleet::{Fleet, Store},
    load::{Load, OnCut, Plan},
};

const PLAN: Plan = Plan {
    streams: 3,
    datagrams: 1,
    chunk: 60_000,
    pause: Duration::from_millis(5),
    on_cut: OnCut::Fail,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_both_clients_move_on_every_node_is_in_rest_to_the_byte_on_sqlite() {
    moves_and_is_counted(Store::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_both_clients_move_on_every_node_is_in_rest_to_the_byte_on_postgresql() {
    moves_and_is_counted(Store::Postgres).await;
}

async fn moves_and_is_counted(store: Store) {
    let mut fleet = Fleet::start(store, 3).await;
    let alice = fleet.user("alice", json!({})).await;
    let bob = fleet.user("bob", json!({})).await;
    let mut clients = Vec::new();
    let mut references = Vec::new();
    let mut loads = Vec::new();
    for (seed, uri) in fleet.links(&alice).await.iter().enumerate() {
        let client = Ours::start(fleet.path(), uri).await;
        let targets = (alice.origin.tcp, alice.origin.udp);
        loads.push(Load::start(client.door, targets, PLAN, seed as u64).await);
        clients.push(client);
    }
    for (seed, uri) in fleet.links(&bob).await.iter().enumerate() {
        let mut client = Reference::start(uri).await;
        let door = client.forward(bob.origin.tcp, bob.origin.udp).await;
        let targets = (bob.origin.tcp, bob.origin.udp);
        loads.push(Load::start(door, targets, PLAN, 100 + seed as u64).await);
        references.push(client);
    }
    for load in &loads {
        load.more(100).await;
    }
    for load in loads {
        load.finish().await;
    }
    for user in [&alice, &bob] {
        fleet.counted_exactly(user).await;
        let (taken, given) = user.origin.bytes();
        assert!(taken > 1_000_000 && given == taken, "{taken} {given}");
    }
    fleet.spool_is_store().await;
    // And after everybody was told to end.
    for at in 0..fleet.nodes.len() {
        fleet.stop_agent(at).await;
    }
    for user in [&alice, &bob] {
        assert_eq!(fleet.counted(user).await, Ok(user.origin.bytes()));
    }
}
