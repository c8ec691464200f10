//! Answers to requests that may come twice.

use super::{Store, StoreError, Tx, on};
use crate::domain::{AdminId, Timestamp};

/// The status of a key whose request has changed something, and has no answer yet.
const ACTED: i64 = 0;

tokio::task_local! {
    /// Whose request this task works for.
    static ACTING: (AdminId, String);
}

/// What is known of a key.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Remembered {
    /// Hash of the request that came with it first.
    pub request_hash: Vec<u8>,
    /// Status of the answer; `None` while the first request has changed nothing, 0 when it has and there is no answer
    /// yet.
    pub status: Option<i64>,
    /// Sealed answer.
    pub response_enc: Option<Vec<u8>>,
    /// When the first request came.
    pub created_at: Timestamp,
}

impl Remembered {
    /// Returns whether the first request is known to have changed something.
    #[must_use]
    pub fn has_acted(&self) -> bool {
        self.status.is_some()
    }
}

/// Works for the request with a key: the first transaction that commits notes beside its rows that it did, so that a
/// request whose outcome nobody saw is known to have changed something or nothing.
pub async fn acting<T>(admin: AdminId, key: String, work: impl Future<Output = T>) -> T {
    ACTING.scope((admin, key), work).await
}

/// Notes in the transaction that the request it works for changes something, if it works for one with a key.
pub(super) async fn note_acting(tx: &mut Tx) -> Result<(), StoreError> {
    let Ok((admin, key)) = ACTING.try_with(Clone::clone) else {
        return Ok(());
    };
    on!(tx, |ex| sqlx::query(
        "update idempotency_keys set status = $3 \
         where admin_id = $1 and key = $2 and status is null",
    )
    .bind(admin)
    .bind(&key)
    .bind(ACTED)
    .execute(ex)
    .await
    .map(drop))?;
    Ok(())
}

/// Takes a key; `None` if it was free and is the caller's.
///
/// # Errors
///
/// The database refuses.
pub async fn claim(
    tx: &mut Tx,
    admin: AdminId,
    key: &str,
    request_hash: &[u8],
    now: Timestamp,
    expires_at: Timestamp,
) -> Result<Option<Remembered>, StoreError> {
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
    if made == 1 {
        return Ok(None);
    }
    let known = on!(tx, |ex| sqlx::query_as(
        "select request_hash, status, response_enc, created_at from idempotency_keys \
         where admin_id = $1 and key = $2",
    )
    .bind(admin)
    .bind(key)
    .fetch_optional(ex)
    .await)?;
    Ok(known)
}

/// Remembers the answer to the request that took the key at `claimed_at`.
///
/// # Errors
///
/// The database refuses.
pub async fn remember(
    store: &Store,
    admin: AdminId,
    key: &str,
    claimed_at: Timestamp,
    status: u16,
    response_enc: &[u8],
) -> Result<(), StoreError> {
    on!(write store, |ex| sqlx::query(
        "update idempotency_keys set status = $4, response_enc = $5 \
         where admin_id = $1 and key = $2 and created_at = $3",
    )
    .bind(admin)
    .bind(key)
    .bind(claimed_at)
    .bind(i64::from(status))
    .bind(response_enc)
    .execute(ex)
    .await
    .map(drop))?;
    Ok(())
}

/// Gives a key back that was taken at `claimed_at`, after a request that was refused; `acted`: also if it has changed
/// something.
///
/// # Errors
///
/// The database refuses.
pub async fn release(
    store: &Store,
    admin: AdminId,
    key: &str,
    claimed_at: Timestamp,
    acted: bool,
) -> Result<(), StoreError> {
    on!(write store, |ex| sqlx::query(
        "delete from idempotency_keys where admin_id = $1 and key = $2 and created_at = $3 \
         and response_enc is null and (status is null or $4)",
    )
    .bind(admin)
    .bind(key)
    .bind(claimed_at)
    .bind(acted)
    .execute(ex)
    .await
    .map(drop))?;
    Ok(())
}
