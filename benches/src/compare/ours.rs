//! Our server and client as processes for the comparison, speaking the same JSON lines as the
//! reference peer.

use std::{io::Read, net::SocketAddr};

use anyhow::{Context, Result};
use clap::ValueEnum;
use hy2_core::{
    Bandwidth, Client, ClientConfig, Server,
    authenticator::Password,
    client::ServerAddress,
    outbound::{AddressPolicy, Direct},
    server::ServerConfig,
    socket::Obfuscation,
    tls::ServerTls,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    role: Role,
}

#[derive(Clone, Copy, ValueEnum)]
enum Role {
    Server,
    Client,
    /// Holds many connections.
    Crowd,
}

pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let config: Value = serde_json::from_str(&line)?;
    let threads = config["threads"].as_u64().unwrap_or(1);
    let runtime = if threads == 1 {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .event_interval(61)
            .build()?
    } else {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(usize::try_from(threads)?)
            .enable_all()
            .build()?
    };
    // The parent holds our standard input; when it is gone, so are we.
    std::thread::spawn(|| {
        let mut rest = Vec::new();
        let _ = std::io::stdin().read_to_end(&mut rest);
        std::process::exit(0);
    });
    runtime.block_on(async {
        match arguments.role {
            Role::Server => serve(&config).await,
            Role::Client => forward(&config).await,
            Role::Crowd => crowd(&config).await,
        }
    })
}

fn obfuscation(config: &Value) -> Result<Obfuscation> {
    Ok(match config["obfs"]["password"].as_str() {
        Some(password) => Obfuscation::salamander(password)?,
        None => Obfuscation::default(),
    })
}

fn rate(value: &Value) -> Option<Bandwidth> {
    value
        .as_u64()
        .filter(|rate| *rate > 0)
        .map(Bandwidth::from_bytes_per_sec)
}

async fn serve(config: &Value) -> Result<()> {
    let certificate = config["tls_cert"].as_str().context("tls_cert")?;
    let key = config["tls_key"].as_str().context("tls_key")?;
    let mut settings = ServerConfig::default();
    settings.obfuscation = obfuscation(config)?;
    let server = Server::builder(ServerTls::from_pem_files(certificate, key)?)
        .listen("127.0.0.1:0".parse()?)
        .authenticator(Password::new(
            config["password"].as_str().context("password")?,
        ))
        .outbound(Direct::new(AddressPolicy::allow_all()))
        .config(settings)
        .bind()?;
    println!(
        "{}",
        json!({"event": "ready", "addr": server.local_addrs()[0].to_string()})
    );
    server.closed().await;
    Ok(())
}

fn client_settings(config: &Value) -> Result<ClientConfig> {
    let server: SocketAddr = config["server"].as_str().context("server")?.parse()?;
    let address = ServerAddress::new(server.ip().to_string(), server.port());
    let mut settings = ClientConfig::new(address, config["auth"].as_str().context("auth")?);
    settings.tls.insecure = true;
    settings.tls.sni = Some("localhost".to_owned());
    settings.obfuscation = obfuscation(config)?;
    settings.up = rate(&config["tx"]);
    settings.down = rate(&config["rx"]);
    Ok(settings)
}

async fn forward(config: &Value) -> Result<()> {
    let target = config["target"].as_str().context("target")?.to_owned();
    let client = Client::connect(client_settings(config)?).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!(
        "{}",
        json!({"event": "ready", "addr": listener.local_addr()?.to_string()})
    );
    let mut connections = JoinSet::new();
    loop {
        let (local, _) = listener.accept().await?;
        local.set_nodelay(true)?;
        let (client, target) = (client.clone(), target.clone());
        connections.spawn(async move {
            if let Ok(stream) = client.tcp(&target).await {
                // The load generator notices a connection that ends early.
                let _ = stream.relay(local).await;
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Opens `count` connections and keeps them; on the line `use` each carries one small transfer.
async fn crowd(config: &Value) -> Result<()> {
    let mut settings = client_settings(config)?;
    // Small buffers here: only the server's memory is measured.
    settings.socket.recv_buffer = 64 << 10;
    settings.socket.send_buffer = 64 << 10;
    let target = config["target"].as_str().context("target")?.to_owned();
    let count = config["count"].as_u64().context("count")?;
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(Client::connect(settings.clone()).await?);
    }
    println!("{}", json!({"event": "ready"}));
    if config["use"] == true {
        for client in &clients {
            let mut stream = client.tcp(&target).await?;
            stream.write_all(b"D 65536\n").await?;
            let mut got = Vec::new();
            stream.read_to_end(&mut got).await?;
        }
        println!("{}", json!({"event": "used"}));
    }
    std::future::pending().await
}
