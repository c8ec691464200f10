//! What the master does by itself with what operators decided.

use hy2_master_sdk::{domain::ObservedState, store::nodes};
use serde_json::{Value, json};

use crate::harness::{Client, on_both};

async fn user(owner: &Client, at: &str) -> Value {
    owner.get(at).await.expect(200)
}

/// Makes a user and returns where it is.
async fn make(owner: &Client, new: &Value) -> String {
    let made = owner.post("/api/v1/users", new).await;
    let at = made.header("location").to_owned();
    made.expect(201);
    at
}

on_both! {
    async fn a_plan_is_followed_when_its_time_is_over_and_not_when_somebody_ends_it(fleet) {
        let owner = fleet.owner().await;
        let basic = json!({"name": "basic", "quota_bytes": 1000, "duration_days": 30});
        let basic = owner.post("/api/v1/plans", &basic).await.expect(201)["id"].clone();
        let trial = json!({"name": "trial", "duration_days": 7, "next_plan_id": basic});
        let trial = owner.post("/api/v1/plans", &trial).await.expect(201)["id"].clone();
        // The clock stands at 08:00:00.
        let ann = make(&owner, &json!({"username": "ann", "plan_id": trial})).await;
        let bob = make(&owner, &json!({"username": "bob", "plan_id": trial})).await;
        let ended = json!({"expires_at": "2027-01-15T08:00:00Z"});
        let answer = owner.patch(&bob, &ended).await.expect(200);
        let said = (&answer["status"], &answer["status_reason"]);
        assert_eq!(said, (&json!("expired"), &json!("the time is over")));
        // Her last seconds run: the successor begins where the trial ends.
        let ending = json!({"expires_at": "2027-01-15T08:00:30Z"});
        owner.patch(&ann, &ending).await.expect(200);
        let followed = fleet
            .until("the trial is followed", async || {
                Some(user(&owner, &ann).await).filter(|ann| ann["plan_id"] == basic)
            })
            .await;
        assert_eq!(followed["expires_at"], "2027-02-14T08:00:30Z");
        assert_eq!(followed["status"], "active");
        let bob = user(&owner, &bob).await;
        assert_eq!((&bob["status"], &bob["plan_id"]), (&json!("expired"), &trial));
        fleet.stop().await;
    }

    async fn who_was_taken_off_a_node_is_not_put_there_by_the_master(fleet) {
        let owner = fleet.owner().await;
        let node = fleet.node("ny").await;
        let mut tx = fleet.master.store().begin().await.unwrap();
        let (seen, now) = (ObservedState::Enrolling, fleet.master.now());
        nodes::set_observed_state(&mut tx, node, seen, "", now).await.unwrap();
        tx.commit().await.unwrap();
        let node = node.0;
        let ann = make(&owner, &json!({"username": "ann"})).await;
        let nodes_of = async |at: &str| {
            let answer = owner.get(&format!("{at}/assignments")).await.expect(200);
            answer["items"].as_array().map_or(0, Vec::len)
        };
        let assigned = async |at: &str| (nodes_of(at).await == 1).then_some(());
        fleet.until("ann has a node", || assigned(&ann)).await;
        let number = ann.rsplit('/').next().unwrap();
        let assignment = format!("/api/v1/assignments/{number}/{node}");
        owner.delete(&assignment).await.expect(204);
        // The pass that serves bob looks at ann first.
        let bob = make(&owner, &json!({"username": "bob"})).await;
        fleet.until("bob has a node", || assigned(&bob)).await;
        assert_eq!(nodes_of(&ann).await, 0);
        let back = json!({"user_id": number.parse::<i64>().unwrap(), "node_id": node});
        owner.post("/api/v1/assignments", &back).await.expect(201);
        assert_eq!(nodes_of(&ann).await, 1);
        fleet.stop().await;
    }
}
