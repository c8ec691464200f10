//! Rows that tests make.

use hy2_master_sdk::domain::{AssignmentSource, NodeId, Timestamp, UserId, UserStatus};
use hy2_master_sdk::store::Store;
use hy2_master_sdk::store::assignments::{self, NewAssignment};
use hy2_master_sdk::store::nodes::{self, NewNode};
use hy2_master_sdk::store::traffic::{Batch, BatchRow};
use hy2_master_sdk::store::users::{self, NewUser};
use uuid::Uuid;

pub(crate) const NOW: Timestamp = Timestamp(1_800_000_000_000);

pub(crate) async fn node(store: &Store, name: &str) -> NodeId {
    let mut tx = store.begin().await.unwrap();
    let row = nodes::create(&mut tx, &new_node(name), NOW).await.unwrap();
    tx.commit().await.unwrap();
    row.id
}

pub(crate) async fn user(store: &Store, name: &str) -> UserId {
    user_with(store, name, |_| {}).await
}

pub(crate) async fn user_with(
    store: &Store,
    name: &str,
    shape: impl FnOnce(&mut NewUser),
) -> UserId {
    let mut new = new_user(name);
    shape(&mut new);
    let mut tx = store.begin().await.unwrap();
    let row = users::create(&mut tx, &new, NOW).await.unwrap();
    tx.commit().await.unwrap();
    row.id
}

pub(crate) async fn assign(store: &Store, user: UserId, node: NodeId) {
    let new = NewAssignment {
        user_id: user,
        node_id: node,
        rank: 0,
        source: AssignmentSource::Manual,
        score: None,
    };
    let mut tx = store.begin().await.unwrap();
    assignments::assign(&mut tx, &new, NOW).await.unwrap();
    tx.commit().await.unwrap();
}

pub(crate) fn batch(
    node: NodeId,
    spool: Uuid,
    first: i64,
    last: i64,
    rows: &[(i64, i64, i64)],
) -> Batch {
    Batch {
        node,
        spool,
        first_seq: first,
        last_seq: last,
        at: NOW,
        multiplier: 1_000_000_000,
        rows: rows
            .iter()
            .map(|(user, tx, rx)| BatchRow {
                user: *user,
                tx: *tx,
                rx: *rx,
                seen: NOW,
                leases: Vec::new(),
            })
            .collect(),
    }
}

pub(crate) fn new_node(name: &str) -> NewNode {
    NewNode {
        uid: Uuid::new_v4(),
        name: name.to_owned(),
        public_host: "192.0.2.1".to_owned(),
        listen_port: 8080,
        region_id: None,
        tags: vec!["a".to_owned()],
    }
}

pub(crate) fn new_user(name: &str) -> NewUser {
    let uid = Uuid::new_v4();
    NewUser {
        uid,
        username: name.to_owned(),
        admin_id: None,
        plan_id: None,
        status: UserStatus::Active,
        seed_enc: vec![1],
        credential_enc: None,
        auth_hash: None,
        subscription_hash: uid.as_bytes().repeat(2),
        subscription_enc: vec![2],
        expires_at: None,
        hold_duration_ms: None,
        hold_deadline: None,
        quota_bytes: None,
        max_devices: None,
        max_connections: None,
        up_bytes_per_s: None,
        down_bytes_per_s: None,
        home_region_id: None,
        email: None,
        telegram_id: None,
        note: String::new(),
        tags: Vec::new(),
    }
}

pub(crate) async fn revs<const N: usize>(store: &Store, nodes: &[NodeId; N]) -> [i64; N] {
    let mut revs = [0; N];
    for (rev, node) in revs.iter_mut().zip(nodes) {
        *rev = store.node(*node).await.unwrap().desired_rev;
    }
    revs
}
