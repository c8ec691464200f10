//! Pools of nodes: a plan that names some has its users on their nodes only.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::FromRow;

use super::{Rows as _, Store, StoreError, Topic, Tx, on};
use crate::domain::{NodeId, PlanId, PoolId, Timestamp};

/// A pool.
#[derive(Debug, Clone, FromRow)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct PoolRow {
    pub id: PoolId,
    pub name: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// Returns every pool, in order of their names.
///
/// # Errors
///
/// The store fails.
pub async fn list(store: &Store) -> Result<Vec<PoolRow>, StoreError> {
    const SQL: &str = "select id, name, created_at, updated_at from node_pools order by name";
    Ok(on!(read store, |ex| sqlx::query_as(SQL).fetch_all(ex).await)?)
}

/// Returns who is in which pool.
///
/// # Errors
///
/// The store fails.
pub async fn members(store: &Store) -> Result<BTreeMap<PoolId, Vec<NodeId>>, StoreError> {
    const SQL: &str = "select pool_id, node_id from pool_members order by pool_id, node_id";
    let rows: Vec<(PoolId, NodeId)> =
        on!(read store, |ex| sqlx::query_as(SQL).fetch_all(ex).await)?;
    let mut members = BTreeMap::<_, Vec<_>>::new();
    for (pool, node) in rows {
        members.entry(pool).or_default().push(node);
    }
    Ok(members)
}

/// Returns a pool and its nodes as a transaction sees them.
///
/// # Errors
///
/// [`StoreError::NotFound`].
pub async fn get_in(tx: &mut Tx, id: PoolId) -> Result<(PoolRow, Vec<NodeId>), StoreError> {
    const SQL: &str = "select id, name, created_at, updated_at from node_pools where id = $1";
    const MEMBERS: &str = "select node_id from pool_members where pool_id = $1 order by node_id";
    let row: Option<PoolRow> = on!(tx, |ex| sqlx::query_as(SQL)
        .bind(id)
        .fetch_optional(ex)
        .await)?;
    let row = row.ok_or(StoreError::NotFound("node pool"))?;
    let nodes = on!(tx, |ex| sqlx::query_scalar(MEMBERS)
        .bind(id)
        .fetch_all(ex)
        .await)?;
    Ok((row, nodes))
}

/// Returns a pool and its nodes, and keeps others from changing it until the transaction ends.
///
/// # Errors
///
/// [`StoreError::NotFound`].
pub async fn get_for_update(tx: &mut Tx, id: PoolId) -> Result<(PoolRow, Vec<NodeId>), StoreError> {
    // On SQLite a transaction that writes is alone anyway.
    if tx.is_postgres() {
        const LOCK: &str = "select id from node_pools where id = $1 for update";
        on!(tx, |ex| sqlx::query(LOCK).bind(id).execute(ex).await.rows())?;
    }
    get_in(tx, id).await
}

/// Makes a pool without nodes.
///
/// # Errors
///
/// [`StoreError::Duplicate`] of the name.
pub async fn create(tx: &mut Tx, name: &str, now: Timestamp) -> Result<PoolRow, StoreError> {
    const SQL: &str = "insert into node_pools (name, created_at, updated_at) values ($1, $2, $2) \
                       returning id, name, created_at, updated_at";
    Ok(on!(tx, |ex| sqlx::query_as(SQL)
        .bind(name)
        .bind(now)
        .fetch_one(ex)
        .await)?)
}

/// Names a pool anew.
///
/// # Errors
///
/// [`StoreError::NotFound`], [`StoreError::Duplicate`] of the name.
pub async fn rename(
    tx: &mut Tx,
    id: PoolId,
    name: &str,
    now: Timestamp,
) -> Result<PoolRow, StoreError> {
    const SQL: &str = "update node_pools set name = $2, updated_at = $3 where id = $1 \
                       returning id, name, created_at, updated_at";
    let row: Option<PoolRow> = on!(tx, |ex| sqlx::query_as(SQL)
        .bind(id)
        .bind(name)
        .bind(now)
        .fetch_optional(ex)
        .await)?;
    row.ok_or(StoreError::NotFound("node pool"))
}

/// Says which nodes are in a pool.
///
/// # Errors
///
/// [`StoreError::Reference`] of a node that is not there.
pub async fn set_members(tx: &mut Tx, id: PoolId, nodes: &[NodeId]) -> Result<(), StoreError> {
    const CLEAR: &str = "delete from pool_members where pool_id = $1";
    const ADD: &str = "insert into pool_members (pool_id, node_id) values ($1, $2)";
    on!(tx, |ex| sqlx::query(CLEAR)
        .bind(id)
        .execute(ex)
        .await
        .rows())?;
    for node in nodes {
        on!(tx, |ex| sqlx::query(ADD)
            .bind(id)
            .bind(node)
            .execute(ex)
            .await
            .rows())?;
    }
    tx.call(Topic::Users);
    Ok(())
}

/// Removes a pool; plans forget it.
///
/// # Errors
///
/// [`StoreError::NotFound`].
pub async fn delete(tx: &mut Tx, id: PoolId) -> Result<(), StoreError> {
    const SQL: &str = "delete from node_pools where id = $1";
    let rows = on!(tx, |ex| sqlx::query(SQL).bind(id).execute(ex).await.rows())?;
    if rows == 0 {
        return Err(StoreError::NotFound("node pool"));
    }
    tx.call(Topic::Users);
    Ok(())
}

/// Returns the pools of a plan, as a transaction sees them.
///
/// # Errors
///
/// The store fails.
pub async fn of_plan(tx: &mut Tx, plan: PlanId) -> Result<Vec<PoolId>, StoreError> {
    const SQL: &str = "select pool_id from plan_pools where plan_id = $1 order by pool_id";
    Ok(on!(tx, |ex| sqlx::query_scalar(SQL)
        .bind(plan)
        .fetch_all(ex)
        .await)?)
}

/// Says which pools a plan has.
///
/// # Errors
///
/// [`StoreError::Reference`] of a plan or pool that is not there.
pub async fn set_of_plan(tx: &mut Tx, plan: PlanId, pools: &[PoolId]) -> Result<(), StoreError> {
    const CLEAR: &str = "delete from plan_pools where plan_id = $1";
    const ADD: &str = "insert into plan_pools (plan_id, pool_id) values ($1, $2)";
    on!(tx, |ex| sqlx::query(CLEAR)
        .bind(plan)
        .execute(ex)
        .await
        .rows())?;
    for pool in pools {
        on!(tx, |ex| sqlx::query(ADD)
            .bind(plan)
            .bind(pool)
            .execute(ex)
            .await
            .rows())?;
    }
    tx.call(Topic::Users);
    Ok(())
}

/// Returns the nodes of every plan that has pools; none where the pools are empty.
///
/// # Errors
///
/// The store fails.
pub async fn nodes_of_plans(
    store: &Store,
) -> Result<BTreeMap<PlanId, BTreeSet<NodeId>>, StoreError> {
    const SQL: &str = "select p.plan_id, m.node_id from plan_pools p \
                       left join pool_members m on m.pool_id = p.pool_id";
    let rows: Vec<(PlanId, Option<NodeId>)> =
        on!(read store, |ex| sqlx::query_as(SQL).fetch_all(ex).await)?;
    let mut plans = BTreeMap::<_, BTreeSet<_>>::new();
    for (plan, node) in rows {
        plans.entry(plan).or_default().extend(node);
    }
    Ok(plans)
}
