//! Who may do what, over HTTP: every role, every documented route, one's own and others' objects.

use std::collections::HashMap;

use hy2_master_sdk::api::openapi::PUBLIC_OPERATIONS;
use hy2_master_sdk::auth::access::{Grant, Operation, Role};
use serde_json::{Value, json};

use crate::contract::operations;
use crate::harness::{Client, on_both};

/// What is asked for, so that nothing but the right decides between 403 and another answer. Bodies are
/// valid in shape; objects that do not exist are answered with 404 after the right was found.
fn body(id: &str) -> Option<Value> {
    Some(match id {
        "create_user" => json!({"username": "not ok!"}),
        "update_user" | "update_plan" | "update_node" | "update_webhook" => json!({}),
        "update_admin" => json!({}),
        "batch_users" => json!({"ids": [], "action": "disable"}),
        "import_users" => json!({"format": "csv", "data": "x\n"}),
        "reset_user_traffic" | "set_user_rate" | "revoke_node_certificates" => json!({}),
        "create_plan" => json!({"name": ""}),
        "assign_user" => json!({"user_id": 1_000_000, "node_id": 1_000_000}),
        "put_config" => json!({"body": 5}),
        "create_admin" => json!({"username": "NOT OK", "password": "x", "role": "auditor"}),
        "create_enrolment_token" => json!({"valid_s": 1}),
        "create_webhook" => json!({"url": "no address"}),
        "put_setting" => json!({"value": 1}),
        "create_backup" => json!({"passphrase": "x"}),
        "create_api_token" => json!({"name": "", "scopes": []}),
        "set_node_state" => json!({"state": "active"}),
        "change_password" => json!({"old": "x", "new": "y"}),
        "confirm_totp" | "disable_totp" => json!({"code": "000000"}),
        _ => return None,
    })
}

fn concrete(path: &str, id: &str) -> String {
    let path = match id {
        "diff_revisions" => format!("{path}?to=1000000"),
        _ => path.to_owned(),
    };
    let uuid = "00000000-0000-4000-8000-000000000000";
    let unknown =
        if path.contains("webhooks") || path.contains("tokens") || path.contains("sessions/") {
            uuid
        } else {
            "1000000"
        };
    path.replace("{id}", unknown)
        .replace("{user_id}", "1000000")
        .replace("{node_id}", "1000000")
        .replace("{scope}", "node")
        .replace("{scope_id}", "1000000")
        .replace("{key}", "no.such.setting")
}

on_both! {
    async fn every_role_gets_what_the_table_says_on_every_route(fleet) {
        let mut clients: HashMap<Role, Client> = HashMap::new();
        for role in Role::ALL {
            let client = match role {
                Role::Owner => fleet.owner().await,
                role => fleet.as_role(role.as_str(), role.as_str()).await,
            };
            clients.insert(role, client);
        }
        let mut asked = 0;
        for (method, path, id) in operations() {
            if PUBLIC_OPERATIONS.contains(&id.as_str()) || id == "logout" {
                continue;
            }
            let operation = Operation::from_name(&id).unwrap();
            let target = concrete(&path, &id);
            let body = body(&id);
            let nobody = fleet.client().with("x-forwarded-for", "192.0.2.77");
            let answer = nobody.send(&method, &target, body.as_ref()).await;
            assert_eq!(answer.status, 401, "nobody: {method} {target}");
            for role in Role::ALL {
                let answer = clients[&role].send(&method, &target, body.as_ref()).await;
                let text = answer.text();
                let refused = answer.status == 403;
                let denied = operation.grant(role) == Grant::Denied;
                let what = format!("{} {method} {target}: {} {text}", role.as_str(), answer.status);
                assert_eq!(refused, denied, "{what}");
                assert!(answer.status != 401 || id.contains("totp") || id == "change_password", "{what}");
                assert!(answer.status < 500, "{what}");
                asked += 1;
            }
        }
        assert!(asked > 300, "{asked}");
        fleet.stop().await;
    }

    async fn a_reseller_sees_and_touches_own_users_only(fleet) {
        let owner = fleet.owner().await;
        let ann = fleet.as_role("ann", "reseller").await;
        let bob = fleet.as_role("bob", "reseller").await;
        let make = |client: Client, name: &'static str| async move {
            let made = client.post("/api/v1/users", &json!({"username": name})).await.expect(201);
            made["id"].as_i64().unwrap()
        };
        let of_ann = make(ann.clone(), "user-of-ann").await;
        let of_bob = make(bob.clone(), "user-of-bob").await;
        let of_owner = make(owner.clone(), "user-of-owner").await;

        let listed = ann.get("/api/v1/users").await.expect(200);
        let names: Vec<_> = listed["items"].as_array().unwrap().iter().map(|u| &u["username"]).collect();
        assert_eq!(names, ["user-of-ann"]);
        let exported = ann.get("/api/v1/users:export").await.text();
        assert!(exported.contains("user-of-ann") && !exported.contains("user-of-bob"));

        let mut tried = 0;
        for (method, path, id) in operations() {
            if !path.contains("/users/{id}") {
                continue;
            }
            let body = body(&id);
            for foreign in [of_bob, of_owner] {
                let target = path.replace("{id}", &foreign.to_string());
                let answer = ann.send(&method, &target, body.as_ref()).await;
                assert_eq!(answer.status, 404, "{method} {target}: {}", answer.text());
                tried += 1;
            }
            if id != "delete_user" {
                let target = path.replace("{id}", &of_ann.to_string());
                let answer = ann.send(&method, &target, body.as_ref()).await;
                assert!(answer.status < 300, "{method} {target}: {} {}", answer.status, answer.text());
            }
        }
        assert!(tried >= 24, "{tried}");
        let batch = json!({"ids": [of_ann, of_bob], "action": "delete"});
        ann.post("/api/v1/users:batch", &batch).await.problem(422);
        ann.get(&format!("/api/v1/users/{of_ann}")).await.expect(200);
        let filtered = format!("/api/v1/traffic/summary?user_id={of_bob}");
        ann.get(&filtered).await.problem(404);
        fleet.stop().await;
    }

    async fn a_resellers_limits_hold_also_for_many_requests_at_once(fleet) {
        let owner = fleet.owner().await;
        let ann = fleet.as_role("ann", "reseller").await;
        let id = ann.get("/api/v1/auth/me").await.expect(200)["id"].clone();
        let limits = json!({"max_users": 3, "quota_bytes": 1000});
        owner.patch(&format!("/api/v1/admins/{id}"), &limits).await.expect(200);
        let without = json!({"username": "free"});
        ann.post("/api/v1/users", &without).await.problem(422);
        let requests = (0..12).map(|at| {
            let ann = ann.clone();
            async move {
                let user = json!({"username": format!("u{at}"), "quota_bytes": 300});
                ann.post("/api/v1/users", &user).await.status
            }
        });
        let answers = futures_util::future::join_all(requests).await;
        assert_eq!(answers.iter().filter(|status| **status == 201).count(), 3, "{answers:?}");
        let page = ann.get("/api/v1/users").await.expect(200);
        let user = &page["items"][0];
        let more = json!({"quota_bytes": 900});
        let path = format!("/api/v1/users/{}", user["id"]);
        assert_eq!(ann.patch(&path, &more).await.problem(409), "quota_limit");
        fleet.stop().await;
    }
}
