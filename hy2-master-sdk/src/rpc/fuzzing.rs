//! What a node says when it enrols and renews, for the fuzz targets.

use std::net::SocketAddr;

use hy2_proto::control::rpc;
use tonic::Status;

use super::enroll;
use crate::domain::Timestamp;

/// See `enroll::claim`.
///
/// # Errors
///
/// As there.
pub fn claim(request: &rpc::RenewCertificateRequest, now: Timestamp) -> Result<(), Status> {
    enroll::claim(request, now).map(drop)
}

/// See `enroll::check_signature`.
///
/// # Errors
///
/// As there.
pub fn check_signature(request: &rpc::RenewCertificateRequest) -> Result<(), Status> {
    let at = request.at.unwrap_or_default();
    enroll::check_signature(request, &at)
}

/// See `enroll::public_host`.
///
/// # Errors
///
/// As there.
pub fn public_host(request: &rpc::EnrollRequest, peer: SocketAddr) -> Result<String, Status> {
    enroll::public_host(request, peer)
}

/// See `enroll::wanted_name`.
pub fn wanted_name(request: &rpc::EnrollRequest) -> String {
    enroll::wanted_name(request)
}
