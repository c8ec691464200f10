//! From a field section to a request.
//!
//! The checks, their order and what each failure does to the stream are those of the HTTP/3 stack that the reference
//! and Caddy share, because a prober can tell stacks apart by exactly this (`http3/headers.go` of quic-go).

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version,
    header::{CONTENT_LENGTH, COOKIE},
    uri::{Authority, PathAndQuery, Scheme},
};

use super::{
    frame::MAX_SECTION,
    qpack::{self, Decoder, Field},
};

/// A request without its body.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) request: Request<()>,
    /// The declared length of the body in bytes.
    pub(super) content_length: Option<u64>,
    /// Size of the section as HTTP/3 counts it.
    pub(super) size: usize,
}

/// Why a section is no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It cannot be decoded: QPACK_DECOMPRESSION_FAILED.
    Undecodable,
    /// It is not a valid request: H3_MESSAGE_ERROR.
    Malformed,
    /// It is larger than we accept: status 431.
    TooLarge,
}

#[derive(Debug, Default)]
struct Pseudo {
    method: Vec<u8>,
    scheme: Vec<u8>,
    authority: Vec<u8>,
    path: Vec<u8>,
    protocol: Vec<u8>,
}

/// Decodes a field section and builds the request it describes.
///
/// # Errors
/// The first [`Refusal`] met, reading the fields in order.
pub(super) fn parse(section: &[u8]) -> Result<Head, Refusal> {
    let mut decoder = Decoder::new(section);
    let (mut pseudo, mut headers, mut size) = (Pseudo::default(), HeaderMap::new(), 0);
    let mut regular_seen = false;
    let mut declared: Option<Vec<u8>> = None;
    while let Some(field) = decoder.next_field().map_err(undecodable)? {
        size += field.size();
        if size as u64 > MAX_SECTION {
            return Err(Refusal::TooLarge);
        }
        if field.name.iter().any(u8::is_ascii_uppercase) || !is_field_value(&field.value) {
            return Err(Refusal::Malformed);
        }
        if field.name.first() == Some(&b':') {
            if regular_seen {
                return Err(Refusal::Malformed);
            }
            pseudo.set(field)?;
            continue;
        }
        regular_seen = true;
        let name = regular_name(&field)?;
        if name == CONTENT_LENGTH {
            if declared.get_or_insert_with(|| field.value.clone()) != &field.value {
                return Err(Refusal::Malformed);
            }
            continue;
        }
        let value = HeaderValue::from_maybe_shared(bytes::Bytes::from(field.value))
            .map_err(|_| Refusal::Malformed)?;
        headers
            .try_append(name, value)
            .map_err(|_| Refusal::TooLarge)?;
    }
    let content_length = set_content_length(declared, &mut headers)?;
    join_cookies(&mut headers);
    let mut request = pseudo.into_request()?;
    *request.headers_mut() = headers;
    *request.version_mut() = Version::HTTP_3;
    Ok(Head {
        request,
        content_length,
        size,
    })
}

/// Decodes the section behind a body and checks what is checked of trailers.
///
/// # Errors
/// The first [`Refusal`] met, reading the fields in order.
pub(super) fn check_trailers(section: &[u8]) -> Result<(), Refusal> {
    let mut decoder = Decoder::new(section);
    let mut size = 0;
    while let Some(field) = decoder.next_field().map_err(undecodable)? {
        size += field.size();
        if size as u64 > MAX_SECTION {
            return Err(Refusal::TooLarge);
        }
        let is_text = field.name.iter().all(|octet| !octet.is_ascii_uppercase())
            && is_field_value(&field.value);
        if !is_text || field.name.first() == Some(&b':') || is_no_trailer(&regular_name(&field)?) {
            return Err(Refusal::Malformed);
        }
    }
    Ok(())
}

/// Fields that say how to read the message and so cannot stand behind it (RFC 9110, section 6.5.1).
fn is_no_trailer(name: &HeaderName) -> bool {
    name.as_str().starts_with("if-")
        || matches!(
            name.as_str(),
            "authorization"
                | "cache-control"
                | "content-encoding"
                | "content-length"
                | "content-range"
                | "content-type"
                | "expect"
                | "host"
                | "max-forwards"
                | "pragma"
                | "proxy-authenticate"
                | "proxy-authorization"
                | "range"
                | "realm"
                | "te"
                | "trailer"
                | "www-authenticate"
        )
}

fn undecodable(_: qpack::DecodeError) -> Refusal {
    Refusal::Undecodable
}

/// Visible characters, spaces, tabs and octets above ASCII (RFC 9110, section 5.5).
fn is_field_value(value: &[u8]) -> bool {
    value
        .iter()
        .all(|&octet| octet == b'\t' || (octet >= b' ' && octet != 0x7f))
}

fn regular_name(field: &Field) -> Result<HeaderName, Refusal> {
    let name = HeaderName::from_lowercase(&field.name).map_err(|_| Refusal::Malformed)?;
    let forbidden = match name.as_str() {
        "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" => true,
        "te" => field.value != b"trailers",
        _ => false,
    };
    if forbidden {
        Err(Refusal::Malformed)
    } else {
        Ok(name)
    }
}

fn set_content_length(
    declared: Option<Vec<u8>>,
    headers: &mut HeaderMap,
) -> Result<Option<u64>, Refusal> {
    let Some(digits) = declared.filter(|digits| !digits.is_empty()) else {
        return Ok(None);
    };
    let length = std::str::from_utf8(&digits)
        .ok()
        .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))
        .and_then(|digits| digits.parse::<u64>().ok())
        .filter(|&length| i64::try_from(length).is_ok())
        .ok_or(Refusal::Malformed)?;
    let value = HeaderValue::from_maybe_shared(bytes::Bytes::from(digits))
        .map_err(|_| Refusal::Malformed)?;
    headers.insert(CONTENT_LENGTH, value);
    Ok(Some(length))
}

/// A client may send each cookie as a field of its own (RFC 9114, section 4.2.1); handlers expect one.
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let cookies: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

impl Pseudo {
    /// Takes a pseudo-header. One that was set to an empty value counts as not yet seen, as it does in the reference's
    /// stack.
    fn set(&mut self, field: Field) -> Result<(), Refusal> {
        let place = match &field.name[..] {
            b":method" => &mut self.method,
            b":scheme" => &mut self.scheme,
            b":authority" => &mut self.authority,
            b":path" => &mut self.path,
            b":protocol" => &mut self.protocol,
            _ => return Err(Refusal::Malformed),
        };
        if !place.is_empty() {
            return Err(Refusal::Malformed);
        }
        *place = field.value;
        Ok(())
    }

    fn into_request(self) -> Result<Request<()>, Refusal> {
        let is_connect = self.method == b"CONNECT";
        let is_extended = is_connect && !self.protocol.is_empty();
        let complete = if is_extended {
            !self.scheme.is_empty() && !self.path.is_empty() && !self.authority.is_empty()
        } else if is_connect {
            self.path.is_empty() && !self.authority.is_empty()
        } else {
            !self.path.is_empty() && !self.authority.is_empty() && !self.method.is_empty()
        };
        if !complete || (!is_extended && !self.protocol.is_empty()) {
            return Err(Refusal::Malformed);
        }
        let mut request = Request::new(());
        *request.method_mut() = method(&self.method);
        *request.uri_mut() = self.uri(is_connect && !is_extended)?;
        Ok(request)
    }

    fn uri(&self, is_authority_form: bool) -> Result<Uri, Refusal> {
        let authority = Authority::try_from(&self.authority[..]).ok();
        let mut parts = http::uri::Parts::default();
        if !is_authority_form {
            parts.path_and_query = Some(path_and_query(&self.path)?);
        }
        // An authority that is no host and port is left out: nothing we serve depends on it, and the reference's
        // stack does not look at it either.
        if let Some(authority) = authority {
            if !is_authority_form {
                parts.scheme = Some(Scheme::try_from(&self.scheme[..]).unwrap_or(Scheme::HTTPS));
            }
            parts.authority = Some(authority);
        }
        Uri::from_parts(parts).map_err(|_| Refusal::Malformed)
    }
}

/// A method that is not a token is none that any site knows, and is served as such.
fn method(name: &[u8]) -> Method {
    Method::from_bytes(name)
        .unwrap_or_else(|_| Method::from_bytes(b"UNKNOWN").unwrap_or(Method::OPTIONS))
}

/// Checks the path as the reference's stack does and brings it into the form that [`Uri`] takes.
fn path_and_query(path: &[u8]) -> Result<PathAndQuery, Refusal> {
    if path.iter().any(|&octet| octet < b' ' || octet == 0x7f) {
        return Err(Refusal::Malformed);
    }
    let local = match path {
        [b'/', ..] | b"*" => path,
        _ => strip_origin(path).ok_or(Refusal::Malformed)?,
    };
    let (plain, _query) = local.split_at(
        local
            .iter()
            .position(|&octet| octet == b'?')
            .unwrap_or(local.len()),
    );
    if !has_whole_escapes(plain) {
        return Err(Refusal::Malformed);
    }
    let mut tidy = Vec::with_capacity(local.len());
    for &octet in local {
        match octet {
            b' '
            | b'"'
            | b'<'
            | b'>'
            | b'\\'
            | b'^'
            | b'`'
            | b'{'
            | b'|'
            | b'}'
            | b'#'
            | 0x80.. => {
                tidy.extend_from_slice(format!("%{octet:02X}").as_bytes());
            }
            octet => tidy.push(octet),
        }
    }
    PathAndQuery::try_from(tidy).map_err(|_| Refusal::Malformed)
}

/// Returns the path of an absolute URI, or `None` when it is not one.
fn strip_origin(uri: &[u8]) -> Option<&[u8]> {
    let at = uri.windows(3).position(|part| part == b"://")?;
    let (scheme, rest) = (uri.get(..at)?, uri.get(at + 3..)?);
    let (first, more) = scheme.split_first()?;
    let is_scheme = first.is_ascii_alphabetic()
        && more
            .iter()
            .all(|octet| octet.is_ascii_alphanumeric() || b"+-.".contains(octet));
    if !is_scheme {
        return None;
    }
    let path = rest
        .iter()
        .position(|&octet| octet == b'/')
        .map_or(&b"/"[..], |slash| &rest[slash..]);
    Some(path)
}

fn has_whole_escapes(path: &[u8]) -> bool {
    path.iter().enumerate().all(|(at, &octet)| {
        octet != b'%'
            || path
                .get(at + 1..at + 3)
                .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::h3::qpack::Encoder;

    fn section(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut encoder = Encoder::new(&mut out);
        for (name, value) in fields {
            encoder.field(name, value.as_bytes());
        }
        out
    }

    fn get(path: &str) -> Result<Head, Refusal> {
        parse(&section(&[
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", "a.example"),
            (":path", path),
        ]))
    }

    fn with(extra: &[(&str, &str)]) -> Result<Head, Refusal> {
        let mut fields = vec![
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", "hysteria"),
            (":path", "/auth"),
        ];
        fields.extend_from_slice(extra);
        parse(&section(&fields))
    }

    #[test]
    fn an_ordinary_request() {
        let head = with(&[
            ("content-length", "12"),
            ("cookie", "a=1"),
            ("x", "y"),
            ("cookie", "b=2"),
        ])
        .expect("valid");
        assert_eq!(head.request.method(), Method::POST);
        assert_eq!(head.request.uri(), "https://hysteria/auth");
        assert_eq!(head.request.headers()["cookie"], "a=1; b=2");
        assert_eq!(head.request.headers()["content-length"], "12");
        assert_eq!(head.content_length, Some(12));
    }

    #[test]
    fn what_is_refused_as_a_message() {
        for extra in [
            &[(":path", "/again")][..],
            &[(":method", "POST")],
            &[(":status", "200")],
            &[(":unknown", "")],
            &[(":protocol", "websocket")],
            &[("x", "y"), (":extra", "late")],
            &[("Upper", "case")],
            &[("bad name", "x")],
            &[("", "x")],
            &[("x", "line\nbreak")],
            &[("connection", "close")],
            &[("transfer-encoding", "chunked")],
            &[("te", "gzip")],
            &[("content-length", "1"), ("content-length", "2")],
            &[("content-length", "-1")],
            &[("content-length", "+1")],
            &[("content-length", "9223372036854775808")],
        ] {
            assert_eq!(
                with(extra).map(|_| ()),
                Err(Refusal::Malformed),
                "{extra:?}"
            );
        }
        assert!(
            with(&[
                ("te", "trailers"),
                ("content-length", "1"),
                ("content-length", "1")
            ])
            .is_ok()
        );
        assert_eq!(
            parse(&section(&[(":method", "GET")])).map(|_| ()),
            Err(Refusal::Malformed)
        );
        assert_eq!(parse(&section(&[])).map(|_| ()), Err(Refusal::Malformed));
    }

    #[test]
    fn undecodable_and_too_large_are_told_apart() {
        assert_eq!(parse(&[0, 0, 0x80]).map(|_| ()), Err(Refusal::Undecodable));
        let large = "a".repeat(40_000);
        assert_eq!(
            with(&[("x", &large), ("y", &large)]).map(|_| ()),
            Err(Refusal::TooLarge)
        );
        // 17 bytes of table entry for one byte on the wire: the limit counts what is decoded.
        let bomb = [&[0, 0][..], &[0xc0 | 17; 3000]].concat();
        assert_eq!(
            parse(&bomb).map(|_| ()),
            Err(Refusal::Malformed),
            "the second :method already"
        );
        let bomb = [&[0, 0][..], &[0xc0 | 32; 3000]].concat();
        assert_eq!(parse(&bomb).map(|_| ()), Err(Refusal::TooLarge));
    }

    #[test]
    fn trailers() {
        assert_eq!(
            check_trailers(&section(&[("x-checksum", "1"), ("x-more", "2")])),
            Ok(())
        );
        for name in [
            ":method",
            "Upper",
            "content-length",
            "if-match",
            "connection",
        ] {
            assert_eq!(
                check_trailers(&section(&[(name, "x")])),
                Err(Refusal::Malformed),
                "{name}"
            );
        }
        assert_eq!(check_trailers(&[0, 0, 0x80]), Err(Refusal::Undecodable));
        let large = "a".repeat(70_000);
        assert_eq!(
            check_trailers(&section(&[("x", &large)])),
            Err(Refusal::TooLarge)
        );
    }

    #[test]
    fn paths() {
        for (path, uri) in [
            ("/", "https://a.example/"),
            ("/a/b?c=d", "https://a.example/a/b?c=d"),
            ("*", "https://a.example/*"),
            ("/with space", "https://a.example/with%20space"),
            ("/?q=%zz", "https://a.example/?q=%zz"),
            ("http://other.example/x", "https://a.example/x"),
            ("http://other.example", "https://a.example/"),
        ] {
            assert_eq!(
                get(path)
                    .expect(path)
                    .request
                    .uri()
                    .to_string()
                    .replace("*", "/*")
                    .replace("//*", "/*"),
                uri
            );
        }
        for path in ["", "relative", "/%zz", "/%a", "/a\u{7f}", "://x/"] {
            assert_eq!(get(path).map(|_| ()), Err(Refusal::Malformed), "{path:?}");
        }
    }

    #[test]
    fn connect_has_an_authority_and_no_path() {
        let connect = parse(&section(&[
            (":method", "CONNECT"),
            (":authority", "a.example:443"),
        ]))
        .expect("valid");
        assert_eq!(connect.request.uri(), "a.example:443");
        let fields = [
            (":method", "CONNECT"),
            (":authority", "a"),
            (":path", "/"),
            (":scheme", "https"),
        ];
        assert_eq!(
            parse(&section(&fields)).map(|_| ()),
            Err(Refusal::Malformed)
        );
        let fields = [&fields[..], &[(":protocol", "websocket")]].concat();
        assert!(parse(&section(&fields)).is_ok());
    }

    proptest! {
        #[test]
        fn any_fields_give_a_request_or_a_refusal(
            fields in proptest::collection::vec((":?[a-z-]{0,12}", "[ -~]{0,30}"), 0..12),
            path in "[ -~]{0,40}",
            authority in "[ -~]{1,20}",
        ) {
            let mut all = vec![(":method", "GET"), (":authority", authority.as_str()), (":path", path.as_str())];
            all.extend(fields.iter().map(|(name, value)| (name.as_str(), value.as_str())));
            let _ = parse(&section(&all));
        }

        #[test]
        fn any_bytes_give_a_request_or_a_refusal(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&[&[0, 0][..], &bytes].concat());
        }
    }
}
