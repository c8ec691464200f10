//! Slices of quotas and device slots that nodes hold, so that limits hold without the master.
//!
//! grantable = quota - used - Σ (granted - consumed) of open leases; a slice is
//! min(grantable, max(1 MiB, grantable / 2k)) for the k nodes that serve the user. What an
//! unreachable node was granted stays debited until its spool arrives or an operator forfeits it.

use std::collections::HashMap;

use sqlx::FromRow;
use sqlx::types::Json;

use super::{Connection, Db, Rows as _, Store, StoreError, Tx, on};
use crate::domain::{LeaseId, NodeId, Timestamp, UserId, UserStatus};

/// An open or closed slice.
#[derive(Debug, Clone, FromRow)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct LeaseRow {
    pub id: LeaseId,
    pub user_id: UserId,
    pub node_id: NodeId,
    pub granted: i64,
    pub consumed: i64,
    pub billing_multiplier: i64,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub closed_at: Option<Timestamp>,
}

/// What a node says of a user's slice.
#[derive(Debug, Clone, Copy)]
pub struct Want {
    /// Whose.
    pub user: UserId,
    /// The lease in hand.
    pub lease: Option<LeaseId>,
    /// What is left of it.
    pub remaining: i64,
    /// The user left; the rest goes back.
    pub release: bool,
    /// With `release`: billed bytes that were used of the lease in all, reported or not. Without it, `remaining` is
    /// taken off, which must not be said twice.
    pub used: Option<i64>,
}

/// The answer to a [`Want`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// A new slice.
    Slice {
        /// Its number.
        lease: LeaseId,
        /// Billed bytes.
        granted: i64,
        /// Until when it may be used.
        expires_at: Timestamp,
        /// Billed bytes per raw byte in it, in parts per billion.
        multiplier: i64,
    },
    /// What the node has is enough.
    Enough,
    /// Nothing is left of the quota.
    Exhausted,
    /// The user has no quota, or not on this node.
    None,
}

#[derive(FromRow)]
struct QuotaRow {
    status: UserStatus,
    quota: Option<i64>,
    max_devices: Option<i64>,
    used: i64,
    debited: i64,
    nodes: i64,
    assigned: i64,
}

impl Store {
    /// Returns the open leases, of a user or all, the oldest first.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn open_leases(
        &self,
        user: Option<UserId>,
        limit: u32,
    ) -> Result<Vec<LeaseRow>, StoreError> {
        const SQL: &str = "select id, user_id, node_id, granted, consumed, billing_multiplier, created_at, expires_at, \
                           closed_at from quota_leases where closed_at is null and ($1 = 0 or user_id = $1) \
                           order by id limit $2";
        Ok(on!(read self, |ex| sqlx::query_as::<_, LeaseRow>(SQL)
            .bind(user.unwrap_or(UserId(0)))
            .bind(i64::from(limit))
            .fetch_all(ex)
            .await)?)
    }
}

/// Answers what a node wants of a user's quota.
///
/// # Errors
///
/// The store fails.
pub async fn grant(
    tx: &mut Tx,
    node: NodeId,
    multiplier: i64,
    want: Want,
    now: Timestamp,
) -> Result<Grant, StoreError> {
    lock_user(tx, want.user).await?;
    if want.release {
        if let Some(lease) = want.lease {
            give_back(tx, node, want, lease, now).await?;
        }
        return Ok(Grant::None);
    }
    let Some(row) = quota(tx, node, want.user).await? else {
        return Ok(Grant::None);
    };
    let Some(quota) = row.quota.filter(|_| row.assigned > 0) else {
        return Ok(Grant::None);
    };
    if !row.status.may_connect() {
        return Ok(Grant::Exhausted);
    }
    if let Some(unknown) = granted_unheard(tx, node, want, now).await? {
        return Ok(unknown);
    }
    if let Some(longer) = prolonged(tx, node, want, now).await? {
        return Ok(longer);
    }
    let grantable = quota - row.used - row.debited;
    // Less than a byte that can be moved is nothing.
    if i128::from(grantable) * 1_000_000_000 < i128::from(multiplier.max(1)) || grantable <= 0 {
        return Ok(Grant::Exhausted);
    }
    let granted = slice(grantable, row.nodes);
    if want.lease.is_some() && want.remaining > granted / 2 {
        return Ok(Grant::Enough);
    }
    let expires_at = Timestamp(now.0.saturating_add(VALIDITY_MS));
    const SQL: &str = "insert into quota_leases (user_id, node_id, granted, billing_multiplier, created_at, expires_at) \
                       values ($1, $2, $3, $4, $5, $6) returning id";
    let lease = on!(tx, |ex| sqlx::query_scalar::<_, LeaseId>(SQL)
        .bind(want.user)
        .bind(node)
        .bind(granted)
        .bind(multiplier)
        .bind(now)
        .bind(expires_at)
        .fetch_one(ex)
        .await)?;
    Ok(Grant::Slice {
        lease,
        granted,
        expires_at,
        multiplier,
    })
}

/// Returns the slice that a node was granted and never heard of: the answer was lost. Numbers grow,
/// so it comes after the one in hand. Granting another would leave this one owed until it expires.
/// Those of before a restore the node has ended, and asks before it is noted that they are closed.
async fn granted_unheard(
    tx: &mut Tx,
    node: NodeId,
    want: Want,
    now: Timestamp,
) -> Result<Option<Grant>, StoreError> {
    const SQL: &str = "select id, granted, expires_at, billing_multiplier from quota_leases \
                       where user_id = $1 and node_id = $2 and id > $3 and consumed = 0 and closed_at is null \
                       and expires_at > $4 order by id limit 1";
    const EPOCH: &str = "select epoch from cluster where id = 1";
    let epoch = on!(tx, |ex| sqlx::query_scalar::<_, i64>(EPOCH)
        .fetch_optional(ex)
        .await)?;
    let before = LeaseId(first_of_epoch(epoch.unwrap_or(1)));
    let found = on!(tx, |ex| {
        sqlx::query_as::<_, (LeaseId, i64, Timestamp, i64)>(SQL)
            .bind(want.user)
            .bind(node)
            .bind(want.lease.unwrap_or(LeaseId(0)).max(before))
            .bind(now)
            .fetch_optional(ex)
            .await
    })?;
    Ok(
        found.map(|(lease, granted, expires_at, multiplier)| Grant::Slice {
            lease,
            granted,
            expires_at,
            multiplier,
        }),
    )
}

/// Lets a node go on with the slice in hand, of which something is left, when its time is over or nearly so. It is owed
/// either way; another one instead would leave this one owed for good.
async fn prolonged(
    tx: &mut Tx,
    node: NodeId,
    want: Want,
    now: Timestamp,
) -> Result<Option<Grant>, StoreError> {
    let Some(lease) = want.lease.filter(|_| want.remaining > 0) else {
        return Ok(None);
    };
    const SQL: &str = "update quota_leases set expires_at = $5 where id = $1 and user_id = $2 and node_id = $3 \
                       and closed_at is null and granted > consumed and expires_at < $4 \
                       returning granted, expires_at, billing_multiplier";
    let found = on!(tx, |ex| {
        sqlx::query_as::<_, (i64, Timestamp, i64)>(SQL)
            .bind(lease)
            .bind(want.user)
            .bind(node)
            .bind(Timestamp(now.0.saturating_add(PROLONGED_MS)))
            .bind(Timestamp(now.0.saturating_add(VALIDITY_MS)))
            .fetch_optional(ex)
            .await
    })?;
    Ok(found.map(|(granted, expires_at, multiplier)| Grant::Slice {
        lease,
        granted,
        expires_at,
        multiplier,
    }))
}

/// Gives a node slots for a user's devices; returns how many it holds from then on, and until when.
/// `None`: the user has no limit, or is not on this node. What nodes hold that the user was taken off does not count: they
/// cut the user as soon as they hear of it, and one that is lost would keep the slots from the others.
///
/// # Errors
///
/// The store fails.
pub async fn grant_devices(
    tx: &mut Tx,
    node: NodeId,
    user: UserId,
    in_use: i64,
    wanted: i64,
    now: Timestamp,
) -> Result<Option<(i64, Timestamp)>, StoreError> {
    lock_user(tx, user).await?;
    let Some(row) = quota(tx, node, user).await? else {
        return Ok(None);
    };
    if row.assigned == 0 {
        // The node has heard that the user is gone. Dropped here and not with the assignment: requests lock these rows user
        // by user, and who releases many users holds other locks.
        const DROP: &str = "delete from device_leases where user_id = $1 and node_id = $2";
        on!(tx, |ex| sqlx::query(DROP)
            .bind(user)
            .bind(node)
            .execute(ex)
            .await
            .rows())?;
        return Ok(None);
    }
    let Some(most) = row.max_devices else {
        return Ok(None);
    };
    const OTHERS: &str = "select cast(coalesce(sum(l.slots), 0) as bigint) from device_leases l \
                          where l.user_id = $1 and l.node_id <> $2 and l.expires_at > $3 and exists \
                          (select 1 from node_assignments a where a.user_id = l.user_id and a.node_id = l.node_id \
                          and a.released_at is null)";
    let others = on!(tx, |ex| sqlx::query_scalar::<_, i64>(OTHERS)
        .bind(user)
        .bind(node)
        .bind(now)
        .fetch_one(ex)
        .await)?;
    let wanted = if row.status.may_connect() { wanted } else { 0 };
    let slots = wanted.clamp(0, (most - others).max(0));
    let expires_at = Timestamp(now.0.saturating_add(DEVICE_VALIDITY_MS));
    const SQL: &str = "insert into device_leases (user_id, node_id, slots, in_use, expires_at, updated_at) \
                       values ($1, $2, $3, $4, $5, $6) on conflict (user_id, node_id) do update \
                       set slots = excluded.slots, in_use = excluded.in_use, expires_at = excluded.expires_at, \
                       updated_at = excluded.updated_at";
    on!(tx, |ex| sqlx::query(SQL)
        .bind(user)
        .bind(node)
        .bind(slots)
        .bind(in_use.clamp(0, i64::from(u32::MAX)))
        .bind(expires_at)
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    Ok(Some((slots, expires_at)))
}

/// Writes off what a node still owes for a user: after that its late traffic is counted, and may
/// exceed the quota. Its slots for devices are free. Returns how many slices there were.
///
/// # Errors
///
/// The store fails.
pub async fn forfeit(
    tx: &mut Tx,
    node: NodeId,
    user: Option<UserId>,
    now: Timestamp,
) -> Result<u64, StoreError> {
    const SQL: &str = "update quota_leases set closed_at = $3, close_reason = 'forfeited' \
                       where node_id = $1 and ($2 = 0 or user_id = $2) and closed_at is null";
    let slices = on!(tx, |ex| sqlx::query(SQL)
        .bind(node)
        .bind(user.unwrap_or(UserId(0)))
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    const SLOTS: &str = "delete from device_leases where node_id = $1 and ($2 = 0 or user_id = $2)";
    on!(tx, |ex| sqlx::query(SLOTS)
        .bind(node)
        .bind(user.unwrap_or(UserId(0)))
        .execute(ex)
        .await
        .rows())?;
    Ok(slices)
}

/// Returns the number after which the leases of an epoch begin. Those from before a restore are at most that; how many
/// there were after the backup, nobody knows: fewer than a million for each second. Below 2^53 for two centuries.
pub fn first_of_epoch(epoch: i64) -> i64 {
    match epoch {
        ..=1 => 0,
        // Versions before counted epochs.
        2..COUNTED_EPOCHS => epoch << 32,
        _ => epoch.saturating_mul(1 << 20),
    }
}

/// Numbers further leases from after `last` on.
///
/// # Errors
///
/// The store fails.
pub(super) async fn number_from(tx: &mut Tx, last: i64) -> Result<(), StoreError> {
    match tx.connection() {
        Connection::Pg(tx) => {
            const SQL: &str = "select setval(pg_get_serial_sequence('quota_leases', 'id'), \
                               greatest($1, (select coalesce(max(id), 1) from quota_leases)))";
            sqlx::query(SQL).bind(last).execute(&mut **tx).await?;
        }
        Connection::Sqlite(tx) => {
            const MAKE: &str = "insert into sqlite_sequence (name, seq) select 'quota_leases', 0 \
                                where not exists (select 1 from sqlite_sequence where name = 'quota_leases')";
            const SET: &str =
                "update sqlite_sequence set seq = max(seq, $1) where name = 'quota_leases'";
            sqlx::query(MAKE).execute(&mut **tx).await?;
            sqlx::query(SET).bind(last).execute(&mut **tx).await?;
        }
    }
    Ok(())
}

/// Closes what a node was lent before a restore: it has entered `epoch`, and has ended all of that.
///
/// # Errors
///
/// The store fails.
pub async fn close_before_epoch(
    store: &Store,
    node: NodeId,
    epoch: i64,
    now: Timestamp,
) -> Result<u64, StoreError> {
    const SQL: &str = "update quota_leases set closed_at = $3, close_reason = 'recalled' \
                       where node_id = $1 and id <= $2 and closed_at is null";
    Ok(on!(write store, |ex| sqlx::query(SQL)
        .bind(node)
        .bind(first_of_epoch(epoch))
        .bind(now)
        .execute(ex)
        .await
        .rows())?)
}

/// Returns the open leases of users on a node.
///
/// # Errors
///
/// The store fails.
pub async fn open_of(
    store: &Store,
    node: NodeId,
    users: &[UserId],
) -> Result<Vec<LeaseId>, StoreError> {
    let ids = users.iter().map(|user| user.0).collect::<Vec<_>>();
    Ok(match store.db() {
        Db::Pg(pool) => {
            const SQL: &str = "select id from quota_leases where node_id = $1 and user_id = any($2) \
                               and closed_at is null order by id limit 10000";
            sqlx::query_scalar(SQL)
                .bind(node)
                .bind(ids)
                .fetch_all(pool)
                .await?
        }
        Db::Sqlite { read, .. } => {
            const SQL: &str = "select id from quota_leases where node_id = $1 and user_id in \
                               (select value from json_each($2)) and closed_at is null order by id limit 10000";
            sqlx::query_scalar(SQL)
                .bind(node)
                .bind(Json(ids))
                .fetch_all(read)
                .await?
        }
    })
}

/// Returns the open leases on a node of users whom it does not serve: what it has of them it has ended, and what it never
/// heard of it would owe for good.
///
/// # Errors
///
/// The store fails.
pub async fn open_of_gone(store: &Store, node: NodeId) -> Result<Vec<LeaseId>, StoreError> {
    const SQL: &str = "select l.id from quota_leases l join users u on u.id = l.user_id where l.node_id = $1 \
                       and l.closed_at is null and (u.deleted_at is not null \
                       or u.status not in ('active', 'on_hold') or not exists \
                       (select 1 from node_assignments a where a.user_id = l.user_id and a.node_id = l.node_id \
                       and a.released_at is null)) order by l.id limit 10000";
    Ok(on!(read store, |ex| sqlx::query_scalar::<_, LeaseId>(SQL)
        .bind(node)
        .fetch_all(ex)
        .await)?)
}

/// Returns whose a node's leases are.
///
/// # Errors
///
/// The store fails.
pub async fn users_of(
    tx: &mut Tx,
    node: NodeId,
    leases: &[LeaseId],
) -> Result<HashMap<LeaseId, UserId>, StoreError> {
    let ids = leases.iter().map(|lease| lease.0).collect::<Vec<_>>();
    let found: Vec<(LeaseId, UserId)> = match tx.connection() {
        Connection::Pg(tx) => {
            const SQL: &str =
                "select id, user_id from quota_leases where node_id = $1 and id = any($2)";
            let query = sqlx::query_as(SQL).bind(node).bind(ids);
            query.fetch_all(&mut **tx).await?
        }
        Connection::Sqlite(tx) => {
            const SQL: &str = "select id, user_id from quota_leases where node_id = $1 \
                               and id in (select value from json_each($2))";
            let query = sqlx::query_as(SQL).bind(node).bind(Json(ids));
            query.fetch_all(&mut **tx).await?
        }
    };
    Ok(found.into_iter().collect())
}

/// Shrinks a lease by what is left of it. What the node used and has not reported yet stays
/// debited; nothing more can be given back than is open.
async fn give_back(
    tx: &mut Tx,
    node: NodeId,
    want: Want,
    lease: LeaseId,
    now: Timestamp,
) -> Result<(), StoreError> {
    const BY_REST: &str = "update quota_leases set granted = case when granted - $4 > consumed then granted - $4 \
                           else consumed end where id = $1 and user_id = $2 and node_id = $3 and closed_at is null \
                           and granted > consumed";
    const TO_USED: &str = "update quota_leases set granted = case when $4 > consumed then $4 else consumed end \
                           where id = $1 and user_id = $2 and node_id = $3 and closed_at is null and granted > $4";
    let (sql, bytes) = match want.used {
        Some(used) => (TO_USED, used.max(0)),
        None => (BY_REST, want.remaining.max(0)),
    };
    on!(tx, |ex| sqlx::query(sql)
        .bind(lease)
        .bind(want.user)
        .bind(node)
        .bind(bytes)
        .execute(ex)
        .await
        .rows())?;
    const CLOSE: &str = "update quota_leases set closed_at = $2, close_reason = 'released' \
                         where id = $1 and closed_at is null and granted <= consumed";
    on!(tx, |ex| sqlx::query(CLOSE)
        .bind(lease)
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    Ok(())
}

async fn quota(tx: &mut Tx, node: NodeId, user: UserId) -> Result<Option<QuotaRow>, StoreError> {
    const SQL: &str = "select u.status, coalesce(u.quota_bytes, p.quota_bytes) as quota, \
        coalesce(u.max_devices, p.max_devices) as max_devices, \
        coalesce(c.billed - c.base_billed, 0) as used, \
        (select cast(coalesce(sum(case when l.granted > l.consumed then l.granted - l.consumed else 0 end), 0) as bigint) \
         from quota_leases l where l.user_id = u.id and l.closed_at is null) as debited, \
        (select count(*) from node_assignments a where a.user_id = u.id and a.released_at is null) as nodes, \
        (select count(*) from node_assignments a where a.user_id = u.id and a.node_id = $2 and a.released_at is null) \
         as assigned \
        from users u left join plans p on p.id = u.plan_id left join user_counters c on c.user_id = u.id \
        where u.id = $1 and u.deleted_at is null";
    Ok(on!(tx, |ex| sqlx::query_as::<_, QuotaRow>(SQL)
        .bind(user)
        .bind(node)
        .fetch_optional(ex)
        .await)?)
}

/// Lets one transaction at a time decide over a user's leases.
async fn lock_user(tx: &mut Tx, user: UserId) -> Result<(), StoreError> {
    if tx.is_postgres() {
        const LOCK: &str = "select pg_advisory_xact_lock($1, $2)";
        // Two 32-bit keys: the second is the user's number, folded; a collision waits, nothing more.
        let folded = i32::try_from(user.0.rem_euclid(i64::from(i32::MAX))).unwrap_or(0);
        on!(tx, |ex| sqlx::query(LOCK)
            .bind(LOCK_SPACE)
            .bind(folded)
            .execute(ex)
            .await
            .rows())?;
    }
    Ok(())
}

/// Returns the size of a slice.
fn slice(grantable: i64, nodes: i64) -> i64 {
    grantable.min((grantable / (2 * nodes.max(1))).max(MIN_SLICE))
}

/// As long as a manifest is valid. Nodes ask for more time a day before.
const VALIDITY_MS: i64 = 7 * Timestamp::DAY;
/// A slice with less time than this is prolonged when its node asks. Nodes ask a day before its end.
const PROLONGED_MS: i64 = 2 * Timestamp::DAY;
/// Epochs from here on are times, in seconds since 1970.
const COUNTED_EPOCHS: i64 = 1 << 16;
/// Nodes renew while devices are connected.
const DEVICE_VALIDITY_MS: i64 = 15 * 60_000;
const MIN_SLICE: i64 = 1 << 20;
const LOCK_SPACE: i32 = 0x6879_3201;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_shrink_with_what_is_left_and_never_exceed_it() {
        assert_eq!(slice(100 << 30, 5), 10 << 30);
        assert_eq!(slice(3 << 20, 5), 1 << 20);
        assert_eq!(slice(5, 5), 5);
        assert_eq!(slice(8 << 20, 0), 4 << 20);
    }
}
