//! The ends of certificates: figures all the time; alerts, events and warnings while there is time to do something.

use std::sync::Arc;

use serde_json::json;

use super::driver::TaskError;
use crate::core::Core;
use crate::domain::{NodeId, Timestamp};
use crate::store::cluster::{self, Fence};
use crate::store::{alerts, events};

/// A certificate whose end is near.
struct Ending {
    node: Option<NodeId>,
    /// What ends, for people.
    what: String,
    severity: &'static str,
    not_after: Timestamp,
}

/// Shows how much time is left, on every master.
pub(super) async fn figures(core: Arc<Core>) -> Result<(), TaskError> {
    let now = core.now();
    for row in core.store.authorities().await? {
        // Of one that is leaving nobody has to know.
        if row.state != "retired" {
            metrics::gauge!("hy2_master_authority_expires_seconds", "state" => row.state)
                .set(seconds_left(row.not_after, now));
        }
    }
    let ends = core.store.certificate_ends().await?;
    let soonest = ends.iter().map(|end| end.not_after).min();
    // Without nodes there is nothing that could end: never, as Prometheus says it.
    let left = soonest.map_or(f64::INFINITY, |end| seconds_left(end, now));
    metrics::gauge!("hy2_master_node_certificate_expires_seconds").set(left);
    let near = ends
        .iter()
        .filter(|end| severity(end.not_after, now, NODE_WARNING, NODE_CRITICAL).is_some());
    metrics::gauge!("hy2_master_node_certificates_expiring")
        .set(f64::from(u32::try_from(near.count()).unwrap_or(u32::MAX)));
    Ok(())
}

/// Opens and closes the alerts, once in the cluster.
pub(super) async fn alert(core: Arc<Core>, fence: Option<Fence>) -> Result<(), TaskError> {
    let now = core.now();
    let mut authorities = Vec::new();
    // The next one takes over before the active one ends: its end is not near by then.
    for row in core.store.authorities().await? {
        let severity = severity(row.not_after, now, AUTHORITY_WARNING, AUTHORITY_CRITICAL);
        if let (Some(severity), "active") = (severity, row.state.as_str()) {
            authorities.push(Ending {
                node: None,
                what: "the private authority of the fleet".to_owned(),
                severity,
                not_after: row.not_after,
            });
        }
    }
    let mut nodes = Vec::new();
    for end in core.store.certificate_ends().await? {
        if let Some(severity) = severity(end.not_after, now, NODE_WARNING, NODE_CRITICAL) {
            nodes.push(Ending {
                node: Some(end.node_id),
                what: format!("the certificate of {}", end.name),
                severity,
                not_after: end.not_after,
            });
        }
    }
    let mut tx = core.store.begin().await?;
    if let Some(fence) = &fence {
        cluster::check_fence(&mut tx, fence).await?;
    }
    for (rule, topic, endings) in [
        (
            "authority_expiring",
            "authority.certificate_expiring",
            authorities,
        ),
        ("certificate_expiring", "node.certificate_expiring", nodes),
    ] {
        for ending in &endings {
            let Ending {
                node,
                what,
                severity,
                not_after,
            } = ending;
            let message = format!("{what} ends at {not_after}");
            let news = alerts::raise(&mut tx, *node, rule, severity, &message, now).await?;
            if news {
                let key = node.map_or_else(String::new, |node| node.to_string());
                let payload = json!({
                    "severity": severity, "message": message, "not_after": not_after.to_string(),
                });
                events::emit(&mut tx, topic, &key, &payload, None, now).await?;
                tracing::warn!(severity, %not_after, "{what} ends soon");
            }
        }
        let still: Vec<_> = endings.iter().map(|ending| ending.node).collect();
        alerts::close_others(&mut tx, rule, &still, now).await?;
    }
    tx.commit().await?;
    Ok(())
}

fn severity(
    not_after: Timestamp,
    now: Timestamp,
    warning: i64,
    critical: i64,
) -> Option<&'static str> {
    match not_after.0.saturating_sub(now.0) {
        left if left < critical => Some("critical"),
        left if left < warning => Some("warning"),
        _ => None,
    }
}

/// Negative once it is over.
fn seconds_left(not_after: Timestamp, now: Timestamp) -> f64 {
    let left = not_after.0.saturating_sub(now.0) / 1_000;
    // Exact for millions of years.
    left as f64
}

/// An exchange of the authority wants to be planned, and every node has to have been there meanwhile.
const AUTHORITY_WARNING: i64 = 365 * Timestamp::DAY;

/// What it signs lives as long as this: keys that sign manifests are made 60 days before they are needed.
const AUTHORITY_CRITICAL: i64 = 60 * Timestamp::DAY;

/// Nodes renew with 10 days left; one that has not is away, or cannot.
const NODE_WARNING: i64 = 7 * Timestamp::DAY;
const NODE_CRITICAL: i64 = Timestamp::DAY;
