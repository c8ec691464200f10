//! The answer to a TCP request.
//!
//! Planted bug: status 1 counted as success.

use hy2_proto::tcp::{MAX_MESSAGE_LEN, MAX_PADDING_LEN, MAX_RESPONSE_LEN, TcpResponse};

use crate::check_prefixes;

/// Decodes the input as a response, and puts it into one as its message.
pub fn target(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let response = TcpResponse::new(true, text, b"");
        assert!(text.starts_with(response.message));
        assert!(response.message.len() <= MAX_MESSAGE_LEN);
        assert!(
            response.message.len() == text.len() || response.message.len() > MAX_MESSAGE_LEN - 4
        );
    }
    let decoded = TcpResponse::decode(data);
    check_prefixes(data, decoded.map(|(_, used)| used), TcpResponse::decode);
    if let Err(error) = decoded {
        assert!(!error.is_incomplete() || data.len() < MAX_RESPONSE_LEN);
        return;
    }
    let Ok((response, used)) = decoded else {
        return;
    };
    assert!(used <= data.len().min(MAX_RESPONSE_LEN));
    assert_eq!(response.ok, data[0] == 0);
    assert!(response.message.len() <= MAX_MESSAGE_LEN);
    assert!(response.padding.len() <= MAX_PADDING_LEN);
    assert!(data[..used].ends_with(response.padding));
    let mut wire = Vec::new();
    response.encode(&mut wire);
    assert_eq!(wire.len(), response.encoded_len());
    assert!(wire.len() <= used, "not the shortest form");
    assert_eq!(TcpResponse::decode(&wire), Ok((response, wire.len())));
}
