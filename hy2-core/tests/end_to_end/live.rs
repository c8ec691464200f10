//! A server that changes while connections live.

use std::{net::UdpSocket, time::Duration};

use hy2_core::{
    Client, ClientConfig,
    client::ServerAddress,
    error::{ConnectError, OpenError},
    relay::TcpStream,
    server::ServerConfig,
    socket::Obfuscation,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout},
};

use crate::{
    origin::Origin,
    pair::{Pair, certificate},
};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn settings_are_in_force_for_what_begins_after_the_change() {
    let (udp, pair) = (Origin::udp_echo().await, Pair::start());
    let handle = pair.server.handle();
    let old = pair.client().await;
    let session = old.udp().await.expect("a session");
    let mut config = handle.config();
    config.disable_udp = true;
    handle.set_config(config).expect("in range");
    let new = pair.client().await;
    assert!(matches!(new.udp().await, Err(OpenError::UdpDisabled)));
    session.send(b"still", &udp.target()).expect("sent");
    timeout(PATIENCE, session.recv())
        .await
        .expect("in time")
        .expect("echoed");

    let mut wrong = handle.config();
    wrong.quic.max_incoming_streams = 1;
    handle.set_config(wrong).expect_err("out of range");
    assert!(handle.config().disable_udp, "what was in force stays");
}

#[tokio::test]
async fn a_listener_is_added_drained_and_taken_back_under_live_streams() {
    let (echo, pair) = (Origin::echo().await, Pair::start());
    let handle = pair.server.handle();
    let added = handle.listen(([127, 0, 0, 1], 0).into()).expect("a port");
    assert_eq!(handle.local_addrs().len(), 2);
    handle.listen(added).expect_err("taken");
    let mut there = pair.config.clone();
    there.server = ServerAddress::new("127.0.0.1", added.port());
    let client = Client::connect(there.clone()).await.expect("let in");
    let mut stream = client.tcp(&echo.target()).await.expect("a stream");
    ping(&mut stream).await;

    assert!(handle.unlisten(added, PATIENCE));
    assert!(!handle.unlisten(added, PATIENCE), "it drains already");
    assert_eq!(handle.local_addrs(), pair.server.local_addrs());
    assert_eq!(handle.local_addrs().len(), 1);
    Client::connect(there.clone())
        .await
        .expect_err("nobody new");
    ping(&mut stream).await;

    assert_eq!(handle.listen(added).expect("again"), added);
    let second = Client::connect(there).await.expect("let in");
    ping(&mut stream).await;
    assert!(handle.unlisten(added, PATIENCE));
    drop((stream, client, second));
    // Its connections are over, so it is closed before its time.
    let free = async {
        while UdpSocket::bind(added).is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, free).await.expect("the port is free");
    pair.client().await.close().await;
}

#[tokio::test]
async fn a_listener_that_is_retired_without_grace_tells_its_clients() {
    let (echo, pair) = (Origin::echo().await, Pair::start());
    let client = pair.client().await;
    let mut stream = client.tcp(&echo.target()).await.expect("a stream");
    ping(&mut stream).await;
    let address = pair.server.local_addrs()[0];
    assert!(pair.server.handle().unlisten(address, Duration::ZERO));
    timeout(PATIENCE, client.disconnected())
        .await
        .expect("told");
}

/// A closed connection lingers for three probe timeouts, and its listener with it.
#[tokio::test]
async fn a_listener_that_is_wanted_back_while_it_closes_serves() {
    let (echo, pair) = (Origin::echo().await, Pair::start());
    let handle = pair.server.handle();
    let address = pair.server.local_addrs()[0];
    for _ in 0..10 {
        let client = pair.client().await;
        let mut stream = client.tcp(&echo.target()).await.expect("a stream");
        ping(&mut stream).await;
        assert!(handle.unlisten(address, Duration::ZERO));
        timeout(PATIENCE, client.disconnected())
            .await
            .expect("told");
        assert_eq!(handle.listen(address).expect("again"), address);
    }
    assert_eq!(handle.local_addrs(), [address]);
    let client = pair.client().await;
    let mut stream = client.tcp(&echo.target()).await.expect("a stream");
    ping(&mut stream).await;
}

#[tokio::test]
async fn two_obfuscations_are_understood_until_the_old_one_ends() {
    let salamander = |key: &str| Obfuscation::salamander(key).expect("a key");
    let gecko = |key: &str| Obfuscation::gecko(key, 512, 1200).expect("a key");
    let old_key = "the old key of some length";
    let new_key = "the new key of some length";
    for (old, new) in [
        (salamander(old_key), salamander(new_key)),
        (Obfuscation::Plain, gecko(new_key)),
        (gecko(old_key), Obfuscation::Plain),
        (gecko(old_key), gecko(new_key)),
    ] {
        let echo = Origin::echo().await;
        let mut config = ServerConfig::default();
        config.obfuscation = old.clone();
        let pair = Pair::with(config, |builder| builder);
        let handle = pair.server.handle();
        let speaking = |obfuscation: &Obfuscation| {
            let mut config = pair.config.clone();
            config.obfuscation = obfuscation.clone();
            config
        };
        let before = Client::connect(speaking(&old)).await.expect("let in");
        let mut old_stream = before.tcp(&echo.target()).await.expect("a stream");
        ping(&mut old_stream).await;

        let far = Instant::now() + Duration::from_secs(3600);
        handle.set_obfuscation(new.clone(), Some((old.clone(), far)));
        ping(&mut old_stream).await;
        let late = Client::connect(speaking(&old)).await.expect("let in");
        let after = Client::connect(speaking(&new)).await.expect("let in");
        let mut new_stream = after.tcp(&echo.target()).await.expect("a stream");
        ping(&mut new_stream).await;
        ping(&mut old_stream).await;

        // Back: who speaks either goes on.
        handle.set_obfuscation(old.clone(), Some((new.clone(), far)));
        ping(&mut new_stream).await;
        ping(&mut old_stream).await;

        // The end of one: its connections are told, the other's stay.
        let near = Instant::now() + Duration::from_millis(50);
        handle.set_obfuscation(new.clone(), Some((old.clone(), near)));
        for client in [before, late] {
            timeout(PATIENCE, client.disconnected())
                .await
                .expect("told");
        }
        ping(&mut new_stream).await;
        handle.set_obfuscation(new.clone(), None);
        let mut config = speaking(&old);
        config.connect_timeout = Duration::from_secs(1);
        is_silent(config).await;
        ping(&mut new_stream).await;
    }
}

#[tokio::test]
async fn one_connection_is_kicked_by_its_number() {
    let (echo, pair) = (Origin::echo().await, Pair::start());
    let handle = pair.server.handle();
    let kicked = pair.client().await;
    let number = handle.connections()[0].peer.connection;
    let kept = pair.client().await;
    let mut stream = kept.tcp(&echo.target()).await.expect("a stream");
    ping(&mut stream).await;
    assert!(handle.kick_connection(number));
    timeout(PATIENCE, kicked.disconnected())
        .await
        .expect("told");
    ping(&mut stream).await;
    let status = handle.connections();
    let mine = status.iter().find(|one| one.peer.connection != number);
    assert_eq!(mine.expect("it lives").traffic.streams, 1);
    assert!(!handle.kick_connection(u64::MAX.into()));
}

#[tokio::test]
async fn an_adopted_certificate_is_what_new_clients_see() {
    let (tls, roots) = certificate();
    let (other, other_roots) = certificate();
    let mut pair = Pair::served_by(tls.clone(), ServerConfig::default(), |builder| builder);
    pair.config.tls.roots = Some(roots);
    let old = pair.client().await;
    tls.adopt(&other);
    let distrusts = Client::connect(pair.config.clone()).await;
    assert!(
        matches!(distrusts, Err(ConnectError::Tls(_))),
        "{distrusts:?}"
    );
    pair.config.tls.roots = Some(other_roots);
    pair.client().await.close().await;
    old.udp().await.expect("the old connection lives");
}

async fn ping(stream: &mut TcpStream) {
    let there_and_back = async {
        stream.write_all(b"ping").await.expect("written");
        let mut pong = [0; 4];
        stream.read_exact(&mut pong).await.expect("echoed");
        assert_eq!(&pong, b"ping");
    };
    timeout(PATIENCE, there_and_back).await.expect("in time");
}

async fn is_silent(config: ClientConfig) {
    let connected = Client::connect(config).await;
    assert!(
        matches!(connected, Err(ConnectError::Silence)),
        "{connected:?}"
    );
}
