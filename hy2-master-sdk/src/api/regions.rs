//! Regions: where nodes are, and where users are at home.

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Auth, Body, IfMatch, Path, Tagged};
use super::problem::Problem;
use super::{ApiState, Items, errors};
use crate::auth::access::Operation;
use crate::domain::RegionId;
use crate::service::regions::{CreateRegion, RegionView, UpdateRegion};
use crate::store::regions::RegionRow;

pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list_regions, create_region))
        .routes(routes!(get_region, update_region, delete_region))
}

/// A region with the time of its last change as its revision.
fn tagged(row: RegionRow) -> Tagged<RegionView> {
    Tagged(row.updated_at.0, row.into())
}

/// Lists regions, in order of their codes.
#[utoipa::path(get, path = "/regions", tag = "nodes",
    responses((status = 200, body = Items<RegionView>), errors::Common))]
async fn list_regions(
    State(state): State<ApiState>,
    auth: Auth,
) -> Result<Json<Items<RegionView>>, Problem> {
    let access = auth.access(Operation::ListRegions)?;
    Ok(Items::of(state.service.regions(access).await?))
}

/// Makes a region.
#[utoipa::path(post, path = "/regions", tag = "nodes", request_body = CreateRegion,
    responses((status = 201, body = RegionView), errors::Common))]
async fn create_region(
    State(state): State<ApiState>,
    auth: Auth,
    Body(new): Body<CreateRegion>,
) -> Result<(StatusCode, Tagged<RegionView>), Problem> {
    let access = auth.access(Operation::CreateRegion)?;
    let made = state.service.create_region(access, new).await?;
    Ok((StatusCode::CREATED, tagged(made)))
}

/// Returns a region.
#[utoipa::path(get, path = "/regions/{id}", tag = "nodes", params(("id" = i64, Path)),
    responses((status = 200, body = RegionView), errors::Common))]
async fn get_region(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
) -> Result<Tagged<RegionView>, Problem> {
    let access = auth.access(Operation::GetRegion)?;
    let found = state.service.region(access, RegionId(id)).await?;
    Ok(tagged(found))
}

/// Changes a region. Absent fields stay, `null` clears the place.
#[utoipa::path(patch, path = "/regions/{id}", tag = "nodes", request_body = UpdateRegion,
    params(("id" = i64, Path)), responses((status = 200, body = RegionView), errors::Common))]
async fn update_region(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
    IfMatch(expected): IfMatch,
    Body(change): Body<UpdateRegion>,
) -> Result<Tagged<RegionView>, Problem> {
    let access = auth.access(Operation::UpdateRegion)?;
    let service = &state.service;
    let changed = service.update_region(access, RegionId(id), expected, change);
    Ok(tagged(changed.await?))
}

/// Removes a region that no node, user, open enrolment token or configuration uses.
#[utoipa::path(delete, path = "/regions/{id}", tag = "nodes", params(("id" = i64, Path)),
    responses((status = 204), errors::Common))]
async fn delete_region(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
    IfMatch(expected): IfMatch,
) -> Result<StatusCode, Problem> {
    let access = auth.access(Operation::DeleteRegion)?;
    let service = &state.service;
    service
        .delete_region(access, RegionId(id), expected)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
