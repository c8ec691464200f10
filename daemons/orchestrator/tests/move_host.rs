//! Backup and restore as an operator does them: real processes, a new host, both databases.

mod support;

use std::fs;

use serde_json::json;

use crate::support::{Host, ask, log_in, postgres};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_on_sqlite_moves_to_a_new_host() {
    moves(&Host::new(None, ""), &Host::new(None, "")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_on_postgresql_moves_to_a_new_host_and_to_sqlite() {
    let server = postgres();
    let (base, _) = server.rsplit_once('/').unwrap();
    let pool = sqlx::postgres::PgPool::connect(&server).await.unwrap();
    for name in ["old", "new"] {
        let create = sqlx::AssertSqlSafe(format!("create database {name}"));
        sqlx::query(create).execute(&pool).await.unwrap();
    }
    pool.close().await;
    let old = Host::new(Some(&format!("{base}/old")), "");
    moves(&old, &Host::new(Some(&format!("{base}/new")), "")).await;
    // The same backup, onto the other kind of database.
    let sqlite = Host::new(None, "");
    let backup = old.path("fleet.backup");
    fs::copy(old.path("master.key"), sqlite.path("master.key")).unwrap();
    let said = sqlite.ok(&["restore", "--in", backup.to_str().unwrap()]);
    assert!(a_new_epoch(&said), "{said}");
}

/// Whether a restore said that an epoch begins whose number is a time of this century.
fn a_new_epoch(said: &str) -> bool {
    let number = said
        .split_once(", epoch ")
        .and_then(|(_, rest)| rest.split_once(" begins"));
    number.is_some_and(|(number, _)| {
        number
            .parse::<i64>()
            .is_ok_and(|epoch| epoch > 1_700_000_000)
    })
}

/// Makes a fleet on one host, a backup beside it, and the same fleet on another host.
async fn moves(old: &Host, new: &Host) {
    let running = old.start();
    let password = running.password();
    let token = log_in(&running, &password).await;
    let user = json!({"username": "ann", "note": "moves"});
    let made = ask(&running, &token, "POST", "/users", Some(user), 201).await;
    let link = format!("/users/{}/subscription", made["id"]);
    let subscription = ask(&running, &token, "GET", &link, None, 200).await;

    let backup = old.path("fleet.backup");
    let backup = backup.to_str().unwrap();
    let said = old.ok(&["backup", "--out", backup]);
    assert!(said.contains("master.key"), "{said}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(
            fs::metadata(backup).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
    let again = old.refused(&["backup", "--out", backup]);
    assert!(again.contains("exists"), "{again}");
    let weak = old.path("weak");
    fs::write(&weak, "short\n").unwrap();
    let other = old.path("other.backup");
    let weak = [
        "backup",
        "--out",
        other.to_str().unwrap(),
        "--passphrase-file",
        weak.to_str().unwrap(),
    ];
    let weak = old.refused(&weak);
    assert!(weak.contains("12 characters"), "{weak}");
    assert!(!other.exists());
    running.stop();

    // Everything that is not right is said, and changes nothing.
    let restore = ["restore", "--in", backup];
    let no_key = new.refused(&restore);
    assert!(no_key.contains("master key"), "{no_key}");
    let stranger = Host::new(None, "");
    stranger.ok(&["migrate"]);
    fs::copy(stranger.path("master.key"), new.path("master.key")).unwrap();
    let foreign = new.refused(&restore);
    assert!(
        foreign.contains("do not open with this master key"),
        "{foreign}"
    );
    fs::copy(old.path("master.key"), new.path("master.key")).unwrap();
    let bytes = fs::read(backup).unwrap();
    let damaged = new.path("damaged.backup");
    for at in [20, bytes.len() / 2, bytes.len() - 1] {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        fs::write(&damaged, &flipped).unwrap();
        let refused = new.refused(&["restore", "--in", damaged.to_str().unwrap()]);
        assert!(refused.contains("does not open"), "byte {at}: {refused}");
    }
    fs::write(&damaged, &bytes[..bytes.len() - 100]).unwrap();
    let cut = new.refused(&["restore", "--in", damaged.to_str().unwrap()]);
    assert!(cut.contains("does not open"), "{cut}");
    fs::write(
        &damaged,
        "something else altogether, and long enough to hold a header",
    )
    .unwrap();
    let nonsense = new.refused(&["restore", "--in", damaged.to_str().unwrap()]);
    assert!(nonsense.contains("not a backup"), "{nonsense}");

    let checked = new.ok(&["restore", "--in", backup, "--check"]);
    assert!(checked.contains(": ok, "), "{checked}");
    let restored = new.ok(&restore);
    assert!(a_new_epoch(&restored), "{restored}");
    let twice = new.refused(&restore);
    assert!(twice.contains("not empty"), "{twice}");

    new.is_restored();
    let running = new.start();
    let token = log_in(&running, &password).await;
    let found = ask(&running, &token, "GET", "/users?search=ann", None, 200).await;
    assert_eq!(found["items"][0]["note"], "moves");
    let same = ask(&running, &token, "GET", &link, None, 200).await;
    assert_eq!(same, subscription, "links stay good");
    let verified = ask(&running, &token, "GET", "/audit/verify", None, 200).await;
    assert_eq!(verified["intact"], true);
    running.stop();
}
