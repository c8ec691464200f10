//! Settings, the audit log, the document, health and metrics.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Auth, Body, IfMatch, Params, Path, Tagged};
use super::problem::Problem;
use super::{ApiState, Items, PageOf, errors};
use crate::auth::access::Operation;
use crate::service::Service;
use crate::service::moment::SecretText;
use crate::service::page::PageRequest;
use crate::service::system::{AuditView, SettingView};
use crate::store::audit::AuditFilter;

pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list_audit))
        .routes(routes!(verify_audit))
        .routes(routes!(list_settings))
        .routes(routes!(get_setting, put_setting))
        .routes(routes!(create_backup))
}

/// A backup to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct BackupRequest {
    /// At least 12 characters; without it the backup does not open.
    passphrase: SecretText,
}

/// Makes a backup and sends it: the whole store, encrypted with the passphrase. The master key file
/// is not in it and has to be kept apart.
#[utoipa::path(post, path = "/backups", tag = "backups", request_body = BackupRequest,
    responses((status = 200, description = "The backup", content_type = "application/octet-stream"),
        errors::Common))]
async fn create_backup(
    State(state): State<ApiState>,
    auth: Auth,
    Body(request): Body<BackupRequest>,
) -> Result<Response, Problem> {
    let access = auth.access(Operation::CreateBackup)?;
    let pieces = state
        .service
        .create_backup(access, request.passphrase.0)
        .await?;
    let name = "attachment; filename=\"hy2.backup\"";
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::CONTENT_DISPOSITION, name),
    ];
    let stream = tokio_stream::wrappers::ReceiverStream::new(pieces);
    Ok((headers, axum::body::Body::from_stream(stream)).into_response())
}

/// Health for supervisors, without credential; metrics for whoever has the right.
pub(super) fn health() -> Router<ApiState> {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
}

async fn ready(State(state): State<ApiState>) -> Response {
    readiness(&state.service).await
}

/// Says whether the store is there.
pub(crate) async fn readiness(service: &Service) -> Response {
    match service.is_ready().await {
        true => "ready\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "store\n").into_response(),
    }
}

/// Returns metrics in the Prometheus text format.
pub(super) async fn metrics(
    State(state): State<ApiState>,
    auth: Auth,
) -> Result<Response, Problem> {
    auth.access(Operation::GetMetrics)?;
    let text = (state.metrics)();
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

/// Returns the OpenAPI document.
#[expect(clippy::unused_async, reason = "handlers are")]
pub(super) async fn openapi(auth: Auth, document: Arc<str>) -> Result<Response, Problem> {
    auth.access(Operation::GetOpenapi)?;
    let media = [(header::CONTENT_TYPE, "application/json")];
    Ok((media, document.to_string()).into_response())
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct AuditQuery {
    /// Items of a page, 1 to 500.
    #[param(default = 50, minimum = 1, maximum = 500)]
    size: Option<u32>,
    /// `next` of the page before.
    after: Option<String>,
    /// Only by this actor.
    actor: Option<String>,
    /// Only this action.
    action: Option<String>,
    /// Only about this kind of object.
    object_kind: Option<String>,
    /// Only about this object.
    object_id: Option<String>,
}

/// Lists audit entries, the newest first.
#[utoipa::path(get, path = "/audit", tag = "audit", params(AuditQuery),
    responses((status = 200, body = PageOf<AuditView>), errors::Common))]
async fn list_audit(
    State(state): State<ApiState>,
    auth: Auth,
    Params(query): Params<AuditQuery>,
) -> Result<Json<PageOf<AuditView>>, Problem> {
    let access = auth.access(Operation::ListAudit)?;
    let page = PageRequest {
        size: query.size,
        after: query.after,
    };
    let filter = AuditFilter {
        actor: query.actor,
        action: query.action,
        object_kind: query.object_kind,
        object_id: query.object_id,
    };
    Ok(PageOf::of(
        state.service.audit(access, &filter, &page).await?,
    ))
}

/// What a verification found.
#[derive(Serialize, ToSchema)]
struct AuditVerification {
    /// Whether everything fits.
    intact: bool,
    /// Entries that fit.
    entries: i64,
    /// The first that does not.
    broken_at: Option<i64>,
    /// Signed checkpoints that agree with the chain.
    checkpoints: i64,
}

/// Recomputes the chain of the audit log and checks every signature.
#[utoipa::path(get, path = "/audit/verify", tag = "audit",
    responses((status = 200, body = AuditVerification), errors::Common))]
async fn verify_audit(
    State(state): State<ApiState>,
    auth: Auth,
) -> Result<Json<AuditVerification>, Problem> {
    let found = state
        .service
        .verify_audit(auth.access(Operation::VerifyAudit)?)
        .await?;
    Ok(Json(AuditVerification {
        intact: found.broken_at.is_none(),
        entries: found.entries,
        broken_at: found.broken_at,
        checkpoints: found.checkpoints,
    }))
}

/// Lists settings.
#[utoipa::path(get, path = "/settings", tag = "settings",
    responses((status = 200, body = Items<SettingView>), errors::Common))]
async fn list_settings(
    State(state): State<ApiState>,
    auth: Auth,
) -> Result<Json<Items<SettingView>>, Problem> {
    Ok(Items::of(
        state
            .service
            .settings(auth.access(Operation::ListSettings)?)
            .await?,
    ))
}

/// Returns a setting.
#[utoipa::path(get, path = "/settings/{key}", tag = "settings", params(("key" = String, Path)),
    responses((status = 200, body = SettingView), errors::Common))]
async fn get_setting(
    State(state): State<ApiState>,
    auth: Auth,
    Path(key): Path<String>,
) -> Result<Tagged<SettingView>, Problem> {
    let row = state
        .service
        .setting(auth.access(Operation::GetSetting)?, &key)
        .await?;
    Ok(Tagged(row.rev, row.into()))
}

/// A value to set.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PutSetting {
    /// Any JSON value, at most 64 KiB.
    #[schema(value_type = Object)]
    value: Value,
}

/// Writes a setting.
#[utoipa::path(put, path = "/settings/{key}", tag = "settings", request_body = PutSetting,
    params(("key" = String, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 200, body = SettingView), errors::Common))]
async fn put_setting(
    State(state): State<ApiState>,
    auth: Auth,
    Path(key): Path<String>,
    IfMatch(expected): IfMatch,
    Body(put): Body<PutSetting>,
) -> Result<Tagged<SettingView>, Problem> {
    let access = auth.access(Operation::PutSetting)?;
    let row = state
        .service
        .put_setting(access, &key, put.value, expected)
        .await?;
    Ok(Tagged(row.rev, row.into()))
}
