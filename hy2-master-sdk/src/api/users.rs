//! Users.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Auth, Body, IfMatch, Params, Path, Tagged};
use super::problem::Problem;
use super::{ApiState, Items, PageOf, errors};
use crate::auth::access::Operation;
use crate::domain::{PlanId, UserId, UserStatus};
use crate::service::assignments::AssignmentView;
use crate::service::import::{ImportReport, ImportUsers};
use crate::service::page::PageRequest;
use crate::service::traffic::{ReachView, SessionView, TrafficQuery, TrafficView};
use crate::service::users::{BatchAction, CreateUser, ListUsers, UpdateUser, UserView};
use crate::store::user_list::{UserFilter, UserSort};

pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list_users, create_user))
        .routes(routes!(get_user, update_user, delete_user))
        .routes(routes!(batch_users))
        .routes(routes!(import_users))
        .routes(routes!(export_users))
        .routes(routes!(get_user_traffic))
        .routes(routes!(list_user_sessions))
        .routes(routes!(list_user_assignments))
        .routes(routes!(get_user_subscription))
        .routes(routes!(rotate_user_subscription))
        .routes(routes!(rotate_user_credentials))
        .routes(routes!(reset_user_traffic))
        .routes(routes!(kick_user))
        .routes(routes!(set_user_rate))
}

/// Largest import, in bytes.
const MAX_IMPORT: usize = 16 << 20;

/// Order of a list of users.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Sort {
    #[default]
    Id,
    Username,
    CreatedAt,
    ExpiresAt,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct UserQuery {
    /// Items of a page, 1 to 500.
    #[param(default = 50, minimum = 1, maximum = 500)]
    size: Option<u32>,
    /// `next` of the page before.
    after: Option<String>,
    /// Only with this status.
    #[param(value_type = Option<String>)]
    status: Option<UserStatus>,
    /// Only with this plan.
    plan_id: Option<i64>,
    /// Only with this in the name, in any case.
    search: Option<String>,
    /// In which order.
    #[serde(default)]
    #[param(inline, default = "id")]
    sort: Sort,
    /// Backwards.
    #[serde(default)]
    descending: bool,
}

/// Lists users.
#[utoipa::path(get, path = "/users", tag = "users", params(UserQuery),
    responses((status = 200, body = PageOf<UserView>), errors::Common))]
async fn list_users(
    State(state): State<ApiState>,
    auth: Auth,
    Params(query): Params<UserQuery>,
) -> Result<Json<PageOf<UserView>>, Problem> {
    let access = auth.access(Operation::ListUsers)?;
    let list = ListUsers {
        page: PageRequest {
            size: query.size,
            after: query.after,
        },
        filter: UserFilter {
            status: query.status,
            plan: query.plan_id.map(PlanId),
            owner: None,
            search: query.search.filter(|search| !search.is_empty()),
        },
        sort: match query.sort {
            Sort::Id => UserSort::Id,
            Sort::Username => UserSort::Username,
            Sort::CreatedAt => UserSort::CreatedAt,
            Sort::ExpiresAt => UserSort::ExpiresAt,
        },
        descending: query.descending,
    };
    Ok(PageOf::of(state.service.users(access, list).await?))
}

/// Makes a user.
#[utoipa::path(post, path = "/users", tag = "users", request_body = CreateUser,
    responses((status = 201, body = UserView), errors::Common))]
async fn create_user(
    State(state): State<ApiState>,
    auth: Auth,
    Body(new): Body<CreateUser>,
) -> Result<Response, Problem> {
    let row = state
        .service
        .create_user(auth.access(Operation::CreateUser)?, new)
        .await?;
    let location = format!("/api/v1/users/{}", row.id);
    let view = Tagged(row.rev, UserView::from(row));
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], view).into_response())
}

/// Returns a user.
#[utoipa::path(get, path = "/users/{id}", tag = "users", params(("id" = i64, Path)),
    responses((status = 200, body = UserView), errors::Common))]
async fn get_user(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
) -> Result<Tagged<UserView>, Problem> {
    let row = state
        .service
        .user(auth.access(Operation::GetUser)?, UserId(id))
        .await?;
    Ok(Tagged(row.rev, row.into()))
}

/// Changes a user. Absent fields stay, `null` clears.
#[utoipa::path(patch, path = "/users/{id}", tag = "users", request_body = UpdateUser,
    params(("id" = i64, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 200, body = UserView), errors::Common))]
async fn update_user(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
    IfMatch(expected): IfMatch,
    Body(change): Body<UpdateUser>,
) -> Result<Tagged<UserView>, Problem> {
    let access = auth.access(Operation::UpdateUser)?;
    let row = state
        .service
        .update_user(access, UserId(id), expected, change)
        .await?;
    Ok(Tagged(row.rev, row.into()))
}

/// Deletes a user. Connections end at once, the accounts stay.
#[utoipa::path(delete, path = "/users/{id}", tag = "users",
    params(("id" = i64, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 204), errors::Common))]
async fn delete_user(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
    IfMatch(expected): IfMatch,
) -> Result<StatusCode, Problem> {
    let access = auth.access(Operation::DeleteUser)?;
    state
        .service
        .delete_user(access, UserId(id), expected)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What to do with several users.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct BatchUsers {
    /// 1 to 500 users.
    ids: Vec<i64>,
    /// What to do with each.
    action: BatchAction,
}

/// How many were changed.
#[derive(Debug, Serialize, ToSchema)]
struct BatchResult {
    /// Users changed.
    changed: usize,
}

/// Does the same with several users: all or none.
#[utoipa::path(post, path = "/users:batch", tag = "users", request_body = BatchUsers,
    responses((status = 200, body = BatchResult), errors::Common))]
async fn batch_users(
    State(state): State<ApiState>,
    auth: Auth,
    Body(batch): Body<BatchUsers>,
) -> Result<Json<BatchResult>, Problem> {
    let access = auth.access(Operation::BatchUsers)?;
    let changed = state
        .service
        .batch_users(access, &batch.ids, batch.action)
        .await?;
    Ok(Json(BatchResult { changed }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ImportQuery {
    /// Says what would happen and changes nothing.
    #[serde(default)]
    dry_run: bool,
}

/// Imports users: from CSV or JSON of ours, or from exports of Marzban and 3x-ui. Users whose names
/// exist are left alone.
#[utoipa::path(post, path = "/users:import", tag = "users", request_body = ImportUsers,
    params(ImportQuery), responses((status = 200, body = ImportReport), errors::Common))]
async fn import_users(
    State(state): State<ApiState>,
    auth: Auth,
    Params(query): Params<ImportQuery>,
    Body(import): Body<ImportUsers, MAX_IMPORT>,
) -> Result<Json<ImportReport>, Problem> {
    let access = auth.access(Operation::ImportUsers)?;
    Ok(Json(
        state
            .service
            .import_users(access, import, query.dry_run)
            .await?,
    ))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ExportQuery {
    /// `json` or `csv`.
    #[param(default = "json")]
    format: Option<String>,
}

/// Exports all users, as `users:import` reads them. No secrets.
#[utoipa::path(get, path = "/users:export", tag = "users", params(ExportQuery),
    responses((status = 200, description = "JSON or CSV"), errors::Common))]
async fn export_users(
    State(state): State<ApiState>,
    auth: Auth,
    Params(query): Params<ExportQuery>,
) -> Result<Response, Problem> {
    let access = auth.access(Operation::ExportUsers)?;
    let format = query.format.as_deref().unwrap_or("json");
    let (media, body) = state.service.export_users(access, format).await?;
    Ok(([(header::CONTENT_TYPE, media)], body).into_response())
}

/// Returns a user's traffic since ever.
#[utoipa::path(get, path = "/users/{id}/traffic", tag = "users", params(("id" = i64, Path)),
    responses((status = 200, body = TrafficView), errors::Common))]
async fn get_user_traffic(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
) -> Result<Json<TrafficView>, Problem> {
    let access = auth.access(Operation::GetUserTraffic)?;
    let query = TrafficQuery {
        user: Some(UserId(id)),
        ..TrafficQuery::default()
    };
    Ok(Json(state.service.traffic(access, query).await?))
}

/// Live connections, and which nodes were asked.
#[derive(Serialize, ToSchema)]
pub(super) struct LiveSessions {
    /// Connections.
    items: Vec<SessionView>,
    /// Which nodes answered.
    reach: ReachView,
}

impl LiveSessions {
    pub(super) fn of(
        (sessions, reach): (
            Vec<crate::service::fleet::NodeSession>,
            crate::service::fleet::Reach,
        ),
    ) -> Json<Self> {
        let items = sessions.into_iter().map(Into::into).collect();
        Json(Self {
            items,
            reach: reach.into(),
        })
    }
}

/// Lists a user's live connections.
#[utoipa::path(get, path = "/users/{id}/sessions", tag = "users", params(("id" = i64, Path)),
    responses((status = 200, body = LiveSessions), errors::Common))]
async fn list_user_sessions(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
) -> Result<Json<LiveSessions>, Problem> {
    let access = auth.access(Operation::ListUserSessions)?;
    Ok(LiveSessions::of(
        state.service.user_sessions(access, UserId(id)).await?,
    ))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ReleasedQuery {
    /// Released ones too.
    #[serde(default)]
    released: bool,
}

/// Lists the nodes that serve a user.
#[utoipa::path(get, path = "/users/{id}/assignments", tag = "users",
    params(("id" = i64, Path), ReleasedQuery),
    responses((status = 200, body = Items<AssignmentView>), errors::Common))]
async fn list_user_assignments(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
    Params(query): Params<ReleasedQuery>,
) -> Result<Json<Items<AssignmentView>>, Problem> {
    let access = auth.access(Operation::ListUserAssignments)?;
    let rows = state
        .service
        .user_assignments(access, UserId(id), query.released)
        .await?;
    Ok(Items::of(rows))
}

/// A subscription.
#[derive(Serialize, ToSchema)]
struct SubscriptionView {
    /// Its address; whoever has it has the user's access.
    url: String,
}

/// Returns the address of a user's subscription.
#[utoipa::path(get, path = "/users/{id}/subscription", tag = "users", params(("id" = i64, Path)),
    responses((status = 200, body = SubscriptionView), errors::Common))]
async fn get_user_subscription(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
) -> Result<Json<SubscriptionView>, Problem> {
    let access = auth.access(Operation::GetUserSubscription)?;
    let url = state.service.user_subscription(access, UserId(id)).await?;
    Ok(Json(SubscriptionView {
        url: url.expose_secret().to_owned(),
    }))
}

/// Gives a user a new subscription address; the old one is worth nothing.
#[utoipa::path(post, path = "/users/{id}/subscription/rotate", tag = "users",
    params(("id" = i64, Path)), responses((status = 200, body = SubscriptionView), errors::Common))]
async fn rotate_user_subscription(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
) -> Result<Json<SubscriptionView>, Problem> {
    let access = auth.access(Operation::RotateUserSubscription)?;
    let url = state
        .service
        .rotate_user_subscription(access, UserId(id))
        .await?;
    Ok(Json(SubscriptionView {
        url: url.expose_secret().to_owned(),
    }))
}

/// Gives a user new credentials on every node; connections with the old ones end.
#[utoipa::path(post, path = "/users/{id}/credentials/rotate", tag = "users",
    params(("id" = i64, Path)), responses((status = 200, body = UserView), errors::Common))]
async fn rotate_user_credentials(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
) -> Result<Tagged<UserView>, Problem> {
    let access = auth.access(Operation::RotateUserCredentials)?;
    let row = state
        .service
        .rotate_user_credentials(access, UserId(id))
        .await?;
    Ok(Tagged(row.rev, row.into()))
}

/// Why a quota starts anew.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ResetRequest {
    /// For the record.
    #[serde(default)]
    reason: String,
}

/// Starts a user's quota anew. Counters are never set back: what was used is spent of the quota of the user's reseller, who is
/// refused (409, `quota_limit`) when no room for it is left there.
#[utoipa::path(post, path = "/users/{id}/reset", tag = "users", params(("id" = i64, Path)),
    request_body = ResetRequest, responses((status = 200, body = UserView), errors::Common))]
async fn reset_user_traffic(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
    Body(request): Body<ResetRequest>,
) -> Result<Tagged<UserView>, Problem> {
    let access = auth.access(Operation::ResetUserTraffic)?;
    let row = state
        .service
        .reset_user_traffic(access, UserId(id), &request.reason)
        .await?;
    Ok(Tagged(row.rev, row.into()))
}

/// Closes all connections of a user on every node. The user may connect again.
#[utoipa::path(post, path = "/users/{id}/kick", tag = "users", params(("id" = i64, Path)),
    responses((status = 200, body = ReachView), errors::Common))]
async fn kick_user(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
) -> Result<Json<ReachView>, Problem> {
    let access = auth.access(Operation::KickUser)?;
    Ok(Json(
        state.service.kick_user(access, UserId(id)).await?.into(),
    ))
}

/// A rate for a while.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RateRequest {
    /// Most that the user sends, bytes per second; 0 or null: the user's own limit.
    #[serde(default)]
    up_bytes_per_s: Option<u64>,
    /// Most that the user receives, bytes per second; 0 or null: the user's own limit.
    #[serde(default)]
    down_bytes_per_s: Option<u64>,
    /// For how long, at most 30 days; 0 or null: until the user is changed.
    #[serde(default)]
    for_s: Option<u32>,
}

/// Sets a user's rate on live connections, without changing the user.
#[utoipa::path(post, path = "/users/{id}/rate", tag = "users", params(("id" = i64, Path)),
    request_body = RateRequest, responses((status = 200, body = ReachView), errors::Common))]
async fn set_user_rate(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<i64>,
    Body(rate): Body<RateRequest>,
) -> Result<Json<ReachView>, Problem> {
    let access = auth.access(Operation::SetUserRate)?;
    let up = rate.up_bytes_per_s.unwrap_or_default();
    let down = rate.down_bytes_per_s.unwrap_or_default();
    let for_s = rate.for_s.unwrap_or_default();
    let reach = state
        .service
        .set_user_rate(access, UserId(id), up, down, for_s)
        .await?;
    Ok(Json(reach.into()))
}
