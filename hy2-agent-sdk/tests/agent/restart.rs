use std::time::Duration;

use hy2_agent_sdk::{
    Agent,
    hy2_core::Client,
    hy2_proto::control::rpc::{
        EngineState, GetInfoRequest, NodeDesiredState, RestartEngineRequest, SetStateRequest,
    },
};
use tokio::{net::UnixStream, task::JoinHandle};

use crate::{
    fleet::{World, client_config},
    master::{NodeClient, node_client},
    origin::{Echo, Traffic},
    soon,
};

const ALICE: &str = "alice's credential";
const BOB: &str = "bob's credential";

/// Longer than any test may take.
const LONG: i64 = 3600;

pub(crate) async fn local(world: &World) -> NodeClient {
    let path = world.folder.path().join("agent.sock");
    node_client(UnixStream::connect(path).await.expect("connects")).await
}

pub(crate) fn within(seconds: i64) -> RestartEngineRequest {
    RestartEngineRequest {
        grace: Some(prost_types::Duration { seconds, nanos: 0 }),
    }
}

fn order(state: NodeDesiredState) -> SetStateRequest {
    SetStateRequest {
        state: state.into(),
        deadline: None,
    }
}

/// Asks for a restart and returns when it waits for connections to finish.
async fn asked(world: &World, seconds: i64) -> JoinHandle<Result<(), tonic::Status>> {
    let mut node = local(world).await;
    let restart = tokio::spawn(async move {
        let answer = node.restart_engine(within(seconds)).await;
        answer.map(|_| ())
    });
    until_reason(world, "to be restarted").await;
    restart
}

async fn until_reason(world: &World, reason: &str) {
    let agent = world.agent.as_ref().expect("it runs");
    let mut status = agent.handle().status();
    let found = status.wait_for(|status| status.reason == reason);
    soon(reason, found).await.expect("alive");
}

async fn restarted(restart: JoinHandle<Result<(), tonic::Status>>) {
    let answer = soon("the restart", restart).await.expect("no panic");
    answer.expect("restarted");
}

#[tokio::test]
async fn everything_changes_while_a_restart_waits_for_connections_to_finish() {
    let mut world = World::with_users(&[(1, ALICE), (2, BOB)]).await;
    world.start().await;
    let echo = Echo::start().await;
    let (alice, bob) = (world.client(ALICE).await, world.client(BOB).await);
    let of_alice = Traffic::start(&alice, &echo.target(), 1, 100).await;
    let of_bob = Traffic::start(&bob, &echo.target(), 1, 100).await;

    let restart = asked(&world, LONG).await;
    world.is_refused(BOB).await;
    world
        .master
        .publish_acked(|desired| {
            desired.users.remove(&1);
        })
        .await;
    soon("the end", of_alice.until_cut()).await;
    world
        .master
        .publish_acked(|desired| desired.config.speed_test = true)
        .await;
    let mut node = local(&world).await;
    let info = soon("an answer", node.get_info(GetInfoRequest {})).await;
    let info = info.expect("told").into_inner().info.expect("there");
    assert_eq!(
        (info.engine(), info.manifest_rev),
        (EngineState::Draining, 3)
    );
    assert!(!restart.is_finished());

    // The last stream's end is the wait's.
    assert!(of_bob.finish().await > 0);
    restarted(restart).await;
    world.client(BOB).await.close().await;
    world.is_refused(ALICE).await;
}

#[tokio::test]
async fn who_asks_for_another_restart_shares_it_and_the_shorter_grace_counts() {
    let mut world = World::with_users(&[(1, ALICE)]).await;
    world.start().await;
    let echo = Echo::start().await;
    let alice = world.client(ALICE).await;
    let traffic = Traffic::start(&alice, &echo.target(), 1, 100).await;
    let first = asked(&world, LONG).await;
    // Who leaves does not stop it.
    let gone = asked(&world, LONG).await;
    gone.abort();
    let second = asked(&world, 2 * LONG).await;
    assert!(!first.is_finished() && !second.is_finished());
    let mut node = local(&world).await;
    soon("the third", node.restart_engine(within(0)))
        .await
        .expect("restarted");
    restarted(first).await;
    restarted(second).await;
    soon("the end", traffic.until_cut()).await;
    world.client(ALICE).await.close().await;
}

#[tokio::test]
async fn an_ordered_state_outlives_restarts_until_the_next_manifest() {
    let mut world = World::with_users(&[(1, ALICE)]).await;
    world.start().await;
    let mut node = local(&world).await;
    for state in [
        NodeDesiredState::Disabled,
        NodeDesiredState::Maintenance,
        NodeDesiredState::Draining,
    ] {
        // Before, and while the restart waits.
        for before in [true, false] {
            let echo = Echo::start().await;
            let alice = world.client(ALICE).await;
            let traffic = Traffic::start(&alice, &echo.target(), 1, 100).await;
            if before {
                node.set_state(order(state)).await.expect("ordered");
                node.restart_engine(within(0)).await.expect("restarted");
            } else {
                let restart = asked(&world, LONG).await;
                node.set_state(order(state)).await.expect("ordered");
                node.restart_engine(within(0)).await.expect("restarted");
                restarted(restart).await;
            }
            soon("the end", traffic.until_cut()).await;
            world.is_refused(ALICE).await;
            let status = world.agent.as_ref().expect("it runs").handle().status();
            assert_eq!(status.borrow().desired, state);
            world.master.publish_acked(|_| {}).await;
            world.client(ALICE).await.close().await;
        }
    }
}

#[tokio::test]
async fn the_agent_ends_while_a_restart_waits() {
    let mut world = World::with_users(&[(1, ALICE)]).await;
    world.start().await;
    let echo = Echo::start().await;
    let alice = world.client(ALICE).await;
    let traffic = Traffic::start(&alice, &echo.target(), 1, 100).await;
    let restart = asked(&world, LONG).await;
    world.shutdown().await;
    soon("the end", traffic.until_cut()).await;
    let refused = soon("the answer", restart).await.expect("no panic");
    refused.expect_err("no restart");
    world.start().await;
    world.client(ALICE).await.close().await;
}

#[tokio::test]
async fn who_is_revoked_while_the_agent_ends_is_cut_and_its_last_settings_are_the_next_ones() {
    let mut world = World::with_users(&[(1, ALICE), (2, BOB)]).await;
    let mut config = world.agent_config();
    config.stop_grace = Duration::from_secs(LONG.unsigned_abs());
    let agent = Agent::spawn(config).await.expect("starts");
    world.agent = Some(agent);
    world.master.acked(1).await;
    let echo = Echo::start().await;
    let (alice, bob) = (world.client(ALICE).await, world.client(BOB).await);
    let of_alice = Traffic::start(&alice, &echo.target(), 1, 100).await;
    let of_bob = Traffic::start(&bob, &echo.target(), 1, 100).await;
    let address = world.agent.as_ref().expect("it runs").handle().listening()[0];
    let agent = world.agent.take().expect("it runs");
    let ended = tokio::spawn(agent.shutdown());
    // Turned away before it may say who it is: the server drains.
    let config = client_config(&world.site, address.port(), BOB);
    soon("the drain", async {
        while let Ok(client) = Client::connect(config.clone()).await {
            client.close().await;
        }
    })
    .await;
    world
        .master
        .publish_acked(|desired| {
            desired.users.remove(&1);
        })
        .await;
    soon("the end", of_alice.until_cut()).await;
    let rev = world
        .master
        .publish_acked(|desired| desired.config.speed_test = true)
        .await;
    assert!(!ended.is_finished());
    assert!(of_bob.finish().await > 0);
    soon("shutdown", ended).await.expect("no panic");
    // From its ledger, without a word of the master's.
    world.master.stop().await;
    let handle = world.start_with(|builder| builder).await;
    assert_eq!(handle.status().borrow().manifest_rev, rev);
    world.client(BOB).await.close().await;
    world.is_refused(ALICE).await;
}
