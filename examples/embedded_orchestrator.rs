//! An orchestrator inside a program that has its own administrators and its own log of what
//! happens: they come in with the tickets of the program's sign-on, and every event comes out.
#![allow(clippy::print_stdout)]

use std::{net::IpAddr, net::SocketAddr, sync::Arc};

use hy2_master_sdk::{
    BoxFuture, Master,
    auth::external::{Authenticator, Undecided},
    events::{Event, EventSink},
    front::{Front, FrontConfig},
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// The program's sign-on: knows whose ticket it is.
struct SignOn {
    /// Name of the fleet's account that all its administrators share.
    account: String,
}

impl Authenticator for SignOn {
    fn authenticate<'a>(
        &'a self,
        bearer: &'a str,
        _from: Option<IpAddr>,
    ) -> BoxFuture<'a, Result<Option<String>, Undecided>> {
        // A directory or another service may be asked here. What the account may do is its role's.
        let known = bearer == "ticket-4711";
        Box::pin(std::future::ready(Ok(known.then(|| self.account.clone()))))
    }
}

/// The program's log: takes one event at a time, in order.
struct Log(mpsc::UnboundedSender<Event>);

impl EventSink for Log {
    fn event<'a>(&'a self, event: &'a Event) -> BoxFuture<'a, ()> {
        let _ = self.0.send(event.clone());
        Box::pin(std::future::ready(()))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let master = Master::sqlite(folder.path().join("fleet.db"))
        .key_file(folder.path().join("master.key"))
        .agents("127.0.0.1:0")
        .start()
        .await?;

    let (sender, mut log) = mpsc::unbounded_channel();
    let mut config = FrontConfig::new("http://127.0.0.1/".parse()?);
    (config.api, config.public) = (Some(loopback), None);
    config.authenticator = Some(Arc::new(SignOn {
        account: "admin".to_owned(),
    }));
    config.event_sink = Some(Arc::new(Log(sender)));
    let front = Front::start(&master, config).await?;
    let api = front
        .api_address()
        .ok_or_else(|| anyhow::anyhow!("no API"))?;
    println!("REST on {api}, agents on {:?}", master.agents_address());

    let new = json!({"username": "alice", "quota_bytes": 5_000_000_000_i64});
    let stranger = hy2_examples::http(api, "POST /api/v1/users", "ticket-0815", &new).await?;
    println!("a stranger's ticket: {}", stranger.0);
    assert_eq!(stranger.0, 401);
    let (status, made) = hy2_examples::http(api, "POST /api/v1/users", "ticket-4711", &new).await?;
    assert_eq!(status, 201, "{made}");
    let made: Value = serde_json::from_str(&made)?;

    // Passwords, second factors and API tokens stay with sessions of the orchestrator's own.
    let token = json!({"name": "x", "scopes": ["users:read"]});
    let refused = hy2_examples::http(api, "POST /api/v1/api-tokens", "ticket-4711", &token).await?;
    assert_eq!(refused.0, 403, "{}", refused.1);

    // The account itself was made at the start; the program hears of it, too.
    let event = loop {
        let event = log
            .recv()
            .await
            .ok_or_else(|| anyhow::anyhow!("no event"))?;
        println!("event {}: {} {}", event.seq, event.topic, event.key);
        if event.topic == "user.created" {
            break event;
        }
    };
    assert_eq!(event.key, made["id"].to_string());
    front.shutdown().await;
    master.shutdown().await;
    Ok(())
}
