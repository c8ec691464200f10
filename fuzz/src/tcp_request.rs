//! The request that opens a TCP relay stream, behind its frame type.
//!
//! Planted bug: an empty address was accepted.

use hy2_proto::tcp::{MAX_ADDRESS_LEN, MAX_PADDING_LEN, MAX_REQUEST_LEN, TcpRequest};

use crate::check_prefixes;

/// Decodes the input as a request.
pub fn target(data: &[u8]) {
    let decoded = TcpRequest::decode(data);
    check_prefixes(data, decoded.map(|(_, used)| used), TcpRequest::decode);
    if let Err(error) = decoded {
        assert!(!error.is_incomplete() || data.len() < MAX_REQUEST_LEN);
        return;
    }
    let Ok((request, used)) = decoded else { return };
    assert!(used <= data.len().min(MAX_REQUEST_LEN));
    assert!((1..=MAX_ADDRESS_LEN).contains(&request.address.len()));
    assert!(request.padding.len() <= MAX_PADDING_LEN);
    assert!(data[..used].ends_with(request.padding));
    let mut wire = Vec::new();
    request.encode(&mut wire);
    assert_eq!(wire.len(), request.encoded_len());
    assert_eq!(wire[..2], [0x44, 0x01]);
    assert!(wire.len() - 2 <= used, "not the shortest form");
    assert_eq!(
        TcpRequest::decode(&wire[2..]),
        Ok((request, wire.len() - 2))
    );
}
