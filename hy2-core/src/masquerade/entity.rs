//! Conditional and partial answers for content of known size and age (RFC 9110, sections 13 and 14).

use std::{
    ops::Range,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{
        ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_MATCH,
        IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE,
    },
};

use hyper::ext::ReasonPhrase;

use super::{Body, empty, plain_error};

/// What is known about the content before it is read.
#[derive(Debug, Clone)]
pub(super) struct Entity {
    pub(super) content_type: HeaderValue,
    /// When it last changed; whole seconds count.
    pub(super) modified: Option<SystemTime>,
    pub(super) etag: Option<HeaderValue>,
    /// In bytes.
    pub(super) size: u64,
}

/// What to answer.
#[derive(Debug)]
pub(super) enum Plan {
    /// This answer, whose body is complete.
    Done(Response<Body>),
    /// This head, with these bytes of the content.
    Send(Response<()>, Range<u64>),
}

impl Entity {
    /// Decides what a request with these headers gets.
    ///
    /// Several ranges at once get the whole content, which a server may always send.
    pub(super) fn plan(&self, method: &Method, headers: &HeaderMap) -> Plan {
        let is_read = matches!(*method, Method::GET | Method::HEAD);
        if !self.may_proceed(headers) {
            return Plan::Done(self.precondition_failed());
        }
        match self.is_unchanged(headers) {
            Some(true) if is_read => return Plan::Done(self.not_modified()),
            Some(true) if headers.contains_key(IF_NONE_MATCH) => {
                return Plan::Done(self.precondition_failed());
            }
            _ => {}
        }
        let range = headers
            .get(RANGE)
            .filter(|_| self.range_is_for_this(headers));
        let ranges = match range
            .map(|range| parse_ranges(range, self.size))
            .transpose()
        {
            Ok(ranges) => ranges.unwrap_or_default(),
            Err(RangeError::NoOverlap) if self.size == 0 => Vec::new(),
            Err(error) => return Plan::Done(self.unsatisfiable(error)),
        };
        let part = match &ranges[..] {
            [part] => Some(part.clone()),
            _ => None,
        };
        let mut response = Response::new(());
        let head = response.headers_mut();
        self.put_validators(head);
        head.insert(CONTENT_TYPE, self.content_type.clone());
        head.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        let bytes = part.clone().unwrap_or(0..self.size);
        head.insert(CONTENT_LENGTH, HeaderValue::from(bytes.end - bytes.start));
        if let Some(part) = part {
            // An empty part at the end is possible ("bytes=-0"), and its last byte comes before its first.
            let last = i128::from(part.end) - 1;
            let value = format!("bytes {}-{last}/{}", part.start, self.size);
            put(head, CONTENT_RANGE, &value);
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        Plan::Send(response, bytes)
    }

    fn may_proceed(&self, headers: &HeaderMap) -> bool {
        if let Some(tags) = headers.get(IF_MATCH) {
            return self.matches(tags, Comparison::Strong);
        }
        match (self.modified_seconds(), date(headers, &IF_UNMODIFIED_SINCE)) {
            (Some(modified), Some(limit)) => modified <= limit,
            _ => true,
        }
    }

    /// Returns whether the client has this content already, if it asked.
    fn is_unchanged(&self, headers: &HeaderMap) -> Option<bool> {
        if let Some(tags) = headers.get(IF_NONE_MATCH) {
            return Some(self.matches(tags, Comparison::Weak));
        }
        Some(self.modified_seconds()? <= date(headers, &IF_MODIFIED_SINCE)?)
    }

    fn range_is_for_this(&self, headers: &HeaderMap) -> bool {
        let Some(condition) = headers.get(IF_RANGE) else {
            return true;
        };
        if condition.as_bytes().starts_with(b"\"") || condition.as_bytes().starts_with(b"W/") {
            return self.matches(condition, Comparison::Strong);
        }
        let wanted = condition
            .to_str()
            .ok()
            .and_then(|date| httpdate::parse_http_date(date).ok());
        wanted.is_some() && wanted == self.modified_seconds()
    }

    fn matches(&self, tags: &HeaderValue, comparison: Comparison) -> bool {
        let Ok(tags) = tags.to_str() else {
            return false;
        };
        if tags.trim() == "*" {
            return true;
        }
        let Some(own) = self.etag.as_ref().and_then(|tag| tag.to_str().ok()) else {
            return false;
        };
        let is_weak = |tag: &str| tag.starts_with("W/");
        tags.split(',').map(str::trim).any(|tag| match comparison {
            Comparison::Strong => tag == own && !is_weak(own),
            Comparison::Weak => tag.trim_start_matches("W/") == own.trim_start_matches("W/"),
        })
    }

    /// Dates in HTTP have no fractions, and a date before 1970 says that the file system knows none.
    fn modified_seconds(&self) -> Option<SystemTime> {
        let since = self.modified?.duration_since(UNIX_EPOCH).ok()?.as_secs();
        (since > 0).then(|| UNIX_EPOCH + Duration::from_secs(since))
    }

    fn put_validators(&self, headers: &mut HeaderMap) {
        if let Some(tag) = &self.etag {
            headers.insert(ETAG, tag.clone());
        }
        if let Some(modified) = self.modified_seconds() {
            put(headers, LAST_MODIFIED, &httpdate::fmt_http_date(modified));
        }
    }

    fn precondition_failed(&self) -> Response<Body> {
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::PRECONDITION_FAILED;
        self.put_validators(response.headers_mut());
        response
    }

    fn not_modified(&self) -> Response<Body> {
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        self.put_validators(response.headers_mut());
        if self.etag.is_some() {
            response.headers_mut().remove(LAST_MODIFIED);
        }
        response
    }

    fn unsatisfiable(&self, error: RangeError) -> Response<Body> {
        let text = match error {
            RangeError::NoOverlap => "invalid range: failed to overlap",
            RangeError::Malformed => "invalid range",
        };
        let mut response = plain_error(StatusCode::RANGE_NOT_SATISFIABLE, text);
        // The phrase that Go has for this status in HTTP/1.
        let phrase = ReasonPhrase::from_static(b"Requested Range Not Satisfiable");
        response.extensions_mut().insert(phrase);
        if error == RangeError::NoOverlap {
            put(
                response.headers_mut(),
                CONTENT_RANGE,
                &format!("bytes */{}", self.size),
            );
        }
        response
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RangeError {
    Malformed,
    NoOverlap,
}

/// Returns the ranges that overlap `0..size`.
fn parse_ranges(value: &HeaderValue, size: u64) -> Result<Vec<Range<u64>>, RangeError> {
    let text = value.to_str().map_err(|_| RangeError::Malformed)?;
    let list = text.strip_prefix("bytes=").ok_or(RangeError::Malformed)?;
    let number = |digits: &str| {
        let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
        let number = is_number.then(|| digits.parse::<u64>().ok()).flatten();
        number
            .filter(|&number| i64::try_from(number).is_ok())
            .ok_or(RangeError::Malformed)
    };
    let (mut ranges, mut missed) = (Vec::new(), false);
    for part in list
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let (first, last) = part.split_once('-').ok_or(RangeError::Malformed)?;
        let (first, last) = (first.trim(), last.trim());
        let range = if first.is_empty() {
            size - number(last)?.min(size)..size
        } else {
            let first = number(first)?;
            if first >= size {
                missed = true;
                continue;
            }
            let last = if last.is_empty() {
                size - 1
            } else {
                number(last)?
            };
            if last < first {
                return Err(RangeError::Malformed);
            }
            first..last.min(size - 1) + 1
        };
        ranges.push(range);
    }
    if missed && ranges.is_empty() {
        Err(RangeError::NoOverlap)
    } else {
        Ok(ranges)
    }
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

/// Sets a header to text that we formatted; text that is no header value sets nothing.
pub(super) fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    fn plan(headers: &[(&'static str, &str)]) -> (u16, Option<Range<u64>>, HeaderMap) {
        let entity = Entity {
            content_type: HeaderValue::from_static("text/plain"),
            modified: Some(
                httpdate::parse_http_date(MODIFIED).expect("a date") + Duration::from_millis(700),
            ),
            etag: Some(HeaderValue::from_static("\"v1\"")),
            size: 100,
        };
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_str(value).expect("a value"));
        }
        match entity.plan(&Method::GET, &map) {
            Plan::Done(response) => (response.status().as_u16(), None, response.headers().clone()),
            Plan::Send(response, range) => (
                response.status().as_u16(),
                Some(range),
                response.headers().clone(),
            ),
        }
    }

    #[test]
    fn whole_content() {
        let (status, range, headers) = plan(&[]);
        assert_eq!((status, range), (200, Some(0..100)));
        assert_eq!(headers["last-modified"], MODIFIED);
        assert_eq!(
            (&headers["accept-ranges"], &headers["content-length"]),
            (&"bytes".parse().expect("a value"), &100.into())
        );
    }

    #[test]
    fn ranges() {
        for (range, wanted, content_range) in [
            ("bytes=0-0", 0..1, "bytes 0-0/100"),
            ("bytes=10-19", 10..20, "bytes 10-19/100"),
            ("bytes=90-", 90..100, "bytes 90-99/100"),
            ("bytes=-5", 95..100, "bytes 95-99/100"),
            ("bytes=-500", 0..100, "bytes 0-99/100"),
            ("bytes=90-500", 90..100, "bytes 90-99/100"),
            ("bytes=-0", 100..100, "bytes 100-99/100"),
            ("bytes=90-99, 200-", 90..100, "bytes 90-99/100"),
        ] {
            let (status, range, headers) = plan(&[("range", range)]);
            assert_eq!((status, range), (206, Some(wanted)));
            assert_eq!(headers["content-range"], content_range);
        }
        assert_eq!(
            plan(&[("range", "bytes=0-1,5-6")]).1,
            Some(0..100),
            "several ranges"
        );
        for range in ["bytes=100-", "bytes=500-600"] {
            let (status, _, headers) = plan(&[("range", range)]);
            assert_eq!(
                (status, headers["content-range"].as_bytes()),
                (416, &b"bytes */100"[..]),
                "{range}"
            );
        }
        for range in [
            "lines=0-1",
            "bytes=a-b",
            "bytes=5-1",
            "bytes=5",
            "bytes=-",
            "bytes=+1-2",
            "bytes=99999999999999999999-",
        ] {
            assert_eq!(plan(&[("range", range)]).0, 416, "{range}");
        }
    }

    #[test]
    fn conditions() {
        let earlier = "Sun, 06 Nov 1994 08:49:36 GMT";
        for (headers, status) in [
            (&[("if-none-match", "\"v1\"")][..], 304),
            (&[("if-none-match", "W/\"v1\"")], 304),
            (&[("if-none-match", "\"v0\", \"v1\"")], 304),
            (&[("if-none-match", "*")], 304),
            (&[("if-none-match", "\"v2\"")], 200),
            (&[("if-modified-since", MODIFIED)], 304),
            (&[("if-modified-since", earlier)], 200),
            (&[("if-modified-since", "yesterday")], 200),
            (
                &[("if-none-match", "\"v2\""), ("if-modified-since", MODIFIED)],
                200,
            ),
            (&[("if-match", "\"v1\"")], 200),
            (&[("if-match", "\"v2\"")], 412),
            (&[("if-unmodified-since", MODIFIED)], 200),
            (&[("if-unmodified-since", earlier)], 412),
            (&[("range", "bytes=0-0"), ("if-range", "\"v1\"")], 206),
            (&[("range", "bytes=0-0"), ("if-range", "\"v2\"")], 200),
            (&[("range", "bytes=0-0"), ("if-range", "W/\"v1\"")], 200),
            (&[("range", "bytes=0-0"), ("if-range", MODIFIED)], 206),
            (&[("range", "bytes=0-0"), ("if-range", earlier)], 200),
        ] {
            assert_eq!(plan(headers).0, status, "{headers:?}");
        }
    }
}
