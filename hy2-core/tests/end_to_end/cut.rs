//! A cut is not an end: what breaks off on one side does not look finished on the other.

use std::{io, time::Duration};

use hy2_core::{Client, server::ServerConfig};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};

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
