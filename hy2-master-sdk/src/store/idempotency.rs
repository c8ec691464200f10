//! Answers to requests that may come twice.

use super::{Store, StoreError, on};
use crate::domain::{AdminId, Timestamp};

/// What is known of a key.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Remembered {
    /// Hash of the request that came with it first.
    pub request_hash: Vec<u8>,
    /// Status of the answer; `None` while the first request runs.
    pub status: Option<i64>,
    /// Sealed answer.
    pub response_enc: Option<Vec<u8>>,
    /// When the first request came.
    pub created_at: Timestamp,
}

/// Takes a key; `None` if it was free and is the caller's.
///
/// # Errors
///
/// The database refuses.
pub async fn claim(
    store: &Store,
    admin: AdminId,
    key: &str,
    request_hash: &[u8],
    now: Timestamp,
    expires_at: Timestamp,
) -> Result<Option<Remembered>, StoreError> {
    let mut tx = store.begin().await?;
    on!(tx, |ex| sqlx::query(
        "delete from idempotency_keys where admin_id = $1 and key = $2 and expires_at <= $3",
    )
    .bind(admin)
    .bind(key)
    .bind(now)
    .execute(ex)
    .await
    .map(drop))?;
    let made = on!(tx, |ex| sqlx::query(
        "insert into idempotency_keys (admin_id, key, request_hash, created_at, expires_at) \
         values ($1, $2, $3, $4, $5) on conflict (admin_id, key) do nothing",
    )
    .bind(admin)
    .bind(key)
    .bind(request_hash)
    .bind(now)
    .bind(expires_at)
    .execute(ex)
    .await
    .map(|done| done.rows_affected()))?;
    let known = if made == 1 {
        None
    } else {
        on!(tx, |ex| sqlx::query_as(
            "select request_hash, status, response_enc, created_at from idempotency_keys \
             where admin_id = $1 and key = $2",
        )
        .bind(admin)
        .bind(key)
        .fetch_optional(ex)
        .await)?
    };
    tx.commit().await?;
    Ok(known)
}

/// Remembers the answer.
///
/// # Errors
///
/// The database refuses.
pub async fn remember(
    store: &Store,
    admin: AdminId,
    key: &str,
    status: u16,
    response_enc: &[u8],
) -> Result<(), StoreError> {
    on!(write store, |ex| sqlx::query(
        "update idempotency_keys set status = $3, response_enc = $4 where admin_id = $1 and key = $2",
    )
    .bind(admin)
    .bind(key)
    .bind(i64::from(status))
    .bind(response_enc)
    .execute(ex)
    .await
    .map(drop))?;
    Ok(())
}

/// Gives a key back after a request that changed nothing.
///
/// # Errors
///
/// The database refuses.
pub async fn release(store: &Store, admin: AdminId, key: &str) -> Result<(), StoreError> {
    on!(write store, |ex| sqlx::query(
        "delete from idempotency_keys where admin_id = $1 and key = $2 and status is null",
    )
    .bind(admin)
    .bind(key)
    .execute(ex)
    .await
    .map(drop))?;
    Ok(())
}
