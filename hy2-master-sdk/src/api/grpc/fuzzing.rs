//! What is looked for in the fields of requests, for the fuzz targets.

use crate::service::FieldIssue;

/// See `fields::wrong`.
pub fn wrong(path: &str, body: &[u8]) -> Option<FieldIssue> {
    super::fields::wrong(path, body)
}
