//! Desired state down, observed state up, bytes once.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use hy2_master_sdk::domain::{
    ConfigScope, DesiredState, PlanId, QuotaPeriod, SystemClock, Timestamp, UserStatus,
};
use hy2_master_sdk::secrets::{FleetKeys, Seed};
use hy2_master_sdk::store::plans::{self, PlanRow};
use hy2_master_sdk::store::published::{self, NewConfig};
use hy2_master_sdk::store::regions::{self, NewRegion};
use hy2_master_sdk::store::{alerts, assignments, nodes, pools};
use hy2_proto::control::rpc::session_request::Event as Up;
use hy2_proto::control::rpc::session_response::Event as Down;
use hy2_proto::control::{MANIFEST_SIGNATURE_CONTEXT, RESOURCE_CONFIG, RESOURCE_USERS, hash, rpc};
use prost::Message;
use tonic::Code;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::agent::{Agent, DEADLINE, Session, TestMaster, Update, eventually};

#[tokio::test]
async fn a_new_node_gets_a_signed_manifest_its_configuration_and_its_users() {
    let master = TestMaster::start().await;
    let agent = master.agent("node").await;
    let node = agent.node().await;
    let ann = master.user("ann", Some(1_000_000)).await;
    master.assign(ann, node).await;
    let mut session = agent.try_session(rpc::Hello::default()).await.unwrap();
    let Some(Down::Welcome(welcome)) = session.next().await else {
        panic!("a welcome")
    };
    assert_eq!(welcome.cluster_epoch, 1);
    let Some(Down::Certificates(certificates)) = session.next().await else {
        panic!("certificates")
    };
    let update = session.update().await;
    verify(&update, &certificates.signing_keys);
    assert!(update.snapshot);
    assert_eq!(update.manifest.node_uid.as_ref(), agent.uid.as_bytes());
    let config = rpc::NodeConfig::decode(update.config.clone().unwrap().as_slice()).unwrap();
    assert_eq!(
        resource(&update, RESOURCE_CONFIG),
        hash::blob(update.config.as_ref().unwrap())
    );
    assert_eq!(resource(&update, RESOURCE_USERS), set_hash(&session));
    assert!(matches!(
        config.tls.unwrap().source,
        Some(rpc::tls::Source::Issued(_))
    ));
    // The user's credential on this node passes with the keys that the node got.
    let row = master.master.store().user(ann).await.unwrap();
    let seed = Seed::open(master.master.vault(), row.uid, &row.seed_enc).unwrap();
    let keys = config.verifier_keys.unwrap();
    let node_key: [u8; 32] = keys.node_key.as_ref().try_into().unwrap();
    let auth_hash = master
        .master
        .fleet_keys()
        .auth_hash(&seed.credential(agent.uid));
    assert_eq!(
        session.users[0].verifier,
        FleetKeys::verifier(&node_key, &auth_hash).as_slice()
    );
    assert!(session.users[0].metered);
    session.ack(&update).await;
    let applied = i64::try_from(update.manifest.rev).unwrap();
    eventually("the acknowledgement is noted", async || {
        master.master.store().node(node).await.unwrap().applied_rev == applied
    })
    .await;
}

#[tokio::test]
async fn changes_come_as_deltas_and_a_disabled_user_is_removed() {
    let master = TestMaster::start().await;
    let agent = master.agent("node").await;
    let node = agent.node().await;
    let (ann, bob) = (
        master.user("ann", None).await,
        master.user("bob", None).await,
    );
    master.assign(ann, node).await;
    let mut session = agent.session().await;
    let first = settle(&mut session, |session| session.users.len() == 1).await;
    assert!(first.snapshot);
    master.assign(bob, node).await;
    let second = settle(&mut session, |session| session.users.len() == 2).await;
    assert!(!second.snapshot && second.config.is_none());
    assert!(second.manifest.rev > first.manifest.rev);
    assert_eq!(resource(&second, RESOURCE_USERS), set_hash(&session));
    master.set_status(ann, UserStatus::Disabled).await;
    let third = settle(&mut session, |session| session.users.len() == 1).await;
    assert_eq!(session.ids(), [bob.to_wire()]);
    assert_eq!(resource(&third, RESOURCE_USERS), set_hash(&session));
    master.set_status(ann, UserStatus::Active).await;
    settle(&mut session, |session| session.users.len() == 2).await;
}

#[tokio::test]
async fn a_node_that_comes_back_gets_what_changed_and_nothing_when_nothing_did() {
    let master = TestMaster::start().await;
    let agent = master.agent("node").await;
    let node = agent.node().await;
    let users = [
        master.user("ann", None).await,
        master.user("bob", None).await,
    ];
    for user in users {
        master.assign(user, node).await;
    }
    let mut session = agent.session().await;
    let last = settle(&mut session, |session| session.users.len() == 2).await;
    let kept = session.users.clone();
    eventually("the acknowledgement is noted", async || {
        let row = master.master.store().node(node).await.unwrap();
        row.applied_rev == row.desired_rev
    })
    .await;
    drop(session);
    eventually("the session has ended", async || {
        master.master.live_nodes().is_empty()
    })
    .await;
    let hello = rpc::Hello {
        cluster_epoch: last.manifest.cluster_epoch,
        manifest_rev: last.manifest.rev,
        have: last.manifest.resources.clone(),
        ..Default::default()
    };
    // Both changes are made while nobody is there.
    master.set_status(users[0], UserStatus::Disabled).await;
    let carl = master.user("carl", None).await;
    master.assign(carl, node).await;
    let mut session = agent.try_session(hello.clone()).await.unwrap();
    session.users = kept;
    session.next().await;
    session.next().await;
    let update = settle(&mut session, |session| session.users.len() == 2).await;
    assert!(!update.snapshot && update.config.is_none());
    assert_eq!(session.ids(), [users[1].to_wire(), carl.to_wire()]);
    assert_eq!(resource(&update, RESOURCE_USERS), set_hash(&session));
}

#[tokio::test]
async fn a_refused_manifest_is_recorded_and_a_lost_base_gets_everything_anew() {
    let master = TestMaster::start().await;
    let agent = master.agent("node").await;
    let node = agent.node().await;
    let mut session = agent.session().await;
    settle(&mut session, |_| true).await;
    let ann = master.user("ann", None).await;
    master.assign(ann, node).await;
    let delta = session.update().await;
    assert!(!delta.snapshot);
    nack(&session, &delta, rpc::ErrorCode::HashMismatch, "users").await;
    let anew = session.update().await;
    assert!(anew.snapshot && anew.config.is_some());
    assert_eq!(anew.manifest, delta.manifest);
    assert_eq!(anew.signed.signature, delta.signed.signature);
    session.ack(&anew).await;
    let new = NewConfig {
        scope: ConfigScope::Node,
        scope_id: node.0,
        body: serde_json::json!({"listen": [":1"]}),
        author: None,
        message: String::new(),
    };
    let mut tx = master.master.store().begin().await.unwrap();
    published::append_config(&mut tx, &new, master.master.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let bad = session.update().await;
    nack(&session, &bad, rpc::ErrorCode::CannotBind, "listen[0]").await;
    eventually("the refusal is noted", async || {
        let row = master.master.store().node(node).await.unwrap();
        row.refused_rev == i64::try_from(bad.manifest.rev).ok()
            && row.state_reason.starts_with("listen[0]: ")
    })
    .await;
    // It is not sent again; the next change is.
    let bob = master.user("bob", None).await;
    master.assign(bob, node).await;
    let next = session.update().await;
    assert!(next.manifest.rev > bad.manifest.rev);
    session.ack(&next).await;
    eventually("the node is well again", async || {
        master
            .master
            .store()
            .node(node)
            .await
            .unwrap()
            .refused_rev
            .is_none()
    })
    .await;
}

#[tokio::test]
async fn a_large_set_comes_in_parts() {
    let master = TestMaster::start().await;
    let agent = master.agent("node").await;
    let node = agent.node().await;
    let mut users = Vec::new();
    for number in 0..1_203 {
        users.push(master.user(&format!("u{number}"), None).await);
    }
    let new = users
        .iter()
        .map(|user| assignments::NewAssignment {
            user_id: *user,
            node_id: node,
            rank: 0,
            source: hy2_master_sdk::domain::AssignmentSource::Pinned,
            score: None,
        })
        .collect::<Vec<_>>();
    let mut tx = master.master.store().begin().await.unwrap();
    assignments::assign_many(&mut tx, &new, master.master.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let mut session = agent.session().await;
    let update = settle(&mut session, |session| session.users.len() == 1_203).await;
    assert_eq!(update.parts, 25);
    assert_eq!(resource(&update, RESOURCE_USERS), set_hash(&session));
}

#[tokio::test]
async fn a_second_session_of_a_node_ends_the_first() {
    let master = TestMaster::start().await;
    let agent = master.agent("node").await;
    let mut first = agent.session().await;
    let mut second = agent.session().await;
    while first.next().await.is_some() {}
    settle(&mut second, |_| true).await;
    assert_eq!(master.master.live_nodes().len(), 1);
}

#[tokio::test]
async fn users_without_nodes_are_given_some() {
    let master = TestMaster::with(Arc::new(SystemClock), |config| {
        config.auto_assign = true;
    })
    .await;
    let agent = master.agent("node").await;
    let mut session = agent.session().await;
    settle(&mut session, |_| true).await;
    let ann = master.user("ann", None).await;
    settle(&mut session, |session| session.users.len() == 1).await;
    assert_eq!(session.ids(), [ann.to_wire()]);
    // Its users move on from a node that is to be empty, which serves them meanwhile.
    let other = master.agent("other").await;
    let mut second = other.session().await;
    let mut tx = master.master.store().begin().await.unwrap();
    let (node, now) = (agent.node().await, master.master.now());
    nodes::set_desired_state(&mut tx, node, DesiredState::Cordoned, None, now)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    settle(&mut second, |session| session.users.len() == 1).await;
    assert_eq!(second.ids(), [ann.to_wire()]);
    assert_eq!(session.ids(), [ann.to_wire()]);
}

#[tokio::test]
async fn traffic_counts_once_and_a_used_up_quota_takes_the_user_off_the_node() {
    let master = TestMaster::start().await;
    let agent = master.agent("node").await;
    let node = agent.node().await;
    let ann = master.user("ann", Some(10_000)).await;
    master.assign(ann, node).await;
    let mut session = agent.session().await;
    settle(&mut session, |session| session.users.len() == 1).await;
    let batch = |seq: u64| traffic(seq, &[(ann.to_wire(), 3_000, 1_000)]);
    // Each is sent three times, as after lost answers; a gap is answered with where to go on.
    for seq in [1, 1, 1, 2, 3, 1, 2, 2] {
        let ack = report(&agent, batch(seq)).await.unwrap();
        assert!(ack.durable_seq <= 3);
    }
    let ack = report(&agent, batch(9)).await.unwrap();
    assert_eq!(ack.durable_seq, 3);
    let row = master.master.store().user(ann).await.unwrap();
    assert_eq!((row.tx, row.rx), (9_000, 3_000));
    settle(&mut session, |session| session.users.is_empty()).await;
    let row = master.master.store().user(ann).await.unwrap();
    assert_eq!(row.status, UserStatus::Limited);
}

#[tokio::test]
async fn a_batch_is_billed_at_the_multiplier_of_when_it_was_cut() {
    let master = TestMaster::start().await;
    let agent = master.agent("node").await;
    let node = agent.node().await;
    let ann = master.user("ann", None).await;
    master.assign(ann, node).await;
    let mut session = agent.session().await;
    settle(&mut session, |session| session.users.len() == 1).await;
    let cut = |seq: u64, at: Timestamp| {
        let mut batch = batch_of(seq, &[(ann.to_wire(), 1_000, 0)]);
        batch.to = Some(at.to_proto());
        framed(&batch)
    };
    let before = master.master.now();
    let changed = before.plus(Duration::from_secs(2));
    let mut tx = master.master.store().begin().await.unwrap();
    let change = nodes::NodeChange {
        billing_multiplier: Some(3_000_000_000),
        ..nodes::NodeChange::default()
    };
    nodes::update(&mut tx, node, None, &change, changed)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    // Cut before the change, and heard of after it.
    report(&agent, cut(1, before)).await.unwrap();
    let row = master.master.store().user(ann).await.unwrap();
    assert_eq!(row.billed, 1_000);
    eventually("the moment of the change", async || {
        master.master.now() > changed
    })
    .await;
    report(&agent, cut(2, master.master.now())).await.unwrap();
    let row = master.master.store().user(ann).await.unwrap();
    assert_eq!((row.tx, row.billed), (2_000, 4_000));
}

#[tokio::test]
async fn an_agent_that_reports_others_users_changes_nothing_of_theirs() {
    let master = TestMaster::start().await;
    let (one, two) = (master.agent("one").await, master.agent("two").await);
    let (ann, bob) = (
        master.user("ann", None).await,
        master.user("bob", Some(100)).await,
    );
    master.assign(ann, one.node().await).await;
    master.assign(bob, two.node().await).await;
    let rows = [
        (ann.to_wire(), 1, 1),
        (bob.to_wire(), 1 << 40, 1 << 40),
        (u64::MAX, 5, 5),
    ];
    let ack = report(&one, traffic(1, &rows)).await.unwrap();
    assert_eq!((ack.durable_seq, ack.quarantined), (1, 2));
    let row = master.master.store().user(bob).await.unwrap();
    assert_eq!((row.tx, row.status), (0, UserStatus::Active));
    assert_eq!(master.master.store().user(ann).await.unwrap().tx, 1);
    // Nor does it get leases of them.
    let want = rpc::LeaseRequest {
        quotas: vec![rpc::LeaseWant {
            user_id: bob.to_wire(),
            ..Default::default()
        }],
        devices: Vec::new(),
    };
    let answer = one
        .client()
        .await
        .lease(want.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(answer.quotas.is_empty());
    let answer = two.client().await.lease(want).await.unwrap().into_inner();
    assert_eq!(answer.quotas[0].granted_bytes, 100);
}

#[tokio::test]
async fn a_slice_that_a_node_never_heard_of_comes_back_when_its_user_has_left() {
    let master = TestMaster::start().await;
    let (one, two) = (master.agent("one").await, master.agent("two").await);
    let ann = master.user("ann", Some(100)).await;
    master.assign(ann, one.node().await).await;
    let want = rpc::LeaseRequest {
        quotas: vec![rpc::LeaseWant {
            user_id: ann.to_wire(),
            ..Default::default()
        }],
        devices: Vec::new(),
    };
    // The answer is lost, and the node is away when the user leaves it.
    let lost = one.client().await.lease(want).await.unwrap().into_inner();
    let lease_id = lost.quotas[0].lease_id;
    let mut tx = master.master.store().begin().await.unwrap();
    let now = master.master.now();
    assignments::release(&mut tx, ann, one.node().await, now)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let mut session = one.session().await;
    let recalled = loop {
        match session.next().await.expect("what is taken back") {
            Down::Recall(recall) => break recall.lease_ids,
            Down::Update(_) | Down::Certificates(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(recalled, [lease_id]);
    // Whose it is, a node does not know that never had it. Another's is none of its business.
    let back = rpc::LeaseRequest {
        quotas: vec![rpc::LeaseWant {
            lease_id,
            release: true,
            used_bytes: Some(0),
            ..Default::default()
        }],
        devices: Vec::new(),
    };
    two.client().await.lease(back.clone()).await.unwrap();
    let open = async || {
        let open = master.master.store().open_leases(Some(ann), 10).await;
        open.unwrap().len()
    };
    assert_eq!(open().await, 1);
    one.client().await.lease(back).await.unwrap();
    assert_eq!(open().await, 0);
}

#[tokio::test]
async fn an_agent_reads_nothing_of_other_nodes_users() {
    let master = TestMaster::start().await;
    let (one, two) = (master.agent("one").await, master.agent("two").await);
    let bob = master.user("bob", None).await;
    master.assign(bob, two.node().await).await;
    let mut of_two = two.session().await;
    settle(&mut of_two, |session| session.users.len() == 1).await;
    let verifier = of_two.users[0].verifier.clone();
    // It says that it has the other's state, that it is the other, that it knows the other's users.
    let claims = rpc::Hello {
        info: Some(rpc::NodeInfo {
            hostname: "two".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut of_one = one.try_session(claims).await.unwrap();
    assert!(matches!(of_one.next().await, Some(Down::Welcome(_))));
    assert!(matches!(of_one.next().await, Some(Down::Certificates(_))));
    let mut seen = 0;
    // Another user of the other node changes meanwhile, and one of its own comes at last.
    let cyd = master.user("cyd", None).await;
    master.assign(cyd, two.node().await).await;
    let ann = master.user("ann", None).await;
    master.assign(ann, one.node().await).await;
    settle(&mut of_one, |session| {
        seen += 1;
        session.users.len() == 1
    })
    .await;
    assert_eq!(of_one.ids(), [ann.to_wire()], "{seen} updates");
    assert_ne!(of_one.users[0].verifier, verifier);
    // The same user on both: what one node holds opens nothing on the other.
    master.assign(bob, one.node().await).await;
    settle(&mut of_one, |session| session.users.len() == 2).await;
    let of_bob = of_one
        .users
        .iter()
        .find(|user| user.user_id == bob.to_wire());
    assert_ne!(of_bob.unwrap().verifier, verifier);
}

#[tokio::test]
async fn users_of_a_plan_with_pools_get_nodes_of_these_only() {
    let master = TestMaster::with(Arc::new(SystemClock), |config| config.auto_assign = true).await;
    let (one, two) = (master.agent("one").await, master.agent("two").await);
    let (mut of_one, mut of_two) = (one.session().await, two.session().await);
    settle(&mut of_one, |_| true).await;
    settle(&mut of_two, |_| true).await;
    let store = master.master.store();
    let now = master.master.now();
    let mut tx = store.begin().await.unwrap();
    let pool = pools::create(&mut tx, "paid", now).await.unwrap().id;
    pools::set_members(&mut tx, pool, &[two.node().await])
        .await
        .unwrap();
    let plan = PlanRow {
        id: PlanId(0),
        name: "paid".to_owned(),
        quota_bytes: None,
        period: QuotaPeriod::None,
        duration_days: None,
        max_devices: None,
        max_connections: None,
        up_bytes_per_s: None,
        down_bytes_per_s: None,
        nodes_per_user: 3,
        next_plan_id: None,
        archived_at: None,
        rev: 0,
        created_at: now,
        updated_at: now,
    };
    let plan = plans::create(&mut tx, &plan, now).await.unwrap().id;
    pools::set_of_plan(&mut tx, plan, &[pool]).await.unwrap();
    tx.commit().await.unwrap();
    let ann = master.user_of_plan("ann", plan).await;
    let bob = master.user("bob", None).await;
    settle(&mut of_two, |session| session.users.len() == 2).await;
    settle(&mut of_one, |session| session.users.len() == 1).await;
    assert_eq!(of_one.ids(), [bob.to_wire()]);
    let mut both = of_two.ids();
    both.sort_unstable();
    assert_eq!(both, [ann.to_wire(), bob.to_wire()]);
}

#[tokio::test]
async fn a_configuration_of_a_region_reaches_the_nodes_in_it() {
    let master = TestMaster::start().await;
    let store = master.master.store();
    let now = master.master.now();
    let mut tx = store.begin().await.unwrap();
    let region = NewRegion {
        code: "eu".to_owned(),
        name: "Europe".to_owned(),
        latitude: None,
        longitude: None,
    };
    let region = regions::create(&mut tx, &region, now).await.unwrap().id;
    let new = NewConfig {
        scope: ConfigScope::Region,
        scope_id: region.0,
        body: serde_json::json!({"speed_test": true}),
        author: None,
        message: String::new(),
    };
    published::append_config(&mut tx, &new, now).await.unwrap();
    tx.commit().await.unwrap();
    let tested = |update: &Update| {
        let config = update.config.as_ref().expect("a configuration");
        let config = rpc::NodeConfig::decode(config.as_slice()).unwrap();
        config.speed_test
    };

    // A node whose token names the region has it from the beginning.
    let token = master
        .master
        .create_enrolment_token("eu", Duration::from_secs(900), |token| {
            token.region_id = Some(region);
        });
    let token = token.await.unwrap().secret;
    let mut there = Agent::new(&master);
    let answer = there.enroll(&token, "there").await.unwrap();
    there.accept(&answer);
    let mut session = there.session().await;
    assert!(tested(&settle(&mut session, |_| true).await));

    // Another gets it when it is put there.
    let elsewhere = master.agent("elsewhere").await;
    let mut session = elsewhere.session().await;
    assert!(!tested(&settle(&mut session, |_| true).await));
    let mut tx = store.begin().await.unwrap();
    let change = nodes::NodeChange {
        region_id: Some(Some(region)),
        ..nodes::NodeChange::default()
    };
    let node = elsewhere.node().await;
    nodes::update(&mut tx, node, None, &change, now)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert!(tested(&settle(&mut session, |_| true).await));
}

#[tokio::test]
async fn a_damaged_batch_is_refused_and_the_cursor_stays() {
    let master = TestMaster::start().await;
    let agent = master.agent("node").await;
    let mut damaged = traffic(1, &[(1, 1, 1)]);
    damaged.crc32c ^= 1;
    assert_eq!(report(&agent, damaged).await.unwrap_err(), Code::DataLoss);
    let mut wrong = traffic(1, &[]);
    wrong.batch = rpc::TrafficBatch {
        spool_id: vec![1; 3].into(),
        first_seq: 1,
        last_seq: 1,
        ..Default::default()
    }
    .encode_to_vec()
    .into();
    wrong.crc32c = crc32c::crc32c(&wrong.batch);
    assert_eq!(
        report(&agent, wrong).await.unwrap_err(),
        Code::InvalidArgument
    );
    assert!(
        master
            .master
            .store()
            .cursors(agent.node().await)
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn after_a_restore_the_epoch_is_new_and_missing_batches_are_recorded_as_a_gap() {
    let master = TestMaster::start().await;
    let agent = master.agent("node").await;
    let node = agent.node().await;
    let ann = master.user("ann", None).await;
    master.assign(ann, node).await;
    let mut session = agent.session().await;
    settle(&mut session, |session| session.users.len() == 1).await;
    let rows = [(ann.to_wire(), 1, 0)];
    report(&agent, traffic(1, &rows)).await.unwrap();
    // In the same epoch a gap is a gap.
    assert_eq!(
        report(&agent, traffic(5, &rows)).await.unwrap().durable_seq,
        1
    );
    // Batches 2 to 4 were acknowledged by a store that is gone.
    let later = master.master.now().plus(Duration::from_millis(1));
    let mut tx = master.master.store().begin().await.unwrap();
    let epoch = hy2_master_sdk::store::cluster::bump_epoch(&mut tx, later)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(epoch, later.0 / 1_000);
    eventually("the epoch is known", async || {
        master.master.epoch() == epoch
    })
    .await;
    while session.next().await.is_some() {}
    assert_eq!(
        report(&agent, traffic(5, &rows)).await.unwrap().durable_seq,
        5
    );
    assert_eq!(
        report(&agent, traffic(6, &rows)).await.unwrap().durable_seq,
        6
    );
    assert_eq!(master.master.store().user(ann).await.unwrap().tx, 3);
    let open = alerts::open_of(master.master.store(), node).await.unwrap();
    let said: Vec<_> = open
        .iter()
        .map(|alert| (&*alert.rule, &*alert.message))
        .collect();
    let [("traffic_gap", message)] = said[..] else {
        panic!("{said:?}")
    };
    assert!(message.ends_with("batches 2 to 4"), "{message}");
    // From then on gaps are gaps again.
    assert_eq!(
        report(&agent, traffic(9, &rows)).await.unwrap().durable_seq,
        6
    );
    let mut session = agent.try_session(rpc::Hello::default()).await.unwrap();
    let Some(Down::Welcome(welcome)) = session.next().await else {
        panic!("a welcome")
    };
    assert_eq!(welcome.cluster_epoch, epoch.unsigned_abs());
}

#[tokio::test]
async fn a_node_that_is_ahead_of_the_store_gets_a_revision_that_it_takes() {
    let master = TestMaster::start().await;
    let agent = master.agent("node").await;
    let greeting = |manifest_rev| rpc::Hello {
        cluster_epoch: 1,
        manifest_rev,
        ..Default::default()
    };
    let mut session = agent.try_session(greeting(500)).await.unwrap();
    let mut rev = 0;
    while rev == 0 {
        if let Some(Down::Update(part)) = session.next().await
            && let Some(signed) = part.manifest
        {
            rev = rpc::Manifest::decode(signed.manifest).unwrap().rev;
        }
    }
    assert_eq!(rev, 501);
    // What nobody can have come to is not believed.
    let mut session = agent.try_session(greeting(u64::MAX)).await.unwrap();
    assert!(matches!(session.next().await, Some(Down::Welcome(_))));
    let row = master.master.store().node(agent.node().await).await;
    assert_eq!(row.unwrap().desired_rev, 501);
}

#[tokio::test]
async fn heartbeats_are_written_together_and_figures_are_kept() {
    let master = TestMaster::with(Arc::new(SystemClock), |config| {
        config.seen_flush = Duration::from_millis(50);
    })
    .await;
    let agent = master.agent("node").await;
    let node = agent.node().await;
    let mut session = agent.session().await;
    settle(&mut session, |_| true).await;
    for connections in 0..5 {
        session
            .send(Up::Heartbeat(rpc::Heartbeat {
                connections,
                ..Default::default()
            }))
            .await;
    }
    eventually("the last heartbeat is written", async || {
        master.master.store().node(node).await.unwrap().connections == 4
    })
    .await;
    let sample = rpc::NodeMetrics {
        at: Some(master.master.now().to_proto()),
        cpu_permille: 7,
        load1: f64::NAN,
        ..Default::default()
    };
    let request = rpc::ReportMetricsRequest {
        samples: vec![sample],
    };
    agent.client().await.report_metrics(request).await.unwrap();
    let range = (Timestamp(0), Timestamp(i64::MAX));
    let rows = master
        .master
        .store()
        .metrics(node, 15, range.0, range.1, 9)
        .await
        .unwrap();
    assert_eq!((rows.len(), rows[0].cpu_permille), (1, 7));
}

// ---------------------------------------------------------------- helpers

/// Acknowledges updates until the node has what it should.
async fn settle(session: &mut Session, mut done: impl FnMut(&Session) -> bool) -> Update {
    loop {
        let update = session.update().await;
        session.ack(&update).await;
        if done(session) {
            return update;
        }
    }
}

async fn nack(session: &Session, update: &Update, code: rpc::ErrorCode, path: &str) {
    session
        .send(Up::Nack(rpc::ResourceNack {
            manifest_rev: update.manifest.rev,
            cluster_epoch: update.manifest.cluster_epoch,
            errors: vec![rpc::FieldError {
                code: code.into(),
                path: path.to_owned(),
                message: "because".to_owned(),
            }],
        }))
        .await;
}

/// Checks that one of the keys signed.
pub(crate) fn verify(update: &Update, keys: &[rpc::SigningKey]) {
    let key = keys
        .iter()
        .find(|key| key.key_id == update.signed.key_id)
        .expect("the key is announced");
    let (_, certificate) = X509Certificate::from_der(&key.certificate).unwrap();
    let public = certificate.public_key().subject_public_key.data.to_vec();
    let message = [MANIFEST_SIGNATURE_CONTEXT, &update.signed.manifest].concat();
    UnparsedPublicKey::new(&ED25519, public)
        .verify(&message, &update.signed.signature)
        .unwrap();
}

fn resource(update: &Update, kind: &str) -> [u8; 32] {
    let resource = update
        .manifest
        .resources
        .iter()
        .find(|resource| resource.r#type == kind)
        .unwrap();
    resource.sha256.as_ref().try_into().unwrap()
}

fn set_hash(session: &Session) -> [u8; 32] {
    let digests = session
        .users
        .iter()
        .map(|user| hash::blob(&user.encode_to_vec()))
        .collect::<Vec<_>>();
    hash::user_set(&digests)
}

fn traffic(seq: u64, rows: &[(u64, u64, u64)]) -> rpc::ReportTrafficRequest {
    framed(&batch_of(seq, rows))
}

fn batch_of(seq: u64, rows: &[(u64, u64, u64)]) -> rpc::TrafficBatch {
    rpc::TrafficBatch {
        spool_id: vec![9; 16].into(),
        first_seq: seq,
        last_seq: seq,
        users: rows
            .iter()
            .map(|(user_id, tx, rx)| rpc::UserTraffic {
                user_id: *user_id,
                tx: *tx,
                rx: *rx,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

fn framed(batch: &rpc::TrafficBatch) -> rpc::ReportTrafficRequest {
    let batch = bytes::Bytes::from(batch.encode_to_vec());
    rpc::ReportTrafficRequest {
        crc32c: crc32c::crc32c(&batch),
        batch,
    }
}

async fn report(
    agent: &Agent,
    request: rpc::ReportTrafficRequest,
) -> Result<rpc::TrafficAck, Code> {
    let mut client = agent.client().await;
    let mut answers = client
        .report_traffic(tokio_stream::iter([request]))
        .await
        .map_err(|status| status.code())?
        .into_inner();
    let answer = tokio::time::timeout(DEADLINE, answers.message())
        .await
        .expect("an answer in time");
    let answer = answer.map_err(|status| status.code())?.expect("an answer");
    Ok(answer.ack.unwrap())
}
