//! Averages of figures, and the end of what is kept long enough.

use sqlx::types::Json;

use super::{Rows as _, Store, StoreError, Tx, nodes, on};
use crate::config::MasterConfig;
use crate::domain::{NodeId, Timestamp};

impl Store {
    /// Returns the desired revisions of the nodes whose Sessions a master holds.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn desired_revs(&self, owner: uuid::Uuid) -> Result<Vec<(NodeId, i64)>, StoreError> {
        const SQL: &str =
            "select id, desired_rev from vps_nodes where owner_master = $1 order by id";
        Ok(on!(read self, |ex| sqlx::query_as::<_, (NodeId, i64)>(SQL)
            .bind(owner)
            .fetch_all(ex)
            .await)?)
    }
}

/// Renews manifests that are half way to their end, so that nodes without changes have a valid one.
///
/// # Errors
///
/// The store fails.
pub async fn renew_manifests(
    tx: &mut Tx,
    older_than: Timestamp,
    now: Timestamp,
) -> Result<usize, StoreError> {
    const SQL: &str = "select id from vps_nodes where desired_at < $1 and observed_state in ('online', 'suspect', 'error') \
                       order by id limit 200";
    let due = on!(tx, |ex| sqlx::query_scalar::<_, NodeId>(SQL)
        .bind(older_than)
        .fetch_all(ex)
        .await)?;
    for node in &due {
        nodes::bump(tx, *node, nodes::Bump::MANIFEST, now).await?;
    }
    Ok(due.len())
}

/// Averages figures of one resolution into the next, for the full buckets from `from` until `to`.
///
/// # Errors
///
/// The store fails.
pub async fn average_metrics(
    tx: &mut Tx,
    source_s: i64,
    target_s: i64,
    from: Timestamp,
    to: Timestamp,
) -> Result<u64, StoreError> {
    const SQL: &str = "insert into node_metrics (node_id, resolution_s, at, cpu_permille, memory_used_bytes, \
        memory_total_bytes, load1, disk_free_bytes, open_files, tx_bytes_per_s, rx_bytes_per_s, connections, \
        users_online, tcp_streams, udp_sessions, auth_accepted, auth_rejected, handshakes_failed, rtt_p50_ms, \
        rtt_p95_ms, loss_permille, spool_bytes, agent_memory_bytes, panics) \
        select node_id, $2, at - at % ($2 * 1000), cast(avg(cpu_permille) as bigint), \
        cast(avg(memory_used_bytes) as bigint), max(memory_total_bytes), avg(load1), min(disk_free_bytes), \
        max(open_files), cast(avg(tx_bytes_per_s) as bigint), cast(avg(rx_bytes_per_s) as bigint), \
        cast(avg(connections) as bigint), cast(avg(users_online) as bigint), cast(avg(tcp_streams) as bigint), \
        cast(avg(udp_sessions) as bigint), max(auth_accepted), max(auth_rejected), max(handshakes_failed), \
        avg(rtt_p50_ms), max(rtt_p95_ms), cast(avg(loss_permille) as bigint), max(spool_bytes), \
        max(agent_memory_bytes), max(panics) from node_metrics \
        where resolution_s = $1 and at >= $3 and at < $4 group by node_id, at - at % ($2 * 1000) \
        on conflict (node_id, resolution_s, at) do nothing";
    Ok(on!(tx, |ex| sqlx::query(SQL)
        .bind(source_s)
        .bind(target_s)
        .bind(from)
        .bind(to)
        .execute(ex)
        .await
        .rows())?)
}

/// By how much the time of retention goes on with each run, at most.
pub const RETENTION_STEP: std::time::Duration = std::time::Duration::from_secs(3_600);

/// Returns the time by which retention goes: `now`, but not more than [`RETENTION_STEP`] after that of the run before.
/// A clock that is ahead for a while must not take accounts of years away; after a long pause it lags, which costs some
/// room.
///
/// # Errors
///
/// The store fails.
pub async fn retention_time(tx: &mut Tx, now: Timestamp) -> Result<Timestamp, StoreError> {
    const READ: &str = "select value from settings where key = 'internal.retention_at'";
    const WRITE: &str = "insert into settings (key, value, rev, updated_at) values ('internal.retention_at', $1, 1, $2) \
                         on conflict (key) do update set value = excluded.value, rev = settings.rev + 1, \
                         updated_at = excluded.updated_at";
    let before: Option<Json<i64>> =
        on!(tx, |ex| sqlx::query_scalar(READ).fetch_optional(ex).await)?;
    let at = before.map_or(now, |Json(before)| {
        now.min(Timestamp(before).plus(RETENTION_STEP))
    });
    on!(tx, |ex| sqlx::query(WRITE)
        .bind(Json(at.0))
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    Ok(at)
}

/// What one run of [`expire`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expired {
    /// Rows deleted.
    pub rows: u64,
    /// Whether there is more.
    pub more: bool,
}

/// Deletes what is kept long enough, at most [`MAX_EXPIRED`] rows of each kind: nobody waits long for
/// the one writer of SQLite.
///
/// # Errors
///
/// The store fails.
pub async fn expire(
    tx: &mut Tx,
    config: &MasterConfig,
    now: Timestamp,
) -> Result<Expired, StoreError> {
    const MONTH: std::time::Duration = std::time::Duration::from_secs(30 * 86_400);
    let statements: [(&'static str, Timestamp); 18] = [
        (
            "delete from node_metrics where (node_id, resolution_s, at) in (select node_id, \
             resolution_s, at from node_metrics where resolution_s = 15 and at < $1 limit $2)",
            now.minus(config.keep_metrics),
        ),
        (
            "delete from node_metrics where (node_id, resolution_s, at) in (select node_id, \
             resolution_s, at from node_metrics where resolution_s = 300 and at < $1 limit $2)",
            now.minus(config.keep_metrics.saturating_mul(15)),
        ),
        (
            "delete from node_metrics where (node_id, resolution_s, at) in (select node_id, \
             resolution_s, at from node_metrics where resolution_s = 3600 and at < $1 limit $2)",
            now.minus(config.keep_metrics.saturating_mul(360)),
        ),
        (
            "delete from traffic_hourly where (bucket, node_id, user_id) in (select bucket, node_id, \
             user_id from traffic_hourly where bucket < $1 limit $2)",
            now.minus(config.keep_hourly),
        ),
        (
            "delete from traffic_daily where (user_id, day) in (select user_id, day \
             from traffic_daily where day < $1 limit $2)",
            now.minus(config.keep_daily),
        ),
        (
            "delete from node_traffic_daily where (node_id, day) in (select node_id, day \
             from node_traffic_daily where day < $1 limit $2)",
            now.minus(config.keep_daily),
        ),
        (
            "delete from node_assignments where id in (select id from node_assignments \
             where released_at < $1 and reason is null limit $2)",
            now.minus(config.keep_released),
        ),
        (
            "delete from traffic_quarantine where id in (select id from traffic_quarantine \
             where at < $1 limit $2)",
            now.minus(MONTH * 3),
        ),
        (
            "delete from quota_leases where id in (select id from quota_leases \
             where closed_at < $1 limit $2)",
            now.minus(MONTH * 3),
        ),
        (
            "delete from subscription_requests where id in (select id from subscription_requests \
             where at < $1 limit $2)",
            now.minus(MONTH),
        ),
        (
            "delete from idempotency_keys where (admin_id, key) in (select admin_id, key \
             from idempotency_keys where expires_at < $1 limit $2)",
            now,
        ),
        // With its refresh tokens; for a while it still shows that one was used twice.
        (
            "delete from admin_sessions where id in (select id from admin_sessions \
             where expires_at < $1 limit $2)",
            now.minus(MONTH),
        ),
        (
            "delete from api_tokens where id in (select id from api_tokens \
             where coalesce(revoked_at, expires_at) < $1 limit $2)",
            now.minus(MONTH * 3),
        ),
        (
            "delete from enrolment_tokens where id in (select id from enrolment_tokens \
             where expires_at < $1 limit $2)",
            now.minus(MONTH * 3),
        ),
        // A node's last certificate stays: it may renew with it however late it comes.
        (
            "delete from node_certificates where fingerprint in (select fingerprint \
             from node_certificates where replaced_at is not null and not_after < $1 limit $2)",
            now.minus(MONTH * 3),
        ),
        (
            "delete from alerts where id in (select id from alerts where closed_at < $1 limit $2)",
            now.minus(config.keep_events),
        ),
        // Deliveries before events: they name them.
        (
            "delete from webhook_deliveries where id in (select id from webhook_deliveries \
             where status <> 'pending' and created_at < $1 limit $2)",
            now.minus(config.keep_events),
        ),
        // The newest stays: who begins to listen begins behind it.
        (
            "delete from events where id in (select id from events where seq is not null and at < $1 \
             and seq < (select max(seq) from events) limit $2)",
            now.minus(config.keep_events),
        ),
    ];
    let limit = i64::try_from(MAX_EXPIRED).unwrap_or(i64::MAX);
    let mut expired = Expired {
        rows: 0,
        more: false,
    };
    for (sql, before) in statements {
        let rows = on!(tx, |ex| sqlx::query(sql)
            .bind(before)
            .bind(limit)
            .execute(ex)
            .await
            .rows())?;
        expired.rows += rows;
        expired.more |= rows >= MAX_EXPIRED;
    }
    Ok(expired)
}

/// Rows of one kind that are deleted in one transaction.
pub const MAX_EXPIRED: u64 = 5_000;
