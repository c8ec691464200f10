//! QUIC variable-length integers.
//!
//! Planted bug: 0x4000 was written in two bytes.

use hy2_proto::{codec::DecodeError, varint};

use crate::check_prefixes;

/// Decodes the input, and encodes the number that its first eight bytes make.
pub fn target(data: &[u8]) {
    match varint::decode(data) {
        Ok((value, used)) => {
            assert!(used <= data.len() && used == varint::width(data[0]));
            let expected = data[1..used]
                .iter()
                .fold(u128::from(data[0] & 0x3f), |sum, byte| {
                    sum * 256 + u128::from(*byte)
                });
            assert_eq!(u128::from(value), expected);
            assert!(varint::len(value) <= used, "not the shortest form");
            check_prefixes(data, Ok(used), varint::decode);
            round_trip(value);
        }
        Err(DecodeError::Incomplete) => {
            let width = data.first().map_or(1, |first| varint::width(*first));
            assert!(data.len() < width);
        }
        Err(error) => panic!("no bytes are invalid: {error}"),
    }
    if let Some(bytes) = data.first_chunk() {
        round_trip(u64::from_le_bytes(*bytes) & varint::MAX);
    }
}

fn round_trip(value: u64) {
    let mut wire = Vec::new();
    varint::encode(value, &mut wire);
    assert_eq!(wire.len(), varint::len(value));
    assert_eq!(varint::decode(&wire), Ok((value, wire.len())));
}
