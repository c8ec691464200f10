//! The audit chain, live events and webhooks.

use std::time::Duration;

use aws_lc_rs::hmac::{HMAC_SHA256, Key, verify};
use futures_util::{SinkExt, StreamExt};
use hy2_master_sdk::store::Db;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::harness::{Client, Fleet, on_both};

on_both! {
    async fn the_audit_chain_is_whole_and_a_changed_entry_breaks_it(fleet) {
        let owner = fleet.owner().await;
        for name in ["a", "b", "c"] {
            owner.post("/api/v1/users", &json!({"username": name})).await.expect(201);
        }
        let found = fleet
            .until("everything is sealed", || async {
                let found = owner.get("/api/v1/audit/verify").await.expect(200);
                (found["entries"].as_i64() >= Some(5)).then_some(found)
            })
            .await;
        assert_eq!((&found["intact"], &found["broken_at"]), (&json!(true), &Value::Null));
        let listed = owner.get("/api/v1/audit?action=create_user").await.expect(200);
        let entry = &listed["items"][0];
        assert_eq!((&entry["actor"], &entry["after"]["username"]), (&json!("admin"), &json!("c")));
        assert_eq!(entry["address"], "127.0.0.1");

        let seq = entry["seq"].as_i64().unwrap();
        execute(&fleet, "update audit_log set actor = 'mallory' where seq = $1", seq).await;
        let found = owner.get("/api/v1/audit/verify").await.expect(200);
        assert_eq!((&found["intact"], &found["broken_at"]), (&json!(false), &json!(seq)));
        execute(&fleet, "update audit_log set actor = 'admin' where seq = $1", seq).await;
        assert_eq!(owner.get("/api/v1/audit/verify").await.expect(200)["intact"], true);
        // Cut out, the hole shows; cut off after a checkpoint, the end is missed.
        let checkpoints = found["checkpoints"].as_i64();
        fleet.clock.advance(Duration::from_secs(301));
        fleet
            .until("a checkpoint is signed", || async {
                let found = owner.get("/api/v1/audit/verify").await.expect(200);
                (found["checkpoints"].as_i64() > checkpoints).then_some(())
            })
            .await;
        execute(&fleet, "delete from audit_log where seq = $1", seq).await;
        let found = owner.get("/api/v1/audit/verify").await.expect(200);
        assert_eq!(found["broken_at"], json!(seq));
        execute(&fleet, "delete from audit_log where seq = $1", seq - 2).await;
        let found = owner.get("/api/v1/audit/verify").await.expect(200);
        assert_eq!(found["broken_at"], json!(seq - 2));
        fleet.stop().await;
    }

    async fn server_sent_events_continue_after_the_last_one_seen(fleet) {
        let owner = fleet.owner().await;
        let mut stream = EventStream::open(&fleet, &owner, "?topics=user.*", "").await;
        owner.post("/api/v1/plans", &json!({"name": "p"})).await.expect(201);
        owner.post("/api/v1/users", &json!({"username": "ann"})).await.expect(201);
        let first = stream.next().await;
        assert_eq!(first["topic"], "user.created");
        assert_eq!(first["payload"]["username"], "ann");
        drop(stream);
        owner.post("/api/v1/users", &json!({"username": "bob"})).await.expect(201);
        owner.post("/api/v1/users", &json!({"username": "cy"})).await.expect(201);
        let last = format!("Last-Event-ID: {}\r\n", first["seq"]);
        let mut stream = EventStream::open(&fleet, &owner, "?topics=user.*", &last).await;
        assert_eq!(stream.next().await["payload"]["username"], "bob");
        assert_eq!(stream.next().await["payload"]["username"], "cy");
        // A number from before a restore: what comes next is new.
        let ahead = "Last-Event-ID: 1000000\r\n";
        let mut stream = EventStream::open(&fleet, &owner, "?topics=user.*", ahead).await;
        owner.post("/api/v1/users", &json!({"username": "dee"})).await.expect(201);
        assert_eq!(stream.next().await["payload"]["username"], "dee");
        fleet.stop().await;
    }

    async fn a_web_socket_tells_the_same_and_refuses_foreign_pages(fleet) {
        let owner = fleet.owner().await;
        let url = format!("ws://{}/api/v1/events/ws", fleet.api);
        let mut request = url.as_str().into_client_request().unwrap();
        assert!(tokio_tungstenite::client_async(request.clone(), connect(&fleet).await).await.is_err());
        let token = owner.headers["authorization"].parse().unwrap();
        request.headers_mut().insert("authorization", token);
        let opened = tokio_tungstenite::client_async(request, connect(&fleet).await).await;
        let (mut socket, _) = opened.unwrap();
        owner.post("/api/v1/users", &json!({"username": "ann"})).await.expect(201);
        let event = loop {
            match tokio::time::timeout(Duration::from_secs(30), socket.next()).await.unwrap() {
                Some(Ok(Message::Text(text))) => break serde_json::from_str::<Value>(&text).unwrap(),
                Some(Ok(_)) => {}
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(event["topic"], "user.created");
        socket.send(Message::Close(None)).await.unwrap();
        fleet.stop().await;
    }

    async fn a_webhook_is_tried_until_its_receiver_takes_it(fleet) {
        let owner = fleet.owner().await;
        let receiver = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook?x=1", receiver.local_addr().unwrap());
        let new = json!({"url": url, "topics": ["user.*"]});
        let hook = owner.post("/api/v1/webhooks", &new).await.expect(201);
        let secret = hook["secret"].as_str().unwrap().to_owned();
        owner.post("/api/v1/users", &json!({"username": "ann"})).await.expect(201);

        let (head, body) = receive(&receiver, "500 Internal Server Error").await;
        assert!(head.starts_with("POST /hook?x=1 HTTP/1.1"), "{head}");
        let event: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&event["topic"], &event["payload"]["username"]), (&json!("user.created"), &json!("ann")));
        let path = format!("/api/v1/webhooks/{}/deliveries", hook["id"].as_str().unwrap());
        let waiting = fleet
            .until("the failure is noted", || async {
                let page = owner.get(&path).await.expect(200);
                page["items"][0]["error"].is_string().then(|| page["items"][0].clone())
            })
            .await;
        assert_eq!((&waiting["status"], &waiting["response_status"]), (&json!("pending"), &json!(500)));

        fleet.clock.advance(Duration::from_secs(60));
        let (head, again) = receive(&receiver, "204 No Content").await;
        let again_event: Value = serde_json::from_str(&again).unwrap();
        assert_eq!(again_event["id"], event["id"], "the same delivery");
        let header = |name: &str| {
            head.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).unwrap().to_owned()
        };
        let signature = header("hy2-signature");
        let (at, mac) = signature.split_once(",v1=").unwrap();
        let signed = format!("{}.{again}", at.strip_prefix("t=").unwrap());
        let key = Key::new(HMAC_SHA256, secret.as_bytes());
        verify(&key, signed.as_bytes(), &hex::decode(mac).unwrap()).unwrap();
        fleet
            .until("the delivery is noted", || async {
                let page = owner.get(&path).await.expect(200);
                (page["items"][0]["status"] == "delivered").then_some(())
            })
            .await;
        fleet.stop().await;
    }
}

async fn connect(fleet: &Fleet) -> TcpStream {
    TcpStream::connect(fleet.api).await.unwrap()
}

async fn execute(fleet: &Fleet, sql: &'static str, value: i64) {
    match fleet.master.store().db() {
        Db::Pg(pool) => {
            sqlx::query(sql).bind(value).execute(pool).await.unwrap();
        }
        Db::Sqlite { write, .. } => {
            sqlx::query(sql).bind(value).execute(write).await.unwrap();
        }
    }
}

/// Takes one request and answers it; returns its head and its body.
async fn receive(listener: &TcpListener, status: &str) -> (String, String) {
    let accepted = tokio::time::timeout(Duration::from_secs(30), listener.accept()).await;
    let (mut stream, _) = accepted.unwrap().unwrap();
    let mut read = Vec::new();
    let (head, length) = loop {
        let mut buffer = [0; 4_096];
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "the request ended early");
        read.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&read).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                line.to_lowercase()
                    .strip_prefix("content-length: ")
                    .map(|n| n.parse().unwrap())
            });
            let length: usize = length.unwrap();
            if body.len() >= length {
                break (head.to_owned(), length);
            }
        }
    };
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(answer.as_bytes()).await.unwrap();
    let body = read[read.len() - length..].to_vec();
    (head, String::from_utf8(body).unwrap())
}

/// Server-sent events over a plain socket.
struct EventStream {
    stream: TcpStream,
    read: String,
}

impl EventStream {
    async fn open(fleet: &Fleet, client: &Client, query: &str, header: &str) -> Self {
        let mut stream = TcpStream::connect(fleet.api).await.unwrap();
        let token = &client.headers["authorization"];
        let request = format!(
            "GET /api/v1/events{query} HTTP/1.1\r\nhost: {}\r\nauthorization: {token}\r\n{header}\r\n",
            fleet.api
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut stream = Self {
            stream,
            read: String::new(),
        };
        while !stream.read.contains("\r\n\r\n") {
            stream.fill().await;
        }
        assert!(stream.read.starts_with("HTTP/1.1 200"), "{}", stream.read);
        stream
    }

    async fn fill(&mut self) {
        let mut buffer = [0; 4_096];
        let read =
            tokio::time::timeout(Duration::from_secs(30), self.stream.read(&mut buffer)).await;
        let count = read.unwrap().unwrap();
        assert!(count > 0, "the stream ended");
        self.read
            .push_str(&String::from_utf8_lossy(&buffer[..count]));
    }

    async fn next(&mut self) -> Value {
        loop {
            if let Some(start) = self.read.find("data: ")
                && let Some(length) = self.read[start..].find('\n')
            {
                let data = self.read[start + 6..start + length].to_owned();
                self.read.drain(..start + length);
                return serde_json::from_str(&data).unwrap();
            }
            self.fill().await;
        }
    }
}
