//! The authentication request among all other requests, and the answer that lets a client in.
//!
//! Whoever is not let in gets what any other request for that path gets, from the same site: there is no answer that
//! says no.

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use hy2_proto::{
    auth::{self, AuthRequest, AuthResponse},
    padding,
};

use crate::masquerade::{self, Body};

/// Returns whether a request asks for authentication.
///
/// Method, authority and path are compared as sent, case included; the TLS server name plays no part (reference
/// `core/server/server.go`, `ServeHTTP`).
pub(crate) fn is_auth_request<B>(request: &Request<B>) -> bool {
    let uri = request.uri();
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    auth::is_auth_request(request.method().as_str(), authority, uri.path())
}

/// Reads what the client says about itself.
pub(crate) fn read_request<B>(request: &Request<B>) -> AuthRequest<'_> {
    AuthRequest::from_headers(|name| text(request.headers(), name))
}

/// Returns the answer that lets a client in: status 233 and what it is granted, with fresh padding.
pub(crate) fn accepted(granted: AuthResponse) -> Response<Body> {
    let padding = padding::fill(padding::AUTH_RESPONSE, |bytes| rand::fill(bytes));
    let mut response = Response::new(masquerade::empty());
    *response.status_mut() = StatusCode::from_u16(auth::STATUS_OK).unwrap_or_default();
    for (name, value) in granted.headers(&padding) {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response
                .headers_mut()
                .append(HeaderName::from_static(name), value);
        }
    }
    response
}

/// Returns a header as text. `HeaderValue::to_str` is for ASCII only, and a password need not be ASCII.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    std::str::from_utf8(headers.get(name)?.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use hy2_proto::auth::CcRx;

    use super::*;

    fn request(method: &str, uri: &str) -> Request<()> {
        Request::builder()
            .method(method)
            .uri(uri)
            .body(())
            .expect("a request")
    }

    #[test]
    fn only_the_exact_request_counts() {
        assert!(is_auth_request(&request("POST", "https://hysteria/auth")));
        assert!(is_auth_request(&request(
            "POST",
            "https://hysteria/auth?x=y"
        )));
        for (method, uri) in [
            ("GET", "https://hysteria/auth"),
            ("post", "https://hysteria/auth"),
            ("POST", "https://Hysteria/auth"),
            ("POST", "https://hysteria:443/auth"),
            ("POST", "https://user@hysteria/auth"),
            ("POST", "https://hysteria/auth/"),
            ("POST", "https://hysteria/Auth"),
            ("POST", "https://example.com/auth"),
            ("POST", "/auth"),
        ] {
            assert!(!is_auth_request(&request(method, uri)), "{method} {uri}");
        }
    }

    #[test]
    fn a_password_may_be_any_text() {
        let mut request = request("POST", "https://hysteria/auth");
        let value = HeaderValue::from_bytes("пароль".as_bytes()).expect("opaque octets");
        request.headers_mut().insert(auth::HEADER_AUTH, value);
        assert_eq!(read_request(&request).auth, "пароль");
    }

    #[test]
    fn the_answer_has_the_headers_of_the_reference() {
        let response = accepted(AuthResponse {
            udp: true,
            cc_rx: CcRx::Auto,
        });
        assert_eq!(response.status().as_u16(), 233);
        assert_eq!(response.headers()["hysteria-udp"], "true");
        assert_eq!(response.headers()["hysteria-cc-rx"], "auto");
        let padding = response.headers()["hysteria-padding"].as_bytes();
        assert!((256..2048).contains(&padding.len()));
        assert!(padding.iter().all(u8::is_ascii_alphanumeric));
        let again = accepted(AuthResponse {
            udp: true,
            cc_rx: CcRx::Auto,
        });
        assert_ne!(again.headers()["hysteria-padding"].as_bytes(), padding);
    }
}
