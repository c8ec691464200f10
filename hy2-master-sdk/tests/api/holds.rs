//! Users on hold, and what plans make of ends.

use hy2_master_sdk::store::traffic::{Batch, BatchRow};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{START, on_both};

on_both! {
    async fn who_is_let_in_again_before_a_hold_began_is_on_hold_again(fleet) {
        let owner = fleet.owner().await;
        let node = fleet.node("ny").await;
        let new = json!({"username": "ann", "hold_duration_s": 86_400, "node_ids": [node.0]});
        let ann = owner.post("/api/v1/users", &new).await.expect(201);
        let path = format!("/api/v1/users/{}", ann["id"]);
        let status = async |status: &str| {
            owner.patch(&path, &json!({"status": status})).await.expect(200)["status"].clone()
        };
        assert_eq!(status("active").await, "on_hold", "as it was");
        assert_eq!(status("disabled").await, "disabled");
        assert_eq!(status("active").await, "on_hold");
        let batch = async |action: &str| {
            let batch = json!({"ids": [ann["id"]], "action": action});
            owner.post("/api/v1/users:batch", &batch).await.expect(200);
            owner.get(&path).await.expect(200)["status"].clone()
        };
        assert_eq!(batch("enable").await, "on_hold");
        assert_eq!(batch("disable").await, "disabled");
        // A plan with an end sets none before the hold begins.
        let plan = json!({"name": "month", "duration_days": 30});
        let plan = owner.post("/api/v1/plans", &plan).await.expect(201)["id"].clone();
        let given = owner.patch(&path, &json!({"plan_id": plan})).await.expect(200);
        assert_eq!(given["expires_at"], Value::Null);
        assert_eq!(batch("enable").await, "on_hold");
        let clients = json!([{"email": "bob", "enable": false, "expiryTime": -86_400_000}]);
        let data = json!([{"settings": {"clients": clients}}]);
        let import = json!({"format": "3x-ui", "data": data});
        owner.post("/api/v1/users:import", &import).await.expect(200);
        let bob = owner.get("/api/v1/users?search=bob").await.expect(200)["items"][0].clone();
        assert_eq!(bob["status"], "disabled");
        let bob = format!("/api/v1/users/{}", bob["id"]);
        let bob = owner.patch(&bob, &json!({"status": "active"})).await.expect(200);
        assert_eq!(bob["status"], "on_hold");
        // The first traffic begins it, and afterwards it is over: nothing is on hold again.
        let row = BatchRow { user: ann["id"].as_i64().unwrap(), tx: 1, rx: 0, seen: START, leases: Vec::new() };
        let sent = Batch {
            node,
            spool: Uuid::new_v4(),
            first_seq: 1,
            last_seq: 1,
            at: START,
            multiplier: 1_000_000_000,
            rows: vec![row],
        };
        fleet.master.store().ingest(&sent, START).await.unwrap();
        let begun = fleet
            .until("the hold begins", async || {
                let ann = owner.get(&path).await.expect(200);
                (ann["status"] == "active").then_some(ann)
            })
            .await;
        assert_eq!(begun["expires_at"], "2027-01-16T08:00:00Z");
        assert_eq!(status("disabled").await, "disabled");
        assert_eq!(status("active").await, "active");
        fleet.stop().await;
    }

    async fn an_end_goes_with_the_plan_it_came_from(fleet) {
        let owner = fleet.owner().await;
        let plan = async |name: &str, days: Value| {
            let plan = json!({"name": name, "duration_days": days});
            owner.post("/api/v1/plans", &plan).await.expect(201)["id"].clone()
        };
        let (trial, free) = (plan("trial", json!(7)).await, plan("free", Value::Null).await);
        let other = plan("other", Value::Null).await;
        let ann = json!({"username": "ann", "plan_id": trial});
        let ann = owner.post("/api/v1/users", &ann).await.expect(201);
        assert_eq!(ann["expires_at"], "2027-01-22T08:00:00Z");
        let path = format!("/api/v1/users/{}", ann["id"]);
        let given = async |change: Value| {
            owner.patch(&path, &change).await.expect(200)["expires_at"].clone()
        };
        assert_eq!(given(json!({"plan_id": free})).await, Value::Null);
        // One's own end stays between plans that have none.
        let own = json!({"expires_at": "2028-01-01T00:00:00Z"});
        assert_eq!(given(own).await, "2028-01-01T00:00:00Z");
        assert_eq!(given(json!({"plan_id": other})).await, "2028-01-01T00:00:00Z");
        let both = json!({"plan_id": trial, "expires_at": "2029-01-01T00:00:00Z"});
        assert_eq!(given(both).await, "2029-01-01T00:00:00Z");
        fleet.stop().await;
    }

    async fn an_archived_plan_stays_with_whom_has_it(fleet) {
        let owner = fleet.owner().await;
        let plan = json!({"name": "old"});
        let plan = owner.post("/api/v1/plans", &plan).await.expect(201)["id"].clone();
        let user = async |name: &str, plan: &Value| {
            owner.post("/api/v1/users", &json!({"username": name, "plan_id": plan})).await
        };
        let ann = user("ann", &plan).await.expect(201);
        let bob = user("bob", &Value::Null).await.expect(201);
        let at = |user: &Value| format!("/api/v1/users/{}", user["id"]);
        let archive = format!("/api/v1/plans/{plan}");
        owner.patch(&archive, &json!({"archived": true})).await.expect(200);
        let refused = user("cyd", &plan).await.expect(422);
        assert_eq!(refused["errors"][0]["path"], "plan_id", "{refused}");
        owner.patch(&at(&bob), &json!({"plan_id": plan})).await.problem(422);
        let rows = json!({"format": "json", "data": [{"username": "dee"}], "plan_id": plan});
        let refused = owner.post("/api/v1/users:import", &rows).await.expect(422);
        assert_eq!(refused["errors"][0]["path"], "users[0].plan_id", "{refused}");
        owner.patch(&at(&ann), &json!({"plan_id": plan, "note": "n"})).await.expect(200);
        owner.patch(&archive, &json!({"archived": false})).await.expect(200);
        user("cyd", &plan).await.expect(201);
        fleet.stop().await;
    }
}
