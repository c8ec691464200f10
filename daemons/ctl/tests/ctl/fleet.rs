//! Nodes, regions, plans, assignments, traffic, sessions and alerts.

use hy2_master_sdk::domain::{NodeId, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::Fleet;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regions_are_named_by_their_codes_wherever_one_is_wanted() {
    let fleet = Fleet::start().await;
    let ctl = fleet.owner();
    let made = ctl.json(&[
        "regions",
        "create",
        "us-east",
        "--name",
        "New York",
        "--location",
        "40.7,-74",
    ]);
    assert_eq!(
        (&made["code"], &made["name"], &made["latitude"]),
        (&json!("us-east"), &json!("New York"), &json!(40.7))
    );
    let south = ctl.json(&["regions", "create", "au", "--location", "-33.9,151.2"]);
    assert_eq!(
        (&south["name"], south["latitude"].as_f64()),
        (&json!("au"), Some(-33.9))
    );
    let bad = ctl.run(&["regions", "create", "Nowhere"]);
    assert_eq!(bad.code, 5);
    assert!(bad.stderr.contains("code"), "{}", bad.stderr);
    assert_eq!(
        ctl.run(&["regions", "create", "x", "--location", "up"])
            .code,
        2
    );
    let table = ctl.run(&["regions", "list"]).ok();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(
        lines[0].contains("CODE") && lines[1].contains("au") && lines[2].contains("New York"),
        "{table}"
    );
    let id = made["id"].as_i64().unwrap();
    for which in ["us-east", &id.to_string()] {
        assert_eq!(ctl.json(&["regions", "show", which]), made);
    }
    let listed = ctl.json(&["regions", "list"]);
    assert_eq!(listed["items"][1], made);

    let token = ctl.json(&["nodes", "token", "create", "--region", "us-east"]);
    assert_eq!(token["region_id"], id);
    fleet.node("ny").await;
    let region = |args: &[&str]| ctl.json(args)["region_id"].as_i64();
    let node = ["nodes", "update", "ny", "--region"];
    assert_eq!(region(&[&node[..], &["us-east"]].concat()), Some(id));
    assert_eq!(region(&[&node[..], &["none"]].concat()), None);
    assert_eq!(region(&[&node[..], &[&id.to_string()]].concat()), Some(id));
    let home = |args: &[&str]| ctl.json(args)["home_region_id"].as_i64();
    assert_eq!(
        home(&["users", "create", "ann", "--region", "us-east"]),
        Some(id)
    );
    assert_eq!(home(&["users", "create", "bob"]), None);
    let unknown = ctl.run(&["users", "update", "bob", "--region", "mars"]);
    assert_eq!(unknown.code, 4);
    assert!(
        unknown.stderr.contains("there is no region named mars"),
        "{}",
        unknown.stderr
    );
    assert_eq!(
        home(&["users", "update", "bob", "--region", "us-east"]),
        Some(id)
    );
    assert_eq!(home(&["users", "update", "bob", "--region", "none"]), None);

    let changed = ctl.json(&[
        "regions",
        "update",
        "us-east",
        "--recode",
        "us-2",
        "--location",
        "none",
    ]);
    assert_eq!(
        (&changed["code"], &changed["name"], &changed["longitude"]),
        (&json!("us-2"), &json!("New York"), &Value::Null)
    );
    assert_eq!(ctl.run(&["regions", "update", "us-2"]).code, 2);
    assert_eq!(
        ctl.run(&["regions", "delete", "us-2"]).code,
        2,
        "asks first"
    );
    let used = ctl.run(&["--yes", "regions", "delete", "us-2"]);
    assert_eq!(used.code, 5, "{}", used.stderr);
    assert!(
        used.stderr
            .contains("1 node, 1 user, 1 open enrolment token"),
        "{}",
        used.stderr
    );
    assert_eq!(
        ctl.run(&["--yes", "regions", "delete", "au"]).ok(),
        "region au is deleted\n"
    );
    assert_eq!(ctl.run(&["regions", "show", "au"]).code, 4);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_enrol_serve_and_go() {
    let fleet = Fleet::start().await;
    let ctl = fleet.owner();
    let nothing = ctl.run(&["nodes", "list"]);
    assert_eq!(
        (nothing.stderr.as_str(), nothing.ok().as_str()),
        ("nothing\n", "")
    );
    let made = ctl.json(&[
        "nodes",
        "token",
        "create",
        "--label",
        "fra",
        "--valid",
        "20m",
        "--bind",
        "192.0.2.0/24",
        "--tag",
        "eu",
    ]);
    assert!(made["ca_pin"].as_str().unwrap().starts_with("sha256:"));
    assert_eq!(
        (&made["label"], &made["bind_cidr"], &made["tags"]),
        (&json!("fra"), &json!("192.0.2.0/24"), &json!(["eu"]))
    );
    let shown = ctl.run(&["nodes", "token", "create"]).ok();
    assert!(
        shown.contains("token   ") && shown.contains("ca pin  sha256:"),
        "{shown}"
    );
    let listed = ctl.json(&["nodes", "token", "list"]);
    assert_eq!(listed["items"].as_array().unwrap().len(), 2);
    let secret = made["token"].as_str().unwrap();
    assert!(!listed.to_string().contains(secret));
    assert_eq!(
        ctl.run(&["nodes", "token", "revoke", made["id"].as_str().unwrap()])
            .code,
        0
    );
    let refused = ctl.run(&["nodes", "token", "create", "--bind", "nowhere"]);
    assert_eq!(refused.code, 5);
    assert!(refused.stderr.contains("bind_cidr"), "{}", refused.stderr);

    let berlin = fleet.node("berlin").await.to_string();
    fleet.node("paris").await;
    assert_eq!(
        ctl.json(&["nodes", "list", "--search", "ber"])["items"][0]["id"].to_string(),
        berlin
    );
    assert_eq!(
        ctl.json(&["nodes", "list", "--state", "offline"])["items"],
        json!([])
    );
    assert!(
        ctl.run(&["nodes", "list"])
            .ok()
            .contains("berlin.example.org")
    );
    let changed = ctl.json(&[
        "nodes",
        "update",
        "berlin",
        "--weight",
        "50",
        "--country",
        "DE",
        "--note",
        "fast",
        "--host",
        "b.example.org",
        "--port",
        "8443",
        "--capacity",
        "100",
        "--provider",
        "x",
        "--billing-multiplier",
        "1.5",
        "--tag",
        "eu",
        "--name",
        "bln",
    ]);
    assert_eq!(changed["billing_multiplier"], 1_500_000_000);
    let much = ["nodes", "update", "bln", "--billing-multiplier", "1001"];
    let refused = ctl.run(&much);
    assert_eq!(refused.code, 5);
    assert!(
        refused.stderr.contains("billing_multiplier"),
        "{}",
        refused.stderr
    );
    assert_eq!(
        (
            &changed["weight"],
            &changed["country"],
            &changed["public_host"],
            &changed["name"]
        ),
        (
            &json!(50),
            &json!("DE"),
            &json!("b.example.org"),
            &json!("bln")
        ),
    );
    let state = || ctl.json(&["nodes", "show", "bln"])["desired_state"].clone();
    assert_eq!(
        ctl.run(&["nodes", "cordon", "bln"]).ok(),
        "node bln is cordoned\n"
    );
    assert_eq!(state(), "cordoned");
    assert_eq!(ctl.run(&["nodes", "uncordon", &berlin]).code, 0);
    assert_eq!(state(), "active");
    assert_eq!(ctl.run(&["nodes", "drain", "bln"]).code, 2, "asks first");
    let draining = ctl.json(&["--yes", "nodes", "drain", "bln", "--deadline", "5m"]);
    assert_eq!(draining["desired_state"], "draining");
    assert!(draining["drain_deadline"].is_string());
    assert_eq!(
        ctl.json(&["--yes", "nodes", "disable", "bln"])["desired_state"],
        "disabled"
    );
    assert_eq!(
        ctl.json(&["nodes", "certificates", "bln"])["items"],
        json!([])
    );
    assert_eq!(
        ctl.json(&["nodes", "metrics", "bln", "--from", "2h"])["items"],
        json!([])
    );
    assert_eq!(ctl.run(&["nodes", "forfeit", "bln"]).code, 2, "asks first");
    assert_eq!(
        ctl.run(&["--yes", "nodes", "forfeit", "bln"]).ok(),
        "node bln: 0 slices are free again\n"
    );
    assert_eq!(
        ctl.json(&["--yes", "nodes", "forfeit", "bln"]),
        json!({"slices": 0})
    );
    assert_eq!(
        ctl.run(&["--yes", "nodes", "revoke", "bln", "--reason", "stolen"])
            .code,
        0
    );
    assert_eq!(
        ctl.json(&["nodes", "show", "bln"])["observed_state"],
        "revoked"
    );
    assert_eq!(ctl.run(&["nodes", "delete", "bln"]).code, 2, "asks first");
    assert_eq!(
        ctl.run(&["--yes", "nodes", "delete", "bln"]).ok(),
        "node bln is deleted\n"
    );
    let gone = ctl.run(&["nodes", "show", "bln"]);
    assert_eq!(gone.code, 4);
    assert!(gone.stderr.contains("no node named bln"), "{}", gone.stderr);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_assignments_traffic_and_sessions_are_shown_and_changed() {
    let fleet = Fleet::start().await;
    let ctl = fleet.owner();
    ctl.run(&["plans", "create", "next"]).ok();
    let plan = ctl.json(&[
        "plans",
        "create",
        "big",
        "--quota",
        "1TiB",
        "--period",
        "month",
        "--days",
        "30",
        "--devices",
        "5",
        "--connections",
        "20",
        "--up",
        "100mbps",
        "--down",
        "1gbps",
        "--nodes",
        "2",
        "--next",
        "next",
    ]);
    assert_eq!(
        (&plan["period"], &plan["down_bytes_per_s"]),
        (&json!("month"), &json!(125_000_000))
    );
    assert_eq!(ctl.json(&["plans", "show", "big"])["duration_days"], 30);
    let changed = ctl.json(&[
        "plans", "update", "big", "--rename", "huge", "--quota", "none", "--next", "none",
    ]);
    assert_eq!(
        (&changed["name"], &changed["quota_bytes"]),
        (&json!("huge"), &Value::Null)
    );
    assert_eq!(
        ctl.run(&["plans", "archive", "huge"]).ok(),
        "plan huge is archived\n"
    );
    assert_eq!(
        ctl.json(&["plans", "list"])["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        ctl.json(&["plans", "list", "--archived"])["items"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert!(ctl.run(&["plans", "show", "huge"]).ok().contains("huge"));
    assert_eq!(ctl.run(&["plans", "unarchive", "huge"]).code, 0);
    assert!(ctl.run(&["plans", "list"]).ok().contains("huge"));
    assert_eq!(
        ctl.run(&["plans", "create", "huge"]).code,
        5,
        "the name is taken"
    );
    let wrong = ctl.run(&["plans", "create", "x", "--period", "fortnight"]);
    assert_eq!(wrong.code, 5);
    assert!(wrong.stderr.contains("period"), "{}", wrong.stderr);
    assert_eq!(
        ctl.run(&["--yes", "plans", "delete", "huge"]).ok(),
        "plan huge is deleted\n"
    );

    fleet.node("berlin").await;
    fleet.node("paris").await;
    ctl.run(&["users", "create", "ann", "--node", "berlin"])
        .ok();
    let added = ctl.json(&[
        "assignments",
        "add",
        "ann",
        "paris",
        "--rank",
        "0",
        "--pinned",
    ]);
    assert_eq!(added["source"], "pinned");
    let on = |args: &[&str]| ctl.json(args)["items"].as_array().unwrap().len();
    assert_eq!(on(&["assignments", "list", "--user", "ann"]), 2);
    assert_eq!(on(&["assignments", "list", "--node", "paris"]), 1);
    assert!(ctl.run(&["assignments", "list"]).ok().contains("pinned"));
    assert_eq!(
        ctl.run(&["assignments", "remove", "ann", "paris"]).code,
        2,
        "asks first"
    );
    assert_eq!(
        ctl.run(&["--yes", "assignments", "remove", "ann", "paris"])
            .code,
        0
    );
    assert_eq!(on(&["assignments", "list", "--user", "ann"]), 1);
    assert_eq!(
        on(&["assignments", "list", "--user", "ann", "--released"]),
        2
    );

    let sums = ctl.json(&["traffic", "summary", "--user", "ann"]);
    assert_eq!(
        (&sums["tx_bytes"], &sums["rx_bytes"]),
        (&json!(0), &json!(0))
    );
    let sums = ctl.run(&[
        "traffic", "summary", "--node", "berlin", "--from", "2d", "--to", "now",
    ]);
    assert!(sums.ok().contains("tx_bytes"), "{}", sums.stderr);
    assert_eq!(
        ctl.run(&["traffic", "series", "--step", "day", "--from", "7d"])
            .code,
        0
    );
    assert_eq!(ctl.run(&["traffic", "top", "--size", "3"]).code, 0);
    assert_eq!(
        ctl.run(&["traffic", "summary", "--from", "yesterday"]).code,
        2
    );
    let wrong = ctl.run(&["traffic", "summary", "--from", "1d", "--to", "2d"]);
    assert_eq!(wrong.code, 5, "{}", wrong.stderr);

    for args in [
        &["sessions", "list"][..],
        &["sessions", "list", "--user", "ann"],
        &["sessions", "list", "--node", "berlin"],
    ] {
        let listed = ctl.json(args);
        assert_eq!(listed["items"], json!([]), "{args:?}");
    }
    let listed = ctl.json(&["sessions", "list"]);
    assert_eq!(listed["reach"]["unreachable"].as_array().unwrap().len(), 2);
    let said = ctl.run(&["sessions", "list"]);
    assert!(
        said.stderr.contains("not reached: node 1, 2"),
        "{}",
        said.stderr
    );
    assert_eq!(
        ctl.run(&["--yes", "sessions", "kick", "ann"]).ok(),
        "0 connections closed\n"
    );
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_are_listed_and_closed() {
    let fleet = Fleet::start().await;
    let ctl = fleet.owner();
    for name in ["one", "two"] {
        let node = NodeId(fleet.node(name).await);
        let store = fleet.master.store();
        let raised = store.raise_alert(node, "clock_skew", "warning", "late", Timestamp(1));
        assert!(raised.await.unwrap());
    }
    let of_one = ctl.json(&["alerts", "list", "--open", "--node", "one"]);
    assert_eq!(of_one["items"].as_array().unwrap().len(), 1);
    let id = of_one["items"][0]["id"].as_str().unwrap();
    let table = ctl.run(&["alerts", "list"]).ok();
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(
        table.contains("RULE") && table.contains("clock_skew") && table.contains("late"),
        "{table}"
    );
    let said = ctl.run(&["alerts", "close", id]).ok();
    assert_eq!(said, format!("alert {id} is closed\n"));
    let open = ctl.json(&["alerts", "list", "--open"]);
    assert_eq!(open["items"].as_array().unwrap().len(), 1);
    assert_ne!(open["items"][0]["id"], id);
    assert_eq!(ctl.run(&["alerts", "close", "../nodes"]).code, 2);
    let malformed = ctl.run(&["alerts", "close", "1"]);
    assert_eq!(malformed.code, 4);
    assert!(
        malformed.stderr.contains("id in the address is malformed"),
        "{}",
        malformed.stderr
    );
    assert_eq!(
        ctl.run(&["alerts", "close", &Uuid::nil().to_string()]).code,
        4
    );
    fleet.stop().await;
}
