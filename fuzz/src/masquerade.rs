//! Requests to the site that a server pretends to be: paths, ranges and conditions.
//!
//! Planted bug: a range whose end lies before its beginning was answered.

use std::time::{Duration, UNIX_EPOCH};

use hy2_core::{
    fuzzing::masquerade::{link, plan, segments},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode},
};

/// Takes lines: the size of the content, the path, and headers as a digit and a value.
pub fn target(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let size = lines.next().and_then(|line| std::str::from_utf8(line).ok());
    let size = size.and_then(|line| line.parse::<u64>().ok()).unwrap_or(100);
    let size = size.min(i64::MAX as u64);
    if let Some(Ok(path)) = lines.next().map(std::str::from_utf8) {
        directory(path);
    }
    let mut headers = HeaderMap::new();
    for line in lines {
        let [kind, value @ ..] = line else { continue };
        let name = NAMES[usize::from(*kind) % NAMES.len()];
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    for (method, etag, modified) in [
        (Method::GET, Some("\"v1\""), Some(784_111_777)),
        (Method::POST, Some("W/\"v1\""), None),
        (Method::HEAD, None, Some(0)),
    ] {
        answer(&method, &headers, size, etag, modified);
    }
}

const NAMES: [&str; 8] = [
    "range",
    "if-range",
    "if-match",
    "if-none-match",
    "if-modified-since",
    "if-unmodified-since",
    "accept",
    "range",
];

/// No path leads out of the directory, and a link leads to what it names.
fn directory(path: &str) {
    let Some(found) = segments(path) else { return };
    for segment in &found {
        assert!(!segment.contains(['/', '\0']) && !matches!(&**segment, "" | "." | ".."));
        let link = link(segment);
        assert!(link.is_ascii() && !link.contains(['"', '<', '>', '\'', '\\', '?', '#']));
        assert_eq!(segments(&link).as_ref(), Some(&vec![segment.clone()]));
    }
}

fn answer(
    method: &Method,
    headers: &HeaderMap,
    size: u64,
    etag: Option<&'static str>,
    modified: Option<u64>,
) {
    let tag = etag.map(HeaderValue::from_static);
    let time = modified.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
    let (status, head, range) = plan(method, headers, size, tag, time);
    let text = |name: &str| head.get(name).map(|value| value.to_str().expect("ASCII"));
    match (status, range) {
        (StatusCode::OK, Some(range)) => {
            assert_eq!(range, 0..size);
            assert_eq!(text("content-length"), Some(&*size.to_string()));
            assert_eq!(text("content-range"), None);
        }
        (StatusCode::PARTIAL_CONTENT, Some(range)) => {
            assert!(headers.contains_key("range"));
            assert!(range.start <= range.end && range.end <= size, "{range:?}");
            let length = range.end - range.start;
            assert_eq!(text("content-length"), Some(&*length.to_string()));
            let last = i128::from(range.end) - 1;
            let expected = format!("bytes {}-{last}/{size}", range.start);
            assert_eq!(text("content-range"), Some(&*expected));
        }
        (StatusCode::NOT_MODIFIED, None) => {
            assert!(method != Method::POST);
            assert!(headers.contains_key("if-none-match") || headers.contains_key("if-modified-since"));
        }
        (StatusCode::PRECONDITION_FAILED, None) => {}
        (StatusCode::RANGE_NOT_SATISFIABLE, None) => assert!(headers.contains_key("range")),
        other => panic!("{other:?}"),
    }
}
