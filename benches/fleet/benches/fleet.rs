//! Control plane: a node's configuration, who has a credential among 100,000, the tokens of the REST
//! interface, and a batch of traffic into the master's store.

use std::{
    hint::black_box,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hy2_agent_sdk::{
    hy2_proto::control::rpc::{self, NodeConfig},
    settings::NodeSettings,
    users::bench::{Users, credential},
};
use hy2_master_sdk::{
    auth::{
        api_token::ApiToken,
        jwt::{TokenKey, TokenSigner},
    },
    domain::{AdminId, NodeId, Timestamp, UserStatus},
    store::{
        Store, StoreOptions,
        nodes::{self, NewNode},
        traffic::{Batch, BatchRow},
        users::{self, NewUser},
    },
};
use uuid::Uuid;

const USERS: u64 = 100_000;
const NOW: Timestamp = Timestamp(1_800_000_000_000);

/// Rows of a batch.
const ROWS: i64 = 1_000;

fn config(criterion: &mut Criterion) {
    use prost::Message;
    let wire = node_config().encode_to_vec();
    let mut group = criterion.benchmark_group("config");
    group.throughput(Throughput::Bytes(wire.len() as u64));
    group.bench_function("decode and check", |bencher| {
        bencher.iter(|| {
            let config = NodeConfig::decode(black_box(&wire[..])).expect("valid");
            NodeSettings::parse(&Arc::new(config)).expect("valid")
        });
    });
    group.finish();
}

fn lookup(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let users = Users::new(folder.path(), USERS).expect("a table");
    let mut group = criterion.benchmark_group("users");
    group.throughput(Throughput::Elements(1));
    let known: Vec<String> = (1..=USERS).step_by(97).map(credential).collect();
    let mut at = 0;
    group.bench_function("find 1 of 100,000", |bencher| {
        bencher.iter(|| {
            at = (at + 1) % known.len();
            assert!(users.find(black_box(&known[at])).is_some());
        });
    });
    group.bench_function("find nobody", |bencher| {
        bencher.iter(|| {
            assert!(
                users
                    .find(black_box("a credential that nobody has"))
                    .is_none()
            )
        });
    });
    group.finish();
}

/// What each request to the REST interface brings, without what the store is asked about it.
fn tokens(criterion: &mut Criterion) {
    const SECONDS: i64 = NOW.0 / 1_000;
    let mut group = criterion.benchmark_group("tokens");
    group.throughput(Throughput::Elements(1));
    let key = || TokenKey::generate(Uuid::new_v4()).expect("a key");
    let signer = TokenSigner::new("a cluster", key(), vec![key()]);
    let issued = signer.issue(AdminId(7), Uuid::new_v4(), 3, SECONDS);
    let token = issued.expect("a token");
    group.bench_function("check of a session's, EdDSA", |bencher| {
        bencher.iter(|| signer.check(black_box(&token), SECONDS + 1).expect("valid"));
    });
    let token = ApiToken::generate();
    let (hash, text) = (token.hash(), token.reveal());
    group.bench_function("check of an API token", |bencher| {
        bencher.iter(|| {
            let token: ApiToken = black_box(&text).parse().expect("a token");
            assert!(token.matches(black_box(&hash)));
        });
    });
    group.finish();
}

fn ingest(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let (store, node, ids) = runtime.block_on(people(folder.path()));
    let spool = Uuid::new_v4();
    let mut sequence = 0;
    let mut group = criterion.benchmark_group("ingest");
    group.throughput(Throughput::Elements(ROWS as u64));
    group.bench_function("batch of 1,000 users into SQLite, synced", |bencher| {
        bencher.iter_custom(|rounds| {
            let batches: Vec<Batch> = (0..rounds)
                .map(|_| {
                    sequence += 1;
                    batch(node, spool, sequence, &ids)
                })
                .collect();
            let start = Instant::now();
            for batch in &batches {
                let done = runtime.block_on(store.ingest(batch, NOW)).expect("stored");
                assert!(done.added && done.quarantined == 0);
            }
            start.elapsed()
        });
    });
    group.finish();
}

/// A store with a node and users.
async fn people(folder: &Path) -> (Store, NodeId, Vec<i64>) {
    let options = StoreOptions::default();
    let store = Store::open_sqlite(folder.join("master.db"), &options)
        .await
        .expect("a store");
    store.migrate().await.expect("migrated");
    let mut tx = store.begin().await.expect("a transaction");
    let node = NewNode {
        uid: Uuid::new_v4(),
        name: "one".to_owned(),
        public_host: "192.0.2.1".to_owned(),
        listen_port: 443,
        region_id: None,
        tags: Vec::new(),
    };
    let node = nodes::create(&mut tx, &node, NOW).await.expect("a node").id;
    let mut ids = Vec::new();
    for number in 0..ROWS {
        let user = new_user(number);
        ids.push(
            users::create(&mut tx, &user, NOW)
                .await
                .expect("a user")
                .id
                .0,
        );
    }
    tx.commit().await.expect("committed");
    (store, node, ids)
}

fn new_user(number: i64) -> NewUser {
    let uid = Uuid::new_v4();
    NewUser {
        uid,
        username: format!("user-{number}"),
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

fn batch(node: NodeId, spool: Uuid, sequence: i64, ids: &[i64]) -> Batch {
    let row = |user: &i64| BatchRow {
        user: *user,
        tx: 1_000 + user,
        rx: 1_000_000 + user,
        seen: NOW,
        leases: Vec::new(),
    };
    Batch {
        node,
        spool,
        first_seq: sequence,
        last_seq: sequence,
        at: NOW,
        multiplier: 1_000_000_000,
        rows: ids.iter().map(row).collect(),
    }
}

fn node_config() -> NodeConfig {
    NodeConfig {
        listen: vec![":443".into(), ":8443".into()],
        tls: Some(rpc::Tls {
            source: Some(rpc::tls::Source::Issued(rpc::TlsIssued {
                chain: vec![vec![1; 900].into(), vec![2; 900].into()],
                key: vec![1; 138].into(),
            })),
            sni_guard: 0,
        }),
        obfuscation: Some(rpc::Obfuscation {
            kind: Some(rpc::obfuscation::Kind::Salamander(rpc::Salamander {
                password: "a password of some length".into(),
            })),
        }),
        verifier_keys: Some(rpc::VerifierKeys {
            fleet_key: vec![1; 32].into(),
            node_key: vec![2; 32].into(),
        }),
        ..NodeConfig::default()
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .sample_size(20);
    targets = config, lookup, tokens, ingest
}
criterion_main!(benches);
