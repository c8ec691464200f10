use std::{
    path::Path,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, SystemTime},
};

use hy2_agent_sdk::{
    clock::ManualClock,
    hy2_proto::control::{
        hash,
        rpc::{
            CertificateUpdate, EngineState, ErrorCode, Manifest, NodeDesiredState, Obfuscation,
            ResourceAck, ResourceNack, ResourceUpdate, Salamander, SignedManifest, SigningKey,
            obfuscation::Kind, session_response,
        },
    },
};
use prost::Message;
use tokio::net::UdpSocket;

use crate::{
    fleet::{World, config, user},
    master::Master,
    origin::{Echo, Traffic},
    pki::Pki,
    soon,
};

const ALICE: &str = "alice's credential";

/// Files under `folder` that hold `needle`.
pub(crate) fn files_with(folder: &Path, needle: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("readable").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_with(&path, needle));
        } else if let Ok(bytes) = std::fs::read(&path)
            && bytes.windows(needle.len()).any(|window| window == needle)
        {
            found.push(path.display().to_string());
        }
    }
    found
}

async fn send(master: &Master, manifest: SignedManifest, change: impl FnOnce(&mut ResourceUpdate)) {
    let mut update = ResourceUpdate {
        manifest: Some(manifest),
        last: true,
        ..Default::default()
    };
    let desired = master.shared.desired.lock().clone();
    update.has_config = true;
    update.config = desired.config.encode_to_vec().into();
    update.users_snapshot = true;
    let users = desired.users.values();
    update.upsert_users = users.map(|entry| entry.encode_to_vec().into()).collect();
    change(&mut update);
    master.send(session_response::Event::Update(update)).await;
}

async fn next_nack(master: &Master, before: usize) -> ResourceNack {
    let mut nacks = master.shared.nacks.subscribe();
    let more = |nacks: &Vec<ResourceNack>| nacks.len() > before;
    let nacks = soon("a refusal", nacks.wait_for(more))
        .await
        .expect("alive");
    nacks[before].clone()
}

#[tokio::test]
async fn what_is_not_signed_for_this_node_in_order_is_refused_and_changes_nothing() {
    let mut world = World::with_users(&[(1, ALICE)]).await;
    world.start().await;
    let master = &world.master;
    master
        .publish_acked(|desired| {
            desired.users.insert(2, user(2, "bob"));
        })
        .await;
    let echo = Echo::start().await;
    let alice = world.client(ALICE).await;
    let traffic = Traffic::start(&alice, &echo.target(), 2, 500).await;
    let good = || Manifest {
        rev: 3,
        ..master.shared.manifest()
    };
    let sign = |manifest: Manifest| master.shared.pki.sign(&manifest);
    let foreign = Pki::new();
    let mut other_signature = sign(good());
    other_signature.signature = sign(Manifest { rev: 4, ..good() }).signature;
    let mut unknown_key = sign(good());
    unknown_key.key_id = b"another".as_slice().into();
    let cases = [
        (
            foreign.sign(&good()),
            ErrorCode::BadSignature,
            "manifest.signature",
        ),
        (
            other_signature,
            ErrorCode::BadSignature,
            "manifest.signature",
        ),
        (unknown_key, ErrorCode::BadSignature, "manifest.signature"),
        (
            sign(Manifest {
                node_uid: vec![8; 16].into(),
                ..good()
            }),
            ErrorCode::InvalidField,
            "manifest.node_uid",
        ),
        (
            sign(Manifest { rev: 1, ..good() }),
            ErrorCode::StaleRevision,
            "manifest.rev",
        ),
        (
            sign(Manifest {
                rev: 2,
                issued_at: None,
                ..good()
            }),
            ErrorCode::ConflictingRevision,
            "manifest.rev",
        ),
        (
            sign(Manifest {
                rev: 9,
                cluster_epoch: 0,
                ..good()
            }),
            ErrorCode::StaleRevision,
            "manifest.rev",
        ),
        (
            sign(Manifest {
                valid_until: Some((SystemTime::now() - Duration::from_secs(1)).into()),
                ..good()
            }),
            ErrorCode::Expired,
            "manifest.valid_until",
        ),
    ];
    for (at, (signed, code, path)) in cases.into_iter().enumerate() {
        send(master, signed, |_| ()).await;
        let nack = next_nack(master, at).await;
        let error = &nack.errors[0];
        assert_eq!(
            (error.code(), &*error.path),
            (code, path),
            "case {at}: {error:?}"
        );
    }
    let before = master.shared.nacks.borrow().len();
    send(master, sign(good()), |update| {
        let extra = user(3, "mallory").encode_to_vec();
        update.upsert_users.push(extra.into());
    })
    .await;
    assert_eq!(
        next_nack(master, before).await.errors[0].code(),
        ErrorCode::HashMismatch
    );
    send(master, sign(good()), |update| {
        update.config = vec![0x0a, 1, 65].into()
    })
    .await;
    assert_eq!(
        next_nack(master, before + 1).await.errors[0].code(),
        ErrorCode::HashMismatch
    );
    send(master, sign(good()), |update| {
        update.users_snapshot = false;
        update.users_base_rev = 77;
    })
    .await;
    assert_eq!(
        next_nack(master, before + 2).await.errors[0].code(),
        ErrorCode::BaseMissing
    );
    // A signer needs a certificate of that name; a node's will not do.
    let alerts = master.shared.seen.borrow().alerts.len();
    assert_eq!(alerts, 0);
    // The same, right: taken; and once more: nothing to do.
    for _ in 0..2 {
        send(master, sign(good()), |_| ()).await;
        master.acked(3).await;
    }
    world.client(ALICE).await.close().await;
    traffic.finish().await;
}

/// Tells the node which keys sign.
async fn announce(master: &Master, signing_keys: Vec<SigningKey>) {
    let update = CertificateUpdate {
        signing_keys,
        ..CertificateUpdate::default()
    };
    master
        .send(session_response::Event::Certificates(update))
        .await;
}

#[tokio::test]
async fn the_next_key_signs_once_it_was_announced_and_one_that_was_not_never() {
    let mut world = World::with_users(&[(1, ALICE)]).await;
    world.start().await;
    let master = &world.master;
    let pki = &master.shared.pki;
    let first = pki.signing_key.clone();
    let next = pki.another_signer("signer-2", None);
    let unknown = pki.another_signer("signer-3", None);
    let yesterday = SystemTime::now() - Duration::from_secs(86_400);
    let ended = pki.another_signer("signer-0", Some(yesterday));
    let rev = |rev| Manifest {
        rev,
        ..master.shared.manifest()
    };
    let refused = async |before, signed| {
        send(master, signed, |_| ()).await;
        let nack = next_nack(master, before).await;
        assert_eq!(nack.errors[0].code(), ErrorCode::BadSignature);
    };
    // Certified by the CA, but no master has named it.
    refused(0, next.sign(&rev(2))).await;
    announce(master, vec![next.public.clone(), first.clone()]).await;
    send(master, next.sign(&rev(2)), |_| ()).await;
    master.acked(2).await;
    // The one before stays good beside it.
    send(master, pki.sign(&rev(3)), |_| ()).await;
    master.acked(3).await;
    refused(1, unknown.sign(&rev(4))).await;
    // Named in place of another, it signs no better.
    let mut posing = unknown.sign(&rev(4));
    posing.key_id = next.public.key_id.clone();
    refused(2, posing).await;
    // One that has ended is no signer, named or not.
    let keys = vec![next.public.clone(), ended.public.clone()];
    announce(master, keys).await;
    refused(3, ended.sign(&rev(4))).await;
    refused(4, pki.sign(&rev(4))).await;
    send(master, next.sign(&rev(4)), |_| ()).await;
    master.acked(4).await;
}

#[tokio::test]
async fn a_node_that_was_cut_off_while_the_keys_changed_runs_its_state_and_comes_back() {
    const DAY: Duration = Duration::from_secs(86_400);
    let now = SystemTime::now();
    let clock = Arc::new(ManualClock::new(now));
    let mut world = World::with_users(&[(1, ALICE)]).await;
    *world.master.shared.certificate_life.lock() = DAY * 400;
    *world.master.shared.clock.lock() = Arc::clone(&clock) as _;
    let on = Arc::clone(&clock);
    world.start_with(|builder| builder.clock(on)).await;
    let rev = world.master.publish_acked(|_| ()).await;
    let old = world
        .master
        .shared
        .pki
        .another_signer("signer-0", Some(now + DAY * 31));
    announce(&world.master, vec![old.public.clone()]).await;
    let manifest = |rev| Manifest {
        rev,
        ..world.master.shared.manifest()
    };
    let signed = old.sign(&manifest(rev + 1));
    let of_new = manifest(rev + 2);
    send(&world.master, signed, |_| ()).await;
    world.master.acked(rev + 1).await;
    world.shutdown().await;
    world.master.stop().await;

    // Its signer's certificate is over; the state was signed in its time.
    clock.advance(DAY * 60);
    let on = Arc::clone(&clock);
    let agent = world.start_with(|builder| builder.clock(on)).await;
    assert_eq!(agent.status().borrow().engine, EngineState::Serving);
    assert_eq!(agent.status().borrow().manifest_rev, rev + 1);
    let mut fresh = of_new;
    fresh.valid_until = Some((now + DAY * 67).into());
    // From a master it is refused; the key that this one names is taken.
    world.master.shared.quiet.store(true, SeqCst);
    let sessions = world.master.shared.seen.borrow().sessions;
    world.master.resume().await;
    world
        .master
        .until_seen("the node is back", |seen| seen.sessions > sessions)
        .await;
    send(&world.master, old.sign(&fresh), |_| ()).await;
    let nack = next_nack(&world.master, 0).await;
    assert_eq!(nack.errors[0].code(), ErrorCode::BadSignature);
    announce(
        &world.master,
        vec![world.master.shared.pki.signing_key.clone()],
    )
    .await;
    let signed = world.master.shared.pki.sign(&fresh);
    send(&world.master, signed, |_| ()).await;
    world.master.acked(rev + 2).await;
}

#[tokio::test]
async fn a_new_epoch_starts_its_revisions_anew() {
    let mut world = World::with_users(&[(1, ALICE)]).await;
    world.start().await;
    let master = &world.master;
    for _ in 0..3 {
        master
            .publish_acked(|desired| {
                desired.valid_until += Duration::from_secs(1);
            })
            .await;
    }
    master
        .publish(|desired| {
            desired.epoch = 2;
            desired.rev = 0;
            desired.users.clear();
        })
        .await;
    let mut acks = master.shared.acks.subscribe();
    let new = |acks: &Vec<ResourceAck>| {
        acks.iter()
            .any(|ack| (ack.cluster_epoch, ack.manifest_rev) == (2, 1))
    };
    soon("the new epoch", acks.wait_for(new))
        .await
        .expect("alive");
    world.is_refused(ALICE).await;
}

#[tokio::test]
async fn a_configuration_that_cannot_run_is_refused_by_path_and_revocations_in_it_hold() {
    let mut world = World::with_users(&[(1, ALICE), (2, "bob's credential")]).await;
    let agent = world.start().await;
    let echo = Echo::start().await;
    let alice = world.client(ALICE).await;
    let traffic = Traffic::start(&alice, &echo.target(), 2, 500).await;
    let bob = world.client("bob's credential").await;
    let of_bob = Traffic::start(&bob, &echo.target(), 1, 500).await;
    let taken = UdpSocket::bind(("127.0.0.1", 0)).await.expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let listening = agent.listening();
    let rev = world
        .master
        .publish(|desired| {
            desired.config.listen.push(address);
            desired.users.remove(&2);
        })
        .await;
    let nack = world.master.nacked(rev).await;
    assert_eq!(nack.errors[0].path, "listen[1]", "{nack:?}");
    assert_eq!(nack.errors[0].code(), ErrorCode::CannotBind);
    assert_eq!(agent.listening(), listening);
    soon("the revoked one's end", of_bob.until_cut()).await;
    world.is_refused("bob's credential").await;
    // The next one that runs also brings back who was let in again meanwhile.
    world
        .master
        .publish_acked(|desired| {
            desired.config.listen.truncate(1);
            desired.users.insert(2, user(2, "bob's credential"));
        })
        .await;
    world.client("bob's credential").await.close().await;
    traffic.finish().await;
    assert_eq!(agent.status().borrow().engine, EngineState::Serving);
}

#[tokio::test]
async fn orders_hold_whose_configuration_cannot_run() {
    let mut world = World::with_users(&[(1, ALICE)]).await;
    let agent = world.start().await;
    let echo = Echo::start().await;
    let taken = UdpSocket::bind(("127.0.0.1", 0)).await.expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let ordered = async |state| {
        let rev = world
            .master
            .publish(|desired| {
                desired.config.listen.truncate(1);
                desired.config.listen.push(address.clone());
                desired.valid_until += Duration::from_secs(3600);
                desired.state = state;
                // Connections with streams stay until then.
                let drains = state == NodeDesiredState::Draining;
                desired.drain_deadline = drains.then(SystemTime::now);
            })
            .await;
        let nack = world.master.nacked(rev).await;
        assert_eq!(nack.errors[0].code(), ErrorCode::CannotBind);
    };
    for state in [
        NodeDesiredState::Disabled,
        NodeDesiredState::Maintenance,
        NodeDesiredState::Draining,
    ] {
        ordered(NodeDesiredState::Active).await;
        let alice = world.client(ALICE).await;
        let traffic = Traffic::start(&alice, &echo.target(), 1, 500).await;
        ordered(state).await;
        soon("the end", traffic.until_cut()).await;
        world.is_refused(ALICE).await;
        let status = agent.status().borrow().clone();
        assert_eq!((status.desired, status.manifest_rev), (state, 1));
        let valid_until = world.master.shared.desired.lock().valid_until;
        assert_eq!(status.valid_until, Some(valid_until));
    }
}

#[tokio::test]
async fn who_was_revoked_beside_a_configuration_that_cannot_run_stays_out_after_a_restart() {
    const BOB: &str = "bob's credential";
    let mut world = World::with_users(&[(1, ALICE), (2, BOB)]).await;
    world.start().await;
    let taken = UdpSocket::bind(("127.0.0.1", 0)).await.expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let rev = world
        .master
        .publish(|desired| {
            desired.config.listen.push(address);
            desired.users.remove(&2);
        })
        .await;
    world.master.nacked(rev).await;
    for secret in [&[1; 32], &[2; 32]] {
        assert_eq!(
            files_with(world.folder.path(), secret),
            Vec::<String>::new()
        );
    }
    world.master.stop().await;
    // Of the engine, and of the agent.
    let mut node = crate::restart::local(&world).await;
    node.restart_engine(crate::restart::within(0))
        .await
        .expect("restarted");
    world.is_refused(BOB).await;
    world.shutdown().await;
    let agent = world.start_with(|builder| builder).await;
    assert_eq!(agent.status().borrow().manifest_rev, 1);
    world.client(ALICE).await.close().await;
    world.is_refused(BOB).await;
    world.shutdown().await;
    // Disabled by the next, which cannot run either.
    world.master.resume().await;
    world.master.shared.desired.lock().state = NodeDesiredState::Disabled;
    world.start_with(|builder| builder).await;
    let rev = world.master.publish(|_| ()).await;
    world.master.nacked(rev).await;
    world.shutdown().await;
    world.master.stop().await;
    let agent = world.start_with(|builder| builder).await;
    assert_eq!(agent.status().borrow().desired, NodeDesiredState::Disabled);
    world.is_refused(ALICE).await;
    world.shutdown().await;
    // One that runs ends it.
    world.master.resume().await;
    {
        let mut desired = world.master.shared.desired.lock();
        desired.config.listen.truncate(1);
        desired.state = NodeDesiredState::Active;
        desired.users.insert(2, user(2, BOB));
    }
    world.start_with(|builder| builder).await;
    world.master.publish_acked(|_| ()).await;
    world.shutdown().await;
    world.master.stop().await;
    assert!(!world.folder.path().join("ledger-refused").exists());
    world.start_with(|builder| builder).await;
    world.client(BOB).await.close().await;
}

#[tokio::test]
async fn a_listener_that_is_to_take_part_of_its_own_address_is_told_the_way() {
    let mut world = World::with_users(&[(1, ALICE)]).await;
    world.master.shared.desired.lock().config.listen = vec!["0.0.0.0:0".into()];
    let agent = world.start().await;
    let port = agent.listening()[0].port();
    let rev = world
        .master
        .publish(|desired| desired.config.listen = vec![format!("127.0.0.1:{port}")])
        .await;
    let nack = world.master.nacked(rev).await;
    assert_eq!(nack.errors[0].path, "listen[0]", "{nack:?}");
    let told = format!("the node itself listens on 0.0.0.0:{port}: take that out first");
    assert!(nack.errors[0].message.contains(&told), "{nack:?}");
}

#[tokio::test]
async fn after_a_reboot_without_a_master_the_node_serves_from_its_ledger() {
    let mut world = World::with_users(&[(1, ALICE)]).await;
    world.start().await;
    world
        .master
        .publish_acked(|desired| {
            desired.users.insert(2, user(2, "bob's credential"));
            desired.users.remove(&1);
        })
        .await;
    world.shutdown().await;
    world.master.stop().await;
    let agent = world.start_with(|builder| builder).await;
    assert_eq!(agent.status().borrow().engine, EngineState::Serving);
    assert_eq!(agent.status().borrow().manifest_rev, 2);
    let echo = Echo::start().await;
    let bob = world.client("bob's credential").await;
    let traffic = Traffic::start(&bob, &echo.target(), 2, 1000).await;
    world.is_refused(ALICE).await;
    let moved = traffic.finish().await;
    world.master.resume().await;
    world
        .master
        .until_stored("what was moved meanwhile", |store| {
            store.bytes.get(&2) == Some(&(moved, moved))
        })
        .await;
}

#[tokio::test]
async fn a_ledger_that_was_touched_is_not_used_and_shows_no_secret() {
    const CANARY: &str = "obfuscation-canary-8c2e11";
    let mut world = World::with_users(&[(1, ALICE)]).await;
    world.master.shared.desired.lock().config = {
        let mut config = config(&world.site, "127.0.0.1:0");
        config.obfuscation = Some(salamander(CANARY));
        config
    };
    world.start().await;
    world.shutdown().await;
    world.master.stop().await;
    let desired = world.master.shared.desired.lock().clone();
    let tls_key = desired.config.encode_to_vec();
    assert!(
        tls_key
            .windows(CANARY.len())
            .any(|window| window == CANARY.as_bytes())
    );
    for secret in [
        CANARY.as_bytes(),
        &desired.users[&1].verifier,
        &[1; 32],
        &[2; 32],
    ] {
        assert_eq!(
            files_with(world.folder.path(), secret),
            Vec::<String>::new()
        );
    }
    let path = world.folder.path().join("ledger");
    let whole = std::fs::read(&path).expect("a ledger");
    assert_ne!(hash::blob(&whole), hash::blob(&[]));
    for at in [0, 8, 20, whole.len() / 2, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).expect("writable");
        let agent = world.start_with(|builder| builder).await;
        assert_ne!(
            agent.status().borrow().engine,
            EngineState::Serving,
            "byte {at}"
        );
        world.shutdown().await;
    }
    std::fs::write(&path, whole).expect("writable");
    let agent = world.start_with(|builder| builder).await;
    assert_eq!(agent.status().borrow().engine, EngineState::Serving);
}

pub(crate) fn salamander(password: &str) -> Obfuscation {
    Obfuscation {
        kind: Some(Kind::Salamander(Salamander {
            password: password.to_owned(),
        })),
    }
}
