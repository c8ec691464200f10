//! What nodes report of themselves, and who holds their Session.

use std::time::Duration;

use serde_json::json;
use sqlx::FromRow;
use sqlx::types::Json;
use uuid::Uuid;

use super::events::{self, NewEvent};
use super::{Connection, Rows as _, Store, StoreError, Topic, Tx, alerts, on};
use crate::domain::{EngineState, NodeId, ObservedState, Timestamp};

/// What a node says when it opens a Session.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct Opening {
    pub agent_version: String,
    pub capabilities: Vec<String>,
    pub hostname: String,
    pub listening: Vec<String>,
    pub boot_id: Option<Uuid>,
    pub engine_state: EngineState,
}

/// What heartbeats said of a node, newest only.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Which node.
    pub node: NodeId,
    /// When.
    pub at: Timestamp,
    /// Authenticated connections.
    pub connections: i64,
    /// Users with one.
    pub users_online: i64,
}

/// A node whose state changed by silence.
#[derive(Debug, Clone, FromRow)]
pub struct Transition {
    /// Which node.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Its state from then on.
    pub observed_state: ObservedState,
}

/// One sample of a node's figures.
#[derive(Debug, Clone, FromRow)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct MetricsRow {
    pub at: Timestamp,
    pub cpu_permille: i64,
    pub memory_used_bytes: i64,
    pub memory_total_bytes: i64,
    pub load1: f64,
    pub disk_free_bytes: i64,
    pub open_files: i64,
    pub tx_bytes_per_s: i64,
    pub rx_bytes_per_s: i64,
    pub connections: i64,
    pub users_online: i64,
    pub tcp_streams: i64,
    pub udp_sessions: i64,
    pub auth_accepted: i64,
    pub auth_rejected: i64,
    pub handshakes_failed: i64,
    pub rtt_p50_ms: f64,
    pub rtt_p95_ms: f64,
    pub loss_permille: i64,
    pub spool_bytes: i64,
    pub agent_memory_bytes: i64,
    pub panics: i64,
}

macro_rules! metrics_columns {
    () => {
        "cpu_permille, memory_used_bytes, memory_total_bytes, load1, disk_free_bytes, open_files, tx_bytes_per_s, \
         rx_bytes_per_s, connections, users_online, tcp_streams, udp_sessions, auth_accepted, auth_rejected, \
         handshakes_failed, rtt_p50_ms, rtt_p95_ms, loss_permille, spool_bytes, agent_memory_bytes, panics"
    };
}

impl Store {
    /// Makes a master the holder of a node's Session. Returns the epoch that its writes name; `None`
    /// when the node is revoked or gone.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn open_session(
        &self,
        node: NodeId,
        master: Uuid,
        opening: &Opening,
        now: Timestamp,
    ) -> Result<Option<i64>, StoreError> {
        const SQL: &str = "update vps_nodes set owner_master = $2, owner_epoch = owner_epoch + 1, agent_version = $3, \
            capabilities = $4, hostname = $5, listening = $6, boot_id = $7, engine_state = $8, \
            state_since = case when observed_state in ('suspect', 'error') then $9 else state_since end, \
            state_reason = '', \
            observed_state = case when observed_state in ('suspect', 'error') then 'online' else observed_state end, \
            last_seen_at = $9, updated_at = $9 where id = $1 and observed_state <> 'revoked' returning owner_epoch";
        let mut tx = self.begin().await?;
        let epoch = on!(tx, |ex| sqlx::query_scalar::<_, i64>(SQL)
            .bind(node)
            .bind(master)
            .bind(&opening.agent_version)
            .bind(Json(&opening.capabilities))
            .bind(&opening.hostname)
            .bind(Json(&opening.listening))
            .bind(opening.boot_id)
            .bind(opening.engine_state)
            .bind(now)
            .fetch_optional(ex)
            .await)?;
        if epoch.is_some() {
            come_online(
                &mut tx,
                &[node.0],
                &["offline", "enrolling", "pending"],
                now,
            )
            .await?;
        }
        tx.commit().await?;
        Ok(epoch)
    }

    /// Notes that a node runs a manifest.
    ///
    /// # Errors
    ///
    /// [`StoreError::Fenced`].
    pub async fn note_applied(
        &self,
        node: NodeId,
        owner_epoch: i64,
        rev: i64,
        epoch: i64,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        const SQL: &str = "update vps_nodes set applied_rev = $3, applied_epoch = $4, refused_rev = null, \
            refused_errors = null, state_since = case when observed_state = 'error' then $5 else state_since end, \
            state_reason = case when observed_state = 'error' then '' else state_reason end, \
            observed_state = case when observed_state = 'error' then 'online' else observed_state end, \
            updated_at = $5 where id = $1 and owner_epoch = $2";
        let rows = on!(write self, |ex| sqlx::query(SQL)
            .bind(node)
            .bind(owner_epoch)
            .bind(rev)
            .bind(epoch)
            .bind(now)
            .execute(ex)
            .await.rows())?;
        owned(rows)
    }

    /// Notes that a node refuses a manifest, and why.
    ///
    /// # Errors
    ///
    /// [`StoreError::Fenced`].
    pub async fn note_refused(
        &self,
        node: NodeId,
        owner_epoch: i64,
        rev: i64,
        errors: &serde_json::Value,
        reason: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        const SQL: &str = "update vps_nodes set refused_rev = $3, refused_errors = $4, observed_state = 'error', \
            state_reason = $5, state_since = $6, updated_at = $6 where id = $1 and owner_epoch = $2";
        let rows = on!(write self, |ex| sqlx::query(SQL)
            .bind(node)
            .bind(owner_epoch)
            .bind(rev)
            .bind(Json(errors))
            .bind(reason)
            .bind(now)
            .execute(ex)
            .await.rows())?;
        owned(rows)
    }

    /// Notes what a node says of its engine.
    ///
    /// # Errors
    ///
    /// [`StoreError::Fenced`].
    pub async fn note_engine(
        &self,
        node: NodeId,
        owner_epoch: i64,
        engine: EngineState,
        listening: &[String],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        const SQL: &str = "update vps_nodes set engine_state = $3, listening = $4, updated_at = $5 \
                           where id = $1 and owner_epoch = $2";
        let rows = on!(write self, |ex| sqlx::query(SQL)
            .bind(node)
            .bind(owner_epoch)
            .bind(engine)
            .bind(Json(listening))
            .bind(now)
            .execute(ex)
            .await.rows())?;
        owned(rows)
    }

    /// Writes what many heartbeats said, in a statement or two. A node that was thought away is back.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn note_seen(&self, seen: &[Seen], now: Timestamp) -> Result<(), StoreError> {
        if seen.is_empty() {
            return Ok(());
        }
        let mut tx = self.begin().await?;
        match tx.connection() {
            Connection::Pg(tx) => {
                const SQL: &str = "update vps_nodes n set last_seen_at = r.at, connections = r.connections, \
                    users_online = r.users, \
                    state_since = case when n.observed_state = 'suspect' then $5 else n.state_since end, \
                    state_reason = case when n.observed_state = 'suspect' then '' else n.state_reason end, \
                    observed_state = case when n.observed_state = 'suspect' then 'online' else n.observed_state end \
                    from unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[]) as r(id, at, connections, users) \
                    where n.id = r.id";
                let column = |of: fn(&Seen) -> i64| seen.iter().map(of).collect::<Vec<_>>();
                sqlx::query(SQL)
                    .bind(column(|seen| seen.node.0))
                    .bind(column(|seen| seen.at.0))
                    .bind(column(|seen| seen.connections))
                    .bind(column(|seen| seen.users_online))
                    .bind(now)
                    .execute(&mut **tx)
                    .await?;
            }
            Connection::Sqlite(tx) => {
                const SQL: &str = "update vps_nodes set last_seen_at = r.value ->> 1, connections = r.value ->> 2, \
                    users_online = r.value ->> 3, \
                    state_since = case when observed_state = 'suspect' then $2 else state_since end, \
                    state_reason = case when observed_state = 'suspect' then '' else state_reason end, \
                    observed_state = case when observed_state = 'suspect' then 'online' else observed_state end \
                    from json_each($1) as r where vps_nodes.id = r.value ->> 0";
                let rows = seen
                    .iter()
                    .map(|seen| [seen.node.0, seen.at.0, seen.connections, seen.users_online])
                    .collect::<Vec<_>>();
                sqlx::query(SQL)
                    .bind(Json(rows))
                    .bind(now)
                    .execute(&mut **tx)
                    .await?;
            }
        }
        let ids = seen.iter().map(|seen| seen.node.0).collect::<Vec<_>>();
        come_online(&mut tx, &ids, &["offline"], now).await?;
        tx.commit().await
    }

    /// Returns which of the nodes' certificates are good at `now`: fingerprints of those that are
    /// neither revoked nor past their grace, of nodes that exist.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn good_certificates(
        &self,
        nodes: &[NodeId],
        now: Timestamp,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let ids = nodes.iter().map(|node| node.0).collect::<Vec<_>>();
        Ok(match self.db() {
            super::Db::Pg(pool) => {
                const SQL: &str = "select fingerprint from node_certificates where node_id = any($1) \
                                   and revoked_at is null and not_after > $2 \
                                   and (grace_until is null or grace_until > $2)";
                sqlx::query_scalar(SQL)
                    .bind(ids)
                    .bind(now)
                    .fetch_all(pool)
                    .await?
            }
            super::Db::Sqlite { read, .. } => {
                const SQL: &str = "select fingerprint from node_certificates where node_id in \
                                   (select value from json_each($1)) and revoked_at is null and not_after > $2 \
                                   and (grace_until is null or grace_until > $2)";
                sqlx::query_scalar(SQL)
                    .bind(Json(ids))
                    .bind(now)
                    .fetch_all(read)
                    .await?
            }
        })
    }

    /// Keeps samples of a node's figures; one that is there already stays.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn insert_metrics(
        &self,
        node: NodeId,
        samples: &[MetricsRow],
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        for sample in samples {
            insert_metrics(&mut tx, node, 15, sample).await?;
        }
        tx.commit().await
    }

    /// Returns a node's figures from `from` until before `to`, at most `limit`, the oldest first.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn metrics(
        &self,
        node: NodeId,
        resolution_s: i64,
        from: Timestamp,
        to: Timestamp,
        limit: u32,
    ) -> Result<Vec<MetricsRow>, StoreError> {
        const SQL: &str = concat!(
            "select at, ",
            metrics_columns!(),
            " from node_metrics where node_id = $1 and resolution_s = $2 and at >= $3 and at < $4 order by at limit $5"
        );
        Ok(on!(read self, |ex| sqlx::query_as::<_, MetricsRow>(SQL)
            .bind(node)
            .bind(resolution_s)
            .bind(from)
            .bind(to)
            .bind(i64::from(limit))
            .fetch_all(ex)
            .await)?)
    }

    /// Opens an alert of a node, or refreshes the open one of the same rule. Returns whether that is news.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn raise_alert(
        &self,
        node: NodeId,
        rule: &str,
        severity: &str,
        message: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let news = alerts::raise(&mut tx, Some(node), rule, severity, message, now).await?;
        tx.commit().await?;
        Ok(news)
    }
}

/// How far the clocks of masters may be apart.
const SAME_TIME: Duration = Duration::from_secs(60);

/// Lets silent nodes become suspect and then offline. Returns those that changed.
///
/// # Errors
///
/// The store fails.
pub async fn expire_silent(
    tx: &mut Tx,
    suspect_before: Timestamp,
    offline_before: Timestamp,
    now: Timestamp,
) -> Result<Vec<Transition>, StoreError> {
    // Of a time when the master's clock was ahead: no silence would be long enough.
    const AHEAD: &str = "update vps_nodes set last_seen_at = $1 where last_seen_at > $2";
    const OFFLINE: &str = "update vps_nodes set observed_state = 'offline', state_reason = 'no heartbeat', \
                           state_since = $2, updated_at = $2 \
                           where observed_state in ('online', 'suspect', 'error') and last_seen_at <= $1 \
                           returning id, name, observed_state";
    const SUSPECT: &str = "update vps_nodes set observed_state = 'suspect', state_reason = 'heartbeats are late', \
                           state_since = $2, updated_at = $2 \
                           where observed_state = 'online' and last_seen_at <= $1 returning id, name, observed_state";
    on!(tx, |ex| sqlx::query(AHEAD)
        .bind(now)
        .bind(now.plus(SAME_TIME))
        .execute(ex)
        .await
        .map(drop))?;
    let mut changed = on!(tx, |ex| sqlx::query_as::<_, Transition>(OFFLINE)
        .bind(offline_before)
        .bind(now)
        .fetch_all(ex)
        .await)?;
    changed.extend(on!(tx, |ex| sqlx::query_as::<_, Transition>(SUSPECT)
        .bind(suspect_before)
        .bind(now)
        .fetch_all(ex)
        .await)?);
    if !changed.is_empty() {
        tx.call(Topic::Users);
    }
    let offline = |node: &&Transition| node.observed_state == ObservedState::Offline;
    let news = changed
        .iter()
        .filter(offline)
        .map(|node| told(node, "no heartbeat"));
    events::emit_all(tx, "node.offline", &news.collect::<Vec<_>>(), now).await?;
    Ok(changed)
}

/// Lets nodes be online that were in one of the states, and tells of it. For after a statement that wrote the nodes: then
/// nobody changes their states in between. Late heartbeats and a refused state were not told of, nor is their end.
async fn come_online(
    tx: &mut Tx,
    nodes: &[i64],
    from: &[&str],
    now: Timestamp,
) -> Result<(), StoreError> {
    let back: Vec<Transition> = match tx.connection() {
        Connection::Pg(tx) => {
            const SQL: &str = "update vps_nodes set observed_state = 'online', state_reason = '', state_since = $3, \
                               updated_at = $3 where id = any($1) and observed_state = any($2) \
                               returning id, name, observed_state";
            sqlx::query_as(SQL)
                .bind(nodes)
                .bind(from)
                .bind(now)
                .fetch_all(&mut **tx)
                .await?
        }
        Connection::Sqlite(tx) => {
            const SQL: &str = "update vps_nodes set observed_state = 'online', state_reason = '', state_since = $3, \
                               updated_at = $3 where id in (select value from json_each($1)) \
                               and observed_state in (select value from json_each($2)) \
                               returning id, name, observed_state";
            sqlx::query_as(SQL)
                .bind(Json(nodes))
                .bind(Json(from))
                .bind(now)
                .fetch_all(&mut **tx)
                .await?
        }
    };
    let news = back.iter().map(|node| told(node, ""));
    events::emit_all(tx, "node.online", &news.collect::<Vec<_>>(), now).await
}

fn told(node: &Transition, reason: &str) -> NewEvent {
    NewEvent {
        key: node.id.to_string(),
        payload: json!({
            "id": node.id.0, "name": node.name, "observed_state": node.observed_state.as_str(),
            "state_reason": reason,
        }),
        admin_id: None,
    }
}

async fn insert_metrics(
    tx: &mut Tx,
    node: NodeId,
    resolution_s: i64,
    row: &MetricsRow,
) -> Result<(), StoreError> {
    const SQL: &str = concat!(
        "insert into node_metrics (node_id, resolution_s, at, ",
        metrics_columns!(),
        ") values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, \
         $23, $24) on conflict (node_id, resolution_s, at) do nothing"
    );
    on!(tx, |ex| sqlx::query(SQL)
        .bind(node)
        .bind(resolution_s)
        .bind(row.at)
        .bind(row.cpu_permille)
        .bind(row.memory_used_bytes)
        .bind(row.memory_total_bytes)
        .bind(row.load1)
        .bind(row.disk_free_bytes)
        .bind(row.open_files)
        .bind(row.tx_bytes_per_s)
        .bind(row.rx_bytes_per_s)
        .bind(row.connections)
        .bind(row.users_online)
        .bind(row.tcp_streams)
        .bind(row.udp_sessions)
        .bind(row.auth_accepted)
        .bind(row.auth_rejected)
        .bind(row.handshakes_failed)
        .bind(row.rtt_p50_ms)
        .bind(row.rtt_p95_ms)
        .bind(row.loss_permille)
        .bind(row.spool_bytes)
        .bind(row.agent_memory_bytes)
        .bind(row.panics)
        .execute(ex)
        .await
        .rows())?;
    Ok(())
}

fn owned(rows: u64) -> Result<(), StoreError> {
    if rows == 0 {
        return Err(StoreError::Fenced("node session"));
    }
    Ok(())
}
