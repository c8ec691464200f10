//! Alerts: open once, told once, listed, closed and forgotten.

use std::time::Duration;

use hy2_master_sdk::MasterConfig;
use hy2_master_sdk::domain::NodeId;
use hy2_master_sdk::store::alerts::{self, AlertFilter};
use hy2_master_sdk::store::{Store, events, upkeep};
use uuid::Uuid;

use crate::backend::Backend;
use crate::rows::{NOW, node};

async fn raise(store: &Store, node: NodeId, rule: &str, severity: &str) -> bool {
    let raised = store.raise_alert(node, rule, severity, "text", NOW);
    raised.await.unwrap()
}

/// Topic and object of every event.
async fn told(store: &Store) -> Vec<(String, String)> {
    while events::seal(store).await.unwrap() > 0 {}
    let all = events::after(store, 0, 1_000).await.unwrap();
    all.into_iter()
        .map(|event| (event.topic, event.key))
        .collect()
}

pub(crate) async fn an_alert_is_told_when_it_is_news_and_when_it_is_over(backend: &Backend) {
    let store = &backend.store;
    let node = node(store, "one").await;
    for (severity, news) in [
        ("warning", true),
        ("warning", false),
        ("critical", true),
        ("critical", false),
    ] {
        assert_eq!(raise(store, node, "clock_skew", severity).await, news);
    }
    let open = alerts::open_of(store, node).await.unwrap();
    assert_eq!((open.len(), open[0].severity.as_str()), (1, "critical"));
    let id = open[0].id;
    for _ in 0..2 {
        let mut tx = store.begin().await.unwrap();
        alerts::over(&mut tx, id, NOW).await.unwrap();
        tx.commit().await.unwrap();
    }
    // Of what is rolled back nobody hears.
    let mut tx = store.begin().await.unwrap();
    alerts::raise(&mut tx, Some(node), "other", "info", "text", NOW)
        .await
        .unwrap();
    tx.rollback().await.unwrap();
    let of = |topic: &str| (topic.to_owned(), id.to_string());
    let topics = told(store).await;
    let of_alerts: Vec<_> = topics
        .into_iter()
        .filter(|(topic, _)| topic.starts_with("alert."))
        .collect();
    assert_eq!(
        of_alerts,
        [of("alert.raised"), of("alert.raised"), of("alert.closed")]
    );
    assert_eq!(
        alerts::get(store, id).await.unwrap().closed_at,
        Some(NOW),
        "closed"
    );
    assert!(raise(store, node, "clock_skew", "warning").await, "another");
}

pub(crate) async fn a_node_has_so_many_alerts_open_and_no_more(backend: &Backend) {
    let store = &backend.store;
    let (node, other) = (node(store, "one").await, node(store, "two").await);
    for at in 0..alerts::MAX_OPEN {
        assert!(raise(store, node, &format!("rule-{at}"), "info").await);
    }
    assert!(!raise(store, node, "one more", "critical").await);
    // What is open goes on, and so do others.
    assert!(raise(store, node, "rule-3", "critical").await);
    assert!(raise(store, other, "one more", "info").await);
    let counts = alerts::open_counts(store).await.unwrap();
    let mut counts: Vec<_> = counts
        .into_iter()
        .map(|(node, count)| (node.0, count))
        .collect();
    counts.sort_unstable();
    assert_eq!(counts, [(node.0, alerts::MAX_OPEN), (other.0, 1)]);
}

pub(crate) async fn alerts_are_listed_in_pages_and_kept_for_a_while(backend: &Backend) {
    let store = &backend.store;
    let (one, two) = (node(store, "one").await, node(store, "two").await);
    for (node, rule) in [(one, "a"), (two, "b"), (one, "c"), (two, "d")] {
        raise(store, node, rule, "warning").await;
    }
    let mut tx = store.begin().await.unwrap();
    // Later than the others, of the fleet.
    let later = NOW.plus(Duration::from_secs(1));
    alerts::raise(&mut tx, None, "e", "critical", "text", later)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let closed = alerts::open_of(store, two).await.unwrap();
    let closed = closed.iter().find(|alert| alert.rule == "b").unwrap().id;
    let mut tx = store.begin().await.unwrap();
    assert!(
        alerts::close(&mut tx, closed, later)
            .await
            .unwrap()
            .is_some()
    );
    assert!(
        alerts::close(&mut tx, closed, later)
            .await
            .unwrap()
            .is_none()
    );
    tx.commit().await.unwrap();

    let rules = async |filter: AlertFilter| {
        let (mut found, mut before) = (Vec::new(), None);
        loop {
            let page = alerts::list(store, filter, before, 2).await.unwrap();
            let Some(last) = page.last() else {
                return found;
            };
            before = Some((last.opened_at.0, last.id));
            found.extend(page.into_iter().map(|alert| alert.rule));
        }
    };
    let filter = |open, node| AlertFilter { open, node };
    assert_eq!(rules(filter(None, None)).await[0], "e", "the newest first");
    let sorted = async |filter| {
        let mut found = rules(filter).await;
        found.sort_unstable();
        found.concat()
    };
    assert_eq!(sorted(filter(None, None)).await, "abcde");
    assert_eq!(sorted(filter(Some(true), None)).await, "acde");
    assert_eq!(sorted(filter(Some(false), None)).await, "b");
    assert_eq!(sorted(filter(None, Some(two))).await, "bd");
    assert_eq!(sorted(filter(Some(true), Some(two))).await, "d");
    assert!(alerts::get(store, Uuid::nil()).await.is_err());

    let config = MasterConfig::default();
    let kept = later.plus(config.keep_events);
    for (at, left) in [(kept, "abcde"), (kept.plus(Duration::from_secs(1)), "acde")] {
        let mut tx = store.begin().await.unwrap();
        upkeep::expire(&mut tx, &config, at).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(sorted(filter(None, None)).await, left);
    }
}
