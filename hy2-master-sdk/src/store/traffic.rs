//! Accounting, exactly once: a batch moves the cursor of its spool and adds its bytes in one
//! transaction, or does neither.

use std::collections::{BTreeMap, HashMap, HashSet};

use sqlx::FromRow;
use sqlx::types::Json;
use uuid::Uuid;

use super::{Connection, Rows as _, Store, StoreError, Tx, on};
use crate::domain::{LeaseId, NodeId, Timestamp, UserId};

/// What passed for some users of a node between two cuts.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Who reports.
    pub node: NodeId,
    /// Which spool.
    pub spool: Uuid,
    /// Its first and last number: more than one batch when they were merged before being sent.
    pub first_seq: i64,
    /// See `first_seq`.
    pub last_seq: i64,
    /// When the cut was, by the master's reckoning.
    pub at: Timestamp,
    /// Of what came out of no lease, in parts per billion.
    pub multiplier: i64,
    /// The rows, in any order.
    pub rows: Vec<BatchRow>,
}

/// One user's bytes in a [`Batch`].
#[derive(Debug, Clone)]
pub struct BatchRow {
    /// As reported; need not exist.
    pub user: i64,
    /// Client to target.
    pub tx: i64,
    /// Target to client.
    pub rx: i64,
    /// When the user was last seen.
    pub seen: Timestamp,
    /// What was taken from which lease, in billed bytes.
    pub leases: Vec<(LeaseId, i64)>,
}

/// What became of a [`Batch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ingested {
    /// The cursor, after commit.
    pub durable_seq: i64,
    /// Whether the batch was added; false for a duplicate and for one with a gap before it.
    pub added: bool,
    /// Rows that were set aside.
    pub quarantined: u32,
    /// Whose counters grew.
    pub users: Vec<UserId>,
}

/// A spool's cursor.
#[derive(Debug, Clone, FromRow)]
pub struct CursorRow {
    /// Which spool.
    pub spool_id: Uuid,
    /// The last batch that was added.
    pub last_seq: i64,
    /// When it was.
    pub updated_at: Timestamp,
}

/// Sums of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromRow)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct NodeCountersRow {
    pub tx: i64,
    pub rx: i64,
    pub quarantined_tx: i64,
    pub quarantined_rx: i64,
}

/// Bytes of one bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromRow)]
pub struct BucketRow {
    /// Its start.
    pub bucket: Timestamp,
    /// Client to target.
    pub tx: i64,
    /// Target to client.
    pub rx: i64,
}

impl Store {
    /// Returns the cursors of a node's spools.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn cursors(&self, node: NodeId) -> Result<Vec<CursorRow>, StoreError> {
        const SQL: &str = "select spool_id, last_seq, updated_at from traffic_cursors where node_id = $1 \
             order by spool_id";
        Ok(on!(read self, |ex| sqlx::query_as::<_, CursorRow>(SQL).bind(node).fetch_all(ex).await)?)
    }

    /// Returns the sums of a node.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`].
    pub async fn node_counters(&self, node: NodeId) -> Result<NodeCountersRow, StoreError> {
        const SQL: &str =
            "select tx, rx, quarantined_tx, quarantined_rx from node_counters where node_id = $1";
        on!(read self, |ex| sqlx::query_as::<_, NodeCountersRow>(SQL).bind(node).fetch_optional(ex).await)?
            .ok_or(StoreError::NotFound("node"))
    }

    /// Returns a user's bytes by hour, from `from` until before `to`, at most 10,000 buckets.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn user_hourly(
        &self,
        user: UserId,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<BucketRow>, StoreError> {
        const SQL: &str = "select bucket, cast(sum(tx) as bigint) as tx, cast(sum(rx) as bigint) as rx \
                           from traffic_hourly where user_id = $1 and bucket >= $2 and bucket < $3 \
                           group by bucket order by bucket limit 10000";
        Ok(on!(read self, |ex| sqlx::query_as::<_, BucketRow>(SQL)
            .bind(user)
            .bind(from)
            .bind(to)
            .fetch_all(ex)
            .await)?)
    }

    /// Returns a user's bytes by day, from `from` until before `to`, at most 10,000 buckets.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn user_daily(
        &self,
        user: UserId,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<BucketRow>, StoreError> {
        const SQL: &str = "select day as bucket, tx, rx from traffic_daily where user_id = $1 and day >= $2 \
                           and day < $3 order by day limit 10000";
        Ok(on!(read self, |ex| sqlx::query_as::<_, BucketRow>(SQL)
            .bind(user)
            .bind(from)
            .bind(to)
            .fetch_all(ex)
            .await)?)
    }

    /// Returns a node's bytes by day, from `from` until before `to`, at most 10,000 buckets.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn node_daily(
        &self,
        node: NodeId,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<BucketRow>, StoreError> {
        const SQL: &str = "select day as bucket, tx, rx from node_traffic_daily where node_id = $1 and day >= $2 \
                           and day < $3 order by day limit 10000";
        Ok(on!(read self, |ex| sqlx::query_as::<_, BucketRow>(SQL)
            .bind(node)
            .bind(from)
            .bind(to)
            .fetch_all(ex)
            .await)?)
    }

    /// Adds a batch exactly once. After an error, sending it again is right: either it was added, and
    /// then it is a duplicate, or it was not.
    ///
    /// # Errors
    ///
    /// The store fails.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, it has happened or not, as after an error.
    pub async fn ingest(&self, batch: &Batch, now: Timestamp) -> Result<Ingested, StoreError> {
        let mut tx = self.begin().await?;
        let done = ingest(&mut tx, batch, now).await?;
        if done.added {
            tx.commit().await?;
        } else {
            tx.rollback().await?;
        }
        Ok(done)
    }
}

/// As [`Store::ingest`], in a transaction that the caller commits before it acknowledges.
///
/// # Errors
///
/// The store fails.
pub async fn ingest(tx: &mut Tx, batch: &Batch, now: Timestamp) -> Result<Ingested, StoreError> {
    if !move_cursor(tx, batch, now).await? {
        const SQL: &str =
            "select last_seq from traffic_cursors where node_id = $1 and spool_id = $2";
        let last = on!(tx, |ex| sqlx::query_scalar::<_, i64>(SQL)
            .bind(batch.node)
            .bind(batch.spool)
            .fetch_optional(ex)
            .await)?;
        return Ok(Ingested {
            durable_seq: last.unwrap_or(0),
            added: false,
            quarantined: 0,
            users: Vec::new(),
        });
    }
    let mut rows = merge(&batch.rows);
    let mut aside = Vec::new();
    let known = assigned(tx, batch.node, rows.keys().copied()).await?;
    let mut believable = believable(tx, batch.node, now).await?;
    rows.retain(|user, row| {
        let sum = row.tx.checked_add(row.rx).filter(|sum| *sum <= MAX_ROW);
        let valid = row.tx >= 0 && row.rx >= 0 && sum.is_some_and(|sum| sum <= believable);
        if valid {
            believable -= sum.unwrap_or(0);
        }
        let keep = valid && known.contains(user);
        if !keep {
            aside.push((row.clone(), if valid { "foreign_user" } else { "invalid" }));
        }
        keep
    });
    let users = rows.keys().copied().map(UserId).collect::<Vec<_>>();
    let bills = bills(tx, batch, &rows).await?;
    add(tx, batch, &rows, &bills, now).await?;
    if !aside.is_empty() {
        quarantine(tx, batch, &aside, now).await?;
    }
    for row in rows.values() {
        consume(tx, batch, row, bill(&bills, row), now).await?;
    }
    Ok(Ingested {
        durable_seq: batch.last_seq,
        added: true,
        quarantined: u32::try_from(aside.len()).unwrap_or(u32::MAX),
        users,
    })
}

/// Moves a spool's cursor over batches that this store cannot have seen: after a restore from
/// backup. The gap is kept.
///
/// # Errors
///
/// The store fails.
pub async fn skip_gap(
    tx: &mut Tx,
    node: NodeId,
    spool: Uuid,
    first_seq: i64,
    last_seq: i64,
    now: Timestamp,
) -> Result<(), StoreError> {
    const CURSOR: &str = "insert into traffic_cursors (node_id, spool_id, last_seq, updated_at) values ($1, $2, $3, $4) \
                          on conflict (node_id, spool_id) do update set last_seq = excluded.last_seq, \
                          updated_at = excluded.updated_at where traffic_cursors.last_seq < excluded.last_seq";
    on!(tx, |ex| sqlx::query(CURSOR)
        .bind(node)
        .bind(spool)
        .bind(last_seq)
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    const GAP: &str = "insert into traffic_gaps (node_id, spool_id, first_seq, last_seq, at) values ($1, $2, $3, $4, $5)";
    on!(tx, |ex| sqlx::query(GAP)
        .bind(node)
        .bind(spool)
        .bind(first_seq)
        .bind(last_seq)
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    Ok(())
}

/// Returns what a node's billing multiplier was at a moment, in parts per billion.
///
/// # Errors
///
/// [`StoreError::NotFound`].
pub async fn multiplier_at(tx: &mut Tx, node: NodeId, at: Timestamp) -> Result<i64, StoreError> {
    const SQL: &str = "select coalesce((select multiplier from node_multipliers where node_id = $1 and since <= $2 \
                       order by since desc limit 1), billing_multiplier) from vps_nodes where id = $1";
    on!(tx, |ex| sqlx::query_scalar::<_, i64>(SQL)
        .bind(node)
        .bind(at)
        .fetch_optional(ex)
        .await)?
    .ok_or(StoreError::NotFound("node"))
}

/// Returns a node's billing multiplier, in parts per billion.
///
/// # Errors
///
/// [`StoreError::NotFound`].
pub async fn multiplier(tx: &mut Tx, node: NodeId) -> Result<i64, StoreError> {
    const SQL: &str = "select billing_multiplier from vps_nodes where id = $1";
    on!(tx, |ex| sqlx::query_scalar::<_, i64>(SQL)
        .bind(node)
        .fetch_optional(ex)
        .await)?
    .ok_or(StoreError::NotFound("node"))
}

/// Returns whether a spool's cursor did not move since a moment, or is not there.
///
/// # Errors
///
/// The store fails.
pub async fn cursor_is_older(
    tx: &mut Tx,
    node: NodeId,
    spool: Uuid,
    than: Timestamp,
) -> Result<bool, StoreError> {
    const SQL: &str = "select updated_at from traffic_cursors where node_id = $1 and spool_id = $2";
    let moved = on!(tx, |ex| sqlx::query_scalar::<_, Timestamp>(SQL)
        .bind(node)
        .bind(spool)
        .fetch_optional(ex)
        .await)?;
    Ok(moved.is_none_or(|moved| moved < than))
}

/// Returns how many bytes more a node can have moved since it is there. Beyond that it is not told the truth, and sums that
/// everybody needs would run over: of users whom it shares with other nodes, and of all nodes.
async fn believable(tx: &mut Tx, node: NodeId, now: Timestamp) -> Result<i64, StoreError> {
    const SQL: &str = "select n.created_at, coalesce(c.tx, 0), coalesce(c.rx, 0), coalesce(c.quarantined_tx, 0), \
                       coalesce(c.quarantined_rx, 0) from vps_nodes n left join node_counters c on c.node_id = n.id \
                       where n.id = $1";
    let (since, counted): (Timestamp, [i64; 4]) = on!(tx, |ex| sqlx::query_as::<
        _,
        (Timestamp, i64, i64, i64, i64),
    >(SQL)
    .bind(node)
    .fetch_optional(ex)
    .await)?
    .map(|(since, tx, rx, more_tx, more_rx)| (since, [tx, rx, more_tx, more_rx]))
    .ok_or(StoreError::NotFound("node"))?;
    // A master's clock that was set back makes nobody a liar who has moved little.
    let seconds = now.0.saturating_sub(since.0).max(0) / 1000;
    let most = i128::from(BELIEVED_AT_ONCE) + i128::from(seconds) * i128::from(BELIEVED_PER_SECOND);
    let left = most - counted.into_iter().map(i128::from).sum::<i128>();
    Ok(i64::try_from(left.max(0)).unwrap_or(i64::MAX))
}

/// Moves the cursor from before the batch to its end; false when it is elsewhere. A spool begins
/// at 1.
async fn move_cursor(tx: &mut Tx, batch: &Batch, now: Timestamp) -> Result<bool, StoreError> {
    const SQL: &str = "insert into traffic_cursors (node_id, spool_id, last_seq, updated_at) \
                       select $1, $2, $4, $5 where $3 = 1 or exists \
                       (select 1 from traffic_cursors where node_id = $1 and spool_id = $2) \
                       on conflict (node_id, spool_id) do update set last_seq = excluded.last_seq, \
                       updated_at = excluded.updated_at where traffic_cursors.last_seq = $3 - 1 returning last_seq";
    Ok(on!(tx, |ex| sqlx::query_scalar::<_, i64>(SQL)
        .bind(batch.node)
        .bind(batch.spool)
        .bind(batch.first_seq)
        .bind(batch.last_seq)
        .bind(now)
        .fetch_optional(ex)
        .await)?
    .is_some())
}

/// One row per user.
fn merge(rows: &[BatchRow]) -> BTreeMap<i64, BatchRow> {
    let mut merged = BTreeMap::<i64, BatchRow>::new();
    for row in rows {
        merged
            .entry(row.user)
            .and_modify(|sum| {
                // What does not fit is out of range, and is set aside as such.
                sum.tx = sum.tx.saturating_add(row.tx);
                sum.rx = sum.rx.saturating_add(row.rx);
                sum.seen = sum.seen.max(row.seen);
                sum.leases.extend_from_slice(&row.leases);
            })
            .or_insert_with(|| row.clone());
    }
    merged
}

/// Returns which of the users the node serves or has served: a released row still counts, because
/// traffic may arrive long after it passed.
async fn assigned(
    tx: &mut Tx,
    node: NodeId,
    users: impl Iterator<Item = i64>,
) -> Result<HashSet<i64>, StoreError> {
    let users = users.collect::<Vec<_>>();
    let found: Vec<i64> = match tx.connection() {
        Connection::Pg(tx) => {
            const SQL: &str = "select distinct user_id from node_assignments where node_id = $1 and user_id = any($2)";
            sqlx::query_scalar(SQL)
                .bind(node)
                .bind(users)
                .fetch_all(&mut **tx)
                .await?
        }
        Connection::Sqlite(tx) => {
            const SQL: &str = "select distinct user_id from node_assignments \
                               where node_id = $1 and user_id in (select value from json_each($2))";
            sqlx::query_scalar(SQL)
                .bind(node)
                .bind(Json(users))
                .fetch_all(&mut **tx)
                .await?
        }
    };
    Ok(found.into_iter().collect())
}

/// Adds the rows to counters and buckets, in ascending order of user: batches of several nodes lock
/// rows in one order.
async fn add(
    tx: &mut Tx,
    batch: &Batch,
    rows: &BTreeMap<i64, BatchRow>,
    bills: &HashMap<i64, i64>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (tx_sum, rx_sum) = rows.values().fold((0_i64, 0_i64), |(tx, rx), row| {
        (tx.saturating_add(row.tx), rx.saturating_add(row.rx))
    });
    let hour = batch.at.hour();
    let day = batch.at.day();
    match tx.connection() {
        Connection::Pg(tx) => {
            let mut columns: [Vec<i64>; 5] = Default::default();
            for row in rows.values() {
                columns[0].push(row.user);
                columns[1].push(row.tx);
                columns[2].push(row.rx);
                columns[3].push(bill(bills, row));
                columns[4].push(row.seen.min(now).0);
            }
            let [ids, txs, rxs, billeds, seens] = columns;
            const COUNTERS: &str = "insert into user_counters (user_id, tx, rx, billed, online_at, last_node_id) \
                select r.u, r.tx, r.rx, r.billed, r.seen, $6 from unnest($1::bigint[], $2::bigint[], $3::bigint[], \
                $4::bigint[], $5::bigint[]) as r(u, tx, rx, billed, seen) order by r.u \
                on conflict (user_id) do update set tx = user_counters.tx + excluded.tx, \
                rx = user_counters.rx + excluded.rx, billed = case \
                when user_counters.billed > 9223372036854775807 - excluded.billed then 9223372036854775807 \
                else user_counters.billed + excluded.billed end, \
                online_at = greatest(user_counters.online_at, excluded.online_at), last_node_id = excluded.last_node_id";
            sqlx::query(COUNTERS)
                .bind(&ids)
                .bind(&txs)
                .bind(&rxs)
                .bind(billeds)
                .bind(seens)
                .bind(batch.node)
                .execute(&mut **tx)
                .await?;
            const HOURLY: &str = "insert into traffic_hourly (bucket, node_id, user_id, tx, rx) \
                select $4, $5, r.u, r.tx, r.rx from unnest($1::bigint[], $2::bigint[], $3::bigint[]) as r(u, tx, rx) \
                order by r.u on conflict (bucket, node_id, user_id) do update \
                set tx = traffic_hourly.tx + excluded.tx, rx = traffic_hourly.rx + excluded.rx";
            sqlx::query(HOURLY)
                .bind(&ids)
                .bind(&txs)
                .bind(&rxs)
                .bind(hour)
                .bind(batch.node)
                .execute(&mut **tx)
                .await?;
            const DAILY: &str = "insert into traffic_daily (day, user_id, tx, rx) \
                select $4, r.u, r.tx, r.rx from unnest($1::bigint[], $2::bigint[], $3::bigint[]) as r(u, tx, rx) \
                order by r.u on conflict (user_id, day) do update \
                set tx = traffic_daily.tx + excluded.tx, rx = traffic_daily.rx + excluded.rx";
            sqlx::query(DAILY)
                .bind(&ids)
                .bind(&txs)
                .bind(&rxs)
                .bind(day)
                .execute(&mut **tx)
                .await?;
        }
        Connection::Sqlite(tx) => {
            let rows = Json(
                rows.values()
                    .map(|row| {
                        let billed = bill(bills, row);
                        [row.user, row.tx, row.rx, billed, row.seen.min(now).0]
                    })
                    .collect::<Vec<_>>(),
            );
            const COUNTERS: &str = "insert into user_counters (user_id, tx, rx, billed, online_at, last_node_id) \
                select value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, $2 from json_each($1) where true \
                on conflict (user_id) do update set tx = user_counters.tx + excluded.tx, \
                rx = user_counters.rx + excluded.rx, billed = case \
                when user_counters.billed > 9223372036854775807 - excluded.billed then 9223372036854775807 \
                else user_counters.billed + excluded.billed end, \
                online_at = max(coalesce(user_counters.online_at, 0), excluded.online_at), \
                last_node_id = excluded.last_node_id";
            sqlx::query(COUNTERS)
                .bind(&rows)
                .bind(batch.node)
                .execute(&mut **tx)
                .await?;
            const HOURLY: &str = "insert into traffic_hourly (bucket, node_id, user_id, tx, rx) \
                select $2, $3, value ->> 0, value ->> 1, value ->> 2 from json_each($1) where true \
                on conflict (bucket, node_id, user_id) do update \
                set tx = traffic_hourly.tx + excluded.tx, rx = traffic_hourly.rx + excluded.rx";
            sqlx::query(HOURLY)
                .bind(&rows)
                .bind(hour)
                .bind(batch.node)
                .execute(&mut **tx)
                .await?;
            const DAILY: &str = "insert into traffic_daily (day, user_id, tx, rx) \
                select $2, value ->> 0, value ->> 1, value ->> 2 from json_each($1) where true \
                on conflict (user_id, day) do update \
                set tx = traffic_daily.tx + excluded.tx, rx = traffic_daily.rx + excluded.rx";
            sqlx::query(DAILY)
                .bind(&rows)
                .bind(day)
                .execute(&mut **tx)
                .await?;
        }
    }
    const NODE: &str = "insert into node_counters (node_id, tx, rx) values ($1, $2, $3) on conflict (node_id) do update \
                        set tx = node_counters.tx + excluded.tx, rx = node_counters.rx + excluded.rx";
    on!(tx, |ex| sqlx::query(NODE)
        .bind(batch.node)
        .bind(tx_sum)
        .bind(rx_sum)
        .execute(ex)
        .await
        .rows())?;
    const NODE_DAILY: &str = "insert into node_traffic_daily (day, node_id, tx, rx) values ($1, $2, $3, $4) \
                              on conflict (node_id, day) do update set tx = node_traffic_daily.tx + excluded.tx, \
                              rx = node_traffic_daily.rx + excluded.rx";
    on!(tx, |ex| sqlx::query(NODE_DAILY)
        .bind(day)
        .bind(batch.node)
        .bind(tx_sum)
        .bind(rx_sum)
        .execute(ex)
        .await
        .rows())?;
    Ok(())
}

/// Sets rows aside that are not this node's to report. They count for the node, apart; the first of
/// a batch are kept one by one, which a node that reports nonsense cannot make expensive.
async fn quarantine(
    tx: &mut Tx,
    batch: &Batch,
    rows: &[(BatchRow, &'static str)],
    now: Timestamp,
) -> Result<(), StoreError> {
    const KNOWN: &str = "select 1 from users where id = $1";
    const ROW: &str = "insert into traffic_quarantine (node_id, spool_id, seq, user_id, tx, rx, reason, at) \
                       values ($1, $2, $3, $4, $5, $6, $7, $8)";
    let (mut tx_sum, mut rx_sum) = (0_i64, 0_i64);
    for (index, (row, reason)) in rows.iter().enumerate() {
        if *reason != "invalid" {
            tx_sum = tx_sum.saturating_add(row.tx);
            rx_sum = rx_sum.saturating_add(row.rx);
        }
        if index >= MAX_QUARANTINE_ROWS {
            continue;
        }
        let reason = if *reason == "invalid" {
            reason
        } else {
            let known = on!(tx, |ex| sqlx::query_scalar::<_, i32>(KNOWN)
                .bind(row.user)
                .fetch_optional(ex)
                .await)?;
            if known.is_some() {
                "foreign_user"
            } else {
                "unknown_user"
            }
        };
        on!(tx, |ex| sqlx::query(ROW)
            .bind(batch.node)
            .bind(batch.spool)
            .bind(batch.last_seq)
            .bind(row.user)
            .bind(row.tx)
            .bind(row.rx)
            .bind(reason)
            .bind(now)
            .execute(ex)
            .await
            .rows())?;
    }
    const SUMS: &str = "update node_counters set quarantined_tx = quarantined_tx + $2, \
                        quarantined_rx = quarantined_rx + $3 where node_id = $1";
    on!(tx, |ex| sqlx::query(SUMS)
        .bind(batch.node)
        .bind(tx_sum)
        .bind(rx_sum)
        .execute(ex)
        .await
        .rows())?;
    Ok(())
}

/// Debits leases. A node cannot pay off more of its leases than it was billed.
async fn consume(
    tx: &mut Tx,
    batch: &Batch,
    row: &BatchRow,
    billed: i64,
    now: Timestamp,
) -> Result<(), StoreError> {
    // With less left than a byte costs it is spent.
    const SQL: &str = "update quota_leases set consumed = consumed + $4, \
                       closed_at = case when closed_at is null and granted - consumed - $4 < \
                       (billing_multiplier + 999999999) / 1000000000 then $5 else closed_at end, \
                       close_reason = case when closed_at is null and granted - consumed - $4 < \
                       (billing_multiplier + 999999999) / 1000000000 then 'spent' else close_reason end \
                       where id = $1 and user_id = $2 and node_id = $3";
    // The node rounds each slice from its own beginning on, so that its parts add up.
    let rounded = i64::try_from(row.leases.len()).unwrap_or(0);
    let mut left = billed.saturating_add(rounded);
    for (lease, used) in &row.leases {
        let used = (*used).clamp(0, left);
        left -= used;
        if used == 0 {
            continue;
        }
        on!(tx, |ex| sqlx::query(SQL)
            .bind(*lease)
            .bind(row.user)
            .bind(batch.node)
            .bind(used)
            .bind(now)
            .execute(ex)
            .await
            .rows())?;
    }
    Ok(())
}

/// Returns what each row is billed: what came out of a lease at the multiplier that it was lent with, as the node counted
/// it, and the rest at the batch's.
async fn bills(
    tx: &mut Tx,
    batch: &Batch,
    rows: &BTreeMap<i64, BatchRow>,
) -> Result<HashMap<i64, i64>, StoreError> {
    let leases: Vec<i64> = rows
        .values()
        .flat_map(|row| row.leases.iter().map(|(lease, _)| lease.0))
        .collect();
    let mut lent = HashMap::new();
    if !leases.is_empty() {
        let found: Vec<(LeaseId, i64, i64)> = match tx.connection() {
            Connection::Pg(tx) => {
                const SQL: &str = "select id, user_id, billing_multiplier from quota_leases \
                                   where node_id = $1 and id = any($2) and billing_multiplier <> $3";
                let query = sqlx::query_as(SQL).bind(batch.node).bind(leases);
                query.bind(batch.multiplier).fetch_all(&mut **tx).await?
            }
            Connection::Sqlite(tx) => {
                const SQL: &str = "select id, user_id, billing_multiplier from quota_leases where node_id = $1 \
                                   and id in (select value from json_each($2)) and billing_multiplier <> $3";
                let query = sqlx::query_as(SQL).bind(batch.node).bind(Json(leases));
                query.bind(batch.multiplier).fetch_all(&mut **tx).await?
            }
        };
        lent.extend(
            found
                .into_iter()
                .map(|(lease, user, multiplier)| ((lease, user), multiplier)),
        );
    }
    let bill = |row: &BatchRow| {
        let (mut raw, mut sum) = (i128::from(row.tx) + i128::from(row.rx), 0_i128);
        for (lease, used) in &row.leases {
            let Some(multiplier) = lent.get(&(*lease, row.user)) else {
                continue;
            };
            let multiplier = i128::from(*multiplier).max(1);
            // Rounded up: the node rounds what it bills down.
            let of_it = (i128::from(*used) * PARTS + multiplier - 1) / multiplier;
            let of_it = of_it.clamp(0, raw);
            sum += of_it * multiplier / PARTS;
            raw -= of_it;
        }
        sum += raw * i128::from(batch.multiplier) / PARTS;
        i64::try_from(sum).unwrap_or(i64::MAX)
    };
    Ok(rows.values().map(|row| (row.user, bill(row))).collect())
}

/// Returns a row's sum of [`bills`].
fn bill(bills: &HashMap<i64, i64>, row: &BatchRow) -> i64 {
    bills.get(&row.user).copied().unwrap_or(0)
}

/// Of a multiplier of 1.
const PARTS: i128 = 1_000_000_000;

/// Rows of one batch that are kept in quarantine.
const MAX_QUARANTINE_ROWS: usize = 100;
/// Most bytes one row may hold: a batch covers seconds to days of one node, and a counter must not
/// run over.
const MAX_ROW: i64 = 1 << 50;
/// Bytes that a node is believed however new it is.
const BELIEVED_AT_ONCE: i64 = 1 << 50;
/// Bytes a second that a node is believed over its life, 275 Gbit/s: sums of eight years fit their counters.
const BELIEVED_PER_SECOND: i64 = 1 << 35;
