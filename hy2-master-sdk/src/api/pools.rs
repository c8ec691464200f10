//! Pools of nodes, and which of them a plan has.

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Auth, Body, IfMatch, Path, Tagged};
use super::problem::Problem;
use super::{ApiState, Items, errors};
use crate::auth::access::Operation;
use crate::domain::{PlanId, PoolId};
use crate::service::pools::{CreatePool, PoolView, UpdatePool};

pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list_node_pools, create_node_pool))
        .routes(routes!(get_node_pool, update_node_pool, delete_node_pool))
        .routes(routes!(get_plan_pools, set_plan_pools))
}

/// A pool with the time of its last change as its revision.
fn tagged(pool: PoolView) -> Tagged<PoolView> {
    Tagged(pool.updated_at.0.0, pool)
}

/// Lists pools of nodes.
#[utoipa::path(get, path = "/node-pools", tag = "nodes",
    responses((status = 200, body = Items<PoolView>), errors::Common))]
async fn list_node_pools(
    State(state): State<ApiState>,
    auth: Auth,
) -> Result<Json<Items<PoolView>>, Problem> {
    let access = auth.access(Operation::ListNodePools)?;
    Ok(Items::of(state.service.pools(access).await?))
}

/// Makes a pool of nodes.
#[utoipa::path(post, path = "/node-pools", tag = "nodes", request_body = CreatePool,
    responses((status = 201, body = PoolView), errors::Common))]
async fn create_node_pool(
    State(state): State<ApiState>,
    auth: Auth,
    Body(new): Body<CreatePool>,
) -> Result<(StatusCode, Tagged<PoolView>), Problem> {
    let access = auth.access(Operation::CreateNodePool)?;
    let made = state.service.create_pool(access, new).await?;
    Ok((StatusCode::CREATED, tagged(made)))
}

/// Returns a pool of nodes.
#[utoipa::path(get, path = "/node-pools/{id}", tag = "nodes", params(("id" = i64, Path)),
    responses((status = 200, body = PoolView), errors::Common))]
async fn get_node_pool(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
) -> Result<Tagged<PoolView>, Problem> {
    let access = auth.access(Operation::GetNodePool)?;
    Ok(tagged(state.service.pool(access, PoolId(id)).await?))
}

/// Changes a pool of nodes. Absent fields stay. Users keep the nodes that they have.
#[utoipa::path(patch, path = "/node-pools/{id}", tag = "nodes", request_body = UpdatePool,
    params(("id" = i64, Path)), responses((status = 200, body = PoolView), errors::Common))]
async fn update_node_pool(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
    IfMatch(expected): IfMatch,
    Body(change): Body<UpdatePool>,
) -> Result<Tagged<PoolView>, Problem> {
    let access = auth.access(Operation::UpdateNodePool)?;
    let changed = state
        .service
        .update_pool(access, PoolId(id), expected, change)
        .await?;
    Ok(tagged(changed))
}

/// Removes a pool of nodes; plans forget it. Users keep the nodes that they have.
#[utoipa::path(delete, path = "/node-pools/{id}", tag = "nodes", params(("id" = i64, Path)),
    responses((status = 204), errors::Common))]
async fn delete_node_pool(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
    IfMatch(expected): IfMatch,
) -> Result<StatusCode, Problem> {
    let access = auth.access(Operation::DeleteNodePool)?;
    let service = &state.service;
    service.delete_pool(access, PoolId(id), expected).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Pools of a plan.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PlanPools {
    /// Its users get nodes of these only; none: of all.
    pool_ids: Vec<i64>,
}

/// Returns the pools of a plan.
#[utoipa::path(get, path = "/plans/{id}/pools", tag = "plans", params(("id" = i64, Path)),
    responses((status = 200, body = PlanPools), errors::Common))]
async fn get_plan_pools(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
) -> Result<Json<PlanPools>, Problem> {
    let access = auth.access(Operation::GetPlanPools)?;
    let pool_ids = state.service.plan_pools(access, PlanId(id)).await?;
    Ok(Json(PlanPools { pool_ids }))
}

/// Says which pools a plan has. Users keep the nodes that they have; who is given the plan from now on moves to its pools.
#[utoipa::path(put, path = "/plans/{id}/pools", tag = "plans", request_body = PlanPools,
    params(("id" = i64, Path)), responses((status = 200, body = PlanPools), errors::Common))]
async fn set_plan_pools(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
    Body(wanted): Body<PlanPools>,
) -> Result<Json<PlanPools>, Problem> {
    let access = auth.access(Operation::SetPlanPools)?;
    let set = state
        .service
        .set_plan_pools(access, PlanId(id), wanted.pool_ids);
    Ok(Json(PlanPools {
        pool_ids: set.await?,
    }))
}
