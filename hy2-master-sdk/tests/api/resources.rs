//! Users, plans, nodes, configurations: what operators do all day.

use std::time::Duration;

use hy2_master_sdk::domain::{ObservedState, UserId};
use hy2_master_sdk::store::leases::{self, Grant, Want};
use hy2_master_sdk::store::{Db, nodes};
use hy2_proto::control::rpc as pb;
use serde_json::{Value, json};

use crate::harness::{Client, OWN_PASSWORD, on_both};

on_both! {
    async fn a_user_is_made_changed_by_revision_and_deleted(fleet) {
        let owner = fleet.owner().await;
        let new = json!({"username": "ann", "quota_bytes": 1000, "tags": ["a"]});
        let made = owner.post("/api/v1/users", &new).await;
        assert_eq!(made.header("etag"), "\"1\"");
        let location = made.header("location").to_owned();
        let user = made.expect(201);
        assert_eq!((user["status"].as_str(), user["used_bytes"].as_i64()), (Some("active"), Some(0)));
        assert_eq!(owner.post("/api/v1/users", &new).await.problem(409), "duplicate");

        let change = json!({"quota_bytes": null, "note": "n"});
        let first = owner.clone().with("if-match", "\"1\"");
        let changed = first.patch(&location, &change).await;
        assert_eq!(changed.header("etag"), "\"2\"");
        let changed = changed.expect(200);
        assert_eq!((&changed["quota_bytes"], &changed["note"]), (&Value::Null, &json!("n")));
        assert_eq!(first.patch(&location, &change).await.problem(412), "stale_revision");
        let odd = owner.clone().with("if-match", "W/\"2\"");
        assert_eq!(odd.patch(&location, &change).await.problem(400), "malformed");
        owner.delete(&location).await.expect(204);
        owner.get(&location).await.problem(404);
        // The name is free again.
        owner.post("/api/v1/users", &new).await.expect(201);
        fleet.stop().await;
    }

    async fn who_has_the_revision_is_not_sent_it_again(fleet) {
        let owner = fleet.owner().await;
        let made = owner.post("/api/v1/users", &json!({"username": "ann"})).await;
        let location = made.header("location").to_owned();
        let unless = |tags: &str| owner.clone().with("if-none-match", tags);
        for tags in ["\"1\"", "W/\"1\"", "\"7\", \"1\"", "*"] {
            let answer = unless(tags).get(&location).await;
            assert_eq!((answer.status, answer.text().as_str()), (304, ""), "{tags}");
            assert_eq!(answer.header("etag"), "\"1\"");
        }
        unless("\"2\"").get(&location).await.expect(200);
        // Only what reads.
        unless("\"2\"").patch(&location, &json!({"note": "n"})).await.expect(200);
        unless("\"1\"").get(&location).await.expect(200);
        unless("*").get("/api/v1/users").await.expect(200);
        fleet.stop().await;
    }

    async fn what_a_node_that_is_away_was_lent_is_written_off_by_an_operator(fleet) {
        let owner = fleet.owner().await;
        let node = fleet.node("ny").await;
        let user = json!({"username": "ann", "quota_bytes": 1 << 20, "node_ids": [node.0]});
        let user = owner.post("/api/v1/users", &user).await.expect(201)["id"].as_i64().unwrap();
        let (ann, store) = (UserId(user), fleet.master.store());
        let ask = async || {
            let want = Want { user: ann, lease: None, remaining: 0, release: false, used: None };
            let mut tx = store.begin().await.unwrap();
            let granted = leases::grant(&mut tx, node, 1_000_000_000, want, fleet.master.now()).await.unwrap();
            tx.commit().await.unwrap();
            granted
        };
        assert!(matches!(ask().await, Grant::Slice { .. }));
        assert_eq!(store.open_leases(Some(ann), 10).await.unwrap().len(), 1);
        let path = format!("/api/v1/nodes/{node}/forfeit");
        let seen = async |state| {
            let mut tx = store.begin().await.unwrap();
            nodes::set_observed_state(&mut tx, node, state, "", fleet.master.now()).await.unwrap();
            tx.commit().await.unwrap();
        };
        for here in [ObservedState::Online, ObservedState::Suspect, ObservedState::Error] {
            seen(here).await;
            assert_eq!(owner.post(&path, &Value::Null).await.problem(409), "node_connected");
            let deleted = owner.delete(&format!("/api/v1/nodes/{node}")).await;
            assert_eq!(deleted.problem(409), "node_serving");
            assert_eq!(store.open_leases(Some(ann), 10).await.unwrap().len(), 1, "it is still lent");
        }
        seen(ObservedState::Offline).await;
        let done = owner.post(&path, &Value::Null).await.expect(200);
        assert_eq!(done, json!({"slices": 1}));
        assert!(store.open_leases(Some(ann), 10).await.unwrap().is_empty());
        assert_eq!(owner.post(&path, &Value::Null).await.expect(200), json!({"slices": 0}));
        owner.post("/api/v1/nodes/999/forfeit", &Value::Null).await.problem(404);
        fleet.stop().await;
    }

    async fn who_knows_an_older_state_of_a_pool_changes_nothing(fleet) {
        let owner = fleet.owner().await;
        let node = fleet.node("ny").await;
        let new = json!({"name": "fast", "node_ids": [node.0]});
        let made = owner.post("/api/v1/node-pools", &new).await;
        let tag = made.header("etag").to_owned();
        let path = format!("/api/v1/node-pools/{}", made.expect(201)["id"]);
        let found = owner.get(&path).await;
        assert_eq!(found.header("etag"), tag);
        assert_eq!(found.expect(200)["node_ids"], json!([node.0]));
        let known = owner.clone().with("if-match", &tag);
        let changed = known.patch(&path, &json!({"name": "faster"})).await;
        assert_ne!(changed.header("etag"), tag);
        assert_eq!(changed.expect(200)["node_ids"], json!([node.0]), "absent: stays");
        assert_eq!(known.patch(&path, &json!({"node_ids": []})).await.problem(412), "stale_revision");
        assert_eq!(known.delete(&path).await.problem(412), "stale_revision");
        let shown = owner.get(&path).await.expect(200);
        assert_eq!((&shown["name"], &shown["node_ids"]), (&json!("faster"), &json!([node.0])));
        owner.delete(&path).await.expect(204);
        owner.get(&path).await.problem(404);
        fleet.stop().await;
    }

    async fn a_rate_for_a_while_takes_null_for_the_users_own(fleet) {
        let owner = fleet.owner().await;
        let made = owner.post("/api/v1/users", &json!({"username": "ann"})).await.expect(201);
        let path = format!("/api/v1/users/{}/rate", made["id"]);
        let null = json!({"up_bytes_per_s": null, "down_bytes_per_s": 1024, "for_s": null});
        owner.post(&path, &null).await.expect(200);
        let little = json!({"up_bytes_per_s": 0, "down_bytes_per_s": 1023});
        let problem = owner.post(&path, &little).await.expect(422);
        assert_eq!(problem["errors"][0]["path"], "down_bytes_per_s", "{problem}");
        let wrong = json!({"up_bytes_per_s": -1});
        owner.post(&path, &wrong).await.problem(422);
        fleet.stop().await;
    }

    async fn what_is_wrong_is_named_by_its_path(fleet) {
        let owner = fleet.owner().await;
        let paths = |answer: Value| -> Vec<String> {
            let errors = answer["errors"].as_array().unwrap().clone();
            errors.iter().map(|error| error["path"].as_str().unwrap().to_owned()).collect()
        };
        let bad = json!({"username": "no spaces", "quota_bytes": -1, "password": "short"});
        let answer = owner.post("/api/v1/users", &bad).await.expect(422);
        assert_eq!(paths(answer), ["username", "quota_bytes", "password"]);
        let unknown = json!({"username": "ann", "admin_id": 1});
        let answer = owner.post("/api/v1/users", &unknown).await.expect(422);
        assert_eq!(paths(answer.clone()), ["admin_id"]);
        let wrong = json!({"username": 5});
        let answer = owner.post("/api/v1/users", &wrong).await.expect(422);
        assert_eq!(answer["errors"][0], json!({"path": "username", "message": "expected a string"}));
        owner.send_raw("POST", "/api/v1/users", "application/json", "{".into()).await.problem(400);
        owner.send_raw("POST", "/api/v1/users", "text/plain", "{}".into()).await.problem(415);
        let parameters = [
            ("users?size=0", "size"),
            ("users?size=many", "size"),
            ("users?nonsense=1", "nonsense"),
            ("users:export?format=", "format"),
            ("assignments?node_id=ny", "node_id"),
        ];
        for (query, path) in parameters {
            let answer = owner.get(&format!("/api/v1/{query}")).await.expect(422);
            assert_eq!(paths(answer), [path], "{query}");
        }
        let nowhere = json!({"name": "p", "next_plan_id": 99});
        let answer = owner.post("/api/v1/plans", &nowhere).await.expect(422);
        assert_eq!(paths(answer), ["next_plan_id"]);
        let nowhere = json!({"region_id": 99});
        let answer = owner.post("/api/v1/enrolment-tokens", &nowhere).await.expect(422);
        assert_eq!(paths(answer), ["region_id"]);
        let node = fleet.node("ny").await.0;
        let answer = owner.patch(&format!("/api/v1/nodes/{node}"), &nowhere).await.expect(422);
        assert_eq!(paths(answer), ["region_id"]);
        for (field, value) in [
            ("node_ids", json!([99])),
            ("plan_id", json!(99)),
            ("home_region_id", json!(99)),
        ] {
            let new = json!({"username": "ann", field: value});
            let answer = owner.post("/api/v1/users", &new).await.expect(422);
            assert_eq!(paths(answer), [field], "{value}");
        }
        owner.get("/api/v1/users?after=garbage").await.problem(422);
        owner.get("/api/v1/users/abc").await.problem(404);
        owner.get("/nowhere").await.problem(404);
        owner.send("PUT", "/api/v1/users", Some(&json!({}))).await.problem(405);
        fleet.stop().await;
    }

    async fn pages_miss_nothing_and_repeat_nothing_while_users_are_made(fleet) {
        let owner = fleet.owner().await;
        let make = |from: usize, to: usize| {
            let rows: Vec<Value> = (from..to)
                .map(|at| json!({"username": format!("user{:04}", (at * 7919) % 10_000)}))
                .collect();
            json!({"format": "json", "data": rows})
        };
        let report = owner.post("/api/v1/users:import", &make(0, 120)).await.expect(200);
        assert_eq!(report["created"], 120);
        let sorts = ["id", "username", "created_at", "expires_at"];
        let orders = sorts.into_iter().flat_map(|sort| [(sort, false), (sort, true)]);
        for (round, (sort, descending)) in orders.enumerate() {
            let before: Vec<i64> = ids(&owner, "/api/v1/users?size=500").await;
            let mut seen = Vec::new();
            let mut after = String::new();
            loop {
                let path = format!(
                    "/api/v1/users?size=17&sort={sort}&descending={descending}&after={after}"
                );
                let page = owner.get(&path).await.expect(200);
                seen.extend(page["items"].as_array().unwrap().iter().map(|u| u["id"].as_i64().unwrap()));
                let from = 200 + round * 100 + seen.len();
                owner.post("/api/v1/users:import", &make(from, from + 2)).await.expect(200);
                match page["next"].as_str() {
                    Some(next) => after = next.to_owned(),
                    None => break,
                }
            }
            let mut unique = seen.clone();
            unique.sort_unstable();
            unique.dedup();
            assert_eq!(unique.len(), seen.len(), "{sort} {descending}: something came twice");
            assert!(before.iter().all(|id| unique.contains(id)), "{sort} {descending}: missed");
        }
        fleet.stop().await;
    }

    async fn a_search_finds_letters_not_patterns(fleet) {
        let owner = fleet.owner().await;
        for name in ["Alice_1", "alice-2", "bob%"] {
            let status = owner.post("/api/v1/users", &json!({"username": name})).await.status;
            assert_eq!(status, if name.contains('%') { 422 } else { 201 });
        }
        let found = |search: &'static str| {
            let owner = owner.clone();
            async move { ids(&owner, &format!("/api/v1/users?search={search}")).await.len() }
        };
        assert_eq!(found("ALICE").await, 2);
        assert_eq!(found("e_1").await, 1);
        assert_eq!(found("%25").await, 0);
        assert_eq!(found("'%20or%201=1%20--").await, 0);
        fleet.stop().await;
    }

    async fn a_repeated_request_gets_the_first_answer(fleet) {
        let owner = fleet.owner().await;
        let keyed = owner.clone().with("idempotency-key", "k-1");
        let new = json!({"username": "ann"});
        let first = keyed.post("/api/v1/users", &new).await;
        let again = keyed.post("/api/v1/users", &new).await;
        assert_eq!((again.status, again.header("idempotency-replayed")), (201, "true"));
        assert_eq!(again.header("etag"), first.header("etag"));
        assert_eq!(again.body, first.body);
        let other = json!({"username": "bob"});
        assert_eq!(keyed.post("/api/v1/users", &other).await.problem(422), "idempotency_mismatch");
        // A refused request gives its key back.
        let keyed = owner.clone().with("idempotency-key", "k-2");
        keyed.post("/api/v1/users", &json!({"username": "not ok"})).await.problem(422);
        keyed.post("/api/v1/users", &other).await.expect(201);
        // Keys belong to an administrator.
        let ann = fleet.as_role("ann", "operator").await.with("idempotency-key", "k-2");
        assert_eq!(ann.post("/api/v1/users", &other).await.problem(409), "duplicate");
        fleet.clock.advance(Duration::from_secs(86_401));
        assert_eq!(ids(&fleet.owner().await, "/api/v1/users").await.len(), 2);
        fleet.stop().await;
    }

    async fn a_kept_answer_is_for_who_may_do_what_was_asked(fleet) {
        let owner = fleet.owner().await;
        let token = |name: &'static str, scopes: Value| {
            let owner = owner.clone();
            let client = fleet.client().with("idempotency-key", "job");
            async move {
                let new = json!({"name": name, "scopes": scopes});
                let made = owner.post("/api/v1/api-tokens", &new).await.expect(201);
                client.with("authorization", &format!("Bearer {}", made["token"].as_str().unwrap()))
            }
        };
        let narrow = token("narrow", json!(["plans:read"])).await;
        let wide = token("wide", json!(["nodes:write", "webhooks:write", "plans:read"])).await;
        let hook = json!({"url": "https://hooks.example.org/"});
        let new_token = json!({"name": "made", "scopes": ["users:write"]});
        let asked = [
            ("/api/v1/webhooks", hook, "secret"),
            ("/api/v1/enrolment-tokens", json!({"label": "node"}), "token"),
            ("/api/v1/api-tokens", new_token, "token"),
        ];
        for (at, (path, body, secret)) in asked.into_iter().enumerate() {
            let key = format!("key-{at}");
            let with = |client: &Client| client.clone().with("idempotency-key", &key);
            let first = with(&owner).post(path, &body).await;
            let shown = first.body.clone();
            let value = first.expect(201)[secret].as_str().unwrap().to_owned();
            for other in [&narrow, &wide] {
                let refused = with(other).post(path, &body).await;
                assert!(!refused.text().contains(&value), "{path}");
                assert_eq!(refused.problem(422), "idempotency_mismatch", "{path}");
            }
            // Another session of the same person is no other.
            let again = with(&fleet.owner().await).post(path, &body).await;
            assert_eq!((again.status, again.body), (201, shown), "{path}");
        }

        // A token asks for its own again, and no other of the same administrator.
        let label = json!({"label": "by a token"});
        let first = wide.post("/api/v1/enrolment-tokens", &label).await;
        assert_eq!(first.status, 201);
        assert_eq!(wide.post("/api/v1/enrolment-tokens", &label).await.body, first.body);
        let refused = narrow.post("/api/v1/enrolment-tokens", &label).await;
        assert_eq!(refused.problem(422), "idempotency_mismatch");
        // Nor gets one without the right further with a key that is free.
        let free = narrow.with("idempotency-key", "free");
        assert_eq!(free.post("/api/v1/enrolment-tokens", &label).await.status, 403);

        let ann = fleet.as_role("ann", "operator").await.with("idempotency-key", "ann");
        let made = ann.post("/api/v1/enrolment-tokens", &label).await.expect(201);
        let me = ann.get("/api/v1/auth/me").await.expect(200)["id"].clone();
        owner.patch(&format!("/api/v1/admins/{me}"), &json!({"role": "support"})).await.expect(200);
        let ann = fleet.client().log_in("ann", OWN_PASSWORD).await.with("idempotency-key", "ann");
        let refused = ann.post("/api/v1/enrolment-tokens", &label).await;
        assert!(!refused.text().contains(made["token"].as_str().unwrap()));
        assert_eq!(refused.problem(422), "idempotency_mismatch");
        fleet.stop().await;
    }

    async fn a_file_is_made_again_for_a_repeated_request(fleet) {
        let owner = fleet.owner().await.with("idempotency-key", "nightly");
        let secret = json!({"passphrase": "a passphrase for backups"});
        let mut files = Vec::new();
        for _ in 0..2 {
            let file = owner.post("/api/v1/backups", &secret).await;
            assert_eq!((file.status, file.headers.contains_key("idempotency-replayed")), (200, false));
            files.push(file.body);
        }
        // Sealed anew: not the first one out of the store.
        assert!(files[0] != files[1] && files[0].len() > 1_000);
        fleet.stop().await;
    }

    async fn an_import_makes_nobody_whom_it_does_not_understand(fleet) {
        let owner = fleet.owner().await;
        let data = json!({"users": [
            {"username": "ann", "status": "active"},
            {"username": "bob", "status": "banned"},
            {"username": "cy", "status": "on_hold", "on_hold_expire_duration": 0},
            {"username": "dee", "status": "on_hold"},
            {"username": "eve", "status": "on_hold", "on_hold_expire_duration": 60},
        ]});
        let import = json!({"format": "marzban", "data": data});
        let report = owner.post("/api/v1/users:import", &import).await.expect(200);
        let hold = "who is on_hold has a time from the first connection on";
        assert_eq!((&report["created"], &report["failed"]), (&json!(2), &json!([
            {"path": "users[1].status", "message": "there is no status \"banned\""},
            {"path": "users[2].on_hold_expire_duration", "message": hold},
            {"path": "users[3].on_hold_expire_duration", "message": hold},
        ])));
        let import = json!({"format": "csv", "data": "username,note\nfay,one\ngus,\"two\nhal,three\n"});
        let refused = owner.post("/api/v1/users:import", &import).await.expect(422);
        assert_eq!(refused["errors"][0], json!({"path": "data", "message": "line 3: a quote is not closed"}));
        let users = owner.get("/api/v1/users").await.expect(200);
        let names: Vec<_> = users["items"].as_array().unwrap().iter().map(|user| user["username"].as_str().unwrap()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        fleet.stop().await;
    }

    async fn a_row_of_an_import_that_is_of_the_wrong_type_fails_alone(fleet) {
        let owner = fleet.owner().await;
        let import = async |format: &str, data: Value| {
            let import = json!({"format": format, "data": data});
            let report = owner.post("/api/v1/users:import", &import).await.expect(200);
            let paths = |part: &str| -> Vec<String> {
                let issues = report[part].as_array().unwrap().iter();
                issues.map(|issue| issue["path"].as_str().unwrap().to_owned()).collect()
            };
            (report["created"].as_u64().unwrap(), paths("failed"), paths("ignored"))
        };
        let marzban = json!({"users": [
            {"username": "m0", "data_limit": 1.5e9, "expire": 1_900_000_000.0},
            {"username": "m1", "data_limit": 1.5},
            {"username": "m2", "data_limit": "lots"},
            {"username": 3},
            {"data_limit": 4},
            ["m5"],
            {"username": "m6", "data_limit": -1},
            {"username": "m7", "expire": -1},
            {"username": "m8", "status": "on_hold", "on_hold_expire_duration": 60, "on_hold_timeout": "2030-01-01T00:00:00"},
        ]});
        let (created, failed, ignored) = import("marzban", marzban).await;
        let want = [
            "users[1].data_limit", "users[2].data_limit", "users[3].username", "users[4]", "users[5]",
            "users[6].data_limit", "users[7].expire",
        ];
        assert_eq!((created, &failed[..], &ignored[..]), (2, &want.map(str::to_owned)[..], &["users[8].on_hold_timeout".to_owned()][..]));
        let clients = json!([
            {"email": "x0", "expiryTime": 1.7e12, "totalGB": 2e9},
            {"email": "x1", "expiryTime": "never"},
            {"email": "x2", "limitIp": -1},
            {"email": "x3", "reset": -4},
            {"email": "x4", "totalGB": -1},
            {"email": "x5", "enable": "yes"},
            {"email": "x6", "comment": null, "limitIp": 2},
            7,
        ]);
        let settings = json!({"clients": clients}).to_string();
        let (created, failed, _) = import("3x-ui", json!([{"settings": settings}])).await;
        let want = [
            "users[1].expiryTime", "users[2].limitIp", "users[3].reset", "users[4].totalGB", "users[5].enable", "users[7]",
        ];
        assert_eq!((created, failed), (2, want.map(str::to_owned).to_vec()));
        let mut csv = "username,quota_bytes,used_bytes,expires_at,hold_duration_s\n".to_owned();
        for row in ["c0,1.5E+09,,,", "c1,x,,,", "c2,,-1,,", "c3,,,soon,", "c4,,,,-1", "c5,-5,9,,", "c6,5,,,"] {
            csv.push_str(row);
            csv.push('\n');
        }
        let (created, failed, _) = import("csv", json!(csv)).await;
        let want = [
            "users[1].quota_bytes", "users[2].used_bytes", "users[3].expires_at", "users[4].hold_duration_s",
            "users[5].quota_bytes",
        ];
        assert_eq!((created, failed), (2, want.map(str::to_owned).to_vec()));
        let ours = json!([
            {"username": "j0", "quota_bytes": 1.5e9},
            {"username": "j1", "quota_bytes": "x"},
            {"username": "j2", "tags": "a"},
            {"username": "j3", "expires_at": 5},
            {"username": "j4", "up_bytes_per_s": 1023},
            "j5",
            // As text in text it passes by what looks at the body.
            {"username": "j6", "note": "a\0b"},
            {"username": "j7", "tags": ["a\0b"]},
        ]);
        let (created, failed, _) = import("json", json!(ours.to_string())).await;
        let want = [
            "users[1].quota_bytes", "users[2].tags", "users[3].expires_at", "users[4].up_bytes_per_s", "users[5]",
            "users[6].note", "users[7].tags",
        ];
        assert_eq!((created, failed), (1, want.map(str::to_owned).to_vec()));
        let users = owner.get("/api/v1/users").await.expect(200);
        let limits: Vec<_> = users["items"].as_array().unwrap().iter()
            .map(|user| (user["username"].as_str().unwrap(), user["quota_bytes"].as_u64()))
            .collect();
        assert_eq!(limits, [
            ("m0", Some(1_500_000_000)), ("m8", None), ("x0", Some(2_000_000_000)), ("x6", None), ("c0", Some(1_500_000_000)),
            ("c6", Some(5)), ("j0", Some(1_500_000_000)),
        ]);
        fleet.stop().await;
    }

    async fn rates_that_move_nothing_are_refused_and_old_ones_stay(fleet) {
        let owner = fleet.owner().await;
        let execute = async |sql: &'static str| match fleet.master.store().db() {
            Db::Pg(pool) => drop(sqlx::query(sql).execute(pool).await.unwrap()),
            Db::Sqlite { write, .. } => drop(sqlx::query(sql).execute(write).await.unwrap()),
        };
        let name = |of: &str| if of == "plans" { "name" } else { "username" };
        for of in ["users", "plans"] {
            let path = format!("/api/v1/{of}");
            for field in ["up_bytes_per_s", "down_bytes_per_s"] {
                for rate in [1, 1_023] {
                    let answer = owner.post(&path, &json!({name(of): "a", field: rate})).await.expect(422);
                    assert_eq!(answer["errors"][0]["path"], field, "{answer}");
                }
            }
            let new = json!({name(of): "a", "up_bytes_per_s": 1_024, "down_bytes_per_s": 1_024});
            let made = owner.post(&path, &new).await.expect(201);
            // As versions before left it.
            execute(match of {
                "users" => "update users set up_bytes_per_s = 500",
                _ => "update plans set up_bytes_per_s = 500",
            }).await;
            let path = format!("{path}/{}", made["id"]);
            owner.patch(&path, &json!({"max_devices": 2})).await.expect(200);
            let same = json!({"max_devices": 3, "up_bytes_per_s": 500, "down_bytes_per_s": 2_000});
            assert_eq!(owner.patch(&path, &same).await.expect(200)["up_bytes_per_s"], 500);
            for change in [json!({"up_bytes_per_s": 501}), json!({"down_bytes_per_s": 500})] {
                let answer = owner.patch(&path, &change).await.expect(422);
                assert_eq!(answer["errors"][0]["path"], *change.as_object().unwrap().keys().next().unwrap(), "{answer}");
            }
            let change = json!({"up_bytes_per_s": null, "down_bytes_per_s": 1_024});
            owner.patch(&path, &change).await.expect(200);
        }
        let mut grpc = crate::grpc::connect(&fleet).await;
        let new = pb::CreateUserRequest { username: "b".into(), up_bytes_per_s: Some(1_023), ..Default::default() };
        let of_user = grpc.create_user(crate::grpc::ask(&owner, new)).await.unwrap_err();
        let plan = pb::Plan { name: "b".into(), down_bytes_per_s: 1_023, ..Default::default() };
        let new = pb::CreatePlanRequest { plan: Some(plan), ..Default::default() };
        let of_plan = grpc.create_plan(crate::grpc::ask(&owner, new)).await.unwrap_err();
        for (refused, field) in [(of_user, "up_bytes_per_s"), (of_plan, "plan.down_bytes_per_s")] {
            assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
            assert!(refused.message().contains(&format!("; {field}: ")), "{refused}");
        }
        fleet.stop().await;
    }

    async fn an_import_tells_what_it_leaves_out(fleet) {
        let owner = fleet.owner().await;
        let import = |plan: Value| json!({"format": "marzban", "plan_id": plan, "data": {"users": [
            {"username": "ann", "data_limit": 100, "data_limit_reset_strategy": "no_reset"},
            {"username": "bob", "data_limit": 100, "data_limit_reset_strategy": "month"},
        ]}});
        let dry = "/api/v1/users:import?dry_run=true";
        let report = owner.post(dry, &import(Value::Null)).await.expect(200);
        assert_eq!(report["created"], 2);
        let message = "month: a quota starts anew by its plan; import with a plan_id";
        let path = "users[1].data_limit_reset_strategy";
        assert_eq!(report["ignored"], json!([{"path": path, "message": message}]));
        let plan = json!({"name": "monthly", "quota_bytes": 100, "period": "month"});
        let plan = owner.post("/api/v1/plans", &plan).await.expect(201)["id"].clone();
        let report = owner.post(dry, &import(plan)).await.expect(200);
        assert_eq!((&report["created"], &report["ignored"]), (&json!(2), &json!([])));
        fleet.stop().await;
    }

    async fn of_equal_requests_at_once_one_acts(fleet) {
        let owner = fleet.owner().await.with("idempotency-key", "same");
        let new = json!({"label": "node"});
        let requests = (0..10).map(|_| owner.post("/api/v1/enrolment-tokens", &new));
        let answers = futures_util::future::join_all(requests).await;
        assert!(answers.iter().all(|answer| matches!(answer.status, 201 | 409)));
        let tokens = owner.get("/api/v1/enrolment-tokens").await.expect(200);
        assert_eq!(tokens["items"].as_array().unwrap().len(), 1);
        fleet.stop().await;
    }

    async fn a_plan_changes_its_users_nodes_and_stays_while_it_is_used(fleet) {
        let owner = fleet.owner().await;
        let node = fleet.node("ny").await;
        let plan = json!({"name": "basic", "quota_bytes": 100, "period": "month"});
        let plan = owner.post("/api/v1/plans", &plan).await.expect(201);
        let path = format!("/api/v1/plans/{}", plan["id"]);
        let user = json!({"username": "ann", "plan_id": plan["id"], "node_ids": [node.0]});
        owner.post("/api/v1/users", &user).await.expect(201);
        let node_path = format!("/api/v1/nodes/{node}");
        let before = owner.get(&node_path).await.expect(200)["desired_rev"].as_i64();
        owner.patch(&path, &json!({"quota_bytes": 200})).await.expect(200);
        let after = owner.get(&node_path).await.expect(200)["desired_rev"].as_i64();
        assert!(after > before, "{before:?} {after:?}");
        assert_eq!(owner.delete(&path).await.problem(409), "reference");
        owner.patch(&path, &json!({"period": "fortnight"})).await.problem(422);
        fleet.stop().await;
    }

    async fn a_plan_ends_the_access_of_who_is_given_it(fleet) {
        let owner = fleet.owner().await;
        let plan = async |name: &str, days: Value| {
            let plan = json!({"name": name, "duration_days": days});
            owner.post("/api/v1/plans", &plan).await.expect(201)["id"].clone()
        };
        let (month, week) = (plan("month", json!(30)).await, plan("week", json!(7)).await);
        let free = plan("free", Value::Null).await;
        let user = async |name: &str, more: Value| {
            let mut user = json!({"username": name});
            user.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            owner.post("/api/v1/users", &user).await.expect(201)
        };
        let days = |user: &Value| {
            let at = |text: &str| {
                time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).unwrap()
            };
            let given = at(user["updated_at"].as_str().unwrap());
            user["expires_at"].as_str().map(|end| (at(end) - given).as_seconds_f64() / 86_400.0)
        };
        let ann = user("ann", json!({"plan_id": month})).await;
        assert_eq!(days(&ann), Some(30.0));
        assert_eq!(days(&user("bob", json!({"plan_id": free})).await), None);
        let own = json!({"plan_id": month, "expires_at": "2090-01-01T00:00:00Z"});
        assert_eq!(user("cyd", own).await["expires_at"], "2090-01-01T00:00:00Z");
        let held = user("dan", json!({"plan_id": month, "hold_duration_s": 60})).await;
        assert_eq!((&held["status"], days(&held)), (&json!("on_hold"), None));
        // Another plan begins anew; the same one does not.
        let path = format!("/api/v1/users/{}", ann["id"]);
        assert_eq!(days(&owner.patch(&path, &json!({"plan_id": week})).await.expect(200)), Some(7.0));
        let set = json!({"plan_id": week, "expires_at": "2090-01-01T00:00:00Z"});
        owner.patch(&path, &set).await.expect(200);
        let kept = owner.patch(&path, &json!({"plan_id": week})).await.expect(200);
        assert_eq!(kept["expires_at"], "2090-01-01T00:00:00Z");
        let no_plan = owner.patch(&path, &json!({"plan_id": 999})).await.expect(422);
        assert_eq!(no_plan["errors"][0]["path"], "plan_id", "{no_plan}");
        fleet.stop().await;
    }

    async fn an_import_is_made_as_a_whole_or_not_at_all(fleet) {
        let owner = fleet.owner().await;
        let rows: Vec<_> = (0..450).map(|at| json!({"username": format!("user-{at}")})).collect();
        let mut broken = rows.clone();
        broken[449]["plan_id"] = json!(77);
        let import = |data: &Vec<Value>| json!({"format": "json", "data": data});
        for path in ["/api/v1/users:import?dry_run=true", "/api/v1/users:import"] {
            let refused = owner.post(path, &import(&broken)).await.expect(422);
            assert_eq!(refused["errors"][0]["path"], "users[449].plan_id", "{refused}");
            assert_eq!(owner.get("/api/v1/users").await.expect(200)["items"], json!([]));
        }
        let dry = owner.post("/api/v1/users:import?dry_run=true", &import(&rows)).await.expect(200);
        assert_eq!(dry["created"], 450);
        assert_eq!(owner.get("/api/v1/users").await.expect(200)["items"], json!([]));
        assert_eq!(owner.post("/api/v1/users:import", &import(&rows)).await.expect(200)["created"], 450);
        // Again: not all are named, but all are counted.
        let mut rows = rows;
        rows[0]["quota_bytes"] = json!(-1);
        let report = owner.post("/api/v1/users:import", &import(&rows)).await.expect(200);
        let counts = json!({"skipped": 449, "renamed": 0, "failed": 1, "ignored": 0});
        assert_eq!((&report["created"], &report["counts"]), (&json!(0), &counts));
        assert_eq!(report["skipped"].as_array().unwrap().len(), 200);
        fleet.stop().await;
    }

    async fn bodies_are_objects_with_names(fleet) {
        let owner = fleet.owner().await;
        for (path, body) in [
            ("/api/v1/plans", json!(["basic"])),
            ("/api/v1/admins", json!(["eve", "correct horse battery", "owner"])),
            ("/api/v1/users", json!([])),
        ] {
            owner.post(path, &body).await.problem(422);
        }
        fleet.stop().await;
    }

    async fn configurations_are_checked_kept_compared_and_taken_back(fleet) {
        let owner = fleet.owner().await;
        let node = fleet.node("ny").await;
        let path = "/api/v1/configs/fleet/0";
        let put = |body: Value| json!({"body": body, "message": "m"});
        let obfs = json!({"salamander": {"password": "canary-obfs-password"}});
        let one = owner.put(path, &put(json!({"speed_test": true, "obfs": obfs}))).await.expect(200);
        assert_eq!(one["body"]["obfs"]["salamander"]["password"], "***");
        // What reads *** stays what it is.
        let two = put(json!({"speed_test": false, "obfs": one["body"]["obfs"]}));
        let two = owner.put(path, &two).await.expect(200);
        let bad = owner.put(path, &put(json!({"up_bytes_per_s": "fast"}))).await.expect(422);
        assert!(bad["errors"][0]["path"].as_str().unwrap().contains("up_bytes_per_s"), "{bad}");
        let stale = json!({"body": {}, "parent": one["id"]});
        assert_eq!(owner.put(path, &stale).await.problem(412), "stale_revision");
        let dry = json!({"body": {"speed_test": true}, "dry_run": true});
        owner.put(path, &dry).await.expect(204);
        let reserved = put(json!({"obfs": {"salamander": {"password": "sealed:a-password-of-16"}}}));
        let refused = owner.put(path, &reserved).await.expect(422);
        assert_eq!(refused["errors"][0]["path"], "body", "{refused}");
        let diff = format!("/api/v1/revisions/{}/diff?to={}", one["id"], two["id"]);
        let diff = owner.get(&diff).await.expect(200);
        assert_eq!(diff["items"], json!([{"path": "speed_test", "before": true, "after": false}]));
        let back = format!("/api/v1/revisions/{}/rollback", one["id"]);
        let back = owner.post(&back, &Value::Null).await.expect(200);
        assert!(back["id"].as_i64() > two["id"].as_i64());
        assert_eq!(back["body"], one["body"]);
        let listed = owner.get("/api/v1/configs/fleet/0/revisions?size=2").await.expect(200);
        assert_eq!(listed["items"].as_array().unwrap().len(), 2);
        assert!(listed["next"].is_string());
        owner.put("/api/v1/configs/node/999999", &put(json!({}))).await.problem(404);
        let own = format!("/api/v1/configs/node/{node}");
        owner.put(&own, &put(json!({"speed_test": false}))).await.expect(200);
        fleet.stop().await;
    }

    async fn a_new_obfuscation_leaves_the_old_one_for_a_day(fleet) {
        let owner = fleet.owner().await;
        let path = "/api/v1/configs/fleet/0";
        let put = async |body: Value| {
            owner.put(path, &json!({"body": body})).await.expect(200)
        };
        let obfs = |password: &str| json!({"salamander": {"password": password}});
        // No node yet: nobody to leave anything to.
        let first = put(json!({"obfs": obfs("first-password-1234")})).await;
        assert_eq!(first["body"].get("previous_obfs"), None);
        fleet.node("ny").await;
        let second = put(json!({"obfs": obfs("second-password-1234")})).await;
        // The clock stands at 2027-01-15 08:00.
        let window = json!({"obfs": obfs("***"), "until": 1_800_086_400_000_i64});
        assert_eq!(second["body"]["previous_obfs"], window);
        // Another change keeps it open, and does not lengthen it.
        fleet.clock.advance(Duration::from_secs(3_600));
        let owner = fleet.owner().await;
        let put = async |body: Value| {
            owner.put(path, &json!({"body": body})).await.expect(200)
        };
        let third = put(json!({"obfs": obfs("***"), "speed_test": true})).await;
        assert_eq!(third["body"]["previous_obfs"], window);
        // A rollback is a change like others.
        let back = format!("/api/v1/revisions/{}/rollback", first["id"]);
        let back = owner.post(&back, &Value::Null).await.expect(200);
        let window = json!({"obfs": obfs("***"), "until": 1_800_090_000_000_i64});
        assert_eq!(back["body"]["previous_obfs"], window);
        // Who wants no window says so: the old password is known to somebody.
        let none = put(json!({"obfs": obfs("leaked-no-more-1234"), "previous_obfs": null})).await;
        assert_eq!(none["body"]["previous_obfs"], Value::Null);
        let plain = put(json!({})).await;
        assert_eq!(plain["body"]["previous_obfs"]["obfs"], obfs("***"));
        // A time that is over is a mistake, but for one that comes back with the rest of the body.
        let over = json!({"body": {"previous_obfs": {"obfs": obfs("some-password-1234"), "until": 1}}});
        let answer = owner.put(path, &over).await.expect(422);
        assert_eq!(answer["errors"][0]["path"], "body.previous_obfs.until");
        fleet.clock.advance(Duration::from_secs(2 * 86_400));
        let owner = fleet.owner().await;
        let mut same = owner.get(path).await.expect(200)["body"].clone();
        same["speed_test"] = json!(true);
        owner.put(path, &json!({"body": same})).await.expect(200);
        fleet.stop().await;
    }

    async fn a_nodes_own_plain_window_is_not_filled_with_the_fleets(fleet) {
        let owner = fleet.owner().await;
        let node = fleet.node("ny").await;
        let own = format!("/api/v1/configs/node/{node}");
        let obfs = |password: &str| json!({"salamander": {"password": password}});
        let put = async |path: &str, body: Value| {
            owner.put(path, &json!({"body": body})).await.expect(200)
        };
        put(&own, json!({"obfs": null})).await;
        put("/api/v1/configs/fleet/0", json!({"obfs": obfs("fleet-password-1234")})).await;
        put("/api/v1/configs/fleet/0", json!({"obfs": obfs("newer-password-1234")})).await;
        // From plain to one of its own: for a day plain comes in beside it, not the fleet's.
        let body = put(&own, json!({"obfs": obfs("nodes-password-1234")})).await["body"].clone();
        let window = &body["previous_obfs"];
        assert!(window.as_object().unwrap().contains_key("obfs"), "{window}");
        assert_eq!(window["obfs"], Value::Null);
        fleet.stop().await;
    }

    async fn no_length_and_no_end_leaves_the_years_that_can_be_written(fleet) {
        let owner = fleet.owner().await;
        let refused = async |path: &str, body: Value, field: &str| {
            let answer = owner.post(path, &body).await.expect(422);
            assert_eq!(answer["errors"][0]["path"], field, "{answer}");
        };
        for days in [36_501, 1_000_000_000_000_000_000_i64] {
            refused("/api/v1/plans", json!({"name": "p", "duration_days": days}), "duration_days").await;
        }
        let plan = json!({"name": "p", "duration_days": 36_500});
        let plan = owner.post("/api/v1/plans", &plan).await.expect(201);
        let change = json!({"duration_days": 36_501});
        let answer = owner.patch(&format!("/api/v1/plans/{}", plan["id"]), &change).await.expect(422);
        assert_eq!(answer["errors"][0]["path"], "duration_days");
        let hold = json!({"username": "x", "hold_duration_s": 3_153_600_001_u32});
        refused("/api/v1/users", hold, "hold_duration_s").await;
        let late = json!({"username": "x", "expires_at": "9999-12-31T23:59:59-12:00"});
        refused("/api/v1/users", late, "expires_at").await;
        let hold = json!({"username": "ann", "hold_duration_s": 3_153_600_000_u32});
        owner.post("/api/v1/users", &hold).await.expect(201);
        let late = json!({"username": "bob", "expires_at": "9999-12-31T23:59:59.999Z"});
        owner.post("/api/v1/users", &late).await.expect(201);
        let given = json!({"username": "cyd", "plan_id": plan["id"]});
        let given = owner.post("/api/v1/users", &given).await.expect(201);
        assert_eq!(given["expires_at"], "2126-12-22T08:00:00Z");
        let until = json!({"body": {"previous_obfs": {"until": 253_402_300_800_000_i64}}});
        let answer = owner.put("/api/v1/configs/fleet/0", &until).await.expect(422);
        assert_eq!(answer["errors"][0]["path"], "body: previous_obfs.until");

        let marzban = json!({"users": [
            {"username": "m0", "expire": 253_402_300_800_i64},
            {"username": "m1", "status": "on_hold", "on_hold_expire_duration": 5_000_000_000_i64},
        ]});
        let import = json!({"format": "marzban", "data": marzban});
        let report = owner.post("/api/v1/users:import", &import).await.expect(200);
        let failed: Vec<_> = report["failed"].as_array().unwrap().iter().map(|it| it["path"].clone()).collect();
        assert_eq!(failed, ["users[0].expires_at", "users[1].hold_duration_s"], "{report}");
        // What goes out comes in again.
        let data = owner.get("/api/v1/users:export").await.expect(200);
        let import = json!({"format": "json", "data": data});
        let report = owner.post("/api/v1/users:import", &import).await.expect(200);
        assert_eq!((&report["failed"], &report["skipped"]), (&json!([]), &json!(["ann", "bob", "cyd"])));
        fleet.stop().await;
    }

    async fn who_is_on_hold_gets_no_end_in_the_past(fleet) {
        let owner = fleet.owner().await;
        let user = json!({"username": "ann", "hold_duration_s": 86_400});
        let user = owner.post("/api/v1/users", &user).await.expect(201);
        let path = format!("/api/v1/users/{}", user["id"]);
        let never = json!({"username": "bob", "hold_duration_s": 9, "expires_at": "2020-01-01T00:00:00Z"});
        let answer = owner.post("/api/v1/users", &never).await.expect(422);
        assert_eq!(answer["errors"][0]["path"], "expires_at", "{answer}");
        for end in ["2020-01-01T00:00:00Z", "2027-01-15T08:00:00Z"] {
            let answer = owner.patch(&path, &json!({"expires_at": end})).await.expect(422);
            assert_eq!(answer["errors"][0]["path"], "expires_at", "{answer}");
        }
        assert_eq!(owner.get(&path).await.expect(200)["expires_at"], Value::Null);
        let change = json!({"expires_at": "2028-01-01T00:00:00Z"});
        assert_eq!(owner.patch(&path, &change).await.expect(200)["status"], "on_hold");
        // Who is taken off hold with it is over, and shown as such.
        let change = json!({"expires_at": "2020-01-01T00:00:00Z", "status": "active"});
        assert_eq!(owner.patch(&path, &change).await.expect(200)["status"], "expired");
        fleet.stop().await;
    }

    async fn nodes_are_cordoned_revoked_and_asked_when_away(fleet) {
        let owner = fleet.owner().await;
        let node = fleet.node("ny").await;
        let path = format!("/api/v1/nodes/{node}");
        let state = json!({"state": "draining", "drain_deadline": "2030-01-01T00:00:00Z"});
        let drained = owner.put(&format!("{path}/state"), &state).await.expect(200);
        assert_eq!(drained["desired_state"], "draining");
        let odd = json!({"state": "active", "drain_deadline": "2030-01-01T00:00:00Z"});
        owner.put(&format!("{path}/state"), &odd).await.problem(422);
        owner.patch(&path, &json!({"public_host": "not a host"})).await.problem(422);
        let user = json!({"username": "ann", "node_ids": [node.0]});
        let user = owner.post("/api/v1/users", &user).await.expect(201)["id"].clone();
        let kick = owner.post(&format!("/api/v1/users/{user}/kick"), &Value::Null).await.expect(200);
        assert_eq!(kick, json!({"reached": [], "unreachable": [node.0], "connections": 0}));
        let (revoke, reason) = (format!("{path}/certificates/revoke"), json!({"reason": "gone"}));
        let revoked = owner.post(&revoke, &reason).await.expect(200);
        assert_eq!(revoked["observed_state"], "revoked");
        fleet.stop().await;
    }
}

async fn ids(client: &Client, path: &str) -> Vec<i64> {
    let page = client.get(path).await.expect(200);
    page["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["id"].as_i64().unwrap())
        .collect()
}
