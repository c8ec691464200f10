//! Alerts: what somebody should look at, open until it is over.

use uuid::Uuid;

use super::{Rows as _, StoreError, Tx, on};
use crate::domain::{NodeId, Timestamp};

/// Opens the alert of a rule, of a node or of the fleet, or refreshes the open one. Returns whether that is news: it
/// was not open, or not as severe.
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
    const OPEN: &str = "select severity from alerts where coalesce(node_id, 0) = $1 and rule = $2 \
                        and closed_at is null";
    const REFRESH: &str = "update alerts set message = $3, severity = $4, updated_at = $5 \
                           where coalesce(node_id, 0) = $1 and rule = $2 and closed_at is null";
    const INSERT: &str = "insert into alerts (id, node_id, rule, severity, message, opened_at, updated_at) \
                          values ($1, $2, $3, $4, $5, $6, $6)";
    let of = node.unwrap_or(NodeId(0));
    let open: Option<String> = on!(tx, |ex| sqlx::query_scalar(OPEN)
        .bind(of)
        .bind(rule)
        .fetch_optional(ex)
        .await)?;
    if open.is_some() {
        on!(tx, |ex| sqlx::query(REFRESH)
            .bind(of)
            .bind(rule)
            .bind(message)
            .bind(severity)
            .bind(now)
            .execute(ex)
            .await
            .rows())?;
    } else {
        on!(tx, |ex| sqlx::query(INSERT)
            .bind(Uuid::now_v7())
            .bind(node)
            .bind(rule)
            .bind(severity)
            .bind(message)
            .bind(now)
            .execute(ex)
            .await
            .rows())?;
    }
    Ok(open.is_none_or(|before| severity == "critical" && before != "critical"))
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
    const CLOSE: &str = "update alerts set closed_at = $2, updated_at = $2 where id = $1";
    let open: Vec<(Uuid, Option<NodeId>)> =
        on!(tx, |ex| sqlx::query_as(OPEN).bind(rule).fetch_all(ex).await)?;
    for (id, node) in open {
        if !still.contains(&node) {
            on!(tx, |ex| sqlx::query(CLOSE)
                .bind(id)
                .bind(now)
                .execute(ex)
                .await
                .rows())?;
        }
    }
    Ok(())
}
