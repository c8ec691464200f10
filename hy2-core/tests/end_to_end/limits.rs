use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use hy2_core::{
    Bandwidth, Client,
    authenticator::UserLimits,
    congestion::{Algorithm, BbrProfile},
    error::ConnectError,
    server::ServerConfig,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::{JoinSet, yield_now},
    time::{Instant, sleep, timeout},
};

use crate::{
    origin::{Origin, read_sum},
    pair::Pair,
    payload::{self, Blocks},
    recorder::Event,
};

/// Virtual time over which a rate is measured.
const SPAN: Duration = Duration::from_secs(4);

#[tokio::test(start_paused = true)]
async fn a_download_limit_holds_over_all_connections_and_can_change() {
    let origin = Origin::endless().await;
    let (pair, _, _) = Pair::recorded(ServerConfig::default());
    let handle = pair.server.handle();
    let received = Arc::new(AtomicU64::new(0));
    let mut readers = JoinSet::new();
    let mut streams = Vec::new();
    for _ in 0..2 {
        let client = pair.client_of("alice").await;
        assert!(handle.set_limits(&"alice".into(), down(1_000_000)));
        for _ in 0..2 {
            streams.push((
                client.clone(),
                client.tcp(&origin.target()).await.expect("stream"),
            ));
        }
    }
    for (client, mut stream) in streams {
        let received = Arc::clone(&received);
        readers.spawn(async move {
            let _client = client;
            while let Ok(Some(chunk)) = stream.read_chunk().await {
                received.fetch_add(chunk.len() as u64, SeqCst);
            }
        });
    }
    for rate in [1_000_000, 3_000_000, 400_000] {
        handle.set_limits(&"alice".into(), down(rate));
        near(rate, measure(|| received.load(SeqCst)).await);
    }
    let user = handle.users().pop().expect("alice");
    assert_eq!(user.limits, down(400_000));
}

#[tokio::test(start_paused = true)]
async fn an_upload_limit_holds_and_can_change() {
    let arrived = Arc::new(AtomicU64::new(0));
    let origin = Origin::tcp({
        let arrived = Arc::clone(&arrived);
        move |mut stream| {
            let arrived = Arc::clone(&arrived);
            async move {
                let mut buffer = vec![0; 64 << 10];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    arrived.fetch_add(count as u64, SeqCst);
                }
            }
        }
    })
    .await;
    let (pair, users, _) = Pair::recorded(ServerConfig::default());
    // In force from the grant on.
    *users.limits.lock().expect("lock") = up(2_000_000);
    let client = pair.client_of("alice").await;
    let mut writers = JoinSet::new();
    for _ in 0..3 {
        let mut stream = client.tcp(&origin.target()).await.expect("stream");
        writers.spawn(async move {
            let mut blocks = Blocks::new();
            while stream.write_all(blocks.next()).await.is_ok() {}
        });
    }
    near(2_000_000, measure(|| arrived.load(SeqCst)).await);
    let handle = pair.server.handle();
    handle.set_limits(&"alice".into(), up(500_000));
    near(500_000, measure(|| arrived.load(SeqCst)).await);
    assert_eq!(users.traffic("alice").tx, arrived.load(SeqCst));
}

#[tokio::test(start_paused = true)]
async fn who_is_held_back_moves_nothing_and_loses_nothing() {
    let endless = Origin::endless().await;
    let checksum = Origin::checksum().await;
    let echo = Origin::udp_echo().await;
    let (pair, users, _) = Pair::recorded(ServerConfig::default());
    let handle = pair.server.handle();
    assert!(!handle.hold(&"alice".into(), true), "not here yet");
    let client = pair.client_of("alice").await;
    let mut download = client.tcp(&endless.target()).await.expect("stream");
    let received = Arc::new(AtomicU64::new(0));
    let reader = tokio::spawn({
        let received = Arc::clone(&received);
        async move {
            while let Ok(Some(chunk)) = download.read_chunk().await {
                received.fetch_add(chunk.len() as u64, SeqCst);
            }
        }
    });
    // Of bytes that are checked at the other end.
    let mut upload = client.tcp(&checksum.target()).await.expect("stream");
    let writer = tokio::spawn(async move {
        let sent = payload::send(&mut upload, 64 << 20).await.expect("send");
        upload.shutdown().await.expect("end");
        (sent, read_sum(&mut upload).await.expect("sum"))
    });
    while received.load(SeqCst) == 0 || users.traffic("alice").tx == 0 {
        yield_now().await;
    }
    for _ in 0..2 {
        assert!(handle.hold(&"alice".into(), true));
        // What was read and sent before may still arrive.
        sleep(Duration::from_secs(1)).await;
        let before = (users.traffic("alice"), received.load(SeqCst));
        let session = client.udp().await.expect("session");
        session.send(b"dropped", &echo.target()).expect("send");
        assert!(timeout(SPAN, session.recv()).await.is_err());
        let after = (users.traffic("alice"), received.load(SeqCst));
        assert_eq!((before.0.tx, before.0.rx), (after.0.tx, after.0.rx));
        assert_eq!(before.1, after.1);
        // A change of limits does not let go.
        handle.set_limits(&"alice".into(), down(100_000_000));
        sleep(SPAN).await;
        assert_eq!(received.load(SeqCst), after.1);
        assert!(handle.hold(&"alice".into(), false));
        // No time passes while bytes move.
        while received.load(SeqCst) == after.1 {
            assert!(!reader.is_finished());
            yield_now().await;
        }
        session.send(b"arrives", &echo.target()).expect("send");
        let packet = timeout(SPAN, session.recv()).await.expect("in time");
        assert_eq!(packet.expect("packet").data, b"arrives"[..]);
    }
    let (sent, arrived) = writer.await.expect("a task");
    assert_eq!(sent, arrived);
    assert_eq!(handle.connection_count(), 1);
    reader.abort();
}

#[tokio::test]
async fn lifting_a_limit_frees_a_stream_that_waits_for_it() {
    let origin = Origin::source(20 << 20).await;
    let (pair, users, _) = Pair::recorded(ServerConfig::default());
    // At this rate the pause after a single read is longer than this test may take.
    *users.limits.lock().expect("lock") = down(50);
    let client = pair.client_of("alice").await;
    let mut stream = client.tcp(&origin.target()).await.expect("stream");
    stream.read_u8().await.expect("first byte");
    pair.server
        .handle()
        .set_limits(&"alice".into(), UserLimits::default());
    let rest = timeout(Duration::from_secs(10), payload::receive(&mut stream)).await;
    assert_eq!(rest.expect("in time").expect("receive").len, (20 << 20) - 1);
}

#[tokio::test]
async fn a_lowered_connection_limit_closes_the_newest() {
    let (pair, users, recorder) = Pair::recorded(ServerConfig::default());
    let clients = [
        pair.client_of("alice").await,
        pair.client_of("alice").await,
        pair.client_of("alice").await,
    ];
    let bob = pair.client_of("bob").await;
    let handle = pair.server.handle();
    let oldest = handle.connections()[0].peer.connection;
    let limits = UserLimits {
        max_connections: Some(1),
        ..UserLimits::default()
    };
    assert!(handle.set_limits(&"alice".into(), limits));
    assert!(!handle.set_limits(&"nobody".into(), limits));
    clients[1].disconnected().await;
    clients[2].disconnected().await;
    recorder.until(2, Event::is_disconnected).await;
    let left: Vec<_> = handle.connections().into_iter().map(|c| c.peer).collect();
    assert_eq!(left.len(), 2);
    assert_eq!((left[0].connection, left[1].user.as_str()), (oldest, "bob"));
    assert_eq!(users.traffic("alice").connections, 1);

    // And the limit of a grant keeps one more out, like a wrong password would.
    *users.limits.lock().expect("lock") = limits;
    let error = Client::connect(pair.config_of("alice"))
        .await
        .expect_err("one too many");
    assert!(
        matches!(error, ConnectError::AuthRejected { .. }),
        "{error}"
    );
    assert_eq!(users.traffic("alice").connections, 1);
    // Whoever was not let in after all has no guard left behind, and no event.
    assert_eq!(users.guards.made() - users.guards.dropped(), 2);
    assert_eq!(recorder.count(Event::is_connected), 4);
    clients[0].close().await;
    recorder.until(3, Event::is_disconnected).await;
    pair.client_of("alice").await;
    bob.close().await;
}

#[tokio::test]
async fn congestion_control_changes_under_a_running_transfer() {
    let origin = Origin::checksum().await;
    let (pair, _, _) = Pair::recorded(ServerConfig::default());
    let mut config = pair.config_of("alice");
    let rate = 50_000_000;
    config.down = Some(Bandwidth::from_bytes_per_sec(rate));
    let client = Client::connect(config).await.expect("connect");
    let handle = pair.server.handle();
    let id = handle.connections()[0].peer.connection;
    let in_force = || handle.connections()[0].congestion.algorithm;
    let brutal = |rate| Algorithm::Brutal {
        rate,
        loss_compensation: true,
        overclaim_guard: false,
    };
    assert_eq!(in_force(), brutal(rate));
    let alice = "alice".into();
    let mut stream = client.tcp(&origin.target()).await.expect("stream");
    let sent = payload::send(&mut stream, 2 << 20).await.expect("send");

    // A user's limit caps the rate while it lasts.
    handle.set_limits(&alice, down(rate / 5));
    assert_eq!(in_force(), brutal(rate / 5));
    handle.set_limits(&alice, UserLimits::default());
    assert_eq!(in_force(), brutal(rate));
    // What the operator chose stays, whatever happens to limits.
    assert_eq!(handle.set_congestion(&alice, brutal(rate / 2)), 1);
    handle.set_limits(&alice, down(rate / 10));
    handle.set_limits(&alice, UserLimits::default());
    assert_eq!(
        handle.rate(id),
        Some(Bandwidth::from_bytes_per_sec(rate / 2))
    );
    for algorithm in [Algorithm::Reno, Algorithm::Bbr(BbrProfile::Standard)] {
        assert_eq!(handle.set_congestion(&alice, algorithm), 1);
        handle.set_limits(&alice, down(rate / 10));
        assert_eq!(in_force(), algorithm);
        assert_eq!(handle.rate(id), None);
        handle.set_limits(&alice, UserLimits::default());
    }
    assert_eq!(handle.set_congestion(&"nobody".into(), Algorithm::Reno), 0);

    stream.shutdown().await.expect("shutdown");
    assert_eq!(read_sum(&mut stream).await.expect("sum"), sent);
}

fn down(rate: u64) -> UserLimits {
    UserLimits {
        down: Some(Bandwidth::from_bytes_per_sec(rate)),
        ..UserLimits::default()
    }
}

fn up(rate: u64) -> UserLimits {
    UserLimits {
        up: Some(Bandwidth::from_bytes_per_sec(rate)),
        ..UserLimits::default()
    }
}

/// Bytes per second of virtual time by which `total` grows, once a rate has settled.
async fn measure(total: impl Fn() -> u64) -> f64 {
    sleep(Duration::from_secs(1)).await;
    let (before, start) = (total(), Instant::now());
    sleep(SPAN).await;
    (total() - before) as f64 / start.elapsed().as_secs_f64()
}

fn near(expected: u64, measured: f64) {
    let ratio = measured / expected as f64;
    assert!(
        (0.9..=1.1).contains(&ratio),
        "{measured} where {expected} is set"
    );
}

#[tokio::test]
async fn a_limit_of_zero_is_none() {
    let pair = Pair::start();
    let mut config = pair.config.clone();
    config.down = Some(Bandwidth::from_bytes_per_sec(5_000_000));
    let _client = Client::connect(config).await.expect("let in");
    let handle = pair.server.handle();
    let user = handle.users().pop().expect("somebody").user;
    for (limit, rate) in [(1_000_000, 1_000_000), (0, 5_000_000)] {
        assert!(handle.set_limits(&user, down(limit)));
        let agreed = handle.connections()[0].congestion.algorithm;
        assert!(
            matches!(agreed, Algorithm::Brutal { rate: at, .. } if at == rate),
            "{limit}: {agreed:?}"
        );
    }
}
