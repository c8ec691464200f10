//! Who serves whom.

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Auth, Body, Params, Path};
use super::problem::Problem;
use super::{ApiState, PageOf, errors};
use crate::auth::access::Operation;
use crate::domain::{NodeId, UserId};
use crate::service::assignments::{AssignUser, AssignmentView};
use crate::service::page::PageRequest;

pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list_assignments, assign_user))
        .routes(routes!(release_user))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct AssignmentQuery {
    /// Items of a page, 1 to 500.
    #[param(default = 50, minimum = 1, maximum = 500)]
    size: Option<u32>,
    /// `next` of the page before.
    after: Option<String>,
    /// Only of this user.
    user_id: Option<i64>,
    /// Only of this node.
    node_id: Option<i64>,
    /// Released ones too.
    #[serde(default)]
    released: bool,
}

/// Lists assignments.
#[utoipa::path(get, path = "/assignments", tag = "assignments", params(AssignmentQuery),
    responses((status = 200, body = PageOf<AssignmentView>), errors::Common))]
async fn list_assignments(
    State(state): State<ApiState>,
    auth: Auth,
    Params(query): Params<AssignmentQuery>,
) -> Result<Json<PageOf<AssignmentView>>, Problem> {
    let access = auth.access(Operation::ListAssignments)?;
    let page = PageRequest {
        size: query.size,
        after: query.after,
    };
    let (user, node) = (query.user_id.map(UserId), query.node_id.map(NodeId));
    let rows = state
        .service
        .assignments(access, &page, user, node, query.released)
        .await?;
    Ok(PageOf::of(rows))
}

/// Lets a node serve a user.
#[utoipa::path(post, path = "/assignments", tag = "assignments", request_body = AssignUser,
    responses((status = 201, body = AssignmentView), errors::Common))]
async fn assign_user(
    State(state): State<ApiState>,
    auth: Auth,
    Body(new): Body<AssignUser>,
) -> Result<(StatusCode, Json<AssignmentView>), Problem> {
    let row = state
        .service
        .assign_user(auth.access(Operation::AssignUser)?, new)
        .await?;
    Ok((StatusCode::CREATED, Json(row.into())))
}

/// Takes a user off a node; connections there end.
#[utoipa::path(delete, path = "/assignments/{user_id}/{node_id}", tag = "assignments",
    params(("user_id" = i64, Path), ("node_id" = i64, Path)),
    responses((status = 204), errors::Common))]
async fn release_user(
    State(state): State<ApiState>,
    auth: Auth,
    Path((user, node)): Path<(i64, i64)>,
) -> Result<StatusCode, Problem> {
    let access = auth.access(Operation::ReleaseUser)?;
    state
        .service
        .release_user(access, UserId(user), NodeId(node))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
