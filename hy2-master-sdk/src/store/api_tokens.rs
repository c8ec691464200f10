//! Long-lived tokens for programs.

use sqlx::types::Json;
use uuid::Uuid;

use super::{Store, StoreError, Tx, on};
use crate::domain::{AdminId, Timestamp};

/// A token as stored.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ApiTokenRow {
    /// Its id, part of the token.
    pub id: Uuid,
    /// Whose rights it has at most.
    pub admin_id: AdminId,
    /// What it is for.
    pub name: String,
    /// Its beginning, for lists.
    pub prefix: String,
    /// Hash of the whole.
    pub secret_hash: Vec<u8>,
    /// What it may be used for.
    pub scopes: Json<Vec<String>>,
    /// From where; empty: anywhere.
    pub cidrs: Json<Vec<ipnet::IpNet>>,
    /// Over at.
    pub expires_at: Option<Timestamp>,
    /// Last used at, to the hour.
    pub last_used_at: Option<Timestamp>,
    /// Ended at.
    pub revoked_at: Option<Timestamp>,
    /// Made at.
    pub created_at: Timestamp,
}

/// Stores a token.
///
/// # Errors
///
/// The database refuses.
pub async fn insert(tx: &mut Tx, token: &ApiTokenRow) -> Result<(), StoreError> {
    on!(tx, |ex| sqlx::query(
        "insert into api_tokens (id, admin_id, name, prefix, secret_hash, scopes, cidrs, \
         expires_at, created_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(token.id)
    .bind(token.admin_id)
    .bind(&token.name)
    .bind(&token.prefix)
    .bind(&token.secret_hash)
    .bind(&token.scopes)
    .bind(&token.cidrs)
    .bind(token.expires_at)
    .bind(token.created_at)
    .execute(ex)
    .await
    .map(drop))?;
    Ok(())
}

/// Returns a token, ended or not.
///
/// # Errors
///
/// The database refuses.
pub async fn find(store: &Store, id: Uuid) -> Result<Option<ApiTokenRow>, StoreError> {
    let row = on!(read store, |ex| sqlx::query_as(
        "select id, admin_id, name, prefix, secret_hash, scopes, cidrs, expires_at, last_used_at, \
         revoked_at, created_at from api_tokens where id = $1",
    )
    .bind(id)
    .fetch_optional(ex)
    .await)?;
    Ok(row)
}

/// Lists tokens that are in force: neither revoked nor over, of one administrator or of all.
///
/// # Errors
///
/// The database refuses.
pub async fn list(
    store: &Store,
    admin: Option<AdminId>,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<ApiTokenRow>, StoreError> {
    let rows = on!(read store, |ex| sqlx::query_as(
        "select id, admin_id, name, prefix, secret_hash, scopes, cidrs, expires_at, last_used_at, \
         revoked_at, created_at from api_tokens where revoked_at is null \
         and (expires_at is null or expires_at > $2) and ($1 is null or admin_id = $1) \
         order by created_at desc, id limit $3",
    )
    .bind(admin)
    .bind(now)
    .bind(limit)
    .fetch_all(ex)
    .await)?;
    Ok(rows)
}

/// Returns how many tokens of an administrator are in force: neither revoked nor over.
///
/// # Errors
///
/// The database refuses.
pub async fn count(tx: &mut Tx, admin: AdminId, now: Timestamp) -> Result<i64, StoreError> {
    let (count,): (i64,) = on!(tx, |ex| sqlx::query_as(
        "select count(*) from api_tokens where admin_id = $1 and revoked_at is null \
         and (expires_at is null or expires_at > $2)",
    )
    .bind(admin)
    .bind(now)
    .fetch_one(ex)
    .await)?;
    Ok(count)
}

/// Notes that a token was used, at most once an hour: reading stays reading.
///
/// # Errors
///
/// The database refuses.
pub async fn touch(store: &Store, id: Uuid, now: Timestamp) -> Result<(), StoreError> {
    on!(write store, |ex| sqlx::query("update api_tokens set last_used_at = $2 where id = $1")
        .bind(id)
        .bind(now)
        .execute(ex)
        .await
        .map(drop))?;
    Ok(())
}

/// Ends a token; returns whether it was in force.
///
/// # Errors
///
/// The database refuses.
pub async fn revoke(
    tx: &mut Tx,
    id: Uuid,
    owner: Option<AdminId>,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = on!(tx, |ex| sqlx::query(
        "update api_tokens set revoked_at = $3 where id = $1 and revoked_at is null \
         and ($2 is null or admin_id = $2)",
    )
    .bind(id)
    .bind(owner)
    .bind(now)
    .execute(ex)
    .await
    .map(|done| done.rows_affected()))?;
    Ok(changed == 1)
}
