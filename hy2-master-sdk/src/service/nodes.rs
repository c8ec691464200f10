//! Nodes, as operators see and decide them.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::moment::{Moment, present};
use super::page::{Page, PageRequest};
use super::regions::check_region;
use super::{FieldIssue, Record, Service, ServiceError, record};
use crate::auth::access::Access;
use crate::domain::{DesiredState, NodeId, RegionId};
use crate::store::config_list;
use crate::store::node_list::{self, NodeFilter};
use crate::store::nodes::{self, NodeChange, NodeRow};

/// A node as the API shows it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Node)]
pub struct NodeView {
    /// Number.
    pub id: i64,
    /// UUID, also in its certificate.
    pub uid: Uuid,
    /// Name.
    pub name: String,
    /// Host that clients connect to.
    pub public_host: String,
    /// Port that clients connect to.
    pub listen_port: i64,
    /// Region.
    pub region_id: Option<i64>,
    /// Country, two letters.
    pub country: Option<String>,
    /// Who rents it out.
    pub provider: Option<String>,
    /// Tags.
    pub tags: Vec<String>,
    /// Share of users that the assignment task gives it.
    pub weight: i64,
    /// Connections that it can carry.
    pub capacity_sessions: Option<i64>,
    /// Raw bytes times this, in parts per billion, are billed.
    pub billing_multiplier: i64,
    /// Note.
    pub note: String,
    /// `active`, `cordoned`, `draining`, `maintenance` or `disabled`.
    pub desired_state: String,
    /// Until when a drain may take.
    pub drain_deadline: Option<Moment>,
    /// Revision that the node should have.
    pub desired_rev: i64,
    /// Revision that the node says it has.
    pub applied_rev: i64,
    /// Revision that the node refused, if the newest was refused.
    pub refused_rev: Option<i64>,
    /// Why, by field.
    #[schema(value_type = Option<Object>)]
    pub refused_errors: Option<Value>,
    /// `pending`, `enrolling`, `online`, `suspect`, `offline`, `error` or `revoked`.
    pub observed_state: String,
    /// Why.
    pub state_reason: String,
    /// Since when.
    pub state_since: Moment,
    /// What the node says of its server.
    pub engine_state: String,
    /// Version of the agent.
    pub agent_version: String,
    /// Name of the host.
    pub hostname: String,
    /// Addresses that the server is bound to.
    pub listening: Vec<String>,
    /// Last heartbeat.
    pub last_seen_at: Option<Moment>,
    /// Connections.
    pub connections: i64,
    /// Users with a connection.
    pub users_online: i64,
    /// Alerts of it that are open.
    pub open_alerts: i64,
    /// Revision of what operators decide, also the `ETag`.
    pub rev: i64,
    /// Made at.
    pub created_at: Moment,
}

impl NodeView {
    /// Puts together a node and the number of its open alerts, out of those of all nodes.
    #[must_use]
    pub fn of(row: NodeRow, open_alerts: &HashMap<NodeId, i64>) -> Self {
        Self {
            open_alerts: open_alerts.get(&row.id).copied().unwrap_or(0),
            id: row.id.0,
            uid: row.uid,
            name: row.name,
            public_host: row.public_host,
            listen_port: row.listen_port,
            region_id: row.region_id.map(|id| id.0),
            country: row.country,
            provider: row.provider,
            tags: row.tags.0,
            weight: row.weight,
            capacity_sessions: row.capacity_sessions,
            billing_multiplier: row.billing_multiplier,
            note: row.note,
            desired_state: row.desired_state.as_str().to_owned(),
            drain_deadline: row.drain_deadline.map(Moment),
            desired_rev: row.desired_rev,
            applied_rev: row.applied_rev,
            refused_rev: row.refused_rev,
            refused_errors: row.refused_errors.map(|errors| errors.0),
            observed_state: row.observed_state.as_str().to_owned(),
            state_reason: row.state_reason,
            state_since: Moment(row.state_since),
            engine_state: row.engine_state.as_str().to_owned(),
            agent_version: row.agent_version,
            hostname: row.hostname,
            listening: row.listening.0,
            last_seen_at: row.last_seen_at.map(Moment),
            connections: row.connections,
            users_online: row.users_online,
            rev: row.rev,
            created_at: Moment(row.created_at),
        }
    }
}

/// What changes of a node; absent fields stay, `null` clears.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateNode {
    /// Name.
    pub name: Option<String>,
    /// Host that clients connect to.
    pub public_host: Option<String>,
    /// Port that clients connect to.
    pub listen_port: Option<u16>,
    /// Region.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub region_id: Option<Option<i64>>,
    /// Country, two letters.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pub country: Option<Option<String>>,
    /// Who rents it out.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pub provider: Option<Option<String>>,
    /// Tags.
    pub tags: Option<Vec<String>>,
    /// Share of users, 0 to 10000.
    pub weight: Option<i64>,
    /// Connections that it can carry.
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<i64>)]
    pub capacity_sessions: Option<Option<i64>>,
    /// Raw bytes times this, in parts per billion, are billed.
    pub billing_multiplier: Option<i64>,
    /// Note.
    pub note: Option<String>,
}

impl Service {
    /// Lists nodes.
    ///
    /// # Errors
    ///
    /// [`ServiceError::Invalid`] of the page, or the store fails.
    pub async fn nodes(
        &self,
        _access: Access<'_>,
        filter: &NodeFilter,
        page: &PageRequest,
    ) -> Result<Page<NodeRow>, ServiceError> {
        let limit = page.limit()?;
        let after = page.key::<i64>()?.map(NodeId);
        let rows = node_list::list(self.store(), filter, after, limit + 1).await?;
        Ok(Page::new(rows, limit, |row| row.id.0))
    }

    /// Returns a node.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`].
    pub async fn node(&self, _access: Access<'_>, id: NodeId) -> Result<NodeRow, ServiceError> {
        Ok(self.store().node(id).await?)
    }

    /// Changes what operators decide of a node. One that goes to a region with another obfuscation accepts for a day
    /// the one it had, by a revision of its own configuration.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`], [`ServiceError::Stale`], [`ServiceError::Invalid`], also of `region_id` and
    /// `listen_port` if that would cut clients or the configuration of the region does not go with that of the node.
    pub async fn update_node(
        &self,
        access: Access<'_>,
        id: NodeId,
        expected: Option<i64>,
        change: UpdateNode,
    ) -> Result<NodeRow, ServiceError> {
        check(&change)?;
        let now = self.now();
        let mut tx = self.store().begin().await?;
        if change.region_id.is_some() || change.listen_port.is_some() {
            // Before the node is locked, as who puts a configuration in force does it.
            config_list::lock(&mut tx).await?;
        }
        let old = nodes::get(&mut tx, id).await?;
        check_region(&mut tx, "region_id", change.region_id.flatten()).await?;
        let mut row = nodes::update(&mut tx, id, expected, &to_store(change), now).await?;
        if row.region_id != old.region_id || row.listen_port != old.listen_port {
            self.configure_moved(&mut tx, access, [&old, &row]).await?;
            row = nodes::get(&mut tx, id).await?;
        }
        record(
            &mut tx,
            access,
            node_record(Some(&old), Some(&row), "node.updated"),
            now,
        )
        .await?;
        tx.commit().await?;
        Ok(row)
    }

    /// Removes a node; its certificate is worth nothing any more, and it is told to serve nobody.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`], [`ServiceError::Stale`]; [`ServiceError::Conflict`] of a node that is connected and serves.
    pub async fn delete_node(
        &self,
        access: Access<'_>,
        id: NodeId,
        expected: Option<i64>,
    ) -> Result<(), ServiceError> {
        let now = self.now();
        let mut tx = self.store().begin().await?;
        let node = nodes::get_for_update(&mut tx, id).await?;
        let connected = node.observed_state.is_connected();
        let serving = !matches!(
            node.desired_state,
            DesiredState::Maintenance | DesiredState::Disabled
        );
        if connected && serving {
            let detail = "the node serves, and what it has not reported yet would be lost: disable it first, and wait for \
                          its last report (some 10 s)";
            return Err(ServiceError::conflict("node_serving", detail));
        }
        let old = nodes::delete(&mut tx, id, expected, now).await?;
        record(
            &mut tx,
            access,
            node_record(Some(&old), None, "node.deleted"),
            now,
        )
        .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Decides whether and how a node serves.
    ///
    /// # Errors
    ///
    /// [`ServiceError::NotFound`], [`ServiceError::Invalid`] of the deadline.
    pub async fn set_node_state(
        &self,
        access: Access<'_>,
        id: NodeId,
        state: DesiredState,
        deadline: Option<Moment>,
    ) -> Result<NodeRow, ServiceError> {
        let now = self.now();
        let deadline = deadline.map(|at| at.0);
        if deadline.is_some() && state != DesiredState::Draining {
            return Err(ServiceError::invalid(
                "drain_deadline",
                "goes with draining only",
            ));
        }
        if deadline.is_some_and(|deadline| !deadline.is_rfc_3339()) {
            return Err(ServiceError::invalid(
                "drain_deadline",
                "must be between the years 0 and 9999",
            ));
        }
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Err(ServiceError::invalid(
                "drain_deadline",
                "must be in the future",
            ));
        }
        let mut tx = self.store().begin().await?;
        let old = nodes::get(&mut tx, id).await?;
        let row = nodes::set_desired_state(&mut tx, id, state, deadline, now).await?;
        record(
            &mut tx,
            access,
            node_record(Some(&old), Some(&row), "node.state_set"),
            now,
        )
        .await?;
        tx.commit().await?;
        Ok(row)
    }
}

fn to_store(change: UpdateNode) -> NodeChange {
    NodeChange {
        name: change.name,
        public_host: change.public_host,
        listen_port: change.listen_port,
        region_id: change.region_id.map(|id| id.map(RegionId)),
        country: change.country,
        provider: change.provider,
        tags: change.tags,
        weight: change.weight,
        capacity_sessions: change.capacity_sessions,
        billing_multiplier: change.billing_multiplier,
        note: change.note,
    }
}

fn check(change: &UpdateNode) -> Result<(), ServiceError> {
    let mut issues = Vec::new();
    let mut expect = |holds: bool, field: &str, message: &str| {
        if !holds {
            issues.push(FieldIssue::new(field, message));
        }
    };
    let named = |name: &String| (1..=64).contains(&name.len()) && !name.contains(char::is_control);
    expect(
        change.name.as_ref().is_none_or(named),
        "name",
        "must have 1 to 64 bytes",
    );
    let host = |host: &String| hy2_proto::address::HostRef::parse(host).is_ok();
    expect(
        change.public_host.as_ref().is_none_or(host),
        "public_host",
        "is not a host",
    );
    expect(
        change.listen_port != Some(0),
        "listen_port",
        "must be between 1 and 65535",
    );
    let weight = |weight: i64| (0..=10_000).contains(&weight);
    expect(
        change.weight.is_none_or(weight),
        "weight",
        "must be between 0 and 10000",
    );
    let multiplier = |value: i64| (0..=1_000_000_000_000).contains(&value);
    let message = "must be between 0 and 1000000000000";
    expect(
        change.billing_multiplier.is_none_or(multiplier),
        "billing_multiplier",
        message,
    );
    let capacity = change.capacity_sessions.flatten();
    expect(
        capacity.is_none_or(|most| most > 0),
        "capacity_sessions",
        "must be positive",
    );
    let country = change.country.clone().flatten();
    let letters = |code: String| code.len() == 2 && code.bytes().all(|b| b.is_ascii_uppercase());
    expect(
        country.is_none_or(letters),
        "country",
        "must be two capital letters",
    );
    let note = |note: &String| note.len() <= 2_000;
    expect(
        change.note.as_ref().is_none_or(note),
        "note",
        "must have at most 2000 bytes",
    );
    let tags = |tags: &Vec<String>| {
        tags.len() <= 32 && tags.iter().all(|tag| (1..=64).contains(&tag.len()))
    };
    let message = "must have at most 32 entries of 1 to 64 bytes";
    expect(change.tags.as_ref().is_none_or(tags), "tags", message);
    if issues.is_empty() {
        Ok(())
    } else {
        Err(ServiceError::Invalid(issues))
    }
}

pub(super) fn node_record<'a>(
    before: Option<&NodeRow>,
    after: Option<&NodeRow>,
    topic: &'a str,
) -> Record<'a> {
    // What operators decide; what nodes report is not part of the audit log.
    let view = |row: &NodeRow| {
        json!({
            "name": row.name, "public_host": row.public_host, "listen_port": row.listen_port,
            "region_id": row.region_id, "country": row.country, "provider": row.provider,
            "tags": row.tags.0, "weight": row.weight, "capacity_sessions": row.capacity_sessions,
            "billing_multiplier": row.billing_multiplier, "note": row.note,
            "desired_state": row.desired_state, "drain_deadline": row.drain_deadline,
            "desired_rev": row.desired_rev,
        })
    };
    Record {
        kind: "node",
        id: before
            .or(after)
            .map(|row| row.id.to_string())
            .unwrap_or_default(),
        before: before.map(view),
        after: after.map(view),
        owner: None,
        topic,
    }
}
