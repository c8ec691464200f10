use std::{collections::HashSet, time::Duration};

use hy2_core::{
    client::UdpSession,
    error::{OpenError, UdpSendError},
    outbound::Direct,
    server::ServerConfig,
};
use tokio::{
    net::UdpSocket,
    time::{sleep, timeout},
};

use crate::{origin::Origin, pair::Pair, recorder::Event};

#[tokio::test]
async fn datagrams_of_every_size_come_back() {
    let origin = Origin::udp_echo().await;
    let pair = Pair::start();
    let client = pair.client().await;
    let session = client.udp().await.expect("session");
    let target = origin.target();
    let max = hy2_core::proto::udp::max_payload(target.len());
    for len in [1, 2, 100, 1000, 1180, 1200, 1500, 3000, max] {
        let data: Vec<u8> = (0..len).map(|i| i as u8).collect();
        session.send(&data, &target).expect("send");
        let packet = answer(&session).await;
        assert_eq!(packet.source(), target);
        assert_eq!(packet.data, data, "{len} bytes");
    }
    for len in [0, max + 1] {
        let error = session.send(&vec![7; len], &target).expect_err("size");
        assert!(matches!(error, UdpSendError::Size { .. }), "{error}");
    }
    for wrong in ["", "name", "127.0.0.1:65536"] {
        let error = session.send(b"x", wrong).expect_err("address");
        assert!(
            matches!(error, UdpSendError::Address(_)),
            "{wrong}: {error}"
        );
    }
}

#[tokio::test]
async fn one_session_reaches_several_targets_from_one_port() {
    let pair = Pair::start();
    let client = pair.client().await;
    let session = client.udp().await.expect("session");
    let mut ports = HashSet::new();
    let mut origins = Vec::new();
    for _ in 0..5 {
        origins.push(Origin::udp_mirror().await);
    }
    for origin in origins.iter().chain(&origins) {
        session.send(b"who am I", &origin.target()).expect("send");
        let packet = answer(&session).await;
        assert_eq!(packet.source(), origin.target());
        ports.insert(packet.data);
    }
    assert_eq!(ports.len(), 1, "seen from {ports:?}");
}

#[tokio::test]
async fn a_third_party_can_answer_to_the_sessions_socket() {
    let mirror = Origin::udp_mirror().await;
    let pair = Pair::start();
    let client = pair.client().await;
    let session = client.udp().await.expect("session");
    let port = port_of(&session, &mirror).await;
    let third = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    third
        .send_to(b"full cone", ("127.0.0.1", port))
        .await
        .expect("send");
    let packet = answer(&session).await;
    assert_eq!(
        packet.source(),
        third.local_addr().expect("address").to_string()
    );
    assert_eq!(packet.data, "full cone");
    // And be answered.
    session.send(b"pong", packet.source()).expect("send");
    let mut buffer = [0; 16];
    let (len, from) = third.recv_from(&mut buffer).await.expect("receive");
    assert_eq!((&buffer[..len], from.port()), (&b"pong"[..], port));
}

#[tokio::test]
async fn an_idle_session_expires_and_the_next_datagram_makes_it_anew() {
    let mirror = Origin::udp_mirror().await;
    let mut config = ServerConfig::default();
    config.udp_idle_timeout = Duration::from_secs(2);
    let (pair, users, recorder) = Pair::recorded(config);
    let client = pair.client_of("alice").await;
    let session = client.udp().await.expect("session");
    let first = port_of(&session, &mirror).await;
    let traffic = users.traffic("alice");
    assert_eq!(traffic.udp_sessions, 1);

    tokio::time::pause();
    // Kept alive by a datagram in time.
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(port_of(&session, &mirror).await, first);
    sleep(Duration::from_millis(1900)).await;
    assert_eq!(recorder.count(Event::is_udp_closed), 0);
    sleep(Duration::from_millis(200)).await;
    tokio::time::resume();
    recorder.until(1, Event::is_udp_closed).await;
    assert_eq!(users.traffic("alice").udp_sessions, 0);

    let second = port_of(&session, &mirror).await;
    assert_ne!(first, second);
    assert_eq!(recorder.count(Event::is_udp_opened), 2);
    assert_eq!(users.traffic("alice").udp_sessions, 1);
}

#[tokio::test]
async fn two_hundred_sessions_keep_apart() {
    let mirror = Origin::udp_mirror().await;
    let echo = Origin::udp_echo().await;
    let (pair, users, recorder) = Pair::recorded(ServerConfig::default());
    let client = pair.client_of("alice").await;
    let mut sessions = Vec::new();
    let mut ports = HashSet::new();
    for _ in 0..200 {
        let session = client.udp().await.expect("session");
        ports.insert(port_of(&session, &mirror).await);
        sessions.push(session);
    }
    assert_eq!(ports.len(), 200);
    assert_eq!(users.traffic("alice").udp_sessions, 200);
    // Their answers come mixed; each must find its way. Small steps: nobody paces UDP here.
    for (step, some) in sessions.chunks(20).enumerate() {
        for (number, session) in some.iter().enumerate() {
            let text = format!("{step} {number}");
            session.send(text.as_bytes(), &echo.target()).expect("send");
        }
        for (number, session) in some.iter().enumerate() {
            assert_eq!(answer(session).await.data, format!("{step} {number}"));
        }
    }
    client.close().await;
    recorder.until(1, Event::is_disconnected).await;
    assert_eq!(recorder.count(Event::is_udp_closed), 200);
    assert_eq!(users.traffic("alice").udp_sessions, 0);
}

#[tokio::test]
async fn a_server_without_udp_says_so() {
    let mut config = ServerConfig::default();
    config.disable_udp = true;
    let pair = Pair::with(config, |builder| builder);
    let client = pair.client().await;
    let error = client.udp().await.expect_err("disabled");
    assert!(matches!(error, OpenError::UdpDisabled), "{error}");
    assert!(!client.info().await.expect("info").udp);
}

#[tokio::test]
async fn a_target_by_name_answers_under_its_address() {
    // Whichever address the name has first.
    let socket = UdpSocket::bind("[::]:0").await.expect("bind");
    let port = socket.local_addr().expect("address").port();
    let pair = Pair::start();
    let client = pair.client().await;
    let session = client.udp().await.expect("session");
    session
        .send(b"ping", &format!("localhost:{port}"))
        .expect("send");
    let mut buffer = [0; 16];
    let (len, from) = socket.recv_from(&mut buffer).await.expect("receive");
    socket.send_to(&buffer[..len], from).await.expect("send");
    let packet = answer(&session).await;
    let source: std::net::SocketAddr = packet.source().parse().expect("an address, not a name");
    assert!(source.ip().is_loopback());
    assert_eq!(source.port(), port);
}

#[tokio::test]
async fn datagrams_to_private_addresses_are_dropped_unless_allowed() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    let target = socket.local_addr().expect("address").to_string();
    let recorder = crate::recorder::Recorder::new();
    let pair = Pair::with(ServerConfig::default(), |builder| {
        builder.outbound(Direct::default()).events(recorder.clone())
    });
    let client = pair.client().await;
    let session = client.udp().await.expect("session");
    session.send(b"one", &target).expect("send");
    session.send(b"two", &target).expect("send");
    recorder.until(1, Event::is_udp_opened).await;
    client.close().await;
    recorder.until(1, Event::is_disconnected).await;
    let traffic = pair.server.handle().traffic(&"user".into()).expect("known");
    assert_eq!(traffic.tx, 0);
    let error = socket.try_recv(&mut [0; 16]).expect_err("nothing came");
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
}

/// The port that targets see the session at.
async fn port_of(session: &UdpSession, mirror: &Origin) -> u16 {
    session.send(b"who am I", &mirror.target()).expect("send");
    let packet = answer(session).await;
    u16::from_be_bytes(packet.data[..].try_into().expect("two bytes"))
}

async fn answer(session: &UdpSession) -> hy2_core::client::UdpPacket {
    let packet = timeout(Duration::from_secs(5), session.recv()).await;
    packet.expect("in time").expect("open")
}
