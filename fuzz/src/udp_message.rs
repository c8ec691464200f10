//! One UDP message in a QUIC datagram.
//!
//! Planted bug: a message without data was accepted.

use hy2_proto::{
    address::AddressRef,
    codec::DecodeError,
    udp::{MAX_ADDRESS_LEN, MAX_MESSAGE_LEN, UdpMessage, header_len, max_payload},
};

/// Decodes the input as a datagram.
pub fn target(data: &[u8]) {
    let message = match UdpMessage::decode(data) {
        Ok(message) => message,
        Err(DecodeError::Incomplete) => {
            // Only what could go on within the limit is called incomplete.
            assert!(data.len() <= MAX_MESSAGE_LEN);
            return;
        }
        Err(_) => return,
    };
    assert!(data.len() <= MAX_MESSAGE_LEN);
    assert!((1..=MAX_ADDRESS_LEN).contains(&message.address.len()));
    assert!(!message.data.is_empty() && data.ends_with(message.data));
    assert_eq!(message.session_id.to_be_bytes(), data[..4]);
    assert_eq!(message.packet_id.to_be_bytes(), data[4..6]);
    assert_eq!([message.frag_id, message.frag_count], data[6..8]);
    assert_eq!(message.is_fragment(), data[7] > 1);

    let mut wire = Vec::new();
    message.encode(&mut wire);
    assert!(wire.len() <= data.len(), "not the shortest form");
    assert_eq!(wire.len(), message.encoded_len());
    assert_eq!(
        wire.len(),
        header_len(message.address.len()) + message.data.len()
    );
    assert!(message.data.len() <= max_payload(message.address.len()));
    assert_eq!(UdpMessage::decode(&wire), Ok(message));

    // A prefix that reaches the data is a shorter message, any other is incomplete.
    let head = data.len() - message.data.len();
    assert_eq!(
        UdpMessage::decode(&data[..head]),
        Err(DecodeError::Incomplete)
    );
    let shorter = UdpMessage {
        data: &message.data[..1],
        ..message
    };
    assert_eq!(UdpMessage::decode(&data[..=head]), Ok(shorter));
    let _ = AddressRef::parse(message.address);
}
