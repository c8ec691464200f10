//! What the accounts say: sums, series, who used most. Read only.

use sqlx::FromRow;

use super::{Store, StoreError, on};
use crate::domain::{AdminId, NodeId, Timestamp, UserId};

/// Bytes of some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromRow)]
pub struct Sums {
    /// From clients to targets.
    pub tx: i64,
    /// From targets to clients.
    pub rx: i64,
}

/// Bytes of one bucket of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromRow)]
pub struct Bucket {
    /// Its start.
    pub at: Timestamp,
    /// From clients to targets.
    pub tx: i64,
    /// From targets to clients.
    pub rx: i64,
}

/// One user's bytes.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct TopUser {
    /// Which.
    pub user_id: UserId,
    /// Name.
    pub username: String,
    /// From client to targets.
    pub tx: i64,
    /// From targets to client.
    pub rx: i64,
}

/// Whose traffic, and when.
#[derive(Debug, Clone, Copy, Default)]
pub struct TrafficFilter {
    /// Only of this user.
    pub user: Option<UserId>,
    /// Only through this node.
    pub node: Option<NodeId>,
    /// Only of this administrator's users.
    pub owner: Option<AdminId>,
    /// From this hour on.
    pub from: Timestamp,
    /// Before this hour.
    pub to: Timestamp,
}

/// Returns the sum of a filter.
///
/// # Errors
///
/// The database refuses.
pub async fn sums(store: &Store, filter: TrafficFilter) -> Result<Sums, StoreError> {
    let sums = on!(read store, |ex| sqlx::query_as(
        "select cast(coalesce(sum(t.tx), 0) as bigint) as tx, cast(coalesce(sum(t.rx), 0) as bigint) as rx \
         from traffic_hourly t where t.bucket >= $1 and t.bucket < $2 \
         and ($3 is null or t.user_id = $3) and ($4 is null or t.node_id = $4) \
         and ($5 is null or t.user_id in (select id from users where admin_id = $5))",
    )
    .bind(filter.from)
    .bind(filter.to)
    .bind(filter.user)
    .bind(filter.node)
    .bind(filter.owner)
    .fetch_one(ex)
    .await)?;
    Ok(sums)
}

/// Returns the buckets of a filter, each `step` milliseconds long (a multiple of an hour).
///
/// # Errors
///
/// The database refuses.
pub async fn series(
    store: &Store,
    filter: TrafficFilter,
    step: i64,
) -> Result<Vec<Bucket>, StoreError> {
    let rows = on!(read store, |ex| sqlx::query_as(
        "select t.bucket - t.bucket % $6 as at, cast(sum(t.tx) as bigint) as tx, \
         cast(sum(t.rx) as bigint) as rx \
         from traffic_hourly t where t.bucket >= $1 and t.bucket < $2 \
         and ($3 is null or t.user_id = $3) and ($4 is null or t.node_id = $4) \
         and ($5 is null or t.user_id in (select id from users where admin_id = $5)) \
         group by t.bucket - t.bucket % $6 order by 1",
    )
    .bind(filter.from)
    .bind(filter.to)
    .bind(filter.user)
    .bind(filter.node)
    .bind(filter.owner)
    .bind(step)
    .fetch_all(ex)
    .await)?;
    Ok(rows)
}

/// Returns who used most.
///
/// # Errors
///
/// The database refuses.
pub async fn top(
    store: &Store,
    filter: TrafficFilter,
    limit: i64,
) -> Result<Vec<TopUser>, StoreError> {
    let rows = on!(read store, |ex| sqlx::query_as(
        "select t.user_id, u.username, cast(sum(t.tx) as bigint) as tx, \
         cast(sum(t.rx) as bigint) as rx \
         from traffic_hourly t join users u on u.id = t.user_id \
         where t.bucket >= $1 and t.bucket < $2 \
         and ($3 is null or t.user_id = $3) and ($4 is null or t.node_id = $4) \
         and ($5 is null or u.admin_id = $5) \
         group by t.user_id, u.username order by sum(t.tx) + sum(t.rx) desc, t.user_id limit $6",
    )
    .bind(filter.from)
    .bind(filter.to)
    .bind(filter.user)
    .bind(filter.node)
    .bind(filter.owner)
    .bind(limit)
    .fetch_all(ex)
    .await)?;
    Ok(rows)
}

/// Returns what was set aside because nobody knows whose it is.
///
/// # Errors
///
/// The database refuses.
pub async fn quarantined(store: &Store, node: Option<NodeId>) -> Result<Sums, StoreError> {
    let sums = on!(read store, |ex| sqlx::query_as(
        "select cast(coalesce(sum(quarantined_tx), 0) as bigint) as tx, \
         cast(coalesce(sum(quarantined_rx), 0) as bigint) as rx \
         from node_counters where $1 is null or node_id = $1",
    )
    .bind(node)
    .fetch_one(ex)
    .await)?;
    Ok(sums)
}

/// Returns the counters since ever of one user or of all, and their billed bytes.
///
/// # Errors
///
/// The database refuses.
pub async fn counters(
    store: &Store,
    user: Option<UserId>,
    owner: Option<AdminId>,
) -> Result<(i64, i64, i64), StoreError> {
    let sums = on!(read store, |ex| sqlx::query_as(
        "select cast(coalesce(sum(c.tx), 0) as bigint), cast(coalesce(sum(c.rx), 0) as bigint), \
         cast(coalesce(sum(c.billed), 0) as bigint) from user_counters c \
         where ($1 is null or c.user_id = $1) \
         and ($2 is null or c.user_id in (select id from users where admin_id = $2))",
    )
    .bind(user)
    .bind(owner)
    .fetch_one(ex)
    .await)?;
    Ok(sums)
}
