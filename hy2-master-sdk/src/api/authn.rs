//! Who asks: a bearer token of a program, or the cookies of the panel.
//!
//! Cookies are sent by the browser whoever made it ask, so a request that changes something and is
//! authenticated by a cookie needs a token that only a page of the same origin can read, and an
//! `Origin` that is ours. A bearer token proves by itself that the sender meant it.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, Method, header};

use super::ApiState;
use super::address::ClientAddress;
use super::problem::Problem;
use crate::auth::access::{Caller, Credential};
use crate::auth::api_token;
use crate::ratelimit::{self, address_key};
use crate::service::ServiceError;

/// Cookie of the access token.
pub(crate) const ACCESS_COOKIE: &str = "__Host-hy2_access";

/// Cookie of the refresh token.
pub(crate) const REFRESH_COOKIE: &str = "__Host-hy2_refresh";

/// Header of the CSRF token.
pub(crate) const CSRF_HEADER: HeaderName = HeaderName::from_static("x-csrf-token");

/// Puts the caller into the request, if there is a credential that holds.
pub(crate) async fn authenticate(
    State(state): State<ApiState>,
    mut request: Request,
    next: Next,
) -> Response {
    let address = request
        .extensions()
        .get::<ClientAddress>()
        .map(|address| address.0);
    let (method, headers) = (request.method().clone(), request.headers().clone());
    let found = recognise(&state, &method, &headers, address);
    let found = state.service.store().in_time(1, found).await;
    match found.unwrap_or_else(|late| Err(ServiceError::from(late).into())) {
        Ok(Some(caller)) => {
            let key = match &caller.credential {
                Credential::Token { id, .. } | Credential::Session { id } => id.to_string(),
                Credential::External | Credential::Host => caller.admin.to_string(),
            };
            let limited = state
                .service
                .limiter()
                .check(ratelimit::REQUESTS, &key)
                .await;
            if let Err(limited) = limited {
                return Problem::from(ServiceError::from(limited)).into_response();
            }
            request.extensions_mut().insert(caller);
        }
        Ok(None) => {}
        Err(problem) => return problem.into_response(),
    }
    next.run(request).await
}

async fn recognise(
    state: &ApiState,
    method: &Method,
    headers: &HeaderMap,
    address: Option<IpAddr>,
) -> Result<Option<Caller>, Problem> {
    let service = &state.service;
    let found = if let Some(token) = bearer(headers)? {
        match token.starts_with(api_token::PREFIX) {
            true => service.authenticate_token(token, address).await,
            false => match service.authenticate_session(token, address).await {
                Err(ServiceError::Unauthenticated) => {
                    service.authenticate_external(token, address).await
                }
                found => found,
            },
        }
    } else if let Some(token) = cookie(headers, ACCESS_COOKIE) {
        let caller = service.authenticate_session(token, address).await;
        if let Ok(Caller {
            credential: Credential::Session { id },
            ..
        }) = &caller
            && changes(method)
        {
            check_origin(headers)?;
            let given = headers
                .get(CSRF_HEADER)
                .and_then(|value| value.to_str().ok());
            if !service
                .session_keys()
                .is_csrf_token(*id, given.unwrap_or_default())
            {
                return Err(Problem::csrf());
            }
        }
        caller
    } else {
        return Ok(None);
    };
    match found {
        Ok(caller) => Ok(Some(caller)),
        Err(ServiceError::Unauthenticated) => {
            let key = address.map_or_else(|| "-".to_owned(), address_key);
            let limited = service
                .limiter()
                .check(ratelimit::UNAUTHENTICATED, &key)
                .await;
            limited.map_err(|limited| Problem::from(ServiceError::from(limited)))?;
            // A stale cookie must not keep anybody from logging in again; handlers that need a
            // caller refuse by themselves.
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Problem::malformed("several Authorization headers"));
    }
    let text = value.to_str().unwrap_or_default();
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token.trim())),
        _ => Err(ServiceError::Unauthenticated.into()),
    }
}

/// Returns the value of a cookie; one that is there twice counts as absent.
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut found = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| value);
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

const fn changes(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// Checks that the page which asks is ours: `Origin` names the host that is asked, and the browser
/// does not say otherwise.
pub(crate) fn check_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    // Anything else that it may say, what is no text included.
    let mut sites = headers.get_all("sec-fetch-site").iter();
    if sites.any(|site| site != "same-origin") {
        return Err(Problem::csrf());
    }
    let host = text(header::HOST).ok_or_else(Problem::csrf)?;
    let origin = text(header::ORIGIN).ok_or_else(Problem::csrf)?;
    let of = origin
        .strip_prefix("https://")
        .or_else(|| origin.strip_prefix("http://"));
    if of != Some(host) {
        return Err(Problem::csrf());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_the_same_origin_passes() {
        let host = ("host", "panel.example:8081");
        let same = ("origin", "https://panel.example:8081");
        assert!(check_origin(&headers(&[host, same])).is_ok());
        assert!(check_origin(&headers(&[host, same, ("sec-fetch-site", "same-origin")])).is_ok());
        for origin in [
            "https://evil.example",
            "https://panel.example",
            "https://panel.example:8081.evil.example",
            "null",
            "",
        ] {
            assert!(
                check_origin(&headers(&[host, ("origin", origin)])).is_err(),
                "{origin}"
            );
        }
        assert!(check_origin(&headers(&[host])).is_err());
        for site in ["cross-site", "same-or\u{e1}gin", ""] {
            let refused = check_origin(&headers(&[host, same, ("sec-fetch-site", site)]));
            assert!(refused.is_err(), "{site}");
        }
        let site = |site| ("sec-fetch-site", site);
        let two = headers(&[host, same, site("same-origin"), site("cross-site")]);
        assert!(check_origin(&two).is_err());
    }

    #[test]
    fn a_cookie_that_is_there_twice_counts_as_absent() {
        let one = headers(&[("cookie", "a=1; __Host-hy2_access=x"), ("cookie", "b=2")]);
        assert_eq!(cookie(&one, ACCESS_COOKIE), Some("x"));
        let two = headers(&[("cookie", "__Host-hy2_access=x; __Host-hy2_access=y")]);
        assert_eq!(cookie(&two, ACCESS_COOKIE), None);
    }
}
