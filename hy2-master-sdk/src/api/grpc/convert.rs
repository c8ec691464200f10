//! Between the contract's messages and ours.

use hy2_proto::control::rpc as pb;
use tonic::Status;

use super::status;
use crate::domain::{AssignmentSource, DesiredState, ObservedState, Timestamp, UserStatus};
use crate::service::ServiceError;
use crate::service::moment::Moment;
use crate::service::page::PageRequest;
use crate::store::assignments::AssignmentRow;
use crate::store::plans::PlanRow;
use crate::store::regions::RegionRow;
use crate::store::users::UserRow;

pub(super) fn id(value: u64, what: &'static str) -> Result<i64, Status> {
    i64::try_from(value).map_err(|_| status(ServiceError::NotFound(what)))
}

/// The revision that the caller saw; 0: whatever it is.
pub(super) fn expected(rev: u64) -> Result<Option<i64>, Status> {
    i64::try_from(rev)
        .map(|rev| Some(rev).filter(|rev| *rev > 0))
        .map_err(|_| status(ServiceError::invalid("expected_rev", "is too large")))
}

/// Refuses to clear what is given a value in the same request.
pub(super) fn either(clear: (&str, bool), given: &[(&str, bool)]) -> Result<(), Status> {
    match given.iter().find(|(_, given)| *given && clear.1) {
        Some((field, _)) => {
            let message = format!("cannot be set together with {field}");
            Err(status(ServiceError::invalid(clear.0, message)))
        }
        None => Ok(()),
    }
}

pub(super) fn page(request: Option<pb::PageRequest>) -> PageRequest {
    let request = request.unwrap_or_default();
    PageRequest {
        size: Some(request.size).filter(|size| *size > 0),
        after: Some(request.after).filter(|after| !after.is_empty()),
    }
}

pub(super) fn page_info(next: Option<String>) -> Option<pb::PageInfo> {
    Some(pb::PageInfo {
        next: next.unwrap_or_default(),
    })
}

pub(super) fn moment(at: Option<prost_types::Timestamp>) -> Option<Moment> {
    at.map(|at| Moment(Timestamp::from_proto(&at)))
}

/// Limits of the contract: 0 is no limit.
pub(super) fn limit<T: Into<u64>>(
    value: Option<T>,
    field: &str,
) -> Result<Option<Option<i64>>, Status> {
    value
        .map(|value| match value.into() {
            0 => Ok(None),
            value => i64::try_from(value)
                .map(Some)
                .map_err(|_| status(ServiceError::invalid(field, "is too large"))),
        })
        .transpose()
}

/// Texts of the contract that may be unknown: empty is.
pub(super) fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

pub(super) fn wire(value: Option<i64>) -> u64 {
    value.unwrap_or(0).unsigned_abs()
}

pub(super) fn wire32(value: Option<i64>) -> u32 {
    u32::try_from(value.unwrap_or(0)).unwrap_or(u32::MAX)
}

pub(super) const fn desired(state: DesiredState) -> pb::NodeDesiredState {
    match state {
        DesiredState::Active => pb::NodeDesiredState::Active,
        DesiredState::Cordoned => pb::NodeDesiredState::Cordoned,
        DesiredState::Draining => pb::NodeDesiredState::Draining,
        DesiredState::Maintenance => pb::NodeDesiredState::Maintenance,
        DesiredState::Disabled => pb::NodeDesiredState::Disabled,
    }
}

pub(super) const fn observed(state: ObservedState) -> pb::NodeObservedState {
    match state {
        ObservedState::Pending => pb::NodeObservedState::Pending,
        ObservedState::Enrolling => pb::NodeObservedState::Enrolling,
        ObservedState::Online => pb::NodeObservedState::Online,
        ObservedState::Suspect => pb::NodeObservedState::Suspect,
        ObservedState::Offline => pb::NodeObservedState::Offline,
        ObservedState::Error => pb::NodeObservedState::Error,
        ObservedState::Revoked => pb::NodeObservedState::Revoked,
    }
}

pub(super) fn wanted_state(value: i32) -> Result<Option<ObservedState>, Status> {
    if value == 0 {
        return Ok(None);
    }
    let known = ObservedState::ALL
        .iter()
        .find(|state| observed(**state) as i32 == value);
    let unknown = || status(ServiceError::invalid("observed_state", "is unknown"));
    known.copied().map(Some).ok_or_else(unknown)
}

pub(super) fn wanted_status(value: i32) -> Result<Option<UserStatus>, Status> {
    Ok(match pb::UserStatus::try_from(value) {
        Ok(pb::UserStatus::Unspecified) => None,
        Ok(pb::UserStatus::OnHold) => Some(UserStatus::OnHold),
        Ok(pb::UserStatus::Active) => Some(UserStatus::Active),
        Ok(pb::UserStatus::Disabled) => Some(UserStatus::Disabled),
        Ok(pb::UserStatus::Limited) => Some(UserStatus::Limited),
        Ok(pb::UserStatus::Expired) => Some(UserStatus::Expired),
        Err(_) => return Err(status(ServiceError::invalid("status", "is unknown"))),
    })
}

pub(super) fn region(row: RegionRow) -> pb::Region {
    pb::Region {
        id: row.id.to_wire(),
        code: row.code,
        name: row.name,
        latitude: row.latitude,
        longitude: row.longitude,
        created_at: Some(row.created_at.to_proto()),
        updated_at: Some(row.updated_at.to_proto()),
    }
}

/// `home_region` is its code.
pub(super) fn user(row: UserRow, home_region: String) -> pb::User {
    let status = match row.status {
        UserStatus::OnHold => pb::UserStatus::OnHold,
        UserStatus::Active => pb::UserStatus::Active,
        UserStatus::Disabled => pb::UserStatus::Disabled,
        UserStatus::Limited => pb::UserStatus::Limited,
        UserStatus::Expired => pb::UserStatus::Expired,
        UserStatus::Deleted => pb::UserStatus::Unspecified,
    };
    pb::User {
        id: row.id.to_wire(),
        uid: row.uid.to_string(),
        used_bytes: row.used().unsigned_abs(),
        username: row.username,
        status: status.into(),
        plan_id: row.plan_id.map_or(0, |id| id.to_wire()),
        expires_at: row.expires_at.map(Timestamp::to_proto),
        quota_bytes: wire(row.quota_bytes),
        tx_bytes: row.tx.unsigned_abs(),
        rx_bytes: row.rx.unsigned_abs(),
        max_devices: wire32(row.max_devices),
        max_connections: wire32(row.max_connections),
        up_bytes_per_s: wire(row.up_bytes_per_s),
        down_bytes_per_s: wire(row.down_bytes_per_s),
        note: row.note,
        tags: row.tags.0,
        rev: row.rev.unsigned_abs(),
        created_at: Some(row.created_at.to_proto()),
        online_at: row.online_at.map(Timestamp::to_proto),
        home_region,
    }
}

pub(super) fn plan(row: PlanRow) -> pb::Plan {
    pb::Plan {
        id: row.id.to_wire(),
        name: row.name,
        quota_bytes: wire(row.quota_bytes),
        period: row.period.as_str().to_owned(),
        duration_days: wire32(row.duration_days),
        max_devices: wire32(row.max_devices),
        max_connections: wire32(row.max_connections),
        up_bytes_per_s: wire(row.up_bytes_per_s),
        down_bytes_per_s: wire(row.down_bytes_per_s),
        nodes_per_user: u32::try_from(row.nodes_per_user).unwrap_or(0),
        rev: row.rev.unsigned_abs(),
    }
}

pub(super) fn assignment(row: AssignmentRow) -> pb::Assignment {
    pb::Assignment {
        id: row.id.0.unsigned_abs(),
        user_id: row.user_id.to_wire(),
        node_id: row.node_id.to_wire(),
        rank: u32::try_from(row.rank).unwrap_or(0),
        source: AssignmentSource::as_str(row.source).to_owned(),
        assigned_at: Some(row.assigned_at.to_proto()),
        released_at: row.released_at.map(Timestamp::to_proto),
    }
}
