//! The answers that operations have in common, for the OpenAPI document.

use utoipa::IntoResponses;

use super::problem::Problem;

/// Of operations that need a caller.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only the document is made from it")]
pub(crate) enum Common {
    /// The request cannot be read.
    #[response(status = 400, content_type = "application/problem+json")]
    Malformed(#[to_schema] Problem),
    /// No credential, or one that does not hold.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthenticated(#[to_schema] Problem),
    /// The caller may not.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(#[to_schema] Problem),
    /// There is no such thing, or it is not the caller's.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(#[to_schema] Problem),
    /// The state of things does not allow it.
    #[response(status = 409, content_type = "application/problem+json")]
    Conflict(#[to_schema] Problem),
    /// `If-Match` names another revision.
    #[response(status = 412, content_type = "application/problem+json")]
    Stale(#[to_schema] Problem),
    /// Fields are not valid.
    #[response(status = 422, content_type = "application/problem+json")]
    Invalid(#[to_schema] Problem),
    /// Too often; see `Retry-After`.
    #[response(status = 429, content_type = "application/problem+json")]
    Limited(#[to_schema] Problem),
    /// The store does not answer; see `Retry-After`.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(#[to_schema] Problem),
}

/// Of operations that give a credential.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only the document is made from it")]
pub(crate) enum Public {
    /// The request cannot be read.
    #[response(status = 400, content_type = "application/problem+json")]
    Malformed(#[to_schema] Problem),
    /// What was given does not hold.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthenticated(#[to_schema] Problem),
    /// Not from the panel.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(#[to_schema] Problem),
    /// Fields are not valid.
    #[response(status = 422, content_type = "application/problem+json")]
    Invalid(#[to_schema] Problem),
    /// Too often; see `Retry-After`.
    #[response(status = 429, content_type = "application/problem+json")]
    Limited(#[to_schema] Problem),
    /// The store does not answer; see `Retry-After`.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(#[to_schema] Problem),
}
