//! What a site makes of paths and conditional requests, for the fuzz targets.

use std::{ops::Range, time::SystemTime};

use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::{
    entity::{Entity, Plan},
    path,
};

/// Decodes a path and resolves it below a directory; `None` if it is refused.
pub fn segments(text: &str) -> Option<Vec<String>> {
    let decoded = path::decode(text)?;
    let segments = path::segments(&decoded);
    Some(segments.into_iter().map(str::to_owned).collect())
}

/// Writes a name as a relative link.
pub fn link(name: &str) -> String {
    path::link(name)
}

/// Answers a request for content of a size: status, headers, and the bytes that follow.
pub fn plan(
    method: &Method,
    headers: &HeaderMap,
    size: u64,
    etag: Option<HeaderValue>,
    modified: Option<SystemTime>,
) -> (StatusCode, HeaderMap, Option<Range<u64>>) {
    let entity = Entity {
        content_type: HeaderValue::from_static("text/plain"),
        modified,
        etag,
        size,
    };
    match entity.plan(method, headers) {
        Plan::Done(response) => (response.status(), response.headers().clone(), None),
        Plan::Send(head, range) => (head.status(), head.headers().clone(), Some(range)),
    }
}
