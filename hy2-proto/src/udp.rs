//! One UDP message, as it travels in a QUIC datagram.
//!
//! ```text
//! u32 session | u16 packet | u8 fragment | u8 fragments | varint length, address | data
//! ```
//!
//! All integers are big-endian. The address is the target on the way to the server, and the
//! source on the way back. Data is whatever is left, at least one byte: an empty UDP payload
//! cannot be expressed. Splitting and joining live in [`crate::frag`].

use bytes::BufMut;

use crate::codec::{DecodeError, InvalidKind, Reader};
use crate::varint;

/// Longest address, in bytes.
pub const MAX_ADDRESS_LEN: usize = 2048;

/// Largest whole message, header included, that one side may hand to the other.
///
/// The reference keeps 4,096 byte buffers and drops what does not fit, without a word
/// (`core/internal/protocol/proxy.go`, `MaxUDPSize`).
pub const MAX_MESSAGE_LEN: usize = 4096;

/// Bytes before the address length.
const FIXED_LEN: usize = 8;

/// A UDP message or one fragment of it.
///
/// # Examples
///
/// ```
/// use hy2_proto::udp::UdpMessage;
///
/// let message = UdpMessage::whole(7, "192.0.2.1:53", b"query");
/// let mut wire = Vec::new();
/// message.encode(&mut wire);
/// assert_eq!(UdpMessage::decode(&wire), Ok(message));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpMessage<'a> {
    /// Chosen by the client, unique within its connection. Zero is valid.
    pub session_id: u32,
    /// Joins the fragments of one message; of no meaning when there is only one.
    pub packet_id: u16,
    /// Place among the fragments, from 0.
    pub frag_id: u8,
    /// Number of fragments. 1, or 0 from lax peers, means a whole message.
    pub frag_count: u8,
    /// `host:port`, 1 to [`MAX_ADDRESS_LEN`] bytes. Not checked further here.
    pub address: &'a str,
    /// Payload, at least one byte.
    pub data: &'a [u8],
}

impl<'a> UdpMessage<'a> {
    /// Makes a message that is not fragmented. Its packet number is 0, as the reference sends.
    #[must_use]
    pub fn whole(session_id: u32, address: &'a str, data: &'a [u8]) -> Self {
        Self {
            session_id,
            packet_id: 0,
            frag_id: 0,
            frag_count: 1,
            address,
            data,
        }
    }

    /// Returns whether other fragments are needed to make a whole of this one.
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        self.frag_count > 1
    }

    /// Decodes a whole datagram.
    ///
    /// Fragment numbers are not judged here; [`crate::frag::Defragmenter`] drops the
    /// contradictory ones.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Incomplete`] if the datagram ends before the first byte of data. A prefix
    /// that does reach the data is a valid, shorter message, since nothing on the wire says how
    /// long data is. [`DecodeError::Invalid`] if the address is empty, over its limit or not
    /// UTF-8, or the datagram is longer than [`MAX_MESSAGE_LEN`].
    pub fn decode(datagram: &'a [u8]) -> Result<Self, DecodeError> {
        if datagram.len() > MAX_MESSAGE_LEN {
            return Err(InvalidKind::DatagramLength.into());
        }
        let mut reader = Reader::new(datagram);
        let [a, b, c, d, e, f, frag_id, frag_count] = reader.array()?;
        let session_id = u32::from_be_bytes([a, b, c, d]);
        let packet_id = u16::from_be_bytes([e, f]);
        let len = reader.length(1, MAX_ADDRESS_LEN, InvalidKind::AddressLength)?;
        let address = reader.str(len)?;
        let data = reader.into_rest();
        if data.is_empty() {
            return Err(DecodeError::Incomplete);
        }
        Ok(Self {
            session_id,
            packet_id,
            frag_id,
            frag_count,
            address,
            data,
        })
    }

    /// Appends the message.
    ///
    /// Limits are the caller's duty: compare [`encoded_len`](Self::encoded_len) with
    /// [`MAX_MESSAGE_LEN`] and drop what is larger.
    ///
    /// # Panics
    ///
    /// If `buf` has less room than [`encoded_len`](Self::encoded_len).
    pub fn encode(&self, buf: &mut impl BufMut) {
        // One write: each one asks the buffer for room.
        let fixed = u64::from(self.session_id) << 32
            | u64::from(self.packet_id) << 16
            | u64::from(self.frag_id) << 8
            | u64::from(self.frag_count);
        buf.put_u64(fixed);
        varint::encode_len(self.address.len(), buf);
        buf.put_slice(self.address.as_bytes());
        buf.put_slice(self.data);
    }

    /// Returns the number of bytes [`encode`](Self::encode) writes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        header_len(self.address.len()) + self.data.len()
    }
}

/// Returns the size in bytes of everything before the data, for an address of this length.
#[must_use]
pub fn header_len(address_len: usize) -> usize {
    FIXED_LEN + varint::len_of_len(address_len) + address_len
}

/// Returns the largest payload in bytes that may be sent with an address of this length.
///
/// # Examples
///
/// ```
/// assert_eq!(hy2_proto::udp::max_payload("1.2.3.4:53".len()), 4077);
/// ```
#[must_use]
pub fn max_payload(address_len: usize) -> usize {
    MAX_MESSAGE_LEN.saturating_sub(header_len(address_len))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        hex::decode(hex.replace(' ', "")).unwrap()
    }

    #[track_caller]
    fn both_ways(wire: &[u8], message: UdpMessage<'_>) {
        assert_eq!(UdpMessage::decode(wire), Ok(message));
        let mut again = Vec::new();
        message.encode(&mut again);
        assert_eq!(hex::encode(again), hex::encode(wire));
        assert_eq!(message.encoded_len(), wire.len());
    }

    /// Reference `proxy_test.go`.
    #[test]
    fn whole_message_vector() {
        // session 1 | packet 1 | fragment 0 of 1 | length 14 | example.com:80 | data
        both_ways(
            &bytes(
                "00000001 0001 00 01 0e 6578616d706c652e636f6d3a3830 \
                 474554202f6e6f7468696e6720485454502f312e310d0a",
            ),
            UdpMessage {
                session_id: 1,
                packet_id: 1,
                frag_id: 0,
                frag_count: 1,
                address: "example.com:80",
                data: b"GET /nothing HTTP/1.1\r\n",
            },
        );
    }

    /// Reference `proxy_test.go`: an address whose length takes a two-byte varint.
    #[test]
    fn long_address_vector() {
        let address = format!("{}:443", "a".repeat(490));
        assert_eq!(address.len(), 494);
        let data = b"God is great, beer is good, and people are crazy.";
        // session | packet | fragment 8 of 19 | length 494 | address | data
        let wire = [
            bytes("4f40edcc f319 08 13 41ee"),
            address.clone().into_bytes(),
            data.to_vec(),
        ]
        .concat();
        both_ways(
            &wire,
            UdpMessage {
                session_id: 0x4f40_edcc,
                packet_id: 0xf319,
                frag_id: 8,
                frag_count: 19,
                address: &address,
                data,
            },
        );
    }

    /// Captured from the official client: session 1, packet 0.
    #[test]
    fn captured_from_the_official_client() {
        both_ways(
            &bytes("0000000100000001105b323030313a6462383a3a315d3a35330000000000"),
            UdpMessage::whole(1, "[2001:db8::1]:53", &[0; 5]),
        );
    }

    /// Captured from the official client: a payload of 1,300 bytes as two datagrams.
    #[test]
    fn captured_fragments() {
        for (frag_id, head, wire_len, data_len) in [
            (
                0,
                "00000003ebbb0002 0e 646e732e6578616d706c653a3533",
                1197,
                1174,
            ),
            (
                1,
                "00000003ebbb0102 0e 646e732e6578616d706c653a3533",
                149,
                126,
            ),
        ] {
            let mut wire = bytes(head);
            wire.resize(wire_len, 0x5a);
            let message = UdpMessage::decode(&wire).unwrap();
            assert_eq!(message.session_id, 3);
            assert_eq!(message.packet_id, 0xebbb);
            assert_eq!((message.frag_id, message.frag_count), (frag_id, 2));
            assert_eq!(message.address, "dns.example:53");
            assert_eq!(message.data.len(), data_len);
            both_ways(&wire, message);
        }
        assert_eq!(1174 + 126, 1300);
    }

    /// Captured from sing-box, which counts sessions from 0 and packets from 1.
    #[test]
    fn captured_from_sing_box() {
        let wire = [
            bytes("0000000000010001 0e"),
            b"dns.example:53".to_vec(),
            b"?".to_vec(),
        ]
        .concat();
        let message = UdpMessage::decode(&wire).unwrap();
        assert_eq!((message.session_id, message.packet_id), (0, 1));
        assert!(!message.is_fragment());
        both_ways(&wire, message);
    }

    /// Reference `proxy_test.go`.
    #[test]
    fn invalid_vectors() {
        for hex in [
            "",
            "00000000",
            "000000000000000000000000",
            "66ccffff1122334455",
            "66ccffff1122334490aabbccddeeff",
        ] {
            assert!(UdpMessage::decode(&bytes(hex)).is_err(), "{hex}");
        }
        // Twelve zeros: an address of length 0.
        assert_eq!(
            UdpMessage::decode(&[0; 12]),
            Err(InvalidKind::AddressLength.into())
        );
        // A four-byte varint of 0x10aabbcc.
        assert_eq!(
            UdpMessage::decode(&bytes("66ccffff1122334490aabbccddeeff")),
            Err(InvalidKind::AddressLength.into())
        );
    }

    #[test]
    fn data_of_no_bytes_is_not_a_message() {
        let mut wire = Vec::new();
        UdpMessage::whole(1, "a:1", b"").encode(&mut wire);
        assert_eq!(UdpMessage::decode(&wire), Err(DecodeError::Incomplete));
    }

    #[test]
    fn the_largest_message_is_4096_bytes() {
        let address = "1.2.3.4:53";
        let data = vec![7; max_payload(address.len())];
        assert_eq!(data.len(), 4077);
        let mut wire = Vec::new();
        UdpMessage::whole(1, address, &data).encode(&mut wire);
        assert_eq!(wire.len(), MAX_MESSAGE_LEN);
        assert!(UdpMessage::decode(&wire).is_ok());
        wire.push(7);
        assert_eq!(
            UdpMessage::decode(&wire),
            Err(InvalidKind::DatagramLength.into())
        );
    }

    #[test]
    fn addresses_are_limited_and_utf8() {
        let mut wire = bytes("0000000100000001 4801");
        assert_eq!(
            UdpMessage::decode(&wire),
            Err(InvalidKind::AddressLength.into())
        );
        wire = bytes("0000000100000001 4800");
        wire.extend([b'a'; MAX_ADDRESS_LEN + 1]);
        assert_eq!(
            UdpMessage::decode(&wire).unwrap().address.len(),
            MAX_ADDRESS_LEN
        );
        assert_eq!(
            UdpMessage::decode(&bytes("0000000100000001 01 ff 00")),
            Err(InvalidKind::NotUtf8.into())
        );
    }

    proptest! {
        #[test]
        fn round_trip(
            session_id: u32, packet_id: u16, frag_id: u8, frag_count: u8,
            address in ".{1,60}", data in vec(any::<u8>(), 1..1500),
        ) {
            let message = UdpMessage { session_id, packet_id, frag_id, frag_count, address: &address, data: &data };
            let mut wire = Vec::new();
            message.encode(&mut wire);
            prop_assert_eq!(wire.len(), message.encoded_len());
            prop_assert_eq!(UdpMessage::decode(&wire), Ok(message));
            let header = header_len(address.len());
            for cut in 0..=header {
                prop_assert_eq!(UdpMessage::decode(&wire[..cut]), Err(DecodeError::Incomplete));
            }
            let shorter = UdpMessage { data: &data[..1], ..message };
            prop_assert_eq!(UdpMessage::decode(&wire[..header + 1]), Ok(shorter));
        }

        #[test]
        fn decoder_takes_any_bytes(bytes in vec(any::<u8>(), 0..200)) {
            if let Ok(message) = UdpMessage::decode(&bytes) {
                prop_assert!(!message.data.is_empty());
                prop_assert!(!message.address.is_empty());
            }
        }
    }
}
