//! Who serves whom. Every change gives the node a new revision and marks the row with it: what
//! changed for a node after revision R is the rows with a greater one.

use std::collections::{BTreeMap, HashMap};

use sqlx::FromRow;
use sqlx::types::Json;

use super::nodes::{self, Bump};
use super::{Connection, Rows as _, Store, StoreError, Topic, Tx, on};
use crate::domain::{AssignmentId, AssignmentSource, NodeId, PlanId, Timestamp, UserId};

/// One assignment, released or not.
#[derive(Debug, Clone, FromRow)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct AssignmentRow {
    pub id: AssignmentId,
    pub user_id: UserId,
    pub node_id: NodeId,
    pub rank: i64,
    pub source: AssignmentSource,
    pub score: Option<f64>,
    pub reason: Option<Json<serde_json::Value>>,
    pub rev: i64,
    pub assigned_at: Timestamp,
    pub released_at: Option<Timestamp>,
}

macro_rules! assignment_columns {
    () => {
        "id, user_id, node_id, rank, source, score, reason, rev, assigned_at, released_at"
    };
}

/// One decision: who is to serve whom.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct NewAssignment {
    pub user_id: UserId,
    pub node_id: NodeId,
    pub rank: i64,
    pub source: AssignmentSource,
    pub score: Option<f64>,
}

/// What the assignment task decided of one user.
#[derive(Debug, Clone)]
pub struct Move {
    /// Who.
    pub user: UserId,
    /// The plan that it was decided by.
    pub plan: Option<PlanId>,
    /// New nodes.
    pub to: Vec<NewAssignment>,
    /// Nodes that the user leaves.
    pub from: Vec<NodeId>,
}

impl Store {
    /// Returns assignments in order of their number, after `after`; of one user or one node when
    /// given, released ones when asked for.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn assignments(
        &self,
        user: Option<UserId>,
        node: Option<NodeId>,
        released: bool,
        after: Option<AssignmentId>,
        limit: u32,
    ) -> Result<Vec<AssignmentRow>, StoreError> {
        const ALL: &str = concat!(
            "select ",
            assignment_columns!(),
            " from node_assignments where id > $1 and ($2 or released_at is null) order by id limit $3"
        );
        const OF_USER: &str = concat!(
            "select ",
            assignment_columns!(),
            " from node_assignments where id > $1 and ($2 or released_at is null) and user_id = $4 \
             and ($5 = 0 or node_id = $5) order by id limit $3"
        );
        const OF_NODE: &str = concat!(
            "select ",
            assignment_columns!(),
            " from node_assignments where id > $1 and ($2 or released_at is null) and node_id = $4 order by id limit $3"
        );
        let after = after.unwrap_or(AssignmentId(0));
        let limit = i64::from(limit);
        Ok(match (user, node) {
            (Some(user), node) => on!(read self, |ex| sqlx::query_as::<_, AssignmentRow>(OF_USER)
                .bind(after).bind(released).bind(limit).bind(user).bind(node.unwrap_or(NodeId(0)))
                .fetch_all(ex).await)?,
            (None, Some(node)) => on!(read self, |ex| sqlx::query_as::<_, AssignmentRow>(OF_NODE)
                .bind(after).bind(released).bind(limit).bind(node)
                .fetch_all(ex).await)?,
            (None, None) => on!(read self, |ex| sqlx::query_as::<_, AssignmentRow>(ALL)
                .bind(after).bind(released).bind(limit)
                .fetch_all(ex).await)?,
        })
    }
}

/// Assigns a user to a node; one who is assigned already keeps the row, with the new rank and
/// source.
///
/// # Errors
///
/// [`StoreError::NotFound`] of the node, [`StoreError::Reference`] of the user.
pub async fn assign(
    tx: &mut Tx,
    new: &NewAssignment,
    now: Timestamp,
) -> Result<AssignmentRow, StoreError> {
    let rev = nodes::bump(tx, new.node_id, Bump::USERS, now).await?;
    assign_at(tx, new, rev, now).await
}

/// As [`assign`], for many at once: each node gets one new revision.
///
/// # Errors
///
/// As [`assign`].
pub async fn assign_many(
    tx: &mut Tx,
    new: &[NewAssignment],
    now: Timestamp,
) -> Result<(), StoreError> {
    let mut by_node = BTreeMap::<NodeId, Vec<&NewAssignment>>::new();
    for assignment in new {
        by_node
            .entry(assignment.node_id)
            .or_default()
            .push(assignment);
    }
    for (node, assignments) in by_node {
        let rev = nodes::bump(tx, node, Bump::USERS, now).await?;
        for assignment in assignments {
            assign_at(tx, assignment, rev, now).await?;
        }
    }
    Ok(())
}

/// Gives users their new nodes and takes them off those that they leave, at once. Leaves out who has another plan by
/// now or is being changed: the change calls for the next run.
///
/// # Errors
///
/// As [`assign`].
pub async fn move_users(tx: &mut Tx, moves: &[Move], now: Timestamp) -> Result<(), StoreError> {
    let mut revs = BTreeMap::<NodeId, i64>::new();
    for step in moves {
        revs.extend(step.to.iter().map(|new| (new.node_id, 0)));
        revs.extend(step.from.iter().map(|node| (*node, 0)));
    }
    for (node, rev) in &mut revs {
        *rev = nodes::bump(tx, *node, Bump::USERS, now).await?;
    }
    let ids = moves.iter().map(|step| step.user.0).collect::<Vec<_>>();
    let plans = hold_plans(tx, ids).await?;
    for step in moves {
        if plans.get(&step.user) != Some(&step.plan) {
            continue;
        }
        for new in &step.to {
            let rev = revs.get(&new.node_id).copied().unwrap_or(0);
            assign_at(tx, new, rev, now).await?;
        }
        for node in &step.from {
            let rev = revs.get(node).copied().unwrap_or(0);
            release_at(tx, step.user, *node, rev, None, now).await?;
        }
    }
    Ok(())
}

/// Returns the plans of those users whom nobody else is changing, and keeps them until the transaction ends. Waits for
/// nobody: who holds a user may wait for a node that this transaction holds.
async fn hold_plans(
    tx: &mut Tx,
    ids: Vec<i64>,
) -> Result<HashMap<UserId, Option<PlanId>>, StoreError> {
    const PG: &str = "select id, plan_id from users where id = any($1) and deleted_at is null \
                      order by id for share skip locked";
    const SQLITE: &str = "select id, plan_id from users where id in (select value from json_each($1)) \
                          and deleted_at is null";
    let rows: Vec<(UserId, Option<PlanId>)> = match tx.connection() {
        Connection::Pg(tx) => {
            let query = sqlx::query_as(PG).bind(ids);
            query.fetch_all(&mut **tx).await?
        }
        Connection::Sqlite(tx) => {
            let query = sqlx::query_as(SQLITE).bind(Json(ids));
            query.fetch_all(&mut **tx).await?
        }
    };
    Ok(rows.into_iter().collect())
}

async fn assign_at(
    tx: &mut Tx,
    new: &NewAssignment,
    rev: i64,
    now: Timestamp,
) -> Result<AssignmentRow, StoreError> {
    const SQL: &str = concat!(
        "insert into node_assignments (user_id, node_id, rank, source, score, rev, assigned_at, updated_at) \
         values ($1, $2, $3, $4, $5, $6, $7, $7) \
         on conflict (user_id, node_id) where released_at is null do update \
         set rank = excluded.rank, source = excluded.source, score = excluded.score, reason = null, \
         rev = excluded.rev, updated_at = excluded.updated_at returning ",
        assignment_columns!()
    );
    tx.call(Topic::Users);
    Ok(on!(tx, |ex| sqlx::query_as::<_, AssignmentRow>(SQL)
        .bind(new.user_id)
        .bind(new.node_id)
        .bind(new.rank)
        .bind(new.source)
        .bind(new.score)
        .bind(rev)
        .bind(now)
        .fetch_one(ex)
        .await)?)
}

/// Takes a user off a node.
///
/// # Errors
///
/// [`StoreError::NotFound`] of the node or of an assignment between the two.
pub async fn release(
    tx: &mut Tx,
    user: UserId,
    node: NodeId,
    now: Timestamp,
) -> Result<(), StoreError> {
    let rev = nodes::bump(tx, node, Bump::USERS, now).await?;
    found(release_at(tx, user, node, rev, None, now).await?)
}

/// Takes a user off a node for good: the assignment task does not choose the node again, until somebody assigns it.
///
/// # Errors
///
/// As [`release`].
pub async fn take_off(
    tx: &mut Tx,
    user: UserId,
    node: NodeId,
    now: Timestamp,
) -> Result<(), StoreError> {
    let rev = nodes::bump(tx, node, Bump::USERS, now).await?;
    let reason = Json(serde_json::json!({"released": "by an operator"}));
    found(release_at(tx, user, node, rev, Some(reason), now).await?)
}

/// Releases at a revision of the node; the reason is the new one, or none. Returns how many there were.
async fn release_at(
    tx: &mut Tx,
    user: UserId,
    node: NodeId,
    rev: i64,
    reason: Option<Json<serde_json::Value>>,
    now: Timestamp,
) -> Result<u64, StoreError> {
    const SQL: &str = "update node_assignments set released_at = $3, updated_at = $3, rev = $4, reason = $5 \
                       where user_id = $1 and node_id = $2 and released_at is null";
    let rows = on!(tx, |ex| sqlx::query(SQL)
        .bind(user)
        .bind(node)
        .bind(now)
        .bind(rev)
        .bind(&reason)
        .execute(ex)
        .await
        .rows())?;
    tx.call(Topic::Users);
    Ok(rows)
}

const fn found(rows: u64) -> Result<(), StoreError> {
    match rows {
        0 => Err(StoreError::NotFound("assignment")),
        _ => Ok(()),
    }
}

/// Marks the automatic assignments of a user that are outside the pools of the plan, which is new: the assignment task
/// takes the user off these nodes once there is one that stays. Assignments by hand stay, and without pools all do.
/// After [`touch_users`], which locks the nodes first, as everybody does.
///
/// # Errors
///
/// The store fails.
pub(super) async fn leave_other_pools(tx: &mut Tx, user: UserId) -> Result<(), StoreError> {
    const SQL: &str = "update node_assignments set reason = case \
        when exists (select 1 from users u join plan_pools pp on pp.plan_id = u.plan_id where u.id = $1) \
        and node_id not in (select m.node_id from users u join plan_pools pp on pp.plan_id = u.plan_id \
        join pool_members m on m.pool_id = pp.pool_id where u.id = $1) then $2 end \
        where user_id = $1 and released_at is null and source in ('auto', 'failover')";
    let reason = Json(serde_json::json!({"leaving": "the plan has other nodes"}));
    on!(tx, |ex| sqlx::query(SQL)
        .bind(user)
        .bind(&reason)
        .execute(ex)
        .await
        .rows())?;
    Ok(())
}

/// Takes a user off every node.
///
/// # Errors
///
/// The store fails.
pub async fn release_all(tx: &mut Tx, user: UserId, now: Timestamp) -> Result<(), StoreError> {
    for node in nodes_of(tx, &[user]).await? {
        release(tx, user, node, now).await?;
    }
    Ok(())
}

/// Marks the entries of users as changed on every node that serves them.
///
/// # Errors
///
/// The store fails.
pub async fn touch_users(tx: &mut Tx, users: &[UserId], now: Timestamp) -> Result<(), StoreError> {
    // In ascending order of node, as everybody who locks several.
    for node in nodes_of(tx, users).await? {
        let rev = nodes::bump(tx, node, Bump::USERS, now).await?;
        let ids = users.iter().map(|user| user.0).collect::<Vec<_>>();
        match tx.connection() {
            Connection::Pg(tx) => {
                const SQL: &str = "update node_assignments set rev = $2, updated_at = $3 \
                                   where node_id = $1 and user_id = any($4) and released_at is null";
                sqlx::query(SQL)
                    .bind(node)
                    .bind(rev)
                    .bind(now)
                    .bind(ids)
                    .execute(&mut **tx)
                    .await?;
            }
            Connection::Sqlite(tx) => {
                const SQL: &str = "update node_assignments set rev = $2, updated_at = $3 where node_id = $1 \
                                   and user_id in (select value from json_each($4)) and released_at is null";
                sqlx::query(SQL)
                    .bind(node)
                    .bind(rev)
                    .bind(now)
                    .bind(Json(ids))
                    .execute(&mut **tx)
                    .await?;
            }
        }
    }
    Ok(())
}

/// Returns the nodes that serve any of the users, in ascending order.
async fn nodes_of(tx: &mut Tx, users: &[UserId]) -> Result<Vec<NodeId>, StoreError> {
    let ids = users.iter().map(|user| user.0).collect::<Vec<_>>();
    Ok(match tx.connection() {
        Connection::Pg(tx) => {
            const SQL: &str = "select distinct node_id from node_assignments \
                               where user_id = any($1) and released_at is null order by node_id";
            sqlx::query_scalar(SQL)
                .bind(ids)
                .fetch_all(&mut **tx)
                .await?
        }
        Connection::Sqlite(tx) => {
            const SQL: &str = "select distinct node_id from node_assignments where user_id in \
                               (select value from json_each($1)) and released_at is null order by node_id";
            sqlx::query_scalar(SQL)
                .bind(Json(ids))
                .fetch_all(&mut **tx)
                .await?
        }
    })
}
