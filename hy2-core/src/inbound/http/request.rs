//! What a proxy must know of and change in a request: target, credentials, hop-by-hop headers.
//!
//! Pure functions; the bytes on the wire are hyper's.

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{
    HeaderMap, HeaderName, HeaderValue, Uri,
    header::{
        CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING,
        UPGRADE,
    },
    uri::{PathAndQuery, Scheme},
};
use hy2_proto::address::{Address, Host};

use crate::inbound::Credentials;

/// Headers that mean one hop and are not passed on (RFC 9110 §7.6.1, RFC 9112 §9).
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Reads the target of a CONNECT request, `host:port`.
pub(super) fn connect_target(uri: &Uri) -> Option<Address> {
    uri.authority()?.as_str().parse().ok()
}

/// Splits an absolute URI into the target and what the target is asked for. Only `http` goes
/// through a proxy in this form. User information is dropped.
pub(super) fn plain_target(uri: &Uri) -> Option<(Address, Uri)> {
    if uri.scheme()? != &Scheme::HTTP {
        return None;
    }
    let authority = uri.authority()?.as_str();
    let place = authority
        .rsplit_once('@')
        .map_or(authority, |(_, place)| place);
    // A missing or empty port means the default; one that is no u16 is a mistake.
    let target = match place.strip_prefix(uri.host()?) {
        Some("" | ":") => Address::new(uri.host()?.parse::<Host>().ok()?, 80),
        _ => place.parse().ok()?,
    };
    // An empty path, as of `http://a#b`, calls itself "/" and writes nothing.
    let path = uri
        .path_and_query()
        .filter(|path| path.as_str() != "/")
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    Some((target, Uri::from(path)))
}

/// Returns the `Host` value for `target`, without the default port.
pub(super) fn host_header(target: &Address) -> Option<HeaderValue> {
    let text = match target.port {
        80 => target.host.to_string(),
        _ => target.to_string(),
    };
    text.parse().ok()
}

/// Removes the headers that concern one hop, those that `Connection` names included.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Judges `Proxy-Authorization: Basic …` (RFC 7617).
pub(super) fn authorized(headers: &HeaderMap, credentials: &Credentials) -> bool {
    let shown = headers
        .get(PROXY_AUTHORIZATION)
        .and_then(|value| value.as_bytes().split_at_checked(6))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"basic "))
        .and_then(|(_, token)| STANDARD.decode(token.trim_ascii()).ok());
    let Some(shown) = shown else { return false };
    let Some(colon) = shown.iter().position(|byte| *byte == b':') else {
        return false;
    };
    let (name, password) = shown.split_at(colon);
    credentials.matches(name, password.get(1..).unwrap_or_default())
}

/// Returns the challenge that asks for Basic credentials; a quote or backslash in the realm is
/// escaped (RFC 9110 §5.6.4).
pub(super) fn challenge(realm: &str) -> HeaderValue {
    let mut quoted = String::with_capacity(realm.len());
    for c in realm.chars() {
        if matches!(c, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    HeaderValue::from_str(&format!("Basic realm=\"{quoted}\""))
        .unwrap_or_else(|_| HeaderValue::from_static("Basic realm=\"proxy\""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().expect("uri")
    }

    #[test]
    fn targets_of_plain_requests() {
        for (text, target, rest) in [
            ("http://example.com", "example.com:80", "/"),
            (
                "http://example.com:8080/a/b?c=d",
                "example.com:8080",
                "/a/b?c=d",
            ),
            ("http://user:pass@example.com/x", "example.com:80", "/x"),
            ("http://[2001:db8::1]:81/", "[2001:db8::1]:81", "/"),
            ("http://127.0.0.1/?q", "127.0.0.1:80", "/?q"),
            ("http://example.com:/", "example.com:80", "/"),
            ("http://example.com#part", "example.com:80", "/"),
            ("http://example.com?q#part", "example.com:80", "/?q"),
        ] {
            let (address, path) = plain_target(&uri(text)).expect(text);
            assert_eq!(
                (address.to_string().as_str(), path.to_string().as_str()),
                (target, rest),
                "as it is written: {text}"
            );
        }
        for text in [
            "/local",
            "https://example.com/",
            "ftp://example.com/",
            "http://a:99999/",
        ] {
            assert_eq!(plain_target(&uri(text)), None, "{text}");
        }
    }

    #[test]
    fn targets_of_connect() {
        assert_eq!(
            connect_target(&uri("example.com:443")).map(|target| target.to_string()),
            Some("example.com:443".into())
        );
        assert_eq!(connect_target(&uri("example.com")), None);
        assert_eq!(connect_target(&uri("user@example.com:443")), None);
    }

    #[test]
    fn host_has_no_default_port() {
        for (target, host) in [
            ("a.b:80", "a.b"),
            ("a.b:81", "a.b:81"),
            ("[::1]:80", "[::1]"),
        ] {
            let target: Address = target.parse().expect("address");
            assert_eq!(host_header(&target).expect("value"), host);
        }
    }

    #[test]
    fn hop_by_hop_headers_and_those_named_by_connection_go() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, X-Private"),
            ("connection", "close"),
            ("x-private", "1"),
            ("x-kept", "1"),
            ("proxy-connection", "keep-alive"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "Basic eA=="),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["x-kept"]);
    }

    #[test]
    fn basic_credentials() {
        let credentials = Credentials::new("john", "wi:ck");
        let judge = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(PROXY_AUTHORIZATION, value.parse().expect("value"));
            authorized(&headers, &credentials)
        };
        let token = STANDARD.encode("john:wi:ck");
        assert!(judge(&format!("Basic {token}")));
        assert!(judge(&format!("basic  {token}")));
        for wrong in [
            token.clone(),
            format!("Bearer {token}"),
            "Basic".into(),
            "Basic ***".into(),
            format!("Basic {}", STANDARD.encode("john")),
            format!("Basic {}", STANDARD.encode("john:wick")),
            format!("Basic {}", STANDARD.encode("wi:ck")),
        ] {
            assert!(!judge(&wrong), "{wrong}");
        }
        assert!(!authorized(&HeaderMap::new(), &credentials));
    }

    #[test]
    fn realms_are_quoted() {
        assert_eq!(challenge("Hysteria"), "Basic realm=\"Hysteria\"");
        assert_eq!(challenge("a\"b\\"), "Basic realm=\"a\\\"b\\\\\"");
        assert_eq!(challenge("line\nbreak"), "Basic realm=\"proxy\"");
    }

    proptest! {
        #[test]
        fn any_uri_and_header_is_judged(text in "[ -~]{0,60}") {
            if let Ok(uri) = text.parse::<Uri>() {
                let _ = connect_target(&uri);
                let _ = plain_target(&uri);
            }
            if let Ok(value) = text.parse::<HeaderValue>() {
                let mut headers = HeaderMap::new();
                headers.insert(PROXY_AUTHORIZATION, value.clone());
                let _ = authorized(&headers, &Credentials::new("a", "b"));
                headers.insert(CONNECTION, value);
                remove_hop_by_hop(&mut headers);
                prop_assert!(!headers.contains_key(PROXY_AUTHORIZATION));
            }
        }
    }
}
