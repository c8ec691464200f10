//! Answers written to a request stream.

use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING, UPGRADE},
};
use http_body::Body as _;
use http_body_util::BodyExt;
use hy2_proto::varint;
use quinn::{SendStream, WriteError};

use super::qpack::Encoder;
use crate::masquerade::{Body, BodyError};

/// Why an answer was not sent to its end.
#[derive(Debug)]
pub(super) enum SendFault {
    /// The peer wants no more, or the connection is gone.
    Refused,
    /// The body failed.
    Body(BodyError),
}

impl From<WriteError> for SendFault {
    fn from(_: WriteError) -> Self {
        Self::Refused
    }
}

/// Sends a whole answer; the caller ends the stream.
///
/// A body is neither sent nor read for HEAD and for a status that has none.
pub(super) async fn send(
    send: &mut SendStream,
    is_head: bool,
    response: Response<Body>,
) -> Result<(), SendFault> {
    let (mut parts, mut body) = response.into_parts();
    let has_body = !matches!(
        parts.status,
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
    );
    strip_connection_fields(&mut parts.headers);
    parts.headers.entry(DATE).or_insert_with(date);
    if has_body && let Some(length) = body.size_hint().exact() {
        parts
            .headers
            .entry(CONTENT_LENGTH)
            .or_insert_with(|| HeaderValue::from(length));
    }
    let mut pending = vec![head(parts.status, &parts.headers)];
    if is_head || !has_body {
        return Ok(send.write_all_chunks(&mut pending).await?);
    }
    // A body that is at hand leaves together with the head.
    while !body.is_end_stream() {
        let Some(frame) = body.frame().await else {
            break;
        };
        let Ok(data) = frame.map_err(SendFault::Body)?.into_data() else {
            continue;
        };
        if data.is_empty() {
            continue;
        }
        pending.push(data_head(data.len() as u64));
        pending.push(data);
        send.write_all_chunks(&mut pending).await?;
        pending.clear();
    }
    Ok(send.write_all_chunks(&mut pending).await?)
}

/// Returns a HEADERS frame.
fn head(status: StatusCode, headers: &HeaderMap) -> Bytes {
    let mut section = Vec::with_capacity(512);
    let mut encoder = Encoder::new(&mut section);
    encoder.field(":status", status.as_str().as_bytes());
    for (name, value) in headers {
        encoder.field(name.as_str(), value.as_bytes());
    }
    frame_of_section(&section)
}

/// Puts a field section into a HEADERS frame.
pub(super) fn frame_of_section(section: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(section.len() + 9);
    varint::encode(0x1, &mut frame);
    varint::encode(section.len() as u64, &mut frame);
    frame.extend_from_slice(section);
    frame.freeze()
}

fn data_head(length: u64) -> Bytes {
    let mut head = BytesMut::with_capacity(9);
    varint::encode(0x0, &mut head);
    varint::encode(length, &mut head);
    head.freeze()
}

/// Fields about the connection below have no place in HTTP/3 (RFC 9114, section 4.2).
fn strip_connection_fields(headers: &mut HeaderMap) {
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
}

fn date() -> HeaderValue {
    let text = httpdate::fmt_http_date(SystemTime::now());
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))
}
