//! The audit log, events, backups and restores.

use std::fs;

use hy2_master_sdk::store::Db;
use serde_json::{Value, json};

use crate::support::{Ctl, Fleet};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_log_is_listed_and_a_change_of_it_is_found() {
    let fleet = Fleet::start().await;
    let ctl = fleet.owner();
    for name in ["a1", "a2", "a3"] {
        ctl.run(&["users", "create", name]).ok();
    }
    // The sealer runs behind.
    let entry = crate::support::until("the entries are sealed", || {
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
    crate::support::opens(fs::read(&out).unwrap(), "a passphrase for backups").await;
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
    assert_eq!(called.stderr, "", "the orchestrator says why");
    let arguments = ["--json", "--yes", "restore", "--in", "x.backup"];
    let refused = ctl.run(&arguments);
    assert_eq!((refused.code, &*refused.stdout), (1, ""));
    let failure: Value = serde_json::from_str(&refused.stderr).unwrap();
    assert_eq!(failure["code"], "local");
    fs::write(&host, "#!/bin/sh\necho 7 rows\n").unwrap();
    let done = ctl.json(&["--yes", "restore", "--in", "x.backup"]);
    let expected = json!({"file": "x.backup", "restored": true, "said": "7 rows"});
    assert_eq!(done, expected);
    fs::write(
        &host,
        "#!/bin/sh\necho hy2-orchestrator: it is not empty >&2\nexit 1\n",
    )
    .unwrap();
    let refused = ctl.run(&arguments);
    let failure: Value = serde_json::from_str(&refused.stderr).unwrap();
    assert_eq!(failure["detail"], "it is not empty");
    fs::write(&host, "#!/bin/sh\necho \"$@\"\n").unwrap();
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
