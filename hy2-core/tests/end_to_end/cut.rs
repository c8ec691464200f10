//! A cut is not an end: what breaks off on one side does not look finished on the other.

use std::{io, time::Duration};

use hy2_core::{
    Client,
    inbound::{InboundLimits, TcpForward, TcpForwardConfig},
    server::ServerConfig,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{origin::Origin, pair::Pair};

/// What a target saw: the bytes before, and how it ended.
type Seen = (usize, io::Result<()>);

/// A pair, a target that tells what it sees, and an application joined with it through the tunnel.
struct Joined {
    pair: Pair,
    _origin: Origin,
    _client: Client,
    application: TcpStream,
    relay: JoinHandle<bool>,
    seen: mpsc::Receiver<Seen>,
}

impl Joined {
    async fn new() -> Self {
        let (tell, seen) = mpsc::channel(1);
        let origin = Origin::tcp(move |mut stream| {
            let tell = tell.clone();
            async move {
                stream.write_all(b"hello").await.expect("greet");
                let mut buffer = vec![0; 64 << 10];
                let mut total = 0;
                let end = loop {
                    match stream.read(&mut buffer).await {
                        Ok(0) => break Ok(()),
                        Ok(count) => total += count,
                        Err(error) => break Err(error),
                    }
                };
                tell.send((total, end)).await.expect("the test waits");
            }
        })
        .await;
        let (pair, _, _) = Pair::recorded(ServerConfig::default());
        let client = pair.client_of("alice").await;
        let stream = client.tcp(&origin.target()).await.expect("stream");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let (application, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (local, _) = accepted.expect("accept");
        let relay = tokio::spawn(async move { stream.relay(local).await.is_ok() });
        let mut application = application.expect("connect");
        application
            .read_exact(&mut [0; 5])
            .await
            .expect("the greeting arrives");
        Self {
            pair,
            _origin: origin,
            _client: client,
            application,
            relay,
            seen,
        }
    }

    async fn seen(&mut self) -> Seen {
        timeout(Duration::from_secs(20), self.seen.recv())
            .await
            .expect("the target sees an end")
            .expect("the target lives")
    }
}

fn is_reset(end: &io::Result<()>) -> bool {
    matches!(end, Err(error) if error.kind() == io::ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn a_client_that_ends_its_stream_ends_the_target() {
    let mut joined = Joined::new().await;
    joined.application.write_all(b"all").await.expect("write");
    joined.application.shutdown().await.expect("shutdown");
    let (total, end) = joined.seen().await;
    assert_eq!(total, 3);
    assert!(end.is_ok(), "{end:?}");
    assert!(joined.relay.await.expect("relay"), "a clean end");
}

#[tokio::test]
async fn a_client_that_stops_reading_and_ends_its_stream_ends_the_target() {
    // How the official client closes a connection: STOP_SENDING with code 0, and the end.
    let mut joined = Joined::new().await;
    joined.relay.abort();
    let (_, end) = joined.seen().await;
    assert!(end.is_ok(), "{end:?}");
}

#[tokio::test]
async fn a_client_that_resets_its_stream_resets_the_target() {
    let mut joined = Joined::new().await;
    joined.application.write_all(b"part").await.expect("write");
    joined.application.set_zero_linger().expect("linger");
    drop(joined.application);
    assert!(!joined.relay.await.expect("relay"), "the program was cut");
    let (_, end) = timeout(Duration::from_secs(20), joined.seen.recv())
        .await
        .expect("the target sees an end")
        .expect("the target lives");
    assert!(is_reset(&end), "{end:?}");
}

#[tokio::test]
async fn a_kicked_client_resets_its_targets() {
    let mut joined = Joined::new().await;
    assert_eq!(joined.pair.server.handle().kick(&"alice".into()), 1);
    let (_, end) = joined.seen().await;
    assert!(is_reset(&end), "{end:?}");
}

/// A program at a forwarded port whose target says "hello" and, for each byte it gets, does as the
/// byte says: `r` resets, `e` ends its side and goes on counting.
struct Forwarded {
    pair: Pair,
    _origin: Origin,
    program: TcpStream,
    /// How many bytes the target got after it ended its side.
    counted: mpsc::Receiver<usize>,
    _stop: tokio_util::sync::DropGuard,
}

impl Forwarded {
    async fn new() -> Self {
        let (count, counted) = mpsc::channel(1);
        let origin = Origin::tcp(move |mut stream| {
            let count = count.clone();
            async move {
                stream.write_all(b"hello").await.expect("greet");
                match stream.read_u8().await {
                    Ok(b'r') => stream.set_zero_linger().expect("linger"),
                    Ok(b'e') => {
                        stream.shutdown().await.expect("end");
                        let mut rest = Vec::new();
                        stream.read_to_end(&mut rest).await.expect("the rest");
                        count.send(rest.len()).await.expect("the test waits");
                    }
                    // The kick.
                    _ => {}
                }
            }
        })
        .await;
        let (pair, _, _) = Pair::recorded(ServerConfig::default());
        let client = pair.client_of("alice").await;
        let forward = TcpForward::bind(TcpForwardConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            remote: origin.target().parse().expect("an address"),
            limits: InboundLimits::default(),
        })
        .expect("bind");
        let address = forward.local_addr().expect("bound");
        let stop = CancellationToken::new();
        // Ends with the guard.
        tokio::spawn(forward.run(client, stop.clone()));
        let mut program = TcpStream::connect(address).await.expect("connect");
        program
            .read_exact(&mut [0; 5])
            .await
            .expect("the greeting arrives");
        Self {
            pair,
            _origin: origin,
            program,
            counted,
            _stop: stop.drop_guard(),
        }
    }

    /// How the program sees its connection end.
    async fn end(&mut self) -> io::Result<()> {
        let read = timeout(Duration::from_secs(20), self.program.read(&mut [0; 1])).await;
        assert_eq!(read.expect("the program sees an end")?, 0);
        Ok(())
    }
}

#[tokio::test]
async fn a_target_that_resets_resets_the_program() {
    let mut forwarded = Forwarded::new().await;
    forwarded.program.write_all(b"r").await.expect("write");
    let end = forwarded.end().await;
    assert!(is_reset(&end), "{end:?}");
}

#[tokio::test]
async fn a_kicked_client_resets_its_programs() {
    let mut forwarded = Forwarded::new().await;
    assert_eq!(forwarded.pair.server.handle().kick(&"alice".into()), 1);
    let end = forwarded.end().await;
    assert!(is_reset(&end), "{end:?}");
}

#[tokio::test]
async fn a_target_that_ends_its_side_ends_it_for_the_program_which_may_go_on() {
    let mut forwarded = Forwarded::new().await;
    forwarded.program.write_all(b"e").await.expect("write");
    forwarded.end().await.expect("an end");
    let more = vec![7; 100_000];
    forwarded.program.write_all(&more).await.expect("write");
    forwarded.program.shutdown().await.expect("end");
    let counted = timeout(Duration::from_secs(20), forwarded.counted.recv()).await;
    assert_eq!(counted.expect("the target sees an end"), Some(more.len()));
}
