//! Backups on the host: made beside a running master, restored where there is nothing.

use hy2_master_sdk::Master;
use hy2_master_sdk::backup::envelope::{BackupKey, Decryptor, Encryptor};
use hy2_master_sdk::backup::{BackupError, dump, restore};
use hy2_master_sdk::domain::{Clock, NodeId, SystemClock, Timestamp};
use hy2_master_sdk::secrets::MasterKeys;
use hy2_master_sdk::store::{Db, Store, StoreOptions, events, nodes};
use serde_json::{Value, json};

use crate::harness::{Fleet, database, on_both};

fn key() -> BackupKey {
    BackupKey::Passphrase("a passphrase for backups".into())
}

on_both! {
    async fn a_backup_of_the_host_is_restored_where_nothing_is(fleet) {
        let owner = fleet.owner().await;
        owner.post("/api/v1/users", &json!({"username": "ann"})).await.expect(201);
        let mut backup = Vec::new();
        let store = fleet.master.store().clone();
        let bytes = Master::with_store(store).backup(&key(), &mut backup).await;
        assert_eq!(bytes.unwrap(), backup.len() as u64);
        owner.get("/api/v1/users").await.expect(200);
        let noted = owner.get("/api/v1/audit?action=create_backup").await.expect(200);
        assert_eq!(noted["items"][0]["actor_kind"], "host", "{noted}");
        let (keys, other) = (fleet.keys.clone(), MasterKeys::generate().unwrap());
        fleet.stop().await;

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new.db");
        let begun = SystemClock.now();
        let postgres = database().await;
        for postgres in [None, Some(postgres.as_str())] {
            let builder = || match postgres {
                None => Master::sqlite(&path),
                Some(url) => Master::postgres(url),
            };
            let foreign = builder().keys(other.clone()).restore(&key(), &backup[..]).await;
            assert!(matches!(foreign, Err(BackupError::MasterKeys)), "{foreign:?}");
            let missing = directory.path().join("master.key");
            let none = builder().key_file(&missing).restore(&key(), &backup[..]).await;
            assert!(matches!(none, Err(BackupError::KeyFile(_))), "{none:?}");
            assert!(!missing.exists(), "a restore makes no key");
            let checked = builder().keys(keys.clone()).check_backup(&key(), &backup[..]).await;
            let restored = builder().keys(keys.clone()).restore(&key(), &backup[..]).await.unwrap();
            assert_eq!(checked.unwrap().rows, restored.rows);
            assert!(restored.epoch >= begun.0 / 1_000, "{restored:?}");
            let again = builder().keys(keys.clone()).restore(&key(), &backup[..]).await;
            assert!(matches!(again, Err(BackupError::NotEmpty)), "{again:?}");
            let master = builder().keys(keys.clone()).start().await.unwrap();
            assert_eq!(master.epoch(), restored.epoch);
            assert_eq!(master.store().schema().await.unwrap(), Some(Store::newest_schema()));
            master.shutdown().await;
        }
    }
}

on_both! {
    async fn a_restored_store_holds_exactly_what_the_backup_holds(fleet) {
        let owner = fleet.owner().await;
        let node = fleet.node("ny").await;
        let region = json!({"code": "us-east", "name": "New York", "latitude": 40.7128, "longitude": -74});
        let region = owner.post("/api/v1/regions", &region).await.expect(201)["id"].clone();
        let there = json!({"region_id": region});
        owner.patch(&format!("/api/v1/nodes/{node}"), &there).await.expect(200);
        let plan = json!({"name": "large", "quota_bytes": 1_i64 << 40});
        let plan = owner.post("/api/v1/plans", &plan).await.expect(201);
        for number in 0..30 {
            let user = json!({
                "username": format!("user-{number}"), "plan_id": plan["id"], "node_ids": [node.0],
                "home_region_id": region,
                "note": "\u{202e} \u{1f980} \"quoted\"\n",
            });
            owner.post("/api/v1/users", &user).await.expect(201);
        }
        owner.delete("/api/v1/users/7").await;
        let body = json!({"body": {"speed_test": true}});
        owner.put("/api/v1/configs/fleet/0", &body).await.expect(200);
        let hook = json!({"url": "http://127.0.0.1:9/"});
        owner.post("/api/v1/webhooks", &hook).await.expect(201);
        let mut backup = Vec::new();
        let store = fleet.master.store().clone();
        Master::with_store(store).backup(&key(), &mut backup).await.unwrap();
        // Of one moment, whatever the master does meanwhile.
        let before = opened(&backup);
        let directory = tempfile::tempdir().unwrap();
        let copies = [
            crate::harness::empty_sqlite(directory.path()).await,
            crate::harness::empty_postgres().await,
        ];
        for copy in &copies {
            restore::read(copy, &key(), &backup[..], fleet.master.now()).await.unwrap();
            let after = dumped(copy).await;
            assert_eq!(before.lines().count(), after.lines().count());
            let mut table = String::new();
            let mut epochs = 0;
            for (one, other) in before.lines().zip(after.lines()) {
                let value: Value = serde_json::from_str(one).unwrap();
                if let Some(next) = value.get("table") {
                    table = next.as_str().unwrap().to_owned();
                }
                match table.as_str() {
                    // What a restore changes: the epoch, and the number of the next event.
                    "cluster" if value.is_array() => epochs += 1,
                    "settings" if one.contains("internal.event_seq") => epochs += 1,
                    _ => assert_eq!(one, other, "{table}"),
                }
            }
            assert_eq!(epochs, 2);
            // Numbers that were given out after the backup are not given out again.
            let mut tx = copy.begin().await.unwrap();
            let new = crate::harness::new_node("sf");
            let row = nodes::create(&mut tx, &new, fleet.master.now()).await.unwrap();
            assert!(row.id > NodeId(1_000_000), "{}", row.id);
        }
        fleet.stop().await;
    }
}

/// Users and revisions of between the two restores may be with nodes: nothing of the second may pass for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_second_restore_of_a_backup_epoch_and_numbers_are_others_than_after_the_first() {
    let fleet = Fleet::sqlite().await;
    let mut backup = Vec::new();
    let store = fleet.master.store().clone();
    Master::with_store(store)
        .backup(&key(), &mut backup)
        .await
        .unwrap();
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let sqlite = [
        crate::harness::empty_sqlite(directories[0].path()).await,
        crate::harness::empty_sqlite(directories[1].path()).await,
    ];
    let postgres = [
        crate::harness::empty_postgres().await,
        crate::harness::empty_postgres().await,
    ];
    for copies in [sqlite, postgres] {
        let (mut epochs, mut numbers) = (Vec::new(), Vec::new());
        for (copy, at) in copies
            .iter()
            .zip([1_764_300_000_000, 1_764_300_010_000].map(Timestamp))
        {
            let restored = restore::read(copy, &key(), &backup[..], at).await.unwrap();
            epochs.push(restored.epoch);
            let mut tx = copy.begin().await.unwrap();
            let row = nodes::create(&mut tx, &crate::harness::new_node("sf"), at)
                .await
                .unwrap();
            tx.commit().await.unwrap();
            numbers.push(row.id.0);
        }
        assert_eq!(epochs, [1_764_300_000, 1_764_300_010]);
        assert!(numbers[1] - numbers[0] >= 1_000_000, "{numbers:?}");
        assert!(numbers[1] < 1 << 53, "{numbers:?}");
    }
    fleet.stop().await;
}

on_both! {
    async fn what_the_master_did_not_make_stays_out_of_backups_and_in_nobodys_way(fleet) {
        let owner = fleet.owner().await;
        owner.post("/api/v1/users", &json!({"username": "ann"})).await.expect(201);
        // Without a key, and referring to the master's.
        let own = [
            "create table notes (about bigint references users (id), text text)",
            "insert into notes values (1, 'mine')",
            "alter table users add column colour text",
            "update users set colour = 'blue'",
        ];
        for sql in own {
            execute(fleet.master.store(), sql).await;
        }
        let mut backup = Vec::new();
        let store = fleet.master.store().clone();
        Master::with_store(store).backup(&key(), &mut backup).await.unwrap();
        let lines = opened(&backup);
        for word in ["notes", "mine", "colour", "blue"] {
            assert!(!lines.contains(word), "{word}");
        }
        // As versions before wrote them: with it.
        let mut older = Vec::new();
        let mut table = String::new();
        for line in lines.lines() {
            let mut value: Value = serde_json::from_str(line).unwrap();
            if let Some(name) = value["table"].as_str() {
                table = name.to_owned();
            }
            if table == "users" && value.is_array() {
                value.as_array_mut().unwrap().insert(1, "blue".into());
            } else if table == "users" {
                value["columns"].as_array_mut().unwrap().insert(1, "colour".into());
            }
            if value["table"] == "users" {
                older.push(json!({"table": "notes", "columns": ["about", "text"]}).to_string());
                older.push(json!([1, "mine"]).to_string());
            }
            older.push(value.to_string());
        }
        let mut encryptor = Encryptor::new(&key()).unwrap();
        let mut with_others = encryptor.header().to_vec();
        for line in older {
            encryptor.push((line + "\n").as_bytes(), &mut with_others).unwrap();
        }
        encryptor.finish(&mut with_others).unwrap();
        for backup in [backup, with_others] {
            let directory = tempfile::tempdir().unwrap();
            let copies = [
                crate::harness::empty_sqlite(directory.path()).await,
                crate::harness::empty_postgres().await,
            ];
            for copy in &copies {
                for sql in ["create table theirs (x bigint)", "insert into theirs values (1)"] {
                    execute(copy, sql).await;
                }
                let restored = restore::read(copy, &key(), &backup[..], fleet.master.now()).await;
                let rows = lines.lines().filter(|line| line.starts_with('[')).count();
                assert_eq!(restored.unwrap().rows, rows as u64);
                let kept = dumped(copy).await;
                let users = |text: &str| -> Vec<String> {
                    let from = text.lines().skip_while(|line| !line.contains(r#""table":"users""#));
                    let head = from.clone().take(1);
                    let rows = from.skip(1).take_while(|line| line.starts_with('['));
                    head.chain(rows).map(str::to_owned).collect()
                };
                assert_eq!(users(&kept), users(&lines));
                assert!(!kept.contains("theirs"));
            }
        }
        fleet.stop().await;
    }
}

on_both! {
    async fn after_a_restore_no_event_has_a_number_that_was_given_out_before(fleet) {
        let owner = fleet.owner().await;
        owner.post("/api/v1/users", &json!({"username": "early"})).await.expect(201);
        let store = fleet.master.store().clone();
        let begun = fleet.until("a first event", || async {
            let newest = events::newest(&store).await.unwrap();
            (newest > 0).then_some(newest)
        });
        begun.await;
        let mut backup = Vec::new();
        Master::with_store(store.clone()).backup(&key(), &mut backup).await.unwrap();
        // After the backup: what receivers of events have seen, and the restored store has not.
        for number in 0..5 {
            let user = json!({"username": format!("late-{number}")});
            owner.post("/api/v1/users", &user).await.expect(201);
        }
        let mut tx = store.begin().await.unwrap();
        let seen = events::seal_all(&mut tx).await.unwrap();
        tx.commit().await.unwrap();

        let directory = tempfile::tempdir().unwrap();
        let copies = [
            crate::harness::empty_sqlite(directory.path()).await,
            crate::harness::empty_postgres().await,
        ];
        for copy in &copies {
            restore::read(copy, &key(), &backup[..], fleet.master.now()).await.unwrap();
            let mut tx = copy.begin().await.unwrap();
            let nothing = json!({});
            events::emit(&mut tx, "user.created", "1", &nothing, None, fleet.master.now()).await.unwrap();
            let next = events::seal_all(&mut tx).await.unwrap();
            tx.commit().await.unwrap();
            assert!(next > seen && next > 1_000_000 && next < 1 << 53, "{next} after {seen}");
            // Who goes on after the last number of before is told of it.
            let told = events::after(copy, seen, 10).await.unwrap();
            assert_eq!(told.iter().map(|event| event.seq).collect::<Vec<_>>(), [next]);
        }
        fleet.stop().await;
    }
}

/// As AdminService of versions before let it in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_with_nul_come_back_on_sqlite_and_are_named_for_postgresql() {
    for (sql, place) in [
        (
            "update users set note = 'a' || char(0) || 'b' where username = 'user-1'",
            "row 2 of table users does not fit: its column note",
        ),
        (
            r#"update audit_log set after = '{"note":"a\u0000b"}' where object_kind = 'user'"#,
            "of table audit_log does not fit: its column after",
        ),
    ] {
        let fleet = Fleet::sqlite().await;
        let owner = fleet.owner().await;
        for number in 0..3 {
            let new = json!({"username": format!("user-{number}")});
            owner.post("/api/v1/users", &new).await.expect(201);
        }
        let Db::Sqlite { write, .. } = fleet.master.store().db() else {
            panic!("not SQLite");
        };
        assert!(
            sqlx::query(sql)
                .execute(write)
                .await
                .unwrap()
                .rows_affected()
                > 0
        );
        let mut backup = Vec::new();
        let store = fleet.master.store().clone();
        Master::with_store(store)
            .backup(&key(), &mut backup)
            .await
            .unwrap();
        let keys = fleet.keys.clone();
        fleet.stop().await;

        let directory = tempfile::tempdir().unwrap();
        let copy = crate::harness::empty_sqlite(directory.path()).await;
        let now = Timestamp(1_800_000_000_000);
        restore::read(&copy, &key(), &backup[..], now)
            .await
            .unwrap();
        let lines = |text: String| -> Vec<String> {
            let with_nul = text.lines().filter(|line| line.contains("u0000"));
            with_nul.map(str::to_owned).collect()
        };
        let kept = lines(dumped(&copy).await);
        assert!(!kept.is_empty());
        assert_eq!(kept, lines(opened(&backup)));

        let url = database().await;
        let builder = || Master::postgres(&url).keys(keys.clone());
        let checked = builder().check_backup(&key(), &backup[..]).await;
        let restored = builder().restore(&key(), &backup[..]).await;
        for refused in [checked, restored] {
            let error = refused.expect_err("NUL").to_string();
            assert!(
                error.contains(place) && error.contains("into SQLite"),
                "{error}"
            );
        }
    }
}

/// Runs a statement of somebody else.
async fn execute(store: &Store, sql: &'static str) {
    match store.db() {
        Db::Pg(pool) => drop(sqlx::query(sql).execute(pool).await.unwrap()),
        Db::Sqlite { write, .. } => drop(sqlx::query(sql).execute(write).await.unwrap()),
    }
}

/// The lines of a backup.
fn opened(backup: &[u8]) -> String {
    let (header, sealed) = backup.split_first_chunk().unwrap();
    let mut decryptor = Decryptor::new(&key(), *header).unwrap();
    let mut plain = Vec::new();
    decryptor.push(sealed, &mut plain).unwrap();
    decryptor.finish(&mut plain).unwrap();
    String::from_utf8(plain).unwrap()
}

/// The same lines of a store.
async fn dumped(store: &Store) -> String {
    let (sender, mut lines) = tokio::sync::mpsc::channel(64);
    let store = store.clone();
    let dumping = tokio::spawn(async move { dump::dump(&store, sender).await });
    let mut text = String::new();
    while let Some(line) = lines.recv().await {
        text.push_str(&line);
    }
    dumping.await.unwrap().unwrap();
    text
}

#[tokio::test]
async fn a_backup_of_a_newer_version_is_refused() {
    let mut encryptor = Encryptor::new(&key()).unwrap();
    let mut backup = encryptor.header().to_vec();
    let newer = Store::newest_schema() + 1;
    let head = json!({"hy2": 1, "schema": newer}).to_string() + "\n";
    encryptor.push(head.as_bytes(), &mut backup).unwrap();
    encryptor.finish(&mut backup).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new.db");
    let store = Store::open_sqlite(&path, &StoreOptions::default())
        .await
        .unwrap();
    let now = Timestamp(1_800_000_000_000);
    let refused = restore::read(&store, &key(), &backup[..], now).await;
    let Err(error @ BackupError::Newer { .. }) = refused else {
        panic!("{refused:?}");
    };
    assert!(
        error.to_string().contains(&format!("schema {newer}")),
        "{error}"
    );
    assert_eq!(store.schema().await.unwrap(), None, "nothing was touched");
}

#[tokio::test]
async fn where_there_is_no_store_there_is_no_backup() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("none.db");
    let mut backup = Vec::new();
    let none = Master::sqlite(&path).backup(&key(), &mut backup).await;
    assert!(matches!(none, Err(BackupError::NoStore)), "{none:?}");
    assert!(!path.exists() && backup.is_empty());
}
