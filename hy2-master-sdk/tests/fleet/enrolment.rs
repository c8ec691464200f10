//! How nodes get an identity, keep it, and lose it.

use std::sync::Arc;
use std::time::Duration;

use hy2_master_sdk::auth::ca::CertificateAuthority;
use hy2_master_sdk::domain::{Clock, ManualClock, ObservedState, SystemClock};
use hy2_master_sdk::store::nodes;
use hy2_proto::control::rpc::master_service_client::MasterServiceClient;
use hy2_proto::control::{ALPN_MASTER, rpc};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tonic::Code;

use crate::agent::{Agent, DEADLINE, Session, TestMaster, connect, eventually, proof};

#[tokio::test]
async fn of_a_hundred_who_use_a_token_at_once_one_enrols() {
    let master = TestMaster::start().await;
    let token = master.token().await;
    let mut tries = Vec::new();
    for _ in 0..100 {
        let agent = Agent::new(&master);
        let token = token.clone();
        tries.push(tokio::spawn(async move {
            agent
                .enroll(&token, "node")
                .await
                .map_err(|status| status.code())
        }));
    }
    let mut enrolled = 0;
    for attempt in tries {
        match attempt.await.unwrap() {
            Ok(_) => enrolled += 1,
            Err(code) => assert_eq!(code, Code::PermissionDenied),
        }
    }
    assert_eq!(enrolled, 1);
    assert_eq!(
        master.master.store().nodes(None, 10).await.unwrap().len(),
        1
    );
}

#[tokio::test]
async fn the_same_key_gets_the_same_node_again_and_another_key_nothing() {
    let master = TestMaster::start().await;
    let token = master.token().await;
    let agent = Agent::new(&master);
    let first = agent.enroll(&token, "node").await.unwrap();
    let second = agent.enroll(&token, "node").await.unwrap();
    assert_eq!(first.node_uid, second.node_uid);
    assert_eq!(first.name, "node");
    let thief = Agent::new(&master);
    assert_eq!(
        thief.enroll(&token, "node").await.unwrap_err().code(),
        Code::PermissionDenied
    );
    assert_eq!(
        thief.enroll("guess", "node").await.unwrap_err().code(),
        Code::PermissionDenied
    );
    // A second node of the name gets another.
    let other = master.agent("node").await;
    assert_ne!(other.uid.as_bytes().as_slice(), first.node_uid.as_ref());
    let names = master.master.store().nodes(None, 10).await.unwrap();
    assert!(names[1].name.starts_with("node-"), "{}", names[1].name);
}

#[tokio::test]
async fn a_token_bound_to_a_network_is_worth_nothing_elsewhere() {
    let master = TestMaster::start().await;
    let issued = master
        .master
        .create_enrolment_token("bound", Duration::from_secs(60), |token| {
            token.bind_cidr = Some("192.0.2.0/24".parse().unwrap());
        })
        .await
        .unwrap();
    let agent = Agent::new(&master);
    assert_eq!(
        agent.enroll(&issued.secret, "n").await.unwrap_err().code(),
        Code::PermissionDenied
    );
    assert!(!format!("{issued:?}").contains(&issued.secret));
}

#[tokio::test]
async fn an_agent_with_a_wrong_pin_sends_no_token() {
    let master = TestMaster::start().await;
    let token = master.token().await;
    let mut agent = Agent::new(&master);
    agent.pin = format!("sha256:{}", "0".repeat(64));
    let refused = agent.enroll(&token, "node").await.unwrap_err();
    assert!(
        refused.message().contains("not the pinned one"),
        "{refused:?}"
    );
    assert!(
        master
            .master
            .store()
            .nodes(None, 1)
            .await
            .unwrap()
            .is_empty()
    );
    let honest = Agent::new(&master);
    honest.enroll(&token, "node").await.unwrap();
}

#[tokio::test]
async fn a_foreign_certificate_does_not_connect() {
    let master = TestMaster::start().await;
    let mut agent = master.agent("node").await;
    let (foreign, _) = CertificateAuthority::generate(SystemClock.now()).unwrap();
    let csr = hy2_master_sdk::auth::ca::NodeRequest::parse(&agent.csr()).unwrap();
    let forged = foreign
        .issue_node(agent.uid, &csr, SystemClock.now())
        .unwrap();
    agent.chain = vec![forged.certificate];
    assert!(agent.try_session(rpc::Hello::default()).await.is_err());
}

#[tokio::test]
async fn a_certificate_of_the_authority_that_is_no_nodes_does_not_connect() {
    let master = TestMaster::start().await;
    // Signed by the right authority, but not in the store: as the master's own certificate is.
    let vault = master.master.vault();
    let row = &master.master.store().authorities().await.unwrap()[0];
    let key = vault
        .open(
            "certificate_authorities.private_key",
            row.id.as_bytes(),
            &row.private_key_enc,
        )
        .unwrap();
    let authority = CertificateAuthority::load(row.certificate.clone().into(), &key).unwrap();
    let made = authority.issue_master(&[], SystemClock.now()).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.key.to_vec()));
    let pin = master.master.ca_pin();
    let chain = vec![made.issued.certificate];
    let stream = connect(master.address, &pin, ALPN_MASTER, chain, key).await;
    // In TLS 1.3 the refusal arrives after the client has finished.
    if let Ok(stream) = stream {
        let channel = crate::agent::channel(stream).await;
        if let Ok(channel) = channel {
            let mut client = MasterServiceClient::new(channel);
            assert!(client.lease(rpc::LeaseRequest::default()).await.is_err());
        }
    }
    assert!(master.master.live_nodes().is_empty());
}

/// The active authority, as nobody but the master has it.
async fn authority(master: &TestMaster) -> CertificateAuthority {
    let row = &master.master.store().authorities().await.unwrap()[0];
    let key = master
        .master
        .vault()
        .open(
            "certificate_authorities.private_key",
            row.id.as_bytes(),
            &row.private_key_enc,
        )
        .unwrap();
    CertificateAuthority::load(row.certificate.clone().into(), &key).unwrap()
}

#[tokio::test]
async fn a_certificate_from_after_the_backup_is_taken_in_for_the_name_and_key_of_a_node() {
    let master = TestMaster::start().await;
    let authority = authority(&master).await;
    let mut agent = master.agent("node").await;
    let issue = |agent: &Agent, csr: &[u8]| {
        let csr = hy2_master_sdk::auth::ca::NodeRequest::parse(csr).unwrap();
        let issued = authority.issue_node(agent.uid, &csr, SystemClock.now());
        vec![issued.unwrap().certificate]
    };
    // Renewed, and then the store was restored: it has never heard of this one.
    agent.chain = issue(&agent, &agent.csr());
    let mut session = agent.session().await;
    session.update().await;
    let node = agent.node().await;
    let mut client = agent.client().await;
    client.lease(rpc::LeaseRequest::default()).await.unwrap();
    // Nor of this one, which has run out meanwhile; but of its key.
    let expired = issue(&agent, &agent.csr());
    let (csr, at) = (agent.csr(), SystemClock.now().to_proto());
    let renew = rpc::RenewCertificateRequest {
        expired_certificate: expired[0].to_vec().into(),
        signature: proof(&agent.key, &csr, &at).into(),
        csr: csr.into(),
        at: Some(at),
    };
    let mut anonymous = MasterServiceClient::new(agent.channel(false).await.unwrap());
    anonymous.renew_certificate(renew.clone()).await.unwrap();
    // The node's name with another key is nobody's, and is told so.
    let mut other = Agent::new(&master);
    other.uid = agent.uid;
    other.chain = issue(&other, &other.csr());
    let refused = other.try_session(rpc::Hello::default()).await;
    let refused = refused.err().expect("refused");
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("no node"), "{refused}");
    // Revoked is revoked, whatever certificate is shown.
    master.master.revoke_node(node, "stolen").await.unwrap();
    until_farewell(&mut session).await;
    agent.chain = issue(&agent, &agent.csr());
    let mut again = agent.try_session(rpc::Hello::default()).await.unwrap();
    until_farewell(&mut again).await;
    let refused = agent
        .client()
        .await
        .lease(rpc::LeaseRequest::default())
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    let refused = anonymous.renew_certificate(renew).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_certificate_that_was_replaced_is_told_so_and_its_key_renews_it() {
    let master = TestMaster::with(Arc::new(SystemClock), |config| {
        config.certificate_grace = Duration::ZERO;
    })
    .await;
    let mut agent = master.agent("node").await;
    let renew = rpc::RenewCertificateRequest {
        csr: agent.csr().into(),
        ..Default::default()
    };
    // The answer is lost, or its copy.
    agent.client().await.renew_certificate(renew).await.unwrap();
    let refused = agent.try_session(rpc::Hello::default()).await;
    let refused = refused.err().expect("refused");
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("replaced"), "{refused}");
    let (csr, at) = (agent.csr(), SystemClock.now().to_proto());
    let renew = rpc::RenewCertificateRequest {
        expired_certificate: agent.chain[0].to_vec().into(),
        signature: proof(&agent.key, &csr, &at).into(),
        csr: csr.into(),
        at: Some(at),
    };
    let mut anonymous = MasterServiceClient::new(agent.channel(false).await.unwrap());
    let answer = anonymous.renew_certificate(renew).await.unwrap();
    agent.take(answer.into_inner().certificate.as_ref().unwrap());
    agent.session().await;
}

#[tokio::test]
async fn nothing_but_enrolment_works_without_a_certificate() {
    let master = TestMaster::start().await;
    let agent = master.agent("node").await;
    let mut client = MasterServiceClient::new(agent.channel(false).await.unwrap());
    let code = |status: tonic::Status| status.code();
    let hello = rpc::SessionRequest { event: None };
    assert_eq!(
        client
            .session(tokio_stream::iter([hello]))
            .await
            .map(|_| ())
            .map_err(code),
        Err(Code::Unauthenticated)
    );
    let batches = tokio_stream::iter([rpc::ReportTrafficRequest::default()]);
    assert_eq!(
        client
            .report_traffic(batches)
            .await
            .map(|_| ())
            .map_err(code),
        Err(Code::Unauthenticated)
    );
    assert_eq!(
        client
            .report_metrics(rpc::ReportMetricsRequest::default())
            .await
            .map(|_| ())
            .map_err(code),
        Err(Code::Unauthenticated)
    );
    assert_eq!(
        client
            .lease(rpc::LeaseRequest::default())
            .await
            .map(|_| ())
            .map_err(code),
        Err(Code::Unauthenticated)
    );
    assert_eq!(
        client
            .heartbeat(rpc::HeartbeatRequest::default())
            .await
            .map(|_| ())
            .map_err(code),
        Err(Code::Unauthenticated)
    );
    let renew = rpc::RenewCertificateRequest {
        csr: agent.csr().into(),
        ..Default::default()
    };
    assert_eq!(
        client
            .renew_certificate(renew)
            .await
            .map(|_| ())
            .map_err(code),
        Err(Code::Unauthenticated)
    );
}

#[tokio::test]
async fn anonymous_requests_of_one_address_are_limited() {
    let master = TestMaster::with(Arc::new(SystemClock), |config| {
        config.max_anonymous_per_minute = 3
    })
    .await;
    let agent = Agent::new(&master);
    for _ in 0..3 {
        assert_eq!(
            agent.enroll("x", "n").await.unwrap_err().code(),
            Code::PermissionDenied
        );
    }
    assert_eq!(
        agent.enroll("x", "n").await.unwrap_err().code(),
        Code::ResourceExhausted
    );
}

#[tokio::test]
async fn a_renewed_certificate_works_and_its_predecessor_for_the_grace() {
    let master = TestMaster::with(Arc::new(SystemClock), |config| {
        config.certificate_grace = Duration::from_secs(3_600);
    })
    .await;
    let mut agent = master.agent("node").await;
    let old = agent.chain.clone();
    let renew = rpc::RenewCertificateRequest {
        csr: agent.csr().into(),
        ..Default::default()
    };
    let answer = agent
        .client()
        .await
        .renew_certificate(renew.clone())
        .await
        .unwrap()
        .into_inner();
    agent.take(&answer.certificate.unwrap());
    assert_ne!(agent.chain[0], old[0]);
    agent
        .client()
        .await
        .lease(rpc::LeaseRequest::default())
        .await
        .unwrap();
    let new = std::mem::replace(&mut agent.chain, old);
    agent
        .client()
        .await
        .lease(rpc::LeaseRequest::default())
        .await
        .unwrap();
    agent.chain = new;
    agent.client().await.renew_certificate(renew).await.unwrap();
}

#[tokio::test]
async fn an_expired_certificate_does_not_connect_but_its_key_renews_it() {
    // The master believes that it is 40 days ago when it issues, and then the present.
    let clock = Arc::new(ManualClock::new(
        SystemClock.now().minus(Duration::from_secs(40 * 86_400)),
    ));
    let master = TestMaster::with(Arc::clone(&clock) as Arc<dyn Clock>, |_| {}).await;
    let mut agent = master.agent("node").await;
    clock.advance(Duration::from_secs(40 * 86_400));
    assert!(agent.try_session(rpc::Hello::default()).await.is_err());
    let csr = agent.csr();
    let at = clock.now().to_proto();
    let proof = |key: &rcgen::KeyPair| proof(key, &csr, &at);
    let renew = |signature: Vec<u8>| rpc::RenewCertificateRequest {
        csr: csr.clone().into(),
        expired_certificate: agent.chain[0].to_vec().into(),
        signature: signature.into(),
        at: Some(at),
    };
    let mut client = MasterServiceClient::new(agent.channel(false).await.unwrap());
    let thief = rcgen::KeyPair::generate().unwrap();
    let refused = client
        .renew_certificate(renew(proof(&thief)))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let mut old = renew(proof(&agent.key));
    old.at = Some(clock.now().minus(Duration::from_secs(600)).to_proto());
    assert_eq!(
        client.renew_certificate(old).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    let answer = client
        .renew_certificate(renew(proof(&agent.key)))
        .await
        .unwrap()
        .into_inner();
    agent.take(&answer.certificate.unwrap());
    agent
        .client()
        .await
        .lease(rpc::LeaseRequest::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_certificate_that_ends_cuts_open_streams_and_its_key_comes_back_with_another() {
    // TLS goes by the machine's clock, to which the first certificate is good for another two minutes, and the
    // second, which is good from five minutes before it is issued, is good already.
    let month = Duration::from_secs(30 * 86_400);
    let soon = Duration::from_secs(120);
    let clock = Arc::new(ManualClock::new(SystemClock.now().plus(soon).minus(month)));
    let master = TestMaster::with(Arc::clone(&clock) as Arc<dyn Clock>, |_| {}).await;
    let mut agent = master.agent("node").await;
    let mut session = agent.session().await;
    session.update().await;
    let mut client = agent.client().await;
    client.lease(rpc::LeaseRequest::default()).await.unwrap();
    clock.advance(month + Duration::from_secs(1));
    let ended = tokio::time::timeout(Duration::from_secs(5), async {
        while session.next().await.is_some() {}
    });
    ended.await.expect("the stream ends within 5 s");
    assert!(client.lease(rpc::LeaseRequest::default()).await.is_err());
    eventually("the node is gone", async || {
        master.master.live_nodes().is_empty()
    })
    .await;
    let csr = agent.csr();
    let at = clock.now().to_proto();
    let renew = rpc::RenewCertificateRequest {
        csr: csr.clone().into(),
        expired_certificate: agent.chain[0].to_vec().into(),
        signature: proof(&agent.key, &csr, &at).into(),
        at: Some(at),
    };
    let mut anonymous = MasterServiceClient::new(agent.channel(false).await.unwrap());
    let answer = anonymous.renew_certificate(renew).await.unwrap();
    agent.take(&answer.into_inner().certificate.unwrap());
    agent.session().await;
}

#[tokio::test]
async fn what_a_node_says_of_itself_is_text() {
    let master = TestMaster::start().await;
    for text in [
        "'; drop table vps_nodes; --",
        "$1",
        "\" or \"\"=\"",
        "%00%",
        "\\'; select 1",
    ] {
        let mut agent = Agent::new(&master);
        let request = rpc::EnrollRequest {
            token: master.token().await,
            csr: agent.csr().into(),
            name: text.to_owned(),
            info: Some(rpc::NodeInfo {
                hostname: text.to_owned(),
                agent_version: text.to_owned(),
                ..Default::default()
            }),
            public_host: text.to_owned(),
            listen_port: 0,
        };
        let mut client = MasterServiceClient::new(agent.channel(false).await.unwrap());
        match client.enroll(request).await {
            Ok(answer) => agent.accept(&answer.into_inner()),
            // Said in words, and nothing else happened.
            Err(status) => {
                assert_eq!(status.code(), Code::InvalidArgument, "{text}: {status:?}");
                continue;
            }
        }
        let session = agent.session().await;
        let alert = rpc::Alert {
            rule: text.to_owned(),
            severity: text.to_owned(),
            message: text.to_owned(),
            ..Default::default()
        };
        session
            .send(rpc::session_request::Event::Alert(alert))
            .await;
        session
            .send(rpc::session_request::Event::Heartbeat(
                rpc::Heartbeat::default(),
            ))
            .await;
        eventually("the session goes on", async || {
            let live = master.master.live_nodes();
            live.iter().any(|node| node.heartbeat.is_some())
        })
        .await;
    }
    let nodes = master.master.store().nodes(None, 10).await.unwrap();
    assert!(nodes.len() <= 5);
    master.agent("another").await;
}

/// Reads a session up to its end; the last word is that the node must not serve any more.
async fn until_farewell(session: &mut Session) {
    let mut last = None;
    while let Some(event) = session.next().await {
        last = Some(event);
    }
    match last {
        Some(rpc::session_response::Event::Goodbye(goodbye)) => assert!(goodbye.retired),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_deleted_node_is_told_so_now_and_whenever_it_asks() {
    let master = TestMaster::start().await;
    let (agent, other) = (master.agent("node").await, master.agent("other").await);
    let mut session = agent.session().await;
    session.update().await;
    for node in [agent.node().await, other.node().await] {
        let mut tx = master.master.store().begin().await.unwrap();
        let now = master.master.now();
        nodes::delete(&mut tx, node, None, now).await.unwrap();
        tx.commit().await.unwrap();
    }
    let ended = tokio::time::timeout(Duration::from_secs(5), until_farewell(&mut session));
    ended.await.expect("the stream ends within 5 s");
    // Also the one that was away.
    for agent in [agent, other] {
        let mut again = agent.try_session(rpc::Hello::default()).await.unwrap();
        until_farewell(&mut again).await;
    }
}

#[tokio::test]
async fn a_revocation_cuts_open_streams_and_nothing_brings_the_node_back() {
    let master = TestMaster::start().await;
    let (agent, other) = (master.agent("node").await, master.agent("other").await);
    let mut session = agent.session().await;
    let mut kept = other.session().await;
    session.update().await;
    kept.update().await;
    let node = agent.node().await;
    let mut client = agent.client().await;
    client.lease(rpc::LeaseRequest::default()).await.unwrap();
    master.master.revoke_node(node, "stolen").await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), until_farewell(&mut session));
    ended.await.expect("the stream ends within 5 s");
    eventually("its other streams are cut", async || {
        client.lease(rpc::LeaseRequest::default()).await.is_err()
    })
    .await;
    // It is told once more whenever it asks, and gets nothing else.
    let mut again = agent.try_session(rpc::Hello::default()).await.unwrap();
    until_farewell(&mut again).await;
    let mut client = agent.client().await;
    let refused = client.lease(rpc::LeaseRequest::default()).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    let mut anonymous = MasterServiceClient::new(agent.channel(false).await.unwrap());
    let renew = rpc::RenewCertificateRequest {
        csr: agent.csr().into(),
        expired_certificate: agent.chain[0].to_vec().into(),
        signature: vec![0; 64].into(),
        at: Some(SystemClock.now().to_proto()),
    };
    assert_eq!(
        anonymous.renew_certificate(renew).await.unwrap_err().code(),
        Code::Unauthenticated
    );
    let row = master.master.store().node(node).await.unwrap();
    assert_eq!(row.observed_state, ObservedState::Revoked);
    // The others stay.
    eventually("the other node is connected", async || {
        master.master.live_nodes().len() == 1
    })
    .await;
    kept.send(rpc::session_request::Event::Heartbeat(
        rpc::Heartbeat::default(),
    ))
    .await;
    let seen = tokio::time::timeout(DEADLINE, async {
        while master.master.live_nodes()[0].heartbeat.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    seen.await.unwrap();
}
