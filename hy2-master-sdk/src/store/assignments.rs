//! Who serves whom. Every change gives the node a new revision and marks the row with it: what
//! changed for a node after revision R is the rows with a greater one.

use sqlx::FromRow;
use sqlx::types::Json;

use super::nodes::{self, Bump};
use super::{Connection, Rows as _, Store, StoreError, Topic, Tx, on};
use crate::domain::{AssignmentId, AssignmentSource, NodeId, Timestamp, UserId};

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
    let mut by_node = std::collections::BTreeMap::<NodeId, Vec<&NewAssignment>>::new();
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
         set rank = excluded.rank, source = excluded.source, score = excluded.score, rev = excluded.rev, \
         updated_at = excluded.updated_at returning ",
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
    const SQL: &str = "update node_assignments set released_at = $3, updated_at = $3, rev = $4 \
                       where user_id = $1 and node_id = $2 and released_at is null";
    let rows = on!(tx, |ex| sqlx::query(SQL)
        .bind(user)
        .bind(node)
        .bind(now)
        .bind(rev)
        .execute(ex)
        .await
        .rows())?;
    tx.call(Topic::Users);
    if rows == 0 {
        return Err(StoreError::NotFound("assignment"));
    }
    Ok(())
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
    const SQL: &str = "update node_assignments set reason = $3 \
                       where user_id = $1 and node_id = $2 and released_at is null";
    let reason = Json(serde_json::json!({"released": "by an operator"}));
    on!(tx, |ex| sqlx::query(SQL)
        .bind(user)
        .bind(node)
        .bind(&reason)
        .execute(ex)
        .await
        .rows())?;
    release(tx, user, node, now).await
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
