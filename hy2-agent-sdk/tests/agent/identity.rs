use std::{
    os::unix::fs::PermissionsExt,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, SystemTime},
};

use hy2_agent_sdk::{
    Agent, StartError,
    clock::ManualClock,
    config::CaPin,
    hy2_proto::control::rpc::{CertificateUpdate, session_response},
    link::LinkState,
};

use crate::{
    fleet::World,
    master::{Desired, Seen},
    soon,
};

async fn link_error(agent: &hy2_agent_sdk::AgentHandle, part: &str) {
    let mut link = agent.link();
    let says = |state: &LinkState| match state {
        LinkState::Down { error } => error.contains(part),
        _ => false,
    };
    let waited = tokio::time::timeout(crate::PATIENCE, link.wait_for(says)).await;
    assert!(
        waited.is_ok(),
        "{part:?} not in {:?}",
        agent.link().borrow()
    );
}

#[tokio::test]
async fn a_wrong_pin_gives_the_token_to_nobody() {
    let mut world = World::with_users(&[]).await;
    let mut config = world.agent_config();
    let enrolment = config.enrolment.as_mut().expect("set");
    enrolment.ca_pin = format!("sha256:{}", "ab".repeat(32))
        .parse::<CaPin>()
        .expect("a pin");
    let agent = Agent::spawn(config).await.expect("starts");
    link_error(&agent.handle(), "UnknownIssuer").await;
    link_error(&agent.handle(), "the pin is not of this master's authority").await;
    assert!(world.master.shared.used_tokens.lock().is_empty());
    drop(agent);
    world.start().await;
}

#[tokio::test]
async fn a_wrong_token_is_refused_and_the_token_is_written_nowhere() {
    let mut world = World::with_users(&[]).await;
    let mut config = world.agent_config();
    config.enrolment.as_mut().expect("set").token = zeroize::Zeroizing::new("wrong".to_owned());
    let agent = Agent::spawn(config).await.expect("starts");
    link_error(&agent.handle(), "refused").await;
    drop(agent);
    world.start().await;
    world.shutdown().await;
    let key = world.folder.path().join("node.key");
    let mode = std::fs::metadata(&key).expect("a key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mode = std::fs::metadata(world.folder.path())
        .expect("it")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
    let found = crate::refusals::files_with(world.folder.path(), crate::master::TOKEN.as_bytes());
    assert_eq!(found, Vec::<String>::new());
}

#[tokio::test]
async fn one_folder_has_one_agent() {
    let mut world = World::with_users(&[]).await;
    world.start().await;
    let second = Agent::spawn(world.agent_config()).await;
    assert!(
        matches!(second, Err(StartError::Folder { .. })),
        "{second:?}"
    );
}

#[tokio::test]
async fn a_certificate_is_renewed_when_it_is_due_also_after_it_has_run_out() {
    let clock = Arc::new(ManualClock::new(SystemTime::now()));
    let mut world = World::with_users(&[]).await;
    // Runs out by the agent's clock only; by TLS's own it is good.
    let ticking = Arc::clone(&clock);
    let agent = world.start_with(|builder| builder.clock(ticking)).await;
    world.master.acked(1).await;
    let first = agent.identity().credentials().expect("enrolled");
    world.shutdown().await;
    clock.advance(Duration::from_secs(31 * 86_400));
    *world.master.shared.certificate_life.lock() = Duration::from_secs(90 * 86_400);
    world.master.shared.desired.lock().valid_until =
        SystemTime::now() + Duration::from_secs(90 * 86_400);
    let ticking = Arc::clone(&clock);
    let agent = world.start_with(|builder| builder.clock(ticking)).await;
    world
        .master
        .until_seen("a session", |seen| seen.sessions == 2)
        .await;
    assert_eq!(world.master.shared.renewals.load(SeqCst), 1);
    let second = agent.identity().credentials().expect("enrolled");
    assert!(second.not_after > first.not_after);
    assert_eq!(second.node_uid, first.node_uid);
    let renew = CertificateUpdate {
        renew_now: true,
        ..Default::default()
    };
    world
        .master
        .send(session_response::Event::Certificates(renew))
        .await;
    soon("renewal", async {
        while world.master.shared.renewals.load(SeqCst) < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_certificate_that_is_refused_is_renewed_by_the_key() {
    let mut world = World::with_users(&[]).await;
    world.start().await;
    world.master.acked(1).await;
    world.shutdown().await;
    world.master.shared.refuses.store(true, SeqCst);
    world.start().await;
    world
        .master
        .until_seen("a session", |seen| seen.sessions == 2)
        .await;
    assert_eq!(world.master.shared.renewals.load(SeqCst), 1);
}

#[tokio::test]
async fn a_renewed_certificate_that_cannot_be_written_is_in_force_and_written_when_it_can() {
    let mut world = World::with_users(&[]).await;
    let agent = world.start().await;
    world.master.acked(1).await;
    let identity = agent.identity();
    let first = identity.credentials().expect("enrolled");
    let path = world.folder.path().join("identity");
    let before = std::fs::read(&path).expect("an identity");
    // What is in the way of every write.
    let beside = path.with_extension("tmp");
    std::fs::create_dir(&beside).expect("a folder");
    let life = Duration::from_secs(60 * 86_400);
    *world.master.shared.certificate_life.lock() = life;
    let renew = || {
        session_response::Event::Certificates(CertificateUpdate {
            renew_now: true,
            ..Default::default()
        })
    };
    world.master.send(renew()).await;
    soon("renewal", async {
        while identity.credentials().expect("enrolled").not_after <= first.not_after {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(std::fs::read(&path).expect("an identity"), before);
    std::fs::remove_dir(&beside).expect("empty");
    world.master.send(renew()).await;
    soon("written", async {
        while std::fs::read(&path).expect("an identity") == before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn authorities_and_keys_that_cannot_be_written_are_in_force_and_end_no_session() {
    let mut world = World::with_users(&[(1, "alice's credential")]).await;
    let agent = world.start().await;
    let identity = agent.identity();
    let path = world.folder.path().join("identity");
    let before = std::fs::read(&path).expect("an identity");
    let beside = path.with_extension("tmp");
    std::fs::create_dir(&beside).expect("in the way");
    let pki = &world.master.shared.pki;
    let keys = vec![
        pki.signing_key.clone(),
        pki.another_signer("signer-2", None).public.clone(),
    ];
    let update = |trusted_cas: &[&[u8]]| {
        session_response::Event::Certificates(CertificateUpdate {
            signing_keys: keys.clone(),
            trusted_cas: trusted_cas.iter().map(|ca| ca.to_vec().into()).collect(),
            renew_now: false,
        })
    };
    world.master.send(update(&[])).await;
    // Nor does one that cannot be used.
    world.master.send(update(&[b"no certificate"])).await;
    // A revocation after it is heard.
    let empty = |desired: &mut Desired| desired.users.clear();
    world.master.publish_acked(empty).await;
    world.is_refused("alice's credential").await;
    let current = identity.credentials().expect("enrolled");
    assert_eq!(current.signing_keys, keys);
    assert_eq!(current.trusted_cas, [world.master.shared.pki.ca()]);
    assert_eq!(std::fs::read(&path).expect("an identity"), before);
    let said = |seen: &Seen| {
        let mut rules = seen.alerts.iter().map(|alert| &*alert.rule);
        rules.any(|rule| rule == "identity_not_written")
    };
    let seen = world.master.until_seen("the alert", said).await;
    assert_eq!(seen.sessions, 1);
    std::fs::remove_dir(&beside).expect("empty");
    let renew = CertificateUpdate {
        renew_now: true,
        ..CertificateUpdate::default()
    };
    world
        .master
        .send(session_response::Event::Certificates(renew))
        .await;
    soon("written", async {
        while std::fs::read(&path).expect("an identity") == before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_session_that_ends_is_opened_again() {
    let mut world = World::with_users(&[(1, "alice's credential")]).await;
    let agent = world.start().await;
    for round in 2..5 {
        world.master.stop().await;
        let mut link = agent.link();
        soon(
            "down",
            link.wait_for(|state| state.connected_since().is_none()),
        )
        .await
        .expect("alive");
        world.client("alice's credential").await.close().await;
        world.master.resume().await;
        world
            .master
            .until_seen("a session", |seen| seen.sessions == round)
            .await;
    }
    let seen = world.master.shared.seen.borrow().clone();
    assert_eq!(
        seen.hello.expect("one").manifest_rev,
        1,
        "it knows what it has"
    );
}
