use std::{os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use hy2_agent_sdk::{
    hy2_proto::control::rpc::{self, ApplyEffect, NodeDesiredState},
    logs::LogRing,
};
use rustls::RootCertStore;
use tokio::net::{TcpStream, UnixStream};
use tokio_stream::StreamExt;
use tracing_subscriber::layer::SubscriberExt;

use crate::{
    fleet::World,
    master::{NodeClient, node_client},
    origin::{Echo, Traffic},
    soon,
};

const ALICE: &str = "alice's credential";

async fn local(world: &World) -> NodeClient {
    let path = world.folder.path().join("agent.sock");
    let mode = std::fs::metadata(&path)
        .expect("a socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    node_client(UnixStream::connect(path).await.expect("connects")).await
}

#[tokio::test]
async fn master_and_host_command_the_same_node() {
    let mut world = World::with_users(&[(1, ALICE), (2, "bob's credential")]).await;
    world.start().await;
    let echo = Echo::start().await;
    for round in 0..2 {
        let mut node = if round == 0 {
            local(&world).await
        } else {
            world.master.reverse().await
        };
        let info = node
            .get_info(rpc::GetInfoRequest {})
            .await
            .expect("info")
            .into_inner();
        let info = info.info.expect("info");
        assert_eq!((&*info.name, info.manifest_rev), ("node-1", 1));
        assert!(!info.listening.is_empty() && info.cpus > 0);

        let bob = world.client("bob's credential").await;
        let of_bob = Traffic::start(&bob, &echo.target(), 1, 100).await;
        let (one, two) = (world.client(ALICE).await, world.client(ALICE).await);
        let (first, second) = (
            Traffic::start(&one, &echo.target(), 1, 100).await,
            Traffic::start(&two, &echo.target(), 1, 100).await,
        );
        let request = rpc::ListSessionsRequest { user_id: 1 };
        let mut listed = node
            .list_sessions(request)
            .await
            .expect("sessions")
            .into_inner();
        let sessions = listed
            .next()
            .await
            .expect("one chunk")
            .expect("sessions")
            .sessions;
        assert_eq!(sessions.len(), 2);
        assert!(
            sessions
                .iter()
                .all(|one| one.user_id == 1 && one.tcp_streams == 1)
        );

        // One connection by its number, then the user.
        let request = rpc::KickSessionsRequest {
            connection_ids: vec![sessions[0].connection_id],
            ..Default::default()
        };
        assert_eq!(
            node.kick_sessions(request)
                .await
                .expect("kicked")
                .into_inner()
                .closed,
            1
        );
        let request = rpc::KickSessionsRequest {
            user_ids: vec![1],
            ..Default::default()
        };
        let mut closed = 1;
        soon("kicked", async {
            while closed < 2 {
                let kicked = node.kick_sessions(request.clone()).await.expect("kicked");
                closed += kicked.into_inner().closed;
            }
        })
        .await;
        soon("the end", first.until_cut()).await;
        soon("the end", second.until_cut()).await;
        of_bob.finish().await;

        let stats = node
            .get_stats(rpc::GetStatsRequest {})
            .await
            .expect("stats")
            .into_inner();
        assert!(stats.metrics.expect("figures").tx_bytes > 0);
        assert!(stats.connected_since.is_some() && stats.certificate_not_after.is_some());
        assert_eq!(stats.link_error, "");

        let mut wrong = world.master.shared.desired.lock().config.clone();
        wrong.listen = vec!["nowhere".into()];
        let request = rpc::CheckConfigRequest {
            config: Some(wrong),
        };
        let checked = node
            .check_config(request)
            .await
            .expect("checked")
            .into_inner();
        assert_eq!(checked.errors[0].path, "listen[0]");
        let same = world.master.shared.desired.lock().config.clone();
        let request = rpc::CheckConfigRequest { config: Some(same) };
        let checked = node
            .check_config(request)
            .await
            .expect("checked")
            .into_inner();
        assert_eq!(checked.effect(), ApplyEffect::Nothing, "{checked:?}");
    }
    // Who asks on the host hears why there is no master.
    world.master.stop().await;
    let mut node = local(&world).await;
    soon("the reason", async {
        loop {
            let stats = node.get_stats(rpc::GetStatsRequest {}).await;
            let stats = stats.expect("stats").into_inner();
            if stats.connected_since.is_none() && stats.link_error.contains("refused") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_ordered_rate_slows_a_user_and_ends() {
    let mut world = World::with_users(&[(1, ALICE)]).await;
    world.start().await;
    let mut node = local(&world).await;
    let request = |user_id, down_bytes_per_s| rpc::SetUserRateRequest {
        user_id,
        down_bytes_per_s,
        ..Default::default()
    };
    let refused = node
        .set_user_rate(request(9, 5000))
        .await
        .expect_err("nobody");
    assert_eq!(refused.code(), tonic::Code::NotFound);
    let refused = node
        .set_user_rate(request(1, 1))
        .await
        .expect_err("too slow");
    assert!(
        refused.message().starts_with("down_bytes_per_s"),
        "{refused}"
    );
    let alice = world.client(ALICE).await;
    let answer = node
        .set_user_rate(request(1, 100_000))
        .await
        .expect("set")
        .into_inner();
    assert_eq!(answer.connections, 1);
    // 300 KB at 100 KB/s, but for a burst: seconds.
    let echo = Echo::start().await;
    let begun = std::time::Instant::now();
    let traffic = Traffic::start(&alice, &echo.target(), 1, 100_000).await;
    soon("three rounds", async {
        while traffic.rounds.load(std::sync::atomic::Ordering::SeqCst) < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let slow = begun.elapsed();
    assert!(slow > Duration::from_millis(1500), "{slow:?}");
    node.set_user_rate(request(1, 0)).await.expect("lifted");
    traffic.finish().await;
}

#[tokio::test]
async fn states_are_ordered_logs_are_followed_and_checks_are_run() {
    let ring = LogRing::new();
    let subscriber = tracing_subscriber::registry().with(ring.layer());
    // While there is one subscriber only, tracing asks the thread that meets a line of code first
    // whether anybody wants it, for good; that may be another test's, which has none.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    // The agent's tasks run on this thread.
    let _guard = tracing::subscriber::set_default(subscriber);
    let mut world = World::with_users(&[(1, ALICE)]).await;
    world.start_with(|builder| builder.logs(ring)).await;
    world.master.acked(1).await;
    let mut node = local(&world).await;
    let request = rpc::TailLogsRequest {
        lines: 100,
        follow: true,
        level: "info".into(),
    };
    let mut lines = node.tail_logs(request).await.expect("lines").into_inner();
    soon("the past", async {
        loop {
            let line = lines.next().await.expect("a line").expect("a line");
            if line.message.contains("enrolled") {
                break;
            }
        }
    })
    .await;
    world.client(ALICE).await.close().await;
    soon("what follows", async {
        loop {
            let line = lines.next().await.expect("a line").expect("a line");
            if line.message.contains("client connected") {
                break;
            }
        }
    })
    .await;

    let order = |state: NodeDesiredState| rpc::SetStateRequest {
        state: state.into(),
        deadline: None,
    };
    for (state, reason) in [
        (NodeDesiredState::Draining, "to be drained"),
        (NodeDesiredState::Maintenance, "in maintenance"),
        (NodeDesiredState::Disabled, "disabled"),
        (NodeDesiredState::Active, ""),
    ] {
        node.set_state(order(state)).await.expect("ordered");
        let engine = match state {
            NodeDesiredState::Active => rpc::EngineState::Serving,
            _ => {
                world.is_refused(ALICE).await;
                rpc::EngineState::Draining
            }
        };
        let info = node.get_info(rpc::GetInfoRequest {}).await.expect("told");
        let info = info.into_inner().info.expect("there");
        assert_eq!((info.engine(), &*info.reason), (engine, reason));
    }
    world.client(ALICE).await.close().await;
    let refused = node.set_state(order(NodeDesiredState::Unspecified)).await;
    assert!(
        refused
            .expect_err("no state")
            .message()
            .starts_with("state")
    );

    let checks = rpc::RunDiagnosticsRequest { checks: Vec::new() };
    let results: Vec<_> = node
        .run_diagnostics(checks)
        .await
        .expect("results")
        .into_inner()
        .collect::<Vec<_>>()
        .await;
    let results: Vec<_> = results
        .into_iter()
        .map(|one| one.expect("a result"))
        .collect();
    let names: Vec<_> = results.iter().map(|one| &*one.check).collect();
    assert_eq!(names, hy2_agent_sdk::diagnostics::CHECKS);
    for check in ["dns", "clock", "listeners", "outbound"] {
        let result = results
            .iter()
            .find(|one| one.check == check)
            .expect("there");
        assert!(result.passed, "{result:?}");
    }
    let request = rpc::RunDiagnosticsRequest {
        checks: vec!["colour".into()],
    };
    node.run_diagnostics(request).await.expect_err("unknown");

    node.restart_engine(rpc::RestartEngineRequest::default())
        .await
        .expect("restarted");
    world.client(ALICE).await.close().await;
}

#[tokio::test]
async fn the_loopback_port_wants_a_certificate_and_no_node_s() {
    let mut world = World::with_users(&[(1, ALICE)]).await;
    let mut config = world.agent_config();
    config.loopback = Some(([127, 0, 0, 1], 0).into());
    let agent = hy2_agent_sdk::Agent::spawn(config).await.expect("starts");
    let address = agent.loopback_addr().expect("bound");
    world.agent = Some(agent);
    world.master.acked(1).await;
    let pki = &world.master.shared.pki;
    let foreign = crate::pki::Pki::new();
    let cases = [
        (None, false),
        (Some(pki.other("operator.example")), true),
        (Some(pki.other("node-2.node.hy2.internal")), false),
        (Some(foreign.other("operator.example")), false),
    ];
    for (at, (identity, welcome)) in cases.into_iter().enumerate() {
        let mut roots = RootCertStore::empty();
        roots.add(pki.ca()).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let mut tls = match identity {
            None => builder.with_no_client_auth(),
            Some((leaf, key)) => builder
                .with_client_auth_cert(vec![leaf], key)
                .expect("a pair"),
        };
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let tcp = TcpStream::connect(address).await.expect("connects");
        let name = "node-1.node.hy2.internal".try_into().expect("a name");
        let asked = async {
            let stream = connector.connect(name, tcp).await.ok()?;
            let mut node = node_client(stream).await;
            node.get_info(rpc::GetInfoRequest {}).await.ok()
        };
        assert_eq!(
            soon("an answer", asked).await.is_some(),
            welcome,
            "case {at}"
        );
    }
}

#[tokio::test]
async fn connections_that_say_nothing_keep_nobody_out() {
    let mut world = World::with_users(&[(1, ALICE)]).await;
    world.start().await;
    let mut first = local(&world).await;
    first.get_info(rpc::GetInfoRequest {}).await.expect("told");
    let request = rpc::TailLogsRequest::default();
    first.tail_logs(request).await.expect_err("no log is kept");
    let path = world.folder.path().join("agent.sock");
    let mut silent = Vec::new();
    for _ in 0..80 {
        silent.push(UnixStream::connect(&path).await.expect("connects"));
    }
    for _ in 0..40 {
        let asked = async { local(&world).await.get_info(rpc::GetInfoRequest {}).await };
        soon("an answer", asked).await.expect("told");
    }
    // Who made a call goes after all who never did.
    let asked = first.get_info(rpc::GetInfoRequest {});
    soon("an answer", asked).await.expect("told");
}

#[tokio::test]
async fn durations_and_moments_that_no_timer_takes_are_refused_or_cut_short() {
    let mut world = World::with_users(&[(1, ALICE)]).await;
    let duration = |seconds, nanos| prost_types::Duration { seconds, nanos };
    *world.master.shared.interval.lock() = Some(duration(i64::MAX, 999_999_999));
    world.start().await;
    let mut node = local(&world).await;
    let absurd = [
        duration(i64::MAX, 0),
        duration(i64::MAX, 999_999_999),
        duration(i64::MAX, i32::MAX),
        duration(i64::MIN, -1),
        duration(i64::MIN, i32::MIN),
        duration(-1, 0),
        duration(0, -1),
    ];
    for span in absurd {
        let request = rpc::SetUserRateRequest {
            user_id: 1,
            down_bytes_per_s: 5000,
            r#for: Some(span),
            ..Default::default()
        };
        let refused = node.set_user_rate(request).await.expect_err("too long");
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{span:?}");
        assert!(refused.message().starts_with("for: "), "{refused}");
        let request = rpc::RestartEngineRequest { grace: Some(span) };
        let refused = node.restart_engine(request).await.expect_err("too long");
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{span:?}");
        assert!(refused.message().starts_with("grace: "), "{refused}");
        let mut wrong = world.master.shared.desired.lock().config.clone();
        wrong.drain_grace = Some(span);
        let request = rpc::CheckConfigRequest {
            config: Some(wrong),
        };
        let checked = node.check_config(request).await.expect("checked");
        assert_eq!(checked.into_inner().errors[0].path, "drain_grace");
    }
    let request = rpc::RestartEngineRequest {
        grace: Some(duration(86_401, 0)),
    };
    node.restart_engine(request)
        .await
        .expect_err("a day at most");
    let request = rpc::SetStateRequest {
        state: NodeDesiredState::Draining.into(),
        deadline: Some(prost_types::Timestamp {
            seconds: i64::MIN,
            nanos: i32::MIN,
        }),
    };
    let refused = node.set_state(request).await.expect_err("no moment");
    assert!(refused.message().starts_with("deadline: "), "{refused}");

    // The longest that REST orders, and an end of all time.
    let request = rpc::SetUserRateRequest {
        user_id: 1,
        down_bytes_per_s: 5000,
        r#for: Some(duration(u32::MAX.into(), 0)),
        ..Default::default()
    };
    node.set_user_rate(request).await.expect("set");
    let request = rpc::SetStateRequest {
        state: NodeDesiredState::Draining.into(),
        deadline: Some(prost_types::Timestamp {
            seconds: i64::MAX,
            nanos: i32::MAX,
        }),
    };
    node.set_state(request).await.expect("ordered");
    world
        .master
        .publish_acked(|desired| {
            desired.config.previous_obfuscation = Some(rpc::PreviousObfuscation {
                obfuscation: Some(rpc::Obfuscation {
                    kind: Some(rpc::obfuscation::Kind::Salamander(rpc::Salamander {
                        password: "an old password".into(),
                    })),
                }),
                until: Some(prost_types::Timestamp {
                    seconds: i64::MAX,
                    nanos: 0,
                }),
            });
        })
        .await;
    world.client(ALICE).await.close().await;
    // One session all along, whatever intervals the master named.
    let seen = world
        .master
        .until_seen("figures", |seen| !seen.metrics.is_empty())
        .await;
    assert_eq!(seen.sessions, 1);
}
