//! One fleet served by two orchestrators on one database, each with a part of the work.

use serde_json::json;
use tokio::net::TcpStream;

use crate::{
    client::{Ping, ping},
    fleet::{Fleet, Store},
    ports,
    rest::fetch,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_process_decides_the_nodes_of_another_do() {
    let mut fleet = Fleet::start(Store::Postgres, 1).await;
    let (api, public) = (fleet.api(), fleet.public());
    fleet.stop_master().await;
    let (first, second) = (ports::free(), ports::free());
    let mut agents = fleet.start_roles(&["agents"], first);
    crate::until("the figures of one that serves nobody else", || async {
        figures(first).await
    })
    .await;
    for port in [api, public] {
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
    }
    let front = fleet.start_roles(&["api", "public"], second);
    fleet.master_ready().await;
    fleet.serving().await;
    let text = figures(second).await.expect("figures");
    assert!(text.contains("hy2_"), "{text}");
    // Made here, served there.
    let alice = fleet.user("alice", json!({})).await;
    let uri = fleet.links(&alice).await.pop().expect("a link");
    let reach = || ping(fleet.path(), &uri, "", alice.origin.tcp);
    crate::until("the user", || async {
        let found = reach().await;
        found.arrived().then_some(()).ok_or(found.said)
    })
    .await;
    fleet.counted_exactly(&alice).await;
    let path = format!("/users/{}", alice.id);
    fleet.rest.patch(&path, json!({"status": "disabled"})).await;
    crate::until("the end of the user", || async {
        let found = reach().await;
        (found.code == Ping::REFUSED)
            .then_some(())
            .ok_or(found.said)
    })
    .await;
    // Neither needs the other to run.
    assert!(front.terminate().await.success());
    assert!(agents.ended().is_none());
    assert!(agents.terminate().await.success());
}

async fn figures(port: u16) -> Result<String, String> {
    fetch(&format!("http://127.0.0.1:{port}/metrics")).await
}
