//! Backups on the host: made beside a running master, restored where there is nothing.

use hy2_master_sdk::Master;
use hy2_master_sdk::backup::envelope::{BackupKey, Encryptor};
use hy2_master_sdk::backup::{BackupError, restore};
use hy2_master_sdk::secrets::MasterKeys;
use hy2_master_sdk::store::{Store, StoreOptions};
use serde_json::json;

use crate::harness::{database, on_both};

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
        let (keys, other) = (fleet.keys.clone(), MasterKeys::generate().unwrap());
        fleet.stop().await;

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new.db");
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
            assert_eq!(checked.unwrap(), restored);
            assert_eq!(restored.epoch, 2);
            let again = builder().keys(keys.clone()).restore(&key(), &backup[..]).await;
            assert!(matches!(again, Err(BackupError::NotEmpty)), "{again:?}");
            let master = builder().keys(keys.clone()).start().await.unwrap();
            assert_eq!(master.epoch(), 2);
            assert_eq!(master.store().schema().await.unwrap(), Some(Store::newest_schema()));
            master.shutdown().await;
        }
    }
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
    let now = hy2_master_sdk::domain::Timestamp(1_800_000_000_000);
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
