//! Many streams, and streams that carry little or end in unusual ways.

use std::{sync::Arc, time::Duration};

use hy2_core::{Client, error::OpenError, server::ServerConfig};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Barrier, mpsc},
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    origin::{Origin, read_sum},
    pair::Pair,
    payload,
    recorder::Event,
};

#[tokio::test]
async fn a_thousand_streams_are_open_at_once_after_one() {
    const STREAMS: usize = 1000;
    let origin = Origin::echo().await;
    let (pair, users, recorder) = Pair::recorded(ServerConfig::default());
    let client = pair.client_of("alice").await;
    echo(&client, &origin, 1).await;
    let started = Instant::now();
    let all_open = Arc::new(Barrier::new(STREAMS + 1));
    let checked = Arc::new(Barrier::new(STREAMS + 1));
    let mut tasks = JoinSet::new();
    for number in 0..STREAMS as u64 {
        let (client, target) = (client.clone(), origin.target());
        let (all_open, checked) = (Arc::clone(&all_open), Arc::clone(&checked));
        tasks.spawn(async move {
            let mut stream = client.tcp(&target).await.expect("stream");
            all_open.wait().await;
            checked.wait().await;
            for round in 0..3 {
                stream.write_u64(number + round).await.expect("write");
                assert_eq!(stream.read_u64().await.expect("read"), number + round);
            }
            stream.shutdown().await.expect("shutdown");
            assert_eq!(stream.read(&mut [0; 1]).await.expect("end"), 0);
        });
    }
    all_open.wait().await;
    assert_eq!(users.traffic("alice").streams as usize, STREAMS);
    checked.wait().await;
    while let Some(done) = tasks.join_next().await {
        done.expect("stream task");
    }
    println!("{STREAMS} streams in {:?}", started.elapsed());
    recorder.until(STREAMS + 1, Event::is_closed).await;
    assert_eq!(users.traffic("alice").streams, 0);
    assert_eq!(users.traffic("alice").tx, 1 + 24 * STREAMS as u64);
}

#[tokio::test]
async fn two_thousand_streams_one_after_the_other_leave_nothing_behind() {
    let origin = Origin::echo().await;
    let (pair, users, recorder) = Pair::recorded(ServerConfig::default());
    let client = pair.client_of("alice").await;
    let started = Instant::now();
    for number in 0..2000 {
        echo(&client, &origin, number as u8).await;
    }
    println!("2,000 streams in {:?}", started.elapsed());
    recorder.until(2000, Event::is_closed).await;
    let traffic = users.traffic("alice");
    assert_eq!((traffic.tx, traffic.rx, traffic.streams), (2000, 2000, 0));
    assert_eq!(recorder.count(Event::is_connected), 1);
}

#[tokio::test]
async fn a_server_may_speak_first() {
    let origin = Origin::tcp(|mut stream| async move {
        stream.write_all(b"220 ready\r\n").await.expect("greet");
        let mut line = [0; 4];
        stream.read_exact(&mut line).await.expect("read");
        stream.write_all(&line).await.expect("answer");
    })
    .await;
    let pair = Pair::start();
    for fast_open in [false, true] {
        let mut config = pair.config.clone();
        config.fast_open = fast_open;
        let client = Client::connect(config).await.expect("connect");
        let mut stream = client.tcp(&origin.target()).await.expect("stream");
        let mut greeting = [0; 11];
        stream.read_exact(&mut greeting).await.expect("greeting");
        assert_eq!(&greeting, b"220 ready\r\n");
        stream.write_all(b"QUIT").await.expect("write");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("end");
        assert_eq!(rest, b"QUIT");
    }
}

#[tokio::test]
async fn connections_without_a_byte_end_on_both_sides() {
    let (ended, mut ends) = mpsc::channel(1);
    let origin = Origin::tcp(move |mut stream| {
        let ended = ended.clone();
        async move {
            let sum = payload::receive(&mut stream).await.expect("end");
            ended.send(sum.len).await.expect("test waits");
        }
    })
    .await;
    let (pair, users, recorder) = Pair::recorded(ServerConfig::default());
    let client = pair.client_of("alice").await;
    // Ended by the client.
    let mut stream = client.tcp(&origin.target()).await.expect("stream");
    stream.shutdown().await.expect("shutdown");
    assert_eq!(stream.read(&mut [0; 1]).await.expect("end"), 0);
    assert_eq!(ends.recv().await, Some(0));
    // Ended by the target.
    let hasty = Origin::tcp(|stream| async move { drop(stream) }).await;
    let mut stream = client.tcp(&hasty.target()).await.expect("stream");
    assert_eq!(stream.read(&mut [0; 1]).await.expect("end"), 0);
    drop(stream);
    recorder.until(2, Event::is_closed).await;
    let traffic = users.traffic("alice");
    assert_eq!((traffic.tx, traffic.rx, traffic.streams), (0, 0, 0));
    assert_eq!(
        recorder.count(|event| matches!(event, Event::Closed(_, _, true))),
        2
    );
}

#[tokio::test]
async fn the_target_may_end_first_and_still_receive() {
    let (received, mut totals) = mpsc::channel(1);
    let origin = Origin::tcp(move |mut stream| {
        let received = received.clone();
        async move {
            stream.write_all(b"that is all").await.expect("write");
            stream.shutdown().await.expect("shutdown");
            let sum = payload::receive(&mut stream).await.expect("receive");
            received.send(sum).await.expect("test waits");
        }
    })
    .await;
    let pair = Pair::start();
    let client = pair.client().await;
    let mut stream = client.tcp(&origin.target()).await.expect("stream");
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.expect("read");
    assert_eq!(said, b"that is all");
    let sent = payload::send(&mut stream, 5 << 20).await.expect("send");
    stream.shutdown().await.expect("shutdown");
    assert_eq!(totals.recv().await, Some(sent));
}

#[tokio::test]
async fn a_dropped_stream_ends_at_the_target() {
    let (ended, mut ends) = mpsc::channel(1);
    let origin = Origin::tcp(move |mut stream| {
        let ended = ended.clone();
        async move {
            stream.write_all(b"x").await.expect("write");
            let end = stream.read(&mut [0; 1]).await;
            ended.send(matches!(end, Ok(0))).await.expect("test waits");
        }
    })
    .await;
    let pair = Pair::start();
    let client = pair.client().await;
    let mut stream = client.tcp(&origin.target()).await.expect("stream");
    stream.read_u8().await.expect("read");
    drop(stream);
    let clean = timeout(Duration::from_secs(5), ends.recv())
        .await
        .expect("in time");
    assert_eq!(clean, Some(true));
}

#[tokio::test]
async fn a_reset_by_the_target_is_an_error_and_not_an_end() {
    let origin = Origin::tcp(|mut stream| async move {
        stream.read_u8().await.expect("go");
        let socket = socket2::SockRef::from(&stream);
        socket.set_linger(Some(Duration::ZERO)).expect("linger");
    })
    .await;
    let pair = Pair::start();
    let client = pair.client().await;
    let mut stream = client.tcp(&origin.target()).await.expect("stream");
    stream.write_u8(1).await.expect("write");
    let error = stream.read(&mut [0; 1]).await.expect_err("reset");
    let open = error.get_ref().and_then(|e| e.downcast_ref::<OpenError>());
    assert!(matches!(open, Some(OpenError::Ended)), "{error:?}");
    stream.read(&mut [0; 1]).await.expect_err("still reset");
    // The other direction is told, too.
    let block = vec![7; 64 << 10];
    let writes = async { while stream.write_all(&block).await.is_ok() {} };
    timeout(Duration::from_secs(5), writes)
        .await
        .expect("in time");
}

#[tokio::test]
async fn a_target_that_takes_no_more_stops_the_upload_and_may_still_answer() {
    let origin = Origin::tcp(|mut stream| async move {
        stream.read_u8().await.expect("go");
        let socket = socket2::SockRef::from(&stream);
        socket.shutdown(std::net::Shutdown::Read).expect("shutdown");
        stream.write_all(b"enough").await.expect("write");
        stream.shutdown().await.expect("end");
    })
    .await;
    let pair = Pair::start();
    let client = pair.client().await;
    let mut stream = client.tcp(&origin.target()).await.expect("stream");
    stream.write_u8(1).await.expect("write");
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.expect("read");
    assert_eq!(said, b"enough");
}

#[tokio::test]
async fn a_joined_local_connection_carries_both_directions_and_their_ends() {
    const LEN: u64 = 5_000_000;
    let sink = Origin::checksum().await;
    let source = Origin::source(LEN).await;
    let pair = Pair::start();
    for fast_open in [false, true] {
        let mut config = pair.config.clone();
        config.fast_open = fast_open;
        let client = Client::connect(config).await.expect("connect");

        let stream = client.tcp(&sink.target()).await.expect("stream");
        let (mut application, local) = tokio::io::duplex(10_000);
        let joined = tokio::spawn(stream.relay(local));
        let sent = payload::send(&mut application, LEN).await.expect("send");
        application.shutdown().await.expect("shutdown");
        let answer = read_sum(&mut application).await.expect("answer");
        assert_eq!(answer, sent);
        assert_eq!(application.read(&mut [0; 1]).await.expect("end"), 0);
        joined.await.expect("task").expect("clean ends");

        let stream = client.tcp(&source.target()).await.expect("stream");
        let (mut application, local) = tokio::io::duplex(10_000);
        let joined = tokio::spawn(stream.relay(local));
        let received = payload::receive(&mut application).await.expect("receive");
        assert_eq!(received, sent);
        application.shutdown().await.expect("shutdown");
        joined.await.expect("task").expect("clean ends");
    }
}

#[tokio::test]
async fn a_stream_that_is_not_read_holds_up_no_other() {
    let source = Origin::endless().await;
    let origin = Origin::echo().await;
    let pair = Pair::start();
    let client = pair.client().await;
    let mut stuck = client.tcp(&source.target()).await.expect("stream");
    stuck.read_u8().await.expect("flows");
    for number in 0..100 {
        let turn = echo(&client, &origin, number);
        timeout(Duration::from_secs(5), turn)
            .await
            .expect("in time");
    }
}

async fn echo(client: &Client, origin: &Origin, byte: u8) {
    let mut stream = client.tcp(&origin.target()).await.expect("stream");
    stream.write_u8(byte).await.expect("write");
    stream.shutdown().await.expect("shutdown");
    assert_eq!(stream.read_u8().await.expect("read"), byte);
    assert_eq!(stream.read(&mut [0; 1]).await.expect("end"), 0);
}
