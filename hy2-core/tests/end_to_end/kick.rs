use hy2_core::{
    Client,
    error::OpenError,
    quinn::{ApplicationClose, ConnectionError},
    server::ServerConfig,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    origin::Origin,
    pair::Pair,
    recorder::{Event, Recorder},
};

#[tokio::test]
async fn a_kick_closes_every_connection_of_the_user_and_no_other() {
    let echo = Origin::echo().await;
    let udp = Origin::udp_echo().await;
    let (pair, users, recorder) = Pair::recorded(ServerConfig::default());
    let mut kicked = Vec::new();
    for _ in 0..2 {
        let client = pair.client_of("alice").await;
        let stream = opened(&client, &echo).await;
        let session = client.udp().await.expect("session");
        session.send(b"ping", &udp.target()).expect("send");
        session.recv().await.expect("pong");
        kicked.push((client, stream, session));
    }
    let bob = pair.client_of("bob").await;
    let mut bobs = opened(&bob, &echo).await;
    let before = users.traffic("alice");
    assert_eq!(
        (before.connections, before.streams, before.udp_sessions),
        (2, 2, 2)
    );

    assert_eq!(pair.server.handle().kick(&"alice".into()), 2);
    for (client, mut stream, session) in kicked {
        client.disconnected().await;
        let error = stream.read_u8().await.expect_err("kicked");
        assert_eq!(close_code(&error), Some(0x107), "{error:?}");
        assert!(session.recv().await.is_none());
    }
    recorder.until(2, Event::is_disconnected).await;
    let after = users.traffic("alice");
    assert_eq!(
        (after.connections, after.streams, after.udp_sessions),
        (0, 0, 0)
    );
    assert_eq!((users.guards.made(), users.guards.dropped()), (3, 2));
    bobs.write_all(b"still here").await.expect("write");
    bobs.read_exact(&mut [0; 10]).await.expect("read");
    assert_eq!(pair.server.handle().kick(&"alice".into()), 0);
    assert_eq!(pair.server.handle().kick(&"nobody".into()), 0);

    drop((bob, bobs));
    recorder.until(3, Event::is_disconnected).await;
    each_begin_has_one_end(&recorder);
    assert_eq!((users.guards.made(), users.guards.dropped()), (3, 3));
    assert!(pair.server.handle().connections().is_empty());
}

#[tokio::test]
async fn a_kicked_user_may_come_back_with_the_next_call() {
    let echo = Origin::echo().await;
    let (pair, _, recorder) = Pair::recorded(ServerConfig::default());
    let client = pair.client_of("alice").await;
    opened(&client, &echo).await;
    pair.server.handle().kick(&"alice".into());
    client.disconnected().await;
    opened(&client, &echo).await;
    assert_eq!(recorder.count(Event::is_connected), 2);
}

#[tokio::test]
async fn events_come_in_order() {
    let echo = Origin::echo().await;
    let udp = Origin::udp_echo().await;
    let (pair, _, recorder) = Pair::recorded(ServerConfig::default());
    let client = pair.client_of("alice").await;
    let id = pair.server.handle().connections()[0].peer.connection;
    let mut stream = opened(&client, &echo).await;
    stream.shutdown().await.expect("shutdown");
    assert_eq!(stream.read(&mut [0; 1]).await.expect("end"), 0);
    recorder.until(1, Event::is_closed).await;
    let session = client.udp().await.expect("session");
    session.send(b"ping", &udp.target()).expect("send");
    session.recv().await.expect("pong");
    let refused = client.tcp("name.invalid:1").await.expect_err("refused");
    assert!(matches!(refused, OpenError::Refused(_)), "{refused}");
    recorder.until(2, Event::is_closed).await;
    client.close().await;
    recorder.until(1, Event::is_disconnected).await;
    let target = echo.target();
    assert_eq!(
        recorder.events(),
        [
            Event::Connected(id),
            Event::Requested(id, target.clone()),
            Event::Closed(id, target, true),
            Event::UdpOpened(id, 1),
            Event::Requested(id, "name.invalid:1".to_owned()),
            Event::Closed(id, "name.invalid:1".to_owned(), false),
            Event::UdpClosed(id, 1),
            Event::Disconnected(id),
        ]
    );
}

#[tokio::test]
async fn dropping_the_server_ends_everything_once() {
    let echo = Origin::echo().await;
    let udp = Origin::udp_echo().await;
    let (pair, users, recorder) = Pair::recorded(ServerConfig::default());
    let client = pair.client_of("alice").await;
    let mut stream = opened(&client, &echo).await;
    let session = client.udp().await.expect("session");
    session.send(b"ping", &udp.target()).expect("send");
    session.recv().await.expect("pong");
    drop(pair.server);
    recorder.until(1, Event::is_disconnected).await;
    each_begin_has_one_end(&recorder);
    let after = users.traffic("alice");
    assert_eq!(
        (after.connections, after.streams, after.udp_sessions),
        (0, 0, 0)
    );
    let error = stream.read_u8().await.expect_err("closed");
    assert_eq!(close_code(&error), Some(0x100), "{error:?}");
    assert_eq!(users.guards.dropped(), 1);
}

/// Opens a stream and makes sure that it works.
async fn opened(client: &Client, echo: &Origin) -> hy2_core::relay::TcpStream {
    let mut stream = client.tcp(&echo.target()).await.expect("stream");
    stream.write_all(b"x").await.expect("write");
    assert_eq!(stream.read_u8().await.expect("read"), b'x');
    stream
}

fn each_begin_has_one_end(recorder: &Recorder) {
    let events = recorder.events();
    for (at, event) in events.iter().enumerate() {
        let is_end: Box<dyn Fn(&Event) -> bool> = match event.clone() {
            Event::Connected(id) => Box::new(move |e| *e == Event::Disconnected(id)),
            Event::UdpOpened(id, n) => Box::new(move |e| *e == Event::UdpClosed(id, n)),
            Event::Requested(id, target) => {
                Box::new(move |e| matches!(e, Event::Closed(i, t, _) if *i == id && *t == target))
            }
            Event::Disconnected(id) => {
                let rest = &events[at + 1..];
                let later = |e: &Event| match e {
                    Event::Connected(i)
                    | Event::Disconnected(i)
                    | Event::Requested(i, _)
                    | Event::Closed(i, ..)
                    | Event::UdpOpened(i, _)
                    | Event::UdpClosed(i, _) => *i == id,
                };
                assert!(!rest.iter().any(later), "{id} has ended: {events:?}");
                continue;
            }
            Event::Closed(..) | Event::UdpClosed(..) => continue,
        };
        let ends = events[at..].iter().filter(|e| is_end(e)).count();
        assert_eq!(ends, 1, "ends of {event:?} in {events:?}");
    }
}

/// The code with which the server closed the connection under a stream.
fn close_code(error: &std::io::Error) -> Option<u64> {
    let open = error.get_ref()?.downcast_ref::<OpenError>()?;
    match open {
        OpenError::Lost(ConnectionError::ApplicationClosed(ApplicationClose {
            error_code,
            ..
        })) => Some(error_code.into_inner()),
        _ => None,
    }
}
