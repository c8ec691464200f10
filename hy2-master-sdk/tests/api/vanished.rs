//! A database whose host vanishes without a word: connections that say nothing any more, not even that they are lost.

use std::sync::Arc;
use std::time::Duration;

use hy2_master_sdk::store::{Store, StoreOptions, Topic};
use serde_json::json;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::harness::{Fleet, database};

/// What is waited for in one step, whatever else the host does.
const PATIENCE: Duration = Duration::from_secs(120);

/// A way to a server on which connections can be made to say nothing, for good.
struct Way {
    port: u16,
    vanish: Arc<Notify>,
}

impl Way {
    async fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let vanish = Arc::new(Notify::new());
        let vanishes = Arc::clone(&vanish);
        tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let (server, vanish) = (server.clone(), Arc::clone(&vanishes));
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(&server).await.unwrap();
                    tokio::select! {
                        biased;
                        // Both ends stay open.
                        () = vanish.notified() => std::future::pending().await,
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                    }
                });
            }
        });
        Self { port, vanish }
    }

    /// What is connected hears nothing any more; who connects again is served.
    fn vanish(&self) {
        self.vanish.notify_waiters();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_database_that_vanished_goes_on_with_other_connections() {
    let url = database().await;
    let (user, place) = url.split_once('@').unwrap();
    let (server, name) = place.split_once('/').unwrap();
    let way = Way::to(server.to_owned()).await;
    let own = sqlx::PgPool::connect(&url).await.unwrap();
    // Locks are waited for until the test lets go; the server gives what vanished up soon.
    let limits = "options[lock_timeout]=120s&options[idle_in_transaction_session_timeout]=2s";
    let url = format!("{user}@127.0.0.1:{}/{name}?{limits}", way.port);
    let mut options = StoreOptions::default();
    options.acquire_timeout = Duration::from_secs(2);
    options.patience = Duration::from_secs(10);
    let store = Store::open_postgres(&url, &options).await.unwrap();
    let fleet = Fleet::start_with(store, tempfile::tempdir().unwrap(), |_| {}).await;

    let owner = fleet.owner().await;
    let ends = json!({"username": "ann", "expires_at": "2027-01-15T08:01:00Z"});
    owner.post("/api/v1/users", &ends).await.expect(201);
    let token = json!({"name": "program", "scopes": ["users:read", "users:write"]});
    let token = owner.post("/api/v1/api-tokens", &token).await.expect(201);
    let bearer = format!("Bearer {}", token["token"].as_str().unwrap());
    let program = fleet.client().with("authorization", &bearer);
    program.get("/api/v1/users").await.expect(200);
    let program = program.with("idempotency-key", "once");
    let new = json!({"username": "bob"});

    // Who asks, what a key is taken with, the sealer and a task: each waits for the database when it vanishes.
    let mut locks = own.begin().await.unwrap();
    let lock =
        "lock table admin_sessions, idempotency_keys, audit_log, users in access exclusive mode";
    sqlx::query(lock).execute(&mut *locks).await.unwrap();
    fleet.master.store().bus().call(Topic::Users);
    all_wait(&own, 2).await;
    let asked = {
        let (owner, program, new) = (owner.clone(), program.clone(), new.clone());
        tokio::spawn(async move {
            tokio::join!(
                owner.get("/api/v1/users"),
                program.post("/api/v1/users", &new)
            )
        })
    };
    all_wait(&own, 4).await;
    way.vanish();
    locks.rollback().await.unwrap();

    let (read, written) = asked.await.unwrap();
    assert_eq!((read.status, written.status), (503, 503));
    // The key is free again, and what it was taken for happens once.
    soon("the key", async || {
        let answer = program.post("/api/v1/users", &new).await;
        (answer.status == 201).then_some(())
    })
    .await;
    fleet.clock.advance(Duration::from_secs(120));
    soon("ann's end", async || {
        let answer = owner.get("/api/v1/users/1").await;
        (answer.status == 200 && answer.text().contains("expired")).then_some(())
    })
    .await;
    soon("the audit log", async || {
        let answer = owner.get("/api/v1/audit?action=create_user&size=1").await;
        (answer.status == 200 && answer.text().contains("bob")).then_some(())
    })
    .await;

    // And the end comes in time.
    let mut locks = own.begin().await.unwrap();
    sqlx::query(lock).execute(&mut *locks).await.unwrap();
    fleet.master.store().bus().call(Topic::Users);
    all_wait(&own, 2).await;
    way.vanish();
    locks.rollback().await.unwrap();
    let stopped = tokio::time::timeout(PATIENCE, fleet.stop()).await;
    assert!(stopped.is_ok(), "it ends");
}

/// Waits until somebody waits for each of so many tables.
async fn all_wait(own: &sqlx::PgPool, tables: i64) {
    const WAITING: &str = "select count(distinct relation) from pg_locks where not granted \
        and database = (select oid from pg_database where datname = current_database())";
    soon("sessions that wait", async || {
        let waiting: i64 = sqlx::query_scalar(WAITING).fetch_one(own).await.unwrap();
        (waiting >= tables).then_some(())
    })
    .await;
}

async fn soon<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, asking).await;
    found.unwrap_or_else(|_| panic!("never: {what}"))
}
