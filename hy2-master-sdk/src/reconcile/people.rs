//! Users: expiry, quotas, holds, periods; and nodes for those who have too few.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::driver::TaskError;
use crate::core::Core;
use crate::domain::{AssignmentSource, NodeId, ObservedState, PlanId, UserId};
use crate::plan::assign::{Candidate, Need, choose};
use crate::store::assignments::{self, Move, NewAssignment};
use crate::store::cluster::{self, Fence};
use crate::store::{StoreError, due, pools, users};

/// Limits users whose quota is used up: those whose counters grew here, and now and then all.
pub(super) async fn quotas(core: Arc<Core>, fence: Option<Fence>) -> Result<(), TaskError> {
    let grown = core.grown.take();
    let mut limited = 0;
    for chunk in grown.chunks(1_000) {
        limited += over(&core, fence.as_ref(), Some(chunk)).await?;
    }
    if limited > 0 {
        tracing::info!(users = limited, "quotas are used up");
    }
    Ok(())
}

/// Limits users whose quota is used up, of all: an operator may have lowered it, and counters may
/// have grown on another master.
pub(super) async fn all_quotas(core: Arc<Core>, fence: Option<Fence>) -> Result<(), TaskError> {
    while over(&core, fence.as_ref(), None).await? > 0 {}
    Ok(())
}

async fn over(
    core: &Core,
    fence: Option<&Fence>,
    among: Option<&[UserId]>,
) -> Result<usize, TaskError> {
    let mut tx = core.store.begin().await?;
    if let Some(fence) = fence {
        cluster::check_fence(&mut tx, fence).await?;
    }
    let over = due::used_up(&mut tx, among, core.now()).await?;
    if over.is_empty() {
        tx.rollback().await?;
    } else {
        tx.commit().await?;
    }
    Ok(over.len())
}

/// Makes every user's status what time says, batch by batch.
pub(super) async fn limits(core: Arc<Core>, fence: Option<Fence>) -> Result<(), TaskError> {
    loop {
        let now = core.now();
        let mut tx = core.store.begin().await?;
        if let Some(fence) = &fence {
            cluster::check_fence(&mut tx, fence).await?;
        }
        // New periods before quotas: who has a new one is not limited by the old.
        let renewed = due::periods(&mut tx, now).await?;
        users::lock(&mut tx, &renewed).await?;
        for user in &renewed {
            users::reset_traffic(&mut tx, *user, "a new period", "system", now).await?;
        }
        due::tell_renewed(&mut tx, &renewed, now).await?;
        let started = due::holds(&mut tx, now).await?;
        let followed = due::next_plans(&mut tx, now).await?;
        for user in &followed {
            users::reset_traffic(&mut tx, *user, "the next plan", "system", now).await?;
        }
        due::tell_renewed(&mut tx, &followed, now).await?;
        let expired = due::expiry(&mut tx, now).await?;
        let freed = due::quota_again(&mut tx, now).await?;
        let changed = renewed.len() + started.len() + followed.len() + expired.len() + freed.len();
        if changed == 0 {
            tx.rollback().await?;
            return Ok(());
        }
        tx.commit().await?;
        tracing::info!(
            renewed = renewed.len(),
            started = started.len(),
            followed = followed.len(),
            expired = expired.len(),
            freed = freed.len(),
            "users changed by time"
        );
    }
}

/// Gives nodes to users who have too few, and takes users off nodes that they leave for these.
pub(super) async fn assign(core: Arc<Core>, fence: Option<Fence>) -> Result<(), TaskError> {
    let mut candidates = core
        .store
        .candidates()
        .await?
        .into_iter()
        .map(|row| Candidate {
            node: row.id,
            region: row.region_id,
            weight: row.weight,
            assigned: row.assigned,
            capacity: row.capacity_sessions,
            reachable: matches!(
                row.observed_state,
                ObservedState::Online | ObservedState::Enrolling
            ),
        })
        .collect::<Vec<_>>();
    let available = i64::try_from(candidates.len()).unwrap_or(i64::MAX);
    if available == 0 {
        return Ok(());
    }
    let pools: HashMap<PlanId, Arc<BTreeSet<NodeId>>> = pools::nodes_of_plans(&core.store)
        .await?
        .into_iter()
        .map(|(plan, nodes)| (plan, Arc::new(nodes)))
        .collect();
    let mut after = UserId(0);
    loop {
        let short = core.store.short_of_nodes(after, available, BATCH).await?;
        let Some(last) = short.last() else {
            return Ok(());
        };
        after = last.id;
        let now = core.now();
        let mut tx = core.store.begin().await?;
        if let Some(fence) = &fence {
            cluster::check_fence(&mut tx, fence).await?;
        }
        let ids = short.iter().map(|row| row.id).collect::<Vec<_>>();
        let mut has = due::nodes_of(&mut tx, &ids).await?;
        let mut never = due::taken_off(&mut tx, &ids).await?;
        let (mut given, mut left) = (0, 0);
        let mut leaving = due::leaving(&mut tx, &ids).await?;
        let mut moves = Vec::new();
        for row in &short {
            let need = Need {
                region: row.home_region_id,
                has: has.remove(&row.id).unwrap_or_default(),
                never: never.remove(&row.id).unwrap_or_default(),
                wanted: usize::try_from(row.wanted).unwrap_or(0),
                among: row.plan_id.and_then(|plan| pools.get(&plan).cloned()),
            };
            let first_rank = i64::try_from(need.has.len()).unwrap_or(i64::MAX);
            let to: Vec<_> = (first_rank..)
                .zip(choose(&need, &mut candidates))
                .map(|(rank, (node, score))| NewAssignment {
                    user_id: row.id,
                    node_id: node,
                    rank,
                    source: AssignmentSource::Auto,
                    score: Some(score),
                })
                .collect();
            let mut from = leaving.remove(&row.id).unwrap_or_default();
            from.retain(|node| to.iter().all(|new| new.node_id != *node));
            // Nobody leaves the last node for none.
            if need.has.is_empty() && to.is_empty() {
                from.clear();
            }
            given += to.len();
            left += from.len();
            if !to.is_empty() || !from.is_empty() {
                moves.push(Move {
                    user: row.id,
                    plan: row.plan_id,
                    to,
                    from,
                });
            }
        }
        match assignments::move_users(&mut tx, &moves, now).await {
            Ok(()) => tx.commit().await?,
            // A node or a user went away meanwhile: the next run sees it.
            Err(StoreError::NotFound(_) | StoreError::Reference(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        if !moves.is_empty() {
            tracing::info!(given, left, "users were given nodes");
        }
        if short.len() < BATCH as usize {
            return Ok(());
        }
    }
}

/// For what no ingest of this master tells.
pub(super) const ALL_QUOTAS_INTERVAL: Duration = Duration::from_secs(15);
/// Looking for users with too few nodes reads all users.
pub(super) const ASSIGN_PAUSE: Duration = Duration::from_millis(500);
/// Calls wake the task; the timer is for lost ones.
pub(super) const ASSIGN_INTERVAL: Duration = Duration::from_secs(30);
const BATCH: u32 = 500;
