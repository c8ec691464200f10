//! Regions over REST: made, used and removed, and what follows from them.

use std::time::Duration;

use hy2_master_sdk::domain::ObservedState;
use hy2_master_sdk::store::regions::{self, NewRegion};
use hy2_master_sdk::store::{events, nodes};
use serde_json::{Value, json};

use crate::harness::{Client, Fleet, START, on_both};

/// Makes a region and returns its number.
pub(crate) async fn region(owner: &Client, code: &str) -> i64 {
    let new = json!({"code": code, "name": format!("the {code}")});
    let made = owner.post("/api/v1/regions", &new).await.expect(201);
    made["id"].as_i64().unwrap()
}

/// Makes a node that serves, in a region.
pub(crate) async fn node_in(fleet: &Fleet, owner: &Client, name: &str, region: i64) -> i64 {
    let node = fleet.node(name).await;
    let mut tx = fleet.master.store().begin().await.unwrap();
    let seen = ObservedState::Online;
    nodes::set_observed_state(&mut tx, node, seen, "", START)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let path = format!("/api/v1/nodes/{node}");
    let put = owner.patch(&path, &json!({"region_id": region})).await;
    assert_eq!(put.expect(200)["region_id"], region);
    node.0
}

pub(crate) fn paths(answer: &Value) -> Vec<&str> {
    let errors = answer["errors"].as_array().unwrap().iter();
    errors
        .map(|error| error["path"].as_str().unwrap())
        .collect()
}

on_both! {
    async fn a_region_is_made_changed_found_by_its_code_and_deleted(fleet) {
        let owner = fleet.owner().await;
        let new = json!({"code": "us-east", "name": "New York", "latitude": 40.7, "longitude": -74});
        let made = owner.post("/api/v1/regions", &new).await.expect(201);
        assert_eq!(made["created_at"], "2027-01-15T08:00:00Z");
        for (field, value) in new.as_object().unwrap() {
            assert_eq!(made[field].as_f64(), value.as_f64(), "{field}");
            assert_eq!(made[field].as_str(), value.as_str(), "{field}");
        }
        let path = format!("/api/v1/regions/{}", made["id"]);
        assert_eq!(owner.get(&path).await.expect(200), made);
        let taken = owner.post("/api/v1/regions", &new).await.expect(409);
        assert_eq!((&taken["code"], &taken["detail"]), (&json!("duplicate"), &json!("code is taken")));
        region(&owner, "eu").await;
        region(&owner, "us1").await;
        let codes = async || -> Vec<String> {
            let listed = owner.get("/api/v1/regions").await.expect(200);
            let items = listed["items"].as_array().unwrap().iter();
            items.map(|item| item["code"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(codes().await, ["eu", "us-east", "us1"]);

        let renamed = owner.patch(&path, &json!({"code": "us-2"})).await.expect(200);
        assert_eq!((&renamed["code"], &renamed["name"]), (&json!("us-2"), &json!("New York")));
        assert_eq!(renamed["longitude"].as_f64(), Some(-74.0), "what is absent stays");
        let half = owner.patch(&path, &json!({"latitude": null})).await.expect(422);
        assert_eq!(paths(&half), ["latitude"]);
        let nowhere = json!({"latitude": null, "longitude": null});
        let nowhere = owner.patch(&path, &nowhere).await.expect(200);
        assert_eq!((&nowhere["latitude"], &nowhere["longitude"]), (&Value::Null, &Value::Null));
        owner.patch(&path, &json!({"code": "eu"})).await.problem(409);

        owner.delete(&path).await.expect(204);
        owner.get(&path).await.problem(404);
        owner.patch(&path, &json!({})).await.problem(404);
        owner.delete(&path).await.problem(404);
        assert_eq!(codes().await, ["eu", "us1"]);

        // Each change is in the log and is told.
        let number = made["id"].to_string();
        for (action, before, after) in [
            ("create_region", None, Some("us-east")),
            ("update_region", Some("us-east"), Some("us-2")),
            ("delete_region", Some("us-2"), None),
        ] {
            let found = fleet.until(action, async || {
                let listed = owner.get(&format!("/api/v1/audit?action={action}")).await.expect(200);
                let items = listed["items"].as_array().unwrap().clone();
                items.into_iter().rfind(|entry| entry["object_id"] == number)
            }).await;
            assert_eq!(found["object_kind"], "region");
            assert_eq!(found["before"]["code"].as_str(), before, "{found}");
            assert_eq!(found["after"]["code"].as_str(), after, "{found}");
        }
        let told = fleet.until("all is told", async || {
            let events = events::after(fleet.master.store(), 0, 500).await.unwrap();
            let ours = events.into_iter().filter(|event| event.topic.starts_with("region."));
            let topics: Vec<String> = ours.map(|event| event.topic).collect();
            (topics.len() == 6).then_some(topics)
        }).await;
        let made = "region.created";
        let changed = "region.updated";
        assert_eq!(told, [made, made, made, changed, changed, "region.deleted"]);
        fleet.stop().await;
    }

    async fn who_knows_an_older_state_of_a_region_changes_nothing(fleet) {
        let owner = fleet.owner().await;
        let path = format!("/api/v1/regions/{}", region(&owner, "us").await);
        let tag = owner.get(&path).await.header("etag").to_owned();
        let known = owner.clone().with("if-match", &tag);
        known.patch(&path, &json!({"name": "New York"})).await.expect(200);
        let late = known.patch(&path, &json!({"name": "Boston"})).await;
        assert_eq!(late.problem(412), "stale_revision");
        assert_eq!(known.delete(&path).await.problem(412), "stale_revision");
        fleet.stop().await;
    }

    async fn what_is_wrong_with_a_region_is_named(fleet) {
        let owner = fleet.owner().await;
        for (body, wrong) in [
            (json!({"name": "a"}), "code"),
            (json!({"code": "", "name": "a"}), "code"),
            (json!({"code": "a".repeat(33), "name": "a"}), "code"),
            (json!({"code": "US", "name": "a"}), "code"),
            (json!({"code": "a b", "name": "a"}), "code"),
            (json!({"code": "ü", "name": "a"}), "code"),
            (json!({"code": "a"}), "name"),
            (json!({"code": "a", "name": "a\nb"}), "name"),
            (json!({"code": "a", "name": "ü".repeat(33)}), "name"),
            (json!({"code": "a", "name": "a", "latitude": 90.1, "longitude": 0}), "latitude"),
            (json!({"code": "a", "name": "a", "latitude": 0, "longitude": -180.5}), "longitude"),
            (json!({"code": "a", "name": "a", "latitude": 1}), "longitude"),
            (json!({"code": "a", "name": "a", "longitude": 1}), "latitude"),
            (json!({"code": "a", "name": "a", "latitude": "north"}), "latitude"),
        ] {
            let answer = owner.post("/api/v1/regions", &body).await.expect(422);
            assert_eq!(paths(&answer), [wrong], "{body}");
        }
        let edge = json!({"code": "a".repeat(32), "name": "ü".repeat(32), "latitude": -90, "longitude": 180});
        owner.post("/api/v1/regions", &edge).await.expect(201);

        let mut tx = fleet.master.store().begin().await.unwrap();
        for number in 1..1_000 {
            let new = NewRegion {
                code: format!("r{number}"),
                name: "one of many".to_owned(),
                latitude: None,
                longitude: None,
            };
            regions::create(&mut tx, &new, START).await.unwrap();
        }
        tx.commit().await.unwrap();
        let more = json!({"code": "more", "name": "more"});
        assert_eq!(owner.post("/api/v1/regions", &more).await.problem(409), "too_many_regions");
        let listed = owner.get("/api/v1/regions").await.expect(200);
        assert_eq!(listed["items"].as_array().unwrap().len(), 1_000);
        fleet.stop().await;
    }

    async fn a_region_in_use_stays_and_the_answer_says_by_what(fleet) {
        let owner = fleet.owner().await;
        let east = region(&owner, "us-east").await;
        let path = format!("/api/v1/regions/{east}");
        let why = async |owner: &Client| {
            let answer = owner.delete(&path).await.expect(409);
            assert_eq!(answer["code"], "in_use");
            let detail = answer["detail"].as_str().unwrap();
            detail.strip_prefix("the region is in use by ").unwrap().to_owned()
        };
        let mut users = Vec::new();
        for name in ["ann", "bob"] {
            let user = json!({"username": name, "home_region_id": east});
            users.push(owner.post("/api/v1/users", &user).await.expect(201)["id"].clone());
        }
        assert_eq!(why(&owner).await, "2 users");
        let node = node_in(&fleet, &owner, "ny", east).await;
        let token = json!({"region_id": east, "valid_s": 600});
        let token = owner.post("/api/v1/enrolment-tokens", &token).await.expect(201);
        let revoked = owner.post("/api/v1/enrolment-tokens", &json!({"region_id": east})).await.expect(201);
        let revoked = format!("/api/v1/enrolment-tokens/{}", revoked["id"].as_str().unwrap());
        owner.delete(&revoked).await.expect(204);
        let config = format!("/api/v1/configs/region/{east}");
        owner.put(&config, &json!({"body": {"speed_test": true}})).await.expect(200);
        assert_eq!(
            why(&owner).await,
            "1 node, 2 users, 1 open enrolment token, its configuration (put an empty one)",
        );

        owner.delete(&format!("/api/v1/users/{}", users[0])).await.expect(204);
        let bob = format!("/api/v1/users/{}", users[1]);
        owner.patch(&bob, &json!({"home_region_id": null})).await.expect(200);
        owner.patch(&format!("/api/v1/nodes/{node}"), &json!({"region_id": null})).await.expect(200);
        owner.put(&config, &json!({"body": {}})).await.expect(200);
        assert_eq!(why(&owner).await, "1 open enrolment token");
        // Its time runs out.
        fleet.clock.advance(Duration::from_secs(601));
        let owner = fleet.owner().await;
        owner.delete(&path).await.expect(204);
        let listed = owner.get("/api/v1/enrolment-tokens").await.expect(200);
        let kept = listed["items"].as_array().unwrap();
        assert_eq!(kept.len(), 2);
        for kept in kept {
            assert_eq!(kept["region_id"], Value::Null, "{kept}");
        }
        assert!(kept.iter().any(|kept| kept["id"] == token["id"]));
        // What was in force for it is history, and comes to nobody any more.
        let body = json!({"body": {"speed_test": true}});
        owner.put(&config, &body).await.problem(404);
        let revisions = owner.get(&format!("{config}/revisions")).await.expect(200);
        let first = revisions["items"].as_array().unwrap().last().unwrap()["id"].clone();
        let back = format!("/api/v1/revisions/{first}/rollback");
        owner.post(&back, &Value::Null).await.problem(404);
        fleet.stop().await;
    }

    async fn a_users_home_region_is_shown_changed_and_taken_along(fleet) {
        let owner = fleet.owner().await;
        let (east, west) = (region(&owner, "us-east").await, region(&owner, "us-west").await);
        let ann = json!({"username": "ann", "home_region_id": east});
        let ann = owner.post("/api/v1/users", &ann).await.expect(201);
        assert_eq!(ann["home_region_id"], east);
        let bob = owner.post("/api/v1/users", &json!({"username": "bob"})).await.expect(201);
        assert_eq!(bob["home_region_id"], Value::Null);
        let nowhere = json!({"username": "cyd", "home_region_id": 99});
        let refused = owner.post("/api/v1/users", &nowhere).await.expect(422);
        let issue = json!([{"path": "home_region_id", "message": "there is no such region"}]);
        assert_eq!(refused["errors"], issue);
        let path = format!("/api/v1/users/{}", ann["id"]);
        let refused = owner.patch(&path, &json!({"home_region_id": 99})).await.expect(422);
        assert_eq!(refused["errors"], issue);
        let home = async |change: Value| {
            let changed = owner.patch(&path, &change).await.expect(200);
            assert_eq!(owner.get(&path).await.expect(200)["home_region_id"], changed["home_region_id"]);
            changed["home_region_id"].as_i64()
        };
        assert_eq!(home(json!({"note": "n"})).await, Some(east), "what is absent stays");
        assert_eq!(home(json!({"home_region_id": null})).await, None);
        assert_eq!(home(json!({"home_region_id": west})).await, Some(west));

        // By its code, which is the same elsewhere; numbers are not.
        let json = owner.get("/api/v1/users:export").await.expect(200);
        assert_eq!(json[0]["home_region"], "us-west");
        assert_eq!((&json[1]["home_region"], json[0].get("home_region_id")), (&Value::Null, None));
        let csv = owner.get("/api/v1/users:export?format=csv").await.text();
        for path in [&path, &format!("/api/v1/users/{}", bob["id"])] {
            owner.delete(path).await.expect(204);
        }
        for region in [east, west] {
            owner.delete(&format!("/api/v1/regions/{region}")).await.expect(204);
        }
        let imports = [json!({"format": "json", "data": json}), json!({"format": "csv", "data": csv})];
        for import in &imports {
            let refused = owner.post("/api/v1/users:import", import).await.expect(422);
            let issue = json!([{"path": "users[0].home_region", "message": "there is no such region"}]);
            assert_eq!(refused["errors"], issue);
            assert_eq!(owner.get("/api/v1/users").await.expect(200)["items"], json!([]));
        }
        let again = region(&owner, "us-west").await;
        for import in &imports {
            let report = owner.post("/api/v1/users:import", import).await.expect(200);
            assert_eq!(report["created"], 2, "{report}");
            let listed = owner.get("/api/v1/users").await.expect(200);
            let users = listed["items"].as_array().unwrap();
            let homes: Vec<_> = users.iter().map(|user| user["home_region_id"].as_i64()).collect();
            assert_eq!(homes, [Some(again), None]);
            for user in users {
                owner.delete(&format!("/api/v1/users/{}", user["id"])).await.expect(204);
            }
        }
        fleet.stop().await;
    }

    async fn users_are_given_nodes_of_their_home_region_first(fleet) {
        let owner = fleet.owner().await;
        let (east, west) = (region(&owner, "us-east").await, region(&owner, "us-west").await);
        let mut nodes = Vec::new();
        for (name, region) in [("w1", west), ("w2", west), ("e1", east), ("e2", east), ("e3", east)] {
            nodes.push(node_in(&fleet, &owner, name, region).await);
        }
        let plan = async |name: &str, nodes: i64| {
            let plan = json!({"name": name, "nodes_per_user": nodes});
            owner.post("/api/v1/plans", &plan).await.expect(201)["id"].clone()
        };
        let (one, three) = (plan("one", 1).await, plan("three", 3).await);
        // Who has which nodes, in the order of their ranks.
        let given = async |name: &str, plan: &Value, home: Option<i64>, wanted: usize| {
            let user = json!({"username": name, "plan_id": plan, "home_region_id": home});
            let user = owner.post("/api/v1/users", &user).await.expect(201)["id"].clone();
            let path = format!("/api/v1/users/{user}/assignments");
            let rows = fleet.until(name, async || {
                let answer = owner.get(&path).await.expect(200);
                let rows = answer["items"].as_array().unwrap().clone();
                (rows.len() == wanted).then_some(rows)
            }).await;
            let mut ranked: Vec<(i64, i64)> = rows.iter().map(|row| {
                assert_eq!(row["source"], "auto");
                (row["rank"].as_i64().unwrap(), row["node_id"].as_i64().unwrap())
            }).collect();
            ranked.sort_unstable();
            (path, ranked.into_iter().map(|(_, node)| node).collect::<Vec<_>>())
        };
        // Nobody has anything yet: the lowest number is next, unless the home region says otherwise.
        let (_, ann) = given("ann", &one, Some(east), 1).await;
        assert_eq!(ann, [nodes[2]]);
        let (_, bob) = given("bob", &one, None, 1).await;
        assert_eq!(bob, [nodes[0]]);
        // The west has the only other node that serves nobody; the east comes first all the same.
        let (at, cyd) = given("cyd", &three, Some(east), 3).await;
        assert_eq!(cyd, [nodes[3], nodes[4], nodes[1]], "and the last is elsewhere");

        // Another home region moves nobody; it counts when nodes are looked for again.
        let user = at.strip_suffix("/assignments").unwrap();
        let moved = owner.patch(user, &json!({"home_region_id": west})).await.expect(200);
        assert_eq!(moved["home_region_id"], west);
        let (_, dan) = given("dan", &one, Some(west), 1).await;
        assert_eq!(dan.len(), 1, "the task has looked at cyd before");
        let answer = owner.get(&at).await.expect(200);
        let mut has: Vec<i64> = answer["items"].as_array().unwrap().iter().map(|row| row["node_id"].as_i64().unwrap()).collect();
        has.sort_unstable();
        let mut had = cyd.clone();
        had.sort_unstable();
        assert_eq!(has, had);
        let number = user.rsplit('/').next().unwrap();
        owner.delete(&format!("/api/v1/assignments/{number}/{}", nodes[3])).await.expect(204);
        let now = fleet.until("cyd has three again", async || {
            let answer = owner.get(&at).await.expect(200);
            let nodes: Vec<i64> = answer["items"].as_array().unwrap().iter().map(|row| row["node_id"].as_i64().unwrap()).collect();
            (nodes.len() == 3).then_some(nodes)
        }).await;
        assert!(now.contains(&nodes[0]), "of the new home: {now:?}");
        fleet.stop().await;
    }

    async fn a_configuration_of_a_region_is_merged_for_the_nodes_in_it(fleet) {
        let owner = fleet.owner().await;
        let (east, west) = (region(&owner, "us-east").await, region(&owner, "us-west").await);
        let obfs = |password: &str| json!({"body": {"obfs": {"salamander": {"password": password}}}});
        owner.put("/api/v1/configs/fleet/0", &obfs("everywhere-0123456789")).await.expect(200);
        let there = node_in(&fleet, &owner, "e1", east).await;
        let elsewhere = node_in(&fleet, &owner, "w1", west).await;
        let user = json!({"username": "ann", "node_ids": [there, elsewhere]});
        let user = owner.post("/api/v1/users", &user).await.expect(201)["id"].clone();
        let url = owner.get(&format!("/api/v1/users/{user}/subscription")).await.expect(200);
        let path = url["url"].as_str().unwrap().strip_prefix("https://sub.example.org").unwrap().to_owned();
        owner.put(&format!("/api/v1/configs/region/{east}"), &obfs("in-the-east-0123456789")).await.expect(200);
        let revision = async |node: i64| {
            let node = owner.get(&format!("/api/v1/nodes/{node}")).await.expect(200);
            node["desired_rev"].as_i64().unwrap()
        };
        let public = Client::new(fleet.public);
        let passwords = async || -> Vec<(String, String)> {
            let clash = public.clone().with("user-agent", "mihomo/1.19").get(&path).await;
            let config: Value = serde_saphyr::from_str(&clash.text()).unwrap();
            let proxies = config["proxies"].as_array().unwrap().iter();
            proxies.map(|proxy| {
                let text = |key: &str| proxy[key].as_str().unwrap().to_owned();
                (text("name"), text("obfs-password"))
            }).collect()
        };
        let pair = |name: &str, password: &str| (name.to_owned(), password.to_owned());
        assert_eq!(
            passwords().await,
            [pair("e1", "in-the-east-0123456789"), pair("w1", "everywhere-0123456789")],
        );
        // A node that goes there takes it on, and a change concerns the nodes there alone.
        let before = (revision(there).await, revision(elsewhere).await);
        let mut still = obfs("still-east-0123456789");
        // The one before the last but one is given up.
        still["body"]["previous_obfs"] = Value::Null;
        owner.put(&format!("/api/v1/configs/region/{east}"), &still).await.expect(200);
        assert!(revision(there).await > before.0);
        assert_eq!(revision(elsewhere).await, before.1);
        owner.patch(&format!("/api/v1/nodes/{elsewhere}"), &json!({"region_id": east})).await.expect(200);
        assert!(revision(elsewhere).await > before.1);
        assert_eq!(
            passwords().await,
            [pair("e1", "still-east-0123456789"), pair("w1", "still-east-0123456789")],
        );
        fleet.stop().await;
    }
}
