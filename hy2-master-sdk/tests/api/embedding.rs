//! What an embedder brings along: administrators of its own, and an ear for what happens.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hy2_master_sdk::auth::external::{Authenticator, Undecided};
use hy2_master_sdk::auth::password::Cost;
use hy2_master_sdk::events::{Event, EventSink};
use hy2_master_sdk::front::{Front, FrontConfig, FrontError};
use hy2_master_sdk::secrets::MasterKeys;
use hy2_master_sdk::store::{Store, StoreOptions};
use hy2_master_sdk::{BoxFuture, Master};
use serde_json::json;
use tokio::sync::mpsc;

use crate::harness::{Client, Fleet};

/// Knows every ticket that begins with its name; has a directory that may be out of order.
struct Tickets;

impl Authenticator for Tickets {
    fn authenticate<'a>(
        &'a self,
        bearer: &'a str,
        _: Option<IpAddr>,
    ) -> BoxFuture<'a, Result<Option<String>, Undecided>> {
        let answer = match bearer.strip_prefix("ticket-of-") {
            Some("broken") => Err(Undecided("the directory is down".into())),
            name => Ok(name.map(str::to_owned)),
        };
        Box::pin(std::future::ready(answer))
    }
}

struct Ear {
    last: Option<i64>,
    heard: mpsc::UnboundedSender<(i64, String)>,
}

impl EventSink for Ear {
    fn last(&self) -> BoxFuture<'_, Option<i64>> {
        Box::pin(std::future::ready(self.last))
    }

    fn event<'a>(&'a self, event: &'a Event) -> BoxFuture<'a, ()> {
        let _ = self.heard.send((event.seq, event.topic.clone()));
        Box::pin(std::future::ready(()))
    }
}

async fn fleet(directory: tempfile::TempDir, ear: Ear) -> Fleet {
    let path = directory.path().join("master.db");
    let store = Store::open_sqlite(&path, &StoreOptions::default())
        .await
        .unwrap();
    Fleet::start_with(store, directory, |config| {
        config.authenticator = Some(Arc::new(Tickets));
        config.event_sink = Some(Arc::new(ear));
    })
    .await
}

fn bearer(fleet: &Fleet, ticket: &str) -> Client {
    fleet
        .client()
        .with("authorization", &format!("Bearer {ticket}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedders_ticket_has_the_rights_of_the_account_it_names_and_no_others() {
    let (heard, _ear) = mpsc::unbounded_channel();
    let ear = Ear { last: None, heard };
    let fleet = fleet(tempfile::tempdir().unwrap(), ear).await;
    let owner = fleet.owner().await;
    let reader = json!({"username": "reader", "password": "given by somebody", "role": "auditor"});
    let reader = owner.post("/api/v1/admins", &reader).await.expect(201);
    let user = json!({"username": "ann"});

    let admin = bearer(&fleet, "ticket-of-admin");
    admin.post("/api/v1/users", &user).await.expect(201);
    // The role is looked up with each request; the password that must be changed is not in the way.
    let ticket = bearer(&fleet, "ticket-of-reader");
    ticket.get("/api/v1/users").await.expect(200);
    assert_eq!(ticket.post("/api/v1/users", &user).await.status, 403);
    let id = &reader["id"];
    let disabled = json!({"status": "disabled"});
    owner
        .patch(&format!("/api/v1/admins/{id}"), &disabled)
        .await
        .expect(200);
    for wrong in ["ticket-of-reader", "ticket-of-nobody", "ticket", "x.y.z"] {
        let answer = bearer(&fleet, wrong).get("/api/v1/users").await;
        assert_eq!(answer.status, 401, "{wrong}");
    }
    let answer = bearer(&fleet, "ticket-of-broken")
        .get("/api/v1/users")
        .await;
    assert_eq!(answer.status, 503);
    // What belongs to a session stays there.
    let token = json!({"name": "x", "scopes": ["users:read"]});
    let answer = admin.post("/api/v1/api-tokens", &token).await;
    assert_eq!(answer.status, 403);
    let password = json!({"old": fleet.owner_password(), "new": "chosen by a ticket"});
    let answer = admin.post("/api/v1/auth/password", &password).await;
    assert_eq!(answer.status, 403);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_public_url_addresses_of_subscriptions_are_paths() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("master.db");
    let store = Store::open_sqlite(&path, &StoreOptions::default())
        .await
        .unwrap();
    let fleet = Fleet::start_with(store, directory, |config| config.public_url = None).await;
    let owner = fleet.owner().await;
    let user = json!({"username": "ann"});
    let user = owner.post("/api/v1/users", &user).await.expect(201);
    let address = format!("/api/v1/users/{}/subscription", user["id"]);
    let given = owner.get(&address).await.expect(200);
    let url = given["url"].as_str().unwrap();
    assert!(url.starts_with("/sub/") && url.len() > 20, "{url}");
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_hears_every_event_in_order_from_where_it_left_off() {
    let (heard, mut ear) = mpsc::unbounded_channel();
    let directory = tempfile::tempdir().unwrap();
    let fleet = fleet(
        directory,
        Ear {
            last: Some(0),
            heard,
        },
    )
    .await;
    let owner = fleet.owner().await;
    for name in ["ann", "bob", "eve"] {
        let user = json!({"username": name});
        owner.post("/api/v1/users", &user).await.expect(201);
    }
    let mut topics = Vec::new();
    while topics
        .iter()
        .filter(|topic| *topic == "user.created")
        .count()
        < 3
    {
        let (seq, topic) = ear.recv().await.unwrap();
        topics.push(topic);
        assert_eq!(usize::try_from(seq), Ok(topics.len()), "without a gap");
    }
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_fails_for_a_port_leaves_the_first_password_to_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let store = crate::harness::empty_sqlite(directory.path()).await;
    let master = Master::with_store(store)
        .keys(MasterKeys::generate().unwrap())
        .start()
        .await
        .unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = |public| {
        let mut config = FrontConfig::new("https://sub.example.org/".parse().unwrap());
        config.api = Some(free);
        config.public = Some(public);
        config.password_cost = Cost {
            memory_kib: 64,
            passes: 1,
        };
        config
    };
    let failed = Front::start(&master, config(taken.local_addr().unwrap())).await;
    assert!(matches!(failed, Err(FrontError::Bind { .. })), "{failed:?}");
    let front = Front::start(&master, config(free)).await.unwrap();
    assert!(front.first_admin().is_some());
    drop(front);
    master.shutdown().await;
}
