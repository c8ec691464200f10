//! Logging in, staying logged in, second factors, tokens.

use std::time::Duration;

use base64::Engine;
use hy2_master_sdk::auth::totp::SecondFactor;
use hy2_master_sdk::domain::{AdminId, Clock};
use hy2_master_sdk::store::{Db, Tx, admins};
use serde_json::{Value, json};

use crate::harness::{Client, Fleet, OWN_PASSWORD, START, on_both};

on_both! {
    async fn a_session_is_opened_used_and_closed(fleet) {
        let owner = fleet.owner().await;
        let me = owner.get("/api/v1/auth/me").await.expect(200);
        assert_eq!((me["username"].as_str(), me["role"].as_str()), (Some("admin"), Some("owner")));
        owner.post("/api/v1/auth/logout", &Value::Null).await.expect(204);
        assert_eq!(owner.get("/api/v1/auth/me").await.problem(401), "unauthenticated");
        let refresh = json!({"refresh_token": owner.refresh});
        fleet.client().post("/api/v1/auth/refresh", &refresh).await.problem(401);
        fleet.stop().await;
    }

    async fn an_access_token_ends_by_itself(fleet) {
        let owner = fleet.owner().await;
        fleet.clock.advance(Duration::from_secs(599));
        owner.get("/api/v1/auth/me").await.expect(200);
        fleet.clock.advance(Duration::from_secs(6));
        assert_eq!(owner.get("/api/v1/auth/me").await.problem(401), "unauthenticated");
        fleet.stop().await;
    }

    async fn the_key_of_tokens_changes_under_open_sessions(fleet) {
        let store = fleet.master.store();
        let keys = async || store.signing_keys("jwt").await.unwrap().len();
        let first = kid(&fleet.owner().await);
        assert_eq!(keys().await, 1);
        fleet.clock.advance(Duration::from_secs(82 * 86_400));
        fleet.until("the next key is made", async || (keys().await == 2).then_some(())).await;
        fleet.clock.advance(Duration::from_secs(540));
        let old = fleet.owner().await;
        assert_eq!(kid(&old), first, "not every master knows the next key");
        fleet.clock.advance(Duration::from_secs(61));
        let signer = fleet.front.service().tokens();
        let now = fleet.clock.now().0 / 1_000;
        let signs = async || {
            let token = signer.issue(AdminId(1), uuid::Uuid::nil(), 0, now).unwrap();
            (kid_of(&token) != first).then_some(())
        };
        fleet.until("the next key signs", signs).await;
        let new = fleet.owner().await;
        assert_ne!(kid(&new), first);
        for client in [&old, &new] {
            client.get("/api/v1/auth/me").await.expect(200);
        }
        fleet.clock.advance(Duration::from_secs(10 * 86_400));
        fleet.until("the old key is gone", async || (keys().await == 1).then_some(())).await;
        assert_eq!(kid(&fleet.owner().await), kid(&new));
        fleet.stop().await;
    }

    async fn after_a_theft_older_tokens_are_refused_and_sessions_go_on(fleet) {
        let owner = fleet.owner().await;
        owner.get("/api/v1/auth/me").await.expect(200);
        fleet.front.service().rotate_token_keys().await.unwrap();
        assert_eq!(owner.get("/api/v1/auth/me").await.problem(401), "unauthenticated");
        let refresh = json!({"refresh_token": owner.refresh});
        let renewed = fleet.client().post("/api/v1/auth/refresh", &refresh).await.expect(200);
        let renewed = bearer(&fleet, &renewed);
        renewed.get("/api/v1/auth/me").await.expect(200);
        assert_ne!(kid(&renewed), kid(&owner));
        let entry = fleet
            .until("it is in the audit log", async || {
                let page = renewed.get("/api/v1/audit?object_kind=signing_key").await.expect(200);
                page["items"].as_array().and_then(|items| items.first().cloned())
            })
            .await;
        assert_eq!(entry["actor_kind"], "host");
        fleet.stop().await;
    }

    async fn a_refresh_token_used_twice_ends_the_session(fleet) {
        let owner = fleet.owner().await;
        let first = json!({"refresh_token": owner.refresh});
        let renewed = owner.post("/api/v1/auth/refresh", &first).await.expect(200);
        let second = renewed["refresh_token"].as_str().unwrap().to_owned();
        let renewed = bearer(&fleet, &renewed);
        renewed.get("/api/v1/auth/me").await.expect(200);

        // The first again, as a thief would.
        fleet.client().post("/api/v1/auth/refresh", &first).await.problem(401);
        renewed.get("/api/v1/auth/me").await.problem(401);
        let second = json!({"refresh_token": second});
        fleet.client().post("/api/v1/auth/refresh", &second).await.problem(401);

        let other = fleet.owner().await;
        let entries = fleet
            .until("the reuse is in the audit log", || async {
                let page = other.get("/api/v1/audit?action=refresh_reused").await.expect(200);
                page["items"].as_array().filter(|items| !items.is_empty()).cloned()
            })
            .await;
        assert_eq!(entries[0]["actor"], "admin");
        fleet.stop().await;
    }

    async fn of_two_renewals_at_once_one_succeeds(fleet) {
        let owner = fleet.owner().await;
        let token = json!({"refresh_token": owner.refresh});
        let renewals = (0..8).map(|_| owner.post("/api/v1/auth/refresh", &token));
        let answers = futures_util::future::join_all(renewals).await;
        let good = answers.iter().filter(|answer| answer.status == 200).count();
        assert_eq!(good, 1);
        fleet.stop().await;
    }

    async fn a_given_password_has_to_be_changed_and_that_ends_other_sessions(fleet) {
        let owner = fleet.owner().await;
        let new = json!({"username": "ann", "password": "given by somebody", "role": "operator"});
        owner.post("/api/v1/admins", &new).await.expect(201);
        let ann = fleet.client().log_in("ann", "given by somebody").await;
        let other = fleet.client().log_in("ann", "given by somebody").await;
        assert_eq!(ann.get("/api/v1/users").await.problem(403), "password_change_required");
        let wrong = json!({"old": "not the old one", "new": OWN_PASSWORD});
        assert_eq!(ann.post("/api/v1/auth/password", &wrong).await.problem(401), "wrong_credentials");
        let weak = json!({"old": "given by somebody", "new": "short"});
        assert_eq!(ann.post("/api/v1/auth/password", &weak).await.problem(422), "invalid");
        let change = json!({"old": "given by somebody", "new": OWN_PASSWORD});
        ann.post("/api/v1/auth/password", &change).await.expect(204);
        other.get("/api/v1/auth/me").await.problem(401);
        let refresh = json!({"refresh_token": other.refresh});
        other.post("/api/v1/auth/refresh", &refresh).await.problem(401);
        let ann = fleet.client().log_in("ann", OWN_PASSWORD).await;
        ann.get("/api/v1/users").await.expect(200);
        fleet.stop().await;
    }

    async fn a_login_under_way_does_not_outlive_a_change_of_the_password(fleet) {
        let change = held_reset(&fleet, &fleet.owner().await).await;
        let login = json!({"username": "admin", "password": fleet.owner_password()});
        let client = fleet.client();
        let late = tokio::spawn(async move { client.post("/api/v1/auth/login", &login).await });
        // Wherever the login is by then, the password is another than the one it was judged by, or it has not begun.
        fleet
            .until("the password was checked", async || {
                (fleet.front.service().passwords().checks() > 1).then_some(())
            })
            .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        change.commit().await.unwrap();
        assert_eq!(late.await.unwrap().problem(401), "wrong_credentials");
        let entries = async || {
            let now = fleet.owner().await;
            let page = now.get("/api/v1/audit?action=login_failed").await.expect(200);
            page["items"].as_array().filter(|items| !items.is_empty()).cloned()
        };
        let entries = fleet.until("it is in the audit log", entries).await;
        assert_eq!(entries[0]["after"]["reason"], "account changed");
        fleet.stop().await;
    }

    async fn a_change_of_the_password_under_way_does_not_outlive_another(fleet) {
        let thief = fleet.owner().await;
        let old = fleet.owner_password().to_owned();
        let meanwhile = held_reset(&fleet, &thief).await;
        let change = json!({"old": old, "new": OWN_PASSWORD});
        let checks = fleet.front.service().passwords().checks();
        let late = tokio::spawn(async move { thief.post("/api/v1/auth/password", &change).await });
        fleet
            .until("the password was checked", async || {
                (fleet.front.service().passwords().checks() > checks).then_some(())
            })
            .await;
        meanwhile.commit().await.unwrap();
        assert_eq!(late.await.unwrap().problem(401), "unauthenticated");
        let login = json!({"username": "admin", "password": OWN_PASSWORD});
        fleet.client().post("/api/v1/auth/login", &login).await.problem(401);
        fleet.owner().await;
        fleet.stop().await;
    }

    async fn whose_session_ends_sets_no_password_and_no_second_factor_any_more(fleet) {
        let thief = fleet.owner().await;
        let id = thief.get("/api/v1/auth/me").await.expect(200)["id"].clone();
        let own = format!("/api/v1/admins/{id}");
        let begun = thief.post("/api/v1/auth/totp", &Value::Null).await.expect(200);
        let secret = totp_rs_secret(begun["secret"].as_str().unwrap());
        let factor = SecondFactor::new(&secret, "hy2", "admin").unwrap();
        let code = json!({"code": factor.code(fleet.master.now().0 / 1_000)});
        let meanwhile = held_reset(&fleet, &thief).await;
        let made = json!({"username": "eve", "password": "given by a thief", "role": "owner"});
        let given = json!({"password": "given by a thief"});
        let requests = [
            ("POST", "/api/v1/admins".to_owned(), made),
            ("PATCH", own, given),
            ("POST", "/api/v1/auth/totp".to_owned(), Value::Null),
            ("POST", "/api/v1/auth/totp/confirm".to_owned(), code),
        ];
        let late = requests.map(|(method, path, body)| {
            let thief = thief.clone();
            tokio::spawn(async move { thief.send(method, &path, Some(&body)).await })
        });
        // Wherever they are by then, the session is over when they write, or before they begin.
        tokio::time::sleep(Duration::from_millis(500)).await;
        meanwhile.commit().await.unwrap();
        for late in late {
            assert_eq!(late.await.unwrap().problem(401), "unauthenticated");
        }
        let owner = fleet.owner().await;
        let me = owner.get("/api/v1/auth/me").await.expect(200);
        assert_eq!(me["totp"], false);
        let admins = owner.get("/api/v1/admins").await.expect(200);
        assert_eq!(admins["items"].as_array().unwrap().len(), 1);
        fleet.stop().await;
    }

    async fn an_api_token_reads_where_nothing_can_be_written(fleet) {
        let owner = fleet.owner().await;
        let new = json!({"name": "ci", "scopes": ["users:read"]});
        let made = owner.post("/api/v1/api-tokens", &new).await.expect(201);
        let token = format!("Bearer {}", made["token"].as_str().unwrap());
        let program = fleet.client().with("authorization", &token);
        // As a database that is full answers.
        match fleet.master.store().db() {
            Db::Pg(pool) => {
                let sql = "create function full_up() returns trigger language plpgsql as \
                           $$ begin raise exception 'full' using errcode = 'disk_full'; end $$";
                sqlx::query(sql).execute(pool).await.unwrap();
                let sql = "create trigger full_up before update on api_tokens \
                           for each row execute function full_up()";
                sqlx::query(sql).execute(pool).await.unwrap();
            }
            Db::Sqlite { write, .. } => {
                let sql = "create trigger full_up before update on api_tokens \
                           begin select raise(abort, 'full'); end";
                sqlx::query(sql).execute(write).await.unwrap();
            }
        }
        program.get("/api/v1/users").await.expect(200);
        let used = async || {
            let tokens = owner.get("/api/v1/api-tokens").await.expect(200);
            tokens["items"][0]["last_used_at"].clone()
        };
        assert_eq!(used().await, Value::Null);
        match fleet.master.store().db() {
            Db::Pg(pool) => {
                let sql = "drop trigger full_up on api_tokens";
                sqlx::query(sql).execute(pool).await.unwrap();
            }
            Db::Sqlite { write, .. } => {
                sqlx::query("drop trigger full_up").execute(write).await.unwrap();
            }
        }
        program.get("/api/v1/users").await.expect(200);
        assert!(used().await.is_string());
        fleet.stop().await;
    }

    async fn tokens_that_are_over_are_not_counted_and_not_listed(fleet) {
        let owner = fleet.owner().await;
        let ends = (START.0 + 60_000) / 1_000;
        let ends = time::OffsetDateTime::from_unix_timestamp(ends).unwrap();
        let ends = ends.format(&time::format_description::well_known::Rfc3339).unwrap();
        let short = json!({"name": "ci", "scopes": ["users:read"], "expires_at": ends});
        for _ in 0..50 {
            owner.post("/api/v1/api-tokens", &short).await.expect(201);
        }
        assert_eq!(owner.post("/api/v1/api-tokens", &short).await.problem(409), "too_many_tokens");
        fleet.clock.advance(Duration::from_secs(61));
        let new = json!({"name": "next", "scopes": ["users:read"]});
        owner.post("/api/v1/api-tokens", &new).await.expect(201);
        let listed = owner.get("/api/v1/api-tokens").await.expect(200);
        assert_eq!(listed["items"].as_array().unwrap().len(), 1);
        fleet.stop().await;
    }

    async fn a_second_factor_is_asked_for_and_no_code_opens_two_sessions(fleet) {
        let owner = fleet.owner().await;
        let begun = owner.post("/api/v1/auth/totp", &Value::Null).await.expect(200);
        let secret = totp_rs_secret(begun["secret"].as_str().unwrap());
        let factor = SecondFactor::new(&secret, "hy2", "admin").unwrap();
        let code = |ahead: i64| factor.code(fleet.master.now().0 / 1_000 + ahead);
        let wrong = json!({"code": "000000"});
        owner.post("/api/v1/auth/totp/confirm", &wrong).await.problem(401);
        owner.post("/api/v1/auth/totp/confirm", &json!({"code": code(0)})).await.expect(204);
        // A secret in force is not replaced without a code.
        assert_eq!(owner.post("/api/v1/auth/totp", &Value::Null).await.problem(409), "totp_enabled");

        let login = |code: Option<String>| {
            let password = fleet.owner_password();
            json!({"username": "admin", "password": password, "code": code})
        };
        let client = fleet.client();
        let answer = client.post("/api/v1/auth/login", &login(None)).await;
        assert_eq!(answer.problem(401), "totp_required");
        // That is a login which waits for its code: it is noted, and no try is lost.
        for _ in 0..6 {
            let answer = client.post("/api/v1/auth/login", &login(None)).await;
            assert_eq!(answer.problem(401), "totp_required");
        }
        fleet
            .until("it is in the audit log", async || {
                let page = owner.get("/api/v1/audit?action=login_code_required").await.expect(200);
                let entries = page["items"].as_array().unwrap();
                assert!(entries.iter().all(|entry| entry["actor"] == "admin"));
                (entries.len() == 7).then_some(())
            })
            .await;
        // The code that confirmed is spent.
        let answer = client.post("/api/v1/auth/login", &login(Some(code(0)))).await;
        assert_eq!(answer.problem(401), "wrong_credentials");
        fleet.clock.advance(Duration::from_secs(30));
        let next = code(0);
        client.post("/api/v1/auth/login", &login(Some(next.clone()))).await.expect(200);
        let elsewhere = fleet.client().with("x-forwarded-for", "198.51.100.7");
        let answer = elsewhere.post("/api/v1/auth/login", &login(Some(next))).await;
        assert_eq!(answer.problem(401), "wrong_credentials");
        fleet.stop().await;
    }

    async fn an_api_token_has_its_scopes_and_addresses_only_and_can_be_ended(fleet) {
        let owner = fleet.owner().await;
        let new = json!({"name": "ci", "scopes": ["users:read"], "cidrs": ["198.51.100.0/24"]});
        let made = owner.post("/api/v1/api-tokens", &new).await.expect(201);
        let token = format!("Bearer {}", made["token"].as_str().unwrap());
        let program = fleet.client().with("authorization", &token);
        let inside = program.clone().with("x-forwarded-for", "198.51.100.9");
        inside.get("/api/v1/users").await.expect(200);
        program.get("/api/v1/users").await.problem(401);
        let user = json!({"username": "bob"});
        assert_eq!(inside.post("/api/v1/users", &user).await.problem(403), "forbidden");
        // A token makes no tokens.
        assert_eq!(inside.post("/api/v1/api-tokens", &new).await.problem(403), "forbidden");
        let unknown = json!({"name": "x", "scopes": ["session"]});
        owner.post("/api/v1/api-tokens", &unknown).await.problem(422);

        let listed = owner.get("/api/v1/api-tokens").await.expect(200);
        assert!(!listed.to_string().contains(made["token"].as_str().unwrap()));
        let path = format!("/api/v1/api-tokens/{}", made["id"].as_str().unwrap());
        owner.delete(&path).await.expect(204);
        inside.get("/api/v1/users").await.problem(401);
        fleet.stop().await;
    }

    async fn a_disabled_administrator_is_out_at_once_and_an_owner_remains(fleet) {
        let owner = fleet.owner().await;
        let ann = fleet.as_role("ann", "operator").await;
        let id = ann.get("/api/v1/auth/me").await.expect(200)["id"].clone();
        let disable = json!({"status": "disabled"});
        owner.patch(&format!("/api/v1/admins/{id}"), &disable).await.expect(200);
        ann.get("/api/v1/users").await.problem(401);
        let me = owner.get("/api/v1/auth/me").await.expect(200)["id"].clone();
        let own = format!("/api/v1/admins/{me}");
        assert_eq!(owner.patch(&own, &disable).await.problem(409), "last_owner");
        let demote = json!({"role": "auditor"});
        assert_eq!(owner.patch(&own, &demote).await.problem(409), "last_owner");
        assert_eq!(owner.delete(&own).await.problem(409), "last_owner");
        fleet.stop().await;
    }

    async fn cookies_need_the_csrf_token_and_the_same_origin(fleet) {
        let host = fleet.api.to_string();
        let origin = format!("http://{host}");
        let panel = fleet.client().with("origin", &origin);
        let login = json!({"username": "admin", "password": fleet.owner_password(), "cookies": true});
        // A foreign page cannot even log its own account in.
        let evil = fleet.client().with("origin", "https://evil.example");
        assert_eq!(evil.post("/api/v1/auth/login", &login).await.problem(403), "csrf");

        let answer = panel.post("/api/v1/auth/login", &login).await;
        let cookies: Vec<String> = answer
            .headers
            .get_all("set-cookie")
            .iter()
            .map(|value| value.to_str().unwrap().to_owned())
            .collect();
        assert_eq!(cookies.len(), 2);
        for cookie in &cookies {
            assert!(cookie.starts_with("__Host-hy2_"), "{cookie}");
            for part in ["Path=/", "Secure", "HttpOnly", "SameSite=Strict"] {
                assert!(cookie.contains(part), "{cookie}");
            }
        }
        let body = answer.expect(200);
        assert_eq!((&body["access_token"], &body["refresh_token"]), (&Value::Null, &Value::Null));
        let csrf = body["csrf_token"].as_str().unwrap();
        let jar: Vec<&str> = cookies.iter().map(|c| c.split(';').next().unwrap()).collect();
        let panel = panel.with("cookie", &jar.join("; "));
        panel.get("/api/v1/auth/me").await.expect(200);
        let user = json!({"username": "bob"});
        assert_eq!(panel.post("/api/v1/users", &user).await.problem(403), "csrf");
        let wrong = panel.clone().with("x-csrf-token", "x");
        assert_eq!(wrong.post("/api/v1/users", &user).await.problem(403), "csrf");
        let foreign = panel.clone().with("x-csrf-token", csrf).with("origin", "https://evil.example");
        assert_eq!(foreign.post("/api/v1/users", &user).await.problem(403), "csrf");
        let hidden = panel.clone().with("x-csrf-token", csrf).without("origin");
        assert_eq!(hidden.post("/api/v1/users", &user).await.problem(403), "csrf");
        let panel = panel.with("x-csrf-token", csrf);
        panel.post("/api/v1/users", &user).await.expect(201);
        panel.post("/api/v1/auth/refresh", &json!({})).await.expect(200);
        fleet.stop().await;
    }
}

/// Sets the password of somebody's account anew, as nobody else sees before it is committed.
async fn held_reset(fleet: &Fleet, client: &Client) -> Tx {
    let me = client.get("/api/v1/auth/me").await.expect(200);
    let id = AdminId(me["id"].as_i64().unwrap());
    let mut reset = fleet.master.store().begin().await.unwrap();
    // The old hash, so that what others read before is right, and all that counts is that it was written.
    let hash = admins::get_in(&mut reset, id).await.unwrap().password_hash;
    admins::set_password(&mut reset, id, &hash, false, START)
        .await
        .unwrap();
    reset
}

fn bearer(fleet: &Fleet, tokens: &Value) -> Client {
    let token = tokens["access_token"].as_str().unwrap();
    fleet
        .client()
        .with("authorization", &format!("Bearer {token}"))
}

/// Decodes base32 (RFC 4648).
pub(crate) fn totp_rs_secret(text: &str) -> Vec<u8> {
    let mut bits = 0_u32;
    let mut count = 0;
    let mut bytes = Vec::new();
    for letter in text.bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'2'..=b'7' => letter - b'2' + 26,
            other => panic!("not base32: {other}"),
        };
        bits = (bits << 5) | u32::from(value);
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

/// Returns the name of the key that signed a client's access token.
fn kid(client: &Client) -> String {
    kid_of(
        client.headers["authorization"]
            .strip_prefix("Bearer ")
            .unwrap(),
    )
}

fn kid_of(token: &str) -> String {
    let header = token.split('.').next().unwrap();
    let header = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(header)
        .unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    header["kid"].as_str().unwrap().to_owned()
}
