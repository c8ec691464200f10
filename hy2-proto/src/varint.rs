//! QUIC variable-length integers (RFC 9000, section 16).
//!
//! The two highest bits of the first byte give the width: 1, 2, 4 or 8 bytes. Writers use the
//! shortest form; readers take any, because peers may send lengths in a wider form than needed.

use bytes::BufMut;

use crate::codec::DecodeError;

/// Largest value that the encoding can carry, 2^62 − 1.
pub const MAX: u64 = (1 << 62) - 1;

/// Most bytes that one encoded value takes.
pub const MAX_LEN: usize = 8;

/// Decodes the value at the start of `buf` and returns it with the number of bytes it took.
///
/// # Errors
///
/// [`DecodeError::Incomplete`] while bytes are missing; no sequence of bytes is invalid.
///
/// # Examples
///
/// ```
/// assert_eq!(hy2_proto::varint::decode(&[0x44, 0x01, 0xff]), Ok((0x401, 2)));
/// ```
#[inline]
pub fn decode(buf: &[u8]) -> Result<(u64, usize), DecodeError> {
    let first = *buf.first().ok_or(DecodeError::Incomplete)?;
    // Each width on its own, so that each is one load.
    let value = match first >> 6 {
        0 => first.into(),
        1 => u64::from(u16::from_be_bytes(head(buf)?)) & (MAX >> 48),
        2 => u64::from(u32::from_be_bytes(head(buf)?)) & (MAX >> 32),
        _ => u64::from_be_bytes(head(buf)?) & MAX,
    };
    Ok((value, width(first)))
}

#[inline]
fn head<const N: usize>(buf: &[u8]) -> Result<[u8; N], DecodeError> {
    buf.first_chunk().copied().ok_or(DecodeError::Incomplete)
}

/// Returns the whole width in bytes of an encoded value, from its first byte.
#[must_use]
pub fn width(first: u8) -> usize {
    1 << (first >> 6)
}

/// Appends `value` in its shortest form.
///
/// # Panics
///
/// If `value` exceeds [`MAX`], which only a mistake in the calling program can bring about, or
/// if `buf` has no room left.
#[inline]
pub fn encode(value: u64, buf: &mut impl BufMut) {
    assert!(value <= MAX, "value does not fit a varint");
    // What fits a width has zeros where its prefix goes.
    #[expect(clippy::cast_possible_truncation, reason = "by the width")]
    match len(value) {
        1 => buf.put_u8(value as u8),
        2 => buf.put_u16(value as u16 | 0x4000),
        4 => buf.put_u32(value as u32 | 0x8000_0000),
        _ => buf.put_u64(value | 0xc000_0000_0000_0000),
    }
}

/// Returns the number of bytes that [`encode`] writes for `value`.
#[must_use]
pub const fn len(value: u64) -> usize {
    match value {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    }
}

/// Appends a length. A length of something in memory is far below [`MAX`].
pub(crate) fn encode_len(len: usize, buf: &mut impl BufMut) {
    encode(to_u64(len), buf);
}

/// Returns how many bytes [`encode_len`] writes.
pub(crate) fn len_of_len(length: usize) -> usize {
    len(to_u64(length))
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(value: u64) -> Vec<u8> {
        let mut buf = Vec::new();
        encode(value, &mut buf);
        buf
    }

    #[test]
    fn reference_vectors() {
        for (value, hex) in [
            (1025, "4401"),
            (2048, "4800"),
            (4096, "5000"),
            (494, "41ee"),
            (16384, "80004000"),
            (64, "4040"),
        ] {
            assert_eq!(hex::encode(encoded(value)), hex, "{value}");
            let bytes = hex::decode(hex).unwrap();
            assert_eq!(decode(&bytes), Ok((value, bytes.len())), "{hex}");
        }
    }

    /// RFC 9000, appendix A.1.
    #[test]
    fn rfc_9000_vectors() {
        for (hex, value) in [
            ("c2197c5eff14e88c", 151_288_809_941_952_652),
            ("9d7f3e7d", 494_878_333),
            ("7bbd", 15_293),
            ("25", 37),
            ("4025", 37),
        ] {
            let bytes = hex::decode(hex).unwrap();
            assert_eq!(decode(&bytes), Ok((value, bytes.len())), "{hex}");
        }
    }

    #[test]
    fn edges_of_each_width() {
        for (value, width) in [
            (0, 1),
            (0x3f, 1),
            (0x40, 2),
            (0x3fff, 2),
            (0x4000, 4),
            (0x3fff_ffff, 4),
            (0x4000_0000, 8),
            (MAX, 8),
        ] {
            assert_eq!(encoded(value).len(), width, "{value}");
            assert_eq!(decode(&encoded(value)), Ok((value, width)));
        }
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn a_value_over_the_maximum_is_a_programming_error() {
        encoded(MAX + 1);
    }

    #[test]
    fn nothing_is_incomplete() {
        assert_eq!(decode(&[]), Err(DecodeError::Incomplete));
    }

    proptest! {
        #[test]
        fn decodes_what_it_encodes(value in 0..=MAX, tail in proptest::collection::vec(any::<u8>(), 0..4)) {
            let mut bytes = encoded(value);
            prop_assert_eq!(bytes.len(), len(value));
            prop_assert_eq!(width(bytes[0]), bytes.len());
            let whole = bytes.len();
            bytes.extend(tail);
            prop_assert_eq!(decode(&bytes), Ok((value, whole)));
        }

        #[test]
        fn every_strict_prefix_is_incomplete(value in 0..=MAX, cut in 0..8_usize) {
            let bytes = encoded(value);
            prop_assume!(cut < bytes.len());
            prop_assert_eq!(decode(&bytes[..cut]), Err(DecodeError::Incomplete));
        }
    }
}
