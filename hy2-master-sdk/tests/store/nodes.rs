//! Nodes: how they come in, what they should run, when they are believed gone.

use std::time::Duration;

use hy2_master_sdk::domain::{ConfigScope, DesiredState, ObservedState, UserId, UserStatus};
use hy2_master_sdk::store::StoreError;
use hy2_master_sdk::store::certificates::{self, NewToken};
use hy2_master_sdk::store::observed::{self, Opening, Seen};
use hy2_master_sdk::store::published::{self, NewConfig};
use uuid::Uuid;

use crate::backend::Backend;
use crate::rows::{NOW, node, revs, user};
use crate::users::told;

pub(crate) async fn what_is_written_is_read_back(backend: &Backend) {
    let store = &backend.store;
    let node = node(store, "one").await;
    let user = user(store, "ann").await;
    let reopened = backend.reopen().await;
    let row = reopened.node(node).await.unwrap();
    assert_eq!(
        (row.name.as_str(), row.listen_port, row.desired_state),
        ("one", 8080, DesiredState::Active)
    );
    assert_eq!(row.tags.0, ["a"]);
    assert_eq!(reopened.node_by_uid(row.uid).await.unwrap().id, node);
    let row = reopened.user(user).await.unwrap();
    assert_eq!(
        (row.username.as_str(), row.status, row.used()),
        ("ann", UserStatus::Active, 0)
    );
    assert_eq!(row.created_at, NOW);
    assert_eq!(reopened.user_by_name("ann").await.unwrap().id, user);
    assert_eq!(reopened.users(None, 10).await.unwrap().len(), 1);
    assert!(reopened.users(Some(user), 10).await.unwrap().is_empty());
    assert!(matches!(
        reopened.user(UserId(99)).await,
        Err(StoreError::NotFound("user"))
    ));
}

pub(crate) async fn a_token_is_used_once_by_a_hundred_at_once(backend: &Backend) {
    let store = &backend.store;
    let token = NewToken {
        secret_hash: [7; 32],
        label: String::new(),
        bind_cidr: None,
        region_id: None,
        tags: Vec::new(),
        expires_at: NOW.plus(Duration::from_secs(900)),
        created_by: None,
    };
    let mut tx = store.begin().await.unwrap();
    let row = certificates::create_token(&mut tx, &token, NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let tries = (0..100_u8).map(|key| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut tx = store.begin().await.unwrap();
            let used = certificates::use_token(&mut tx, row.id, &[key; 32], NOW)
                .await
                .unwrap();
            tx.commit().await.unwrap();
            used
        })
    });
    let mut used = 0;
    for attempt in tries.collect::<Vec<_>>() {
        used += usize::from(attempt.await.unwrap());
    }
    assert_eq!(used, 1);
    let mut tx = store.begin().await.unwrap();
    assert!(
        certificates::revoke_token(&mut tx, row.id, NOW)
            .await
            .is_err()
    );
    let late = NewToken {
        secret_hash: [8; 32],
        expires_at: NOW,
        ..token
    };
    let late = certificates::create_token(&mut tx, &late, NOW)
        .await
        .unwrap();
    assert!(
        !certificates::use_token(&mut tx, late.id, &[1; 32], NOW)
            .await
            .unwrap()
    );
}

pub(crate) async fn silence_makes_a_node_suspect_then_offline_and_a_heartbeat_brings_it_back(
    backend: &Backend,
) {
    let store = &backend.store;
    let node = node(store, "one").await;
    let opening = Opening {
        agent_version: "1".to_owned(),
        capabilities: Vec::new(),
        hostname: "h".to_owned(),
        listening: Vec::new(),
        boot_id: None,
        engine_state: hy2_master_sdk::domain::EngineState::Serving,
    };
    let master = Uuid::from_u128(1);
    let first = store
        .open_session(node, master, &opening, NOW)
        .await
        .unwrap()
        .unwrap();
    let second = store
        .open_session(node, master, &opening, NOW)
        .await
        .unwrap()
        .unwrap();
    assert!(second > first);
    assert!(matches!(
        store.note_applied(node, first, 1, 1, NOW).await,
        Err(StoreError::Fenced(_))
    ));
    store.note_applied(node, second, 1, 1, NOW).await.unwrap();
    let state = async || store.node(node).await.unwrap().observed_state;
    let silent = async |seconds: u64| {
        let now = NOW.plus(Duration::from_secs(seconds));
        let mut tx = store.begin().await.unwrap();
        let (suspect, offline) = (
            now.minus(Duration::from_secs(25)),
            now.minus(Duration::from_secs(40)),
        );
        observed::expire_silent(&mut tx, suspect, offline, now)
            .await
            .unwrap();
        tx.commit().await.unwrap();
    };
    silent(24).await;
    assert_eq!(state().await, ObservedState::Online);
    silent(25).await;
    assert_eq!(state().await, ObservedState::Suspect);
    silent(40).await;
    assert_eq!(state().await, ObservedState::Offline);
    let seen = Seen {
        node,
        at: NOW.plus(Duration::from_secs(50)),
        connections: 3,
        users_online: 2,
    };
    store.note_seen(&[seen], seen.at).await.unwrap();
    let row = store.node(node).await.unwrap();
    assert_eq!(
        (row.observed_state, row.connections),
        (ObservedState::Online, 3)
    );
    assert_eq!(row.last_seen_at, Some(seen.at));
    assert_eq!(row.state_reason, "");
    // Told is what an operator has to know: not every late heartbeat, nothing twice.
    store.note_seen(&[seen], seen.at).await.unwrap();
    silent(80).await;
    silent(200).await;
    silent(201).await;
    for _ in 0..2 {
        store
            .open_session(node, master, &opening, NOW.plus(Duration::from_secs(202)))
            .await
            .unwrap();
    }
    // Seen by a clock that was a month ahead, and not since it is right.
    let ahead = NOW.plus(Duration::from_secs(30 * 86_400));
    let seen = Seen { at: ahead, ..seen };
    store.note_seen(&[seen], ahead).await.unwrap();
    silent(300).await;
    let seen_at = store.node(node).await.unwrap().last_seen_at;
    assert_eq!(seen_at, Some(NOW.plus(Duration::from_secs(300))));
    assert_eq!(state().await, ObservedState::Online);
    silent(340).await;
    assert_eq!(state().await, ObservedState::Offline);
    let told = told(store).await;
    let said = told.iter().map(|event| event.topic.as_str());
    assert_eq!(
        said.collect::<Vec<_>>(),
        [
            "node.online",
            "node.offline",
            "node.online",
            "node.offline",
            "node.online",
            "node.offline"
        ]
    );
    assert_eq!(told[1].key, node.to_string());
    assert_eq!(
        told[1].payload.0,
        serde_json::json!({
            "id": node.0, "name": "one", "observed_state": "offline", "state_reason": "no heartbeat",
        })
    );
    let mut tx = store.begin().await.unwrap();
    certificates::revoke_node(&mut tx, node, "stolen", NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(
        store
            .open_session(node, master, &opening, NOW)
            .await
            .unwrap(),
        None
    );
}

pub(crate) async fn configurations_concern_their_nodes_and_going_back_is_going_on(
    backend: &Backend,
) {
    let store = &backend.store;
    let nodes = [node(store, "one").await, node(store, "two").await];
    let append = async |scope, scope_id, body: serde_json::Value| {
        let new = NewConfig {
            scope,
            scope_id,
            body,
            author: None,
            message: "m".to_owned(),
        };
        let mut tx = store.begin().await.unwrap();
        let row = published::append_config(&mut tx, &new, NOW).await.unwrap();
        tx.commit().await.unwrap();
        row
    };
    let first = append(
        ConfigScope::Fleet,
        0,
        serde_json::json!({"speed_test": true}),
    )
    .await;
    assert_eq!(revs(store, &nodes).await, [2, 2]);
    append(
        ConfigScope::Node,
        nodes[1].0,
        serde_json::json!({"udp_idle_s": 9}),
    )
    .await;
    assert_eq!(revs(store, &nodes).await, [2, 3]);
    let back = append(ConfigScope::Fleet, 0, first.body.0.clone()).await;
    assert_eq!(back.parent, Some(first.id));
    assert!(back.id > first.id);
    assert_eq!(back.sha256, first.sha256);
    let mut tx = store.snapshot().await.unwrap();
    let bodies = published::configs_of(&mut tx, nodes[1], None)
        .await
        .unwrap();
    assert_eq!(bodies.len(), 2);
    assert_eq!(bodies[1]["udp_idle_s"], 9);
    assert_eq!(
        store.configs(ConfigScope::Fleet, 0, None, 9).await.unwrap()[0].id,
        back.id
    );
}
