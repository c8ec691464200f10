//! REST on 8081: `/api/v1`, its OpenAPI document, health and metrics.
//!
//! One file per resource. Handlers read a request, ask for the right to the operation, call
//! [`crate::service`] and shape the answer; nothing is decided here.
#![allow(
    clippy::result_large_err,
    reason = "a problem is an answer, made once per request that fails and written at once"
)]
#![allow(
    unused_qualifications,
    reason = "the macros of utoipa qualify what they expand to"
)]

mod address;
mod admins;
mod alerts;
mod assignments;
mod auth;
mod authn;
mod configs;
pub(crate) mod errors;
mod events;
mod extract;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub(crate) mod grpc;
mod idempotency;
mod intake;
mod keyed;
mod linger;
mod nodes;
pub mod openapi;
mod plans;
mod pools;
pub mod problem;
mod regions;
mod system;
mod traffic;
mod users;
mod webhooks;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{HeaderValue, StatusCode, header};
use ipnet::IpNet;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::ToSchema;

pub(crate) use self::address::client_address;
use self::intake::{Intake, Turn};
pub(crate) use self::keyed::Keyed;
use self::problem::Problem;
pub(crate) use self::system::readiness;
use crate::events::EventHub;
use crate::service::page::Page;
use crate::service::{Service, ServiceError};

/// What handlers share. Cheap to clone.
#[derive(Clone)]
pub struct ApiState {
    service: Service,
    events: EventHub,
    trusted_proxies: Arc<[IpNet]>,
    metrics: Arc<dyn Fn() -> String + Send + Sync>,
    keyed: Keyed,
    intake: Intake,
}

impl ApiState {
    /// Puts the parts together. `metrics` renders what `/metrics` shows.
    pub fn new(
        service: Service,
        events: EventHub,
        trusted_proxies: Vec<IpNet>,
        metrics: impl Fn() -> String + Send + Sync + 'static,
    ) -> Self {
        Self {
            service,
            events,
            trusted_proxies: trusted_proxies.into(),
            metrics: Arc::new(metrics),
            keyed: Keyed::new(CancellationToken::new()),
            intake: Intake::default(),
        }
    }

    /// Ends what goes on without its caller soon after `stop`.
    pub(crate) fn until(mut self, stop: CancellationToken) -> Self {
        self.keyed = Keyed::new(stop);
        self
    }

    /// Returns the requests that go on without their callers.
    pub(crate) const fn keyed(&self) -> &Keyed {
        &self.keyed
    }
}

impl fmt::Debug for ApiState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiState").finish_non_exhaustive()
    }
}

/// Items without pages.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Items<T> {
    /// All of them.
    items: Vec<T>,
}

impl<T> Items<T> {
    fn of<R: Into<T>>(rows: Vec<R>) -> Json<Self> {
        Json(Self {
            items: rows.into_iter().map(Into::into).collect(),
        })
    }
}

/// A page of items.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PageOf<T> {
    /// Its items.
    items: Vec<T>,
    /// For `after`; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

impl<T> PageOf<T> {
    fn of<R: Into<T>>(page: Page<R>) -> Json<Self> {
        let Page { items, next } = page.map(Into::into);
        Json(Self { items, next })
    }
}

/// How long a request may take, apart from streams.
const PATIENCE: Duration = Duration::from_secs(60);

/// Requests at work at once, apart from streams. What is beyond is told to come again at once: where
/// everybody waits for the store, everybody waits too long, and nobody is served even when it is
/// back.
const MAX_AT_WORK: usize = 256;

/// Largest body of any request, in bytes.
const MAX_BODY: usize = 16 << 20;

/// Returns the routes, for a listener that tells the peer's address
/// ([`axum::extract::ConnectInfo`]).
pub fn router(state: ApiState) -> Router {
    let (api, document) = openapi::routes().split_for_parts();
    let document: Arc<str> = openapi::render(&document).into();
    let api = api
        .route(
            "/api/v1/openapi.json",
            get(move |auth| system::openapi(auth, document)),
        )
        .route("/metrics", get(system::metrics))
        .layer(middleware::from_fn(in_time))
        .layer(middleware::from_fn(unless_known))
        .merge(events::router())
        .layer(middleware::from_fn_with_state(
            state.clone(),
            idempotency::replay,
        ))
        .layer(middleware::from_fn_with_state(
            state.clone(),
            authn::authenticate,
        ))
        .layer(middleware::from_fn_with_state(
            state.clone(),
            address::note_address,
        ))
        .layer(middleware::from_fn_with_state(
            Arc::new(Semaphore::new(MAX_AT_WORK)),
            in_turn,
        ));
    Router::new()
        .merge(api)
        .merge(system::health())
        .fallback(|| async { Problem::no_route() })
        .method_not_allowed_fallback(|| async {
            let status = StatusCode::METHOD_NOT_ALLOWED;
            Problem::new(
                status,
                "method_not_allowed",
                "No such method here",
                "see the document",
            )
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(CatchPanicLayer::custom(|_| {
            metrics::counter!("hy2_master_panics_total").increment(1);
            Problem::from(ServiceError::internal("a handler panicked")).into_response()
        }))
        .layer(middleware::map_response(harden))
        .layer(middleware::map_request(linger::read_on))
        .with_state(state)
}

/// Answers 304 to whoever has this revision already (`If-None-Match`, RFC 9110 section 13.1.2).
async fn unless_known(request: Request, next: Next) -> Response {
    let is_read = matches!(*request.method(), http::Method::GET | http::Method::HEAD);
    let known = request.headers().get(header::IF_NONE_MATCH).cloned();
    let response = next.run(request).await;
    let (Some(known), Some(tag)) = (known, response.headers().get(header::ETAG)) else {
        return response;
    };
    let same = known.to_str().is_ok_and(|known| {
        let mut tags = known.split(',').map(str::trim);
        tags.any(|known| {
            known == "*" || known.trim_start_matches("W/").as_bytes() == tag.as_bytes()
        })
    });
    if !is_read || !same || response.status() != StatusCode::OK {
        return response;
    }
    (StatusCode::NOT_MODIFIED, [(header::ETAG, tag.clone())]).into_response()
}

/// What every answer says to browsers and caches.
async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let fixed = [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; frame-ancestors 'none'; base-uri 'none'",
        ),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Serves a request unless too many are at work. A stream counts until it begins, a request not while its body comes.
async fn in_turn(
    State(places): State<Arc<Semaphore>>,
    mut request: Request,
    next: Next,
) -> Response {
    let turn = match Turn::begin(&places) {
        Ok(turn) => turn,
        Err(problem) => return problem.into_response(),
    };
    request.extensions_mut().insert(turn.clone());
    let response = next.run(request).await;
    turn.leave();
    response
}

async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(PATIENCE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let title = "Took too long";
            let status = StatusCode::GATEWAY_TIMEOUT;
            Problem::new(status, "timeout", title, "the request took too long").into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use tokio::sync::Notify;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn who_finds_all_places_taken_is_told_at_once_to_come_again() {
        let (begun, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (says, waits) = (Arc::clone(&begun), Arc::clone(&end));
        let work = move || async move {
            says.notify_one();
            waits.notified().await;
        };
        let places = Arc::new(Semaphore::new(1));
        let router: Router = Router::new()
            .fallback(work)
            .layer(middleware::from_fn_with_state(places, in_turn));
        let ask = || {
            let request = Request::get("/").body(Body::empty()).expect("a request");
            router.clone().oneshot(request)
        };
        let first = tokio::spawn(ask());
        begun.notified().await;
        let refused = ask().await.expect("an answer");
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.headers()[header::RETRY_AFTER], "2");
        end.notify_one();
        let served = first.await.expect("no panic").expect("an answer");
        assert_eq!(served.status(), StatusCode::OK);
        // Its place is free.
        end.notify_one();
        let served = ask().await.expect("an answer");
        assert_eq!(served.status(), StatusCode::OK);
    }
}
