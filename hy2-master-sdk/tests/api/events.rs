//! The audit chain, live events and webhooks.

use std::time::Duration;

use aws_lc_rs::hmac::{HMAC_SHA256, Key, verify};
use futures_util::{SinkExt, StreamExt};
use hy2_master_sdk::store::Db;
use hy2_proto::control::rpc as pb;
use hy2_proto::control::rpc::admin_service_client::AdminServiceClient;
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

    async fn an_end_of_the_audit_log_cut_off_with_its_checkpoints_is_missed(fleet) {
        let owner = fleet.owner().await;
        // Longer than a login is good for.
        let token = json!({"name": "program", "scopes": ["users:read", "users:write", "audit:read"]});
        let token = owner.post("/api/v1/api-tokens", &token).await.expect(201);
        let bearer = format!("Bearer {}", token["token"].as_str().unwrap());
        let owner = fleet.client().with("authorization", &bearer);
        let signed = || async {
            let before = owner.get("/api/v1/audit/verify").await.expect(200)["checkpoints"].as_i64();
            fleet.clock.advance(Duration::from_secs(301));
            fleet
                .until("a checkpoint is signed", || async {
                    let found = owner.get("/api/v1/audit/verify").await.expect(200);
                    (found["checkpoints"].as_i64() > before).then_some(found)
                })
                .await
        };
        for round in 0..2 {
            for name in ["a", "b", "c", "d"] {
                let user = json!({"username": format!("{name}-{round}")});
                owner.post("/api/v1/users", &user).await.expect(201);
            }
            fleet
                .until("everything is sealed", || async {
                    let found = owner.get("/api/v1/audit?action=create_user&size=1").await.expect(200);
                    let newest = &found["items"][0]["after"]["username"];
                    (*newest == format!("d-{round}")).then_some(())
                })
                .await;
            if round == 0 {
                assert_eq!(signed().await["intact"], true);
                execute(&fleet, "delete from audit_log where seq > $1", 2).await;
                execute(&fleet, "delete from audit_checkpoints where seq > $1", 2).await;
                let found = owner.get("/api/v1/audit/verify").await.expect(200);
                assert_eq!((&found["intact"], &found["broken_at"]), (&json!(false), &json!(3)));
            }
        }
        // What is written from then on does not make it whole, whatever is signed of it.
        for name in ["e", "f"] {
            owner.post("/api/v1/users", &json!({"username": name})).await.expect(201);
            let found = signed().await;
            assert_eq!(found["intact"], false, "{found}");
        }
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

    async fn everybody_is_told_of_what_they_may_read(fleet) {
        let owner = fleet.owner().await;
        let support = fleet.as_role("support", "support").await;
        let token = |scopes: Value| {
            let owner = owner.clone();
            async move {
                let new = json!({"name": "listener", "scopes": scopes});
                let made = owner.post("/api/v1/api-tokens", &new).await.expect(201);
                owner.with("authorization", &format!("Bearer {}", made["token"].as_str().unwrap()))
            }
        };
        let narrow = token(json!(["events:read", "nodes:read"])).await;
        let mut listeners = Vec::new();
        for client in [&owner, &support, &narrow] {
            listeners.push(EventStream::open(&fleet, client, "", "").await);
        }
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", fleet.api)).unwrap();
        let mut grpc = AdminServiceClient::new(endpoint.connect().await.unwrap());
        let ask = |client: &Client| {
            let mut request = tonic::Request::new(pb::WatchEventsRequest::default());
            let token = client.headers["authorization"].parse().unwrap();
            request.metadata_mut().insert("authorization", token);
            request
        };
        let mut over_grpc = Vec::new();
        for client in [&support, &narrow] {
            let asked = tokio::time::timeout(Duration::from_secs(30), grpc.watch_events(ask(client)));
            over_grpc.push(asked.await.expect("a stream in time").unwrap().into_inner());
        }

        let region = |code: &str| json!({"code": code, "name": "a region"});
        owner.post("/api/v1/regions", &region("first")).await.expect(201);
        let hook = json!({"url": "https://hooks.example.org/secret-path"});
        owner.post("/api/v1/webhooks", &hook).await.expect(201);
        owner.put("/api/v1/settings/a.setting", &json!({"value": "hidden"})).await.expect(200);
        let admin = json!({"username": "bob", "password": "a given password", "role": "auditor"});
        owner.post("/api/v1/admins", &admin).await.expect(201);
        owner.post("/api/v1/users", &json!({"username": "ann", "note": "private"})).await.expect(201);
        let own = json!({"name": "own", "scopes": ["users:read"]});
        owner.post("/api/v1/api-tokens", &own).await.expect(201);
        owner.post("/api/v1/regions", &region("last")).await.expect(201);

        let all = [
            "region.created", "webhook.created", "setting.changed", "admin.created", "user.created",
            "api_token.created", "region.created",
        ];
        let of_support = ["region.created", "user.created", "region.created"];
        let of_narrow = ["region.created", "region.created"];
        let mut first_seen = 0;
        for (stream, expected) in listeners.iter_mut().zip([&all[..], &of_support, &of_narrow]) {
            for (at, topic) in expected.iter().enumerate() {
                let mut event = stream.next().await;
                // Logins of before may have their numbers late.
                while at == 0 && event["topic"] != *topic {
                    event = stream.next().await;
                }
                assert_eq!(event["topic"], *topic, "{at} of {expected:?}");
                first_seen = if at == 0 { event["seq"].as_i64().unwrap() } else { first_seen };
            }
        }
        for (stream, expected) in over_grpc.iter_mut().zip([&of_support[..], &of_narrow]) {
            for topic in expected {
                let told = tokio::time::timeout(Duration::from_secs(30), stream.message()).await;
                let event = told.expect("an event in time").unwrap().unwrap();
                assert_eq!(event.topic, *topic, "{expected:?}");
            }
        }
        // What is left out is passed over by who resumes, too.
        let resumed = format!("Last-Event-ID: {first_seen}\r\n");
        let mut stream = EventStream::open(&fleet, &support, "", &resumed).await;
        assert_eq!(stream.next().await["payload"]["username"], "ann");
        assert_eq!(stream.next().await["payload"]["code"], "last");
        fleet.stop().await;
    }

    async fn a_stream_ends_with_the_right_to_it(fleet) {
        let owner = fleet.owner().await;
        let ann = fleet.as_role("ann", "auditor").await;
        let me = ann.get("/api/v1/auth/me").await.expect(200)["id"].clone();
        let new = json!({"name": "listener", "scopes": ["events:read", "admins:read", "users:read"]});
        let made = ann.post("/api/v1/api-tokens", &new).await.expect(201);
        let token = fleet.client().with("authorization", &format!("Bearer {}", made["token"].as_str().unwrap()));
        let role = |role: &str| json!({"role": role});
        let path = format!("/api/v1/admins/{me}");
        owner.patch(&path, &role("operator")).await.expect(200);
        let mut stream = EventStream::open(&fleet, &token, "", "").await;
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", fleet.api)).unwrap();
        let mut grpc = AdminServiceClient::new(endpoint.connect().await.unwrap());
        let mut request = tonic::Request::new(pb::WatchEventsRequest::default());
        request.metadata_mut().insert("authorization", token.headers["authorization"].parse().unwrap());
        let mut over_grpc = grpc.watch_events(request).await.unwrap().into_inner();

        // An auditor hears of administrators, an operator does not.
        owner.post("/api/v1/users", &json!({"username": "first"})).await.expect(201);
        assert_eq!(stream.next().await["topic"], "user.created");
        owner.patch(&path, &role("auditor")).await.expect(200);
        assert_eq!(stream.next().await["topic"], "admin.updated");
        owner.patch(&path, &role("reseller")).await.expect(200);
        owner.post("/api/v1/users", &json!({"username": "after"})).await.expect(201);
        stream.until_end().await;
        assert!(!stream.read.contains("after"), "{}", stream.read);
        let ends = async {
            while let Some(event) = over_grpc.message().await.unwrap() {
                assert!(!event.payload.contains("after"), "{event:?}");
            }
        };
        tokio::time::timeout(Duration::from_secs(30), ends).await.unwrap();
        fleet.stop().await;
    }

    async fn webhooks_are_told_what_operators_may_read(fleet) {
        let owner = fleet.owner().await;
        let receiver = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", receiver.local_addr().unwrap());
        let scopes = json!(["webhooks:write", "users:read"]);
        let made = owner.post("/api/v1/api-tokens", &json!({"name": "hooks", "scopes": scopes})).await.expect(201);
        let token = fleet.client().with("authorization", &format!("Bearer {}", made["token"].as_str().unwrap()));
        // A token has no more told to an address than it reads.
        for topics in [json!([]), json!(["*"]), json!(["user.*", "plan.created"])] {
            let refused = token.post("/api/v1/webhooks", &json!({"url": url, "topics": topics})).await.expect(403);
            let issue = &refused["errors"][0];
            let said = issue["message"].as_str().unwrap_or_default();
            assert!(issue["path"] == "topics" && said.ends_with("it may have assignment.*, user.*"), "{refused}");
        }
        let of_users = json!({"url": url, "topics": ["user.*"]});
        let own = token.post("/api/v1/webhooks", &of_users).await.expect(201);
        let path = format!("/api/v1/webhooks/{}", own["id"].as_str().unwrap());
        assert_eq!(token.patch(&path, &json!({"topics": ["*"]})).await.status, 403);
        token.patch(&path, &json!({"enabled": false})).await.expect(200);

        let hook = owner.post("/api/v1/webhooks", &json!({"url": url})).await.expect(201);
        let path = format!("/api/v1/webhooks/{}", hook["id"].as_str().unwrap());
        assert_eq!(token.patch(&path, &json!({"url": url})).await.status, 403);
        let admin = json!({"username": "bob", "password": "a given password", "role": "auditor"});
        owner.post("/api/v1/admins", &admin).await.expect(201);
        owner.post("/api/v1/users", &json!({"username": "ann"})).await.expect(201);
        let user = loop {
            let (_, body) = receive(&receiver, "204 No Content").await;
            let event: Value = serde_json::from_str(&body).unwrap();
            assert_ne!(event["topic"], "admin.created");
            if event["topic"] == "user.created" {
                break event["seq"].as_i64().unwrap();
            }
        };
        // Nothing is planned for what was just before: the administrator.
        let page = owner.get(&format!("{path}/deliveries")).await.expect(200);
        let planned: Vec<_> = page["items"].as_array().unwrap().iter().map(|item| &item["event"]).collect();
        assert!(planned.contains(&&json!(user)) && !planned.contains(&&json!(user - 1)), "{page}");
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

    /// Reads up to the end that the master makes. Signs of life are none of it.
    async fn until_end(&mut self) {
        let end = async {
            while !self.read.contains("\r\n0\r\n\r\n") {
                self.fill().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), end)
            .await
            .unwrap();
    }

    async fn next(&mut self) -> Value {
        let begun = tokio::time::Instant::now();
        loop {
            if let Some(start) = self.read.find("data: ")
                && let Some(length) = self.read[start..].find('\n')
            {
                let data = self.read[start + 6..start + length].to_owned();
                self.read.drain(..start + length);
                return serde_json::from_str(&data).unwrap();
            }
            // Signs of life are no event.
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "no event: {}",
                self.read
            );
            self.fill().await;
        }
    }
}
