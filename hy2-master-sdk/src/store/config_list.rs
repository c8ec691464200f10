//! Configuration bodies as the operations on them need them.

use super::published::ConfigRow;
use super::{Rows as _, Store, StoreError, Tx, on};
use crate::domain::{ConfigRevisionId, ConfigScope, NodeId, RegionId};

const GET: &str = "select id, scope, scope_id, body, sha256, author, message, parent, created_at \
    from config_revisions where id = $1";

const NEWEST: &str = "select id, scope, scope_id, body, sha256, author, message, parent, created_at \
    from config_revisions where scope = $1 and scope_id = $2 order by id desc limit 1";

/// Returns a revision.
///
/// # Errors
///
/// [`StoreError::NotFound`].
pub async fn get(store: &Store, id: ConfigRevisionId) -> Result<ConfigRow, StoreError> {
    on!(read store, |ex| sqlx::query_as(GET).bind(id).fetch_optional(ex).await)?
        .ok_or(StoreError::NotFound("revision"))
}

/// Returns the newest revision of a scope.
///
/// # Errors
///
/// The store fails.
pub async fn newest(
    tx: &mut Tx,
    scope: ConfigScope,
    scope_id: i64,
) -> Result<Option<ConfigRow>, StoreError> {
    Ok(on!(tx, |ex| sqlx::query_as(NEWEST)
        .bind(scope)
        .bind(scope_id)
        .fetch_optional(ex)
        .await)?)
}

/// Keeps others from putting configurations in force until the transaction ends: what is checked
/// together stays together.
///
/// # Errors
///
/// The store fails.
pub async fn lock(tx: &mut Tx) -> Result<(), StoreError> {
    on!(tx, |ex| sqlx::query(
        "update cluster set epoch = epoch where id = 1"
    )
    .execute(ex)
    .await
    .rows())?;
    Ok(())
}

/// Returns nodes with their regions: all, those of one region, or one.
///
/// # Errors
///
/// The store fails.
pub async fn nodes(
    tx: &mut Tx,
    region: Option<RegionId>,
    node: Option<NodeId>,
) -> Result<Vec<(NodeId, Option<RegionId>)>, StoreError> {
    Ok(on!(tx, |ex| sqlx::query_as(
        "select id, region_id from vps_nodes where ($1 is null or region_id = $1) \
         and ($2 is null or id = $2) order by id",
    )
    .bind(region)
    .bind(node)
    .fetch_all(ex)
    .await)?)
}
