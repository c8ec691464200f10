//! Webhooks and what was sent to them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::types::Json;
use uuid::Uuid;

use super::{Store, StoreError, Tx, events, on};
use crate::domain::{AdminId, Timestamp};

/// For how long a delivery is tried.
pub const TRIED_FOR: Duration = Duration::from_secs(86_400);

/// Topic of the event that deliveries of a webhook were given up; its key is the webhook.
pub const FAILED_TOPIC: &str = "webhook.failed";

/// Deliveries given up in one transaction.
const GIVE_UP_BATCH: i64 = 500;

/// A webhook as stored.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct WebhookRow {
    /// Its id.
    pub id: Uuid,
    /// Where to send.
    pub url: String,
    /// Key of the signature, sealed.
    pub secret_enc: Vec<u8>,
    /// What to send: `user.*`, `node.state`; empty: everything.
    pub topics: Json<Vec<String>>,
    /// Whether it is sent to.
    pub enabled: bool,
    /// Events up to this number have their deliveries.
    pub cursor_seq: i64,
    /// Made by.
    pub created_by: Option<AdminId>,
    /// Revision.
    pub rev: i64,
    /// Made at.
    pub created_at: Timestamp,
    /// Changed at.
    pub updated_at: Timestamp,
}

/// A delivery as stored.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct DeliveryRow {
    /// Its id, told to the receiver to recognise repetitions.
    pub id: Uuid,
    /// To which webhook.
    pub webhook_id: Uuid,
    /// Which event.
    pub event_seq: i64,
    /// `pending`, `delivered` or `failed`.
    pub status: String,
    /// Tries so far.
    pub attempts: i64,
    /// Next try.
    pub next_at: Timestamp,
    /// Until when it is tried.
    pub give_up_at: Timestamp,
    /// HTTP status of the last try.
    pub response_status: Option<i64>,
    /// Why the last try failed.
    pub error: Option<String>,
    /// Made at.
    pub created_at: Timestamp,
    /// Changed at.
    pub updated_at: Timestamp,
}

macro_rules! delivery_columns {
    () => {
        "id, webhook_id, event_seq, status, attempts, next_at, give_up_at, response_status, error, created_at, \
         updated_at"
    };
}

/// Stores a webhook; it is sent events after `cursor_seq`.
///
/// # Errors
///
/// The database refuses.
pub async fn insert(tx: &mut Tx, hook: &WebhookRow) -> Result<(), StoreError> {
    on!(tx, |ex| sqlx::query(
        "insert into webhooks (id, url, secret_enc, topics, enabled, cursor_seq, created_by, \
         created_at, updated_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $8)",
    )
    .bind(hook.id)
    .bind(&hook.url)
    .bind(&hook.secret_enc)
    .bind(&hook.topics)
    .bind(hook.enabled)
    .bind(hook.cursor_seq)
    .bind(hook.created_by)
    .bind(hook.created_at)
    .execute(ex)
    .await
    .map(drop))?;
    Ok(())
}

/// Lists all webhooks.
///
/// # Errors
///
/// The database refuses.
pub async fn list(store: &Store) -> Result<Vec<WebhookRow>, StoreError> {
    let rows = on!(read store, |ex| sqlx::query_as(
        "select id, url, secret_enc, topics, enabled, cursor_seq, created_by, rev, created_at, \
         updated_at from webhooks order by created_at, id limit 1000",
    )
    .fetch_all(ex)
    .await)?;
    Ok(rows)
}

/// Returns a webhook.
///
/// # Errors
///
/// [`StoreError::NotFound`], or the database refuses.
pub async fn get(store: &Store, id: Uuid) -> Result<WebhookRow, StoreError> {
    let row = on!(read store, |ex| sqlx::query_as(
        "select id, url, secret_enc, topics, enabled, cursor_seq, created_by, rev, created_at, \
         updated_at from webhooks where id = $1",
    )
    .bind(id)
    .fetch_optional(ex)
    .await)?;
    row.ok_or(StoreError::NotFound("webhook"))
}

/// Returns a webhook, which nobody else changes or plans for until the transaction ends.
///
/// # Errors
///
/// [`StoreError::NotFound`], or the database refuses.
pub async fn lock(tx: &mut Tx, id: Uuid) -> Result<WebhookRow, StoreError> {
    const PG: &str = "select id, url, secret_enc, topics, enabled, cursor_seq, created_by, rev, created_at, \
        updated_at from webhooks where id = $1 for update";
    const SQLITE: &str = "select id, url, secret_enc, topics, enabled, cursor_seq, created_by, rev, created_at, \
        updated_at from webhooks where id = $1";
    let sql = if tx.is_postgres() { PG } else { SQLITE };
    let row = on!(tx, |ex| sqlx::query_as(sql)
        .bind(id)
        .fetch_optional(ex)
        .await)?;
    row.ok_or(StoreError::NotFound("webhook"))
}

/// Returns how many webhooks there are.
///
/// # Errors
///
/// The database refuses.
pub async fn count(tx: &mut Tx) -> Result<i64, StoreError> {
    let (count,): (i64,) = on!(tx, |ex| sqlx::query_as("select count(*) from webhooks")
        .fetch_one(ex)
        .await)?;
    Ok(count)
}

/// Writes address, topics and switch if the row is at `rev`.
///
/// # Errors
///
/// [`StoreError::StaleRevision`] if it is not.
pub async fn update(tx: &mut Tx, hook: &WebhookRow, now: Timestamp) -> Result<(), StoreError> {
    let changed = on!(tx, |ex| {
        sqlx::query(
        "update webhooks set url = $3, topics = $4, enabled = $5, cursor_seq = $6, rev = rev + 1, \
         updated_at = $7 where id = $1 and rev = $2",
    )
    .bind(hook.id)
    .bind(hook.rev)
    .bind(&hook.url)
    .bind(&hook.topics)
    .bind(hook.enabled)
    .bind(hook.cursor_seq)
    .bind(now)
    .execute(ex)
    .await
    .map(|done| done.rows_affected())
    })?;
    if changed == 1 {
        return Ok(());
    }
    Err(StoreError::StaleRevision {
        what: "webhook",
        expected: hook.rev,
        actual: -1,
    })
}

/// Gives a webhook another key of its signatures. Returns it.
///
/// # Errors
///
/// [`StoreError::NotFound`], or the database refuses.
pub async fn set_secret(
    tx: &mut Tx,
    id: Uuid,
    secret_enc: &[u8],
    now: Timestamp,
) -> Result<WebhookRow, StoreError> {
    let row = on!(tx, |ex| sqlx::query_as(
        "update webhooks set secret_enc = $2, rev = rev + 1, updated_at = $3 where id = $1 \
         returning id, url, secret_enc, topics, enabled, cursor_seq, created_by, rev, created_at, \
         updated_at",
    )
    .bind(id)
    .bind(secret_enc)
    .bind(now)
    .fetch_optional(ex)
    .await)?;
    row.ok_or(StoreError::NotFound("webhook"))
}

/// Removes a webhook and its deliveries.
///
/// # Errors
///
/// [`StoreError::NotFound`], or the database refuses.
pub async fn delete(tx: &mut Tx, id: Uuid) -> Result<(), StoreError> {
    let changed = on!(tx, |ex| sqlx::query("delete from webhooks where id = $1")
        .bind(id)
        .execute(ex)
        .await
        .map(|done| done.rows_affected()))?;
    if changed == 1 {
        return Ok(());
    }
    Err(StoreError::NotFound("webhook"))
}

/// Makes deliveries of one webhook for events, and moves its cursor, in one transaction. Nothing
/// happens if somebody else has moved it, or the webhook is not what it was: off, or told other topics.
///
/// # Errors
///
/// The database refuses.
pub async fn plan(
    store: &Store,
    hook: &WebhookRow,
    events: &[i64],
    cursor: i64,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let mut tx = store.begin().await?;
    let moved = on!(tx, |ex| {
        sqlx::query(
        "update webhooks set cursor_seq = $3 where id = $1 and cursor_seq = $2 and rev = $4 and enabled",
    )
    .bind(hook.id)
    .bind(hook.cursor_seq)
    .bind(cursor)
    .bind(hook.rev)
    .execute(ex)
    .await
    .map(|done| done.rows_affected())
    })?;
    if moved != 1 {
        return Ok(false);
    }
    add_deliveries(&mut tx, hook.id, events, now).await?;
    tx.commit().await?;
    Ok(true)
}

/// Makes deliveries of one webhook for events that have none.
///
/// # Errors
///
/// The database refuses.
pub async fn add_deliveries(
    tx: &mut Tx,
    hook: Uuid,
    events: &[i64],
    now: Timestamp,
) -> Result<(), StoreError> {
    for event in events {
        on!(tx, |ex| sqlx::query(
            "insert into webhook_deliveries (id, webhook_id, event_seq, next_at, give_up_at, \
             created_at, updated_at) values ($1, $2, $3, $4, $5, $4, $4) \
             on conflict (webhook_id, event_seq) do nothing",
        )
        .bind(Uuid::new_v4())
        .bind(hook)
        .bind(event)
        .bind(now)
        .bind(now.plus(TRIED_FOR))
        .execute(ex)
        .await
        .map(drop))?;
    }
    Ok(())
}

/// No pause between two tries is as long.
pub const FURTHEST: Duration = Duration::from_secs(2 * 3_600);

/// Returns the webhooks that are sent to and have deliveries that are due. A next try further off than
/// [`FURTHEST`] was set by a clock that was ahead, and is due as well.
///
/// # Errors
///
/// The database refuses.
pub async fn due(store: &Store, now: Timestamp) -> Result<Vec<Uuid>, StoreError> {
    // By the index of each webhook's own: a long queue of one costs the others nothing.
    const SQL: &str = "select id from webhooks w where enabled and exists (select 1 from webhook_deliveries d \
                       where d.webhook_id = w.id and d.status = 'pending' and (d.next_at <= $1 or d.next_at > $2)) \
                       order by created_at, id limit 1000";
    Ok(on!(read store, |ex| sqlx::query_scalar(SQL)
        .bind(now)
        .bind(now.plus(FURTHEST))
        .fetch_all(ex)
        .await)?)
}

/// Takes of each webhook so many deliveries that are due, the longest due first, and puts their next try
/// off to `until`, so that no other master sends them meanwhile.
///
/// # Errors
///
/// The database refuses.
pub async fn take_due(
    store: &Store,
    shares: &[(Uuid, i64)],
    now: Timestamp,
    until: Timestamp,
) -> Result<Vec<DeliveryRow>, StoreError> {
    const PG: &str = concat!(
        "select ",
        delivery_columns!(),
        " from webhook_deliveries where webhook_id = $1 and status = 'pending' and (next_at <= $2 or next_at > $4) \
         order by next_at, event_seq limit $3 for update skip locked"
    );
    const SQLITE: &str = concat!(
        "select ",
        delivery_columns!(),
        " from webhook_deliveries where webhook_id = $1 and status = 'pending' and (next_at <= $2 or next_at > $4) \
         order by next_at, event_seq limit $3"
    );
    let mut tx = store.begin().await?;
    let select = if tx.is_postgres() { PG } else { SQLITE };
    let mut taken: Vec<DeliveryRow> = Vec::new();
    for (webhook, count) in shares {
        taken.extend(on!(tx, |ex| sqlx::query_as::<_, DeliveryRow>(select)
            .bind(webhook)
            .bind(now)
            .bind(count)
            .bind(now.plus(FURTHEST))
            .fetch_all(ex)
            .await)?);
    }
    for row in &mut taken {
        on!(tx, |ex| sqlx::query(
            "update webhook_deliveries set attempts = attempts + 1, next_at = $2, updated_at = $3 \
             where id = $1",
        )
        .bind(row.id)
        .bind(until)
        .bind(now)
        .execute(ex)
        .await
        .map(drop))?;
        row.attempts += 1;
    }
    tx.commit().await?;
    Ok(taken)
}

/// Puts a delivery back that was taken and not sent: it waits for its webhook, as if never taken.
///
/// # Errors
///
/// The database refuses.
pub async fn put_back(store: &Store, row: &DeliveryRow, now: Timestamp) -> Result<(), StoreError> {
    on!(write store, |ex| sqlx::query(
        "update webhook_deliveries set attempts = attempts - 1, next_at = $3, updated_at = $3 \
         where id = $1 and attempts = $2 and status = 'pending'",
    )
    .bind(row.id)
    .bind(row.attempts)
    .bind(now)
    .execute(ex)
    .await
    .map(drop))?;
    Ok(())
}

/// Writes what became of a try, unless somebody else has taken the delivery since. Of one that is
/// given up there is an event; `topic` is what it was to tell, if that is still known.
///
/// # Errors
///
/// The database refuses.
pub async fn finish(
    store: &Store,
    row: &DeliveryRow,
    topic: Option<&str>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let mut tx = store.begin().await?;
    let changed = on!(tx, |ex| sqlx::query(
        "update webhook_deliveries set status = $3, next_at = $4, response_status = $5, \
         error = $6, updated_at = $7 where id = $1 and attempts = $2 and status = 'pending'",
    )
    .bind(row.id)
    .bind(row.attempts)
    .bind(&row.status)
    .bind(row.next_at)
    .bind(row.response_status)
    .bind(&row.error)
    .bind(now)
    .execute(ex)
    .await
    .map(|done| done.rows_affected()))?;
    if changed == 1 && row.status == "failed" && topic.is_some_and(is_told_of) {
        let payload = json!({
            "deliveries": 1, "first_event": row.event_seq, "last_event": row.event_seq,
            "error": row.error,
        });
        emit_failed(&mut tx, row.webhook_id, &payload, now).await?;
    }
    tx.commit().await
}

/// Gives up deliveries that should have been done `before`, whether they were tried or not: at most one
/// batch, of which there is one event for each webhook. Returns how many.
///
/// # Errors
///
/// The database refuses.
pub async fn give_up(
    store: &Store,
    before: Timestamp,
    now: Timestamp,
) -> Result<usize, StoreError> {
    const PG: &str = "update webhook_deliveries set status = 'failed', updated_at = $2, \
        error = coalesce(error, 'not sent within a day') \
        where id in (select id from webhook_deliveries where status = 'pending' and give_up_at <= $1 \
        order by give_up_at limit $3 for update skip locked) \
        returning webhook_id, event_seq, (select topic from events where seq = event_seq), error";
    const SQLITE: &str = "update webhook_deliveries set status = 'failed', updated_at = $2, \
        error = coalesce(error, 'not sent within a day') \
        where id in (select id from webhook_deliveries where status = 'pending' and give_up_at <= $1 \
        order by give_up_at limit $3) \
        returning webhook_id, event_seq, (select topic from events where seq = event_seq), error";
    type GivenUp = (Uuid, i64, Option<String>, Option<String>);
    let mut tx = store.begin().await?;
    let sql = if tx.is_postgres() { PG } else { SQLITE };
    let rows = on!(tx, |ex| sqlx::query_as::<_, GivenUp>(sql)
        .bind(before)
        .bind(now)
        .bind(GIVE_UP_BATCH)
        .fetch_all(ex)
        .await)?;
    if rows.is_empty() {
        return Ok(0);
    }
    let mut by_hook = BTreeMap::<Uuid, (usize, i64, i64, Option<&str>)>::new();
    for (webhook, event, topic, error) in &rows {
        if topic.as_deref().is_some_and(is_told_of) {
            let of = by_hook.entry(*webhook).or_insert((0, *event, *event, None));
            *of = (
                of.0 + 1,
                of.1.min(*event),
                of.2.max(*event),
                error.as_deref(),
            );
        }
    }
    for (webhook, (deliveries, first, last, error)) in by_hook {
        let payload = json!({
            "deliveries": deliveries, "first_event": first, "last_event": last, "error": error,
        });
        emit_failed(&mut tx, webhook, &payload, now).await?;
    }
    tx.commit().await?;
    Ok(rows.len())
}

/// Of deliveries that were to tell of such there is no event again: webhooks that are all away would
/// tell each other without end.
fn is_told_of(topic: &str) -> bool {
    topic != FAILED_TOPIC
}

async fn emit_failed(
    tx: &mut Tx,
    webhook: Uuid,
    payload: &Value,
    now: Timestamp,
) -> Result<(), StoreError> {
    events::emit(tx, FAILED_TOPIC, &webhook.to_string(), payload, None, now).await
}

/// Returns a delivery of a webhook.
///
/// # Errors
///
/// [`StoreError::NotFound`], or the database refuses.
pub async fn delivery(tx: &mut Tx, webhook: Uuid, id: Uuid) -> Result<DeliveryRow, StoreError> {
    const SQL: &str = concat!(
        "select ",
        delivery_columns!(),
        " from webhook_deliveries where webhook_id = $1 and id = $2"
    );
    let row = on!(tx, |ex| sqlx::query_as(SQL)
        .bind(webhook)
        .bind(id)
        .fetch_optional(ex)
        .await)?;
    row.ok_or(StoreError::NotFound("delivery"))
}

/// Lets a delivery be sent again, at once, and be tried for another day. Returns it.
///
/// # Errors
///
/// [`StoreError::NotFound`], or the database refuses.
pub async fn retry(tx: &mut Tx, id: Uuid, now: Timestamp) -> Result<DeliveryRow, StoreError> {
    const SQL: &str = concat!(
        "update webhook_deliveries set status = 'pending', next_at = $2, give_up_at = $3, \
         updated_at = $2 where id = $1 returning ",
        delivery_columns!()
    );
    let row = on!(tx, |ex| sqlx::query_as(SQL)
        .bind(id)
        .bind(now)
        .bind(now.plus(TRIED_FOR))
        .fetch_optional(ex)
        .await)?;
    row.ok_or(StoreError::NotFound("delivery"))
}

/// Lists deliveries of a webhook, all or those of a status, the newest event first, of events before
/// `before`.
///
/// # Errors
///
/// The database refuses.
pub async fn deliveries(
    store: &Store,
    webhook: Uuid,
    status: Option<&str>,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<DeliveryRow>, StoreError> {
    const SQL: &str = concat!(
        "select ",
        delivery_columns!(),
        " from webhook_deliveries where webhook_id = $1 and event_seq < $2 \
         and ($4 is null or status = $4) order by event_seq desc limit $3"
    );
    let rows = on!(read store, |ex| sqlx::query_as(SQL)
    .bind(webhook)
    .bind(before.unwrap_or(i64::MAX))
    .bind(limit)
    .bind(status)
    .fetch_all(ex)
    .await)?;
    Ok(rows)
}
