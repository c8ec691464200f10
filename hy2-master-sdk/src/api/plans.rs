//! Plans.

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
use crate::domain::PlanId;
use crate::service::page::PageRequest;
use crate::service::plans::{CreatePlan, PlanView, UpdatePlan};

pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list_plans, create_plan))
        .routes(routes!(get_plan, update_plan, delete_plan))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct PlanQuery {
    /// Items of a page, 1 to 500.
    #[param(default = 50, minimum = 1, maximum = 500)]
    size: Option<u32>,
    /// `next` of the page before.
    after: Option<String>,
    /// Archived ones too.
    #[serde(default)]
    archived: bool,
}

/// Lists plans.
#[utoipa::path(get, path = "/plans", tag = "plans", params(PlanQuery),
    responses((status = 200, body = PageOf<PlanView>), errors::Common))]
async fn list_plans(
    State(state): State<ApiState>,
    auth: Auth,
    Params(query): Params<PlanQuery>,
) -> Result<Json<PageOf<PlanView>>, Problem> {
    let access = auth.access(Operation::ListPlans)?;
    let page = PageRequest {
        size: query.size,
        after: query.after,
    };
    Ok(PageOf::of(
        state.service.plans(access, &page, query.archived).await?,
    ))
}

/// Makes a plan.
#[utoipa::path(post, path = "/plans", tag = "plans", request_body = CreatePlan,
    responses((status = 201, body = PlanView), errors::Common))]
async fn create_plan(
    State(state): State<ApiState>,
    auth: Auth,
    Body(new): Body<CreatePlan>,
) -> Result<Response, Problem> {
    let row = state
        .service
        .create_plan(auth.access(Operation::CreatePlan)?, new)
        .await?;
    let location = format!("/api/v1/plans/{}", row.id);
    let view = Tagged(row.rev, PlanView::from(row));
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], view).into_response())
}

/// Returns a plan.
#[utoipa::path(get, path = "/plans/{id}", tag = "plans", params(("id" = i64, Path)),
    responses((status = 200, body = PlanView), errors::Common))]
async fn get_plan(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
) -> Result<Tagged<PlanView>, Problem> {
    let row = state
        .service
        .plan(auth.access(Operation::GetPlan)?, PlanId(id))
        .await?;
    Ok(Tagged(row.rev, row.into()))
}

/// Changes a plan; the limits of its users change at once. Absent fields stay, `null` clears.
#[utoipa::path(patch, path = "/plans/{id}", tag = "plans", request_body = UpdatePlan,
    params(("id" = i64, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 200, body = PlanView), errors::Common))]
async fn update_plan(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
    IfMatch(expected): IfMatch,
    Body(change): Body<UpdatePlan>,
) -> Result<Tagged<PlanView>, Problem> {
    let access = auth.access(Operation::UpdatePlan)?;
    let row = state
        .service
        .update_plan(access, PlanId(id), expected, change)
        .await?;
    Ok(Tagged(row.rev, row.into()))
}

/// Removes a plan that nobody has.
#[utoipa::path(delete, path = "/plans/{id}", tag = "plans",
    params(("id" = i64, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 204), errors::Common))]
async fn delete_plan(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
    IfMatch(expected): IfMatch,
) -> Result<StatusCode, Problem> {
    let access = auth.access(Operation::DeletePlan)?;
    state
        .service
        .delete_plan(access, PlanId(id), expected)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
