use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use hy2_core::{
    Address, BoxFuture, Client,
    error::OpenError,
    outbound::{DialError, Direct, Outbound, TcpConnection, UdpAssociation},
    server::ServerConfig,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Notify, Semaphore},
};

use crate::{
    origin::Origin,
    pair::{Pair, anywhere},
    recorder::{Event, Recorder},
};

#[tokio::test]
async fn with_fast_open_data_goes_out_before_the_answer() {
    let origin = Origin::echo().await;
    let (pair, gated) = gated_pair();
    let client = fast(&pair).await;
    // Returns although the dial is held back.
    let mut stream = client.tcp(&origin.target()).await.expect("stream");
    stream.write_all(b"early").await.expect("write");
    gated.dials.acquired().await;
    gated.open();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await.expect("read");
    assert_eq!(&answer, b"early");
    stream.established().await.expect("established");
}

#[tokio::test]
async fn early_data_with_the_end_of_the_stream_is_not_lost() {
    let origin = Origin::count().await;
    let pair = Pair::start();
    let client = fast(&pair).await;
    for len in [0, 1, 1000, 100_000] {
        // Request, data and end before a single packet can come back.
        let mut stream = client.tcp(&origin.target()).await.expect("stream");
        stream.write_all(&vec![7; len]).await.expect("write");
        stream.shutdown().await.expect("shutdown");
        assert_eq!(stream.read_u64().await.expect("answer"), len as u64);
    }
}

#[tokio::test]
async fn with_fast_open_a_refused_target_shows_at_the_first_read_and_stays() {
    let pair = Pair::start();
    let client = fast(&pair).await;
    let mut stream = client.tcp("name.invalid:80").await.expect("stream");
    for _ in 0..2 {
        let error = stream.read(&mut [0; 1]).await.expect_err("refused");
        assert_eq!(refusal(&error), Some("name does not resolve"));
    }
    let error = stream.established().await.expect_err("refused");
    assert!(matches!(error, OpenError::Refused(_)), "{error}");
}

#[tokio::test]
async fn a_relay_over_fast_open_says_that_the_target_was_refused() {
    let pair = Pair::start();
    let client = fast(&pair).await;
    let stream = client.tcp("name.invalid:80").await.expect("stream");
    let (mut application, local) = tokio::io::duplex(64);
    let writer = tokio::spawn(async move {
        let block = [7; 10_000];
        while application.write_all(&block).await.is_ok() {}
    });
    let error = stream.relay(local).await.expect_err("refused");
    assert_eq!(
        error.to_string(),
        "target not reached: name does not resolve"
    );
    writer.await.expect("writer");
}

#[tokio::test]
async fn a_client_that_gives_up_ends_the_dial() {
    let (pair, gated) = gated_pair();
    let client = Client::connect(pair.config.clone()).await.expect("connect");
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.tcp("127.0.0.1:1").await.map(drop) }
    });
    gated.dials.acquired().await;
    call.abort();
    gated.recorder.until(1, Event::is_closed).await;
    assert_eq!(gated.dropped.load(SeqCst), 1);
    let closed = gated
        .recorder
        .count(|event| matches!(event, Event::Closed(_, _, false)));
    assert_eq!(closed, 1);
}

#[tokio::test]
async fn a_kick_ends_the_dial() {
    let (pair, gated) = gated_pair();
    let client = Client::connect(pair.config.clone()).await.expect("connect");
    let call = client.tcp("127.0.0.1:1");
    let kick = async {
        gated.dials.acquired().await;
        pair.server.handle().kick(&"user".into())
    };
    let (opened, kicked) = tokio::join!(call, kick);
    assert!(matches!(opened, Err(OpenError::Lost(_))), "{opened:?}");
    assert_eq!(kicked, 1);
    gated.recorder.until(1, Event::is_disconnected).await;
    assert_eq!(gated.dropped.load(SeqCst), 1);
    assert_eq!(gated.recorder.count(Event::is_closed), 1);
}

#[tokio::test]
async fn addresses_that_cannot_be_are_refused_before_they_are_sent() {
    let (pair, _, recorder) = Pair::recorded(ServerConfig::default());
    let client = pair.client_of("alice").await;
    for target in [
        "",
        "name",
        "name:",
        "name:65536",
        "[::1",
        &format!("{}:1", "x".repeat(3000)),
    ] {
        let error = client.tcp(target).await.expect_err("invalid");
        assert!(matches!(error, OpenError::Address(_)), "{target}: {error}");
    }
    assert_eq!(recorder.count(Event::is_requested), 0);
}

#[tokio::test]
async fn private_targets_are_refused_unless_allowed() {
    let origin = Origin::echo().await;
    let pair = Pair::with(ServerConfig::default(), |builder| {
        builder.outbound(Direct::default())
    });
    let client = pair.client().await;
    for target in [
        origin.target(),
        format!("localhost:{}", origin.address.port()),
    ] {
        let error = client.tcp(&target).await.expect_err("private");
        assert!(
            matches!(&error, OpenError::Refused(text) if text == "not allowed"),
            "{error}"
        );
    }
}

async fn fast(pair: &Pair) -> Client {
    let mut config = pair.config.clone();
    config.fast_open = true;
    Client::connect(config).await.expect("connect")
}

fn refusal(error: &io::Error) -> Option<&str> {
    match error.get_ref()?.downcast_ref::<OpenError>()? {
        OpenError::Refused(text) => Some(text),
        _ => None,
    }
}

/// Holds every dial until it is opened.
#[derive(Clone)]
struct Gated {
    gate: Arc<Semaphore>,
    dials: Arc<Begun>,
    dropped: Arc<AtomicUsize>,
    recorder: Recorder,
}

#[derive(Default)]
struct Begun(Notify);

impl Begun {
    async fn acquired(&self) {
        self.0.notified().await;
    }
}

impl Gated {
    fn open(&self) {
        self.gate.add_permits(Semaphore::MAX_PERMITS / 2);
    }
}

fn gated_pair() -> (Pair, Gated) {
    let gated = Gated {
        gate: Arc::new(Semaphore::new(0)),
        dials: Arc::default(),
        dropped: Arc::default(),
        recorder: Recorder::new(),
    };
    let pair = Pair::with(ServerConfig::default(), |builder| {
        builder
            .outbound(gated.clone())
            .events(gated.recorder.clone())
    });
    (pair, gated)
}

struct CountDrop(Arc<AtomicUsize>);

impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

impl Outbound for Gated {
    fn tcp<'a>(
        &'a self,
        target: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn TcpConnection>, DialError>> {
        Box::pin(async move {
            let _dial = CountDrop(Arc::clone(&self.dropped));
            self.dials.0.notify_one();
            let _permit = self.gate.acquire().await;
            anywhere().tcp(target).await
        })
    }

    fn udp<'a>(
        &'a self,
        _first: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn UdpAssociation>, DialError>> {
        Box::pin(std::future::ready(Err(DialError::Denied)))
    }
}
