//! Traffic of the fleet.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Auth, Params};
use super::problem::Problem;
use super::{ApiState, Items, errors};
use crate::auth::access::Operation;
use crate::domain::{NodeId, UserId};
use crate::service::moment::Moment;
use crate::service::traffic::{TrafficQuery, TrafficView};
use crate::store::traffic_report::{Bucket, TopUser};

pub(super) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(get_traffic))
        .routes(routes!(get_traffic_series))
        .routes(routes!(get_traffic_top))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct SpanQuery {
    /// Only of this user.
    user_id: Option<i64>,
    /// Only through this node.
    node_id: Option<i64>,
    /// From this hour on; absent: a day before `to`. Hours are kept 90 days and whole days (UTC) two years, those of users
    /// and those of nodes; what reaches further back than it can be answered from is refused.
    from: Option<Moment>,
    /// Before this hour; absent: until now.
    to: Option<Moment>,
    /// Series: `hour` or `day`.
    #[param(default = "hour")]
    step: Option<String>,
    /// Top: how many, 1 to 500.
    #[param(default = 50, minimum = 1, maximum = 500)]
    size: Option<u32>,
}

impl SpanQuery {
    fn query(&self) -> TrafficQuery {
        TrafficQuery {
            user: self.user_id.map(UserId),
            node: self.node_id.map(NodeId),
            from: self.from.map(|at| at.0),
            to: self.to.map(|at| at.0),
        }
    }
}

/// Traffic of one step of time.
#[derive(Serialize, ToSchema)]
struct TrafficBucket {
    /// Its start.
    at: Moment,
    /// From clients to targets.
    tx_bytes: i64,
    /// From targets to clients.
    rx_bytes: i64,
}

impl From<Bucket> for TrafficBucket {
    fn from(bucket: Bucket) -> Self {
        Self {
            at: Moment(bucket.at),
            tx_bytes: bucket.tx,
            rx_bytes: bucket.rx,
        }
    }
}

/// Traffic of one user.
#[derive(Serialize, ToSchema)]
struct TrafficOfUser {
    /// Which.
    user_id: i64,
    /// Name.
    username: String,
    /// From client to targets.
    tx_bytes: i64,
    /// From targets to client.
    rx_bytes: i64,
}

impl From<TopUser> for TrafficOfUser {
    fn from(user: TopUser) -> Self {
        Self {
            user_id: user.user_id.0,
            username: user.username,
            tx_bytes: user.tx,
            rx_bytes: user.rx,
        }
    }
}

/// Returns sums of traffic: without times and node the counters since ever.
#[utoipa::path(get, path = "/traffic/summary", tag = "traffic", params(SpanQuery),
    responses((status = 200, body = TrafficView), errors::Common))]
async fn get_traffic(
    State(state): State<ApiState>,
    auth: Auth,
    Params(query): Params<SpanQuery>,
) -> Result<Json<TrafficView>, Problem> {
    let access = auth.access(Operation::GetTraffic)?;
    Ok(Json(state.service.traffic(access, query.query()).await?))
}

/// Returns traffic by hour or day.
#[utoipa::path(get, path = "/traffic/series", tag = "traffic", params(SpanQuery),
    responses((status = 200, body = Items<TrafficBucket>), errors::Common))]
async fn get_traffic_series(
    State(state): State<ApiState>,
    auth: Auth,
    Params(query): Params<SpanQuery>,
) -> Result<Json<Items<TrafficBucket>>, Problem> {
    let access = auth.access(Operation::GetTrafficSeries)?;
    let by_day = match query.step.as_deref() {
        None | Some("hour") => false,
        Some("day") => true,
        Some(_) => {
            let error = crate::service::ServiceError::invalid("step", "must be hour or day");
            return Err(error.into());
        }
    };
    Ok(Items::of(
        state
            .service
            .traffic_series(access, query.query(), by_day)
            .await?,
    ))
}

/// Returns who used most.
#[utoipa::path(get, path = "/traffic/top", tag = "traffic", params(SpanQuery),
    responses((status = 200, body = Items<TrafficOfUser>), errors::Common))]
async fn get_traffic_top(
    State(state): State<ApiState>,
    auth: Auth,
    Params(query): Params<SpanQuery>,
) -> Result<Json<Items<TrafficOfUser>>, Problem> {
    let access = auth.access(Operation::GetTrafficTop)?;
    let size = query.size.unwrap_or(50);
    Ok(Items::of(
        state
            .service
            .traffic_top(access, query.query(), size)
            .await?,
    ))
}
