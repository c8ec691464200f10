//! AdminService: the same operations over gRPC, behind the same credentials and the same table of
//! rights. Conversions only.

mod asked;
mod convert;
mod fields;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;

use std::collections::BTreeMap;
use std::pin::Pin;

use axum::body::Body;
use axum::extract::{self, State};
use axum::middleware::{self, Next};
use axum::{Router, response};
use futures_util::{Stream, StreamExt, stream};
use hy2_proto::control::rpc as pb;
use hy2_proto::control::rpc::admin_service_server::{AdminService, AdminServiceServer};
use tonic::{Code, Request, Response, Status};

use self::asked::{asked, page_status, status, told};
use self::convert::{
    assignment, desired, either, expected, id, limit, moment, observed, page, page_info, plan,
    region, some, user, wanted_state, wanted_status, wire, wire32,
};
use super::ApiState;
use super::events::Feed;
use super::problem::Problem;
use crate::auth::access::{Caller, Operation};
use crate::domain::{DesiredState, NodeId, QuotaPeriod, RegionId, Timestamp, UserId};
use crate::service::ServiceError;
use crate::service::assignments::AssignUser;
use crate::service::enrolment::CreateEnrolmentToken;
use crate::service::moment::SecretText;
use crate::service::nodes::UpdateNode;
use crate::service::plans::CreatePlan;
use crate::service::regions::{CreateRegion, UpdateRegion, no_region};
use crate::service::traffic::TrafficQuery;
use crate::service::users::{CreateUser, ListUsers, UpdateUser};
use crate::store::node_list::NodeFilter;
use crate::store::nodes::NodeRow;
use crate::store::regions;
use crate::store::user_list::{UserFilter, UserSort};
use crate::store::users::UserRow;
use secrecy::ExposeSecret;

/// Returns the routes of AdminService.
pub(crate) fn router(state: ApiState) -> Router {
    let service = AdminServiceServer::new(Admin {
        state: state.clone(),
    })
    .max_decoding_message_size(hy2_proto::control::MAX_MESSAGE);
    Router::new()
        .route_service("/hy2.control.v1.AdminService/{*rpc}", service)
        .layer(middleware::from_fn_with_state(state.clone(), to_the_end))
        .layer(middleware::from_fn_with_state(
            state.clone(),
            super::authn::authenticate,
        ))
        .layer(middleware::from_fn_with_state(
            state,
            super::address::note_address,
        ))
}

/// Works to the end when the caller goes away: a request id then has its answer. A stream counts until it begins.
async fn to_the_end(
    State(state): State<ApiState>,
    request: extract::Request,
    next: Next,
) -> response::Response {
    let (parts, body) = request.into_parts();
    // Who is nobody is told that first, and nothing of theirs is read.
    if parts.extensions.get::<Caller>().is_none() {
        return status(ServiceError::Unauthenticated).into_http();
    }
    // Read before: who does not send all of it holds no place.
    let body = match state.intake.read(&parts.extensions, body, MAX_FRAME).await {
        Ok(body) => body,
        Err(problem) => return told(unread(&problem), problem).into_http(),
    };
    if let Some(issue) = fields::wrong(parts.uri.path(), &body) {
        return status(ServiceError::Invalid(vec![issue])).into_http();
    }
    let request = extract::Request::from_parts(parts, Body::from(body));
    // Longer than each of its parts may take.
    let answer = tokio::time::timeout(super::PATIENCE * 3, next.run(request));
    match state.keyed.finish(answer).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => Status::deadline_exceeded("the request took too long").into_http(),
        Err(problem) => told(Code::Unavailable, problem).into_http(),
    }
}

/// Why a message was not read.
const fn unread(problem: &Problem) -> Code {
    match problem.status {
        408 => Code::DeadlineExceeded,
        413 => Code::OutOfRange,
        503 => Code::Unavailable,
        _ => Code::Cancelled,
    }
}

/// Largest message with the five bytes before it.
const MAX_FRAME: usize = hy2_proto::control::MAX_MESSAGE + 5;

struct Admin {
    state: ApiState,
}

impl Admin {
    /// Returns the code of a region; none has an empty one.
    async fn code_of(&self, region: Option<RegionId>) -> Result<String, ServiceError> {
        match region {
            Some(id) => Ok(regions::code(self.state.service.store(), id).await?),
            None => Ok(String::new()),
        }
    }

    /// Returns the number of the region with a code; none with an empty one. Part of what runs once for a request id:
    /// the region may be gone when the request comes again.
    async fn region_id(&self, field: &str, code: &str) -> Result<Option<i64>, ServiceError> {
        if code.is_empty() {
            return Ok(None);
        }
        let found = regions::by_code(self.state.service.store(), code).await;
        match found? {
            Some(id) => Ok(Some(id.0)),
            None => Err(no_region(field)),
        }
    }

    async fn user(&self, row: UserRow) -> Result<pb::User, ServiceError> {
        let home = self.code_of(row.home_region_id).await?;
        Ok(user(row, home))
    }

    async fn node(&self, row: NodeRow) -> Result<pb::Node, ServiceError> {
        let region = self.code_of(row.region_id).await?;
        Ok(pb::Node {
            id: row.id.to_wire(),
            uid: row.uid.to_string(),
            name: row.name,
            public_host: row.public_host,
            listen_port: u32::try_from(row.listen_port).unwrap_or(0),
            region,
            country: row.country.unwrap_or_default(),
            tags: row.tags.0,
            weight: u32::try_from(row.weight).unwrap_or(0),
            desired_state: desired(row.desired_state).into(),
            observed_state: observed(row.observed_state).into(),
            state_reason: row.state_reason,
            desired_rev: row.desired_rev.unsigned_abs(),
            applied_rev: row.applied_rev.unsigned_abs(),
            agent_version: row.agent_version,
            last_seen_at: row.last_seen_at.map(Timestamp::to_proto),
            billing_multiplier: row.billing_multiplier.unsigned_abs(),
            rev: row.rev.unsigned_abs(),
            connections: u32::try_from(row.connections).unwrap_or(u32::MAX),
            capacity_sessions: wire32(row.capacity_sessions),
            created_at: Some(row.created_at.to_proto()),
            provider: row.provider.unwrap_or_default(),
            note: row.note,
        })
    }
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn list_nodes(
        &self,
        request: Request<pb::ListNodesRequest>,
    ) -> Result<Response<pb::ListNodesResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::ListNodes)?;
        let m = &asked.message;
        let page = page(m.page.clone());
        let filter = NodeFilter {
            observed_state: wanted_state(m.observed_state)?,
            search: Some(m.search.clone()).filter(|search| !search.is_empty()),
        };
        let found = self
            .state
            .service
            .nodes(access, &filter, &page)
            .await
            .map_err(page_status)?;
        let mut nodes = Vec::new();
        for row in found.items {
            nodes.push(self.node(row).await.map_err(status)?);
        }
        Ok(Response::new(pb::ListNodesResponse {
            nodes,
            page: page_info(found.next),
        }))
    }

    async fn get_node(
        &self,
        request: Request<pb::GetNodeRequest>,
    ) -> Result<Response<pb::GetNodeResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::GetNode)?;
        let id = NodeId(id(asked.message.id, "node")?);
        let row = self.state.service.node(access, id).await.map_err(status)?;
        let node = Some(self.node(row).await.map_err(status)?);
        Ok(Response::new(pb::GetNodeResponse { node }))
    }

    async fn update_node(
        &self,
        request: Request<pb::UpdateNodeRequest>,
    ) -> Result<Response<pb::UpdateNodeResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::UpdateNode)?;
        let m = asked.message.clone();
        let node = NodeId(id(m.id, "node")?);
        let port = m.listen_port.map(u16::try_from).transpose();
        let bad = |field, message| status(ServiceError::invalid(field, message));
        let change = UpdateNode {
            name: m.name,
            public_host: m.public_host,
            listen_port: port.map_err(|_| bad("listen_port", "must be between 1 and 65535"))?,
            region_id: None,
            weight: m.weight.map(i64::from),
            billing_multiplier: m
                .billing_multiplier
                .map(i64::try_from)
                .transpose()
                .map_err(|_| bad("billing_multiplier", "is too large"))?,
            capacity_sessions: limit(m.capacity_sessions, "capacity_sessions")?,
            country: m.country.map(some),
            provider: m.provider.map(some),
            note: m.note,
            tags: m.tags.map(|tags| tags.tags),
        };
        let rev = expected(m.expected_rev)?;
        let work = async {
            let region_id = match m.region.as_deref() {
                None => None,
                Some(code) => Some(self.region_id("region", code).await?),
            };
            let change = UpdateNode {
                region_id,
                ..change
            };
            let row = self
                .state
                .service
                .update_node(access, node, rev, change)
                .await?;
            Ok(pb::UpdateNodeResponse {
                node: Some(self.node(row).await?),
            })
        };
        self.once(access, &asked.message, &m.request_id, work).await
    }

    async fn delete_node(
        &self,
        request: Request<pb::DeleteNodeRequest>,
    ) -> Result<Response<pb::DeleteNodeResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::DeleteNode)?;
        let m = &asked.message;
        let node = NodeId(id(m.id, "node")?);
        let rev = expected(m.expected_rev)?;
        let work = async {
            self.state.service.delete_node(access, node, rev).await?;
            Ok(pb::DeleteNodeResponse {})
        };
        self.once(access, &asked.message, &m.request_id, work).await
    }

    async fn set_node_state(
        &self,
        request: Request<pb::SetNodeStateRequest>,
    ) -> Result<Response<pb::SetNodeStateResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::SetNodeState)?;
        let m = &asked.message;
        let node = NodeId(id(m.id, "node")?);
        let wanted = match pb::NodeDesiredState::try_from(m.state) {
            Ok(pb::NodeDesiredState::Active) => DesiredState::Active,
            Ok(pb::NodeDesiredState::Cordoned) => DesiredState::Cordoned,
            Ok(pb::NodeDesiredState::Draining) => DesiredState::Draining,
            Ok(pb::NodeDesiredState::Maintenance) => DesiredState::Maintenance,
            Ok(pb::NodeDesiredState::Disabled) => DesiredState::Disabled,
            Ok(pb::NodeDesiredState::Unspecified) | Err(_) => {
                return Err(status(ServiceError::invalid("state", "is unknown")));
            }
        };
        let deadline = moment(m.drain_deadline);
        let work = async {
            let row = self
                .state
                .service
                .set_node_state(access, node, wanted, deadline)
                .await?;
            Ok(pb::SetNodeStateResponse {
                node: Some(self.node(row).await?),
            })
        };
        self.once(access, &asked.message, &m.request_id, work).await
    }

    async fn revoke_node_certificates(
        &self,
        request: Request<pb::RevokeNodeCertificatesRequest>,
    ) -> Result<Response<pb::RevokeNodeCertificatesResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::RevokeNodeCertificates)?;
        let m = &asked.message;
        let node = NodeId(id(m.id, "node")?);
        let work = async {
            let service = &self.state.service;
            let row = service
                .revoke_node_certificates(access, node, &m.reason)
                .await?;
            Ok(pb::RevokeNodeCertificatesResponse {
                node: Some(self.node(row).await?),
            })
        };
        self.once(access, &asked.message, &m.request_id, work).await
    }

    async fn forfeit_node(
        &self,
        request: Request<pb::ForfeitNodeRequest>,
    ) -> Result<Response<pb::ForfeitNodeResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::ForfeitNode)?;
        let m = &asked.message;
        let node = NodeId(id(m.id, "node")?);
        let work = async {
            let slices = self.state.service.forfeit_node(access, node).await?;
            Ok(pb::ForfeitNodeResponse { slices })
        };
        self.once(access, &asked.message, &m.request_id, work).await
    }

    async fn create_enrolment_token(
        &self,
        request: Request<pb::CreateEnrolmentTokenRequest>,
    ) -> Result<Response<pb::CreateEnrolmentTokenResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::CreateEnrolmentToken)?;
        let m = &asked.message;
        let bind_cidr = match m.bind_cidr.as_str() {
            "" => None,
            cidr => Some(
                cidr.parse()
                    .map_err(|_| status(ServiceError::invalid("bind_cidr", "is not a CIDR")))?,
            ),
        };
        let work = async {
            let new = CreateEnrolmentToken {
                label: m.label.clone(),
                valid_s: Some(m.valid_seconds).filter(|seconds| *seconds > 0),
                bind_cidr,
                region_id: self.region_id("region", &m.region).await?,
                tags: Vec::new(),
            };
            let made = self.state.service.create_enrolment_token(access, new).await;
            let made = made.map_err(|error| error.renamed(&[("valid_s", "valid_seconds")]))?;
            let (row, token, ca_pin) = made;
            Ok(pb::CreateEnrolmentTokenResponse {
                id: row.id.to_string(),
                token: token.expose_secret().to_owned(),
                ca_pin,
                expires_at: Some(row.expires_at.to_proto()),
            })
        };
        self.once(access, &asked.message, &m.request_id, work).await
    }

    async fn list_regions(
        &self,
        request: Request<pb::ListRegionsRequest>,
    ) -> Result<Response<pb::ListRegionsResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::ListRegions)?;
        let found = self.state.service.regions(access).await.map_err(status)?;
        Ok(Response::new(pb::ListRegionsResponse {
            regions: found.into_iter().map(region).collect(),
        }))
    }

    async fn create_region(
        &self,
        request: Request<pb::CreateRegionRequest>,
    ) -> Result<Response<pb::CreateRegionResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::CreateRegion)?;
        let m = &asked.message;
        let new = CreateRegion {
            code: m.code.clone(),
            name: m.name.clone(),
            latitude: m.latitude,
            longitude: m.longitude,
        };
        let work = async {
            let row = self.state.service.create_region(access, new).await?;
            Ok(pb::CreateRegionResponse {
                region: Some(region(row)),
            })
        };
        self.once(access, &asked.message, &m.request_id, work).await
    }

    async fn update_region(
        &self,
        request: Request<pb::UpdateRegionRequest>,
    ) -> Result<Response<pb::UpdateRegionResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::UpdateRegion)?;
        let m = &asked.message;
        let of = RegionId(id(m.id, "region")?);
        let located = [
            ("latitude", m.latitude.is_some()),
            ("longitude", m.longitude.is_some()),
        ];
        either(("clear_location", m.clear_location), &located)?;
        let degrees = |value: Option<f64>| match m.clear_location {
            true => Some(None),
            false => value.map(Some),
        };
        let change = UpdateRegion {
            code: m.code.clone(),
            name: m.name.clone(),
            latitude: degrees(m.latitude),
            longitude: degrees(m.longitude),
        };
        let work = async {
            let service = &self.state.service;
            let row = service.update_region(access, of, None, change).await?;
            Ok(pb::UpdateRegionResponse {
                region: Some(region(row)),
            })
        };
        self.once(access, &asked.message, &m.request_id, work).await
    }

    async fn delete_region(
        &self,
        request: Request<pb::DeleteRegionRequest>,
    ) -> Result<Response<pb::DeleteRegionResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::DeleteRegion)?;
        let m = &asked.message;
        let of = RegionId(id(m.id, "region")?);
        let work = async {
            self.state.service.delete_region(access, of, None).await?;
            Ok(pb::DeleteRegionResponse {})
        };
        self.once(access, &asked.message, &m.request_id, work).await
    }

    async fn list_users(
        &self,
        request: Request<pb::ListUsersRequest>,
    ) -> Result<Response<pb::ListUsersResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::ListUsers)?;
        let m = &asked.message;
        let list = ListUsers {
            page: page(m.page.clone()),
            filter: UserFilter {
                status: wanted_status(m.status)?,
                search: Some(m.search.clone()).filter(|search| !search.is_empty()),
                ..UserFilter::default()
            },
            sort: UserSort::Id,
            descending: false,
        };
        let found = self
            .state
            .service
            .users(access, list)
            .await
            .map_err(page_status)?;
        let codes = match found.items.iter().any(|row| row.home_region_id.is_some()) {
            true => regions::codes(self.state.service.store()).await,
            false => Ok(BTreeMap::new()),
        };
        let codes = codes.map_err(|error| status(error.into()))?;
        let home = |row: &UserRow| codes.get(&row.home_region_id?).cloned();
        let users = found.items.into_iter().map(|row| {
            let home = home(&row).unwrap_or_default();
            user(row, home)
        });
        let users = users.collect();
        Ok(Response::new(pb::ListUsersResponse {
            users,
            page: page_info(found.next),
        }))
    }

    async fn get_user(
        &self,
        request: Request<pb::GetUserRequest>,
    ) -> Result<Response<pb::GetUserResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::GetUser)?;
        let id = UserId(id(asked.message.id, "user")?);
        let row = self.state.service.user(access, id).await.map_err(status)?;
        let user = Some(self.user(row).await.map_err(status)?);
        Ok(Response::new(pb::GetUserResponse { user }))
    }

    async fn create_user(
        &self,
        request: Request<pb::CreateUserRequest>,
    ) -> Result<Response<pb::CreateUserResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::CreateUser)?;
        let m = asked.message.clone();
        let plan_id = match m.plan_id {
            0 => None,
            value => Some(id(value, "plan")?),
        };
        let password = Some(m.password).filter(|password| !password.is_empty());
        let new = CreateUser {
            username: m.username,
            plan_id,
            expires_at: moment(m.expires_at),
            quota_bytes: limit(m.quota_bytes, "quota_bytes")?.flatten(),
            max_devices: limit(m.max_devices, "max_devices")?.flatten(),
            max_connections: limit(m.max_connections, "max_connections")?.flatten(),
            up_bytes_per_s: limit(m.up_bytes_per_s, "up_bytes_per_s")?.flatten(),
            down_bytes_per_s: limit(m.down_bytes_per_s, "down_bytes_per_s")?.flatten(),
            note: m.note,
            tags: m.tags,
            password: password.map(|password| SecretText(password.into())),
            ..CreateUser::default()
        };
        let work = async {
            let service = &self.state.service;
            let new = CreateUser {
                home_region_id: self.region_id("home_region", &m.home_region).await?,
                ..new
            };
            let row = service.create_user(access, new).await?;
            let url = service.subscription_of(&row)?;
            let subscription_url = url.expose_secret().to_owned();
            Ok(pb::CreateUserResponse {
                user: Some(self.user(row).await?),
                subscription_url,
            })
        };
        self.once(access, &asked.message, &m.request_id, work).await
    }

    async fn update_user(
        &self,
        request: Request<pb::UpdateUserRequest>,
    ) -> Result<Response<pb::UpdateUserResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::UpdateUser)?;
        let m = asked.message.clone();
        let of = UserId(id(m.id, "user")?);
        let given = [("expires_at", m.expires_at.is_some())];
        either(("clear_expires_at", m.clear_expires_at), &given)?;
        let expires_at = match (m.clear_expires_at, moment(m.expires_at)) {
            (true, _) => Some(None),
            (false, Some(at)) => Some(Some(at)),
            (false, None) => None,
        };
        let plan_id = match m.plan_id {
            None => None,
            Some(0) => Some(None),
            Some(value) => Some(Some(id(value, "plan")?)),
        };
        let change = UpdateUser {
            status: wanted_status(m.status)?,
            plan_id,
            expires_at,
            quota_bytes: limit(m.quota_bytes, "quota_bytes")?,
            max_devices: limit(m.max_devices, "max_devices")?,
            max_connections: limit(m.max_connections, "max_connections")?,
            up_bytes_per_s: limit(m.up_bytes_per_s, "up_bytes_per_s")?,
            down_bytes_per_s: limit(m.down_bytes_per_s, "down_bytes_per_s")?,
            note: m.note,
            ..UpdateUser::default()
        };
        let rev = expected(m.expected_rev)?;
        let work = async {
            let home_region_id = match m.home_region.as_deref() {
                None => None,
                Some(code) => Some(self.region_id("home_region", code).await?),
            };
            let change = UpdateUser {
                home_region_id,
                ..change
            };
            let row = self
                .state
                .service
                .update_user(access, of, rev, change)
                .await?;
            Ok(pb::UpdateUserResponse {
                user: Some(self.user(row).await?),
            })
        };
        self.once(access, &asked.message, &m.request_id, work).await
    }

    async fn delete_user(
        &self,
        request: Request<pb::DeleteUserRequest>,
    ) -> Result<Response<pb::DeleteUserResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::DeleteUser)?;
        let m = &asked.message;
        let of = UserId(id(m.id, "user")?);
        let rev = expected(m.expected_rev)?;
        let work = async {
            self.state.service.delete_user(access, of, rev).await?;
            Ok(pb::DeleteUserResponse {})
        };
        self.once(access, &asked.message, &m.request_id, work).await
    }

    async fn kick_user(
        &self,
        request: Request<pb::KickUserRequest>,
    ) -> Result<Response<pb::KickUserResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::KickUser)?;
        let m = &asked.message;
        let of = UserId(id(m.id, "user")?);
        let work = async {
            let reach = self.state.service.kick_user(access, of).await?;
            Ok(pb::KickUserResponse {
                nodes: u32::try_from(reach.reached.len()).unwrap_or(u32::MAX),
                closed: u32::try_from(reach.connections).unwrap_or(u32::MAX),
            })
        };
        self.once(access, &asked.message, &m.request_id, work).await
    }

    async fn reset_user_traffic(
        &self,
        request: Request<pb::ResetUserTrafficRequest>,
    ) -> Result<Response<pb::ResetUserTrafficResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::ResetUserTraffic)?;
        let m = &asked.message;
        let of = UserId(id(m.id, "user")?);
        let work = async {
            let row = self
                .state
                .service
                .reset_user_traffic(access, of, &m.reason)
                .await?;
            Ok(pb::ResetUserTrafficResponse {
                user: Some(self.user(row).await?),
            })
        };
        self.once(access, &asked.message, &m.request_id, work).await
    }

    async fn list_plans(
        &self,
        request: Request<pb::ListPlansRequest>,
    ) -> Result<Response<pb::ListPlansResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::ListPlans)?;
        let page = page(asked.message.page.clone());
        let found = self
            .state
            .service
            .plans(access, &page, false)
            .await
            .map_err(page_status)?;
        let plans = found.items.into_iter().map(plan).collect();
        Ok(Response::new(pb::ListPlansResponse {
            plans,
            page: page_info(found.next),
        }))
    }

    async fn create_plan(
        &self,
        request: Request<pb::CreatePlanRequest>,
    ) -> Result<Response<pb::CreatePlanResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::CreatePlan)?;
        let m = asked.message.plan.clone().unwrap_or_default();
        let period = match m.period.as_str() {
            "" => QuotaPeriod::None,
            word => word
                .parse()
                .map_err(|_| status(ServiceError::invalid("plan.period", "is unknown")))?,
        };
        let new = CreatePlan {
            name: m.name,
            quota_bytes: limit(Some(m.quota_bytes), "plan.quota_bytes")?.flatten(),
            period,
            duration_days: limit(Some(m.duration_days), "plan.duration_days")?.flatten(),
            max_devices: limit(Some(m.max_devices), "plan.max_devices")?.flatten(),
            max_connections: limit(Some(m.max_connections), "plan.max_connections")?.flatten(),
            up_bytes_per_s: limit(Some(m.up_bytes_per_s), "plan.up_bytes_per_s")?.flatten(),
            down_bytes_per_s: limit(Some(m.down_bytes_per_s), "plan.down_bytes_per_s")?.flatten(),
            nodes_per_user: match m.nodes_per_user {
                0 => 3,
                nodes => i64::from(nodes),
            },
            next_plan_id: None,
        };
        let work = async {
            let made = self.state.service.create_plan(access, new).await;
            let row = made.map_err(|error| error.within("plan."))?;
            Ok(pb::CreatePlanResponse {
                plan: Some(plan(row)),
            })
        };
        self.once(access, &asked.message, &asked.message.request_id, work)
            .await
    }

    async fn list_assignments(
        &self,
        request: Request<pb::ListAssignmentsRequest>,
    ) -> Result<Response<pb::ListAssignmentsResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::ListAssignments)?;
        let m = &asked.message;
        let of = Some(UserId(id(m.user_id, "user")?)).filter(|id| id.0 > 0);
        let on = Some(NodeId(id(m.node_id, "node")?)).filter(|id| id.0 > 0);
        let page = page(m.page.clone());
        let service = &self.state.service;
        let found = service
            .assignments(access, &page, of, on, false)
            .await
            .map_err(page_status)?;
        let assignments = found.items.into_iter().map(assignment).collect();
        Ok(Response::new(pb::ListAssignmentsResponse {
            assignments,
            page: page_info(found.next),
        }))
    }

    async fn assign_user(
        &self,
        request: Request<pb::AssignUserRequest>,
    ) -> Result<Response<pb::AssignUserResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::AssignUser)?;
        let m = &asked.message;
        let new = AssignUser {
            user_id: id(m.user_id, "user")?,
            node_id: id(m.node_id, "node")?,
            rank: 0,
            pinned: false,
        };
        let work = async {
            let row = self.state.service.assign_user(access, new).await?;
            Ok(pb::AssignUserResponse {
                assignment: Some(assignment(row)),
            })
        };
        self.once(access, &asked.message, &m.request_id, work).await
    }

    async fn release_user(
        &self,
        request: Request<pb::ReleaseUserRequest>,
    ) -> Result<Response<pb::ReleaseUserResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::ReleaseUser)?;
        let m = &asked.message;
        let (of, on) = (
            UserId(id(m.user_id, "user")?),
            NodeId(id(m.node_id, "node")?),
        );
        let work = async {
            self.state.service.release_user(access, of, on).await?;
            Ok(pb::ReleaseUserResponse {})
        };
        self.once(access, &asked.message, &m.request_id, work).await
    }

    async fn get_traffic(
        &self,
        request: Request<pb::GetTrafficRequest>,
    ) -> Result<Response<pb::GetTrafficResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::GetTraffic)?;
        let m = &asked.message;
        let query = TrafficQuery {
            user: Some(UserId(id(m.user_id, "user")?)).filter(|id| id.0 > 0),
            node: Some(NodeId(id(m.node_id, "node")?)).filter(|id| id.0 > 0),
            from: moment(m.from).map(|at| at.0),
            to: moment(m.to).map(|at| at.0),
        };
        let found = self
            .state
            .service
            .traffic(access, query)
            .await
            .map_err(status)?;
        Ok(Response::new(pb::GetTrafficResponse {
            tx_bytes: found.tx_bytes.unsigned_abs(),
            rx_bytes: found.rx_bytes.unsigned_abs(),
            billed_bytes: wire(found.billed_bytes),
            quarantined_bytes: wire(found.quarantined_bytes),
        }))
    }

    type WatchEventsStream =
        Pin<Box<dyn Stream<Item = Result<pb::WatchEventsResponse, Status>> + Send>>;

    async fn watch_events(
        &self,
        request: Request<pb::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let asked = asked(request)?;
        asked.access(Operation::WatchEvents)?;
        let after = Some(id(asked.message.after, "event")?).filter(|after| *after > 0);
        let topics = asked.message.topics.join(",");
        let feed = Feed::open(self.state.clone(), asked.caller, after, Some(&topics)).await;
        let feed = feed.map_err(|problem| Status::permission_denied(problem.detail))?;
        let events = stream::unfold(feed, |mut feed| async move {
            let event = feed.next().await?;
            let told = pb::WatchEventsResponse {
                seq: event.seq.unsigned_abs(),
                topic: event.topic,
                key: event.key,
                payload: event.payload.0.to_string(),
                at: Some(event.at.to_proto()),
            };
            Some((Ok(told), feed))
        });
        Ok(Response::new(events.boxed()))
    }

    async fn verify_audit(
        &self,
        request: Request<pb::VerifyAuditRequest>,
    ) -> Result<Response<pb::VerifyAuditResponse>, Status> {
        let asked = asked(request)?;
        let access = asked.access(Operation::VerifyAudit)?;
        let found = self
            .state
            .service
            .verify_audit(access)
            .await
            .map_err(status)?;
        Ok(Response::new(pb::VerifyAuditResponse {
            intact: found.broken_at.is_none(),
            entries: found.entries.unsigned_abs(),
            broken_at: wire(found.broken_at),
        }))
    }
}
