//! What time and traffic do to users: expiry, quotas, the end of a hold, new periods; and who still
//! needs a node. Each function changes at most one batch; the caller repeats it while there is more. Of what changed
//! there are events, in the same transaction. Each locks its users before it locks a node: in PostgreSQL a transaction
//! that calls two of them waits in a circle with whoever changes a user.

use std::collections::HashMap;

use serde_json::json;
use sqlx::FromRow;
use sqlx::types::Json;
use uuid::Uuid;

use super::events::{self, NewEvent};
use super::{Connection, Rows as _, Store, StoreError, Topic, Tx, assignments, on};
use crate::domain::{
    AdminId, NodeId, ObservedState, PlanId, QuotaPeriod, RegionId, Timestamp, UserId, UserStatus,
};

/// Why a user is expired.
pub(crate) const TIME_IS_OVER: &str = "the time is over";

/// A user who has fewer nodes than wanted.
#[derive(Debug, Clone, FromRow)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct ShortRow {
    pub id: UserId,
    pub home_region_id: Option<RegionId>,
    pub plan_id: Option<PlanId>,
    pub wanted: i64,
}

/// A node that may be given users.
#[derive(Debug, Clone, FromRow)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct CandidateRow {
    pub id: NodeId,
    pub region_id: Option<RegionId>,
    pub weight: i64,
    pub capacity_sessions: Option<i64>,
    pub observed_state: ObservedState,
    pub assigned: i64,
}

impl Store {
    /// Returns the nodes that may be given users.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn candidates(&self) -> Result<Vec<CandidateRow>, StoreError> {
        const SQL: &str = "select n.id, n.region_id, n.weight, n.capacity_sessions, n.observed_state, \
            (select count(*) from node_assignments a where a.node_id = n.id and a.released_at is null) as assigned \
            from vps_nodes n where n.desired_state = 'active' and n.weight > 0 \
            and n.observed_state not in ('pending', 'revoked') order by n.id";
        Ok(on!(read self, |ex| sqlx::query_as::<_, CandidateRow>(SQL).fetch_all(ex).await)?)
    }

    /// Returns users after `after` who may connect and have fewer nodes than wanted and than there
    /// are: `available`, or what the pools of their plan have. Nodes that a user leaves do not count, nor those that are
    /// taken out (cordoned, draining, disabled); who has others than those left is returned as well.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn short_of_nodes(
        &self,
        after: UserId,
        available: i64,
        limit: u32,
    ) -> Result<Vec<ShortRow>, StoreError> {
        // Who is kept to pools is short only of nodes of these: nobody is read again and again in vain.
        const SQL: &str = "with off as (select id from vps_nodes where desired_state <> 'active'), \
            pooled as (select pp.plan_id, count(distinct n.id) as available from plan_pools pp \
            left join pool_members m on m.pool_id = pp.pool_id \
            left join vps_nodes n on n.id = m.node_id and n.desired_state = 'active' and n.weight > 0 \
            and n.observed_state not in ('pending', 'revoked') group by pp.plan_id), \
            served as (select u.id, u.home_region_id, u.plan_id, coalesce(p.nodes_per_user, 3) as wanted, \
            pooled.available as in_pools, (select count(*) from node_assignments a \
            where a.user_id = u.id and a.released_at is null and a.reason is null \
            and a.node_id not in (select id from off)) as has, \
            exists (select 1 from node_assignments a where a.user_id = u.id and a.released_at is null \
            and a.reason is not null) as leaves from users u \
            left join plans p on p.id = u.plan_id left join pooled on pooled.plan_id = u.plan_id \
            where u.id > $1 and u.status in ('active', 'on_hold')) \
            select id, home_region_id, plan_id, wanted from served where (leaves and has > 0) or has < wanted and \
            case when in_pools is null then has < $2 else in_pools > (select count(*) from node_assignments a \
            where a.user_id = served.id and a.released_at is null and a.reason is null \
            and a.node_id not in (select id from off) and a.node_id in (select m.node_id \
            from plan_pools pp join pool_members m on m.pool_id = pp.pool_id where pp.plan_id = served.plan_id)) end \
            order by id limit $3";
        Ok(on!(read self, |ex| sqlx::query_as::<_, ShortRow>(SQL)
            .bind(after)
            .bind(available)
            .bind(i64::from(limit))
            .fetch_all(ex)
            .await)?)
    }
}

/// Returns the nodes that serve each of the users, without those that the user leaves and those that are taken out.
///
/// # Errors
///
/// The store fails.
pub async fn nodes_of(
    tx: &mut Tx,
    users: &[UserId],
) -> Result<HashMap<UserId, Vec<NodeId>>, StoreError> {
    const PG: &str = "select user_id, node_id from node_assignments \
                      where user_id = any($1) and released_at is null and reason is null \
                      and node_id not in (select id from vps_nodes where desired_state <> 'active') \
                      order by user_id, node_id";
    const SQLITE: &str = "select user_id, node_id from node_assignments where user_id in \
                          (select value from json_each($1)) and released_at is null and reason is null \
                          and node_id not in (select id from vps_nodes where desired_state <> 'active') \
                          order by user_id, node_id";
    by_user(tx, users, PG, SQLITE).await
}

/// Returns the nodes that each of the users leaves: outside the pools of a plan that is new.
///
/// # Errors
///
/// The store fails.
pub async fn leaving(
    tx: &mut Tx,
    users: &[UserId],
) -> Result<HashMap<UserId, Vec<NodeId>>, StoreError> {
    const PG: &str = "select user_id, node_id from node_assignments where user_id = any($1) \
                      and released_at is null and reason is not null order by user_id, node_id";
    const SQLITE: &str = "select user_id, node_id from node_assignments where user_id in \
                          (select value from json_each($1)) and released_at is null and reason is not null \
                          order by user_id, node_id";
    by_user(tx, users, PG, SQLITE).await
}

/// Returns the nodes that each of the users was taken off by hand and not assigned to since.
///
/// # Errors
///
/// The store fails.
pub async fn taken_off(
    tx: &mut Tx,
    users: &[UserId],
) -> Result<HashMap<UserId, Vec<NodeId>>, StoreError> {
    const PG: &str = "select a.user_id, a.node_id from node_assignments a where a.user_id = any($1) \
                      and a.released_at is not null and a.reason is not null \
                      and not exists (select 1 from node_assignments b where b.user_id = a.user_id \
                      and b.node_id = a.node_id and b.id > a.id)";
    const SQLITE: &str = "select a.user_id, a.node_id from node_assignments a where a.user_id in \
                          (select value from json_each($1)) \
                          and a.released_at is not null and a.reason is not null \
                          and not exists (select 1 from node_assignments b where b.user_id = a.user_id \
                          and b.node_id = a.node_id and b.id > a.id)";
    by_user(tx, users, PG, SQLITE).await
}

/// Asks for pairs of a user among `$1` and a node: in PostgreSQL an array, in SQLite JSON.
async fn by_user(
    tx: &mut Tx,
    users: &[UserId],
    postgres: &'static str,
    sqlite: &'static str,
) -> Result<HashMap<UserId, Vec<NodeId>>, StoreError> {
    let ids = users.iter().map(|user| user.0).collect::<Vec<_>>();
    let rows: Vec<(UserId, NodeId)> = match tx.connection() {
        Connection::Pg(tx) => {
            let query = sqlx::query_as(postgres).bind(ids);
            query.fetch_all(&mut **tx).await?
        }
        Connection::Sqlite(tx) => {
            let query = sqlx::query_as(sqlite).bind(Json(ids));
            query.fetch_all(&mut **tx).await?
        }
    };
    let mut by_user = HashMap::<_, Vec<_>>::new();
    for (user, node) in rows {
        by_user.entry(user).or_default().push(node);
    }
    Ok(by_user)
}

/// Makes a query for users `u` lock what it finds, in PostgreSQL, each as it is by then: both texts, that for PostgreSQL
/// first. On SQLite a transaction that writes is alone anyway.
macro_rules! locking {
    ($sql:literal) => {
        (concat!($sql, " for no key update of u"), $sql)
    };
}

/// Runs a query of [`locking!`] with a moment as `$1`.
async fn due_by(
    tx: &mut Tx,
    (postgres, sqlite): (&'static str, &'static str),
    now: Timestamp,
) -> Result<Vec<UserId>, StoreError> {
    let sql = if tx.is_postgres() { postgres } else { sqlite };
    Ok(on!(tx, |ex| sqlx::query_scalar::<_, UserId>(sql)
        .bind(now)
        .fetch_all(ex)
        .await)?)
}

/// How long before the end of a plan the next one begins: nodes end a user's connections on time by themselves.
const AHEAD: i64 = 60_000;

/// Lets the next plan follow for users whose time is over but for a minute. No time is lost: the next one lasts from the
/// end of the one before. Their quotas are to start anew.
///
/// # Errors
///
/// The store fails.
pub async fn next_plans(tx: &mut Tx, now: Timestamp) -> Result<Vec<UserId>, StoreError> {
    const DUE: (&str, &str) = locking!(
        "select u.id, u.expires_at, n.id, n.duration_days from users u join plans p on p.id = u.plan_id \
         join plans n on n.id = p.next_plan_id where u.status in ('active', 'limited') \
         and u.expires_at <= $1 order by u.id limit 500"
    );
    const SQL: &str = "update users set plan_id = $2, expires_at = $3, rev = rev + 1, updated_at = $4 where id = $1";
    type Due = (UserId, Timestamp, PlanId, Option<i64>);
    let sql = if tx.is_postgres() { DUE.0 } else { DUE.1 };
    let due = on!(tx, |ex| sqlx::query_as::<_, Due>(sql)
        .bind(Timestamp(now.0.saturating_add(AHEAD)))
        .fetch_all(ex)
        .await)?;
    let mut users = Vec::new();
    for (user, end, plan, days) in due {
        // Nobody waits for a master that was away.
        let start = end.max(now);
        let end = days.map(|days| start.plus_days(days));
        on!(tx, |ex| sqlx::query(SQL)
            .bind(user)
            .bind(plan)
            .bind(end)
            .bind(now)
            .execute(ex)
            .await
            .rows())?;
        users.push(user);
    }
    touch(tx, &users, now).await?;
    for user in &users {
        assignments::leave_other_pools(tx, *user).await?;
    }
    Ok(users)
}

/// Lets users expire whose time is over, before a hold began too.
///
/// # Errors
///
/// The store fails.
pub async fn expiry(tx: &mut Tx, now: Timestamp) -> Result<Vec<UserId>, StoreError> {
    const OVER: (&str, &str) = locking!(
        "select u.id from users u where u.status in ('active', 'limited', 'on_hold') and u.expires_at <= $1 \
         order by u.id limit 1000"
    );
    let over = due_by(tx, OVER, now).await?;
    set_status(tx, &over, UserStatus::Expired, TIME_IS_OVER, now).await
}

/// Brings expired users back who were given more time: on hold who never started.
///
/// # Errors
///
/// The store fails.
pub async fn time_again(tx: &mut Tx, now: Timestamp) -> Result<Vec<UserId>, StoreError> {
    const STARTED: (&str, &str) = locking!(
        "select u.id from users u where u.status = 'expired' and (u.expires_at is null or u.expires_at > $1) \
         and (u.hold_duration_ms is null or u.activated_at is not null) order by u.id limit 1000"
    );
    const HELD: (&str, &str) = locking!(
        "select u.id from users u where u.status = 'expired' and (u.expires_at is null or u.expires_at > $1) \
         and u.hold_duration_ms is not null and u.activated_at is null order by u.id limit 1000"
    );
    let started = due_by(tx, STARTED, now).await?;
    if !started.is_empty() {
        return set_status(tx, &started, UserStatus::Active, "", now).await;
    }
    let held = due_by(tx, HELD, now).await?;
    set_status(tx, &held, UserStatus::OnHold, "", now).await
}

/// Limits users whose quota is used up: of all, or of those whose counters grew.
///
/// # Errors
///
/// The store fails.
pub async fn used_up(
    tx: &mut Tx,
    among: Option<&[UserId]>,
    now: Timestamp,
) -> Result<Vec<UserId>, StoreError> {
    const ALL: (&str, &str) = locking!(
        "select u.id from users u join user_counters c on c.user_id = u.id \
         left join plans p on p.id = u.plan_id where u.status = 'active' \
         and c.billed - c.base_billed >= coalesce(u.quota_bytes, p.quota_bytes) order by u.id limit 1000"
    );
    let over = match among {
        None => {
            let sql = if tx.is_postgres() { ALL.0 } else { ALL.1 };
            on!(tx, |ex| sqlx::query_scalar::<_, UserId>(sql)
                .fetch_all(ex)
                .await)?
        }
        Some(users) => {
            let ids = users.iter().map(|user| user.0).collect::<Vec<_>>();
            match tx.connection() {
                Connection::Pg(tx) => {
                    const SQL: &str = "select u.id from users u join user_counters c on c.user_id = u.id \
                        left join plans p on p.id = u.plan_id where u.id = any($1) and u.status = 'active' \
                        and c.billed - c.base_billed >= coalesce(u.quota_bytes, p.quota_bytes) order by u.id \
                        for no key update of u";
                    sqlx::query_scalar(SQL)
                        .bind(ids)
                        .fetch_all(&mut **tx)
                        .await?
                }
                Connection::Sqlite(tx) => {
                    const SQL: &str = "select u.id from users u join user_counters c on c.user_id = u.id \
                        left join plans p on p.id = u.plan_id where u.id in (select value from json_each($1)) \
                        and u.status = 'active' \
                        and c.billed - c.base_billed >= coalesce(u.quota_bytes, p.quota_bytes) order by u.id";
                    sqlx::query_scalar(SQL)
                        .bind(Json(ids))
                        .fetch_all(&mut **tx)
                        .await?
                }
            }
        }
    };
    set_status(tx, &over, UserStatus::Limited, "the quota is used up", now).await
}

/// Brings users back whom the quota limited and who have some again.
///
/// # Errors
///
/// The store fails.
pub async fn quota_again(tx: &mut Tx, now: Timestamp) -> Result<Vec<UserId>, StoreError> {
    const BACK: (&str, &str) = locking!(
        "select u.id from users u join user_counters c on c.user_id = u.id \
         left join plans p on p.id = u.plan_id where u.status = 'limited' \
         and (coalesce(u.quota_bytes, p.quota_bytes) is null \
         or c.billed - c.base_billed < coalesce(u.quota_bytes, p.quota_bytes)) order by u.id limit 1000"
    );
    let sql = if tx.is_postgres() { BACK.0 } else { BACK.1 };
    let back = on!(tx, |ex| sqlx::query_scalar::<_, UserId>(sql)
        .fetch_all(ex)
        .await)?;
    set_status(tx, &back, UserStatus::Active, "", now).await
}

/// Starts the clock of users on hold who have connected, or whose time to do so is over: it runs from when they were
/// seen, whenever a node told of it. An end of their own that is earlier stays.
///
/// # Errors
///
/// The store fails.
pub async fn holds(tx: &mut Tx, now: Timestamp) -> Result<Vec<UserId>, StoreError> {
    const DUE: (&str, &str) = locking!(
        "select u.id, u.created_at, c.online_at, u.hold_duration_ms, u.expires_at from users u \
         join user_counters c on c.user_id = u.id where u.status = 'on_hold' \
         and (c.online_at is not null or u.hold_deadline <= $1) order by u.id limit 1000"
    );
    const SQL: &str = "update users set status = 'active', status_reason = '', activated_at = $2, \
                       period_started_at = $2, expires_at = $3, rev = rev + 1, updated_at = $4 where id = $1";
    type Due = (
        UserId,
        Timestamp,
        Option<Timestamp>,
        Option<i64>,
        Option<Timestamp>,
    );
    let sql = if tx.is_postgres() { DUE.0 } else { DUE.1 };
    let due = on!(tx, |ex| sqlx::query_as::<_, Due>(sql)
        .bind(now)
        .fetch_all(ex)
        .await)?;
    let mut users = Vec::new();
    for (user, made, seen, length, own_end) in due {
        // A node's clock that is behind takes no time away from before there was such a user.
        let start = seen.unwrap_or(now).max(made).min(now);
        let end = length.map(|ms| Timestamp(start.0.saturating_add(ms)));
        on!(tx, |ex| sqlx::query(SQL)
            .bind(user)
            .bind(start)
            .bind(end.into_iter().chain(own_end).min())
            .bind(now)
            .execute(ex)
            .await
            .rows())?;
        users.push(user);
    }
    touch(tx, &users, now).await?;
    tell(tx, &users, "user.activated", now).await?;
    Ok(users)
}

/// Returns users whose quota starts anew: their period began before the present one.
///
/// # Errors
///
/// The store fails.
pub async fn periods(tx: &mut Tx, now: Timestamp) -> Result<Vec<UserId>, StoreError> {
    const DUE: (&str, &str) = locking!(
        "select u.id from users u join plans p on p.id = u.plan_id where p.period = $1 \
         and u.period_started_at < $2 and u.status in ('active', 'limited') order by u.id limit 500"
    );
    let sql = if tx.is_postgres() { DUE.0 } else { DUE.1 };
    for period in QuotaPeriod::ALL {
        let Some(start) = period_start(*period, now) else {
            continue;
        };
        let due = on!(tx, |ex| sqlx::query_scalar::<_, UserId>(sql)
            .bind(*period)
            .bind(start)
            .fetch_all(ex)
            .await)?;
        // Those of other periods come next: users are locked in one order.
        if !due.is_empty() {
            return Ok(due);
        }
    }
    Ok(Vec::new())
}

/// Lets periods begin now that would begin later, and gives nothing for it: a clock that was ahead set them, and there
/// would be no new one until then.
///
/// # Errors
///
/// The store fails.
pub async fn periods_ahead(tx: &mut Tx, now: Timestamp) -> Result<Vec<UserId>, StoreError> {
    const AHEAD: (&str, &str) = locking!(
        "select u.id from users u where u.period_started_at > $1 and u.deleted_at is null order by u.id limit 1000"
    );
    const SQL: &str = "update users set period_started_at = $2 where id = $1";
    let users = due_by(tx, AHEAD, now).await?;
    for user in &users {
        on!(tx, |ex| sqlx::query(SQL)
            .bind(*user)
            .bind(now)
            .execute(ex)
            .await
            .rows())?;
    }
    Ok(users)
}

/// Returns when the period that contains `now` began: a quota counted from before that starts anew.
pub fn period_start(period: QuotaPeriod, now: Timestamp) -> Option<Timestamp> {
    let date = time::OffsetDateTime::from_unix_timestamp(now.0.div_euclid(1000))
        .ok()?
        .date();
    let midnight =
        |date: time::Date| Timestamp(date.midnight().assume_utc().unix_timestamp() * 1000);
    Some(match period {
        QuotaPeriod::None => return None,
        QuotaPeriod::Day => now.day(),
        QuotaPeriod::Week => {
            let back = i64::from(date.weekday().number_days_from_monday());
            Timestamp(now.day().0 - back * Timestamp::DAY)
        }
        QuotaPeriod::Month => midnight(date.replace_day(1).ok()?),
        // From the start of the period before: one that began 30 days ago or earlier is over.
        QuotaPeriod::MonthRolling => {
            Timestamp(now.0.saturating_sub(30 * Timestamp::DAY).saturating_add(1))
        }
        QuotaPeriod::Year => midnight(time::Date::from_ordinal_date(date.year(), 1).ok()?),
    })
}

/// Gives users another status, and tells of it. Returns those whose status was not this one: another master may have been
/// faster.
async fn set_status(
    tx: &mut Tx,
    users: &[UserId],
    status: UserStatus,
    reason: &str,
    now: Timestamp,
) -> Result<Vec<UserId>, StoreError> {
    if users.is_empty() {
        return Ok(Vec::new());
    }
    let ids = users.iter().map(|user| user.0).collect::<Vec<_>>();
    let mut changed: Vec<UserId> = match tx.connection() {
        Connection::Pg(tx) => {
            const SQL: &str = "update users set status = $2, status_reason = $3, rev = rev + 1, updated_at = $4 \
                               where id = any($1) and status <> $2 returning id";
            sqlx::query_scalar(SQL)
                .bind(ids)
                .bind(status)
                .bind(reason)
                .bind(now)
                .fetch_all(&mut **tx)
                .await?
        }
        Connection::Sqlite(tx) => {
            const SQL: &str = "update users set status = $2, status_reason = $3, rev = rev + 1, updated_at = $4 \
                               where id in (select value from json_each($1)) and status <> $2 returning id";
            sqlx::query_scalar(SQL)
                .bind(Json(ids))
                .bind(status)
                .bind(reason)
                .bind(now)
                .fetch_all(&mut **tx)
                .await?
        }
    };
    changed.sort_unstable();
    touch(tx, &changed, now).await?;
    let topic = match status {
        UserStatus::Expired => "user.expired",
        UserStatus::Limited => "user.limited",
        _ => "user.activated",
    };
    tell(tx, &changed, topic, now).await?;
    Ok(changed)
}

/// Tells that the quotas of users started anew: with a new period, or with the next plan. For after the change.
///
/// # Errors
///
/// The store fails.
pub async fn tell_renewed(tx: &mut Tx, users: &[UserId], now: Timestamp) -> Result<(), StoreError> {
    tell(tx, users, "user.renewed", now).await
}

/// Writes an event of each user, with the fields that time changes, as they are now.
async fn tell(
    tx: &mut Tx,
    users: &[UserId],
    topic: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    #[derive(FromRow)]
    struct Told {
        id: UserId,
        uid: Uuid,
        username: String,
        status: UserStatus,
        status_reason: String,
        plan_id: Option<PlanId>,
        admin_id: Option<AdminId>,
        expires_at: Option<Timestamp>,
    }
    if users.is_empty() {
        return Ok(());
    }
    let ids = users.iter().map(|user| user.0).collect::<Vec<_>>();
    let rows: Vec<Told> = match tx.connection() {
        Connection::Pg(tx) => {
            const SQL: &str = "select id, uid, username, status, status_reason, plan_id, admin_id, expires_at \
                               from users where id = any($1) order by id";
            sqlx::query_as(SQL).bind(ids).fetch_all(&mut **tx).await?
        }
        Connection::Sqlite(tx) => {
            const SQL: &str = "select id, uid, username, status, status_reason, plan_id, admin_id, expires_at \
                               from users where id in (select value from json_each($1)) order by id";
            let query = sqlx::query_as(SQL).bind(Json(ids));
            query.fetch_all(&mut **tx).await?
        }
    };
    let news = rows
        .into_iter()
        .map(|row| NewEvent {
            key: row.id.to_string(),
            payload: json!({
                "id": row.id.0, "uid": row.uid, "username": row.username,
                "status": row.status.as_str(), "status_reason": row.status_reason,
                "plan_id": row.plan_id.map(|id| id.0), "admin_id": row.admin_id.map(|id| id.0),
                "expires_at": row.expires_at.map(|at| at.to_string()),
            }),
            admin_id: row.admin_id,
        })
        .collect::<Vec<_>>();
    events::emit_all(tx, topic, &news, now).await
}

async fn touch(tx: &mut Tx, users: &[UserId], now: Timestamp) -> Result<(), StoreError> {
    if users.is_empty() {
        return Ok(());
    }
    tx.call(Topic::Users);
    assignments::touch_users(tx, users, now).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_begin_at_utc_midnights() {
        // 2026-11-26 is a Thursday.
        let now = Timestamp(1_795_691_045_000);
        assert_eq!(now.to_string(), "2026-11-26T11:04:05Z");
        let start = |period| period_start(period, now).unwrap().to_string();
        assert_eq!(start(QuotaPeriod::Day), "2026-11-26T00:00:00Z");
        assert_eq!(start(QuotaPeriod::Week), "2026-11-23T00:00:00Z");
        assert_eq!(start(QuotaPeriod::Month), "2026-11-01T00:00:00Z");
        assert_eq!(start(QuotaPeriod::Year), "2026-01-01T00:00:00Z");
        assert_eq!(period_start(QuotaPeriod::None, now), None);
        let rolling = period_start(QuotaPeriod::MonthRolling, now).unwrap();
        assert!(Timestamp(now.0 - 30 * Timestamp::DAY) < rolling);
        assert!(Timestamp(now.0 - 30 * Timestamp::DAY + 1) >= rolling);
    }
}
