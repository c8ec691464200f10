//! A reseller's quota: what its users have used counts as spent for good.

use hy2_master_sdk::domain::NodeId;
use hy2_master_sdk::store::due;
use hy2_master_sdk::store::traffic::{Batch, BatchRow};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Client, Fleet, OWN_PASSWORD, START, on_both};

/// A reseller with a quota, and a node that its users use.
struct Shop {
    owner: Client,
    ann: Client,
    /// Where the account is.
    account: String,
    node: NodeId,
    spool: Uuid,
    sent: i64,
}

impl Shop {
    async fn open(fleet: &Fleet, quota: i64) -> Self {
        let owner = fleet.owner().await;
        let ann = fleet.as_role("ann", "reseller").await;
        let me = ann.get("/api/v1/auth/me").await.expect(200);
        let account = format!("/api/v1/admins/{}", me["id"]);
        let limit = json!({"quota_bytes": quota});
        owner.patch(&account, &limit).await.expect(200);
        let node = fleet.node("ny").await;
        Self {
            owner,
            ann,
            account,
            node,
            spool: Uuid::new_v4(),
            sent: 0,
        }
    }

    /// Makes a user as the reseller, on the node, and returns its number.
    async fn user(&self, name: &str, quota: i64) -> i64 {
        let new = json!({"username": name, "quota_bytes": quota});
        let made = self.ann.post("/api/v1/users", &new).await.expect(201);
        let pair = json!({"user_id": made["id"], "node_id": self.node.0});
        let at = "/api/v1/assignments";
        self.owner.post(at, &pair).await.expect(201);
        made["id"].as_i64().unwrap()
    }

    /// Lets a user use so much.
    async fn uses(&mut self, fleet: &Fleet, user: i64, bytes: i64) {
        self.sent += 1;
        let row = BatchRow {
            user,
            tx: bytes,
            rx: 0,
            seen: START,
            leases: Vec::new(),
        };
        let batch = Batch {
            node: self.node,
            spool: self.spool,
            first_seq: self.sent,
            last_seq: self.sent,
            at: START,
            multiplier: 1_000_000_000,
            rows: vec![row],
        };
        let done = fleet.master.store().ingest(&batch, START).await.unwrap();
        assert!(done.added && done.quarantined == 0, "{done:?}");
    }

    async fn refused(&self, name: &str, quota: i64) {
        let new = json!({"username": name, "quota_bytes": quota});
        let answer = self.ann.post("/api/v1/users", &new).await;
        assert_eq!(answer.problem(409), "quota_limit");
    }

    async fn spent(&self) -> Value {
        let account = self.owner.get(&self.account).await.expect(200);
        account["spent_bytes"].clone()
    }
}

fn at_user(user: i64) -> String {
    format!("/api/v1/users/{user}")
}

on_both! {
    async fn what_was_used_is_spent_whatever_becomes_of_the_user(fleet) {
        let mut shop = Shop::open(&fleet, 1000).await;
        let ann = shop.ann.clone();
        let user = shop.user("u", 600).await;
        shop.uses(&fleet, user, 600).await;
        // A quota is what everybody needs.
        ann.patch(&at_user(user), &json!({"quota_bytes": null})).await.problem(422);
        // Not by starting anew,
        let reset = format!("{}/reset", at_user(user));
        assert_eq!(ann.post(&reset, &json!({})).await.problem(409), "quota_limit");
        let batch = json!({"ids": [user], "action": "reset_traffic"});
        assert_eq!(ann.post("/api/v1/users:batch", &batch).await.problem(409), "quota_limit");
        assert_eq!(ann.get(&at_user(user)).await.expect(200)["used_bytes"], 600);
        // nor by a lower quota,
        ann.patch(&at_user(user), &json!({"quota_bytes": 1})).await.expect(200);
        shop.refused("v", 401).await;
        // nor by another user in its place.
        assert_eq!(shop.spent().await, 0);
        ann.delete(&at_user(user)).await.expect(204);
        assert_eq!(shop.spent().await, 600);
        shop.refused("v", 401).await;
        let other = shop.user("v", 400).await;
        let two = json!([{"username": "w", "quota_bytes": 1}, {"username": "x", "quota_bytes": 1}]);
        let import = json!({"format": "json", "data": two});
        assert_eq!(ann.post("/api/v1/users:import", &import).await.problem(409), "quota_limit");
        // What is reported of a user who is gone counts too.
        shop.uses(&fleet, user, 50).await;
        let quota = |bytes: i64| json!({"quota_bytes": bytes});
        assert_eq!(ann.patch(&at_user(other), &quota(401)).await.problem(409), "quota_limit");
        ann.patch(&at_user(other), &quota(300)).await.expect(200);
        assert_eq!(ann.patch(&at_user(other), &quota(351)).await.problem(409), "quota_limit");
        ann.patch(&at_user(other), &quota(350)).await.expect(200);
        // Also what others set back.
        shop.uses(&fleet, other, 350).await;
        let reset = format!("{}/reset", at_user(other));
        shop.owner.post(&reset, &json!({})).await.expect(200);
        assert_eq!(shop.spent().await, 950);
        // Nothing used, nothing to be had: that much a reseller may always.
        ann.post(&reset, &json!({})).await.expect(200);
        ann.patch(&at_user(other), &quota(10)).await.expect(200);
        shop.refused("w", 1).await;
        // More of it is for sale.
        shop.owner.patch(&shop.account, &quota(1510)).await.expect(200);
        ann.patch(&at_user(other), &quota(400)).await.expect(200);
        shop.uses(&fleet, other, 90).await;
        ann.post(&reset, &json!({})).await.expect(200);
        assert_eq!(shop.spent().await, 1040);
        let mut both = shop.user("w", 5).await;
        shop.uses(&fleet, both, 5).await;
        shop.uses(&fleet, other, 400).await;
        let batch = json!({"ids": [both, other], "action": "reset_traffic"});
        assert_eq!(ann.post("/api/v1/users:batch", &batch).await.problem(409), "quota_limit");
        assert_eq!(shop.spent().await, 1040);
        both = shop.user("x", 5).await;
        shop.uses(&fleet, both, 5).await;
        let batch = json!({"ids": [both], "action": "reset_traffic"});
        ann.post("/api/v1/users:batch", &batch).await.expect(200);
        assert_eq!(shop.spent().await, 1045);
        fleet.stop().await;
    }

    async fn many_at_once_spend_every_byte_once_and_wait_in_no_circle(fleet) {
        let mut shop = Shop::open(&fleet, 100_000).await;
        let mut users = Vec::new();
        for at in 0..8 {
            let user = shop.user(&format!("u{at}"), 100).await;
            shop.uses(&fleet, user, 10 + at).await;
            users.push(user);
        }
        let mut requests = Vec::new();
        for (at, user) in users.iter().enumerate() {
            let reset = (format!("{}/reset", at_user(*user)), json!({}));
            let batch = json!({"ids": users, "action": "reset_traffic"});
            requests.push((shop.ann.clone(), "POST", reset.clone()));
            requests.push((shop.owner.clone(), "POST", reset));
            requests.push((shop.ann.clone(), "POST", ("/api/v1/users:batch".to_owned(), batch)));
            let quota = json!({"quota_bytes": 200 + at});
            requests.push((shop.ann.clone(), "PATCH", (at_user(*user), quota)));
        }
        let sent = requests.into_iter().map(|(client, method, (path, body))| async move {
            client.send(method, &path, Some(&body)).await.expect(200);
        });
        futures_util::future::join_all(sent).await;
        assert_eq!(shop.spent().await, 8 * 10 + 28);
        fleet.stop().await;
    }

    async fn a_quota_that_starts_anew_by_itself_is_not_for_who_has_one(fleet) {
        let mut shop = Shop::open(&fleet, 1000).await;
        let owner = shop.owner.clone();
        let plan = async |new: Value| {
            owner.post("/api/v1/plans", &new).await.expect(201)["id"].clone()
        };
        let daily = plan(json!({"name": "daily", "period": "day"})).await;
        let once = plan(json!({"name": "once", "duration_days": 30})).await;
        let follow = plan(json!({"name": "follow", "duration_days": 1, "next_plan_id": once})).await;
        for plan in [&daily, &follow] {
            let new = json!({"username": "u", "quota_bytes": 10, "plan_id": plan});
            let body = shop.ann.post("/api/v1/users", &new).await.expect(422);
            assert_eq!(body["errors"][0]["path"], "plan_id", "{body}");
            let rows = json!({"format": "json", "data": [{"username": "u", "quota_bytes": 10}], "plan_id": plan});
            let body = shop.ann.post("/api/v1/users:import", &rows).await.expect(422);
            assert_eq!(body["errors"][0]["path"], "users[0].plan_id", "{body}");
        }
        let user = shop.user("u", 600).await;
        let given = json!({"plan_id": daily});
        let body = shop.ann.patch(&at_user(user), &given).await.expect(422);
        assert_eq!(body["errors"][0]["path"], "plan_id", "{body}");
        shop.ann.patch(&at_user(user), &json!({"plan_id": once})).await.expect(200);
        // An operator may; what is used in each period is spent.
        shop.owner.patch(&at_user(user), &given).await.expect(200);
        shop.uses(&fleet, user, 500).await;
        fleet.clock.advance(std::time::Duration::from_secs(86_400));
        // Sessions are over as well.
        shop.owner = fleet.owner().await;
        shop.ann = fleet.client().log_in("ann", OWN_PASSWORD).await;
        shop.owner.patch(&at_user(user), &json!({"note": "a call wakes the task"})).await.expect(200);
        let spent = fleet.until("the period is over", async || {
            Some(shop.spent().await).filter(|spent| *spent != 0)
        });
        assert_eq!(spent.await, 500);
        assert_eq!(shop.ann.get(&at_user(user)).await.expect(200)["used_bytes"], 0);
        shop.refused("v", 1).await;
        // Who has no quota may have such users.
        shop.owner.patch(&shop.account, &json!({"quota_bytes": null})).await.expect(200);
        let new = json!({"username": "v", "plan_id": daily});
        shop.ann.post("/api/v1/users", &new).await.expect(201);
        fleet.stop().await;
    }

    async fn who_starts_anew_has_no_reason_left(fleet) {
        let mut shop = Shop::open(&fleet, 1000).await;
        let user = shop.user("u", 10).await;
        shop.uses(&fleet, user, 10).await;
        let mut tx = fleet.master.store().begin().await.unwrap();
        due::used_up(&mut tx, None, START).await.unwrap();
        tx.commit().await.unwrap();
        let said = |user: &Value| (user["status"].clone(), user["status_reason"].clone());
        let limited = shop.ann.get(&at_user(user)).await.expect(200);
        assert_eq!(said(&limited), (json!("limited"), json!("the quota is used up")));
        let anew = shop.ann.post(&format!("{}/reset", at_user(user)), &json!({})).await.expect(200);
        assert_eq!(said(&anew), (json!("active"), json!("")));
        fleet.stop().await;
    }
}
