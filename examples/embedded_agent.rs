//! A node inside a program of somebody else's: the program decides how targets are reached and
//! watches what the node does; the orchestrator decides who may use it and counts.
#![allow(clippy::print_stdout)]

use std::{net::SocketAddr, sync::Arc, sync::atomic::AtomicU64, sync::atomic::Ordering};

use hy2_agent_sdk::{Agent, AgentConfig, config::Enrolment};
use hy2_core::{
    Address, BoxFuture, Client,
    outbound::{AddressPolicy, DialError, Direct, Outbound, TcpConnection, UdpAssociation},
};
use hy2_master_sdk::{
    Master,
    auth::access::{Caller, Operation},
    front::{Front, FrontConfig},
    service::users::CreateUser,
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The program's own way to targets: counts them, and lets nobody send mail.
struct Metered {
    direct: Direct,
    dialled: Arc<AtomicU64>,
}

impl Outbound for Metered {
    fn tcp<'a>(
        &'a self,
        target: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn TcpConnection>, DialError>> {
        Box::pin(async move {
            if target.port == 25 {
                return Err(DialError::Denied);
            }
            self.dialled.fetch_add(1, Ordering::Relaxed);
            self.direct.tcp(target).await
        })
    }

    fn udp<'a>(
        &'a self,
        first: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn UdpAssociation>, DialError>> {
        self.direct.udp(first)
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (master, front) = orchestrator(folder.path()).await?;
    let issued = master
        .create_enrolment_token("embedded", std::time::Duration::from_secs(900), |_| {})
        .await?;

    // From here on: what the program that embeds a node does.
    let masters = vec![master.agents_address().unwrap_or(LOOPBACK).to_string()];
    let mut config = AgentConfig::new(folder.path().join("node"), masters);
    config.enrolment = Some(Enrolment::new(issued.secret, issued.ca_pin.parse()?));
    config.name = "embedded".to_owned();
    config.public_host = "127.0.0.1".to_owned();
    config.listen_port = hy2_examples::free_udp_port()?;
    let dialled = Arc::new(AtomicU64::new(0));
    let outbound = Metered {
        // Targets of this example are on this machine.
        direct: Direct::new(AddressPolicy::allow_all()),
        dialled: Arc::clone(&dialled),
    };
    let agent = Agent::builder(config)
        .outbound(Arc::new(outbound))
        .spawn()
        .await?;
    let mut status = agent.handle().status();
    status.wait_for(|now| !now.listening.is_empty()).await?;
    println!("the node serves on {:?}", agent.handle().listening());

    // A user of the node, as the orchestrator has it.
    let user = user(&front).await?;
    let link = subscription(&front, user).await?;
    let client = connect(&link).await?;
    let echo = hy2_examples::tcp_echo().await?.to_string();
    let mut stream = client.tcp(&echo).await?;
    stream.write_all(b"hello").await?;
    stream.read_exact(&mut [0; 5]).await?;
    assert!(client.tcp("127.0.0.1:25").await.is_err(), "no mail");
    println!(
        "dialled by this program: {}",
        dialled.load(Ordering::Relaxed)
    );
    assert_eq!(dialled.load(Ordering::Relaxed), 1);
    println!("live: {} connection", agent.handle().sessions().len());
    client.close().await;

    // The last report goes out before the agent ends.
    agent.shutdown().await;
    let counted = front.service().store().user(user).await?;
    println!("counted: {} up, {} down", counted.tx, counted.rx);
    assert_eq!((counted.tx, counted.rx), (5, 5));
    front.shutdown().await;
    master.shutdown().await;
    Ok(())
}

const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

async fn orchestrator(folder: &std::path::Path) -> anyhow::Result<(Master, Front)> {
    let master = Master::sqlite(folder.join("fleet.db"))
        .key_file(folder.join("master.key"))
        .agents("127.0.0.1:0")
        .start()
        .await?;
    let mut config = FrontConfig::new("http://127.0.0.1/".parse()?);
    (config.api, config.public) = (None, Some(LOOPBACK));
    let front = Front::start(&master, config).await?;
    Ok((master, front))
}

/// Makes a user who may use every node there is.
async fn user(front: &Front) -> anyhow::Result<hy2_master_sdk::domain::UserId> {
    let host = Caller::host();
    let service = front.service();
    let nodes = service
        .store()
        .nodes(None, 100)
        .await?
        .iter()
        .map(|node| node.id.0)
        .collect::<Vec<_>>();
    let new: CreateUser = serde_json::from_value(json!({"username": "alice", "node_ids": nodes}))?;
    let access = host.access(Operation::CreateUser)?;
    Ok(service.create_user(access, new).await?.id)
}

/// Returns the share link of a user's first node.
async fn subscription(
    front: &Front,
    user: hy2_master_sdk::domain::UserId,
) -> anyhow::Result<String> {
    let host = Caller::host();
    let access = host.access(Operation::GetUserSubscription)?;
    let url = front.service().user_subscription(access, user).await?;
    let path = url
        .expose_secret()
        .split_once("/sub/")
        .map_or("", |(_, token)| token);
    let public = front.public_address().unwrap_or(LOOPBACK);
    let request = format!("GET /sub/{path}/plain");
    let (status, links) = hy2_examples::http(public, &request, "", &Value::Null).await?;
    anyhow::ensure!(status == 200, "{status}");
    let link = links.lines().find(|line| line.starts_with("hy"));
    Ok(link.unwrap_or_default().to_owned())
}

/// Connects as soon as the node knows the user.
async fn connect(link: &str) -> anyhow::Result<Client> {
    for _ in 0..100 {
        if let Ok(client) = Client::connect(hy2_examples::client_of(link)?).await {
            return Ok(client);
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    anyhow::bail!("the node does not let its user in")
}
