use std::time::{Duration, Instant};

use hy2_core::{
    Client, Server,
    authenticator::Password,
    error::{ConnectError, OpenError},
    server::ServerConfig,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::{
    origin::{Origin, read_sum},
    pair::{PASSWORD, Pair, anywhere, certificate},
    payload::{Blocks, Summer},
    recorder::Event,
};

#[tokio::test]
async fn a_drain_lets_streams_finish_and_nothing_new_begin() {
    let origin = Origin::checksum().await;
    let (pair, users, recorder) = Pair::recorded(ServerConfig::default());
    let busy = pair.client_of("busy").await;
    let idle = pair.client_of("idle").await;
    let mut stream = busy.tcp(&origin.target()).await.expect("stream");
    let mut blocks = Blocks::new();
    let mut sum = Summer::default();
    for _ in 0..50 {
        let block = blocks.next();
        stream.write_all(block).await.expect("write");
        sum.add(block);
    }
    let started = Instant::now();
    let (server, config) = (pair.server, pair.config);
    let drain = tokio::spawn(server.drain(Duration::from_secs(60)));

    idle.disconnected().await;
    let refused = busy.tcp(&origin.target()).await.expect_err("draining");
    assert!(
        matches!(&refused, OpenError::Refused(text) if text == "server is shutting down"),
        "{refused}"
    );
    let turned_away = Client::connect(config).await.expect_err("draining");
    assert!(
        matches!(turned_away, ConnectError::Lost(_)),
        "{turned_away}"
    );
    assert!(!drain.is_finished());

    for _ in 0..50 {
        let block = blocks.next();
        stream.write_all(block).await.expect("write");
        sum.add(block);
    }
    stream.shutdown().await.expect("shutdown");
    assert_eq!(read_sum(&mut stream).await.expect("sum"), sum.finish());
    busy.disconnected().await;
    timeout(Duration::from_secs(10), drain)
        .await
        .expect("ends early")
        .expect("drain");
    println!("drained in {:?}", started.elapsed());
    // Everything was reported by then.
    assert_eq!(recorder.count(Event::is_disconnected), 2);
    assert_eq!(recorder.count(Event::is_closed), 1);
    assert_eq!(users.guards.dropped(), 2);
}

#[tokio::test]
async fn a_drain_ends_at_its_grace_when_a_stream_does_not() {
    let origin = Origin::echo().await;
    let (pair, users, recorder) = Pair::recorded(ServerConfig::default());
    let client = pair.client_of("alice").await;
    let mut stream = client.tcp(&origin.target()).await.expect("stream");
    stream.write_all(b"x").await.expect("write");
    stream.read_u8().await.expect("read");
    let started = Instant::now();
    let grace = Duration::from_millis(300);
    pair.server.drain(grace).await;
    let took = started.elapsed();
    assert!(
        (grace..grace + Duration::from_secs(4)).contains(&took),
        "{took:?}"
    );
    stream.read_u8().await.expect_err("closed");
    assert_eq!(recorder.count(Event::is_disconnected), 1);
    assert_eq!(recorder.count(Event::is_closed), 1);
    assert_eq!(users.traffic("alice").streams, 0);
    assert_eq!(users.guards.dropped(), 1);
}

#[tokio::test]
async fn a_udp_session_does_not_hold_up_a_drain() {
    let echo = Origin::udp_echo().await;
    let (pair, users, recorder) = Pair::recorded(ServerConfig::default());
    let client = pair.client_of("alice").await;
    let session = client.udp().await.expect("session");
    session.send(b"ping", &echo.target()).expect("send");
    session.recv().await.expect("pong");
    let drain = pair.server.drain(Duration::from_secs(60));
    timeout(Duration::from_secs(10), drain)
        .await
        .expect("ends early");
    assert!(session.recv().await.is_none());
    assert_eq!(recorder.count(Event::is_udp_closed), 1);
    assert_eq!(users.traffic("alice").udp_sessions, 0);
}

#[tokio::test]
async fn an_idle_server_drains_at_once() {
    let pair = Pair::start();
    let started = Instant::now();
    pair.server.drain(Duration::from_secs(60)).await;
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn the_port_is_free_after_a_drain_and_clients_come_back_by_themselves() {
    let origin = Origin::echo().await;
    let (tls, roots) = certificate();
    let serve = |address| {
        Server::builder(tls.clone())
            .listen(address)
            .authenticator(Password::new(PASSWORD))
            .outbound(anywhere())
            .bind()
    };
    let first = serve(([127, 0, 0, 1], 0).into()).expect("server");
    let address = first.local_addrs()[0];
    let mut config = hy2_core::ClientConfig::new(
        hy2_core::client::ServerAddress::new("127.0.0.1", address.port()),
        PASSWORD,
    );
    config.tls.roots = Some(roots);
    config.tls.sni = Some("localhost".to_owned());
    let client = Client::connect(config).await.expect("connect");
    for _ in 0..3 {
        client.tcp(&origin.target()).await.expect("stream");
    }
    first.drain(Duration::from_secs(5)).await;
    let second = serve(address).expect("the same port");
    let mut stream = client.tcp(&origin.target()).await.expect("stream");
    stream.write_all(b"x").await.expect("write");
    stream.read_u8().await.expect("read");
    assert_eq!(second.handle().connection_count(), 1);
}
