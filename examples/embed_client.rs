//! Uses a server from inside a program: TCP streams, a UDP session, the connection's figures.
#![allow(clippy::print_stdout)]

use std::time::Duration;

use hy2_core::{
    Client, Server,
    authenticator::Password,
    error::{ConnectError, OpenError},
    outbound::{AddressPolicy, Direct},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

const PASSWORD: &str = "a long random password";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // Somebody's server; the official one does as well.
    let (tls, roots) = hy2_examples::certificate()?;
    let server = Server::builder(tls)
        .listen(([127, 0, 0, 1], 0).into())
        .authenticator(Password::new(PASSWORD))
        .outbound(Direct::new(AddressPolicy::allow_all()))
        .bind()?;
    let address = server.local_addrs()[0];

    let mut config = hy2_examples::client_config(address, PASSWORD, roots);
    config.up = Some("50 mbps".parse()?);
    config.down = Some("200 mbps".parse()?);
    let client = Client::connect(config.clone()).await?;
    let info = client.info().await?;
    println!("sending at {:?}, round trip {:?}", info.tx, info.rtt);

    // A stream reads and writes like a socket.
    let target = hy2_examples::tcp_echo().await?.to_string();
    let mut stream = client.tcp(&target).await?;
    stream.write_all(b"hello").await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    println!("{target} said {answer:?}");

    // A session has one port at the server and any number of destinations. UDP: retry.
    let target = hy2_examples::udp_echo().await?.to_string();
    let session = client.udp().await?;
    let packet = loop {
        session.send(b"ping", &target)?;
        if let Ok(Some(packet)) = timeout(Duration::from_secs(1), session.recv()).await {
            break packet;
        }
    };
    println!("{} bytes came from {}", packet.data.len(), packet.source());

    // Errors tell apart what a user can do something about.
    match client.tcp("name.invalid:80").await {
        Err(OpenError::Refused(reason)) => println!("refused: {reason}"),
        other => anyhow::bail!("unexpected: {other:?}"),
    }
    config.auth = "a wrong password".to_owned();
    match Client::connect(config).await {
        Err(ConnectError::AuthRejected { status }) => println!("not let in: status {status}"),
        other => anyhow::bail!("unexpected: {other:?}"),
    }
    client.close().await;
    Ok(())
}
