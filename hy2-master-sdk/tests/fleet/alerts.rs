//! Alerts of nodes: those that they raise, when they are over, and the one that only the master can see.

use std::sync::Arc;
use std::time::Duration;

use hy2_master_sdk::domain::{Clock, ManualClock, SystemClock};
use hy2_master_sdk::store::alerts;
use hy2_proto::control::rpc;
use hy2_proto::control::rpc::session_request::Event as Up;

use crate::agent::{Session, TestMaster, eventually};

#[tokio::test]
async fn an_alert_is_over_when_the_node_would_have_said_it_again() {
    // Certificates are judged by the real time.
    let clock = Arc::new(ManualClock::new(SystemClock.now()));
    let master = TestMaster::with(Arc::clone(&clock) as _, |_| {}).await;
    let agent = master.agent("node").await;
    let node = agent.node().await;
    let session = agent.session().await;
    let store = master.master.store();
    let open = async || {
        let open = alerts::open_of(store, node).await.unwrap();
        let mut rules: Vec<_> = open.into_iter().map(|alert| alert.rule).collect();
        rules.sort_unstable();
        rules
    };
    let all = [
        "clock_skew",
        "ledger_not_written",
        "spool_nearly_full",
        "traffic_gap",
    ];
    for rule in all {
        let alert = rpc::Alert {
            rule: rule.to_owned(),
            severity: "warning".to_owned(),
            message: "a text".to_owned(),
            ..Default::default()
        };
        session.send(Up::Alert(alert)).await;
    }
    eventually("all are open", async || open().await == all).await;
    // The node goes on saying that it lives, in the Session that it complained in.
    let beats = async |session: &Session, passed: Duration| {
        clock.advance(passed);
        session.send(Up::Heartbeat(rpc::Heartbeat::default())).await;
    };
    beats(&session, Duration::from_secs(120)).await;
    drop(session);

    // The next one says nothing of its clock.
    let mut session = agent.session().await;
    let update = session.update().await;
    beats(&session, Duration::from_secs(61)).await;
    eventually("the clock is right", async || {
        open().await == ["ledger_not_written", "spool_nearly_full", "traffic_gap"]
    })
    .await;
    session.ack(&update).await;
    eventually("the acknowledgement is noted", async || {
        let row = store.node(node).await.unwrap();
        u64::try_from(row.applied_rev).unwrap() == update.manifest.rev
    })
    .await;
    beats(&session, Duration::from_secs(601)).await;
    eventually("the disk takes it", async || {
        open().await == ["spool_nearly_full", "traffic_gap"]
    })
    .await;
    beats(&session, Duration::from_secs(3_600)).await;
    eventually("silence counts", async || open().await == ["traffic_gap"]).await;
    // What happened has happened.
    beats(&session, Duration::from_secs(86_400)).await;
    eventually("the last heartbeat is there", async || {
        let live = master.master.live_nodes();
        live.iter().any(|node| node.heartbeat.is_some())
    })
    .await;
    assert_eq!(open().await, ["traffic_gap"]);
}

#[tokio::test]
async fn two_agents_with_one_identity_are_told_to_the_operators() {
    let master = TestMaster::start().await;
    let agent = master.agent("node").await;
    let node = agent.node().await;
    let open = async || alerts::open_of(master.master.store(), node).await.unwrap();
    let opens_with = async |spool: u8| {
        let hello = rpc::Hello {
            spool_ids: vec![vec![spool; 16].into()],
            ..Default::default()
        };
        let mut session = agent.try_session(hello).await.unwrap();
        session.next().await.expect("a welcome");
    };
    // An agent that reconnects, and one whose folder is new.
    for spool in [1, 1, 2, 2] {
        opens_with(spool).await;
        assert_eq!(open().await.len(), 0, "{spool}");
    }
    opens_with(1).await;
    let alerts = open().await;
    assert_eq!(alerts.len(), 1);
    assert_eq!(
        (alerts[0].rule.as_str(), alerts[0].severity.as_str()),
        ("identity_twice", "critical")
    );
    assert!(alerts[0].message.starts_with("two agents"), "{alerts:?}");
    opens_with(2).await;
    assert_eq!(open().await.len(), 1);
}
