//! Nodes: what is wanted of them, and what they say of themselves.

use sqlx::FromRow;
use sqlx::types::Json;
use uuid::Uuid;

use super::{Rows as _, Store, StoreError, Topic, Tx, on};
use crate::domain::{DesiredState, EngineState, NodeId, ObservedState, RegionId, Timestamp};

/// One node.
#[derive(Debug, Clone, FromRow)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct NodeRow {
    pub id: NodeId,
    pub uid: Uuid,
    pub name: String,
    pub public_host: String,
    pub listen_port: i64,
    pub region_id: Option<RegionId>,
    pub country: Option<String>,
    pub asn: Option<i64>,
    pub provider: Option<String>,
    pub tags: Json<Vec<String>>,
    pub weight: i64,
    pub capacity_sessions: Option<i64>,
    pub capacity_bytes_per_s: Option<i64>,
    pub billing_multiplier: i64,
    pub traffic_limit_bytes: Option<i64>,
    pub note: String,
    pub desired_state: DesiredState,
    pub drain_deadline: Option<Timestamp>,
    pub desired_rev: i64,
    pub config_rev: i64,
    pub users_rev: i64,
    pub desired_at: Timestamp,
    pub observed_state: ObservedState,
    pub state_reason: String,
    pub state_since: Timestamp,
    pub engine_state: EngineState,
    pub applied_rev: i64,
    pub applied_epoch: i64,
    pub refused_rev: Option<i64>,
    pub refused_errors: Option<Json<serde_json::Value>>,
    pub agent_version: String,
    pub capabilities: Json<Vec<String>>,
    pub hostname: String,
    pub listening: Json<Vec<String>>,
    pub boot_id: Option<Uuid>,
    pub last_seen_at: Option<Timestamp>,
    pub connections: i64,
    pub users_online: i64,
    pub owner_master: Option<Uuid>,
    pub owner_epoch: i64,
    pub rev: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// The columns of a [`NodeRow`].
macro_rules! node_columns {
    () => {
        "id, uid, name, public_host, listen_port, region_id, country, asn, provider, tags, weight, \
         capacity_sessions, capacity_bytes_per_s, billing_multiplier, traffic_limit_bytes, note, desired_state, \
         drain_deadline, desired_rev, config_rev, users_rev, desired_at, observed_state, state_reason, \
         state_since, engine_state, applied_rev, applied_epoch, refused_rev, refused_errors, agent_version, \
         capabilities, hostname, listening, boot_id, last_seen_at, connections, users_online, owner_master, \
         owner_epoch, rev, created_at, updated_at"
    };
}
pub(crate) use node_columns;

/// What an operator or an enrolment says of a new node.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct NewNode {
    pub uid: Uuid,
    pub name: String,
    pub public_host: String,
    pub listen_port: u16,
    pub region_id: Option<RegionId>,
    pub tags: Vec<String>,
}

/// What an operator changes of a node; `None` leaves a field alone.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct NodeChange {
    pub name: Option<String>,
    pub public_host: Option<String>,
    pub listen_port: Option<u16>,
    pub region_id: Option<Option<RegionId>>,
    pub country: Option<Option<String>>,
    pub provider: Option<Option<String>>,
    pub tags: Option<Vec<String>>,
    pub weight: Option<i64>,
    pub capacity_sessions: Option<Option<i64>>,
    pub billing_multiplier: Option<i64>,
    pub note: Option<String>,
}

/// Which resources of a node a change concerns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bump {
    /// Its configuration.
    pub config: bool,
    /// Its users.
    pub users: bool,
}

impl Bump {
    /// The manifest alone: state, validity.
    pub const MANIFEST: Self = Self {
        config: false,
        users: false,
    };
    /// The configuration.
    pub const CONFIG: Self = Self {
        config: true,
        users: false,
    };
    /// The users.
    pub const USERS: Self = Self {
        config: false,
        users: true,
    };
}

impl Store {
    /// Returns a node.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`].
    pub async fn node(&self, id: NodeId) -> Result<NodeRow, StoreError> {
        const SQL: &str = concat!("select ", node_columns!(), " from vps_nodes where id = $1");
        on!(read self, |ex| sqlx::query_as::<_, NodeRow>(SQL).bind(id).fetch_optional(ex).await)?
            .ok_or(StoreError::NotFound("node"))
    }

    /// Returns the node with a UUID.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`].
    pub async fn node_by_uid(&self, uid: Uuid) -> Result<NodeRow, StoreError> {
        const SQL: &str = concat!("select ", node_columns!(), " from vps_nodes where uid = $1");
        on!(read self, |ex| sqlx::query_as::<_, NodeRow>(SQL).bind(uid).fetch_optional(ex).await)?
            .ok_or(StoreError::NotFound("node"))
    }

    /// Returns nodes in order of their number, after `after`.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn nodes(
        &self,
        after: Option<NodeId>,
        limit: u32,
    ) -> Result<Vec<NodeRow>, StoreError> {
        const SQL: &str = concat!(
            "select ",
            node_columns!(),
            " from vps_nodes where id > $1 order by id limit $2"
        );
        Ok(on!(read self, |ex| sqlx::query_as::<_, NodeRow>(SQL)
            .bind(after.unwrap_or(NodeId(0)))
            .bind(i64::from(limit))
            .fetch_all(ex)
            .await)?)
    }
}

/// Makes a node.
///
/// # Errors
///
/// [`StoreError::Duplicate`] of `vps_nodes_name_key` or `vps_nodes_uid_key`.
pub async fn create(tx: &mut Tx, node: &NewNode, now: Timestamp) -> Result<NodeRow, StoreError> {
    const SQL: &str = concat!(
        "insert into vps_nodes (uid, name, public_host, listen_port, region_id, tags, capabilities, listening, \
         desired_at, state_since, created_at, updated_at) \
         values ($1, $2, $3, $4, $5, $6, $7, $7, $8, $8, $8, $8) returning ",
        node_columns!()
    );
    let row = on!(tx, |ex| sqlx::query_as::<_, NodeRow>(SQL)
        .bind(node.uid)
        .bind(&node.name)
        .bind(&node.public_host)
        .bind(i64::from(node.listen_port))
        .bind(node.region_id)
        .bind(Json(&node.tags))
        .bind(Json(Vec::<String>::new()))
        .bind(now)
        .fetch_one(ex)
        .await)?;
    const COUNTERS: &str = "insert into node_counters (node_id) values ($1)";
    on!(tx, |ex| sqlx::query(COUNTERS)
        .bind(row.id)
        .execute(ex)
        .await
        .rows())?;
    tx.call(Topic::Nodes);
    Ok(row)
}

/// Returns a node as the transaction sees it.
///
/// # Errors
///
/// [`StoreError::NotFound`].
pub async fn get(tx: &mut Tx, id: NodeId) -> Result<NodeRow, StoreError> {
    const SQL: &str = concat!("select ", node_columns!(), " from vps_nodes where id = $1");
    on!(tx, |ex| sqlx::query_as::<_, NodeRow>(SQL)
        .bind(id)
        .fetch_optional(ex)
        .await)?
    .ok_or(StoreError::NotFound("node"))
}

/// Changes what an operator decides of a node, if it is still at `expected_rev` (`None`: whatever it
/// is at). Address, port and multiplier are part of what the node runs: its revision is bumped.
///
/// # Errors
///
/// [`StoreError::NotFound`], [`StoreError::StaleRevision`], [`StoreError::Duplicate`] of the name,
/// [`StoreError::Check`].
pub async fn update(
    tx: &mut Tx,
    id: NodeId,
    expected_rev: Option<i64>,
    change: &NodeChange,
    now: Timestamp,
) -> Result<NodeRow, StoreError> {
    let old = get_for_update(tx, id).await?;
    check_rev("node", expected_rev, old.rev)?;
    const SQL: &str = concat!(
        "update vps_nodes set name = $2, public_host = $3, listen_port = $4, region_id = $5, country = $6, \
         provider = $7, tags = $8, weight = $9, capacity_sessions = $10, billing_multiplier = $11, note = $12, \
         rev = rev + 1, updated_at = $13 where id = $1 returning ",
        node_columns!()
    );
    let port = change.listen_port.map_or(old.listen_port, i64::from);
    let region = change.region_id.unwrap_or(old.region_id);
    let multiplier = change.billing_multiplier.unwrap_or(old.billing_multiplier);
    let host = change.public_host.as_ref().unwrap_or(&old.public_host);
    let row = on!(tx, |ex| sqlx::query_as::<_, NodeRow>(SQL)
        .bind(id)
        .bind(change.name.as_ref().unwrap_or(&old.name))
        .bind(host)
        .bind(port)
        .bind(region)
        .bind(change.country.as_ref().unwrap_or(&old.country))
        .bind(change.provider.as_ref().unwrap_or(&old.provider))
        .bind(Json(change.tags.as_ref().unwrap_or(&old.tags.0)))
        .bind(change.weight.unwrap_or(old.weight))
        .bind(change.capacity_sessions.unwrap_or(old.capacity_sessions))
        .bind(multiplier)
        .bind(change.note.as_ref().unwrap_or(&old.note))
        .bind(now)
        .fetch_one(ex)
        .await)?;
    if multiplier != old.billing_multiplier {
        note_multiplier(tx, id, old.billing_multiplier, multiplier, now).await?;
    }
    tx.call(Topic::Users);
    if port == old.listen_port && region == old.region_id && *host == old.public_host {
        return Ok(row);
    }
    if *host != old.public_host {
        // It names the old host.
        super::published::drop_node_tls(tx, id).await?;
    }
    bump(tx, id, Bump::CONFIG, now).await?;
    get(tx, id).await
}

/// Keeps since when which multiplier holds: what passed before is billed as it was.
async fn note_multiplier(
    tx: &mut Tx,
    id: NodeId,
    old: i64,
    new: i64,
    now: Timestamp,
) -> Result<(), StoreError> {
    const FIRST: &str = "insert into node_multipliers (node_id, since, multiplier) select $1, 0, $2 \
                         where not exists (select 1 from node_multipliers where node_id = $1)";
    on!(tx, |ex| sqlx::query(FIRST)
        .bind(id)
        .bind(old)
        .execute(ex)
        .await
        .rows())?;
    const SINCE: &str = "insert into node_multipliers (node_id, since, multiplier) values ($1, $2, $3) \
                         on conflict (node_id, since) do update set multiplier = excluded.multiplier";
    on!(tx, |ex| sqlx::query(SINCE)
        .bind(id)
        .bind(now)
        .bind(new)
        .execute(ex)
        .await
        .rows())?;
    Ok(())
}

/// Decides whether and how a node serves.
///
/// # Errors
///
/// [`StoreError::NotFound`].
pub async fn set_desired_state(
    tx: &mut Tx,
    id: NodeId,
    state: DesiredState,
    drain_deadline: Option<Timestamp>,
    now: Timestamp,
) -> Result<NodeRow, StoreError> {
    const SQL: &str = "update vps_nodes set desired_state = $2, drain_deadline = $3, rev = rev + 1, updated_at = $4 \
                       where id = $1";
    on!(tx, |ex| sqlx::query(SQL)
        .bind(id)
        .bind(state)
        .bind(drain_deadline)
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    bump(tx, id, Bump::MANIFEST, now).await?;
    tx.call(Topic::Users);
    get(tx, id).await
}

/// Removes a node and everything that hangs on it but the hourly traffic. Its certificates are remembered as those of a
/// node that must not serve.
///
/// # Errors
///
/// [`StoreError::NotFound`], [`StoreError::StaleRevision`].
pub async fn delete(
    tx: &mut Tx,
    id: NodeId,
    expected_rev: Option<i64>,
    now: Timestamp,
) -> Result<NodeRow, StoreError> {
    let old = get_for_update(tx, id).await?;
    check_rev("node", expected_rev, old.rev)?;
    const CERTIFICATES: &str = "insert into deleted_node_certificates (fingerprint, deleted_at) \
                                select fingerprint, $2 from node_certificates where node_id = $1";
    on!(tx, |ex| sqlx::query(CERTIFICATES)
        .bind(id)
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    const SQL: &str = "delete from vps_nodes where id = $1";
    on!(tx, |ex| sqlx::query(SQL).bind(id).execute(ex).await.rows())?;
    for topic in [Topic::Nodes, Topic::Users, Topic::Revocations] {
        tx.call(topic);
    }
    Ok(old)
}

/// Gives a node's desired state a new revision and returns it. The row stays locked until the
/// transaction ends, so revisions of a node become visible in their order.
///
/// # Errors
///
/// [`StoreError::NotFound`].
pub async fn bump(tx: &mut Tx, id: NodeId, what: Bump, now: Timestamp) -> Result<i64, StoreError> {
    const SQL: &str = "update vps_nodes set desired_rev = desired_rev + 1, \
                       config_rev = case when $2 then desired_rev + 1 else config_rev end, \
                       users_rev = case when $3 then desired_rev + 1 else users_rev end, \
                       desired_at = $4, updated_at = $4 where id = $1 returning desired_rev";
    tx.call(Topic::Nodes);
    on!(tx, |ex| sqlx::query_scalar::<_, i64>(SQL)
        .bind(id)
        .bind(what.config)
        .bind(what.users)
        .bind(now)
        .fetch_optional(ex)
        .await)?
    .ok_or(StoreError::NotFound("node"))
}

/// Lets the next revision of a node's desired state come after one that the node holds.
///
/// # Errors
///
/// The store fails.
pub(crate) async fn overtake(tx: &mut Tx, id: NodeId, rev: i64) -> Result<(), StoreError> {
    const SQL: &str = "update vps_nodes set desired_rev = $2 where id = $1 and desired_rev < $2";
    on!(tx, |ex| sqlx::query(SQL)
        .bind(id)
        .bind(rev)
        .execute(ex)
        .await
        .rows())?;
    Ok(())
}

/// Returns a node and keeps others from changing it until the transaction ends.
pub(crate) async fn get_for_update(tx: &mut Tx, id: NodeId) -> Result<NodeRow, StoreError> {
    // On SQLite a transaction that writes is alone anyway.
    if tx.is_postgres() {
        const LOCK: &str = "update vps_nodes set rev = rev where id = $1";
        on!(tx, |ex| sqlx::query(LOCK).bind(id).execute(ex).await.rows())?;
    }
    get(tx, id).await
}

/// Compares the revision that a caller saw with the one there is.
pub(crate) fn check_rev(
    what: &'static str,
    expected: Option<i64>,
    actual: i64,
) -> Result<(), StoreError> {
    match expected {
        Some(expected) if expected != actual => Err(StoreError::StaleRevision {
            what,
            expected,
            actual,
        }),
        _ => Ok(()),
    }
}

/// Returns whether a node has this name.
///
/// # Errors
///
/// The store fails.
pub async fn name_taken(tx: &mut Tx, name: &str) -> Result<bool, StoreError> {
    const SQL: &str = "select id from vps_nodes where name = $1";
    Ok(on!(tx, |ex| sqlx::query_scalar::<_, NodeId>(SQL)
        .bind(name)
        .fetch_optional(ex)
        .await)?
    .is_some())
}

/// Notes what is seen of a node.
///
/// # Errors
///
/// The store fails.
pub async fn set_observed_state(
    tx: &mut Tx,
    id: NodeId,
    state: ObservedState,
    reason: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    const SQL: &str = "update vps_nodes set observed_state = $2, state_reason = $3, state_since = $4, updated_at = $4 \
                       where id = $1";
    on!(tx, |ex| sqlx::query(SQL)
        .bind(id)
        .bind(state)
        .bind(reason)
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    Ok(())
}
