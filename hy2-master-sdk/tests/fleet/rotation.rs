//! The private authority is exchanged under a fleet that stays connected.

use std::sync::Arc;
use std::time::Duration;

use hy2_master_sdk::domain::{Clock, ManualClock, SystemClock};
use hy2_master_sdk::rotation::RotationError;
use hy2_proto::control::rpc;
use hy2_proto::control::rpc::session_request::Event as Up;
use hy2_proto::control::rpc::session_response::Event as Down;
use prost::Message;

use crate::agent::{Agent, Session, TestMaster, eventually};

#[tokio::test]
async fn an_authority_is_exchanged_in_steps_that_leave_no_node_behind() {
    let clock = Arc::new(ManualClock::new(SystemClock.now()));
    let master = TestMaster::with(Arc::clone(&clock) as _, |_| {}).await;
    let mut present = master.agent("present").await;
    let away = master.agent("away").await;
    let mut session = present.session().await;
    let update = session.update().await;
    session.ack(&update).await;
    let old_pin = master.master.ca_pin();

    let refused = master.master.activate_authority(false).await.unwrap_err();
    assert!(matches!(refused, RotationError::NotPrepared), "{refused}");
    let next = master.master.prepare_authority().await.unwrap();
    let told = certificates(&mut session).await;
    assert_eq!((told.trusted_cas.len(), told.renew_now), (2, false));
    assert_eq!(master.master.ca_pin(), old_pin, "the old one signs on");
    let refused = master.master.prepare_authority().await.unwrap_err();
    assert!(matches!(refused, RotationError::Prepared), "{refused}");

    // Nobody has answered to what was sent after it; then one has; then both. Time and signs of life count for nothing.
    clock.advance(Duration::from_secs(3_600));
    session.send(Up::Heartbeat(rpc::Heartbeat::default())).await;
    let behind = activate(&master).await.unwrap_err();
    assert_eq!(behind, ["away", "present"]);
    listen(&mut session, |heard| heard.signed.is_some()).await;
    eventually("the present node is known to be told", async || {
        activate(&master).await == Err(vec!["away".to_owned()])
    })
    .await;
    let mut back = away.session().await;
    let waiting = back.update().await;
    assert_eq!(activate(&master).await, Err(vec!["away".to_owned()]));
    back.ack(&waiting).await;
    eventually("both are known to be told", async || {
        activate(&master).await.is_ok()
    })
    .await;
    // Told, and its state signed anew by a key that the new authority certified.
    let heard = listen(&mut session, |heard| {
        let anew = |signed: &rpc::SignedManifest| signed.key_id != update.signed.key_id;
        heard.certificates.is_some() && heard.signed.as_ref().is_some_and(anew)
    })
    .await;
    let told = heard.certificates.unwrap();
    assert!(told.renew_now);
    assert_eq!((told.trusted_cas.len(), told.signing_keys.len()), (2, 2));
    assert_eq!(master.master.ca_pin(), next.pin);

    // The one before stays trusted until everybody has renewed.
    let behind = retire(&master).await.unwrap_err();
    assert_eq!(behind, ["away", "present"]);
    let before = present.chain.clone();
    // By now the master shows a certificate of the new authority.
    present.pin = next.pin.clone();
    clock.advance(Duration::from_secs(1));
    renew(&mut present).await;
    eventually("the present node has followed", async || {
        // Its state may be signed anew more than once, and a node answers each time.
        let quiet = listen(&mut session, |_| false);
        let _ = tokio::time::timeout(Duration::from_millis(50), quiet).await;
        retire(&master).await == Err(vec!["away".to_owned()])
    })
    .await;
    master.master.retire_authorities(true).await.unwrap();
    let refused = master.master.retire_authorities(true).await.unwrap_err();
    assert!(
        matches!(refused, RotationError::NothingRetired),
        "{refused}"
    );
    let told = certificates(&mut session).await;
    assert_eq!((told.trusted_cas.len(), told.signing_keys.len()), (1, 1));

    present.client().await;
    let renewed = std::mem::replace(&mut present.chain, before);
    eventually("what the old authority signed is refused", async || {
        present.try_session(rpc::Hello::default()).await.is_err()
    })
    .await;
    present.chain = renewed;
    present.session().await;
    let views = master.master.authorities().await.unwrap();
    assert_eq!((views.len(), views[0].state.as_str()), (1, "active"));
}

#[tokio::test]
async fn a_node_that_is_away_when_the_authority_changes_renews_when_it_is_back() {
    let master = TestMaster::start().await;
    let mut agent = master.agent("node").await;
    let mut session = agent.session().await;
    let next = master.master.prepare_authority().await.unwrap();
    let open = master.token().await;
    eventually("the node is told", async || {
        let quiet = listen(&mut session, |_| false);
        let _ = tokio::time::timeout(Duration::from_millis(50), quiet).await;
        activate(&master).await.is_ok()
    })
    .await;
    drop(session);
    let outdated = master.master.outdated_enrolment_tokens().await.unwrap();
    assert_eq!(outdated.len(), 1, "{outdated:?}");
    assert!(outdated[0].starts_with("\"test\" ("), "{outdated:?}");
    agent.pin = next.pin;
    for (renewed, count) in [(false, 2), (true, 2)] {
        eventually("the new authority's certificate is shown", async || {
            agent.channel(true).await.is_ok()
        })
        .await;
        let mut session = agent.try_session(rpc::Hello::default()).await.unwrap();
        let told = certificates(&mut session).await;
        assert_eq!((told.renew_now, told.trusted_cas.len()), (!renewed, count));
        renew(&mut agent).await;
    }
    let late = agent.enroll(&open, "late").await;
    late.expect("a token is good for whoever knows the pin");
}

/// Names of the nodes that are in the way.
async fn activate(master: &TestMaster) -> Result<(), Vec<String>> {
    match master.master.activate_authority(false).await {
        Ok(_) => Ok(()),
        Err(RotationError::Behind(names)) => Err(names),
        Err(other) => panic!("{other}"),
    }
}

async fn retire(master: &TestMaster) -> Result<(), Vec<String>> {
    match master.master.retire_authorities(false).await {
        Ok(()) => Ok(()),
        Err(RotationError::Behind(names)) => Err(names),
        Err(other) => panic!("{other}"),
    }
}

/// What a session has heard of authorities and signatures.
#[derive(Default)]
struct Heard {
    certificates: Option<rpc::CertificateUpdate>,
    signed: Option<rpc::SignedManifest>,
}

/// Listens, and acknowledges every update, until enough has been heard.
async fn listen(session: &mut Session, enough: impl Fn(&Heard) -> bool) -> Heard {
    let mut heard = Heard::default();
    while !enough(&heard) {
        match session.next().await.expect("the session lives") {
            Down::Certificates(update) => heard.certificates = Some(update),
            Down::Update(part) if part.last => {
                let signed = part.manifest.expect("a manifest");
                let manifest = rpc::Manifest::decode(signed.manifest.clone()).unwrap();
                session
                    .send(Up::Ack(rpc::ResourceAck {
                        manifest_rev: manifest.rev,
                        cluster_epoch: manifest.cluster_epoch,
                    }))
                    .await;
                heard.signed = Some(signed);
            }
            _ => {}
        }
    }
    heard
}

async fn certificates(session: &mut Session) -> rpc::CertificateUpdate {
    let heard = listen(session, |heard| heard.certificates.is_some()).await;
    heard.certificates.unwrap()
}

async fn renew(agent: &mut Agent) {
    let request = rpc::RenewCertificateRequest {
        csr: agent.csr().into(),
        ..Default::default()
    };
    let answer = agent
        .client()
        .await
        .renew_certificate(request)
        .await
        .unwrap()
        .into_inner();
    agent.take(answer.certificate.as_ref().unwrap());
}
