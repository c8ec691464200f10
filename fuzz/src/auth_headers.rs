//! Headers of the authentication request and its answer.
//!
//! Planted bug: a rate with a plus sign was read.

use hy2_proto::{
    auth::{
        AuthRequest, AuthResponse, CcRx, HEADER_AUTH, HEADER_CC_RX, HEADER_PADDING, HEADER_UDP,
        is_auth_request,
    },
    bandwidth::Bandwidth,
};

/// Takes lines as header values: credentials, rate, UDP flag, own limit.
pub fn target(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut lines = text.split('\n').map(Some).chain(std::iter::repeat(None));
    let (auth, rate, udp) = (
        lines.next().flatten(),
        lines.next().flatten(),
        lines.next().flatten(),
    );
    let own = lines.next().flatten().unwrap_or_default();
    let own = Bandwidth::from_bytes_per_sec(own.parse().unwrap_or(own.len() as u64));
    request(auth, rate, own);
    response(rate, udp, own);
    let (method, rest) = text.split_once(' ').unwrap_or((text, ""));
    let (authority, path) = rest.split_once(' ').unwrap_or((rest, ""));
    assert_eq!(
        is_auth_request(method, authority, path),
        text == "POST hysteria /auth"
    );
}

/// The rate that a header value means: digits that fit, or nothing.
fn meaning(value: Option<&str>) -> u64 {
    let value = value.unwrap_or_default();
    if value.contains(|c: char| !c.is_ascii_digit()) {
        return 0;
    }
    value.parse().unwrap_or(0)
}

fn request(auth: Option<&str>, rate: Option<&str>, own: Bandwidth) {
    let request = AuthRequest::from_headers(|name| match name {
        HEADER_AUTH => auth,
        HEADER_CC_RX => rate,
        _ => None,
    });
    assert_eq!(request.auth, auth.unwrap_or_default());
    assert_eq!(request.rx.bytes_per_sec(), meaning(rate));
    limited(request.server_rate(own), request.rx, own);

    let sent: Vec<_> = request.headers("padding").collect();
    let again = AuthRequest::from_headers(|name| find(&sent, name));
    assert_eq!(again, request);
    assert_eq!(find(&sent, HEADER_PADDING), Some("padding"));
    assert!(format!("{request:?}").starts_with("AuthRequest { auth: \"***\", rx: "));
}

fn response(rate: Option<&str>, udp: Option<&str>, own: Bandwidth) {
    let response = AuthResponse::from_headers(|name| match name {
        HEADER_UDP => udp,
        HEADER_CC_RX => rate,
        _ => None,
    });
    let yes = ["1", "t", "T", "true", "TRUE", "True"];
    assert_eq!(response.udp, udp.is_some_and(|udp| yes.contains(&udp)));
    match response.cc_rx {
        CcRx::Auto => {
            assert_eq!(rate, Some("auto"));
            assert_eq!(response.cc_rx.client_rate(own), None);
        }
        CcRx::Limit(limit) => {
            assert_eq!(limit.bytes_per_sec(), meaning(rate));
            limited(response.cc_rx.client_rate(own), own, limit);
        }
    }
    let sent: Vec<_> = response.headers("padding").collect();
    assert_eq!(
        AuthResponse::from_headers(|name| find(&sent, name)),
        response
    );
}

fn find<'a>(
    headers: &'a [(&'static str, std::borrow::Cow<'a, str>)],
    name: &str,
) -> Option<&'a str> {
    headers
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, value)| &**value)
}

/// No rate without one's own; never above either, of which a limit of zero is none.
fn limited(rate: Option<Bandwidth>, own: Bandwidth, limit: Bandwidth) {
    match rate {
        None => assert!(own.is_zero()),
        Some(rate) => {
            assert!(!rate.is_zero() && rate <= own && (limit.is_zero() || rate <= limit));
            assert!(rate == own || rate == limit);
        }
    }
}
