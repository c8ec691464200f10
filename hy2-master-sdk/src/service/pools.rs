//! Pools of nodes, and which of them a plan has.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::moment::Moment;
use super::{FieldIssue, Record, Service, ServiceError, record};
use crate::auth::access::Access;
use crate::domain::{NodeId, PlanId, PoolId, Timestamp};
use crate::store::pools::{self, PoolRow};
use crate::store::{StoreError, plans};

/// Most nodes of a pool, and pools of a plan.
const MAX_MEMBERS: usize = 1_000;

/// A pool of nodes as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = NodePool)]
pub struct PoolView {
    /// Number.
    pub id: i64,
    /// Name.
    pub name: String,
    /// Nodes in it.
    pub node_ids: Vec<i64>,
    /// Made at.
    pub created_at: Moment,
    /// Changed at.
    pub updated_at: Moment,
}

/// A pool to make.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePool {
    /// 1 to 64 bytes.
    pub name: String,
    /// Nodes in it, at most 1000.
    #[serde(default)]
    pub node_ids: Vec<i64>,
}

/// What changes of a pool; absent fields stay.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdatePool {
    /// Name.
    pub name: Option<String>,
    /// Nodes in it: these and no others.
    pub node_ids: Option<Vec<i64>>,
}

impl Service {
    /// Lists every pool of nodes.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn pools(&self, _access: Access<'_>) -> Result<Vec<PoolView>, ServiceError> {
        let rows = pools::list(self.store()).await?;
        let mut members = pools::members(self.store()).await?;
        let views = rows.into_iter().map(|row| {
            let nodes = members.remove(&row.id).unwrap_or_default();
            view(row, &nodes)
        });
        Ok(views.collect())
    }

    /// Returns a pool of nodes.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`].
    pub async fn pool(&self, _access: Access<'_>, id: PoolId) -> Result<PoolView, ServiceError> {
        let mut tx = self.store().snapshot().await?;
        let (row, nodes) = pools::get_in(&mut tx, id).await?;
        tx.rollback().await?;
        Ok(view(row, &nodes))
    }

    /// Makes a pool of nodes.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`], [`ServiceError::Conflict`] if the name is taken.
    pub async fn create_pool(
        &self,
        access: Access<'_>,
        new: CreatePool,
    ) -> Result<PoolView, ServiceError> {
        let nodes = check(Some(&new.name), Some(&new.node_ids))?;
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let row = pools::create(&mut tx, &new.name, now).await?;
        let placed = pools::set_members(&mut tx, row.id, &nodes).await;
        placed.map_err(|error| not_there(error, "node_ids"))?;
        let made = view(row, &nodes);
        let after = pool_record(None, Some(&made), "node_pool.created");
        record(&mut tx, access, after, now).await?;
        tx.commit().await?;
        Ok(made)
    }

    /// Changes a pool of nodes. Users keep the nodes that they have. `expected` is the `updated_at` that the caller knows.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`], [`ServiceError::Stale`], [`ServiceError::Invalid`], [`ServiceError::Conflict`] if the name is taken.
    pub async fn update_pool(
        &self,
        access: Access<'_>,
        id: PoolId,
        expected: Option<i64>,
        change: UpdatePool,
    ) -> Result<PoolView, ServiceError> {
        let nodes = check(change.name.as_ref(), change.node_ids.as_ref())?;
        let mut tx = self.store().begin().await?;
        let (row, had) = pools::get_for_update(&mut tx, id).await?;
        check_state(&row, expected)?;
        // Two states never have one time.
        let now = self.now().max(Timestamp(row.updated_at.0 + 1));
        let old = view(row.clone(), &had);
        let name = change.name.as_ref().unwrap_or(&row.name);
        let row = pools::rename(&mut tx, id, name, now).await?;
        let nodes = if change.node_ids.is_some() {
            nodes
        } else {
            had
        };
        let placed = pools::set_members(&mut tx, id, &nodes).await;
        placed.map_err(|error| not_there(error, "node_ids"))?;
        let new = view(row, &nodes);
        let both = pool_record(Some(&old), Some(&new), "node_pool.updated");
        record(&mut tx, access, both, now).await?;
        tx.commit().await?;
        Ok(new)
    }

    /// Removes a pool of nodes; plans forget it. Users keep the nodes that they have.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`], [`ServiceError::Stale`].
    pub async fn delete_pool(
        &self,
        access: Access<'_>,
        id: PoolId,
        expected: Option<i64>,
    ) -> Result<(), ServiceError> {
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let (row, nodes) = pools::get_for_update(&mut tx, id).await?;
        check_state(&row, expected)?;
        pools::delete(&mut tx, id).await?;
        let old = view(row, &nodes);
        let before = pool_record(Some(&old), None, "node_pool.deleted");
        record(&mut tx, access, before, now).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Returns the pools of a plan; none: the assignment task takes any node.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`].
    pub async fn plan_pools(
        &self,
        _access: Access<'_>,
        id: PlanId,
    ) -> Result<Vec<i64>, ServiceError> {
        let mut tx = self.store().snapshot().await?;
        plans::get_in(&mut tx, id).await?;
        let found = pools::of_plan(&mut tx, id).await?;
        tx.rollback().await?;
        Ok(found.into_iter().map(|pool| pool.0).collect())
    }

    /// Says which pools a plan has: its users get nodes of these only. They keep the nodes that they have.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`], [`ServiceError::Invalid`].
    pub async fn set_plan_pools(
        &self,
        access: Access<'_>,
        id: PlanId,
        wanted: Vec<i64>,
    ) -> Result<Vec<i64>, ServiceError> {
        let wanted = distinct(&wanted, "pool_ids")?;
        let now = self.now();
        let mut tx = self.store().begin().await?;
        plans::get_in(&mut tx, id).await?;
        let old = pools::of_plan(&mut tx, id).await?;
        let new: Vec<PoolId> = wanted.into_iter().map(PoolId).collect();
        let set = pools::set_of_plan(&mut tx, id, &new).await;
        set.map_err(|error| not_there(error, "pool_ids"))?;
        let shown = |pools: &[PoolId]| {
            let ids: Vec<i64> = pools.iter().map(|pool| pool.0).collect();
            json!({ "pool_ids": ids })
        };
        let written = Record {
            kind: "plan",
            id: id.to_string(),
            before: Some(shown(&old)),
            after: Some(shown(&new)),
            owner: None,
            topic: "plan.pools_set",
        };
        record(&mut tx, access, written, now).await?;
        tx.commit().await?;
        Ok(new.into_iter().map(|pool| pool.0).collect())
    }
}

/// Fails unless the pool is as the caller knows it; its state is known by the time of its last change.
fn check_state(pool: &PoolRow, expected: Option<i64>) -> Result<(), ServiceError> {
    match expected {
        Some(expected) if expected != pool.updated_at.0 => Err(ServiceError::Stale("node pool")),
        _ => Ok(()),
    }
}

fn view(row: PoolRow, nodes: &[NodeId]) -> PoolView {
    PoolView {
        id: row.id.0,
        name: row.name,
        node_ids: nodes.iter().map(|node| node.0).collect(),
        created_at: Moment(row.created_at),
        updated_at: Moment(row.updated_at),
    }
}

fn check(name: Option<&String>, nodes: Option<&Vec<i64>>) -> Result<Vec<NodeId>, ServiceError> {
    let named = |name: &String| (1..=64).contains(&name.len()) && !name.contains(char::is_control);
    if !name.is_none_or(named) {
        return Err(ServiceError::invalid("name", "must have 1 to 64 bytes"));
    }
    let nodes = distinct(nodes.map_or(&[][..], Vec::as_slice), "node_ids")?;
    Ok(nodes.into_iter().map(NodeId).collect())
}

/// Returns the numbers in order, if none is there twice.
fn distinct(numbers: &[i64], field: &str) -> Result<Vec<i64>, ServiceError> {
    if numbers.len() > MAX_MEMBERS {
        return Err(ServiceError::invalid(
            field,
            "must have at most 1000 entries",
        ));
    }
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    let issues: Vec<_> = sorted
        .windows(2)
        .filter(|pair| pair[0] == pair[1])
        .map(|pair| FieldIssue::new(field, format!("names {} twice", pair[0])))
        .collect();
    if issues.is_empty() {
        Ok(sorted)
    } else {
        Err(ServiceError::Invalid(issues))
    }
}

fn not_there(error: StoreError, field: &str) -> ServiceError {
    match error {
        StoreError::Reference(_) => ServiceError::invalid(field, "names one that is not there"),
        error => error.into(),
    }
}

fn pool_record<'a>(
    before: Option<&PoolView>,
    after: Option<&PoolView>,
    topic: &'a str,
) -> Record<'a> {
    let shown = |pool: &PoolView| serde_json::to_value(pool).unwrap_or(Value::Null);
    Record {
        kind: "node_pool",
        id: before
            .or(after)
            .map(|pool| pool.id.to_string())
            .unwrap_or_default(),
        before: before.map(shown),
        after: after.map(shown),
        owner: None,
        topic,
    }
}
