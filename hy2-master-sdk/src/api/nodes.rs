//! Nodes, their certificates, and the tokens with which they enrol.

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::extract::{Auth, Body, IfMatch, Params, Path, Tagged};
use super::problem::Problem;
use super::users::LiveSessions;
use super::{ApiState, Items, PageOf, errors};
use crate::auth::access::Operation;
use crate::domain::{DesiredState, NodeId, ObservedState};
use crate::service::enrolment::{CertificateView, CreateEnrolmentToken, EnrolmentTokenView};
use crate::service::fleet::NodeLogLine;
use crate::service::moment::Moment;
use crate::service::nodes::{NodeView, UpdateNode};
use crate::service::page::PageRequest;
use crate::store::node_list::NodeFilter;
use crate::store::observed::MetricsRow;

pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list_nodes))
        .routes(routes!(get_node, update_node, delete_node))
        .routes(routes!(set_node_state))
        .routes(routes!(get_node_metrics))
        .routes(routes!(list_node_sessions))
        .routes(routes!(get_node_logs))
        .routes(routes!(list_node_certificates))
        .routes(routes!(revoke_node_certificates))
        .routes(routes!(forfeit_node))
        .routes(routes!(list_enrolment_tokens, create_enrolment_token))
        .routes(routes!(revoke_enrolment_token))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct NodeQuery {
    /// Items of a page, 1 to 500.
    #[param(default = 50, minimum = 1, maximum = 500)]
    size: Option<u32>,
    /// `next` of the page before.
    after: Option<String>,
    /// Only in this state.
    #[param(value_type = Option<String>)]
    observed_state: Option<ObservedState>,
    /// Only with this in the name, in any case.
    search: Option<String>,
}

/// Lists nodes.
#[utoipa::path(get, path = "/nodes", tag = "nodes", params(NodeQuery),
    responses((status = 200, body = PageOf<NodeView>), errors::Common))]
async fn list_nodes(
    State(state): State<ApiState>,
    auth: Auth,
    Params(query): Params<NodeQuery>,
) -> Result<Json<PageOf<NodeView>>, Problem> {
    let access = auth.access(Operation::ListNodes)?;
    let page = PageRequest {
        size: query.size,
        after: query.after,
    };
    let filter = NodeFilter {
        observed_state: query.observed_state,
        search: query.search.filter(|search| !search.is_empty()),
    };
    let found = state.service.nodes(access, &filter, &page).await?;
    let open = state.service.open_alerts(access).await?;
    Ok(PageOf::of(found.map(|row| NodeView::of(row, &open))))
}

/// Returns a node.
#[utoipa::path(get, path = "/nodes/{id}", tag = "nodes", params(("id" = i64, Path)),
    responses((status = 200, body = NodeView), errors::Common))]
async fn get_node(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
) -> Result<Tagged<NodeView>, Problem> {
    let access = auth.access(Operation::GetNode)?;
    let row = state.service.node(access, NodeId(id)).await?;
    let open = state.service.open_alerts(access).await?;
    Ok(Tagged(row.rev, NodeView::of(row, &open)))
}

/// Changes what operators decide of a node. Absent fields stay, `null` clears.
#[utoipa::path(patch, path = "/nodes/{id}", tag = "nodes", request_body = UpdateNode,
    params(("id" = i64, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 200, body = NodeView), errors::Common))]
async fn update_node(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
    IfMatch(expected): IfMatch,
    Body(change): Body<UpdateNode>,
) -> Result<Tagged<NodeView>, Problem> {
    let access = auth.access(Operation::UpdateNode)?;
    let open = state.service.open_alerts(access).await?;
    let row = state
        .service
        .update_node(access, NodeId(id), expected, change)
        .await?;
    Ok(Tagged(row.rev, NodeView::of(row, &open)))
}

/// Removes a node.
#[utoipa::path(delete, path = "/nodes/{id}", tag = "nodes",
    params(("id" = i64, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 204), errors::Common))]
async fn delete_node(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
    IfMatch(expected): IfMatch,
) -> Result<StatusCode, Problem> {
    let access = auth.access(Operation::DeleteNode)?;
    state
        .service
        .delete_node(access, NodeId(id), expected)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What is wanted of a node.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NodeStateRequest {
    /// `active`, `cordoned`, `draining`, `maintenance` or `disabled`.
    #[schema(value_type = String)]
    state: DesiredState,
    /// Until when a drain may take.
    #[serde(default)]
    drain_deadline: Option<Moment>,
}

/// Decides whether and how a node serves.
#[utoipa::path(put, path = "/nodes/{id}/state", tag = "nodes", params(("id" = i64, Path)),
    request_body = NodeStateRequest, responses((status = 200, body = NodeView), errors::Common))]
async fn set_node_state(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
    Body(request): Body<NodeStateRequest>,
) -> Result<Tagged<NodeView>, Problem> {
    let access = auth.access(Operation::SetNodeState)?;
    let open = state.service.open_alerts(access).await?;
    let (wanted, deadline) = (request.state, request.drain_deadline);
    let row = state
        .service
        .set_node_state(access, NodeId(id), wanted, deadline)
        .await?;
    Ok(Tagged(row.rev, NodeView::of(row, &open)))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct MetricsQuery {
    /// 15, 300 or 3600.
    #[param(default = 15)]
    resolution_s: Option<i64>,
    /// From when; absent: an hour ago.
    from: Option<Moment>,
    /// Samples at most, 1 to 5000.
    #[param(default = 500)]
    size: Option<u32>,
}

/// A node's figures of one moment, or their averages.
#[derive(Serialize, ToSchema)]
struct NodeSample {
    /// When.
    at: Moment,
    /// CPU of the host.
    cpu_permille: i64,
    /// Memory of the host in use.
    memory_used_bytes: i64,
    /// Memory of the host.
    memory_total_bytes: i64,
    /// Load of the last minute.
    load1: f64,
    /// From clients to targets.
    tx_bytes_per_s: i64,
    /// From targets to clients.
    rx_bytes_per_s: i64,
    /// Connections.
    connections: i64,
    /// Users with a connection.
    users_online: i64,
    /// Median of the connections' round-trip times.
    rtt_p50_ms: f64,
    /// Of 95 %.
    rtt_p95_ms: f64,
    /// Packets lost of a thousand.
    loss_permille: i64,
    /// What waits to be accounted for.
    spool_bytes: i64,
    /// Panics since the agent's start.
    panics: i64,
}

impl From<MetricsRow> for NodeSample {
    fn from(row: MetricsRow) -> Self {
        Self {
            at: Moment(row.at),
            cpu_permille: row.cpu_permille,
            memory_used_bytes: row.memory_used_bytes,
            memory_total_bytes: row.memory_total_bytes,
            load1: row.load1,
            tx_bytes_per_s: row.tx_bytes_per_s,
            rx_bytes_per_s: row.rx_bytes_per_s,
            connections: row.connections,
            users_online: row.users_online,
            rtt_p50_ms: row.rtt_p50_ms,
            rtt_p95_ms: row.rtt_p95_ms,
            loss_permille: row.loss_permille,
            spool_bytes: row.spool_bytes,
            panics: row.panics,
        }
    }
}

/// Returns a node's figures over time.
#[utoipa::path(get, path = "/nodes/{id}/metrics", tag = "nodes",
    params(("id" = i64, Path), MetricsQuery),
    responses((status = 200, body = Items<NodeSample>), errors::Common))]
async fn get_node_metrics(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
    Params(query): Params<MetricsQuery>,
) -> Result<Json<Items<NodeSample>>, Problem> {
    let access = auth.access(Operation::GetNodeMetrics)?;
    let resolution = query.resolution_s.unwrap_or(15);
    let size = query.size.unwrap_or(500);
    let service = &state.service;
    Ok(Items::of(
        service
            .node_metrics(access, NodeId(id), resolution, query.from, size)
            .await?,
    ))
}

/// Lists a node's live connections.
#[utoipa::path(get, path = "/nodes/{id}/sessions", tag = "nodes", params(("id" = i64, Path)),
    responses((status = 200, body = LiveSessions), errors::Common))]
async fn list_node_sessions(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
) -> Result<Json<LiveSessions>, Problem> {
    let access = auth.access(Operation::ListNodeSessions)?;
    Ok(LiveSessions::of(
        state.service.node_sessions(access, NodeId(id)).await?,
    ))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct LogQuery {
    /// Lines at most, 1 to 1000.
    #[param(default = 100, minimum = 1, maximum = 1000)]
    lines: Option<u32>,
    /// `error`, `warn`, `info` or `debug`: lines as bad as this, or worse. From `debug` on, addresses of users and
    /// destinations are in them.
    #[param(default = "info")]
    level: Option<String>,
}

/// A line of a node's log.
#[derive(Debug, Serialize, ToSchema)]
struct LogLine {
    /// When it was written, by the node's clock.
    at: Moment,
    /// `error`, `warn`, `info` or `debug`.
    level: String,
    /// Where in the program.
    target: String,
    /// Text and fields.
    message: String,
}

impl From<NodeLogLine> for LogLine {
    fn from(line: NodeLogLine) -> Self {
        Self {
            at: Moment(line.at),
            level: line.level,
            target: line.target,
            message: line.message,
        }
    }
}

/// Returns the last lines of a node's log, the oldest first.
#[utoipa::path(get, path = "/nodes/{id}/logs", tag = "nodes", params(("id" = i64, Path), LogQuery),
    responses((status = 200, body = Items<LogLine>), errors::Common))]
async fn get_node_logs(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
    Params(query): Params<LogQuery>,
) -> Result<Json<Items<LogLine>>, Problem> {
    let access = auth.access(Operation::GetNodeLogs)?;
    let lines = query.lines.unwrap_or(100);
    let level = query.level.as_deref().unwrap_or("info");
    let read = state.service.node_logs(access, NodeId(id), lines, level);
    Ok(Items::of(read.await?))
}

/// Lists a node's certificates.
#[utoipa::path(get, path = "/nodes/{id}/certificates", tag = "nodes", params(("id" = i64, Path)),
    responses((status = 200, body = Items<CertificateView>), errors::Common))]
async fn list_node_certificates(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
) -> Result<Json<Items<CertificateView>>, Problem> {
    let access = auth.access(Operation::ListNodeCertificates)?;
    Ok(Items::of(
        state.service.node_certificates(access, NodeId(id)).await?,
    ))
}

/// Why an identity is revoked.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RevokeRequest {
    /// For the record.
    #[serde(default)]
    reason: String,
}

/// Revokes a node's identity: its streams are cut, and it has to enrol anew.
#[utoipa::path(post, path = "/nodes/{id}/certificates/revoke", tag = "nodes",
    params(("id" = i64, Path)), request_body = RevokeRequest,
    responses((status = 200, body = NodeView), errors::Common))]
async fn revoke_node_certificates(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
    Body(request): Body<RevokeRequest>,
) -> Result<Tagged<NodeView>, Problem> {
    let access = auth.access(Operation::RevokeNodeCertificates)?;
    let open = state.service.open_alerts(access).await?;
    let service = &state.service;
    let row = service
        .revoke_node_certificates(access, NodeId(id), &request.reason)
        .await?;
    Ok(Tagged(row.rev, NodeView::of(row, &open)))
}

/// What was written off.
#[derive(Debug, Serialize, ToSchema)]
struct Forfeited {
    /// Slices of quotas.
    slices: u64,
}

/// Writes off what a node that is away was lent of quotas and places, so that its users can have it on other nodes. What
/// it reports should it come back is counted all the same. Revoking or deleting a node does this, too.
#[utoipa::path(post, path = "/nodes/{id}/forfeit", tag = "nodes",
    params(("id" = i64, Path)),
    responses((status = 200, body = Forfeited), errors::Common))]
async fn forfeit_node(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
) -> Result<Json<Forfeited>, Problem> {
    let access = auth.access(Operation::ForfeitNode)?;
    let slices = state.service.forfeit_node(access, NodeId(id)).await?;
    Ok(Json(Forfeited { slices }))
}

/// An enrolment token, shown once.
#[derive(Serialize, ToSchema)]
struct CreatedEnrolmentToken {
    /// For `hy2-agent enrol`.
    token: String,
    /// `sha256:` and the hash of the authority's public key, for the agent to pin.
    ca_pin: String,
    /// What is known of it.
    #[serde(flatten)]
    view: EnrolmentTokenView,
}

/// Lists enrolment tokens, the newest first.
#[utoipa::path(get, path = "/enrolment-tokens", tag = "nodes",
    responses((status = 200, body = Items<EnrolmentTokenView>), errors::Common))]
async fn list_enrolment_tokens(
    State(state): State<ApiState>,
    auth: Auth,
) -> Result<Json<Items<EnrolmentTokenView>>, Problem> {
    let access = auth.access(Operation::ListEnrolmentTokens)?;
    Ok(Items::of(state.service.enrolment_tokens(access).await?))
}

/// Makes an enrolment token for one node.
#[utoipa::path(post, path = "/enrolment-tokens", tag = "nodes",
    request_body = CreateEnrolmentToken,
    responses((status = 201, body = CreatedEnrolmentToken), errors::Common))]
async fn create_enrolment_token(
    State(state): State<ApiState>,
    auth: Auth,
    Body(new): Body<CreateEnrolmentToken>,
) -> Result<(StatusCode, Json<CreatedEnrolmentToken>), Problem> {
    let access = auth.access(Operation::CreateEnrolmentToken)?;
    let (row, token, ca_pin) = state.service.create_enrolment_token(access, new).await?;
    let token = token.expose_secret().to_owned();
    Ok((
        StatusCode::CREATED,
        Json(CreatedEnrolmentToken {
            token,
            ca_pin,
            view: row.into(),
        }),
    ))
}

/// Makes an unused enrolment token worthless.
#[utoipa::path(delete, path = "/enrolment-tokens/{id}", tag = "nodes",
    params(("id" = Uuid, Path)), responses((status = 204), errors::Common))]
async fn revoke_enrolment_token(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, Problem> {
    let access = auth.access(Operation::RevokeEnrolmentToken)?;
    state.service.revoke_enrolment_token(access, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
