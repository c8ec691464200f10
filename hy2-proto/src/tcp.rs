//! The request that opens a TCP relay stream, and its answer.
//!
//! ```text
//! client -> server   varint 0x401 | varint length, address | varint length, padding
//! server -> client   u8 status    | varint length, message | varint length, padding
//! ```
//!
//! The address is `host:port` text ([`crate::address`]), padding is noise without meaning. Limits
//! are those of the reference (`core/internal/protocol/proxy.go`); they are part of the format
//! because a peer that is over them gets its stream closed without an answer.

use bytes::BufMut;

use crate::codec::{DecodeError, InvalidKind, Reader};
use crate::varint;

/// First varint of a relay stream. In HTTP/3 it is a reserved frame type (RFC 9114, section
/// 7.2.8), which an ordinary HTTP/3 server skips.
pub const FRAME_TYPE: u64 = 0x401;

/// Longest address, in bytes.
pub const MAX_ADDRESS_LEN: usize = 2048;

/// Longest message text of a response, in bytes.
pub const MAX_MESSAGE_LEN: usize = 2048;

/// Longest padding, in bytes.
pub const MAX_PADDING_LEN: usize = 4096;

/// Most bytes that a request can take after its frame type.
pub const MAX_REQUEST_LEN: usize = 2 * varint::MAX_LEN + MAX_ADDRESS_LEN + MAX_PADDING_LEN;

/// Most bytes that a response can take.
pub const MAX_RESPONSE_LEN: usize = 1 + 2 * varint::MAX_LEN + MAX_MESSAGE_LEN + MAX_PADDING_LEN;

/// Asks the server to connect a stream to a target.
///
/// # Examples
///
/// ```
/// use hy2_proto::tcp::TcpRequest;
///
/// let mut wire = Vec::new();
/// TcpRequest { address: "example.com:443", padding: b"" }.encode(&mut wire);
/// assert_eq!(&wire[..2], [0x44, 0x01]);
///
/// let (request, used) = TcpRequest::decode(&wire[2..])?;
/// assert_eq!((request.address, used), ("example.com:443", wire.len() - 2));
/// # Ok::<(), hy2_proto::codec::DecodeError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpRequest<'a> {
    /// Target as `host:port`, 1 to [`MAX_ADDRESS_LEN`] bytes. Not checked further here.
    pub address: &'a str,
    /// Ignored by the receiver, at most [`MAX_PADDING_LEN`] bytes.
    pub padding: &'a [u8],
}

impl<'a> TcpRequest<'a> {
    /// Decodes what follows [`FRAME_TYPE`], and returns it with the number of bytes it took.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Incomplete`] for every strict prefix of a valid request.
    /// [`DecodeError::Invalid`] as soon as a length is over its limit, the address is empty, or
    /// the address is not UTF-8.
    pub fn decode(buf: &'a [u8]) -> Result<(Self, usize), DecodeError> {
        let mut reader = Reader::new(buf);
        let len = reader.length(1, MAX_ADDRESS_LEN, InvalidKind::AddressLength)?;
        let address = reader.str(len)?;
        let padding = read_padding(&mut reader)?;
        Ok((Self { address, padding }, reader.consumed()))
    }

    /// Appends the frame type and the request.
    ///
    /// Limits are the caller's duty: a request beyond them is written as it is, and refused by
    /// the peer.
    ///
    /// # Panics
    ///
    /// If `buf` has less room than [`encoded_len`](Self::encoded_len).
    pub fn encode(&self, buf: &mut impl BufMut) {
        varint::encode(FRAME_TYPE, buf);
        put_prefixed(self.address.as_bytes(), buf);
        put_prefixed(self.padding, buf);
    }

    /// Returns the number of bytes [`encode`](Self::encode) writes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        varint::len(FRAME_TYPE) + prefixed_len(self.address.as_bytes()) + prefixed_len(self.padding)
    }
}

/// Tells the client whether its target was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpResponse<'a> {
    /// Whether bytes now flow. On the wire 0 means yes and everything else no.
    pub ok: bool,
    /// Text for a human, at most [`MAX_MESSAGE_LEN`] bytes.
    pub message: &'a str,
    /// Ignored by the receiver, at most [`MAX_PADDING_LEN`] bytes.
    pub padding: &'a [u8],
}

impl<'a> TcpResponse<'a> {
    /// Makes a response, cutting `message` at [`MAX_MESSAGE_LEN`] so that it stays valid.
    #[must_use]
    pub fn new(ok: bool, message: &'a str, padding: &'a [u8]) -> Self {
        let end = message.floor_char_boundary(MAX_MESSAGE_LEN);
        Self {
            ok,
            message: message.get(..end).unwrap_or_default(),
            padding,
        }
    }

    /// Decodes a response, and returns it with the number of bytes it took. Relayed bytes may
    /// follow at once.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Incomplete`] for every strict prefix of a valid response.
    /// [`DecodeError::Invalid`] as soon as a length is over its limit, or the message is not
    /// UTF-8.
    pub fn decode(buf: &'a [u8]) -> Result<(Self, usize), DecodeError> {
        let mut reader = Reader::new(buf);
        let ok = reader.u8()? == 0;
        let len = reader.length(0, MAX_MESSAGE_LEN, InvalidKind::MessageLength)?;
        let message = reader.str(len)?;
        let padding = read_padding(&mut reader)?;
        let response = Self {
            ok,
            message,
            padding,
        };
        Ok((response, reader.consumed()))
    }

    /// Appends the response. Limits are the caller's duty; [`new`](Self::new) keeps the one of
    /// the message.
    ///
    /// # Panics
    ///
    /// If `buf` has less room than [`encoded_len`](Self::encoded_len).
    pub fn encode(&self, buf: &mut impl BufMut) {
        buf.put_u8(u8::from(!self.ok));
        put_prefixed(self.message.as_bytes(), buf);
        put_prefixed(self.padding, buf);
    }

    /// Returns the number of bytes [`encode`](Self::encode) writes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        1 + prefixed_len(self.message.as_bytes()) + prefixed_len(self.padding)
    }
}

fn read_padding<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], DecodeError> {
    let len = reader.length(0, MAX_PADDING_LEN, InvalidKind::PaddingLength)?;
    reader.bytes(len)
}

fn put_prefixed(bytes: &[u8], buf: &mut impl BufMut) {
    varint::encode_len(bytes.len(), buf);
    buf.put_slice(bytes);
}

fn prefixed_len(bytes: &[u8]) -> usize {
    varint::len_of_len(bytes.len()) + bytes.len()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn request(hex: &str) -> Vec<u8> {
        hex::decode(hex.replace(' ', "")).unwrap()
    }

    fn encoded(address: &str, padding: &[u8]) -> Vec<u8> {
        let mut buf = Vec::new();
        TcpRequest { address, padding }.encode(&mut buf);
        buf
    }

    /// Reference `proxy_test.go`: bytes after the frame type.
    #[test]
    fn request_vectors() {
        // length 14 | google.com:443 | no padding
        let bytes = request("0e 676f6f676c652e636f6d3a343433 00");
        let (decoded, used) = TcpRequest::decode(&bytes).unwrap();
        assert_eq!(
            (decoded.address, decoded.padding),
            ("google.com:443", &b""[..])
        );
        assert_eq!(used, bytes.len());

        // length 11 | holy.cc:443 | padding of 2
        let bytes = [b"\x0bholy.cc:443".as_slice(), b"\x02gg"].concat();
        let (decoded, used) = TcpRequest::decode(&bytes).unwrap();
        assert_eq!(
            (decoded.address, decoded.padding),
            ("holy.cc:443", &b"gg"[..])
        );
        assert_eq!(used, bytes.len());

        // Address cut short; padding cut short.
        for bytes in [b"\x0bhoho".as_slice(), b"\x0bholy.cc:443\x05x"] {
            assert_eq!(TcpRequest::decode(bytes), Err(DecodeError::Incomplete));
        }
    }

    /// Derived: with the frame type in front.
    #[test]
    fn request_bytes() {
        // 0x401 | length 10 | 1.2.3.4:80 | padding "abc"
        assert_eq!(
            hex::encode(encoded("1.2.3.4:80", b"abc")),
            "44010a312e322e332e343a383003616263"
        );
        // 0x401 | length 16... | [2001:db8::1]:53 | no padding
        let wire = encoded("[2001:db8::1]:53", b"");
        assert_eq!(
            hex::encode(&wire),
            "4401105b323030313a6462383a3a315d3a353300"
        );
        assert_eq!(varint::decode(&wire), Ok((FRAME_TYPE, 2)));
    }

    /// Reference `proxy_test.go`.
    #[test]
    fn response_vectors() {
        for (hex, ok, message, padding) in [
            ("000b68656c6c6f20776f726c6400", true, "hello world", ""),
            ("010673746f702121057878787878", false, "stop!!", "xxxxx"),
            ("0100057878787878", false, "", "xxxxx"),
        ] {
            let bytes = request(hex);
            let (response, used) = TcpResponse::decode(&bytes).unwrap();
            let expected = TcpResponse {
                ok,
                message,
                padding: padding.as_bytes(),
            };
            assert_eq!(response, expected);
            assert_eq!(used, bytes.len());
            let mut again = Vec::new();
            expected.encode(&mut again);
            assert_eq!(hex::encode(again), hex);
        }
        for bytes in [b"\x00\x0bhoho".as_slice(), b"\x01\x05jesus\x05x"] {
            assert_eq!(TcpResponse::decode(bytes), Err(DecodeError::Incomplete));
        }
    }

    #[test]
    fn limits_are_inclusive_and_judged_at_once() {
        let longest = "a".repeat(MAX_ADDRESS_LEN);
        let wire = encoded(&longest, &[b'p'; MAX_PADDING_LEN]);
        let (decoded, _) = TcpRequest::decode(&wire[2..]).unwrap();
        assert_eq!(decoded.address.len(), MAX_ADDRESS_LEN);
        assert_eq!(decoded.padding.len(), MAX_PADDING_LEN);
        assert!(wire.len() - 2 <= MAX_REQUEST_LEN);

        // Length 0; length 2049, with none of its bytes there yet.
        for bytes in [&[0x00][..], &[0x48, 0x01]] {
            assert_eq!(
                TcpRequest::decode(bytes),
                Err(InvalidKind::AddressLength.into())
            );
        }
        // Padding of 4097.
        assert_eq!(
            TcpRequest::decode(b"\x01a\x50\x01"),
            Err(InvalidKind::PaddingLength.into())
        );
        assert_eq!(
            TcpResponse::decode(&[0, 0x48, 0x01]),
            Err(InvalidKind::MessageLength.into())
        );
        assert_eq!(
            TcpResponse::decode(&[0, 0, 0x50, 0x01]),
            Err(InvalidKind::PaddingLength.into())
        );
    }

    #[test]
    fn text_has_to_be_utf8() {
        assert_eq!(
            TcpRequest::decode(b"\x02\xff\xfe\x00"),
            Err(InvalidKind::NotUtf8.into())
        );
        assert_eq!(
            TcpResponse::decode(b"\x00\x01\xff\x00"),
            Err(InvalidKind::NotUtf8.into())
        );
    }

    #[test]
    fn wide_varints_are_read() {
        // The same request with both lengths in eight bytes.
        let bytes = request("c00000000000000a 312e322e332e343a3830 c000000000000000");
        let (decoded, used) = TcpRequest::decode(&bytes).unwrap();
        assert_eq!((decoded.address, used), ("1.2.3.4:80", bytes.len()));
    }

    #[test]
    fn any_status_but_zero_is_a_refusal() {
        for status in 1..=u8::MAX {
            let (response, _) = TcpResponse::decode(&[status, 0, 0])
                .map(|r| (r.0.ok, r.1))
                .unwrap();
            assert!(!response);
        }
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let message = "é".repeat(MAX_MESSAGE_LEN);
        let response = TcpResponse::new(false, &message, b"");
        assert_eq!(response.message.len(), MAX_MESSAGE_LEN);
        let odd = format!("x{message}");
        let response = TcpResponse::new(false, &odd, b"");
        assert_eq!(response.message.len(), MAX_MESSAGE_LEN - 1);
        let mut wire = Vec::new();
        response.encode(&mut wire);
        assert!(TcpResponse::decode(&wire).is_ok());
    }

    proptest! {
        #[test]
        fn request_round_trip(address in ".{1,80}", padding in vec(any::<u8>(), 0..600), tail in vec(any::<u8>(), 0..8)) {
            let request = TcpRequest { address: &address, padding: &padding };
            let mut wire = Vec::new();
            request.encode(&mut wire);
            prop_assert_eq!(wire.len(), request.encoded_len());
            let whole = wire.len() - 2;
            wire.extend(tail);
            prop_assert_eq!(TcpRequest::decode(&wire[2..]), Ok((request, whole)));
            for cut in 0..whole {
                prop_assert_eq!(TcpRequest::decode(&wire[2..2 + cut]), Err(DecodeError::Incomplete));
            }
        }

        #[test]
        fn response_round_trip(ok: bool, message in ".{0,80}", padding in vec(any::<u8>(), 0..600), tail in vec(any::<u8>(), 0..8)) {
            let response = TcpResponse::new(ok, &message, &padding);
            let mut wire = Vec::new();
            response.encode(&mut wire);
            prop_assert_eq!(wire.len(), response.encoded_len());
            let whole = wire.len();
            wire.extend(tail);
            prop_assert_eq!(TcpResponse::decode(&wire), Ok((response, whole)));
            for cut in 0..whole {
                prop_assert_eq!(TcpResponse::decode(&wire[..cut]), Err(DecodeError::Incomplete));
            }
        }

        #[test]
        fn decoders_take_any_bytes(bytes in vec(any::<u8>(), 0..200)) {
            for consumed in [
                TcpRequest::decode(&bytes).map(|(_, used)| used),
                TcpResponse::decode(&bytes).map(|(_, used)| used),
            ].into_iter().flatten() {
                prop_assert!(consumed <= bytes.len());
            }
        }
    }
}
