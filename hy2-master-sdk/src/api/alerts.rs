//! Alerts: what somebody should look at.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::extract::{Auth, Params, Path};
use super::problem::Problem;
use super::{ApiState, PageOf, errors};
use crate::auth::access::Operation;
use crate::domain::NodeId;
use crate::service::alerts::AlertView;
use crate::service::page::PageRequest;
use crate::store::alerts::AlertFilter;

pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list_alerts))
        .routes(routes!(close_alert))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct AlertQuery {
    /// Items of a page, 1 to 500.
    #[param(default = 50, minimum = 1, maximum = 500)]
    size: Option<u32>,
    /// `next` of the page before.
    after: Option<String>,
    /// Only open ones, or only closed ones.
    open: Option<bool>,
    /// Only of this node.
    node_id: Option<i64>,
}

/// Lists alerts, the newest first. Closed ones are kept as long as events.
#[utoipa::path(get, path = "/alerts", tag = "nodes", params(AlertQuery),
    responses((status = 200, body = PageOf<AlertView>), errors::Common))]
async fn list_alerts(
    State(state): State<ApiState>,
    auth: Auth,
    Params(query): Params<AlertQuery>,
) -> Result<Json<PageOf<AlertView>>, Problem> {
    let access = auth.access(Operation::ListAlerts)?;
    let page = PageRequest {
        size: query.size,
        after: query.after,
    };
    let filter = AlertFilter {
        open: query.open,
        node: query.node_id.map(NodeId),
    };
    Ok(PageOf::of(
        state.service.alerts(access, filter, &page).await?,
    ))
}

/// Closes an alert that somebody has looked at. What goes on opens another.
#[utoipa::path(post, path = "/alerts/{id}/close", tag = "nodes", params(("id" = Uuid, Path)),
    responses((status = 200, body = AlertView), errors::Common))]
async fn close_alert(
    State(state): State<ApiState>,
    auth: Auth,
    Path(id): Path<Uuid>,
) -> Result<Json<AlertView>, Problem> {
    let access = auth.access(Operation::CloseAlert)?;
    Ok(Json(state.service.close_alert(access, id).await?.into()))
}
