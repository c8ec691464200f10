use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hy2_core::{
    Bandwidth, Client, ClientConfig,
    client::ServerAddress,
    congestion::Algorithm,
    error::{ConnectError, OpenError},
    server::ServerConfig,
    socket::SocketFactory,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UdpSocket,
    task::JoinSet,
};

use crate::{origin::Origin, pair::Pair, recorder::Event};

#[tokio::test]
async fn a_lazy_client_connects_with_the_first_call() {
    let origin = Origin::echo().await;
    let pair = Pair::start();
    let client = Client::lazy(pair.config.clone());
    client.disconnected().await;
    assert_eq!(pair.server.handle().connection_count(), 0);
    client.tcp(&origin.target()).await.expect("stream");
    assert_eq!(pair.server.handle().connection_count(), 1);
    assert!(client.info().await.expect("info").udp);
    assert_eq!(pair.server.handle().connection_count(), 1);
}

#[tokio::test]
async fn a_closed_client_stays_closed() {
    let origin = Origin::echo().await;
    let (pair, _, recorder) = Pair::recorded(ServerConfig::default());
    let client = pair.client_of("alice").await;
    let mut stream = client.tcp(&origin.target()).await.expect("stream");
    let session = client.udp().await.expect("session");
    let clone = client.clone();
    client.close().await;
    recorder.until(1, Event::is_disconnected).await;
    stream.read_u8().await.expect_err("closed");
    assert!(session.recv().await.is_none());
    for client in [client, clone] {
        let error = client.tcp(&origin.target()).await.expect_err("closed");
        assert!(
            matches!(error, OpenError::Connect(ConnectError::Closed)),
            "{error}"
        );
        let error = client.udp().await.expect_err("closed");
        assert!(
            matches!(error, OpenError::Connect(ConnectError::Closed)),
            "{error}"
        );
        client.close().await;
    }
}

#[tokio::test]
async fn a_stream_keeps_the_connection_open() {
    let origin = Origin::echo().await;
    let (pair, _, recorder) = Pair::recorded(ServerConfig::default());
    let client = pair.client_of("alice").await;
    let mut stream = client.tcp(&origin.target()).await.expect("stream");
    drop(client);
    stream.write_all(b"x").await.expect("write");
    assert_eq!(stream.read_u8().await.expect("read"), b'x');
    assert_eq!(recorder.count(Event::is_disconnected), 0);
    drop(stream);
    recorder.until(1, Event::is_disconnected).await;
}

#[tokio::test]
async fn a_session_keeps_the_connection_open() {
    let udp = Origin::udp_echo().await;
    let (pair, _, recorder) = Pair::recorded(ServerConfig::default());
    let client = pair.client_of("alice").await;
    let session = client.udp().await.expect("session");
    drop(client);
    session.send(b"ping", &udp.target()).expect("send");
    session.recv().await.expect("pong");
    assert_eq!(recorder.count(Event::is_disconnected), 0);
    drop(session);
    recorder.until(1, Event::is_disconnected).await;
}

#[tokio::test]
async fn one_attempt_serves_all_who_wait_for_it() {
    // Takes packets and never answers.
    let silent = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    let client = Client::lazy(silent_config(&silent, Duration::from_millis(400)));
    let started = Instant::now();
    let mut calls = JoinSet::new();
    for _ in 0..8 {
        let client = client.clone();
        calls.spawn(async move { client.tcp("127.0.0.1:1").await.map(drop) });
    }
    for result in calls.join_all().await {
        let error = result.expect_err("silence");
        assert!(
            matches!(error, OpenError::Connect(ConnectError::Silence)),
            "{error}"
        );
    }
    assert!(
        started.elapsed() < Duration::from_millis(1500),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn closing_ends_an_attempt_under_way() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    let client = Client::lazy(silent_config(&silent, Duration::from_secs(60)));
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.info().await.map(drop) }
    });
    // The attempt is under way once its first packet is here.
    silent.recv_from(&mut [0; 2048]).await.expect("packet");
    client.close().await;
    let error = call.await.expect("call").expect_err("closed");
    assert!(matches!(error, ConnectError::Closed), "{error}");
}

#[tokio::test]
async fn an_attempt_that_nobody_waits_for_is_given_up() {
    let origin = Origin::echo().await;
    let pair = Pair::start();
    let client = Client::lazy(pair.config.clone());
    {
        let call = client.info();
        tokio::pin!(call);
        // Polled once: begins to dial.
        let first = std::future::poll_fn(|cx| std::task::Poll::Ready(call.as_mut().poll(cx))).await;
        assert!(first.is_pending());
    }
    client.tcp(&origin.target()).await.expect("a new attempt");
}

#[tokio::test]
async fn both_ends_agree_on_rates() {
    let mbps = |n: u64| Bandwidth::from_bytes_per_sec(n * 125_000);
    let mut config = ServerConfig::default();
    config.max_rx = Some(mbps(20));
    config.max_tx = Some(mbps(30));
    let pair = Pair::with(config, |builder| builder);
    for (up, down, sent, received) in [
        (None, None, None, None),
        (Some(10), Some(15), Some(10), Some(15)),
        (Some(50), Some(60), Some(20), Some(30)),
    ] {
        let mut config = pair.config.clone();
        config.up = up.map(mbps);
        config.down = down.map(mbps);
        let client = Client::connect(config).await.expect("connect");
        assert_eq!(client.info().await.expect("info").tx, sent.map(mbps));
        let handle = pair.server.handle();
        let newest = handle.connections().pop().expect("connection");
        assert_eq!(handle.rate(newest.peer.connection), received.map(mbps));
    }
}

fn silent_config(server: &UdpSocket, connect_timeout: Duration) -> ClientConfig {
    let port = server.local_addr().expect("address").port();
    let mut config = ClientConfig::new(ServerAddress::new("127.0.0.1", port), "secret");
    config.tls.insecure = true;
    config.connect_timeout = connect_timeout;
    config
}

#[tokio::test]
async fn settings_without_sense_are_refused_before_anything_is_sent() {
    let pair = Pair::start();
    let spoilt: [fn(&mut ClientConfig); 6] = [
        |config| config.quic.keep_alive = Duration::ZERO,
        |config| config.quic.keep_alive = Duration::MAX,
        |config| config.quic.max_idle_timeout = Duration::from_secs(1),
        |config| config.quic.max_idle_timeout = Duration::MAX,
        |config| config.quic.stream_receive_window = 0,
        |config| config.quic.receive_window = 16_383,
    ];
    for spoil in spoilt {
        let mut config = pair.config.clone();
        spoil(&mut config);
        let error = Client::connect(config).await.expect_err("refused");
        assert!(matches!(error, ConnectError::Config(_)), "{error}");
    }
    assert_eq!(pair.server.handle().connection_count(), 0);
}

/// Opens nothing but what it is asked for, and says how often.
#[derive(Debug, Default)]
struct Counted(AtomicUsize);

impl SocketFactory for Counted {
    fn open(&self, remote: SocketAddr) -> io::Result<std::net::UdpSocket> {
        self.0.fetch_add(1, Relaxed);
        std::net::UdpSocket::bind((remote.ip(), 0))
    }
}

#[tokio::test]
async fn sockets_are_made_as_the_embedder_says() {
    let pair = Pair::start();
    #[cfg(target_os = "linux")]
    {
        let mut config = pair.config.clone();
        config.socket.bind_device = Some("no-such-dev0".to_owned());
        let error = Client::connect(config).await.expect_err("no such device");
        assert!(matches!(error, ConnectError::Socket(_)), "{error}");
    }
    let factory = Arc::new(Counted::default());
    let mut config = pair.config.clone();
    config.socket_factory = Some(Arc::clone(&factory) as _);
    let client = Client::connect(config).await.expect("connected");
    assert_eq!(factory.0.load(Relaxed), 1);
    client.close().await;
}

/// Rates at the ends of the range: a peer may say any.
#[tokio::test]
async fn rates_of_any_size_carry_bytes() {
    let origin = Origin::echo().await;
    let pair = Pair::start();
    for rate in [40_000, u64::MAX / 2, u64::MAX] {
        let mut config = pair.config.clone();
        config.up = Some(Bandwidth::from_bytes_per_sec(rate));
        config.down = config.up;
        config.quic.stream_receive_window = u64::MAX;
        config.quic.receive_window = u64::MAX;
        let client = Client::connect(config).await.expect("let in");
        let mut stream = client.tcp(&origin.target()).await.expect("stream");
        stream.write_all(&[7; 10_000]).await.expect("written");
        let mut back = [0; 10_000];
        stream.read_exact(&mut back).await.expect("echoed");
        assert!(back == [7; 10_000]);
        let sends_at =
            |algorithm| matches!(algorithm, Algorithm::Brutal { rate: at, .. } if at == rate);
        let connections = pair.server.handle().connections();
        assert!(
            connections
                .iter()
                .any(|status| sends_at(status.congestion.algorithm)),
            "{connections:?}"
        );
        client.close().await;
    }
}
