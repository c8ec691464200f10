//! Plans: what users get by default.

use sqlx::FromRow;

use super::{Connection, Store, StoreError, Topic, Tx, on};
use crate::domain::{PlanId, QuotaPeriod, Timestamp, UserId};

/// A plan.
#[derive(Debug, Clone, FromRow)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct PlanRow {
    pub id: PlanId,
    pub name: String,
    pub quota_bytes: Option<i64>,
    pub period: QuotaPeriod,
    pub duration_days: Option<i64>,
    pub max_devices: Option<i64>,
    pub max_connections: Option<i64>,
    pub up_bytes_per_s: Option<i64>,
    pub down_bytes_per_s: Option<i64>,
    pub nodes_per_user: i64,
    pub next_plan_id: Option<PlanId>,
    pub archived_at: Option<Timestamp>,
    pub rev: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl PlanRow {
    /// Returns when access ends that begins at `start`; `None` without an end.
    pub fn end(&self, start: Timestamp) -> Option<Timestamp> {
        self.duration_days.map(|days| start.plus_days(days))
    }
}

macro_rules! plan_columns {
    () => {
        "id, name, quota_bytes, period, duration_days, max_devices, max_connections, up_bytes_per_s, \
         down_bytes_per_s, nodes_per_user, next_plan_id, archived_at, rev, created_at, updated_at"
    };
}

/// Lists plans after `after`, archived ones when asked for.
///
/// # Errors
///
/// The database refuses.
pub async fn list(
    store: &Store,
    archived: bool,
    after: i64,
    limit: i64,
) -> Result<Vec<PlanRow>, StoreError> {
    const SQL: &str = concat!(
        "select ",
        plan_columns!(),
        " from plans where id > $1 and ($2 or archived_at is null) order by id limit $3"
    );
    Ok(on!(read store, |ex| sqlx::query_as(SQL)
        .bind(after)
        .bind(archived)
        .bind(limit)
        .fetch_all(ex)
        .await)?)
}

/// Returns a plan.
///
/// # Errors
///
/// [`StoreError::NotFound`].
pub async fn get(store: &Store, id: PlanId) -> Result<PlanRow, StoreError> {
    const SQL: &str = concat!("select ", plan_columns!(), " from plans where id = $1");
    on!(read store, |ex| sqlx::query_as(SQL).bind(id).fetch_optional(ex).await)?
        .ok_or(StoreError::NotFound("plan"))
}

/// Returns a plan as a transaction sees it.
///
/// # Errors
///
/// [`StoreError::NotFound`].
pub async fn get_in(tx: &mut Tx, id: PlanId) -> Result<PlanRow, StoreError> {
    const SQL: &str = concat!("select ", plan_columns!(), " from plans where id = $1");
    on!(tx, |ex| sqlx::query_as(SQL)
        .bind(id)
        .fetch_optional(ex)
        .await)?
    .ok_or(StoreError::NotFound("plan"))
}

/// Makes a plan; number, revision and times of `plan` do not matter.
///
/// # Errors
///
/// [`StoreError::Duplicate`] of `plans_name_key`, [`StoreError::Check`].
pub async fn create(tx: &mut Tx, plan: &PlanRow, now: Timestamp) -> Result<PlanRow, StoreError> {
    const SQL: &str = concat!(
        "insert into plans (name, quota_bytes, period, duration_days, max_devices, max_connections, \
         up_bytes_per_s, down_bytes_per_s, nodes_per_user, next_plan_id, created_at, updated_at) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11) returning ",
        plan_columns!()
    );
    tx.call(Topic::Users);
    Ok(on!(tx, |ex| sqlx::query_as(SQL)
        .bind(&plan.name)
        .bind(plan.quota_bytes)
        .bind(plan.period)
        .bind(plan.duration_days)
        .bind(plan.max_devices)
        .bind(plan.max_connections)
        .bind(plan.up_bytes_per_s)
        .bind(plan.down_bytes_per_s)
        .bind(plan.nodes_per_user)
        .bind(plan.next_plan_id)
        .bind(now)
        .fetch_one(ex)
        .await)?)
}

/// Writes a plan if it is still at `plan.rev`, and marks the entries of its users as changed.
///
/// # Errors
///
/// [`StoreError::StaleRevision`], [`StoreError::Duplicate`], [`StoreError::Check`].
pub async fn update(tx: &mut Tx, plan: &PlanRow, now: Timestamp) -> Result<PlanRow, StoreError> {
    const SQL: &str = concat!(
        "update plans set name = $3, quota_bytes = $4, period = $5, duration_days = $6, \
         max_devices = $7, max_connections = $8, up_bytes_per_s = $9, down_bytes_per_s = $10, \
         nodes_per_user = $11, next_plan_id = $12, archived_at = $13, rev = rev + 1, \
         updated_at = $14 where id = $1 and rev = $2 returning ",
        plan_columns!()
    );
    let row: Option<PlanRow> = on!(tx, |ex| sqlx::query_as(SQL)
        .bind(plan.id)
        .bind(plan.rev)
        .bind(&plan.name)
        .bind(plan.quota_bytes)
        .bind(plan.period)
        .bind(plan.duration_days)
        .bind(plan.max_devices)
        .bind(plan.max_connections)
        .bind(plan.up_bytes_per_s)
        .bind(plan.down_bytes_per_s)
        .bind(plan.nodes_per_user)
        .bind(plan.next_plan_id)
        .bind(plan.archived_at)
        .bind(now)
        .fetch_optional(ex)
        .await)?;
    let row = row.ok_or(StoreError::StaleRevision {
        what: "plan",
        expected: plan.rev,
        actual: -1,
    })?;
    let users: Vec<UserId> = on!(tx, |ex| sqlx::query_scalar(
        "select id from users where plan_id = $1 and deleted_at is null order by id",
    )
    .bind(plan.id)
    .fetch_all(ex)
    .await)?;
    super::assignments::touch_users(tx, &users, now).await?;
    tx.call(Topic::Users);
    Ok(row)
}

/// Removes a plan that nobody has.
///
/// # Errors
///
/// [`StoreError::Reference`] if somebody has it, [`StoreError::StaleRevision`].
pub async fn delete(tx: &mut Tx, id: PlanId, rev: i64) -> Result<(), StoreError> {
    let users: i64 = on!(tx, |ex| sqlx::query_scalar(
        "select count(*) from users where plan_id = $1 and deleted_at is null",
    )
    .bind(id)
    .fetch_one(ex)
    .await)?;
    if users > 0 {
        return Err(StoreError::Reference("users_plan_id_fkey".to_owned()));
    }
    // Deleted users are kept for the accounts; of their plan nothing is left to know.
    on!(tx, |ex| sqlx::query(
        "update users set plan_id = null where plan_id = $1 and deleted_at is not null",
    )
    .bind(id)
    .execute(ex)
    .await
    .map(drop))?;
    let removed = match tx.connection() {
        Connection::Pg(pg) => sqlx::query(DELETE)
            .bind(id)
            .bind(rev)
            .execute(&mut **pg)
            .await?
            .rows_affected(),
        Connection::Sqlite(sqlite) => sqlx::query(DELETE)
            .bind(id)
            .bind(rev)
            .execute(&mut **sqlite)
            .await?
            .rows_affected(),
    };
    if removed == 1 {
        return Ok(());
    }
    Err(StoreError::StaleRevision {
        what: "plan",
        expected: rev,
        actual: -1,
    })
}

const DELETE: &str = "delete from plans where id = $1 and rev = $2";
