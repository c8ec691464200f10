//! What a node's manifest is made of, read in one snapshot.

use sqlx::FromRow;
use sqlx::types::Json;
use uuid::Uuid;

use super::{Rows as _, Store, StoreError, Topic, Tx, nodes, on};
use crate::domain::{
    AdminId, ConfigRevisionId, ConfigScope, NodeId, RegionId, Timestamp, UserId, UserStatus,
};

/// What a node has to know of a user, with the plan's limits where the user has none.
#[derive(Debug, Clone, FromRow)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct EntryRow {
    pub user_id: UserId,
    pub user_uid: Uuid,
    pub status: UserStatus,
    pub seed_enc: Vec<u8>,
    pub auth_hash: Option<Vec<u8>>,
    pub expires_at: Option<Timestamp>,
    pub up_bytes_per_s: Option<i64>,
    pub down_bytes_per_s: Option<i64>,
    pub max_connections: Option<i64>,
    pub max_devices: Option<i64>,
    pub quota_bytes: Option<i64>,
    /// Of the entry: the node's revision at which it changed last.
    pub rev: i64,
    /// 1: assigned, 0: released.
    pub assigned: i64,
}

/// The Hysteria certificate that the master made for a node.
#[derive(Debug, Clone, FromRow)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct NodeTlsRow {
    pub node_id: NodeId,
    pub certificate: Vec<u8>,
    pub private_key_enc: Vec<u8>,
    pub sha256: Vec<u8>,
    pub host: String,
    pub not_after: Timestamp,
}

/// A stored configuration body.
#[derive(Debug, Clone, FromRow)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct ConfigRow {
    pub id: ConfigRevisionId,
    pub scope: ConfigScope,
    pub scope_id: i64,
    pub body: Json<serde_json::Value>,
    pub sha256: Vec<u8>,
    pub author: Option<AdminId>,
    pub message: String,
    pub parent: Option<ConfigRevisionId>,
    pub created_at: Timestamp,
}

macro_rules! config_columns {
    () => {
        "id, scope, scope_id, body, sha256, author, message, parent, created_at"
    };
}

/// A new configuration body. Passwords in it are sealed ([`crate::domain::config::seal`]).
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the columns are described in the migration")]
pub struct NewConfig {
    pub scope: ConfigScope,
    pub scope_id: i64,
    pub body: serde_json::Value,
    pub author: Option<AdminId>,
    pub message: String,
}

impl Store {
    /// Returns the certificate that the master made for a node.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn node_tls(&self, node: NodeId) -> Result<Option<NodeTlsRow>, StoreError> {
        Ok(
            on!(read self, |ex| sqlx::query_as::<_, NodeTlsRow>(NODE_TLS).bind(node).fetch_optional(ex).await)?,
        )
    }

    /// Returns the bodies of a scope, the newest first, before `before`.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub async fn configs(
        &self,
        scope: ConfigScope,
        scope_id: i64,
        before: Option<ConfigRevisionId>,
        limit: u32,
    ) -> Result<Vec<ConfigRow>, StoreError> {
        const SQL: &str = concat!(
            "select ",
            config_columns!(),
            " from config_revisions where scope = $1 and scope_id = $2 and id < $3 order by id desc limit $4"
        );
        Ok(on!(read self, |ex| sqlx::query_as::<_, ConfigRow>(SQL)
            .bind(scope)
            .bind(scope_id)
            .bind(before.unwrap_or(ConfigRevisionId(i64::MAX)))
            .bind(i64::from(limit))
            .fetch_all(ex)
            .await)?)
    }
}

/// Returns up to `limit` entries of a node that changed after revision `since`, in ascending order
/// of user, after the user `after`. With `since` 0: those that are assigned.
///
/// # Errors
///
/// The store fails.
pub async fn entries(
    tx: &mut Tx,
    node: NodeId,
    since: i64,
    after: UserId,
    limit: u32,
) -> Result<Vec<EntryRow>, StoreError> {
    const SQL: &str = "select u.id as user_id, u.uid as user_uid, u.status, u.seed_enc, u.auth_hash, u.expires_at, \
        coalesce(u.up_bytes_per_s, p.up_bytes_per_s) as up_bytes_per_s, \
        coalesce(u.down_bytes_per_s, p.down_bytes_per_s) as down_bytes_per_s, \
        coalesce(u.max_connections, p.max_connections) as max_connections, \
        coalesce(u.max_devices, p.max_devices) as max_devices, \
        coalesce(u.quota_bytes, p.quota_bytes) as quota_bytes, a.rev, a.assigned \
        from (select user_id, max(rev) as rev, \
              cast(max(case when released_at is null then 1 else 0 end) as bigint) as assigned \
              from node_assignments where node_id = $1 and rev > $2 and user_id > $3 \
              and ($2 > 0 or released_at is null) group by user_id order by user_id limit $4) a \
        join users u on u.id = a.user_id left join plans p on p.id = u.plan_id order by u.id";
    Ok(on!(tx, |ex| sqlx::query_as::<_, EntryRow>(SQL)
        .bind(node)
        .bind(since)
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(ex)
        .await)?)
}

/// Returns the newest body of each scope that concerns a node, the most general first.
///
/// # Errors
///
/// The store fails.
pub async fn configs_of(
    tx: &mut Tx,
    node: NodeId,
    region: Option<RegionId>,
) -> Result<Vec<serde_json::Value>, StoreError> {
    const SQL: &str = "select body from config_revisions where scope = $1 and scope_id = $2 order by id desc limit 1";
    let mut bodies = Vec::new();
    for (scope, id) in [
        (ConfigScope::Fleet, Some(0)),
        (ConfigScope::Region, region.map(|region| region.0)),
        (ConfigScope::Node, Some(node.0)),
    ] {
        let Some(id) = id else { continue };
        let body = on!(tx, |ex| sqlx::query_scalar::<_, Json<serde_json::Value>>(
            SQL
        )
        .bind(scope)
        .bind(id)
        .fetch_optional(ex)
        .await)?;
        bodies.extend(body.map(|body| body.0));
    }
    Ok(bodies)
}

/// Appends a body and bumps every node that it concerns. Going back means appending the old one.
///
/// # Errors
///
/// The store fails.
pub async fn append_config(
    tx: &mut Tx,
    new: &NewConfig,
    now: Timestamp,
) -> Result<ConfigRow, StoreError> {
    const PARENT: &str = "select max(id) from config_revisions where scope = $1 and scope_id = $2";
    let parent = on!(tx, |ex| sqlx::query_scalar::<_, Option<ConfigRevisionId>>(
        PARENT
    )
    .bind(new.scope)
    .bind(new.scope_id)
    .fetch_one(ex)
    .await)?;
    const SQL: &str = concat!(
        "insert into config_revisions (scope, scope_id, body, sha256, author, message, parent, created_at) \
         values ($1, $2, $3, $4, $5, $6, $7, $8) returning ",
        config_columns!()
    );
    let hash = crate::secrets::sha256(new.body.to_string().as_bytes());
    let row = on!(tx, |ex| sqlx::query_as::<_, ConfigRow>(SQL)
        .bind(new.scope)
        .bind(new.scope_id)
        .bind(Json(&new.body))
        .bind(hash.as_slice())
        .bind(new.author)
        .bind(&new.message)
        .bind(parent)
        .bind(now)
        .fetch_one(ex)
        .await)?;
    const NODES: &str = "select id from vps_nodes where $1 = 'fleet' or ($1 = 'region' and region_id = $2) \
                         or ($1 = 'node' and id = $2) order by id";
    let concerned = on!(tx, |ex| sqlx::query_scalar::<_, NodeId>(NODES)
        .bind(new.scope.as_str())
        .bind(new.scope_id)
        .fetch_all(ex)
        .await)?;
    for node in concerned {
        nodes::bump(tx, node, nodes::Bump::CONFIG, now).await?;
    }
    tx.call(Topic::Nodes);
    Ok(row)
}

/// Returns the certificate that the master made for a node, as the transaction sees it.
///
/// # Errors
///
/// The store fails.
pub async fn node_tls(tx: &mut Tx, node: NodeId) -> Result<Option<NodeTlsRow>, StoreError> {
    Ok(on!(tx, |ex| sqlx::query_as::<_, NodeTlsRow>(NODE_TLS)
        .bind(node)
        .fetch_optional(ex)
        .await)?)
}

/// Keeps the certificate that the master made for a node, unless there is one.
///
/// # Errors
///
/// The store fails.
pub async fn insert_node_tls(
    tx: &mut Tx,
    row: &NodeTlsRow,
    now: Timestamp,
) -> Result<(), StoreError> {
    const SQL: &str = "insert into node_tls (node_id, certificate, private_key_enc, sha256, host, not_after, created_at, \
                       updated_at) values ($1, $2, $3, $4, $5, $6, $7, $7) on conflict (node_id) do nothing";
    on!(tx, |ex| sqlx::query(SQL)
        .bind(row.node_id)
        .bind(&row.certificate)
        .bind(&row.private_key_enc)
        .bind(&row.sha256)
        .bind(&row.host)
        .bind(row.not_after)
        .bind(now)
        .execute(ex)
        .await
        .rows())?;
    Ok(())
}

/// Forgets it: the next publication makes a new one.
///
/// # Errors
///
/// The store fails.
pub async fn drop_node_tls(tx: &mut Tx, node: NodeId) -> Result<(), StoreError> {
    const SQL: &str = "delete from node_tls where node_id = $1";
    on!(tx, |ex| sqlx::query(SQL)
        .bind(node)
        .execute(ex)
        .await
        .rows())?;
    Ok(())
}

const NODE_TLS: &str = "select node_id, certificate, private_key_enc, sha256, host, not_after from node_tls \
                        where node_id = $1";
