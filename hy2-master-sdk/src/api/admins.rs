//! Administrators.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Auth, Body, IfMatch, Params, Path, Tagged};
use super::problem::Problem;
use super::{ApiState, PageOf, errors};
use crate::auth::access::Operation;
use crate::domain::AdminId;
use crate::service::admins::{AdminView, CreateAdmin, UpdateAdmin};
use crate::service::page::PageRequest;

pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list_admins, create_admin))
        .routes(routes!(get_admin, update_admin, delete_admin))
}

/// Which page.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PageQuery {
    /// Items of a page, 1 to 500.
    #[param(default = 50, minimum = 1, maximum = 500)]
    size: Option<u32>,
    /// `next` of the page before.
    after: Option<String>,
}

impl From<PageQuery> for PageRequest {
    fn from(query: PageQuery) -> Self {
        Self {
            size: query.size,
            after: query.after,
        }
    }
}

/// Lists administrators.
#[utoipa::path(get, path = "/admins", tag = "admins", params(PageQuery),
    responses((status = 200, body = PageOf<AdminView>), errors::Common))]
async fn list_admins(
    State(state): State<ApiState>,
    auth: Auth,
    Params(query): Params<PageQuery>,
) -> Result<Json<PageOf<AdminView>>, Problem> {
    let access = auth.access(Operation::ListAdmins)?;
    Ok(PageOf::of(
        state.service.admins(access, &query.into()).await?,
    ))
}

/// Makes an administrator, who has to change the password first.
#[utoipa::path(post, path = "/admins", tag = "admins", request_body = CreateAdmin,
    responses((status = 201, body = AdminView), errors::Common))]
async fn create_admin(
    State(state): State<ApiState>,
    auth: Auth,
    Body(new): Body<CreateAdmin>,
) -> Result<Response, Problem> {
    let row = state
        .service
        .create_admin(auth.access(Operation::CreateAdmin)?, new)
        .await?;
    let location = format!("/api/v1/admins/{}", row.id);
    let view = Tagged(row.rev, AdminView::from(row));
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], view).into_response())
}

/// Returns an administrator.
#[utoipa::path(get, path = "/admins/{id}", tag = "admins", params(("id" = i64, Path)),
    responses((status = 200, body = AdminView), errors::Common))]
async fn get_admin(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
) -> Result<Tagged<AdminView>, Problem> {
    let row = state
        .service
        .admin(auth.access(Operation::GetAdmin)?, AdminId(id))
        .await?;
    Ok(Tagged(row.rev, row.into()))
}

/// Changes an administrator. With role, status or password all their sessions end.
#[utoipa::path(patch, path = "/admins/{id}", tag = "admins", request_body = UpdateAdmin,
    params(("id" = i64, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 200, body = AdminView), errors::Common))]
async fn update_admin(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
    IfMatch(expected): IfMatch,
    Body(change): Body<UpdateAdmin>,
) -> Result<Tagged<AdminView>, Problem> {
    let access = auth.access(Operation::UpdateAdmin)?;
    let row = state
        .service
        .update_admin(access, AdminId(id), expected, change)
        .await?;
    Ok(Tagged(row.rev, row.into()))
}

/// Removes an administrator who has no users.
#[utoipa::path(delete, path = "/admins/{id}", tag = "admins",
    params(("id" = i64, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 204), errors::Common))]
async fn delete_admin(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
    IfMatch(expected): IfMatch,
) -> Result<StatusCode, Problem> {
    let access = auth.access(Operation::DeleteAdmin)?;
    state
        .service
        .delete_admin(access, AdminId(id), expected)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
