//! A database that dies while batches arrive: what was acknowledged is there, nothing is twice.

use std::process::{Command, Stdio};
use std::time::Duration;

use hy2_master_sdk::domain::{NodeId, UserId};
use hy2_master_sdk::store::{Store, users};
use uuid::Uuid;

use crate::backend::postgres::{Server, database_on};
use crate::backend::{open_postgres, open_sqlite};
use crate::rows::{NOW, assign, batch, node, user};

const SPOOL: Uuid = Uuid::from_u128(77);
const CRASHES: i64 = 5;
const BATCHES_PER_CRASH: i64 = 40;

/// Sends batch after batch like an agent: again until it is acknowledged.
async fn deliver(store: &Store, node: NodeId, user: UserId, from: i64, to: i64) {
    let mut seq = from;
    while seq <= to {
        let batch = batch(node, SPOOL, seq, seq, &[(user.0, seq, 1)]);
        match store.ingest(&batch, NOW).await {
            Ok(done) => {
                assert!(
                    done.durable_seq >= seq,
                    "an acknowledged batch is lost: {} < {seq}",
                    done.durable_seq
                );
                seq = done.durable_seq + 1;
            }
            Err(error) => {
                assert!(error.is_transient(), "{error:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_postgres_loses_nothing_acknowledged_and_counts_nothing_twice() {
    let server = Server::start(true);
    let url = database_on(&server.url).await;
    let store = open_postgres(&url).await;
    store.migrate().await.unwrap();
    let node = node(&store, "one").await;
    let ann = user(&store, "ann").await;
    assign(&store, ann, node).await;
    let last = CRASHES * BATCHES_PER_CRASH;
    let sender = {
        let store = store.clone();
        tokio::spawn(async move { deliver(&store, node, ann, 1, last).await })
    };
    for crash in 1..=CRASHES {
        // Each crash comes while batches are under way.
        while store
            .cursors(node)
            .await
            .map_or(0, |rows| rows.first().map_or(0, |row| row.last_seq))
            < (crash - 1) * BATCHES_PER_CRASH + 3
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::task::block_in_place(|| server.crash_and_resume());
    }
    sender.await.unwrap();
    let row = store.user(ann).await.unwrap();
    assert_eq!((row.tx, row.rx), (last * (last + 1) / 2, last));
    store.close().await;
    server.stop();
}

#[tokio::test]
async fn a_transaction_that_sqlite_ended_by_itself_does_not_stop_the_writer() {
    let backend = crate::backend::Backend::sqlite().await;
    let store = &backend.store;
    let hy2_master_sdk::store::Db::Sqlite { write, .. } = store.db() else {
        panic!("SQLite");
    };
    // As on a full disk.
    let mut tx = write.begin_with("BEGIN IMMEDIATE").await.unwrap();
    sqlx::query("ROLLBACK").execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap_err();
    let one = node(store, "one").await;
    let ann = user(store, "ann").await;
    assign(store, ann, one).await;
    deliver(store, one, ann, 1, 3).await;
    assert_eq!(store.user(ann).await.unwrap().tx, 6);
}

/// What the process does that the next test kills: delivers, and prints every acknowledged number.
#[allow(clippy::print_stdout, reason = "the test reads it")]
async fn deliver_until_killed(path: &std::path::Path) {
    let store = open_sqlite(path).await;
    let node = store.nodes(None, 1).await.unwrap()[0].id;
    let ann = store.user_by_name("ann").await.unwrap().id;
    let from = store
        .cursors(node)
        .await
        .unwrap()
        .first()
        .map_or(1, |row| row.last_seq + 1);
    for seq in from.. {
        deliver(&store, node, ann, seq, seq).await;
        println!("acknowledged {seq}");
    }
}

#[tokio::test]
async fn a_killed_master_on_sqlite_loses_nothing_acknowledged_and_counts_nothing_twice() {
    use std::io::BufRead;
    const TEST: &str =
        "crash::a_killed_master_on_sqlite_loses_nothing_acknowledged_and_counts_nothing_twice";
    // The same test is the process to kill, when the environment names a store.
    if let Some(path) = std::env::var_os("HY2_TEST_DELIVER_TO") {
        return deliver_until_killed(path.as_ref()).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("master.db");
    let store = open_sqlite(&path).await;
    store.migrate().await.unwrap();
    let node = node(&store, "one").await;
    let ann = user(&store, "ann").await;
    assign(&store, ann, node).await;
    store.close().await;
    let mut acknowledged = 0;
    for _ in 0..CRASHES {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture"])
            .env("HY2_TEST_DELIVER_TO", &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        while seen < 10 {
            let line = lines
                .next()
                .expect("the child delivers until it is killed")
                .unwrap();
            if let Some((_, seq)) = line.split_once("acknowledged ") {
                acknowledged = seq.trim().parse().unwrap();
                seen += 1;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it had printed before it died.
        for line in lines.map_while(Result::ok) {
            if let Some((_, seq)) = line.split_once("acknowledged ")
                && let Ok(seq) = seq.trim().parse()
            {
                acknowledged = seq;
            }
        }
        let store = open_sqlite(&path).await;
        let last: i64 = store.cursors(node).await.unwrap()[0].last_seq;
        assert!(last >= acknowledged, "{last} < {acknowledged}");
        let row = store.user(ann).await.unwrap();
        assert_eq!((row.tx, row.rx), (last * (last + 1) / 2, last));
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_ever_for_a_table_that_somebody_has_locked() {
    let backend = crate::backend::Backend::postgres().await;
    let crate::backend::Place::Postgres(url) = &backend.place else {
        panic!("PostgreSQL");
    };
    let ann = user(&backend.store, "ann").await;
    let own = sqlx::PgPool::connect(url).await.unwrap();
    let mut lock = own.begin().await.unwrap();
    sqlx::query("lock table users in access exclusive mode")
        .execute(&mut *lock)
        .await
        .unwrap();
    let waiting = tokio::time::timeout(Duration::from_secs(60), backend.store.user(ann));
    let error = waiting.await.expect("in time").unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    lock.rollback().await.unwrap();
    assert_eq!(backend.store.user(ann).await.unwrap().id, ann);

    // What the address asks for stays.
    let longer = open_postgres(&format!("{url}?options[lock_timeout]=90s")).await;
    let hy2_master_sdk::store::Db::Pg(pool) = longer.db() else {
        panic!("PostgreSQL");
    };
    let set: String = sqlx::query_scalar("show lock_timeout")
        .fetch_one(pool)
        .await
        .unwrap();
    assert_eq!(set, "90s");
}

/// Of a master whose host is gone: its locks do not stay for hours, and an address keeps what it asks for.
#[tokio::test]
async fn a_session_that_is_quiet_or_gone_is_ended_by_the_server() {
    let backend = crate::backend::Backend::postgres().await;
    let crate::backend::Place::Postgres(url) = &backend.place else {
        panic!("PostgreSQL");
    };
    let setting = async |store: &Store, name: &str| -> String {
        let hy2_master_sdk::store::Db::Pg(pool) = store.db() else {
            panic!("PostgreSQL");
        };
        let asked = sqlx::query_scalar("select current_setting($1)").bind(name);
        asked.fetch_one(pool).await.unwrap()
    };
    for (name, value) in [
        ("lock_timeout", "5s"),
        ("idle_in_transaction_session_timeout", "1min"),
        ("tcp_keepalives_idle", "30"),
        ("tcp_keepalives_interval", "10"),
        ("tcp_keepalives_count", "3"),
        ("tcp_user_timeout", "60000"),
    ] {
        assert_eq!(setting(&backend.store, name).await, value, "{name}");
    }
    let name = "idle_in_transaction_session_timeout";
    let own = open_postgres(&format!("{url}?options[{name}]=250ms")).await;
    assert_eq!(setting(&own, name).await, "250ms");

    let ann = user(&backend.store, "ann").await;
    let mut quiet = own.begin().await.unwrap();
    users::delete(&mut quiet, ann, None, NOW).await.unwrap();
    // The transaction holds Ann's row until the server ends it.
    let mut tx = backend.store.begin().await.unwrap();
    let deleted = users::delete(&mut tx, ann, None, NOW).await;
    deleted.expect("the row is free");
    assert!(quiet.commit().await.is_err());
}
