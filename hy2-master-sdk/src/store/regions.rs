//! Regions: where nodes are, and where users are at home.

use std::collections::BTreeMap;

use sqlx::FromRow;

use super::{Rows as _, Store, StoreError, Tx, on};
use crate::domain::{RegionId, Timestamp};

/// A region.
#[derive(Debug, Clone, PartialEq, FromRow)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct RegionRow {
    pub id: RegionId,
    pub code: String,
    pub name: String,
    pub latitude: Option<f64>,
    pub longitude: Option<f64>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// What operators decide of a region.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct NewRegion {
    pub code: String,
    pub name: String,
    pub latitude: Option<f64>,
    pub longitude: Option<f64>,
}

/// What refers to a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromRow)]
pub struct RegionUses {
    /// Nodes in it.
    pub nodes: i64,
    /// Users who are at home in it.
    pub users: i64,
    /// Enrolment tokens whose node will be in it: neither used nor revoked nor over.
    pub tokens: i64,
}

impl RegionUses {
    /// Returns whether nothing does.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Returns every region, in order of their codes.
///
/// # Errors
///
/// The store fails.
pub async fn list(store: &Store) -> Result<Vec<RegionRow>, StoreError> {
    const SQL: &str =
        "select id, code, name, latitude, longitude, created_at, updated_at from regions";
    let mut rows: Vec<RegionRow> = on!(read store, |ex| sqlx::query_as(SQL).fetch_all(ex).await)?;
    // Not by the database: its collation may pass over the hyphens.
    rows.sort_by(|one, other| one.code.cmp(&other.code));
    Ok(rows)
}

/// Returns a region.
///
/// # Errors
///
/// [`StoreError::NotFound`].
pub async fn get(store: &Store, id: RegionId) -> Result<RegionRow, StoreError> {
    on!(read store, |ex| sqlx::query_as(GET).bind(id).fetch_optional(ex).await)?
        .ok_or(StoreError::NotFound("region"))
}

/// Returns a region as a transaction sees it.
///
/// # Errors
///
/// [`StoreError::NotFound`].
pub async fn get_in(tx: &mut Tx, id: RegionId) -> Result<RegionRow, StoreError> {
    on!(tx, |ex| sqlx::query_as(GET)
        .bind(id)
        .fetch_optional(ex)
        .await)?
    .ok_or(StoreError::NotFound("region"))
}

/// Returns a region and keeps others from changing it and from referring to it until the transaction
/// ends.
///
/// # Errors
///
/// [`StoreError::NotFound`].
pub async fn get_for_update(tx: &mut Tx, id: RegionId) -> Result<RegionRow, StoreError> {
    // On SQLite a transaction that writes is alone anyway.
    if tx.is_postgres() {
        const LOCK: &str = "select id from regions where id = $1 for update";
        on!(tx, |ex| sqlx::query(LOCK).bind(id).execute(ex).await.rows())?;
    }
    get_in(tx, id).await
}

/// Fails unless there is such a region.
///
/// # Errors
///
/// [`StoreError::NotFound`].
pub async fn check(tx: &mut Tx, id: RegionId) -> Result<(), StoreError> {
    get_in(tx, id).await.map(drop)
}

/// Returns the codes of the regions.
///
/// # Errors
///
/// The store fails.
pub async fn codes(store: &Store) -> Result<BTreeMap<RegionId, String>, StoreError> {
    const SQL: &str = "select id, code from regions";
    let rows: Vec<(RegionId, String)> =
        on!(read store, |ex| sqlx::query_as(SQL).fetch_all(ex).await)?;
    Ok(rows.into_iter().collect())
}

/// Returns the code of a region.
///
/// # Errors
///
/// The store fails.
pub async fn code(store: &Store, id: RegionId) -> Result<String, StoreError> {
    const SQL: &str = "select code from regions where id = $1";
    let code: Option<String> = on!(read store, |ex| sqlx::query_scalar(SQL)
        .bind(id)
        .fetch_optional(ex)
        .await)?;
    Ok(code.unwrap_or_default())
}

/// Returns the region with a code.
///
/// # Errors
///
/// The store fails.
pub async fn by_code(store: &Store, code: &str) -> Result<Option<RegionId>, StoreError> {
    const SQL: &str = "select id from regions where code = $1";
    Ok(on!(read store, |ex| sqlx::query_scalar(SQL)
        .bind(code)
        .fetch_optional(ex)
        .await)?)
}

/// Returns how many regions there are.
///
/// # Errors
///
/// The store fails.
pub async fn count(tx: &mut Tx) -> Result<i64, StoreError> {
    const SQL: &str = "select count(*) from regions";
    Ok(on!(tx, |ex| sqlx::query_scalar(SQL).fetch_one(ex).await)?)
}

/// Makes a region.
///
/// # Errors
///
/// [`StoreError::Duplicate`] of the code.
pub async fn create(
    tx: &mut Tx,
    region: &NewRegion,
    now: Timestamp,
) -> Result<RegionRow, StoreError> {
    const SQL: &str = "insert into regions (code, name, latitude, longitude, created_at, updated_at) \
                       values ($1, $2, $3, $4, $5, $5) \
                       returning id, code, name, latitude, longitude, created_at, updated_at";
    Ok(on!(tx, |ex| sqlx::query_as(SQL)
        .bind(&region.code)
        .bind(&region.name)
        .bind(region.latitude)
        .bind(region.longitude)
        .bind(now)
        .fetch_one(ex)
        .await)?)
}

/// Changes a region. Nothing that the master does by itself follows from code, name or place: nodes and
/// users refer to its number.
///
/// # Errors
///
/// [`StoreError::NotFound`], [`StoreError::Duplicate`] of the code.
pub async fn update(
    tx: &mut Tx,
    id: RegionId,
    region: &NewRegion,
    now: Timestamp,
) -> Result<RegionRow, StoreError> {
    const SQL: &str = "update regions set code = $2, name = $3, latitude = $4, longitude = $5, updated_at = $6 \
                       where id = $1 returning id, code, name, latitude, longitude, created_at, updated_at";
    let row: Option<RegionRow> = on!(tx, |ex| sqlx::query_as(SQL)
        .bind(id)
        .bind(&region.code)
        .bind(&region.name)
        .bind(region.latitude)
        .bind(region.longitude)
        .bind(now)
        .fetch_optional(ex)
        .await)?;
    row.ok_or(StoreError::NotFound("region"))
}

/// Returns what refers to a region.
///
/// # Errors
///
/// The store fails.
pub async fn uses(tx: &mut Tx, id: RegionId, now: Timestamp) -> Result<RegionUses, StoreError> {
    const SQL: &str = "select (select count(*) from vps_nodes where region_id = $1) as nodes, \
                       (select count(*) from users where home_region_id = $1 and deleted_at is null) as users, \
                       (select count(*) from enrolment_tokens where region_id = $1 and used_at is null \
                       and revoked_at is null and expires_at > $2) as tokens";
    Ok(on!(tx, |ex| sqlx::query_as(SQL)
        .bind(id)
        .bind(now)
        .fetch_one(ex)
        .await)?)
}

/// Removes a region that nothing uses. Deleted users and closed enrolment tokens forget it.
///
/// # Errors
///
/// [`StoreError::NotFound`], [`StoreError::Reference`] if something uses it.
pub async fn delete(tx: &mut Tx, id: RegionId, now: Timestamp) -> Result<(), StoreError> {
    // Both are kept for the accounts; of their region nothing is left to know.
    const USERS: &str = "update users set home_region_id = null where home_region_id = $1 and deleted_at is not null";
    on!(tx, |ex| sqlx::query(USERS)
        .bind(id)
        .execute(ex)
        .await
        .rows())?;
    const TOKENS: &str = "update enrolment_tokens set region_id = null where region_id = $1 \
                          and (used_at is not null or revoked_at is not null or expires_at <= $2)";
    on!(tx, |ex| sqlx::query(TOKENS)
        .bind(id)
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    const SQL: &str = "delete from regions where id = $1";
    let rows = on!(tx, |ex| sqlx::query(SQL).bind(id).execute(ex).await.rows())?;
    if rows == 0 {
        return Err(StoreError::NotFound("region"));
    }
    Ok(())
}

const GET: &str =
    "select id, code, name, latitude, longitude, created_at, updated_at from regions where id = $1";
