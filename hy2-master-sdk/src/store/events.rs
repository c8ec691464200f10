//! The outbox: what happened, in one order, for live streams and webhooks.
//!
//! Written unnumbered in the transaction of the change; the sealer gives out numbers under the
//! lock that it shares with the audit log. Whoever reads on after a number misses nothing.

use serde_json::Value;
use sqlx::types::Json;

use super::{Connection, Store, StoreError, Topic, Tx, audit, on};
use crate::domain::{AdminId, Timestamp};

/// Events numbered in one transaction.
const SEAL_BATCH: i64 = 1_000;

/// The setting whose revision is the number of the last event.
pub(crate) const COUNTER: &str = "internal.event_seq";

/// A numbered event.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Event {
    /// Position, from 1, without a gap until retention removes the oldest. A restore leaves many numbers out: none is given
    /// out twice.
    pub seq: i64,
    /// What it is about: `user.updated`.
    pub topic: String,
    /// The object.
    pub key: String,
    /// What is to be told. Never a secret.
    pub payload: Json<Value>,
    /// Whose object it is.
    pub admin_id: Option<AdminId>,
    /// When.
    pub at: Timestamp,
}

/// Writes an event in the transaction of what it tells.
///
/// # Errors
///
/// The database refuses.
pub async fn emit(
    tx: &mut Tx,
    topic: &str,
    key: &str,
    payload: &Value,
    admin: Option<AdminId>,
    at: Timestamp,
) -> Result<(), StoreError> {
    tx.call(Topic::Events);
    on!(tx, |ex| sqlx::query(
        "insert into events (topic, key, payload, admin_id, at) values ($1, $2, $3, $4, $5)",
    )
    .bind(topic)
    .bind(key)
    .bind(Json(payload))
    .bind(admin)
    .bind(at)
    .execute(ex)
    .await
    .map(drop))?;
    Ok(())
}

/// An event to write beside others of the same topic.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// The object.
    pub key: String,
    /// What is to be told. Never a secret.
    pub payload: Value,
    /// Whose object it is.
    pub admin_id: Option<AdminId>,
}

/// Writes events of one topic in the transaction of what they tell, all in one statement.
///
/// # Errors
///
/// The database refuses.
pub async fn emit_all(
    tx: &mut Tx,
    topic: &str,
    news: &[NewEvent],
    at: Timestamp,
) -> Result<(), StoreError> {
    if news.is_empty() {
        return Ok(());
    }
    tx.call(Topic::Events);
    match tx.connection() {
        Connection::Pg(tx) => {
            const SQL: &str = "insert into events (topic, key, payload, admin_id, at) \
                select $1, n.key, n.payload, n.admin_id, $2 \
                from unnest($3::text[], $4::jsonb[], $5::bigint[]) with ordinality as n(key, payload, admin_id, place) \
                order by n.place";
            sqlx::query(SQL)
                .bind(topic)
                .bind(at)
                .bind(news.iter().map(|new| new.key.as_str()).collect::<Vec<_>>())
                .bind(news.iter().map(|new| &new.payload).collect::<Vec<_>>())
                .bind(
                    news.iter()
                        .map(|new| new.admin_id.map(|id| id.0))
                        .collect::<Vec<_>>(),
                )
                .execute(&mut **tx)
                .await?;
        }
        Connection::Sqlite(tx) => {
            const SQL: &str = "insert into events (topic, key, payload, admin_id, at) \
                select $1, n.value ->> 0, n.value -> 1, n.value ->> 2, $2 from json_each($3) as n order by n.key";
            let rows = news
                .iter()
                .map(|new| (&new.key, &new.payload, new.admin_id.map(|id| id.0)))
                .collect::<Vec<_>>();
            sqlx::query(SQL)
                .bind(topic)
                .bind(at)
                .bind(Json(rows))
                .execute(&mut **tx)
                .await?;
        }
    }
    Ok(())
}

/// Numbers events that have none, at most one batch; returns how many.
///
/// # Errors
///
/// The database refuses; nothing is numbered then.
pub async fn seal(store: &Store) -> Result<usize, StoreError> {
    let mut tx = store.begin().await?;
    audit::lock_sealer(&mut tx).await?;
    let sealed = seal_batch(&mut tx).await?;
    if sealed > 0 {
        tx.commit().await?;
    }
    Ok(sealed)
}

/// Numbers all events that are committed, under the lock of the sealer until this transaction ends: what
/// others commit from then on has a higher number than the one returned, that of the newest; 0 if there is none.
///
/// # Errors
///
/// The database refuses.
pub async fn seal_all(tx: &mut Tx) -> Result<i64, StoreError> {
    audit::lock_sealer(tx).await?;
    while seal_batch(tx).await? > 0 {}
    let (seq,): (i64,) = on!(tx, |ex| sqlx::query_as(
        "select coalesce(max(seq), 0) from events"
    )
    .fetch_one(ex)
    .await)?;
    Ok(seq)
}

async fn seal_batch(tx: &mut Tx) -> Result<usize, StoreError> {
    let ids: Vec<(i64,)> = on!(tx, |ex| sqlx::query_as(
        "select id from events where seq is null order by id limit $1",
    )
    .bind(SEAL_BATCH)
    .fetch_all(ex)
    .await)?;
    if ids.is_empty() {
        return Ok(0);
    }
    // The counter outlives the rows: retention may remove all of them.
    let (mut seq,): (i64,) = on!(tx, |ex| {
        sqlx::query_as(
            "insert into settings (key, value, rev, updated_at) values ($2, '0', $1, 0) \
         on conflict (key) do update set rev = settings.rev + excluded.rev returning rev - $1",
        )
        .bind(i64::try_from(ids.len()).unwrap_or(0))
        .bind(COUNTER)
        .fetch_one(ex)
        .await
    })?;
    for (id,) in &ids {
        seq += 1;
        on!(tx, |ex| sqlx::query(
            "update events set seq = $1 where id = $2"
        )
        .bind(seq)
        .bind(id)
        .execute(ex)
        .await
        .map(drop))?;
    }
    Ok(ids.len())
}

const AFTER: &str = "select seq, topic, key, payload, admin_id, at from events where seq > $1 order by seq limit $2";

/// Returns numbered events after `seq`, the oldest first.
///
/// # Errors
///
/// The database refuses.
pub async fn after(store: &Store, seq: i64, limit: i64) -> Result<Vec<Event>, StoreError> {
    let rows = on!(read store, |ex| sqlx::query_as(AFTER)
    .bind(seq)
    .bind(limit)
    .fetch_all(ex)
    .await)?;
    Ok(rows)
}

/// The same within a transaction.
///
/// # Errors
///
/// The database refuses.
pub async fn after_in(tx: &mut Tx, seq: i64, limit: i64) -> Result<Vec<Event>, StoreError> {
    let rows = on!(tx, |ex| sqlx::query_as(AFTER)
        .bind(seq)
        .bind(limit)
        .fetch_all(ex)
        .await)?;
    Ok(rows)
}

/// Returns the number of one event.
///
/// # Errors
///
/// [`StoreError::NotFound`] if retention has removed it.
pub async fn get(store: &Store, seq: i64) -> Result<Event, StoreError> {
    let row = on!(read store, |ex| sqlx::query_as(
        "select seq, topic, key, payload, admin_id, at from events where seq = $1",
    )
    .bind(seq)
    .fetch_optional(ex)
    .await)?;
    row.ok_or(StoreError::NotFound("event"))
}

/// Returns the number of the newest event; 0 if there is none.
///
/// # Errors
///
/// The database refuses.
pub async fn newest(store: &Store) -> Result<i64, StoreError> {
    let (seq,): (i64,) = on!(read store, |ex| sqlx::query_as(
        "select coalesce(max(seq), 0) from events",
    )
    .fetch_one(ex)
    .await)?;
    Ok(seq)
}
