use std::time::Duration;

use hy2_core::server::ServerConfig;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
    time::timeout,
};

use crate::{
    origin::{Origin, read_sum},
    pair::Pair,
    payload::{self, Blocks},
    recorder::{Event, Recorder},
};

#[tokio::test]
async fn clean_ends_are_counted_exactly_for_each_user() {
    let sink = Origin::checksum().await;
    let source = Origin::source(700_001).await;
    let echo = Origin::udp_echo().await;
    let (pair, users, recorder) = Pair::recorded(ServerConfig::default());
    let mut clients = Vec::new();
    for (user, up) in [("alice", 100_003), ("alice", 1), ("bob", 2_000_000)] {
        let client = pair.client_of(user).await;
        for _ in 0..3 {
            let mut stream = client.tcp(&sink.target()).await.expect("stream");
            let sent = payload::send(&mut stream, up).await.expect("send");
            stream.shutdown().await.expect("shutdown");
            assert_eq!(read_sum(&mut stream).await.expect("answer"), sent);
        }
        let mut stream = client.tcp(&source.target()).await.expect("stream");
        let sum = payload::receive(&mut stream).await.expect("receive");
        assert_eq!(sum.len, 700_001);
        drop(stream);
        let session = client.udp().await.expect("session");
        for len in [1, 1000, 3000] {
            session.send(&vec![7; len], &echo.target()).expect("send");
            let packet = timeout(Duration::from_secs(5), session.recv()).await;
            assert_eq!(packet.expect("answer").expect("open").data.len(), len);
        }
        clients.push((client, session));
    }
    recorder.until(12, Event::is_closed).await;

    let (alice, bob) = (users.traffic("alice"), users.traffic("bob"));
    let answers = 3 * 40;
    assert_eq!(alice.tx, 3 * (100_003 + 1) + 2 * 4001);
    assert_eq!(alice.rx, 2 * (answers + 700_001 + 4001));
    assert_eq!(bob.tx, 3 * 2_000_000 + 4001);
    assert_eq!(bob.rx, answers + 700_001 + 4001);
    assert_eq!(
        (alice.connections, alice.streams, alice.udp_sessions),
        (2, 0, 2)
    );
    assert_eq!((bob.connections, bob.streams, bob.udp_sessions), (1, 0, 1));
    assert_eq!(pair.server.handle().traffic(&"bob".into()), Some(bob));

    for (client, _session) in &clients {
        client.close().await;
    }
    recorder.until(3, Event::is_disconnected).await;
    for user in ["alice", "bob"] {
        let after = users.traffic(user);
        assert_eq!(
            (after.connections, after.streams, after.udp_sessions),
            (0, 0, 0)
        );
    }
    assert_eq!(
        (users.traffic("alice").rx, users.traffic("bob").tx),
        (alice.rx, bob.tx)
    );
}

/// What can be between the server's counter and the reader of a download: the receive window of
/// the stream and what one read takes out of QUIC.
const WINDOW: u64 = 256 << 10;
const BUFFERED: u64 = WINDOW + (64 * 1452);

#[tokio::test]
async fn a_download_cut_by_a_kick_is_counted_with_what_was_buffered() {
    let origin = Origin::endless().await;
    let (pair, users, recorder) = Pair::recorded(ServerConfig::default());
    let mut config = pair.config_of("alice");
    config.quic.stream_receive_window = WINDOW;
    let client = hy2_core::Client::connect(config).await.expect("connect");
    let mut stream = client.tcp(&origin.target()).await.expect("stream");
    let mut delivered = 0;
    let mut buffer = vec![0; 50_000];
    while delivered < 5_000_000 {
        delivered += stream.read(&mut buffer).await.expect("read") as u64;
    }
    assert_eq!(pair.server.handle().kick(&"alice".into()), 1);
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => panic!("a kick looks like a clean end"),
            Ok(count) => delivered += count as u64,
            Err(_) => break,
        }
    }
    recorder.until(1, Event::is_disconnected).await;
    let counted = users.traffic("alice").rx;
    assert!(
        (delivered..=delivered + BUFFERED).contains(&counted),
        "delivered {delivered}, counted {counted}"
    );
}

#[tokio::test]
async fn an_upload_cut_by_a_kick_is_counted_as_the_target_got_it() {
    let (origin, mut totals) = totalling_origin().await;
    let (pair, users, recorder) = Pair::recorded(ServerConfig::default());
    let client = pair.client_of("alice").await;
    let mut stream = client.tcp(&origin.target()).await.expect("stream");
    let mut blocks = Blocks::new();
    for _ in 0..100 {
        stream.write_all(blocks.next()).await.expect("write");
    }
    pair.server.handle().kick(&"alice".into());
    while stream.write_all(blocks.next()).await.is_ok() {}
    recorder.until(1, Event::is_disconnected).await;
    let delivered = totals.recv().await.expect("total");
    assert_eq!(users.traffic("alice").tx, delivered);
    assert_eq!(
        recorder.count(|event| matches!(event, Event::Closed(_, _, false))),
        1
    );
}

#[tokio::test]
async fn an_upload_that_the_client_drops_is_counted_as_the_target_got_it() {
    let (origin, mut totals) = totalling_origin().await;
    let (pair, users, recorder) = Pair::recorded(ServerConfig::default());
    let client = pair.client_of("alice").await;
    let mut stream = client.tcp(&origin.target()).await.expect("stream");
    payload::send(&mut stream, 3_000_000).await.expect("send");
    drop(stream);
    recorder.until(1, Event::is_closed).await;
    let delivered = totals.recv().await.expect("total");
    assert_eq!(
        (users.traffic("alice").tx, delivered),
        (3_000_000, 3_000_000)
    );
}

#[tokio::test]
async fn a_download_that_the_client_drops_is_counted_with_what_was_buffered() {
    let origin = Origin::endless().await;
    let (pair, users, recorder) = Pair::recorded(ServerConfig::default());
    let mut config = pair.config_of("alice");
    config.quic.stream_receive_window = WINDOW;
    let client = hy2_core::Client::connect(config).await.expect("connect");
    let mut stream = client.tcp(&origin.target()).await.expect("stream");
    let mut buffer = vec![0; 1_000_000];
    stream.read_exact(&mut buffer).await.expect("read");
    drop(stream);
    recorder.until(1, Event::is_closed).await;
    let traffic = users.traffic("alice");
    assert!(
        (1_000_000..=1_000_000 + BUFFERED).contains(&traffic.rx),
        "{traffic:?}"
    );
    assert_eq!((traffic.streams, traffic.connections), (0, 1));
}

#[tokio::test]
async fn a_download_that_the_target_resets_is_counted_with_what_was_lost() {
    let (reset, resets) = oneshot::channel::<()>();
    let resets = std::sync::Mutex::new(Some(resets));
    let origin = Origin::tcp(move |mut stream| {
        let told = resets.lock().expect("lock").take().expect("one connection");
        async move {
            payload::send(&mut stream, 1_000_000).await.expect("send");
            let _ = told.await;
            let socket = socket2::SockRef::from(&stream);
            socket.set_linger(Some(Duration::ZERO)).expect("linger");
        }
    })
    .await;
    let (pair, users, recorder) = Pair::recorded(ServerConfig::default());
    let client = pair.client_of("alice").await;
    let mut stream = client.tcp(&origin.target()).await.expect("stream");
    let mut buffer = vec![0; 1_000_000];
    stream.read_exact(&mut buffer).await.expect("read");
    reset.send(()).expect("origin waits");
    stream
        .read(&mut buffer)
        .await
        .expect_err("a reset, not an end");
    recorder.until(1, Event::is_closed).await;
    assert_eq!(users.traffic("alice").rx, 1_000_000);
    assert_eq!(
        recorder.count(|event| matches!(event, Event::Closed(_, _, false))),
        1
    );
}

#[tokio::test]
async fn a_returning_user_counts_into_the_cells_of_the_new_grant() {
    let origin = Origin::source(1000).await;
    let (pair, users, recorder) = Pair::recorded(ServerConfig::default());
    let read = async |client: &hy2_core::Client| {
        let mut stream = client.tcp(&origin.target()).await.expect("stream");
        payload::receive(&mut stream).await.expect("receive").len
    };
    let old_cells = users.cells("alice");
    let first = pair.client_of("alice").await;
    assert_eq!(read(&first).await, 1000);

    // The embedder starts a new book while the user is connected.
    users.forget_cells("alice");
    let second = pair.client_of("alice").await;
    assert_eq!(read(&second).await, 1000);
    assert_eq!(read(&first).await, 1000);
    recorder.until(3, Event::is_closed).await;
    assert_eq!(
        (old_cells.snapshot().rx, users.traffic("alice").rx),
        (2000, 1000)
    );
    assert_eq!(
        (
            old_cells.snapshot().connections,
            users.traffic("alice").connections
        ),
        (1, 1)
    );

    // And once more when all are gone.
    first.close().await;
    second.close().await;
    recorder.until(2, Event::is_disconnected).await;
    users.forget_cells("alice");
    let third = pair.client_of("alice").await;
    assert_eq!(read(&third).await, 1000);
    recorder.until(4, Event::is_closed).await;
    assert_eq!(
        (old_cells.snapshot().rx, users.traffic("alice").rx),
        (2000, 1000)
    );
    assert_eq!(old_cells.snapshot().connections, 0);
}

#[tokio::test]
async fn figures_of_absent_users_are_handed_out_once() {
    let origin = Origin::source(1000).await;
    let recorder = Recorder::new();
    let pair = Pair::with(ServerConfig::default(), |builder| {
        builder.events(recorder.clone())
    });
    let handle = pair.server.handle();
    for turn in 1..=2 {
        let client = pair.client().await;
        let mut stream = client.tcp(&origin.target()).await.expect("stream");
        payload::receive(&mut stream).await.expect("receive");
        drop(stream);
        assert!(handle.take_absent().is_empty(), "still connected");
        client.close().await;
        recorder.until(turn, Event::is_disconnected).await;
        let taken = handle.take_absent();
        assert_eq!((taken.len(), taken[0].traffic.rx), (1, 1000));
        assert!(handle.take_absent().is_empty());
        assert!(handle.users().is_empty());
    }
}

#[tokio::test]
async fn datagrams_cut_by_a_kick_are_counted_with_what_was_buffered() {
    let echo = Origin::udp_echo().await;
    let (pair, users, recorder) = Pair::recorded(ServerConfig::default());
    let client = pair.client_of("alice").await;
    let session = client.udp().await.expect("session");
    let mut delivered = 0;
    for _ in 0..20 {
        session.send(&[7; 500], &echo.target()).expect("send");
        delivered += session.recv().await.expect("echo").data.len() as u64;
    }
    // These race with the kick.
    for _ in 0..20 {
        session.send(&[7; 500], &echo.target()).expect("send");
    }
    pair.server.handle().kick(&"alice".into());
    while let Some(packet) = session.recv().await {
        delivered += packet.data.len() as u64;
    }
    recorder.until(1, Event::is_disconnected).await;
    let traffic = users.traffic("alice");
    assert!(traffic.rx <= traffic.tx, "{traffic:?}");
    assert!(
        (delivered..=delivered + 20 * 500).contains(&traffic.rx),
        "{traffic:?}"
    );
    assert_eq!((traffic.connections, traffic.udp_sessions), (0, 0));
}

/// Tells of each connection how many bytes came before its end, whatever the end was.
async fn totalling_origin() -> (Origin, tokio::sync::mpsc::Receiver<u64>) {
    let (tell, totals) = tokio::sync::mpsc::channel(8);
    let origin = Origin::tcp(move |mut stream| {
        let tell = tell.clone();
        async move {
            let mut total = 0;
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                total += count as u64;
            }
            tell.send(total).await.expect("test waits");
        }
    })
    .await;
    (origin, totals)
}
