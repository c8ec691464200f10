//! Errors as problem documents (RFC 9457) with stable codes. The one place where errors become HTTP.

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use tracing::{error, warn};
use utoipa::ToSchema;

use crate::service::{FieldIssue, ServiceError};

/// Media type of a problem document.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// A problem document.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Problem {
    /// `urn:hy2:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the code means.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// Stable, for programs.
    pub code: String,
    /// What is wrong this time, for people.
    pub detail: String,
    /// What is wrong with which field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldIssue>,
    /// When to come back.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
}

impl Problem {
    /// Makes a problem.
    pub fn new(status: StatusCode, code: &str, title: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:hy2:problem:{code}"),
            title: title.to_owned(),
            status: status.as_u16(),
            code: code.to_owned(),
            detail: detail.into(),
            errors: Vec::new(),
            retry_after: None,
        }
    }

    /// Says that the request itself cannot be read.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "malformed",
            "The request cannot be read",
            detail,
        )
    }

    /// Says that there is nothing at this address.
    pub fn no_route() -> Self {
        let title = "There is nothing here";
        Self::new(StatusCode::NOT_FOUND, "not_found", title, "no such address")
    }

    /// Says that what stands in the address for an id is none, and so the id of nothing.
    pub fn bad_id() -> Self {
        let title = "There is no such thing";
        let detail = "an id in the address is malformed";
        Self::new(StatusCode::NOT_FOUND, "not_found", title, detail)
    }

    /// Says that a request of the panel lacks the proof that the panel made it.
    pub fn csrf() -> Self {
        let detail = "requests with cookies carry X-CSRF-Token and come from the same origin";
        Self::new(StatusCode::FORBIDDEN, "csrf", "Not from the panel", detail)
    }

    /// Says that more requests are at work than can be served soon.
    pub fn busy() -> Self {
        let detail = "too many requests are at work";
        let title = "Temporarily unavailable";
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            title,
            detail,
        )
        .with_retry(Duration::from_secs(2))
    }

    /// Says that the process ends, and the request with it.
    pub fn stopping() -> Self {
        let detail = "this master stops";
        Self {
            detail: detail.to_owned(),
            ..Self::busy()
        }
    }

    /// Says that the first request with this key has no answer yet.
    pub fn still_runs() -> Self {
        let detail = "the first request with this key still runs: repeat it for the answer";
        let title = "First request runs";
        Self::new(StatusCode::CONFLICT, "idempotency_running", title, detail)
            .with_retry(Duration::from_secs(1))
    }

    /// Says that the first request with this key will have no answer; `acted`: it is known to have changed something.
    pub fn cut_off(acted: bool) -> Self {
        let detail = if acted {
            "the first request with this key has changed something and its answer is lost: \
             look at what is there, and do what is missing with a new key"
        } else {
            "the first request with this key was cut off: look whether it has happened, and \
             if not repeat it with a new key"
        };
        let title = "First request unfinished";
        Self::new(
            StatusCode::CONFLICT,
            "idempotency_unfinished",
            title,
            detail,
        )
    }

    fn with_retry(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }
}

impl From<ServiceError> for Problem {
    fn from(error: ServiceError) -> Self {
        use http::StatusCode as S;
        let detail = error.to_string();
        match error {
            ServiceError::Unauthenticated => Self::new(
                S::UNAUTHORIZED,
                "unauthenticated",
                "Authentication required",
                detail,
            ),
            ServiceError::WrongCredentials => Self::new(
                S::UNAUTHORIZED,
                "wrong_credentials",
                "Wrong credentials",
                detail,
            ),
            ServiceError::CodeRequired => Self::new(
                S::UNAUTHORIZED,
                "totp_required",
                "One-time code required",
                detail,
            ),
            ServiceError::DeniedField { issue, .. } => {
                let mut problem = Self::new(S::FORBIDDEN, "forbidden", "Not allowed", detail);
                problem.errors = vec![issue];
                problem
            }
            ServiceError::Denied(denied) => {
                let code = match denied {
                    crate::auth::access::Denied::PasswordChange => "password_change_required",
                    _ => "forbidden",
                };
                Self::new(S::FORBIDDEN, code, "Not allowed", detail)
            }
            ServiceError::NotFound(_) => {
                Self::new(S::NOT_FOUND, "not_found", "There is no such thing", detail)
            }
            ServiceError::Invalid(errors) => {
                let title = "Fields are not valid";
                let mut problem = Self::new(S::UNPROCESSABLE_ENTITY, "invalid", title, detail);
                problem.errors = errors;
                problem
            }
            ServiceError::Stale(_) => Self::new(
                S::PRECONDITION_FAILED,
                "stale_revision",
                "Changed meanwhile",
                detail,
            ),
            ServiceError::Conflict { code, detail } => Self::new(
                S::CONFLICT,
                code,
                "The state of things does not allow it",
                detail,
            ),
            ServiceError::Limited(limited) => {
                let title = "Too many requests";
                Self::new(S::TOO_MANY_REQUESTS, "rate_limited", title, detail)
                    .with_retry(limited.retry_after)
            }
            ServiceError::Unavailable(source) => {
                warn!(error = %Chain(&*source), "the store is unavailable");
                let title = "Temporarily unavailable";
                Self::new(S::SERVICE_UNAVAILABLE, "unavailable", title, detail)
                    .with_retry(Duration::from_secs(2))
            }
            ServiceError::Internal(source) => {
                error!(error = %Chain(&*source), "an operation failed");
                let title = "Internal error";
                Self::new(
                    S::INTERNAL_SERVER_ERROR,
                    "internal",
                    title,
                    "see the master's log",
                )
            }
        }
    }
}

/// An error with everything that caused it.
struct Chain<'a>(&'a (dyn std::error::Error + 'static));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry = self.retry_after;
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(retry) = retry {
            let seconds = retry.as_secs() + u64::from(retry.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }
}
