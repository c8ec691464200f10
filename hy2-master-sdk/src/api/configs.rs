//! Configuration of nodes.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::admins::PageQuery;
use super::extract::{Auth, Body, Params, Path};
use super::problem::Problem;
use super::{ApiState, Items, PageOf, errors};
use crate::auth::access::Operation;
use crate::domain::{ConfigRevisionId, ConfigScope};
use crate::service::configs::{ConfigChange, ConfigView, PutConfig};

pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(get_config, put_config))
        .routes(routes!(list_revisions))
        .routes(routes!(get_revision))
        .routes(routes!(diff_revisions))
        .routes(routes!(rollback_config))
}

fn scope((scope, id): (String, i64)) -> Result<(ConfigScope, i64), Problem> {
    scope
        .parse()
        .map(|scope| (scope, id))
        .map_err(|_| Problem::no_route())
}

/// Returns the configuration in force for a scope: `fleet/0`, `region/{id}` or `node/{id}`.
#[utoipa::path(get, path = "/configs/{scope}/{scope_id}", tag = "configs",
    params(("scope" = String, Path), ("scope_id" = i64, Path)),
    responses((status = 200, body = ConfigView), errors::Common))]
async fn get_config(
    State(state): State<ApiState>,
    auth: Auth,
    Path(of): Path<(String, i64)>,
) -> Result<Json<ConfigView>, Problem> {
    let access = auth.access(Operation::GetConfig)?;
    let (scope, id) = scope(of)?;
    Ok(Json(state.service.config(access, scope, id).await?.into()))
}

/// Puts a configuration in force for a scope. It is checked merged with those of every node
/// concerned; with `dry_run` nothing else happens and the answer is 204.
#[utoipa::path(put, path = "/configs/{scope}/{scope_id}", tag = "configs",
    params(("scope" = String, Path), ("scope_id" = i64, Path)), request_body = PutConfig,
    responses((status = 200, body = ConfigView), (status = 204), errors::Common))]
async fn put_config(
    State(state): State<ApiState>,
    auth: Auth,
    Path(of): Path<(String, i64)>,
    Body(put): Body<PutConfig>,
) -> Result<Response, Problem> {
    let access = auth.access(Operation::PutConfig)?;
    let (scope, id) = scope(of)?;
    Ok(
        match state.service.put_config(access, scope, id, put).await? {
            Some(row) => Json(ConfigView::from(row)).into_response(),
            None => StatusCode::NO_CONTENT.into_response(),
        },
    )
}

/// Lists the revisions of a scope, the newest first.
#[utoipa::path(get, path = "/configs/{scope}/{scope_id}/revisions", tag = "configs",
    params(("scope" = String, Path), ("scope_id" = i64, Path), PageQuery),
    responses((status = 200, body = PageOf<ConfigView>), errors::Common))]
async fn list_revisions(
    State(state): State<ApiState>,
    auth: Auth,
    Path(of): Path<(String, i64)>,
    Params(query): Params<PageQuery>,
) -> Result<Json<PageOf<ConfigView>>, Problem> {
    let access = auth.access(Operation::ListRevisions)?;
    let (scope, id) = scope(of)?;
    Ok(PageOf::of(
        state
            .service
            .revisions(access, scope, id, &query.into())
            .await?,
    ))
}

/// Returns a revision.
#[utoipa::path(get, path = "/revisions/{id}", tag = "configs", params(("id" = i64, Path)),
    responses((status = 200, body = ConfigView), errors::Common))]
async fn get_revision(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
) -> Result<Json<ConfigView>, Problem> {
    let access = auth.access(Operation::GetRevision)?;
    Ok(Json(
        state
            .service
            .revision(access, ConfigRevisionId(id))
            .await?
            .into(),
    ))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DiffQuery {
    /// The other revision.
    to: i64,
}

/// Returns what differs between two revisions.
#[utoipa::path(get, path = "/revisions/{id}/diff", tag = "configs",
    params(("id" = i64, Path), DiffQuery),
    responses((status = 200, body = Items<ConfigChange>), errors::Common))]
async fn diff_revisions(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
    Params(query): Params<DiffQuery>,
) -> Result<Json<Items<ConfigChange>>, Problem> {
    let access = auth.access(Operation::DiffRevisions)?;
    let (from, to) = (ConfigRevisionId(id), ConfigRevisionId(query.to));
    Ok(Items::of(
        state.service.diff_revisions(access, from, to).await?,
    ))
}

/// Puts the body of an earlier revision in force again, as a new revision.
#[utoipa::path(post, path = "/revisions/{id}/rollback", tag = "configs",
    params(("id" = i64, Path)), responses((status = 200, body = ConfigView), errors::Common))]
async fn rollback_config(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
) -> Result<Json<ConfigView>, Problem> {
    let access = auth.access(Operation::RollbackConfig)?;
    Ok(Json(
        state
            .service
            .rollback_config(access, ConfigRevisionId(id))
            .await?
            .into(),
    ))
}
