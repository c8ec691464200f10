//! Field sections: QPACK, the Huffman code, requests and trailers.
//!
//! Planted bug: padding of a whole byte was accepted behind a Huffman code.

use hy2_core::fuzzing::h3;
use hy2_proto::bandwidth::Bandwidth;

/// Decodes the input as a section and as Huffman code, and encodes it as text.
pub fn target(data: &[u8]) {
    huffman(data);
    let fields = h3::fields(data);
    if let Some(fields) = &fields {
        encode_again(fields);
    }
    let request = h3::request(data);
    let trailers = h3::trailers(data);
    let Some(fields) = fields else {
        // Both read in order and may object to an earlier field.
        assert!(request.is_err() && trailers.is_err());
        return;
    };
    let text = |octets: &[u8]| {
        octets
            .iter()
            .all(|o| *o == b'\t' || (*o >= b' ' && *o != 0x7f))
    };
    let (mut size, mut pseudo, mut clean) = (0, 0, true);
    for (name, value) in &fields {
        size += name.len() + value.len() + 32;
        pseudo += usize::from(name.first() == Some(&b':'));
        clean &= !name.iter().any(u8::is_ascii_uppercase) && text(value);
    }
    if let Ok((request, length, counted)) = &request {
        assert!(clean && *counted == size && size <= 64 << 10);
        assert!(pseudo >= 2);
        assert!(fields.len() >= pseudo + request.headers().keys_len());
        let declared = request.headers().get("content-length");
        assert_eq!(
            declared.map(|value| value.to_str().ok().and_then(|text| text.parse().ok())),
            length.map(Some)
        );
        if let Some(auth) = h3::auth_request(request) {
            assert_eq!(request.method(), "POST");
            assert!(request.uri().path() == "/auth");
            let _ = auth.server_rate(Bandwidth::ZERO);
        }
    }
    if trailers.is_ok() {
        assert!(clean && pseudo == 0 && size <= 64 << 10);
        assert!(request.is_err(), "both a request and trailers");
    }
}

fn encode_again(fields: &[(Vec<u8>, Vec<u8>)]) {
    let named: Option<Vec<(&str, &[u8])>> = fields
        .iter()
        .map(|(name, value)| Some((std::str::from_utf8(name).ok()?, &value[..])))
        .collect();
    if let Some(named) = named {
        let section = h3::encode_fields(named.iter().copied());
        assert_eq!(h3::fields(&section).as_deref(), Some(fields));
    }
}

fn huffman(data: &[u8]) {
    let (coded, announced) = h3::huffman_encode(data);
    assert_eq!(coded.len(), announced);
    assert_eq!(h3::huffman_decode(&coded).as_deref(), Some(data));
    if let Some(plain) = h3::huffman_decode(data) {
        // The code is a bijection, padding included.
        assert_eq!(h3::huffman_encode(&plain).0, data);
    }
}
