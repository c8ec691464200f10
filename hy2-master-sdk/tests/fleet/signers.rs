//! The keys that sign what nodes obey are renewed in time, and no node is left behind.

use std::sync::Arc;
use std::time::Duration;

use hy2_master_sdk::domain::{Clock, ManualClock, NodeId, SystemClock, UserId};
use hy2_master_sdk::store::audit::{self, AuditFilter};
use hy2_master_sdk::store::cluster;
use hy2_proto::control::rpc;
use hy2_proto::control::rpc::master_service_client::MasterServiceClient;
use hy2_proto::control::rpc::session_response::Event as Down;

use crate::agent::{Session, TestMaster, Update, eventually, proof};
use crate::session::verify;

#[tokio::test]
async fn a_connected_node_hears_of_the_next_key_long_before_it_signs_on_sqlite() {
    a_connected_node_hears_of_the_next_key_long_before_it_signs("sqlite").await;
}

#[tokio::test]
async fn a_connected_node_hears_of_the_next_key_long_before_it_signs_on_postgres() {
    a_connected_node_hears_of_the_next_key_long_before_it_signs("postgres").await;
}

#[tokio::test]
async fn a_node_that_was_away_while_the_keys_changed_comes_back_on_sqlite() {
    a_node_that_was_away_while_the_keys_changed_comes_back("sqlite").await;
}

#[tokio::test]
async fn a_node_that_was_away_while_the_keys_changed_comes_back_on_postgres() {
    a_node_that_was_away_while_the_keys_changed_comes_back("postgres").await;
}

#[tokio::test]
async fn a_key_that_waits_for_its_turn_never_signs_under_the_next_authority_on_sqlite() {
    a_key_that_waits_for_its_turn_never_signs_under_the_next_authority("sqlite").await;
}

#[tokio::test]
async fn a_key_that_waits_for_its_turn_never_signs_under_the_next_authority_on_postgres() {
    a_key_that_waits_for_its_turn_never_signs_under_the_next_authority("postgres").await;
}

const DAY: Duration = Duration::from_secs(86_400);

/// A master that made its first key some days ago, as it believes. TLS goes by the machine's clock:
/// who is to connect has to enrol within 30 days of it.
async fn master(backend: &str, age: u32) -> (TestMaster, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(SystemClock.now().minus(DAY * age)));
    let master = TestMaster::on(backend, false, Arc::clone(&clock) as _, |_| {}).await;
    (master, clock)
}

/// Lets days pass, and has the master look at its keys.
async fn pass(master: &TestMaster, clock: &ManualClock, days: u32) {
    clock.advance(DAY * days);
    let mut tx = master.master.store().begin().await.unwrap();
    cluster::put_setting(&mut tx, "test", &days, None, master.master.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
}

/// States of the keys, the newest first.
async fn states(master: &TestMaster) -> Vec<String> {
    let rows = master.master.store().signing_keys("manifest").await;
    rows.unwrap().into_iter().map(|row| row.state).collect()
}

async fn become_of(master: &TestMaster, wanted: &[&str]) {
    eventually(&format!("keys are {wanted:?}"), async || {
        states(master).await == wanted
    })
    .await;
}

/// Has the node's state signed anew.
async fn signed_anew(
    master: &TestMaster,
    session: &mut Session,
    user: UserId,
    node: NodeId,
) -> Update {
    master.assign(user, node).await;
    let update = session.update().await;
    session.ack(&update).await;
    update
}

async fn certificates(session: &mut Session) -> rpc::CertificateUpdate {
    loop {
        if let Down::Certificates(update) = session.next().await.expect("the session lives") {
            return update;
        }
    }
}

async fn a_connected_node_hears_of_the_next_key_long_before_it_signs(backend: &str) {
    let (master, clock) = master(backend, 329).await;
    pass(&master, &clock, 300).await;
    let mut agent = master.agent("node").await;
    let node = agent.node().await;
    let mut session = agent.try_session(rpc::Hello::default()).await.unwrap();
    let before = certificates(&mut session).await.signing_keys;
    assert_eq!(before.len(), 1, "65 days before its end it is alone");
    let update = session.update().await;
    session.ack(&update).await;
    verify(&update, &before);

    // 59 days before the end the node is told of the next one; the old one signs.
    pass(&master, &clock, 6).await;
    let told = certificates(&mut session).await;
    assert_eq!((told.signing_keys.len(), told.renew_now), (2, false));
    assert_eq!(told.signing_keys[1], before[0]);
    assert_eq!(states(&master).await, ["next", "active"]);
    let user = master.user("alice", None).await;
    let update = signed_anew(&master, &mut session, user, node).await;
    verify(&update, &before);

    // Its certificate is renewed in time, as agents do.
    pass(&master, &clock, 14).await;
    let renew = rpc::RenewCertificateRequest {
        csr: agent.csr().into(),
        ..Default::default()
    };
    let answer = agent.client().await.renew_certificate(renew).await;
    agent.take(&answer.unwrap().into_inner().certificate.unwrap());
    let mut session = agent.session().await;
    let update = session.update().await;
    session.ack(&update).await;

    // 29 days before the end the next one signs. What is signed meanwhile is by one of the two.
    pass(&master, &clock, 16).await;
    become_of(&master, &["active", "retired"]).await;
    let mut by_next = false;
    for number in 0..1_000 {
        let user = master.user(&format!("user {number}"), None).await;
        let update = signed_anew(&master, &mut session, user, node).await;
        verify(&update, &told.signing_keys);
        by_next = update.signed.key_id == told.signing_keys[0].key_id;
        if by_next {
            break;
        }
    }
    assert!(by_next, "the next key signs");

    // Each step is in the audit log, once.
    let store = master.master.store();
    audit::seal(store).await.unwrap();
    let filter = AuditFilter {
        object_kind: Some("signing_key".to_owned()),
        ..AuditFilter::default()
    };
    let entries = audit::list(store, &filter, None, 100).await.unwrap();
    let noted = entries.iter().map(|entry| &*entry.action);
    assert_eq!(
        noted.collect::<Vec<_>>(),
        ["activate_signing_key", "announce_signing_key"]
    );
}

async fn a_node_that_was_away_while_the_keys_changed_comes_back(backend: &str) {
    let (master, clock) = master(backend, 370).await;
    let mut away = master.agent("away").await;
    pass(&master, &clock, 306).await;
    become_of(&master, &["next", "active"]).await;
    pass(&master, &clock, 30).await;
    become_of(&master, &["active", "retired"]).await;
    pass(&master, &clock, 34).await;

    // The first key ended 5 days ago, and so did, long before, the node's certificate.
    assert!(away.try_session(rpc::Hello::default()).await.is_err());
    let csr = away.csr();
    let at = clock.now().to_proto();
    let request = rpc::RenewCertificateRequest {
        csr: csr.clone().into(),
        expired_certificate: away.chain[0].to_vec().into(),
        signature: proof(&away.key, &csr, &at).into(),
        at: Some(at),
    };
    let mut anonymous = MasterServiceClient::new(away.channel(false).await.unwrap());
    let answer = anonymous.renew_certificate(request).await.unwrap();
    let answer = answer.into_inner();
    away.take(&answer.certificate.unwrap());
    let mut session = away.try_session(rpc::Hello::default()).await.unwrap();
    // Told of the key before anything that it signed.
    assert!(matches!(session.next().await, Some(Down::Welcome(_))));
    let Some(Down::Certificates(told)) = session.next().await else {
        panic!("the keys come second");
    };
    assert_eq!(told.signing_keys, answer.signing_keys);
    let update = session.update().await;
    verify(&update, &told.signing_keys[..1]);
}

async fn a_key_that_waits_for_its_turn_never_signs_under_the_next_authority(backend: &str) {
    let (master, clock) = master(backend, 400).await;
    pass(&master, &clock, 306).await;
    become_of(&master, &["next", "active"]).await;
    clock.advance(Duration::from_secs(1));
    master.master.prepare_authority().await.unwrap();
    master.master.activate_authority(false).await.unwrap();
    assert_eq!(states(&master).await, ["active", "retired", "retired"]);
    master.master.retire_authorities(false).await.unwrap();
    assert_eq!(states(&master).await, ["active"]);
}
