//! Deliveries of webhooks: whose turn it is, who writes what became of them, and their end.

use std::time::Duration;

use hy2_master_sdk::domain::Timestamp;
use hy2_master_sdk::store::webhooks::{self, DeliveryRow, WebhookRow};
use hy2_master_sdk::store::{Store, events};
use serde_json::json;
use sqlx::types::Json;
use uuid::Uuid;

use crate::backend::Backend;
use crate::rows::NOW;
use crate::upkeep::execute;
use crate::users::told;

/// Makes a webhook with deliveries of so many events.
async fn hook(store: &Store, number: u128, count: i64) -> Uuid {
    let row = WebhookRow {
        id: Uuid::from_u128(number),
        url: "https://hooks.example.org/".to_owned(),
        secret_enc: Vec::new(),
        topics: Json(Vec::new()),
        enabled: true,
        cursor_seq: 0,
        created_by: None,
        rev: 1,
        created_at: NOW,
        updated_at: NOW,
    };
    let mut tx = store.begin().await.unwrap();
    webhooks::insert(&mut tx, &row).await.unwrap();
    tx.commit().await.unwrap();
    let seqs: Vec<i64> = (1..=count).collect();
    assert!(
        webhooks::plan(store, &row, &seqs, count, NOW)
            .await
            .unwrap()
    );
    row.id
}

async fn emit(store: &Store, topics: &[&str]) {
    let mut tx = store.begin().await.unwrap();
    for topic in topics {
        events::emit(&mut tx, topic, "1", &json!({}), None, NOW)
            .await
            .unwrap();
    }
    tx.commit().await.unwrap();
    assert_eq!(events::seal(store).await.unwrap(), topics.len());
}

async fn take(store: &Store, shares: &[(Uuid, i64)], now: Timestamp) -> Vec<DeliveryRow> {
    let until = now.plus(Duration::from_secs(30));
    webhooks::take_due(store, shares, now, until).await.unwrap()
}

pub(crate) async fn each_webhook_gives_its_share_and_what_is_taken_is_taken_once(
    backend: &Backend,
) {
    let store = &backend.store;
    emit(store, &["user.created"; 9]).await;
    let (many, few) = (hook(store, 1, 9).await, hook(store, 2, 2).await);
    assert_eq!(webhooks::due(store, NOW).await.unwrap(), [many, few]);
    let taken = take(store, &[(many, 4), (few, 4)], NOW).await;
    let of = |hook| -> Vec<i64> {
        let of = taken.iter().filter(|row| row.webhook_id == hook);
        of.map(|row| row.event_seq).collect()
    };
    assert_eq!(
        (of(many), of(few)),
        (vec![1, 2, 3, 4], vec![1, 2]),
        "the oldest first"
    );
    assert_eq!(webhooks::due(store, NOW).await.unwrap(), [many]);
    let more = take(store, &[(many, 9), (few, 9)], NOW).await;
    assert_eq!(more.len(), 5);
    // A master that is cut off comes too late: its delivery was taken again.
    let later = NOW.plus(Duration::from_secs(30));
    let again = take(store, &[(few, 1)], later).await;
    assert_eq!((again[0].id, again[0].attempts), (taken[4].id, 2));
    let mut late = taken[4].clone();
    late.status = "failed".to_owned();
    webhooks::finish(store, &late, Some("user.created"), later)
        .await
        .unwrap();
    let mut done = again[0].clone();
    done.status = "delivered".to_owned();
    webhooks::finish(store, &done, Some("user.created"), later)
        .await
        .unwrap();
    webhooks::put_back(store, &done, later).await.unwrap();
    let listed = webhooks::deliveries(store, few, None, None, 9)
        .await
        .unwrap();
    let said: Vec<_> = listed
        .iter()
        .map(|row| (row.status.as_str(), row.attempts))
        .collect();
    assert_eq!(said, [("pending", 1), ("delivered", 2)]);
    // What was not sent is as if it had not been taken; a disabled webhook has nothing due.
    webhooks::put_back(store, &taken[5], NOW).await.unwrap();
    assert_eq!(take(store, &[(few, 9)], NOW).await[0].attempts, 1);
    // A clock that was ahead by three days has left next tries behind that are as far off.
    assert_eq!(take(store, &[(few, 9)], NOW).await.len(), 0);
    let ahead =
        "update webhook_deliveries set next_at = next_at + 259200000 where status = 'pending'";
    execute(store, ahead).await;
    assert_eq!(webhooks::due(store, NOW).await.unwrap(), [many, few]);
    assert_eq!(take(store, &[(few, 9)], NOW).await[0].attempts, 2);
    execute(store, "update webhooks set enabled = not enabled").await;
    assert_eq!(
        webhooks::due(store, later).await.unwrap(),
        Vec::<Uuid>::new()
    );
}

pub(crate) async fn nothing_is_planned_for_a_webhook_that_is_not_what_it_was(backend: &Backend) {
    let store = &backend.store;
    let mut tx = store.begin().await.unwrap();
    for _ in 0..3 {
        events::emit(&mut tx, "user.created", "1", &json!({}), None, NOW)
            .await
            .unwrap();
    }
    tx.commit().await.unwrap();
    let id = hook(store, 1, 0).await;
    let mut tx = store.begin().await.unwrap();
    let seen = webhooks::lock(&mut tx, id).await.unwrap();
    assert_eq!(events::seal_all(&mut tx).await.unwrap(), 3);
    let read = events::after_in(&mut tx, 1, 9).await.unwrap();
    assert_eq!(
        read.iter().map(|event| event.seq).collect::<Vec<_>>(),
        [2, 3]
    );
    webhooks::add_deliveries(&mut tx, id, &[1], NOW)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let off = WebhookRow {
        enabled: false,
        ..seen.clone()
    };
    let mut tx = store.begin().await.unwrap();
    webhooks::update(&mut tx, &off, NOW).await.unwrap();
    tx.commit().await.unwrap();
    let off = webhooks::get(store, id).await.unwrap();
    let plan = async |hook: &WebhookRow| {
        let events = [1, 2, 3];
        webhooks::plan(store, hook, &events, 3, NOW).await.unwrap()
    };
    assert!(!plan(&off).await, "it is off");
    let on = WebhookRow {
        enabled: true,
        topics: Json(vec!["node.*".to_owned()]),
        ..off
    };
    let mut tx = store.begin().await.unwrap();
    webhooks::update(&mut tx, &on, NOW).await.unwrap();
    tx.commit().await.unwrap();
    assert!(!plan(&seen).await, "it is told other topics");
    let planned = async || {
        let rows = webhooks::deliveries(store, id, None, None, 9)
            .await
            .unwrap();
        rows.iter().map(|row| row.event_seq).collect::<Vec<_>>()
    };
    assert_eq!(planned().await, [1]);
    let on = webhooks::get(store, id).await.unwrap();
    assert!(plan(&on).await);
    assert_eq!(planned().await, [3, 2, 1], "none of them twice");
}

pub(crate) async fn what_nobody_takes_is_given_up_and_told_once_for_each_webhook(
    backend: &Backend,
) {
    let store = &backend.store;
    emit(store, &["user.created", "user.updated", "webhook.failed"]).await;
    let (one, two) = (hook(store, 1, 3).await, hook(store, 2, 1).await);
    let day = NOW.plus(webhooks::TRIED_FOR);
    assert_eq!(
        webhooks::give_up(store, Timestamp(day.0 - 1), day)
            .await
            .unwrap(),
        0
    );
    assert_eq!(webhooks::give_up(store, day, day).await.unwrap(), 4);
    assert_eq!(webhooks::give_up(store, day, day).await.unwrap(), 0);
    // Of what was to tell of such nothing is told: two that are away would never end.
    let told: Vec<_> = told(store).await.split_off(3);
    let said: Vec<_> = told
        .iter()
        .map(|event| (event.topic.as_str(), event.key.clone()))
        .collect();
    let failed = "webhook.failed";
    assert_eq!(said, [(failed, one.to_string()), (failed, two.to_string())]);
    let of = json!({"deliveries": 2, "first_event": 1, "last_event": 2, "error": "not sent within a day"});
    assert_eq!(told[0].payload.0, of);
    let listed = webhooks::deliveries(store, one, Some("failed"), None, 9)
        .await
        .unwrap();
    assert_eq!(listed.len(), 3);

    let mut tx = store.begin().await.unwrap();
    let again = webhooks::retry(&mut tx, listed[0].id, day).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!((again.status.as_str(), again.next_at), ("pending", day));
    assert_eq!(
        webhooks::give_up(store, day, day).await.unwrap(),
        0,
        "another day"
    );
    let mut last = take(store, &[(one, 9)], day).await.remove(0);
    assert_eq!(last.id, again.id);
    last.status = "failed".to_owned();
    webhooks::finish(store, &last, Some(failed), day)
        .await
        .unwrap();
    assert_eq!(events::seal(store).await.unwrap(), 0);
}

pub(crate) async fn deliveries_of_an_older_schema_are_tried_for_their_day(backend: &Backend) {
    let older = match backend.store.is_postgres() {
        true => Backend::empty_postgres().await,
        false => Backend::empty_sqlite().await,
    };
    let store = &older.store;
    store.migrate_to(9).await.unwrap();
    let (hook, delivery) = match store.is_postgres() {
        true => (
            "insert into webhooks (id, url, secret_enc, topics, created_at, updated_at) \
             values ('00000000-0000-0000-0000-000000000001', 'https://a.example.org', '', '[]', 1, 1)",
            "insert into webhook_deliveries (id, webhook_id, event_seq, next_at, created_at, updated_at) \
             select id, id, 1, 5, 1000, 1000 from webhooks",
        ),
        false => (
            "insert into webhooks (id, url, secret_enc, topics, created_at, updated_at) \
             values (x'00000000000000000000000000000001', 'https://a.example.org', x'', '[]', 1, 1)",
            "insert into webhook_deliveries (id, webhook_id, event_seq, next_at, created_at, updated_at) \
             select id, id, 1, 5, 1000, 1000 from webhooks",
        ),
    };
    execute(store, hook).await;
    execute(store, delivery).await;
    store.migrate().await.unwrap();
    let hook = Uuid::from_u128(1);
    let taken = take(store, &[(hook, 9)], NOW).await;
    assert_eq!(taken[0].give_up_at, Timestamp(1_000 + 86_400_000));
}
