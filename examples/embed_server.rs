//! Runs a server inside a program: settings, events, figures, and an end in order.
#![allow(clippy::print_stdout)]

use std::time::Duration;

use hy2_core::{
    Bandwidth, Client, Server,
    authenticator::UserPass,
    event::{EventSink, Peer},
    outbound::{AddressPolicy, Direct},
    server::ServerConfig,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // A real server has `ServerTls::from_pem_files(certificate, key)` and its `reload`.
    let (tls, roots) = hy2_examples::certificate()?;

    let mut config = ServerConfig::default();
    config.max_tx = Some("200 mbps".parse()?);
    config.udp_idle_timeout = Duration::from_secs(30);

    let server = Server::builder(tls)
        .listen(([127, 0, 0, 1], 0).into())
        .authenticator(UserPass::new([("alice", "a long random password")]))
        // Targets on this machine are refused by default; this example has no others.
        .outbound(Direct::new(
            AddressPolicy::public_only().allow("127.0.0.0/8".parse()?),
        ))
        .events(Log)
        .config(config)
        .bind()?;
    let address = server.local_addrs()[0];
    println!("listening on {address}");

    use_it(hy2_examples::client_config(
        address,
        "alice:a long random password",
        roots,
    ))
    .await?;

    for user in server.handle().users() {
        println!("{}: {:?}", user.user, user.traffic);
        assert_eq!((user.traffic.tx, user.traffic.rx), (5, 5));
    }
    // Open streams may finish, new ones are refused; returns early when nobody is left.
    server.drain(Duration::from_secs(10)).await;
    println!("drained");
    Ok(())
}

/// Anybody's client, the official one included.
async fn use_it(config: hy2_core::ClientConfig) -> anyhow::Result<()> {
    let target = hy2_examples::tcp_echo().await?.to_string();
    let client = Client::connect(config).await?;
    let mut stream = client.tcp(&target).await?;
    stream.write_all(b"hello").await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    assert_eq!(answer, "hello");
    Ok(())
}

struct Log;

impl EventSink for Log {
    fn connected(&self, peer: &Peer, tx: Option<Bandwidth>) {
        println!("{} came from {}, sending at {tx:?}", peer.user, peer.remote);
    }

    fn disconnected(&self, peer: &Peer, reason: &hy2_core::quinn::ConnectionError) {
        println!("{} left: {reason}", peer.user);
    }
}
