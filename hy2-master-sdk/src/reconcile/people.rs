//! Users: expiry, quotas, holds, periods; and nodes for those who have too few.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::driver::TaskError;
use crate::core::Core;
use crate::domain::{AssignmentSource, NodeId, ObservedState, PlanId, Timestamp, UserId};
use crate::plan::assign::{Candidate, Need, choose};
use crate::store::assignments::{self, Move, NewAssignment};
use crate::store::cluster::{self, Fence};
use crate::store::{StoreError, Tx, due, pools, users};

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

/// What time does to users, in this order: new periods before quotas, so that who has a new one is not limited by the old.
#[derive(Debug, Clone, Copy)]
enum Step {
    PeriodsAhead,
    Periods,
    Holds,
    NextPlans,
    Expiry,
    TimeAgain,
    QuotaAgain,
}

impl Step {
    const ALL: [Self; 7] = [
        Self::PeriodsAhead,
        Self::Periods,
        Self::Holds,
        Self::NextPlans,
        Self::Expiry,
        Self::TimeAgain,
        Self::QuotaAgain,
    ];

    /// Takes the step with one batch of users; returns who changed.
    async fn take(self, tx: &mut Tx, now: Timestamp) -> Result<Vec<UserId>, StoreError> {
        match self {
            Self::PeriodsAhead => due::periods_ahead(tx, now).await,
            Self::Periods => {
                let renewed = due::periods(tx, now).await?;
                anew(tx, renewed, "a new period", now).await
            }
            Self::Holds => due::holds(tx, now).await,
            Self::NextPlans => {
                let followed = due::next_plans(tx, now).await?;
                anew(tx, followed, "the next plan", now).await
            }
            Self::Expiry => due::expiry(tx, now).await,
            Self::TimeAgain => due::time_again(tx, now).await,
            Self::QuotaAgain => due::quota_again(tx, now).await,
        }
    }
}

/// Starts the quotas of users anew, and tells of it.
async fn anew(
    tx: &mut Tx,
    users: Vec<UserId>,
    reason: &str,
    now: Timestamp,
) -> Result<Vec<UserId>, StoreError> {
    for user in &users {
        users::reset_traffic(tx, *user, reason, "system", now).await?;
    }
    due::tell_renewed(tx, &users, now).await?;
    Ok(users)
}

/// Makes every user's status what time says, batch by batch. Each step is a transaction of its own: with the users of one
/// it locks their nodes, and whoever changes users locks these before nodes.
pub(super) async fn limits(core: Arc<Core>, fence: Option<Fence>) -> Result<(), TaskError> {
    for step in Step::ALL {
        loop {
            let now = core.now();
            let mut tx = core.store.begin().await?;
            if let Some(fence) = &fence {
                cluster::check_fence(&mut tx, fence).await?;
            }
            let changed = step.take(&mut tx, now).await?.len();
            tx.commit().await?;
            if changed == 0 {
                break;
            }
            tracing::info!(users = changed, step = ?step, "users changed by time");
        }
    }
    Ok(())
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
