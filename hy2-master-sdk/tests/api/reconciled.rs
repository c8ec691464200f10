//! What the master does by itself with what operators decided.

use std::time::Duration;

use hy2_master_sdk::domain::ObservedState;
use hy2_master_sdk::store::cluster::Lease;
use hy2_master_sdk::store::{Db, events, nodes};
use serde_json::{Value, json};
use sqlx::Connection as _;
use uuid::Uuid;

use crate::harness::{Client, Fleet, on_both};

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
        let renewed = fleet
            .until("it is told", async || {
                let told = events::after(fleet.master.store(), 0, 1_000).await.unwrap();
                told.into_iter().find(|event| event.topic == "user.renewed")
            })
            .await;
        assert_eq!((&renewed.payload["username"], &renewed.payload["plan_id"]), (&json!("ann"), &basic));
        assert_eq!(renewed.payload["expires_at"], followed["expires_at"]);
        let bob = user(&owner, &bob).await;
        assert_eq!((&bob["status"], &bob["plan_id"]), (&json!("expired"), &trial));
        fleet.stop().await;
    }

    async fn tasks_run_again_though_a_masters_clock_was_years_ahead(fleet) {
        let owner = fleet.owner().await;
        let store = fleet.master.store();
        // One that died before anybody looked at its clock.
        let (other, ahead) = (Uuid::from_u128(7), fleet.master.now().plus_days(3_000));
        let taken = store.acquire_lease("users", other, ahead, 15_000, None).await.unwrap();
        assert!(matches!(taken, Lease::Mine(_)), "{taken:?}");
        let ann = make(&owner, &json!({"username": "ann", "expires_at": "2027-01-15T08:00:01Z"})).await;
        fleet.clock.advance(Duration::from_secs(2));
        fleet
            .until("ann's time is over", async || {
                Some(user(&owner, &ann).await).filter(|ann| ann["status"] == "expired")
            })
            .await;
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

    async fn who_is_given_another_plan_moves_to_its_pools(fleet) {
        let owner = fleet.owner().await;
        let mut nodes = Vec::new();
        for name in ["one", "two", "three", "four"] {
            let node = fleet.node(name).await;
            let mut tx = fleet.master.store().begin().await.unwrap();
            let (seen, now) = (ObservedState::Enrolling, fleet.master.now());
            nodes::set_observed_state(&mut tx, node, seen, "", now).await.unwrap();
            tx.commit().await.unwrap();
            nodes.push(node.0);
        }
        let [one, two, three, four] = nodes[..] else { panic!("{nodes:?}") };
        let pool = async |name: &str, nodes: &[i64]| {
            let new = json!({"name": name, "node_ids": nodes});
            owner.post("/api/v1/node-pools", &new).await.expect(201)["id"].clone()
        };
        let plan = async |new: Value, pools: &[&Value]| {
            let plan = owner.post("/api/v1/plans", &new).await.expect(201)["id"].clone();
            let pools = json!({"pool_ids": pools});
            owner.put(&format!("/api/v1/plans/{plan}/pools"), &pools).await.expect(200);
            plan
        };
        let (first, second) = (pool("first", &[one]).await, pool("second", &[three]).await);
        let none = pool("none", &[]).await;
        let basic = plan(json!({"name": "basic", "nodes_per_user": 1}), &[&second]).await;
        let later = plan(json!({"name": "later", "nodes_per_user": 1}), &[&none]).await;
        let trial = json!({"name": "trial", "nodes_per_user": 1, "duration_days": 7, "next_plan_id": basic});
        let trial = plan(trial, &[&first]).await;
        let prem = plan(json!({"name": "prem", "nodes_per_user": 1}), &[&first]).await;
        let nodes_of = async |at: &str| {
            let answer = owner.get(&format!("{at}/assignments")).await.expect(200);
            let items = answer["items"].as_array().unwrap().clone();
            let mut nodes: Vec<i64> = items.iter().map(|it| it["node_id"].as_i64().unwrap()).collect();
            nodes.sort_unstable();
            nodes
        };
        let on = async |at: &str, wanted: &[i64]| {
            fleet
                .until("the nodes of the plan", async || {
                    let nodes = nodes_of(at).await;
                    assert!(!nodes.is_empty(), "at no time without a node");
                    (nodes == wanted).then_some(())
                })
                .await;
        };
        let ann = make(&owner, &json!({"username": "ann", "plan_id": prem})).await;
        let bob = make(&owner, &json!({"username": "bob", "plan_id": trial})).await;
        for at in [&ann, &bob] {
            fleet.until("a node", async || (nodes_of(at).await == [one]).then_some(())).await;
        }
        owner.patch(&ann, &json!({"plan_id": basic})).await.expect(200);
        on(&ann, &[three]).await;
        // As the next plan does at the end of one.
        owner.patch(&bob, &json!({"expires_at": "2027-01-15T08:00:30Z"})).await.expect(200);
        on(&bob, &[three]).await;
        // Back, and a node by hand, which stays.
        let number: i64 = ann.rsplit('/').next().unwrap().parse().unwrap();
        owner.patch(&ann, &json!({"plan_id": prem})).await.expect(200);
        on(&ann, &[one]).await;
        let by_hand = json!({"user_id": number, "node_id": two});
        owner.post("/api/v1/assignments", &by_hand).await.expect(201);
        owner.patch(&ann, &json!({"plan_id": basic})).await.expect(200);
        on(&ann, &[two]).await;
        // Nobody is left without a node while the pools have none.
        owner.patch(&bob, &json!({"plan_id": later})).await.expect(200);
        let cy = make(&owner, &json!({"username": "cy", "plan_id": prem})).await;
        fleet.until("cy has a node", async || (nodes_of(&cy).await == [one]).then_some(())).await;
        assert_eq!(nodes_of(&bob).await, [three]);
        let members = json!({"node_ids": [four]});
        owner.patch(&format!("/api/v1/node-pools/{none}"), &members).await.expect(200);
        on(&bob, &[four]).await;
        // A change of the pools alone leaves users where they are.
        let members = json!({"node_ids": [two]});
        owner.patch(&format!("/api/v1/node-pools/{none}"), &members).await.expect(200);
        let dan = make(&owner, &json!({"username": "dan", "plan_id": prem})).await;
        fleet.until("dan has a node", async || (nodes_of(&dan).await == [one]).then_some(())).await;
        assert_eq!(nodes_of(&bob).await, [four]);
        fleet.stop().await;
    }
}

/// Who changes a user locks the user and then its nodes. What time does must not hold a node while it waits for another
/// user: the two would wait for each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_time_does_to_one_user_keeps_nobodys_node_from_another() {
    let fleet = Fleet::postgres().await;
    let owner = fleet.owner().await;
    let node = fleet.node("ny").await;
    let daily = json!({"name": "daily", "quota_bytes": 1_000, "period": "day"});
    let daily = owner.post("/api/v1/plans", &daily).await.expect(201)["id"].clone();
    let ann = json!({"username": "ann", "plan_id": daily, "node_ids": [node.0]});
    make(&owner, &ann).await;
    let bob =
        json!({"username": "bob", "expires_at": "2027-01-16T08:00:00Z", "node_ids": [node.0]});
    make(&owner, &bob).await;
    let Db::Pg(pool) = fleet.master.store().db() else {
        panic!("PostgreSQL")
    };
    let mut tx = pool.begin().await.unwrap();
    let bob = "update users set rev = rev where username = 'bob' returning id";
    let bob: i64 = sqlx::query_scalar(bob).fetch_one(&mut *tx).await.unwrap();
    // Ann's new day and bob's end are due at once.
    fleet.clock.advance(Duration::from_secs(2 * 86_400));
    fleet
        .until("somebody waits for bob", async || {
            let waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' \
                           and datname = current_database()";
            let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(pool).await.unwrap();
            (waiting > 0).then_some(())
        })
        .await;
    // The node is free, but for moments: whoever waits for bob does not hold it.
    let free = "select id from vps_nodes where id = $1 for no key update nowait";
    let mut got = false;
    for _ in 0..40 {
        let mut inner = tx.begin().await.unwrap();
        got = sqlx::query(free)
            .bind(node.0)
            .execute(&mut *inner)
            .await
            .is_ok();
        if got {
            inner.commit().await.unwrap();
            break;
        }
        inner.rollback().await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(got, "the node is held by who waits for bob");
    tx.commit().await.unwrap();
    fleet
        .until("bob's time is over", async || {
            let status = "select status from users where id = $1";
            let query = sqlx::query_scalar::<_, String>(status).bind(bob);
            (query.fetch_one(pool).await.unwrap() == "expired").then_some(())
        })
        .await;
    fleet.stop().await;
}
