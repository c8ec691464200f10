//! Messages of the speed test, which runs over a TCP relay stream to [`ADDRESS`].
//!
//! ```text
//! request   u8 type (1 download, 2 upload) | u32 length
//! response  u8 status (0 ok) | u16 length, message
//! summary   u32 milliseconds | u32 bytes            (server to client, after an upload)
//! ```
//!
//! Between response and summary one side streams the asked number of bytes; their content means
//! nothing. Rules are those of the reference (`extras/outbounds/speedtest`).

use std::time::Duration;

use bytes::BufMut;

use crate::codec::{DecodeError, InvalidKind, Reader};

/// Target that the server answers by itself.
pub const ADDRESS: &str = "@SpeedTest:0";

/// A length that stands for "until one side ends the stream".
pub const UNTIL_CLOSED: u32 = u32::MAX;

/// Bytes that are written at a time.
pub const CHUNK_LEN: usize = 64 * 1024;

/// How long a test without a set length runs.
pub const DEFAULT_DURATION: Duration = Duration::from_secs(10);

/// Longest message text of a response that is accepted, in bytes.
pub const MAX_MESSAGE_LEN: usize = 2048;

/// Which way the bytes of a test flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Server to client.
    Download,
    /// Client to server.
    Upload,
}

/// Asks for a test.
///
/// # Examples
///
/// ```
/// use hy2_proto::speedtest::{Direction, SpeedtestRequest};
///
/// let mut wire = Vec::new();
/// SpeedtestRequest { direction: Direction::Download, length: 114_114 }.encode(&mut wire);
/// assert_eq!(wire, [1, 0x00, 0x01, 0xbd, 0xc2]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpeedtestRequest {
    /// Which way.
    pub direction: Direction,
    /// How many bytes, or [`UNTIL_CLOSED`].
    pub length: u32,
}

impl SpeedtestRequest {
    /// Bytes on the wire.
    pub const LEN: usize = 5;

    /// Decodes a request, and returns it with the number of bytes it took.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Incomplete`] for every strict prefix; [`DecodeError::Invalid`] for an
    /// unknown type, already at its first byte.
    pub fn decode(buf: &[u8]) -> Result<(Self, usize), DecodeError> {
        let mut reader = Reader::new(buf);
        let direction = match reader.u8()? {
            1 => Direction::Download,
            2 => Direction::Upload,
            _ => return Err(InvalidKind::Type.into()),
        };
        let length = reader.u32()?;
        Ok((Self { direction, length }, reader.consumed()))
    }

    /// Appends the request.
    ///
    /// # Panics
    ///
    /// If `buf` has less room than [`Self::LEN`].
    pub fn encode(&self, buf: &mut impl BufMut) {
        buf.put_u8(match self.direction {
            Direction::Download => 1,
            Direction::Upload => 2,
        });
        buf.put_u32(self.length);
    }
}

/// Accepts or declines a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpeedtestResponse<'a> {
    /// Whether the test begins. On the wire 0 means yes and everything else no.
    pub ok: bool,
    /// Text for a human, at most [`MAX_MESSAGE_LEN`] bytes.
    pub message: &'a str,
}

impl<'a> SpeedtestResponse<'a> {
    /// Decodes a response, and returns it with the number of bytes it took.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Incomplete`] for every strict prefix of a valid response.
    /// [`DecodeError::Invalid`] if the message is over its limit or not UTF-8.
    pub fn decode(buf: &'a [u8]) -> Result<(Self, usize), DecodeError> {
        let mut reader = Reader::new(buf);
        let ok = reader.u8()? == 0;
        let len = usize::from(reader.u16()?);
        if len > MAX_MESSAGE_LEN {
            return Err(InvalidKind::MessageLength.into());
        }
        let message = reader.str(len)?;
        Ok((Self { ok, message }, reader.consumed()))
    }

    /// Appends the response, cutting the message at [`MAX_MESSAGE_LEN`].
    ///
    /// # Panics
    ///
    /// If `buf` has no room left.
    pub fn encode(&self, buf: &mut impl BufMut) {
        let end = self.message.floor_char_boundary(MAX_MESSAGE_LEN);
        let message = self.message.get(..end).unwrap_or_default();
        buf.put_u8(u8::from(!self.ok));
        buf.put_u16(u16::try_from(message.len()).unwrap_or(0));
        buf.put_slice(message.as_bytes());
    }
}

/// What the server received in an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpeedtestSummary {
    /// How long it took, in milliseconds.
    pub millis: u32,
    /// How many bytes came.
    pub bytes: u32,
}

impl SpeedtestSummary {
    /// Bytes on the wire.
    pub const LEN: usize = 8;

    /// Makes a summary; values beyond 32 bits become the largest that fits.
    #[must_use]
    pub fn new(duration: Duration, bytes: u64) -> Self {
        Self {
            millis: u32::try_from(duration.as_millis()).unwrap_or(u32::MAX),
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
        }
    }

    /// Decodes a summary, and returns it with the number of bytes it took.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Incomplete`] for every strict prefix; no bytes are invalid.
    pub fn decode(buf: &[u8]) -> Result<(Self, usize), DecodeError> {
        let mut reader = Reader::new(buf);
        let millis = reader.u32()?;
        let bytes = reader.u32()?;
        Ok((Self { millis, bytes }, reader.consumed()))
    }

    /// Appends the summary.
    ///
    /// # Panics
    ///
    /// If `buf` has less room than [`Self::LEN`].
    pub fn encode(&self, buf: &mut impl BufMut) {
        buf.put_u32(self.millis);
        buf.put_u32(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reference `protocol_test.go`.
    #[test]
    fn request_vectors() {
        for (hex, direction, length) in [
            ("010001bdc2", Direction::Download, 114_114),
            ("0288997722", Direction::Upload, 0x8899_7722),
        ] {
            let bytes = hex::decode(hex).unwrap();
            let request = SpeedtestRequest { direction, length };
            assert_eq!(SpeedtestRequest::decode(&bytes), Ok((request, 5)));
            let mut wire = Vec::new();
            request.encode(&mut wire);
            assert_eq!(hex::encode(wire), hex);
        }
    }

    /// Reference `protocol_test.go`.
    #[test]
    fn response_vector() {
        let wire = b"\x00\x00\x06wahaha";
        let response = SpeedtestResponse {
            ok: true,
            message: "wahaha",
        };
        assert_eq!(SpeedtestResponse::decode(wire), Ok((response, wire.len())));
        let mut again = Vec::new();
        response.encode(&mut again);
        assert_eq!(again, wire);
    }

    /// Reference `protocol_test.go`: 5,230 ms and 2,500,000 bytes.
    #[test]
    fn summary_vector() {
        let bytes = hex::decode("0000146e002625a0").unwrap();
        let summary = SpeedtestSummary::new(Duration::from_millis(5230), 2_500_000);
        assert_eq!(SpeedtestSummary::decode(&bytes), Ok((summary, 8)));
        let mut again = Vec::new();
        summary.encode(&mut again);
        assert_eq!(again, bytes);
    }

    #[test]
    fn unknown_types_are_invalid_at_once() {
        for kind in [0, 3, 255] {
            assert_eq!(
                SpeedtestRequest::decode(&[kind]),
                Err(InvalidKind::Type.into())
            );
        }
    }

    #[test]
    fn messages_are_limited() {
        let long = "é".repeat(MAX_MESSAGE_LEN);
        let mut wire = Vec::new();
        SpeedtestResponse {
            ok: false,
            message: &long,
        }
        .encode(&mut wire);
        let (response, _) = SpeedtestResponse::decode(&wire).unwrap();
        assert!(!response.ok);
        assert_eq!(response.message.len(), MAX_MESSAGE_LEN);
        assert_eq!(
            SpeedtestResponse::decode(&[0, 0x08, 0x01]),
            Err(InvalidKind::MessageLength.into())
        );
        assert_eq!(
            SpeedtestResponse::decode(&[0, 0, 1, 0xff]),
            Err(InvalidKind::NotUtf8.into())
        );
    }

    #[test]
    fn summaries_saturate() {
        let summary = SpeedtestSummary::new(Duration::MAX, u64::MAX);
        assert_eq!((summary.millis, summary.bytes), (u32::MAX, u32::MAX));
    }

    proptest! {
        #[test]
        fn round_trips(upload: bool, length: u32, ok: bool, message in ".{0,60}", millis: u32, bytes: u32) {
            let direction = if upload { Direction::Upload } else { Direction::Download };
            let request = SpeedtestRequest { direction, length };
            let mut wire = Vec::new();
            request.encode(&mut wire);
            prop_assert_eq!(SpeedtestRequest::decode(&wire), Ok((request, wire.len())));
            for cut in 0..wire.len() {
                prop_assert_eq!(SpeedtestRequest::decode(&wire[..cut]), Err(DecodeError::Incomplete));
            }

            let response = SpeedtestResponse { ok, message: &message };
            let mut wire = Vec::new();
            response.encode(&mut wire);
            prop_assert_eq!(SpeedtestResponse::decode(&wire), Ok((response, wire.len())));
            for cut in 0..wire.len() {
                prop_assert_eq!(SpeedtestResponse::decode(&wire[..cut]), Err(DecodeError::Incomplete));
            }

            let summary = SpeedtestSummary { millis, bytes };
            let mut wire = Vec::new();
            summary.encode(&mut wire);
            prop_assert_eq!(SpeedtestSummary::decode(&wire), Ok((summary, wire.len())));
            for cut in 0..wire.len() {
                prop_assert_eq!(SpeedtestSummary::decode(&wire[..cut]), Err(DecodeError::Incomplete));
            }
        }
    }
}
