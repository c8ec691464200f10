//! Users, by hand and by files.

use std::fs;

use serde_json::{Value, json};

use crate::support::Fleet;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_are_made_found_changed_and_deleted() {
    let fleet = Fleet::start().await;
    let ctl = fleet.owner();
    fleet.node("berlin").await;
    let plan = ctl.json(&[
        "plans", "create", "basic", "--quota", "10GiB", "--nodes", "1",
    ]);
    let made = ctl.json(&[
        "users",
        "create",
        "ann",
        "--plan",
        "basic",
        "--quota",
        "1.5GiB",
        "--expires",
        "2030-01-01",
        "--devices",
        "3",
        "--connections",
        "9",
        "--up",
        "8mbps",
        "--down",
        "80mbps",
        "--note",
        "first",
        "--email",
        "ann@example.org",
        "--tag",
        "a",
        "--tag",
        "b",
        "--node",
        "berlin",
    ]);
    let expected = json!({
        "username": "ann", "plan_id": plan["id"], "quota_bytes": 1_610_612_736_i64,
        "expires_at": "2030-01-01T00:00:00Z", "max_devices": 3, "max_connections": 9,
        "up_bytes_per_s": 1_000_000, "down_bytes_per_s": 10_000_000, "note": "first",
        "email": "ann@example.org", "tags": ["a", "b"], "status": "active", "chosen_password": false,
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&made[field], value, "{field}");
    }
    let id = made["id"].to_string();
    let password = fleet.file("user-password", "a-password-of-my-own");
    let bob = ctl.json(&[
        "users",
        "create",
        "bob",
        "--hold",
        "30d",
        "--password-file",
        &password,
    ]);
    assert_eq!(
        (&bob["hold_duration_s"], &bob["chosen_password"]),
        (&json!(2_592_000), &json!(true))
    );
    ctl.run(&["users", "create", "42"]).ok();

    // By id, by name, by a name of digits.
    for which in [id.as_str(), "ann"] {
        assert_eq!(ctl.json(&["users", "show", which])["username"], "ann");
    }
    assert_eq!(ctl.json(&["users", "show", "name:42"])["username"], "42");
    // Digits that are one user's id and another's name are neither.
    ctl.run(&["users", "create", &id]).ok();
    let refused = ctl.run(&["users", "delete", "-y", &id]);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("say id:"), "{}", refused.stderr);
    ctl.run(&["users", "delete", "-y", &format!("name:{id}")])
        .ok();
    assert_eq!(
        ctl.json(&["users", "show", &format!("id:{id}")])["username"],
        "ann"
    );
    let shown = ctl.run(&["users", "show", "ann"]).ok();
    assert!(
        shown.contains("80.00 Mbps") && shown.contains("1.50 GiB"),
        "{shown}"
    );

    let table = ctl.run(&["users", "list", "--search", "AN"]).ok();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 2, "{table}");
    assert!(
        lines[0].starts_with("ID") && lines[0].contains("USERNAME"),
        "{table}"
    );
    assert!(
        lines[1].contains("ann") && lines[1].contains("active"),
        "{table}"
    );
    assert!(!table.contains('\u{1b}'), "no colours off a terminal");
    let names = |args: &[&str]| -> Vec<String> {
        let listed = ctl.json(args);
        let items = listed["items"].as_array().unwrap().iter();
        items
            .map(|user| user["username"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        names(&["users", "list", "--sort", "username"]),
        ["42", "ann", "bob"]
    );
    assert_eq!(
        names(&["users", "list", "--sort", "username", "--descending"]),
        ["bob", "ann", "42"]
    );
    assert_eq!(names(&["users", "list", "--plan", "basic"]), ["ann"]);
    assert_eq!(names(&["users", "list", "--status", "on_hold"]), ["bob"]);
    let page = ctl.json(&["users", "list", "--size", "2"]);
    let next = page["next"].as_str().unwrap();
    assert_eq!(
        names(&["users", "list", "--size", "2", "--after", next]),
        ["42"]
    );
    let said = ctl.run(&["users", "list", "--size", "2"]);
    assert!(
        said.stderr.contains(&format!("--after {next}")),
        "{}",
        said.stderr
    );
    assert_eq!(names(&["users", "list", "--all"]).len(), 3);

    let changed = ctl.json(&[
        "users",
        "update",
        "ann",
        "--rename",
        "anna",
        "--quota",
        "none",
        "--expires",
        "none",
        "--plan",
        "none",
        "--tag",
        "none",
    ]);
    assert_eq!(
        (
            &changed["username"],
            &changed["quota_bytes"],
            &changed["expires_at"],
            &changed["plan_id"],
            &changed["tags"]
        ),
        (
            &json!("anna"),
            &Value::Null,
            &Value::Null,
            &Value::Null,
            &json!([])
        ),
    );
    assert_eq!(changed["max_devices"], 3, "what is not named stays");
    assert_eq!(ctl.run(&["users", "update", "anna"]).code, 2);

    assert_eq!(
        ctl.run(&["users", "disable", "anna", "bob"]).ok(),
        "2 of 2 changed\n"
    );
    assert_eq!(ctl.json(&["users", "show", "anna"])["status"], "disabled");
    assert_eq!(
        ctl.run(&["users", "enable", "anna"]).ok(),
        "1 of 1 changed\n"
    );
    assert_eq!(ctl.json(&["users", "show", "anna"])["status"], "active");
    assert_eq!(
        ctl.run(&["--yes", "users", "reset", "anna", "--reason", "gift"])
            .code,
        0
    );

    let kicked = ctl.json(&["users", "kick", "anna"]);
    assert_eq!(
        (&kicked["connections"], &kicked["unreachable"]),
        (&json!(0), &json!([1]))
    );
    let rate = ctl.run(&[
        "users",
        "rate",
        "anna",
        "--down",
        "1mbps",
        "--lasting",
        "1h",
    ]);
    assert!(rate.ok().contains("0 connections limited"));
    assert_eq!(ctl.run(&["users", "rate", "anna"]).code, 2);
    assert_eq!(ctl.json(&["users", "sessions", "anna"])["items"], json!([]));

    let link = ctl.run(&["users", "link", "anna"]).ok();
    assert!(link.starts_with("https://sub.example.org/"), "{link}");
    let drawn = ctl.run(&["users", "link", "anna", "--qr"]).ok();
    assert!(drawn.starts_with(&link) && drawn.contains('█'), "{drawn}");
    assert_eq!(
        ctl.run(&["users", "link", "anna", "--rotate"]).code,
        2,
        "asks first"
    );
    let rotated = ctl.json(&["--yes", "users", "link", "anna", "--rotate"]);
    assert_ne!(rotated["url"], link.trim());
    assert_eq!(
        ctl.run(&["--yes", "users", "rotate-credentials", "anna"])
            .code,
        0
    );

    let unconfirmed = ctl.run(&["users", "delete", "anna"]);
    assert_eq!(unconfirmed.code, 2);
    assert!(
        unconfirmed.stderr.contains("--yes"),
        "{}",
        unconfirmed.stderr
    );
    assert_eq!(
        ctl.json(&["--yes", "users", "delete", "anna", "bob"])["changed"],
        2
    );
    assert_eq!(ctl.run(&["users", "show", "anna"]).code, 4);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_come_from_files_and_go_into_files() {
    let fleet = Fleet::start().await;
    let ctl = fleet.owner();
    let csv = fleet.file(
        "a.csv",
        "username,quota_bytes\nann,1000\nbob,\nann,5\n\"bad\u{1}name,x\n",
    );
    let broken = ctl.run(&["users", "import", &csv, "--format", "csv"]);
    assert_eq!(broken.code, 5, "{}{}", broken.stdout, broken.stderr);
    let csv = fleet.file(
        "b.csv",
        "username,quota_bytes\nann,1000\nbob,\nann,5\ncy,-3\n\"bad\u{1}name\",x\n",
    );
    let dry = ctl.run(&["users", "import", &csv, "--format", "csv", "--dry-run"]);
    assert_eq!(
        dry.ok(),
        "2 would be created, 1 skipped, 0 renamed, 2 failed\n"
    );
    assert_eq!(ctl.json(&["users", "list"])["items"], json!([]));
    let said = ctl.run(&["users", "import", &csv, "--format", "csv"]);
    for failed in ["users[3].quota_bytes", "users[4].quota_bytes"] {
        assert!(said.stderr.contains(failed), "{}", said.stderr);
    }
    assert_eq!(said.ok(), "2 created, 1 skipped, 0 renamed, 2 failed\n");

    ctl.run(&["plans", "create", "basic"]).ok();
    let marzban = json!({"users": [{"username": "mia", "status": "active", "data_limit": 5_000, "used_traffic": 1_000}]});
    let marzban = fleet.file("marzban.json", &marzban.to_string());
    let report = ctl.json(&[
        "users", "import", &marzban, "--format", "marzban", "--plan", "basic",
    ]);
    assert_eq!(report["created"], 1);
    let mia = ctl.json(&["users", "show", "mia"]);
    assert_eq!(
        (&mia["quota_bytes"], &mia["used_bytes"]),
        (&json!(5_000), &json!(1_000))
    );
    let settings =
        json!({"clients": [{"email": "xu", "enable": true, "totalGB": 0, "expiryTime": 0}]});
    let three =
        json!({"success": true, "obj": [{"settings": settings.to_string(), "clientStats": []}]});
    let three = fleet.file("3x.json", &three.to_string());
    assert_eq!(
        ctl.json(&["users", "import", &three, "--format", "3x-ui"])["created"],
        1
    );
    let json = fleet.file(
        "ours.json",
        &json!([{"username": "ida", "max_devices": 2}]).to_string(),
    );
    let piped = ctl.run_with_input(
        &["--json", "users", "import", "-", "--format", "json"],
        &fs::read(json).unwrap(),
    );
    assert_eq!(
        serde_json::from_str::<Value>(&piped.ok()).unwrap()["created"],
        1
    );

    let exported = ctl.run(&["users", "export"]).ok();
    let exported = fleet.file("exported.json", &exported);
    let report = ctl.json(&["users", "import", &exported, "--format", "json"]);
    assert_eq!(
        (
            &report["created"],
            report["skipped"].as_array().unwrap().len()
        ),
        (&json!(0), 5)
    );
    let csv = ctl.run(&["users", "export", "--format", "csv"]).ok();
    assert!(
        csv.starts_with("username,") && csv.contains("\nmia,"),
        "{csv}"
    );
    let gone = ctl.run(&["users", "import", "/nowhere/at/all", "--format", "csv"]);
    assert_eq!(gone.code, 1);
    assert!(gone.stderr.contains("/nowhere/at/all"), "{}", gone.stderr);
    fleet.stop().await;
}
