//! What handlers take from a request. Everything that cannot be read is a problem document.

use std::ops::Deref;

use axum::extract::{FromRequest, FromRequestParts, Request};
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;

use super::ApiState;
use super::problem::Problem;
use crate::auth::access::{Access, Caller, Operation};
use crate::service::{FieldIssue, ServiceError};

/// Largest JSON body, in bytes.
pub(crate) const MAX_JSON: usize = 1 << 20;

/// Who asks; put into the request by [`super::authn`].
#[derive(Debug, Clone)]
pub(crate) struct Auth(pub Caller);

impl Auth {
    /// Returns the proof that the caller may do that.
    pub(crate) fn access(&self, operation: Operation) -> Result<Access<'_>, Problem> {
        self.0
            .access(operation)
            .map_err(|denied| ServiceError::from(denied).into())
    }
}

impl FromRequestParts<ApiState> for Auth {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &ApiState) -> Result<Self, Problem> {
        parts
            .extensions
            .get::<Caller>()
            .cloned()
            .map(Auth)
            .ok_or_else(|| ServiceError::Unauthenticated.into())
    }
}

/// A JSON body. Unknown fields and wrong types are named by their path.
#[derive(Debug)]
pub(crate) struct Body<T, const MAX: usize = MAX_JSON>(pub T);

impl<T: DeserializeOwned, const MAX: usize> FromRequest<ApiState> for Body<T, MAX> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            let title = "Not JSON";
            let detail = "the body has to be application/json";
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Err(Problem::new(status, "not_json", title, detail));
        }
        let (parts, body) = request.into_parts();
        let bytes = state.intake.read(&parts.extensions, body, MAX).await?;
        if has_nul(&bytes) {
            return Err(Problem::malformed("texts must not contain NUL"));
        }
        // Fields have names: serde would take a list for them, in their order.
        if bytes.trim_ascii_start().first() == Some(&b'[') {
            let issue = FieldIssue::new(String::new(), "expected an object".to_owned());
            return Err(ServiceError::Invalid(vec![issue]).into());
        }
        let mut json = serde_json::Deserializer::from_slice(&bytes);
        let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let path = error.path().to_string();
            let message = message_of(error.inner());
            let path = path_of(path, &message);
            let inner = error.into_inner();
            match inner.is_data() {
                true => ServiceError::Invalid(vec![FieldIssue::new(path, message)]).into(),
                false => Problem::malformed(format!("the body is not JSON: {inner}")),
            }
        })?;
        json.end()
            .map_err(|_| Problem::malformed("something follows the JSON value"))?;
        Ok(Self(value))
    }
}

/// Returns whether a JSON text has the escape of NUL in it, which no PostgreSQL text can hold.
pub(super) fn has_nul(json: &[u8]) -> bool {
    let mut rest = json;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        rest = rest.get(at + 1..).unwrap_or_default();
        if rest.starts_with(b"u0000") {
            return true;
        }
        rest = rest.get(1..).unwrap_or_default();
    }
    false
}

/// Returns the path of what is wrong; of an unknown field, with its name.
fn path_of(path: String, message: &str) -> String {
    let path = if path == "." { String::new() } else { path };
    let unknown = message
        .strip_prefix("unknown field `")
        .and_then(|rest| rest.split('`').next());
    match unknown {
        Some(name) if path.is_empty() => name.to_owned(),
        Some(name) if path != name && !path.ends_with(&format!(".{name}")) => {
            format!("{path}.{name}")
        }
        _ => path,
    }
}

/// Says what serde has against a value, without the value: it may be a secret.
fn message_of(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text
        .rsplit_once(" at line ")
        .map_or(text.as_str(), |(text, _)| text);
    match text
        .strip_prefix("invalid type: ")
        .or_else(|| text.strip_prefix("invalid value: "))
    {
        Some(rest) => match rest.rsplit_once("expected ") {
            Some((_, expected)) => format!("expected {expected}"),
            None => "is not valid".to_owned(),
        },
        None => text.to_owned(),
    }
}

pub(crate) fn too_large(most: usize) -> Problem {
    let detail = format!("the body has more than {most} bytes");
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "too_large",
        "Body too large",
        detail,
    )
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let essence = value.map(|value| value.split(';').next().unwrap_or_default().trim());
    essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json"))
}

/// Parameters behind the question mark.
#[derive(Debug)]
pub(crate) struct Params<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<ApiState> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &ApiState) -> Result<Self, Problem> {
        if parts.uri.query().is_some_and(|query| query.contains("%00")) {
            return Err(Problem::malformed("parameters must not contain NUL"));
        }
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|axum::extract::Query(value)| Self(value))
            .map_err(|error| {
                let message = std::error::Error::source(&error)
                    .map_or_else(|| error.to_string(), ToString::to_string);
                ServiceError::Invalid(vec![parameter_issue(message)]).into()
            })
    }
}

/// Takes the parameter's name out of what the reader says: `size: invalid digit` and so on.
fn parameter_issue(message: String) -> FieldIssue {
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    if let Some((name, reason)) = message.split_once(": ")
        && is_name(name)
    {
        return FieldIssue::new(name, reason);
    }
    let quoted = message.split('`').nth(1).filter(|name| is_name(name));
    let about_it = ["unknown field `", "missing field `", "duplicate field `"];
    match quoted.filter(|_| about_it.iter().any(|start| message.starts_with(start))) {
        Some(name) => FieldIssue::new(name, message.clone()),
        None => FieldIssue::new("query", message),
    }
}

/// Parts of the path.
#[derive(Debug)]
pub(crate) struct Path<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<ApiState> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, Problem> {
        // What cannot be an id is the id of nothing.
        axum::extract::Path::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(value)| Self(value))
            .map_err(|_| Problem::bad_id())
    }
}

/// The revision that `If-Match` asks for; none without the header or with `*`.
#[derive(Debug)]
pub(crate) struct IfMatch(pub Option<i64>);

impl FromRequestParts<ApiState> for IfMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &ApiState) -> Result<Self, Problem> {
        revision(&parts.headers).map(Self)
    }
}

/// Reads `If-Match`.
pub(super) fn revision(headers: &HeaderMap) -> Result<Option<i64>, Problem> {
    let mut values = headers.get_all(header::IF_MATCH).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default().trim();
    let is_one = values.next().is_none();
    if text == "*" && is_one {
        return Ok(None);
    }
    // Tags are compared as texts: another way to write the number is another tag.
    text.strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .and_then(|text| text.parse().ok())
        .filter(|rev: &i64| is_one && text == tag(*rev))
        .map(Some)
        .ok_or_else(|| Problem::malformed("If-Match has to be one ETag of this resource"))
}

/// Writes a revision as `ETag`.
fn tag(rev: i64) -> String {
    format!("\"{rev}\"")
}

/// An answer with its revision as `ETag`.
#[derive(Debug)]
pub(crate) struct Tagged<T>(pub i64, pub T);

impl<T: serde::Serialize> axum::response::IntoResponse for Tagged<T> {
    fn into_response(self) -> axum::response::Response {
        ([(header::ETAG, tag(self.0))], axum::Json(self.1)).into_response()
    }
}

impl Deref for Auth {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nul_is_found_where_it_is_one() {
        assert!(has_nul(br#"{"a":"x\u0000"}"#));
        assert!(!has_nul(br#"{"a":"x\\u0000"}"#));
        assert!(has_nul(br#"{"a":"x\\\u0000"}"#));
        assert!(!has_nul(br#"{"a":"\u0001"}"#));
    }

    #[test]
    fn if_match_is_one_tag_to_the_letter() {
        let asked = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::IF_MATCH, value.parse().unwrap());
            }
            revision(&headers).map_err(|_| ())
        };
        assert_eq!(asked(&[]), Ok(None));
        assert_eq!(asked(&["*"]), Ok(None));
        assert_eq!(asked(&[" \"5\" "]), Ok(Some(5)));
        assert_eq!(asked(&["\"-5\""]), Ok(Some(-5)));
        for other in ["5", "\"+5\"", "\"05\"", "W/\"5\"", "\"5\", \"6\"", "\"", ""] {
            assert_eq!(asked(&[other]), Err(()), "{other}");
        }
        assert_eq!(asked(&["\"5\"", "\"6\""]), Err(()));
        assert_eq!(asked(&["*", "\"6\""]), Err(()));
    }

    #[test]
    fn an_unknown_field_is_named() {
        let message = "unknown field `x`, expected `y`";
        assert_eq!(path_of(".".into(), message), "x");
        assert_eq!(path_of("a[1]".into(), message), "a[1].x");
        assert_eq!(path_of("x".into(), message), "x");
        assert_eq!(path_of("a.x".into(), message), "a.x");
    }
}
