//! Answers that do not depend on the request.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};

use super::{Body, Masquerade, full, plain_error};
use crate::BoxFuture;

/// Answers 404 as the reference server does by default (Go's `http.NotFound`).
///
/// Scanners know this answer on a server for HTTP/3; prefer a real site.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct NotFound;

impl NotFound {
    /// Returns the masquerade.
    pub const fn new() -> Self {
        Self
    }
}

impl Masquerade for NotFound {
    fn serve(&self, _request: Request<Body>) -> BoxFuture<'_, Response<Body>> {
        Box::pin(async { plain_error(StatusCode::NOT_FOUND, "404 page not found") })
    }
}

/// Gives one answer to every request: the reference's masquerade of type `string`.
#[derive(Debug, Clone)]
pub struct Content {
    status: StatusCode,
    headers: HeaderMap,
    content: Bytes,
}

/// Why a [`Content`] cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContentError {
    /// The status is none that a site answers with.
    #[error("status {0} is not between 200 and 599")]
    StatusOutOfRange(u16),
    /// The status would tell any client that it is authenticated.
    #[error("status 233 is the answer to a successful authentication")]
    StatusReserved,
}

impl Content {
    /// Answers with this content, the given headers and a status of 200 to 599 other than 233.
    ///
    /// # Errors
    /// [`ContentError`] for any other status.
    pub fn new(
        content: impl Into<Bytes>,
        headers: HeaderMap,
        status: u16,
    ) -> Result<Self, ContentError> {
        if status == hy2_proto::auth::STATUS_OK {
            return Err(ContentError::StatusReserved);
        }
        let status = StatusCode::from_u16(status)
            .ok()
            .filter(|status| (200..600).contains(&status.as_u16()))
            .ok_or(ContentError::StatusOutOfRange(status))?;
        Ok(Self {
            status,
            headers,
            content: content.into(),
        })
    }
}

impl Masquerade for Content {
    fn serve(&self, _request: Request<Body>) -> BoxFuture<'_, Response<Body>> {
        let mut response = Response::new(full(self.content.clone()));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.clone();
        if !self.headers.contains_key(http::header::CONTENT_TYPE) && !self.content.is_empty() {
            let detected = super::media_type::of_content(&self.content);
            response.headers_mut().insert(
                http::header::CONTENT_TYPE,
                http::HeaderValue::from_static(detected),
            );
        }
        Box::pin(async move { response })
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn not_found_is_the_answer_of_the_reference() {
        let response = NotFound::new()
            .serve(Request::new(super::super::empty()))
            .await;
        assert_eq!(response.status(), 404);
        let headers: Vec<_> = response
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect();
        assert_eq!(
            headers,
            [
                ("content-type", &b"text/plain; charset=utf-8"[..]),
                ("x-content-type-options", b"nosniff")
            ]
        );
        let body = response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        assert_eq!((&body[..], body.len()), (&b"404 page not found\n"[..], 19));
    }

    #[tokio::test]
    async fn content_is_the_same_for_every_request() {
        let headers =
            HeaderMap::from_iter([(http::header::SERVER, http::HeaderValue::from_static("mine"))]);
        let site = Content::new("hello", headers, 418).expect("valid");
        let response = site.serve(Request::new(super::super::empty())).await;
        assert_eq!(
            (
                response.status().as_u16(),
                response.headers()["server"].as_bytes()
            ),
            (418, &b"mine"[..])
        );
        assert_eq!(
            response.headers()["content-type"],
            "text/plain; charset=utf-8"
        );
        assert_eq!(
            response
                .into_body()
                .collect()
                .await
                .expect("a body")
                .to_bytes(),
            "hello"
        );
    }

    #[test]
    fn a_status_that_gives_us_away_is_refused() {
        let with = |status| Content::new("", HeaderMap::new(), status).map(|_| ());
        assert_eq!(with(233), Err(ContentError::StatusReserved));
        for status in [0, 99, 100, 199, 600, 1000] {
            assert_eq!(with(status), Err(ContentError::StatusOutOfRange(status)));
        }
        for status in [200, 232, 234, 404, 599] {
            assert_eq!(with(status), Ok(()));
        }
    }
}
