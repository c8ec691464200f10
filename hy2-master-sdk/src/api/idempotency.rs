//! The same request twice: with `Idempotency-Key`, the second gets the answer of the first.
//!
//! The answer is kept sealed, because it may hold secrets that are shown once, and given only to a caller who may do
//! what the first might: another role or another API token of the same administrator is refused. A request that was
//! refused without changing anything gives its key back. A request with a key goes on when its caller goes away: the answer
//! is there when the request comes again.

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde::{Deserialize, Serialize};

use super::ApiState;
use super::keyed::{Claimed, End, Held};
use super::problem::Problem;
use crate::auth::access::Caller;
use crate::domain::AdminId;
use crate::service::{Service, ServiceError};
use crate::store::idempotency::Remembered;

/// The header.
pub(crate) const KEY_HEADER: HeaderName = HeaderName::from_static("idempotency-key");

/// Says that an answer is that of an earlier request.
pub(crate) const REPLAYED_HEADER: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Largest body of a request with a key, in bytes.
const MAX_BODY: usize = 16 << 20;

/// Largest answer that is kept, in bytes.
const MAX_ANSWER: usize = 4 << 20;

/// Where sealed answers belong.
const PLACE: &str = "idempotency_keys.response";

#[derive(Serialize, Deserialize)]
struct Kept {
    content_type: Option<String>,
    etag: Option<String>,
    location: Option<String>,
    body: Vec<u8>,
}

/// Answers a repeated request with the answer of the first.
pub(crate) async fn replay(
    State(state): State<ApiState>,
    request: Request,
    next: Next,
) -> Response {
    let changes = !matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS
    );
    let caller = request.extensions().get::<Caller>();
    let (Some(caller), Some(key), true) = (caller, request.headers().get(KEY_HEADER), changes)
    else {
        return next.run(request).await;
    };
    let (admin, standing) = (caller.admin, caller.standing());
    let Some(key) = readable(key) else {
        let detail = "Idempotency-Key has to be 1 to 128 printable ASCII characters";
        return Problem::malformed(detail).into_response();
    };
    let (parts, body) = request.into_parts();
    let body = match state.intake.read(&parts.extensions, body, MAX_BODY).await {
        Ok(body) => body,
        Err(problem) => return problem.into_response(),
    };
    let path = parts.uri.path_and_query().map(|at| at.as_str());
    let hash = state.service.session_keys().request_hash(&[
        standing.as_bytes(),
        parts.method.as_str().as_bytes(),
        path.unwrap_or_default().as_bytes(),
        &body,
    ]);
    let request = Request::from_parts(parts, Body::from(body));
    let keyed = state.keyed.clone();
    let once = async move {
        let service = &state.service;
        match state.keyed.claim(service, admin, &key, &hash).await {
            Err(error) => Problem::from(ServiceError::from(error)).into_response(),
            Ok(Claimed::Known { first, runs }) => {
                answer_again(service, row(admin, &key), &hash, first, runs)
            }
            Ok(Claimed::Ours(held)) => {
                let response = held.work(next.run(request)).await;
                keep(service, row(admin, &key), held, response).await
            }
        }
    };
    keyed
        .finish(once)
        .await
        .unwrap_or_else(IntoResponse::into_response)
}

fn answer_again(
    service: &Service,
    row: Vec<u8>,
    hash: &[u8],
    known: Remembered,
    runs: bool,
) -> Response {
    if known.request_hash != hash {
        let detail =
            "this Idempotency-Key came with another request, or from a caller with other rights";
        let title = "Key used for something else";
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        return Problem::new(status, "idempotency_mismatch", title, detail).into_response();
    }
    let acted = known.has_acted();
    let (Some(status), Some(sealed)) = (known.status, known.response_enc) else {
        let problem = match runs {
            true => Problem::still_runs(),
            false => Problem::cut_off(acted),
        };
        return problem.into_response();
    };
    let opened = service.vault().open(PLACE, &row, &sealed);
    let kept = opened
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok());
    let status = u16::try_from(status)
        .ok()
        .and_then(|status| StatusCode::from_u16(status).ok());
    let (Some(kept), Some(status)) = (kept, status) else {
        return Problem::from(ServiceError::internal("a kept answer does not open"))
            .into_response();
    };
    let mut headers = HeaderMap::new();
    let fields = [
        (header::CONTENT_TYPE, kept.content_type),
        (header::ETAG, kept.etag),
        (header::LOCATION, kept.location),
    ];
    for (name, value) in fields {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(name, value);
        }
    }
    headers.insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
    (status, headers, kept.body).into_response()
}

async fn keep(service: &Service, row: Vec<u8>, held: Held, response: Response) -> Response {
    let (parts, body) = response.into_parts();
    // Files are not kept: to make one again changes nothing.
    let is_file = parts.headers.contains_key(header::CONTENT_DISPOSITION);
    if !parts.status.is_success() || is_file {
        // What failed may have changed something before.
        let end = match parts.status.is_server_error() {
            true => End::Failed,
            false => End::Refused,
        };
        held.end(service.store(), end).await;
        return Response::from_parts(parts, body);
    }
    let Ok(body) = to_bytes(body, MAX_ANSWER).await else {
        return Problem::from(ServiceError::internal("the answer is too large to keep"))
            .into_response();
    };
    let text = |name| {
        parts
            .headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
            .map(str::to_owned)
    };
    let kept = Kept {
        content_type: text(header::CONTENT_TYPE),
        etag: text(header::ETAG),
        location: text(header::LOCATION),
        body: body.to_vec(),
    };
    let plain = serde_json::to_vec(&kept).unwrap_or_default();
    let end = End::Answered {
        status: parts.status.as_u16(),
        sealed: service.vault().seal(PLACE, &row, &plain).into(),
    };
    held.end(service.store(), end).await;
    Response::from_parts(parts, Body::from(body))
}

fn readable(key: &HeaderValue) -> Option<String> {
    let text = key.to_str().ok()?;
    let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
    (printable && (1..=128).contains(&text.len())).then(|| text.to_owned())
}

fn row(admin: AdminId, key: &str) -> Vec<u8> {
    [&admin.0.to_be_bytes()[..], key.as_bytes()].concat()
}
