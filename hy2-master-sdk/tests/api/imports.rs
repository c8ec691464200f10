//! What users from elsewhere bring along.

use std::time::Duration;

use hy2_master_sdk::store::events;
use serde_json::{Value, json};

use crate::harness::{Client, on_both};

const IMPORT: &str = "/api/v1/users:import";

async fn users(owner: &Client) -> Vec<Value> {
    let page = owner.get("/api/v1/users?size=500").await.expect(200);
    page["items"].as_array().unwrap().clone()
}

on_both! {
    async fn what_was_used_elsewhere_counts_until_the_quota_starts_anew(fleet) {
        let owner = fleet.owner().await;
        let plan = json!({"name": "monthly", "quota_bytes": 900, "period": "month"});
        let plan = owner.post("/api/v1/plans", &plan).await.expect(201)["id"].clone();
        let marzban = json!({"users": [
            {"username": "ann", "data_limit": 5_000, "used_traffic": 4_000, "data_limit_reset_strategy": "month"},
            {"username": "bob", "data_limit": 100, "used_traffic": 250, "status": "limited"},
            {"username": "cyd", "used_traffic": 800},
        ]});
        let import = json!({"format": "marzban", "data": marzban, "plan_id": plan});
        let report = owner.post(IMPORT, &import).await.expect(200);
        assert_eq!((&report["created"], &report["ignored"]), (&json!(3), &json!([])));
        let shown = |users: &[Value]| -> Vec<_> {
            users.iter().map(|user| (user["quota_bytes"].as_i64(), user["used_bytes"].as_i64())).collect()
        };
        let full = [(Some(5_000), Some(4_000)), (Some(100), Some(250)), (None, Some(800))];
        assert_eq!(shown(&users(&owner).await), full);
        let status = async |owner: &Client, at: usize, status: &str| {
            let asked = async || (users(owner).await[at]["status"] == status).then_some(());
            fleet.until(status, asked).await;
        };
        status(&owner, 1, "limited").await;
        // What leaves here comes back as it was.
        let data = owner.get("/api/v1/users:export").await.expect(200);
        let ids: Vec<_> = users(&owner).await.iter().map(|user| user["id"].clone()).collect();
        let delete = json!({"ids": ids, "action": "delete"});
        owner.post("/api/v1/users:batch", &delete).await.expect(200);
        let back = json!({"format": "json", "data": data});
        assert_eq!(owner.post(IMPORT, &back).await.expect(200)["created"], 3);
        assert_eq!(shown(&users(&owner).await), full);
        status(&owner, 1, "limited").await;
        // The next month gives all of it.
        fleet.clock.advance(Duration::from_secs(20 * 86_400));
        let owner = fleet.owner().await;
        let anew = [(Some(5_000), Some(0)), (Some(100), Some(0)), (None, Some(0))];
        fleet
            .until("a new month", async || (shown(&users(&owner).await) == anew).then_some(()))
            .await;
        status(&owner, 1, "active").await;
        let much = json!({"format": "json", "data": [{"username": "dee", "used_bytes": (1_i64 << 50) + 1}]});
        let report = owner.post(IMPORT, &much).await.expect(200);
        assert_eq!(report["failed"][0]["path"], "users[0].used_bytes", "{report}");
        fleet.stop().await;
    }

    async fn names_that_become_the_same_are_different_people(fleet) {
        let owner = fleet.owner().await;
        let names = |list: &[&str]| -> Value {
            list.iter().map(|name| json!({"username": name})).collect()
        };
        let import = |data: Value| json!({"format": "json", "data": data});
        let people = import(names(&["علی", "رضا", "علی", "ann/1", "---", " ann "]));
        let report = owner.post(IMPORT, &people).await.expect(200);
        assert_eq!(report["created"], 5, "{report}");
        let renamed = json!([" ann  -> ann", "علی -> ----2", "رضا -> ----3", "ann/1 -> ann-1"]);
        assert_eq!((&report["renamed"], &report["skipped"]), (&renamed, &json!(["علی -> ---"])));
        let made = async || -> Vec<_> {
            let of = |user: &Value, field: &str| user[field].as_str().unwrap().to_owned();
            users(&owner).await.iter().map(|user| (of(user, "username"), of(user, "note"))).collect()
        };
        let want = [("---", ""), ("ann", ""), ("----2", "علی"), ("----3", "رضا"), ("ann-1", "ann/1")];
        assert_eq!(made().await, want.map(|(name, note)| (name.to_owned(), note.to_owned())));
        // Again they are there; others are not they.
        assert_eq!(owner.post(IMPORT, &people).await.expect(200)["created"], 0);
        let report = owner.post(IMPORT, &import(names(&["ann?1", "ann/1"]))).await.expect(200);
        assert_eq!((&report["created"], &report["renamed"]), (&json!(1), &json!(["ann?1 -> ann-1-2"])));
        let long = ["é".repeat(90), "è".repeat(90)];
        let report = owner.post(IMPORT, &import(names(&[&long[0], &long[1]]))).await.expect(200);
        assert_eq!(report["created"], 2, "{report}");
        let last = made().await.pop().unwrap();
        assert_eq!(last, (format!("{}-2", "-".repeat(62)), long[1].clone()));
        let noted = json!([{"username": "a b", "note": "mine"}]);
        owner.post(IMPORT, &import(noted)).await.expect(200);
        assert_eq!(made().await.pop().unwrap(), ("a-b".to_owned(), "mine".to_owned()));
        fleet.stop().await;
    }

    async fn who_comes_disabled_is_told_as_such(fleet) {
        let owner = fleet.owner().await;
        let rows = json!([{"username": "ann", "status": "disabled"}, {"username": "bob", "status": "expired"}]);
        owner.post(IMPORT, &json!({"format": "json", "data": rows})).await.expect(200);
        let shown = users(&owner).await;
        let of = |user: &Value| (user["status"].clone(), user["status_reason"].clone(), user["rev"].clone());
        let out = |why: &str| (json!("disabled"), json!(format!("{why} where the user came from")), json!(1));
        assert_eq!(shown.iter().map(of).collect::<Vec<_>>(), [out("disabled"), out("expired")]);
        let told = fleet
            .until("both are told", async || {
                let told = events::after(fleet.master.store(), 0, 1_000).await.unwrap();
                let made: Vec<_> = told.into_iter().filter(|event| event.topic == "user.created").collect();
                (made.len() == 2).then_some(made)
            })
            .await;
        for event in told {
            let after = event.payload.0;
            assert!(after.to_string().contains("where the user came from"), "{after}");
            assert!(!after.to_string().contains("\"active\""), "{after}");
        }
        fleet.stop().await;
    }
}
