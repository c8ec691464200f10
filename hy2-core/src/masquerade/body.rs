//! Message bodies that stream.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};

/// Why a body ended before its end.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request or of an answer: chunks that are produced while they are sent.
///
/// Any `http_body::Body` of [`Bytes`] becomes one with `BodyExt::boxed_unsync` from `http-body-util`; [`empty`] and
/// [`full`] make the common ones. A body whose `size_hint` is exact gets a `content-length`.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Returns a body without content.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Returns a body of one chunk.
pub fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Returns a body without content that does not say so: its answer gets no `content-length`.
pub(crate) fn unsized_empty() -> Body {
    http_body_util::StreamBody::new(futures_util::stream::empty()).boxed_unsync()
}
