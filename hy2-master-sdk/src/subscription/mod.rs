//! Subscriptions on 8080: what a user's client fetches, by a token that is the user's access.
//!
//! - [`servers`] what a user may connect to · [`formats`] how clients want it written
//!
//! Every token that is unknown, malformed or revoked gets the same 404.

pub mod formats;
pub mod servers;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{ConnectInfo, Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use ipnet::IpNet;
use serde::Serialize;

use self::formats::Format;
use self::servers::Subscription;
use crate::api::{client_address, readiness};
use crate::ratelimit::{self, address_key};
use crate::service::moment::Moment;
use crate::service::{Service, ServiceError};
use crate::store::StoreError;

/// How often clients should fetch again, in hours.
const UPDATE_INTERVAL_H: &str = "12";

/// Longest token that is looked at.
const MAX_TOKEN: usize = 64;

/// Where cached answers belong, sealed.
const CACHE_PLACE: &str = "cache.subscription";

#[derive(Clone)]
struct PublicState {
    service: Service,
    trusted_proxies: Arc<[IpNet]>,
}

/// Returns the routes, for a listener that tells the peer's address.
pub fn router(service: Service, trusted_proxies: Vec<IpNet>) -> Router {
    let state = PublicState {
        service,
        trusted_proxies: trusted_proxies.into(),
    };
    Router::new()
        .route("/sub/{token}", get(by_client))
        .route("/sub/{token}/{format}", get(by_format))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .fallback(|| async { unknown() })
        .method_not_allowed_fallback(|| async { unknown() })
        .with_state(state)
}

async fn ready(State(state): State<PublicState>) -> Response {
    readiness(&state.service).await
}

async fn by_client(
    State(state): State<PublicState>,
    peer: ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    token: Result<Path<String>, PathRejection>,
) -> Response {
    let Ok(Path(token)) = token else {
        return unknown();
    };
    let agent = headers
        .get(header::USER_AGENT)
        .and_then(|value| value.to_str().ok());
    let format = Format::of_client(agent.unwrap_or_default());
    answer(&state, peer.0, &headers, &token, Some(format)).await
}

async fn by_format(
    State(state): State<PublicState>,
    peer: ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    parts: Result<Path<(String, String)>, PathRejection>,
) -> Response {
    let Ok(Path((token, format))) = parts else {
        return unknown();
    };
    answer(&state, peer.0, &headers, &token, format.parse().ok()).await
}

async fn answer(
    state: &PublicState,
    peer: SocketAddr,
    headers: &HeaderMap,
    token: &str,
    format: Option<Format>,
) -> Response {
    let address = client_address(peer.ip(), headers, &state.trusted_proxies);
    let limiter = state.service.limiter();
    if let Err(limited) = limiter
        .check(ratelimit::SUBSCRIPTION, &address_key(address))
        .await
    {
        let seconds = limited.retry_after.as_secs() + 1;
        let retry = [(header::RETRY_AFTER, seconds.to_string())];
        return (StatusCode::TOO_MANY_REQUESTS, retry, "too many requests\n").into_response();
    }
    let rendered = render(state, token, format);
    let rendered = state.service.store().in_time(1, rendered).await;
    match rendered.map_err(ServiceError::from).flatten() {
        Ok(Some(response)) => response,
        Ok(None) => unknown(),
        Err(error) => {
            let problem = crate::api::problem::Problem::from(error);
            let status =
                StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            (status, [(header::RETRY_AFTER, "5")], "try again later\n").into_response()
        }
    }
}

/// The one answer for everything that is not there.
fn unknown() -> Response {
    (
        StatusCode::NOT_FOUND,
        [(header::CACHE_CONTROL, "no-store")],
        "not found\n",
    )
        .into_response()
}

async fn render(
    state: &PublicState,
    token: &str,
    format: Option<Format>,
) -> Result<Option<Response>, ServiceError> {
    let service = &state.service;
    // The store is asked in any case: a malformed token costs what an unknown one does.
    let bounded = token
        .as_bytes()
        .get(..MAX_TOKEN)
        .unwrap_or(token.as_bytes());
    let hash = crate::secrets::sha256(bounded);
    let user = match service.store().user_by_subscription(&hash).await {
        Ok(user) => user,
        Err(StoreError::NotFound(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Some(format) = format else {
        return Ok(None);
    };
    let subscription = Subscription::of(service, user).await?;
    if format == Format::Info {
        let mut response = Json(Info::of(&subscription)).into_response();
        put_headers(&mut response, &subscription, None);
        return Ok(Some(response));
    }
    let key = format!("sub:{}:{format:?}", subscription.fingerprint);
    let row = subscription.user.uid.as_bytes().to_vec();
    let kept = service.cache().get(&key).await;
    let body = match kept.and_then(|sealed| service.vault().open(CACHE_PLACE, &row, &sealed).ok()) {
        Some(body) => body.to_vec(),
        None => {
            let link = service.subscription_url(token);
            let (servers, all) = subscription.servers(service).await?;
            let body = format.write(&servers, &link)?;
            if all {
                let sealed = service.vault().seal(CACHE_PLACE, &row, body.as_bytes());
                service.cache().put(key, Bytes::from(sealed)).await;
            }
            body.into_bytes()
        }
    };
    let mut response = body.into_response();
    put_headers(&mut response, &subscription, Some(format));
    Ok(Some(response))
}

fn put_headers(response: &mut Response, subscription: &Subscription, format: Option<Format>) {
    let total = subscription.quota.unwrap_or(0);
    let expire = subscription
        .user
        .expires_at
        .map_or(0, |at| at.0.div_euclid(1_000));
    let used = subscription.user.used();
    let info = format!("upload=0; download={used}; total={total}; expire={expire}");
    let name = STANDARD.encode(&subscription.user.username);
    let headers = response.headers_mut();
    let mut put = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    };
    put("subscription-userinfo", info);
    put("profile-update-interval", UPDATE_INTERVAL_H.to_owned());
    put("profile-title", format!("base64:{name}"));
    put("cache-control", "private, no-store".to_owned());
    put("x-content-type-options", "nosniff".to_owned());
    put("referrer-policy", "no-referrer".to_owned());
    if let Some(format) = format {
        put("content-type", format.media_type().to_owned());
    }
}

/// What users see of themselves.
#[derive(Debug, Serialize)]
struct Info {
    username: String,
    status: String,
    used_bytes: i64,
    quota_bytes: Option<i64>,
    expires_at: Option<Moment>,
    max_devices: Option<i64>,
    servers: Vec<String>,
}

impl Info {
    fn of(subscription: &Subscription) -> Self {
        let user = &subscription.user;
        Self {
            username: user.username.clone(),
            status: user.status.as_str().to_owned(),
            used_bytes: user.used(),
            quota_bytes: subscription.quota,
            expires_at: user.expires_at.map(Moment),
            max_devices: subscription.max_devices,
            servers: subscription
                .nodes
                .iter()
                .map(|node| node.name.clone())
                .collect(),
        }
    }
}
