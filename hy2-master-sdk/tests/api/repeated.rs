//! Requests that are repeated because their answer was lost: callers that hang up, and databases that go away.

use std::time::{Duration, Instant};

use hy2_master_sdk::store::{Db, Store, StoreOptions};
use hy2_proto::control::rpc as pb;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tonic::Code;

use crate::grpc::{ask, connect};
use crate::harness::{Answer, Client, Fleet, on_both};
use crate::postgres;

on_both! {
    async fn who_hangs_up_finds_the_answer_when_the_request_comes_again(fleet) {
        let owner = fleet.owner().await;
        for number in 0..24 {
            let new = json!({"username": format!("ann-{number}")});
            let keyed = owner.clone().with("idempotency-key", &format!("k-{number}"));
            // From before it is read to after it is answered.
            hang_up(&fleet, &keyed, &new, Duration::from_micros(250 * number)).await;
            let made = until_answered(&keyed, &new).await.expect(201);
            assert_eq!(made["username"], new["username"]);
        }
        assert_eq!(users(&owner).await.len(), 24, "each once");
        fleet.stop().await;
    }

    async fn whose_deadline_passes_finds_the_answer_over_grpc(fleet) {
        let owner = fleet.owner().await;
        let mut grpc = connect(&fleet).await;
        for number in 0..24 {
            let new = pb::CreateUserRequest {
                request_id: format!("r-{number}"),
                username: format!("ann-{number}"),
                ..Default::default()
            };
            let short = Duration::from_micros(500 + 100 * number);
            let _ = tokio::time::timeout(short, grpc.create_user(ask(&owner, new.clone()))).await;
            let deadline = Instant::now() + Duration::from_secs(60);
            loop {
                match grpc.create_user(ask(&owner, new.clone())).await {
                    Ok(answer) => break assert_eq!(answer.into_inner().user.unwrap().username, new.username),
                    Err(status) => {
                        assert_eq!(status.metadata().get("hy2-code").unwrap(), "idempotency_running");
                        assert_eq!(status.code(), Code::Unavailable);
                        assert_eq!(status.metadata().get("retry-after").unwrap(), "1");
                    }
                }
                assert!(Instant::now() < deadline, "never answered");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        assert_eq!(users(&owner).await.len(), 24, "each once");
        fleet.stop().await;
    }

    async fn what_is_stored_of_a_request_tells_no_password(fleet) {
        // The same requests to another cluster, whose key is another: who has the database cannot work out of it which
        // password makes the hash.
        let other = Fleet::sqlite().await;
        let mut seen = Vec::new();
        for fleet in [&fleet, &other] {
            let owner = fleet.owner().await;
            let new = json!({"username": "ann", "password": "given by somebody", "role": "operator"});
            let keyed = owner.clone().with("idempotency-key", "k");
            let first = keyed.post("/api/v1/admins", &new).await.expect(201);
            assert_eq!(keyed.post("/api/v1/admins", &new).await.expect(201), first);
            let new = pb::CreateUserRequest {
                request_id: "r".into(),
                username: "bob".into(),
                password: "a-password-of-bob-1".into(),
                ..Default::default()
            };
            let mut grpc = connect(fleet).await;
            let first = grpc.create_user(ask(&owner, new.clone())).await.unwrap();
            let again = grpc.create_user(ask(&owner, new)).await.unwrap();
            assert_eq!(first.into_inner(), again.into_inner());
            let sql = "select request_hash from idempotency_keys order by key";
            let hashes: Vec<Vec<u8>> = match fleet.master.store().db() {
                Db::Pg(pool) => sqlx::query_scalar(sql).fetch_all(pool).await.unwrap(),
                Db::Sqlite { read, .. } => sqlx::query_scalar(sql).fetch_all(read).await.unwrap(),
            };
            assert_eq!(hashes.len(), 2);
            seen.push(hashes);
        }
        for (one, other) in seen[0].iter().zip(&seen[1]) {
            assert_ne!(one, other);
        }
        other.stop().await;
        fleet.stop().await;
    }

    async fn a_request_that_was_cut_off_says_what_to_do(fleet) {
        let owner = fleet.owner().await.with("idempotency-key", "k");
        let new = json!({"username": "ann"});
        owner.post("/api/v1/users", &new).await.expect(201);
        // As a process that was killed before it kept the answer leaves it.
        let take = async |status: &'static str| {
            let sql = format!("update idempotency_keys set response_enc = null, status = {status}");
            execute(fleet.master.store(), &sql).await;
        };
        take("0").await;
        let answer = owner.post("/api/v1/users", &new).await;
        assert_eq!(answer.header("retry-after"), "1");
        assert_eq!(answer.problem(409), "idempotency_running");
        // Longer than any request runs.
        fleet.clock.advance(Duration::from_secs(121));
        let told = async || {
            let answer = owner.post("/api/v1/users", &new).await;
            assert_eq!(answer.header("retry-after"), "");
            let text = answer.text();
            assert_eq!(answer.problem(409), "idempotency_unfinished");
            text
        };
        let text = told().await;
        assert!(text.contains("has changed something") && text.contains("new key"), "{text}");
        take("null").await;
        let text = told().await;
        assert!(text.contains("look whether it has happened") && text.contains("new key"), "{text}");
        fleet.stop().await;
    }
}

/// Whatever the moment, a key is free again, or has its answer, or what it changed is there: nobody acts twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_work_again_when_the_database_is_back() {
    let server = tokio::task::block_in_place(|| postgres::Server::start(true));
    let url = postgres::database_on(&server.url).await;
    let mut options = StoreOptions::default();
    options.acquire_timeout = Duration::from_millis(500);
    options.max_connections = 6;
    let store = Store::open_postgres(&url, &options).await.unwrap();
    let fleet = Fleet::start_with(store, tempfile::tempdir().unwrap(), |_| {}).await;
    let owner = fleet.owner().await;
    let requests = async |round: u32| {
        let asked = (0..16).map(|number| {
            let name = format!("token-{round}-{number}");
            let keyed = owner.clone().with("idempotency-key", &name);
            async move {
                // No two of them may have the same name, but nothing else stops that.
                let answer = keyed.post(TOKENS, &json!({"label": name})).await;
                (keyed, name, answer)
            }
        });
        futures_util::future::join_all(asked).await
    };
    let mut refused = Vec::new();
    let crash = tokio::task::spawn_blocking(move || {
        for _ in 0..2 {
            server.crash_and_resume();
        }
        server
    });
    let mut round = 0;
    while !crash.is_finished() || round < 3 {
        let answers = requests(round).await.into_iter();
        refused.extend(answers.filter(|(_, _, answer)| answer.status != 201));
        round += 1;
    }
    let server = crash.await.unwrap();
    assert!(!refused.is_empty(), "{round} rounds saw no outage");
    let settled = || async {
        let sql = "select count(*) from idempotency_keys where status is null";
        (count(fleet.master.store(), sql).await == Some(0)).then_some(())
    };
    fleet.until("keys are given back", settled).await;
    // What was done just when the connection was lost is told apart by its age.
    fleet.clock.advance(Duration::from_secs(121));
    let mut lost = 0;
    for (keyed, name, _) in refused {
        let answer = keyed.post(TOKENS, &json!({"label": name})).await;
        if answer.status != 201 {
            assert_eq!(answer.problem(409), "idempotency_unfinished");
            lost += 1;
        }
    }
    let asked = Some(i64::from(round * 16));
    for sql in [
        "select count(*) from enrolment_tokens",
        "select count(distinct label) from enrolment_tokens",
    ] {
        let made = count(fleet.master.store(), sql).await;
        assert_eq!(made, asked, "each once, {lost} without their answers");
    }
    fleet.stop().await;
    tokio::task::block_in_place(|| server.stop());
}

const TOKENS: &str = "/api/v1/enrolment-tokens";

/// Sends a request and goes away a moment later without reading.
async fn hang_up(fleet: &Fleet, client: &Client, body: &Value, after: Duration) {
    let body = body.to_string();
    let mut head = "POST /api/v1/users HTTP/1.1\r\nhost: x\r\n".to_owned();
    for (name, value) in &client.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let length = body.len();
    head.push_str("content-type: application/json\r\n");
    head.push_str(&format!("content-length: {length}\r\n\r\n{body}"));
    let mut stream = TcpStream::connect(fleet.api).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(after).await;
}

/// Repeats a request as its answers say until it is answered.
async fn until_answered(client: &Client, body: &Value) -> Answer {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let answer = client.post("/api/v1/users", body).await;
        if answer.status != 409 {
            return answer;
        }
        assert!(
            !answer.header("retry-after").is_empty(),
            "{}",
            answer.text()
        );
        assert_eq!(answer.problem(409), "idempotency_running");
        assert!(Instant::now() < deadline, "never answered");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn users(owner: &Client) -> Vec<Value> {
    let page = owner.get("/api/v1/users?size=500").await.expect(200);
    page["items"].as_array().unwrap().clone()
}

async fn execute(store: &Store, sql: &str) {
    let sql = sqlx::AssertSqlSafe(sql.to_owned());
    match store.db() {
        Db::Pg(pool) => drop(sqlx::query(sql).execute(pool).await.unwrap()),
        Db::Sqlite { write, .. } => drop(sqlx::query(sql).execute(write).await.unwrap()),
    }
}

/// Counts on PostgreSQL; nothing while it is away.
async fn count(store: &Store, sql: &'static str) -> Option<i64> {
    let Db::Pg(pool) = store.db() else {
        panic!("not PostgreSQL");
    };
    sqlx::query_scalar(sql).fetch_one(pool).await.ok()
}
