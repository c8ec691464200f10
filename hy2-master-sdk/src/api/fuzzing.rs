//! What strangers write into heads and bodies of requests, for the fuzz targets.

use std::net::IpAddr;

use http::HeaderMap;
use ipnet::IpNet;

use super::{address, authn, extract};

/// Returns the bearer token; the error is an answer.
#[allow(clippy::result_unit_err, reason = "which answer it is does not matter")]
pub fn bearer(headers: &HeaderMap) -> Result<Option<&str>, ()> {
    authn::bearer(headers).map_err(|_| ())
}

/// Returns the access token of the panel's cookie.
pub fn access_cookie(headers: &HeaderMap) -> Option<&str> {
    authn::cookie(headers, authn::ACCESS_COOKIE)
}

/// Returns whether the page which asks is ours.
pub fn is_same_origin(headers: &HeaderMap) -> bool {
    authn::check_origin(headers).is_ok()
}

/// Returns the address of the client, behind proxies of 10.0.0.0/8.
pub fn client_address(peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    let trusted = IpNet::new_assert(IpAddr::from([10, 0, 0, 0]), 8);
    address::client_address(peer, headers, &[trusted])
}

/// Returns the revision that `If-Match` asks for; the error is an answer.
#[allow(clippy::result_unit_err, reason = "which answer it is does not matter")]
pub fn revision(headers: &HeaderMap) -> Result<Option<i64>, ()> {
    extract::revision(headers).map_err(|_| ())
}

/// Returns whether a JSON text has the escape of NUL in it.
pub fn has_nul(json: &[u8]) -> bool {
    extract::has_nul(json)
}
