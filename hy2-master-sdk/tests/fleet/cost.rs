//! What a steady fleet costs the database.

use std::sync::Arc;
use std::time::Duration;

use hy2_master_sdk::Master;
use hy2_master_sdk::domain::SystemClock;
use hy2_master_sdk::secrets::MasterKeys;
use hy2_proto::control::rpc;
use hy2_proto::control::rpc::session_request::Event as Up;

use crate::agent::{TestMaster, eventually, postgres};

const HEARTBEATS: u32 = 2_000;

#[tokio::test]
async fn heartbeats_run_no_statement() {
    let server = tokio::task::spawn_blocking(|| postgres::Server::start(false))
        .await
        .unwrap();
    let url = postgres::database_on(&server.url).await;
    let admin = sqlx::PgPool::connect(&url).await.unwrap();
    // The server itself counts: it writes every statement down before it runs it.
    for setting in [
        "alter system set log_statement = 'all'",
        "select pg_reload_conf()",
    ] {
        sqlx::query(setting).execute(&admin).await.unwrap();
    }
    admin.close().await;
    let hour = Duration::from_secs(3_600);
    let builder = Master::postgres(url)
        .keys(MasterKeys::generate().unwrap())
        .clock(Arc::new(SystemClock));
    let master = TestMaster::built(builder, tempfile::tempdir().unwrap(), |config| {
        // Written together, once in a while; the tasks that look by themselves do not mix in.
        config.seen_flush = hour;
        config.reconcile_interval = hour;
    })
    .await;
    let agent = master.agent("node").await;
    let session = agent.session().await;
    let statements = || {
        let log = server.log();
        log.matches("LOG:  execute").count() + log.matches("LOG:  statement").count()
    };
    let before = statements();
    assert!(before > 50, "statements are written down: {before}");
    for connections in 1..=HEARTBEATS {
        session
            .send(Up::Heartbeat(rpc::Heartbeat {
                connections,
                ..Default::default()
            }))
            .await;
    }
    eventually("the last heartbeat is known", async || {
        let live = master.master.live_nodes();
        live[0]
            .heartbeat
            .is_some_and(|beat| beat.connections == HEARTBEATS)
    })
    .await;
    let ran = statements() - before;
    assert!(
        ran < HEARTBEATS as usize / 20,
        "{ran} statements for {HEARTBEATS} heartbeats"
    );
    master.master.shutdown().await;
    tokio::task::spawn_blocking(|| server.stop()).await.unwrap();
}
