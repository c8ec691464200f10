//! Webhooks and what was sent to them.

use sqlx::types::Json;
use uuid::Uuid;

use super::{Store, StoreError, Tx, on};
use crate::domain::{AdminId, Timestamp};

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
    /// HTTP status of the last try.
    pub response_status: Option<i64>,
    /// Why the last try failed.
    pub error: Option<String>,
    /// Made at.
    pub created_at: Timestamp,
    /// Changed at.
    pub updated_at: Timestamp,
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
/// happens if somebody else has moved it.
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
    let moved = on!(tx, |ex| sqlx::query(
        "update webhooks set cursor_seq = $3 where id = $1 and cursor_seq = $2",
    )
    .bind(hook.id)
    .bind(hook.cursor_seq)
    .bind(cursor)
    .execute(ex)
    .await
    .map(|done| done.rows_affected()))?;
    if moved != 1 {
        return Ok(false);
    }
    for event in events {
        on!(tx, |ex| sqlx::query(
            "insert into webhook_deliveries (id, webhook_id, event_seq, next_at, created_at, \
             updated_at) values ($1, $2, $3, $4, $4, $4) \
             on conflict (webhook_id, event_seq) do nothing",
        )
        .bind(Uuid::new_v4())
        .bind(hook.id)
        .bind(event)
        .bind(now)
        .execute(ex)
        .await
        .map(drop))?;
    }
    tx.commit().await?;
    Ok(true)
}

/// Takes deliveries that are due, and puts their next try off to `until`, so that no other master
/// sends them meanwhile.
///
/// # Errors
///
/// The database refuses.
pub async fn take_due(
    store: &Store,
    now: Timestamp,
    until: Timestamp,
    limit: i64,
) -> Result<Vec<DeliveryRow>, StoreError> {
    let mut tx = store.begin().await?;
    let lock = match tx.connection() {
        super::Connection::Pg(_) => TAKE_DUE_PG,
        super::Connection::Sqlite(_) => TAKE_DUE_SQLITE,
    };
    let mut rows: Vec<DeliveryRow> = on!(tx, |ex| sqlx::query_as(lock)
        .bind(now)
        .bind(limit)
        .fetch_all(ex)
        .await)?;
    for row in &mut rows {
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
    Ok(rows)
}

const TAKE_DUE_PG: &str = "select id, webhook_id, event_seq, status, attempts, next_at, response_status, \
    error, created_at, updated_at from webhook_deliveries where status = 'pending' and next_at <= $1 \
    order by next_at limit $2 for update skip locked";

const TAKE_DUE_SQLITE: &str = "select id, webhook_id, event_seq, status, attempts, next_at, \
    response_status, error, created_at, updated_at from webhook_deliveries \
    where status = 'pending' and next_at <= $1 order by next_at limit $2";

/// Writes what became of a try.
///
/// # Errors
///
/// The database refuses.
pub async fn finish(store: &Store, row: &DeliveryRow, now: Timestamp) -> Result<(), StoreError> {
    on!(write store, |ex| sqlx::query(
        "update webhook_deliveries set status = $2, next_at = $3, response_status = $4, \
         error = $5, updated_at = $6 where id = $1",
    )
    .bind(row.id)
    .bind(&row.status)
    .bind(row.next_at)
    .bind(row.response_status)
    .bind(&row.error)
    .bind(now)
    .execute(ex)
    .await
    .map(drop))?;
    Ok(())
}

/// Lists deliveries of a webhook, the newest event first, of events before `before`.
///
/// # Errors
///
/// The database refuses.
pub async fn deliveries(
    store: &Store,
    webhook: Uuid,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<DeliveryRow>, StoreError> {
    let rows = on!(read store, |ex| sqlx::query_as(
        "select id, webhook_id, event_seq, status, attempts, next_at, response_status, error, \
         created_at, updated_at from webhook_deliveries where webhook_id = $1 and event_seq < $2 \
         order by event_seq desc limit $3",
    )
    .bind(webhook)
    .bind(before.unwrap_or(i64::MAX))
    .bind(limit)
    .fetch_all(ex)
    .await)?;
    Ok(rows)
}
