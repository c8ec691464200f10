//! What people try who should not be there.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hy2_master_sdk::backup::envelope::BackupKey;
use hy2_master_sdk::backup::{BackupError, dump, restore};
use hy2_master_sdk::store::Store;
use hy2_proto::control::rpc;
use hy2_proto::control::rpc::admin_service_client::AdminServiceClient;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::harness::{Fleet, on_both};

on_both! {
    async fn five_wrong_logins_lock_one_address_out_and_nobody_else(fleet) {
        let attacker = fleet.client().with("x-forwarded-for", "198.51.100.1");
        let guess = json!({"username": "admin", "password": "a wrong password"});
        for _ in 0..5 {
            assert_eq!(attacker.post("/api/v1/auth/login", &guess).await.problem(401), "wrong_credentials");
        }
        let limited = attacker.post("/api/v1/auth/login", &guess).await;
        assert!(limited.header("retry-after").parse::<u64>().unwrap() > 0);
        assert_eq!(limited.problem(429), "rate_limited");
        // Not even the right password, from there.
        let right = json!({"username": "admin", "password": fleet.owner_password()});
        assert_eq!(attacker.post("/api/v1/auth/login", &right).await.problem(429), "rate_limited");
        // The name in other letters is the same account.
        let upper = json!({"username": "ADMIN", "password": "a wrong password"});
        assert_eq!(attacker.post("/api/v1/auth/login", &upper).await.problem(429), "rate_limited");
        fleet.owner().await.get("/api/v1/auth/me").await.expect(200);
        fleet.stop().await;
    }

    async fn right_logins_use_nothing_up_and_make_up_for_no_wrong_ones(fleet) {
        let client = fleet.client().with("x-forwarded-for", "198.51.100.7");
        let right = json!({"username": "admin", "password": fleet.owner_password()});
        let wrong = json!({"username": "admin", "password": "a wrong password"});
        let log_in = async |login: &Value| client.post("/api/v1/auth/login", login).await.status;
        for _ in 0..12 {
            assert_eq!(log_in(&right).await, 200);
        }
        for _ in 0..4 {
            assert_eq!(log_in(&wrong).await, 401);
        }
        assert_eq!(log_in(&right).await, 200);
        assert_eq!(log_in(&wrong).await, 401);
        assert_eq!(log_in(&wrong).await, 429);
        assert_eq!(log_in(&right).await, 429);
        fleet.stop().await;
    }

    async fn an_account_and_an_address_are_guessed_at_so_often_and_no_more(fleet) {
        // One account from everywhere: a hundred in an hour.
        let guess = json!({"username": "admin", "password": "a wrong password"});
        let mut judged = 0;
        for at in 0..120 {
            let from = format!("2001:db8:aaaa:{at:x}::1");
            let client = fleet.client().with("x-forwarded-for", &from);
            let answer = client.post("/api/v1/auth/login", &guess).await;
            judged += u32::from(answer.status == 401);
            assert!([401, 429].contains(&answer.status), "{}", answer.text());
        }
        // The bucket fills while the test runs: by one in 36 s.
        assert!((95..=110).contains(&judged), "{judged}");
        // Every account from one address: thirty in a quarter of an hour.
        let client = fleet.client().with("x-forwarded-for", "198.51.100.31");
        let mut judged = 0;
        for at in 0..60 {
            let guess = json!({"username": format!("name-{at}"), "password": "a wrong password"});
            let answer = client.post("/api/v1/auth/login", &guess).await;
            judged += u32::from(answer.status == 401);
        }
        assert!((28..=40).contains(&judged), "{judged}");
        fleet.stop().await;
    }

    async fn codes_of_a_second_factor_are_guessed_at_five_times(fleet) {
        let ann = fleet.as_role("ann", "operator").await;
        ann.post("/api/v1/auth/totp", &Value::Null).await.expect(200);
        let mut answers = Vec::new();
        for code in 0..8 {
            let code = json!({"code": format!("{code:06}")});
            answers.push(ann.post("/api/v1/auth/totp/confirm", &code).await.status);
        }
        assert_eq!(answers[..5], [401; 5]);
        assert_eq!(answers[5..], [429; 3]);
        fleet.stop().await;
    }

    async fn forged_access_tokens_are_refused_over_rest_and_grpc(fleet) {
        let owner = fleet.owner().await;
        let real = owner.headers["authorization"].strip_prefix("Bearer ").unwrap().to_owned();
        let parts: Vec<&str> = real.split('.').collect();
        let decode = |part: &str| -> Value {
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
        };
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let (header, claims) = (decode(parts[0]), decode(parts[1]));
        assert_eq!(header["alg"], "EdDSA");
        let with = |of: &Value, key: &str, value: Value| {
            let mut changed = of.clone();
            changed[key] = value;
            changed
        };
        let key = &fleet.master.store().signing_keys("jwt").await.unwrap()[0].public_key;
        let mac = |input: &str| {
            let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key);
            URL_SAFE_NO_PAD.encode(aws_lc_rs::hmac::sign(&key, input.as_bytes()))
        };
        let mut forged = Vec::new();
        for alg in ["none", "None", "", "HS256", "RS256", "ES256", "ed25519"] {
            let head = encode(&with(&header, "alg", json!(alg)));
            let input = format!("{head}.{}", parts[1]);
            forged.push(format!("{input}."));
            forged.push(format!("{input}.{}", parts[2]));
            // The public key as the secret of a symmetric algorithm.
            forged.push(format!("{input}.{}", mac(&input)));
        }
        for kid in [
            json!(null), json!(""), json!(0), json!(["x"]), json!("../../../etc/passwd"), json!("' or 1=1 --"),
            json!("00000000-0000-4000-8000-000000000000"),
        ] {
            forged.push(format!("{}.{}.{}", encode(&with(&header, "kid", kid)), parts[1], parts[2]));
        }
        for (claim, value) in [
            ("exp", json!(i64::MAX)), ("exp", json!(null)), ("exp", json!("later")), ("sub", json!("2")),
            ("iat", json!(0)), ("nbf", json!(0)), ("iss", json!("else")), ("aud", json!("else")), ("role", json!("owner")),
        ] {
            forged.push(format!("{}.{}.{}", parts[0], encode(&with(&claims, claim, value)), parts[2]));
        }
        for extra in ["jwk", "jku", "x5u", "crit"] {
            let head = encode(&with(&header, extra, json!("https://evil.example/keys")));
            forged.push(format!("{head}.{}.{}", parts[1], parts[2]));
        }
        forged.extend([
            format!("{}.{}", parts[0], parts[1]),
            format!("{real}.{}", parts[2]),
            format!("{}.{}.", parts[0], parts[1]),
            format!("{}..{}", parts[0], parts[2]),
        ]);
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", fleet.api)).unwrap();
        let grpc = AdminServiceClient::new(endpoint.connect().await.unwrap());
        for (at, token) in forged.iter().enumerate() {
            let from = format!("2001:db8:bbbb:{at:x}::1");
            let client = fleet.client().with("authorization", &format!("Bearer {token}")).with("x-forwarded-for", &from);
            assert_eq!(client.get("/api/v1/auth/me").await.problem(401), "unauthenticated", "{token}");
            if at % 3 == 0 {
                let mut request = tonic::Request::new(rpc::ListUsersRequest::default());
                request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
                request.metadata_mut().insert("x-forwarded-for", from.parse().unwrap());
                let refused = grpc.clone().list_users(request).await.unwrap_err();
                assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{token}");
            }
        }
        // The one that is not forged is good all the while, and until its end.
        owner.get("/api/v1/auth/me").await.expect(200);
        fleet.clock.advance(std::time::Duration::from_secs(606));
        owner.get("/api/v1/auth/me").await.problem(401);
        fleet.stop().await;
    }

    async fn what_is_too_large_is_refused_and_the_next_request_is_served(fleet) {
        let owner = fleet.owner().await;
        let large = json!({"username": "ann", "note": "x".repeat(2 << 20)});
        // However fast it is refused: who still sends gets to read why.
        for _ in 0..20 {
            assert_eq!(owner.post("/api/v1/users", &large).await.problem(413), "too_large");
        }
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        let body = format!("{{\"username\": \"ann\", \"tags\": {deep}}}");
        let answer = owner.send_raw("POST", "/api/v1/users", "application/json", body).await;
        assert!([400, 422].contains(&answer.status), "{}", answer.status);
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", fleet.api)).unwrap();
        let mut grpc = AdminServiceClient::new(endpoint.connect().await.unwrap());
        let new = rpc::CreateUserRequest { username: "bob".into(), note: "x".repeat(8 << 20), ..Default::default() };
        let mut request = tonic::Request::new(new);
        request.metadata_mut().insert("authorization", owner.headers["authorization"].parse().unwrap());
        assert!(grpc.create_user(request).await.is_err());
        let users = owner.get("/api/v1/users").await.expect(200);
        assert_eq!(users["items"], json!([]));
        fleet.stop().await;
    }

    async fn an_unknown_name_costs_the_same_work_and_gets_the_same_answer(fleet) {
        let passwords = fleet.front.service().passwords().clone();
        let mut answers = Vec::new();
        for (at, name) in ["admin", "nobody", "", &"x".repeat(500)].into_iter().enumerate() {
            let client = fleet.client().with("x-forwarded-for", &format!("198.51.100.{at}"));
            let (checks, entries) = (passwords.checks(), audit_entries(&fleet).await);
            let login = json!({"username": name, "password": "a wrong password"});
            let answer = client.post("/api/v1/auth/login", &login).await;
            answers.push((answer.status, answer.text()));
            assert_eq!(passwords.checks() - checks, 1, "{name}");
            assert_eq!(audit_entries(&fleet).await - entries, 1, "{name}");
        }
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
        assert_eq!(answers[0].0, 401);
        fleet.stop().await;
    }

    async fn sql_in_any_text_is_text(fleet) {
        let owner = fleet.owner().await;
        let texts = ["'; drop table users; --", "\" or \"\"=\"", "$1", "\\'; select 1", "%00", "\u{0}"];
        for text in texts {
            let login = json!({"username": text, "password": text});
            let client = fleet.client().with("x-forwarded-for", "198.51.100.99");
            assert!(client.post("/api/v1/auth/login", &login).await.status < 500, "{text:?}");
            let user = json!({"username": "ann", "note": text, "tags": [text]});
            let answer = owner.post("/api/v1/users", &user).await;
            if answer.status == 201 {
                let user = answer.expect(201);
                assert_eq!((&user["note"], &user["tags"][0]), (&json!(text), &json!(text)));
                owner.delete(&format!("/api/v1/users/{}", user["id"])).await.expect(204);
            } else {
                // PostgreSQL has no text with NUL in it.
                assert!(text.contains('\u{0}') && answer.status < 500, "{text:?} {}", answer.text());
            }
            let encoded: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
            for list in ["users?search=", "audit?actor=", "users?after=", "settings/"] {
                let answer = owner.get(&format!("/api/v1/{list}{encoded}")).await;
                assert!(answer.status < 500, "{list}{text:?}: {}", answer.text());
            }
        }
        fleet.stop().await;
    }

    async fn fields_that_are_not_the_callers_to_set_are_refused(fleet) {
        let owner = fleet.owner().await;
        let user = owner.post("/api/v1/users", &json!({"username": "ann"})).await.expect(201);
        let path = format!("/api/v1/users/{}", user["id"]);
        let secret = ["id", "uid", "rev", "used_bytes", "admin_id", "seed_enc", "role", "created_at"];
        for field in secret {
            let mut new = json!({"username": "bob"});
            new[field] = user.get(field).cloned().unwrap_or_else(|| json!(1));
            owner.post("/api/v1/users", &new).await.problem(422);
            let mut change = json!({});
            change[field] = json!(1);
            owner.patch(&path, &change).await.problem(422);
        }
        let ann = fleet.as_role("ann", "operator").await;
        let id = ann.get("/api/v1/auth/me").await.expect(200)["id"].clone();
        let promote = json!({"role": "owner"});
        ann.patch(&format!("/api/v1/admins/{id}"), &promote).await.problem(403);
        fleet.stop().await;
    }

    async fn planted_secrets_are_nowhere_in_clear_and_a_backup_comes_back_whole(fleet) {
        let owner = fleet.owner().await;
        let chosen = "canary-user-password-1";
        let obfs = json!({"salamander": {"password": "canary-obfs-password-2"}});
        let body = json!({"body": {"obfs": obfs}});
        owner.put("/api/v1/configs/fleet/0", &body).await.expect(200);
        let node = fleet.node("ny").await;
        let user = json!({"username": "ann", "password": chosen, "node_ids": [node.0]});
        let keyed = owner.clone().with("idempotency-key", "canary");
        let user = keyed.post("/api/v1/users", &user).await.expect(201)["id"].clone();
        let url = owner.get(&format!("/api/v1/users/{user}/subscription")).await.expect(200);
        let token = url["url"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        let api = json!({"name": "n", "scopes": ["users:read"]});
        let keyed = owner.clone().with("idempotency-key", "canary-token");
        let api = keyed.post("/api/v1/api-tokens", &api).await.expect(201);
        let hook = json!({"url": "http://127.0.0.1:9/"});
        let hook = owner.post("/api/v1/webhooks", &hook).await.expect(201);
        let enrol = owner.post("/api/v1/enrolment-tokens", &json!({})).await.expect(201);
        fleet.as_role("bob", "operator").await;
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let secrets = [
            chosen.to_owned(),
            "canary-obfs-password-2".to_owned(),
            token,
            text(&api["token"]),
            text(&hook["secret"]),
            text(&enrol["token"]),
            fleet.owner_password().to_owned(),
            crate::harness::OWN_PASSWORD.to_owned(),
            owner.refresh.clone(),
        ];
        let plain = plain_dump(fleet.master.store()).await;
        for secret in &secrets {
            assert!(!plain.contains(secret.as_str()), "in the store: {secret}");
        }
        // SQLite: the database and its write-ahead log as they lie on the disk.
        for entry in std::fs::read_dir(fleet.directory.path()).unwrap() {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            for secret in &secrets {
                let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
                assert!(!found, "{secret} in {}", path.display());
            }
        }
        let request = json!({"passphrase": "a passphrase for backups"});
        let backup = owner.post("/api/v1/backups", &request).await;
        assert_eq!((backup.status, backup.header("content-type")), (200, "application/octet-stream"));
        for secret in &secrets {
            let found = backup.body.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{secret} in the backup");
        }
        let before = plain_dump(fleet.master.store()).await;
        let key = BackupKey::Passphrase("a passphrase for backups".into());
        let now = fleet.master.now();

        // Onto the other kind of database too.
        let directory = tempfile::tempdir().unwrap();
        let sqlite = crate::harness::empty_sqlite(directory.path()).await;
        let postgres = crate::harness::empty_postgres().await;
        let mut copies = Vec::new();
        for (name, store) in [("SQLite", &sqlite), ("PostgreSQL", &postgres)] {
            let mut flipped = backup.body.to_vec();
            let middle = flipped.len() / 2;
            flipped[middle] ^= 4;
            let refused = restore::read(store, &key, flipped.as_slice(), now).await;
            assert!(matches!(refused, Err(BackupError::Tampered)), "{name}: {refused:?}");
            let short = &backup.body[..backup.body.len() - 1];
            assert!(restore::read(store, &key, short, now).await.is_err());
            let wrong = BackupKey::Passphrase("another passphrase".into());
            assert!(restore::read(store, &wrong, &backup.body[..], now).await.is_err());
            let restored = restore::read(store, &key, &backup.body[..], now).await.unwrap();
            assert_eq!(restored.epoch, now.0 / 1_000, "{name}");
            let after = plain_dump(store).await;
            compare(&before, &after, name);
            copies.push(after);
            let again = restore::read(store, &key, &backup.body[..], now).await;
            assert!(matches!(again, Err(BackupError::NotEmpty)), "{name}: {again:?}");
        }
        // Nobody writes to the copies: they are equal to the last row.
        for (one, other) in copies[0].lines().zip(copies[1].lines()) {
            assert_eq!(one, other);
        }
        assert_eq!(copies[0].len(), copies[1].len());
        fleet.stop().await;
    }
}

/// What a running master writes by itself.
const VOLATILE: &[&str] = &[
    "cluster",
    "events",
    "audit_log",
    "audit_checkpoints",
    "settings",
    "vps_nodes",
    "webhooks",
    "webhook_deliveries",
    "node_assignments",
    "node_tls",
];

/// Compares dumps line by line, apart from the epoch, which a restore bumps, and what the running
/// master wrote between backup and dump.
fn compare(before: &str, after: &str, name: &str) {
    let lines = |text: &str| -> Vec<String> {
        let mut table = String::new();
        let mut lines = Vec::new();
        for line in text.lines() {
            let value: Value = serde_json::from_str(line).unwrap();
            if let Some(next) = value.get("table") {
                table = next.as_str().unwrap().to_owned();
            }
            if !VOLATILE.contains(&table.as_str()) {
                lines.push(format!("{table} {line}"));
            }
        }
        lines
    };
    let (before, after) = (lines(before), lines(after));
    assert_eq!(before.len(), after.len(), "{name}");
    for (one, other) in before.iter().zip(&after) {
        assert_eq!(one, other, "{name}");
    }
    assert!(
        before.iter().any(|line| line.starts_with("users [")),
        "{name}"
    );
}

async fn plain_dump(store: &Store) -> String {
    let (sender, mut lines) = mpsc::channel(64);
    let store = store.clone();
    let dumping = tokio::spawn(async move { dump::dump(&store, sender).await });
    let mut text = String::new();
    while let Some(line) = lines.recv().await {
        text.push_str(&line);
    }
    dumping.await.unwrap().unwrap();
    text
}

async fn audit_entries(fleet: &Fleet) -> i64 {
    let sql = "select count(*) from audit_log";
    match fleet.master.store().db() {
        hy2_master_sdk::store::Db::Pg(pool) => {
            sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
        }
        hy2_master_sdk::store::Db::Sqlite { read, .. } => {
            sqlx::query_scalar(sql).fetch_one(read).await.unwrap()
        }
    }
}

#[test]
fn statements_are_never_made_of_texts() {
    // Where names of the schema itself become part of a statement, and nothing else does.
    // The last is put together from constants.
    let allowed = ["backup/dump.rs", "backup/restore.rs", "store/user_list.rs"];
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![root.clone()];
    let mut seen = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
            continue;
        }
        let name = path
            .strip_prefix(&root)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        seen += 1;
        if text.contains("AssertSqlSafe") {
            assert!(
                allowed.contains(&name.as_str()),
                "{name} makes statements of texts"
            );
        }
    }
    assert!(seen > 50, "{seen}");
}
