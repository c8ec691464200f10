//! Resellers: their own users, and no more of them than they may have.

use serde_json::{Value, json};

use crate::contract::operations;
use crate::harness::{Client, on_both};

/// What is asked for about a user.
fn body(id: &str) -> Option<Value> {
    match id {
        "update_user" | "reset_user_traffic" | "set_user_rate" => Some(json!({})),
        _ => None,
    }
}

on_both! {
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

    async fn whom_an_operator_disabled_no_reseller_lets_in_again(fleet) {
        let owner = fleet.owner().await;
        let ann = fleet.as_role("ann", "reseller").await;
        let made = ann.post("/api/v1/users", &json!({"username": "u"})).await.expect(201);
        let (id, path) = (&made["id"], format!("/api/v1/users/{}", made["id"]));
        let (on, off) = (json!({"status": "active"}), json!({"status": "disabled"}));
        let enable = json!({"ids": [id], "action": "enable"});
        // One's own doing can be taken back.
        ann.patch(&path, &off).await.expect(200);
        assert_eq!(ann.patch(&path, &on).await.expect(200)["status"], "active");
        let disabled = owner.patch(&path, &off).await.expect(200);
        assert_eq!(disabled["status_reason"], "an operator disabled this user");
        assert_eq!(ann.patch(&path, &on).await.problem(409), "disabled_by_operator");
        assert_eq!(ann.post("/api/v1/users:batch", &enable).await.problem(409), "disabled_by_operator");
        // Nor by doing the same first.
        ann.patch(&path, &off).await.expect(200);
        assert_eq!(ann.patch(&path, &on).await.problem(409), "disabled_by_operator");
        ann.patch(&path, &json!({"note": "ask"})).await.expect(200);
        owner.post("/api/v1/users:batch", &enable).await.expect(200);
        assert_eq!(ann.get(&path).await.expect(200)["status"], "active");
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
