//! Alerts: what somebody should look at, open until it is over or somebody has.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Rows as _, Store, StoreError, Tx, events, on};
use crate::domain::{NodeId, Timestamp};

/// Most alerts of a node that are open at once: what rules there are, nodes say.
pub const MAX_OPEN: i64 = 32;

/// An alert as stored.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct AlertRow {
    /// Its id.
    pub id: Uuid,
    /// Of which node; `None`: of the fleet.
    pub node_id: Option<NodeId>,
    /// Stable, for programs: `spool_nearly_full`.
    pub rule: String,
    /// `info`, `warning` or `critical`.
    pub severity: String,
    /// For people.
    pub message: String,
    /// Since when.
    pub opened_at: Timestamp,
    /// When it was said last.
    pub updated_at: Timestamp,
    /// When it was over, or somebody closed it.
    pub closed_at: Option<Timestamp>,
}

impl AlertRow {
    /// Returns what events and the audit log say of it.
    #[must_use]
    pub fn told(&self) -> Value {
        json!({
            "node_id": self.node_id, "rule": self.rule, "severity": self.severity, "message": self.message,
            "opened_at": self.opened_at.to_string(),
            "closed_at": self.closed_at.map(|at| at.to_string()),
        })
    }
}

/// Which alerts.
#[derive(Debug, Clone, Copy, Default)]
pub struct AlertFilter {
    /// Only open ones, or only closed ones.
    pub open: Option<bool>,
    /// Only of this node.
    pub node: Option<NodeId>,
}

macro_rules! columns {
    () => {
        "id, node_id, rule, severity, message, opened_at, updated_at, closed_at"
    };
}

/// Opens the alert of a rule, of a node or of the fleet, or refreshes the open one. Returns whether that is news, and
/// told by an event: it was not open, or not as severe. A node that has [`MAX_OPEN`] open gets no other.
///
/// # Errors
///
/// The store fails.
pub async fn raise(
    tx: &mut Tx,
    node: Option<NodeId>,
    rule: &str,
    severity: &str,
    message: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    const OPEN: &str = concat!(
        "select ",
        columns!(),
        " from alerts where coalesce(node_id, 0) = $1 and closed_at is null"
    );
    const REFRESH: &str =
        "update alerts set message = $2, severity = $3, updated_at = $4 where id = $1";
    const INSERT: &str = "insert into alerts (id, node_id, rule, severity, message, opened_at, updated_at) \
                          values ($1, $2, $3, $4, $5, $6, $6)";
    let open: Vec<AlertRow> = on!(tx, |ex| sqlx::query_as(OPEN)
        .bind(node.unwrap_or(NodeId(0)))
        .fetch_all(ex)
        .await)?;
    let known = open.iter().find(|alert| alert.rule == rule);
    let full = i64::try_from(open.len()).is_ok_and(|open| open >= MAX_OPEN);
    if known.is_none() && node.is_some() && full {
        return Ok(false);
    }
    let before = known.map(|known| known.severity.clone());
    let alert = AlertRow {
        id: known.map_or_else(Uuid::now_v7, |known| known.id),
        node_id: node,
        rule: rule.to_owned(),
        severity: severity.to_owned(),
        message: message.to_owned(),
        opened_at: known.map_or(now, |known| known.opened_at),
        updated_at: now,
        closed_at: None,
    };
    if before.is_some() {
        on!(tx, |ex| sqlx::query(REFRESH)
            .bind(alert.id)
            .bind(message)
            .bind(severity)
            .bind(now)
            .execute(ex)
            .await
            .rows())?;
    } else {
        on!(tx, |ex| sqlx::query(INSERT)
            .bind(alert.id)
            .bind(node)
            .bind(rule)
            .bind(severity)
            .bind(message)
            .bind(now)
            .execute(ex)
            .await
            .rows())?;
    }
    let news = before.is_none_or(|before| severity == "critical" && before != "critical");
    if news {
        let key = alert.id.to_string();
        events::emit(tx, "alert.raised", &key, &alert.told(), None, now).await?;
    }
    Ok(news)
}

/// Closes the alerts of a rule, of the fleet and of all nodes but those named.
///
/// # Errors
///
/// The store fails.
pub async fn close_others(
    tx: &mut Tx,
    rule: &str,
    still: &[Option<NodeId>],
    now: Timestamp,
) -> Result<(), StoreError> {
    const OPEN: &str = "select id, node_id from alerts where rule = $1 and closed_at is null";
    let open: Vec<(Uuid, Option<NodeId>)> =
        on!(tx, |ex| sqlx::query_as(OPEN).bind(rule).fetch_all(ex).await)?;
    for (id, node) in open {
        if !still.contains(&node) {
            over(tx, id, now).await?;
        }
    }
    Ok(())
}

/// Closes an alert because it is over, and tells so. Nothing happens to one that is not open.
///
/// # Errors
///
/// The store fails.
pub async fn over(tx: &mut Tx, id: Uuid, now: Timestamp) -> Result<(), StoreError> {
    if let Some(alert) = close(tx, id, now).await? {
        let key = id.to_string();
        events::emit(tx, "alert.closed", &key, &alert.told(), None, now).await?;
    }
    Ok(())
}

/// Closes an alert without telling anybody; `None` if it is not open.
///
/// # Errors
///
/// The store fails.
pub async fn close(tx: &mut Tx, id: Uuid, now: Timestamp) -> Result<Option<AlertRow>, StoreError> {
    const SQL: &str = concat!(
        "update alerts set closed_at = $2 where id = $1 and closed_at is null returning ",
        columns!()
    );
    Ok(on!(tx, |ex| sqlx::query_as(SQL)
        .bind(id)
        .bind(now)
        .fetch_optional(ex)
        .await)?)
}

/// Returns an alert.
///
/// # Errors
///
/// [`StoreError::NotFound`], or the store fails.
pub async fn get(store: &Store, id: Uuid) -> Result<AlertRow, StoreError> {
    const SQL: &str = concat!("select ", columns!(), " from alerts where id = $1");
    let row = on!(read store, |ex| sqlx::query_as(SQL).bind(id).fetch_optional(ex).await)?;
    row.ok_or(StoreError::NotFound("alert"))
}

/// Returns the open alerts of a node.
///
/// # Errors
///
/// The store fails.
pub async fn open_of(store: &Store, node: NodeId) -> Result<Vec<AlertRow>, StoreError> {
    const SQL: &str = concat!(
        "select ",
        columns!(),
        " from alerts where node_id = $1 and closed_at is null"
    );
    Ok(on!(read store, |ex| sqlx::query_as(SQL).bind(node).fetch_all(ex).await)?)
}

/// Lists alerts, those that were opened last first, behind the one that was opened then and has that id.
///
/// # Errors
///
/// The store fails.
pub async fn list(
    store: &Store,
    filter: AlertFilter,
    before: Option<(i64, Uuid)>,
    limit: u32,
) -> Result<Vec<AlertRow>, StoreError> {
    const SQL: &str = concat!(
        "select ",
        columns!(),
        " from alerts where ($1 is null or node_id = $1) and ($2 is null or (closed_at is null) = $2) \
         and (opened_at < $3 or (opened_at = $3 and id < $4)) order by opened_at desc, id desc limit $5"
    );
    let (opened_at, id) = before.unwrap_or((i64::MAX, Uuid::max()));
    Ok(on!(read store, |ex| sqlx::query_as(SQL)
        .bind(filter.node)
        .bind(filter.open)
        .bind(opened_at)
        .bind(id)
        .bind(i64::from(limit))
        .fetch_all(ex)
        .await)?)
}

/// Returns how many alerts of each node are open; a node without one is absent.
///
/// # Errors
///
/// The store fails.
pub async fn open_counts(store: &Store) -> Result<Vec<(NodeId, i64)>, StoreError> {
    const SQL: &str = "select node_id, count(*) from alerts where closed_at is null and node_id is not null \
                       group by node_id";
    Ok(on!(read store, |ex| sqlx::query_as(SQL).fetch_all(ex).await)?)
}
