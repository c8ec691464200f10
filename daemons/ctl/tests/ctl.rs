//! The built `hy2ctl` against a real orchestrator on SQLite.

mod support;

use std::fs;

use hy2_master_sdk::domain::{NodeId, Timestamp};
use hy2_master_sdk::store::Db;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Ctl, Fleet, OWNER};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_is_kept_for_its_owner_only_and_logout_ends_it() {
    let fleet = Fleet::start().await;
    let ctl = fleet.ctl();
    let wrong = ctl.with("HY2CTL_PASSWORD", "not the password").run(&[
        "login",
        "--url",
        &fleet.url(),
        "--username",
        OWNER,
    ]);
    assert_eq!((wrong.code, wrong.stdout.as_str()), (3, ""));
    assert!(wrong.stderr.contains("hy2ctl: "), "{}", wrong.stderr);
    assert_eq!(ctl.run(&["whoami"]).code, 3, "nothing was kept");

    let password = fleet.file("password", &format!("{}\n", fleet.password()));
    let login = ctl.run(&[
        "login",
        "--url",
        &fleet.url(),
        "--username",
        OWNER,
        "--password-file",
        &password,
    ]);
    assert_eq!(login.ok(), "logged in as admin (owner)\n");
    assert_eq!(ctl.json(&["whoami"])["username"], OWNER);
    assert!(ctl.run(&["whoami"]).ok().contains("owner"));

    let kept = fs::read_to_string(&ctl.profiles).unwrap();
    let kept: Value = serde_json::from_str(&kept).unwrap();
    assert!(kept["default"]["session"]["refresh_token"].is_string());
    assert!(!kept.to_string().contains(fleet.password()));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode =
            |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&ctl.profiles), 0o600);
        fs::set_permissions(&ctl.profiles, fs::Permissions::from_mode(0o644)).unwrap();
        let exposed = ctl.run(&["whoami"]);
        assert_eq!(exposed.code, 1);
        assert!(exposed.stderr.contains("chmod 600"), "{}", exposed.stderr);
        fs::set_permissions(&ctl.profiles, fs::Permissions::from_mode(0o600)).unwrap();
    }

    let token = kept["default"]["session"]["access_token"].as_str().unwrap();
    assert_eq!(ctl.run(&["logout"]).ok(), "logged out\n");
    assert_eq!(ctl.run(&["whoami"]).code, 3);
    let stolen = ctl
        .with("HY2CTL_URL", &fleet.url())
        .with("HY2CTL_TOKEN", token);
    assert_eq!(
        stolen.run(&["whoami"]).code,
        3,
        "the session is over on the other side too"
    );
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_renewed_once_however_many_ask_at_once() {
    let fleet = Fleet::start().await;
    let ctl = fleet.owner();
    let age = |change: &dyn Fn(&mut Value)| {
        let mut kept: Value = serde_json::from_slice(&fs::read(&ctl.profiles).unwrap()).unwrap();
        change(&mut kept["default"]["session"]);
        fs::write(&ctl.profiles, kept.to_string()).unwrap();
        kept["default"]["session"]["refresh_token"].clone()
    };
    let refresh = |ctl: &Ctl| {
        let kept: Value = serde_json::from_slice(&fs::read(&ctl.profiles).unwrap()).unwrap();
        kept["default"]["session"]["refresh_token"].clone()
    };
    // By the clock.
    let before = age(&|session| session["access_expires_at"] = json!("2020-01-01T00:00:00Z"));
    let asking: Vec<_> = (0..4).map(|_| ctl.start(&["--json", "whoami"])).collect();
    for child in asking {
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let after = refresh(&ctl);
    assert_ne!(before, after);
    assert_eq!(
        ctl.run(&["whoami"]).code,
        0,
        "no refresh token was spent twice"
    );
    // By the answer.
    age(&|session| session["access_token"] = json!("x.y.z"));
    assert_eq!(ctl.run(&["whoami"]).code, 0);
    assert_ne!(refresh(&ctl), after);
    // A session that was ended elsewhere.
    age(&|session| {
        session["access_token"] = json!("x.y.z");
        session["refresh_token"] = json!("hy2r_nonsense");
    });
    let over = ctl.run(&["whoami"]);
    assert_eq!(over.code, 3);
    assert!(over.stderr.contains("hy2ctl login"), "{}", over.stderr);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_second_factors_and_api_tokens_are_managed() {
    let fleet = Fleet::start().await;
    let ctl = fleet.owner();
    let weak = ctl
        .with("HY2CTL_PASSWORD", fleet.password())
        .with("HY2CTL_NEW_PASSWORD", "short")
        .run(&["passwd"]);
    assert_eq!(weak.code, 5, "{}", weak.stderr);
    let changed = ctl
        .with("HY2CTL_PASSWORD", fleet.password())
        .with("HY2CTL_NEW_PASSWORD", "chosen by oneself")
        .run(&["passwd"]);
    assert_eq!(changed.ok(), "the password is changed\n");
    assert_eq!(ctl.json(&["whoami"])["username"], OWNER);

    let made = ctl.json(&["totp", "begin"]);
    assert!(ctl.run(&["totp", "begin", "--qr"]).ok().contains('█'));
    assert_eq!(ctl.run(&["totp", "confirm", "000000"]).code, 3);
    let made = ctl
        .json(&["totp", "begin"])
        .as_object()
        .map_or(made, |again| again.clone().into());
    let code = || support::totp(made["uri"].as_str().unwrap());
    assert_eq!(
        ctl.run(&["totp", "confirm", &code()]).ok(),
        "the second factor is in force\n"
    );
    let url = fleet.url();
    let login = ["login", "--url", &url, "--username", OWNER];
    let other = ctl.with("HY2CTL_PASSWORD", "chosen by oneself");
    let asked = other.run(&login);
    assert_eq!(asked.code, 2, "{}", asked.stderr);
    assert!(asked.stderr.contains("--code"), "{}", asked.stderr);
    let wrong = other.with("HY2CTL_CODE", "000000").run(&login);
    assert_eq!(wrong.code, 3, "{}", wrong.stderr);

    assert_eq!(ctl.run(&["api-tokens", "create", "x"]).code, 2);
    let refused = ctl.run(&["api-tokens", "create", "x", "--scope", "everything:write"]);
    assert_eq!(refused.code, 5);
    assert!(refused.stderr.contains("scopes"), "{}", refused.stderr);
    let token = ctl
        .run(&[
            "api-tokens",
            "create",
            "ci",
            "--scope",
            "users:read",
            "--scope",
            "account:read",
            "--expires",
            "1d",
        ])
        .ok();
    let listed = ctl.json(&["api-tokens", "list"]);
    assert_eq!(listed["items"][0]["name"], "ci");

    // By the environment, and by a profile.
    let ci = ctl
        .with("HY2CTL_URL", &url)
        .with("HY2CTL_TOKEN", token.trim());
    assert_eq!(ci.json(&["users", "list"])["items"], json!([]));
    let denied = ci.run(&["nodes", "list"]);
    assert_eq!(denied.code, 3);
    let file = fleet.file("token", &token);
    let login = ctl.run(&[
        "--profile",
        "ci",
        "login",
        "--url",
        &url,
        "--token-file",
        &file,
    ]);
    assert_eq!(login.ok(), "logged in as admin (owner)\n");
    assert_eq!(ctl.run(&["--profile", "ci", "users", "list"]).code, 0);
    let id = listed["items"][0]["id"].as_str().unwrap();
    assert_eq!(ctl.run(&["--yes", "api-tokens", "revoke", id]).code, 0);
    assert_eq!(ctl.run(&["--profile", "ci", "users", "list"]).code, 3);
    assert_eq!(
        ctl.run(&["--yes", "api-tokens", "revoke", "../users/1"])
            .code,
        2
    );
    fleet.stop().await;
}

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
    assert_eq!(ctl.json(&["users", "show", "mia"])["quota_bytes"], 4_000);
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
async fn the_audit_log_is_listed_and_a_change_of_it_is_found() {
    let fleet = Fleet::start().await;
    let ctl = fleet.owner();
    for name in ["a1", "a2", "a3"] {
        ctl.run(&["users", "create", name]).ok();
    }
    // The sealer runs behind.
    let entry = support::until("the entries are sealed", || {
        let listed = ctl.json(&["audit", "list", "--action", "create_user"]);
        let items = listed["items"].as_array().unwrap().clone();
        (items.len() == 3).then(|| items[1].clone())
    });
    assert_eq!(entry["actor"], "admin");
    let table = ctl.run(&[
        "audit",
        "list",
        "--actor",
        "admin",
        "--object",
        "user",
        "--id",
        entry["object_id"].as_str().unwrap(),
    ]);
    assert!(table.ok().contains("create_user"), "{}", table.stderr);
    assert!(ctl.run(&["audit", "verify"]).ok().starts_with("intact: "));
    assert_eq!(ctl.json(&["audit", "verify"])["intact"], true);

    let Db::Sqlite { write, .. } = fleet.master.store().db() else {
        panic!("a store on SQLite");
    };
    sqlx::query("update audit_log set actor = 'mallory' where seq = $1")
        .bind(entry["seq"].as_i64().unwrap())
        .execute(write)
        .await
        .unwrap();
    let broken = ctl.run(&["audit", "verify"]);
    assert_eq!((broken.code, broken.stdout.as_str()), (7, ""));
    assert!(
        broken.stderr.contains(&format!("entry {}", entry["seq"])),
        "{}",
        broken.stderr
    );
    let broken = ctl.run(&["--json", "audit", "verify"]);
    assert_eq!(broken.code, 7);
    let found: Value = serde_json::from_str(&broken.stdout).unwrap();
    assert_eq!(
        (&found["intact"], &found["broken_at"]),
        (&json!(false), &entry["seq"])
    );
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_whole_or_not_there() {
    let fleet = Fleet::start().await;
    let ctl = fleet.owner();
    ctl.run(&["users", "create", "ann"]).ok();
    let out = fleet.path("fleet.backup");
    let weak = ctl
        .with("HY2_BACKUP_PASSPHRASE", "short")
        .run(&["backup", "--out", &out]);
    assert_eq!(weak.code, 5);
    assert!(weak.stderr.contains("passphrase"), "{}", weak.stderr);
    assert!(!fs::exists(&out).unwrap());
    let passphrase = fleet.file("passphrase", "a passphrase for backups\n");
    let made = ctl.json(&["backup", "--out", &out, "--passphrase-file", &passphrase]);
    assert_eq!(made["bytes"], fs::metadata(&out).unwrap().len());
    let left = fs::read_dir(std::path::Path::new(&out).parent().unwrap()).unwrap();
    let names = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(!names.into_iter().any(|name| name.ends_with(".part")));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(
            fs::metadata(&out).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
    let again = ctl.run(&["backup", "--out", &out, "--passphrase-file", &passphrase]);
    assert_eq!(again.code, 2);
    assert!(again.stderr.contains("exists"), "{}", again.stderr);
    support::opens(fs::read(&out).unwrap(), "a passphrase for backups").await;
    fleet.stop().await;
}

/// The real restore is tested with hy2-orchestrator; here, that it is called as it should be.
#[cfg(unix)]
#[test]
fn a_restore_calls_the_orchestrator_of_the_host() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("hy2ctl");
    fs::copy(env!("CARGO_BIN_EXE_hy2ctl"), &program).unwrap();
    let host = folder.path().join("hy2-orchestrator");
    fs::write(
        &host,
        "#!/bin/sh\necho \"$@\" with \"$HY2_BACKUP_PASSPHRASE\"\nexit 3\n",
    )
    .unwrap();
    fs::set_permissions(&host, fs::Permissions::from_mode(0o755)).unwrap();
    let ctl = Ctl::new(&program, folder.path().join("ctl.json"));
    let ctl = ctl.with("HY2_BACKUP_PASSPHRASE", "a passphrase for backups");
    assert_eq!(
        ctl.run(&["restore", "--in", "x.backup"]).code,
        2,
        "asks first"
    );
    let called = ctl.run(&[
        "--yes",
        "restore",
        "--in",
        "x.backup",
        "--config",
        "/etc/o.yaml",
    ]);
    assert_eq!(called.code, 1);
    let expected = "--config /etc/o.yaml restore --in x.backup with a passphrase for backups\n";
    assert_eq!(called.stdout, expected);
    let checked = ctl.run(&["restore", "--in", "x.backup", "--check"]);
    assert!(
        checked.stdout.contains("--in x.backup --check"),
        "{}",
        checked.stdout
    );
    fs::remove_file(&host).unwrap();
    let missing = ctl.run(&["restore", "--in", "x.backup", "--check"]);
    assert_eq!(missing.code, 1);
    assert!(
        missing.stderr.contains("hy2-orchestrator"),
        "{}",
        missing.stderr
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_followed_and_continued() {
    let fleet = Fleet::start().await;
    let ctl = fleet.owner();
    ctl.run(&["plans", "create", "p"]).ok();
    ctl.run(&["users", "create", "ann"]).ok();
    let seen = ctl
        .run(&[
            "--json", "events", "--after", "0", "--topic", "user.*", "--count", "1",
        ])
        .ok();
    let event: Value = serde_json::from_str(seen.trim()).unwrap();
    assert_eq!(
        (&event["topic"], &event["payload"]["username"]),
        (&json!("user.created"), &json!("ann"))
    );
    let after = event["seq"].to_string();
    let following = ctl.start(&[
        "events",
        "--after",
        &after,
        "--topic",
        "user.created",
        "--count",
        "2",
    ]);
    ctl.run(&["users", "create", "bob"]).ok();
    ctl.run(&["users", "create", "cy"]).ok();
    let output = following.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines.len() == 2 && lines[0].contains("bob") && lines[1].contains("cy"),
        "{text}"
    );
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_names_the_field_and_the_exit_code_says_why() {
    // An address of its own: no other test's orchestrator gets the port when this one is gone.
    let fleet = Fleet::with(|config| config.api = Some(([127, 93, 71, 3], 0).into())).await;
    let ctl = fleet.owner();
    let refused = ctl.run(&["users", "create", "no such name!"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (5, ""));
    assert!(
        refused.stderr.contains("\n  username: "),
        "{}",
        refused.stderr
    );
    let refused = ctl.run(&["--json", "users", "create", "no such name!"]);
    let problem: Value = serde_json::from_str(&refused.stderr).unwrap();
    assert_eq!(
        (&problem["code"], &problem["errors"][0]["path"]),
        (&json!("invalid"), &json!("username"))
    );
    ctl.run(&["users", "create", "ann"]).ok();
    assert_eq!(ctl.run(&["users", "create", "ann"]).code, 5, "exists");
    assert_eq!(ctl.run(&["users", "show", "99"]).code, 4);
    assert_eq!(ctl.run(&["users", "show", "nobody"]).code, 4);
    assert_eq!(ctl.run(&["users", "fly"]).code, 2);
    assert_eq!(
        ctl.run(&["users", "create", "x", "--quota", "much"]).code,
        2
    );
    assert!(ctl.run(&["--help"]).ok().contains("Exit codes:"));
    let version = ctl.json(&["version"]);
    assert_eq!(version["hy2ctl"], env!("CARGO_PKG_VERSION"));
    assert!(version["api"].is_string());

    let url = fleet.url();
    let _folder = fleet.stop().await;
    let down = ctl.run(&["users", "list"]);
    assert_eq!(down.code, 6);
    assert!(down.stderr.contains(&url), "{}", down.stderr);
    let down = ctl.run(&["--json", "users", "list"]);
    assert_eq!(
        serde_json::from_str::<Value>(&down.stderr).unwrap()["code"],
        "unreachable"
    );
    assert!(ctl.run(&["version"]).stderr.contains("the orchestrator: "));
    assert_eq!(
        ctl.run(&["events"]).code,
        6,
        "what never worked is not tried again"
    );
    // Nobody to tell, and still logged out.
    assert_eq!(ctl.run(&["logout"]).code, 0);
    assert_eq!(ctl.run(&["logout"]).code, 3);
    let plain = ctl.with("HY2CTL_PASSWORD", "x").run(&[
        "login",
        "--url",
        "http://192.0.2.1",
        "--username",
        "x",
    ]);
    assert_eq!(plain.code, 2);
    assert!(plain.stderr.contains("https"), "{}", plain.stderr);
    let nobody = ctl.run(&["login", "--url", &url, "--username", "x"]);
    assert_eq!(nobody.code, 2, "nobody to ask for a password");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_the_orchestrator_proves_who_it_is() {
    let (authority, own, stranger) = (
        support::authority(),
        support::authority(),
        support::authority(),
    );
    let tls = support::tls(&authority, "localhost");
    let fleet = Fleet::with(|config| config.api_tls = Some(tls)).await;
    let url = fleet.url().replace("http://127.0.0.1", "https://localhost");
    let ctl = fleet.ctl().with("HY2CTL_PASSWORD", fleet.password());
    let login =
        |more: &[&str]| ctl.run(&[&["login", "--url", &url, "--username", OWNER], more].concat());

    let unknown = login(&[]);
    assert_eq!(unknown.code, 6, "{}", unknown.stderr);
    let wrong = fleet.file("wrong.pem", &own.pem());
    assert_eq!(login(&["--ca", &wrong]).code, 6);
    let nonsense = fleet.file("nonsense.pem", "nonsense");
    assert_eq!(login(&["--ca", &nonsense]).code, 1);
    let right = fleet.file("right.pem", &authority.pem());
    assert_eq!(
        login(&["--ca", &right]).ok(),
        "logged in as admin (owner)\n"
    );
    fs::remove_file(&right).unwrap();
    assert_eq!(
        ctl.json(&["whoami"])["username"],
        OWNER,
        "the profile keeps it"
    );

    assert_eq!(login(&["--ca-pin", "sha256:12"]).code, 2);
    assert_eq!(login(&["--ca-pin", &support::pin(&stranger)]).code, 6);
    assert_eq!(login(&["--ca-pin", &support::pin(&authority)]).code, 0);
    assert_eq!(ctl.run(&["whoami"]).code, 0);
    // The authority is the right one, the name is not.
    let other = url.replace("localhost", "127.0.0.1");
    let pin = support::pin(&authority);
    let named = ctl.run(&[
        "login",
        "--url",
        &other,
        "--username",
        OWNER,
        "--ca-pin",
        &pin,
    ]);
    assert_eq!(named.code, 6, "{}", named.stderr);
    fleet.stop().await;
}

#[test]
fn completions_are_valid_and_complete() {
    let folder = tempfile::tempdir().unwrap();
    let ctl = Ctl::new(
        env!("CARGO_BIN_EXE_hy2ctl").as_ref(),
        folder.path().join("ctl.json"),
    );
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = ctl.run(&["completions", shell]).ok();
        assert!(script.contains("rotate-credentials"), "{shell}");
    }
    let script = folder.path().join("hy2ctl.bash");
    fs::write(&script, ctl.run(&["completions", "bash"]).ok()).unwrap();
    let ask = "source \"$1\"; COMP_WORDS=(hy2ctl users cre); COMP_CWORD=2; \
               _hy2ctl hy2ctl cre users; echo \"${COMPREPLY[*]}\"; complete -p hy2ctl";
    let asked = std::process::Command::new("bash")
        .args(["--norc", "-c", ask, "bash"])
        .arg(&script)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&asked.stdout).into_owned();
    assert!(
        text.starts_with("create\n"),
        "{text}{}",
        String::from_utf8_lossy(&asked.stderr)
    );
    assert!(text.contains("_hy2ctl"), "{text}");
}

#[test]
fn a_command_line_that_is_not_right_is_told_in_json_to_programs() {
    let directory = tempfile::tempdir().unwrap();
    let ctl = Ctl::new(
        env!("CARGO_BIN_EXE_hy2ctl").as_ref(),
        directory.path().join("ctl.json"),
    );
    for (arguments, detail) in [
        (&["--json", "foo"][..], "unrecognized subcommand 'foo'"),
        (&["--json", "nodes", "get", "n1"], "unrecognized subcommand"),
        (
            &["users", "list", "--json", "--size", "x"],
            "invalid value 'x' for '--size",
        ),
        (
            &["--json", "users", "show"],
            "required arguments were not provided",
        ),
        (
            &["--json", "--nonsense"],
            "unexpected argument '--nonsense'",
        ),
        (&["--json"], "a command is missing"),
        (&["--json", "nodes"], "a command is missing"),
    ] {
        let ran = ctl.run(arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{arguments:?}");
        let told: Value = serde_json::from_str(&ran.stderr).expect(&ran.stderr);
        assert_eq!(told["code"], "usage", "{told}");
        let told = told["detail"].as_str().unwrap();
        assert!(told.contains(detail), "{told}");
        assert!(
            !told.contains("Usage:") && !told.contains("For more"),
            "{told}"
        );
    }
    // To people as before.
    let ran = ctl.run(&["foo"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("Usage: hy2ctl"), "{}", ran.stderr);
    let ran = ctl.run(&["users", "show", "--", "--json", "x"]);
    assert!(
        ran.code == 2 && ran.stderr.contains("Usage:"),
        "{}",
        ran.stderr
    );
    for asked in ["--help", "--version"] {
        let ran = ctl.run(&["--json", asked]);
        assert_eq!(ran.stderr, "");
        assert!(ran.ok().contains("hy2ctl"), "{}", ran.stdout);
    }
}
