//! Gecko's fragment: `80 ‖ message ‖ index<<4|count ‖ u16 padding ‖ padding ‖ chunk`.

/// Bytes in front of the padding.
pub(super) const HEADER_LEN: usize = 5;
/// Fewest chunks of a datagram.
pub(super) const MIN_CHUNKS: u8 = 2;
/// Most chunks of a datagram.
pub(super) const MAX_CHUNKS: u8 = 8;
/// First byte of a fragment; no QUIC packet begins so, because bit 0x40 is always set there.
const MAGIC: u8 = 0x80;

/// One fragment as received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fragment<'a> {
    pub(super) message: u8,
    pub(super) index: u8,
    pub(super) count: u8,
    pub(super) chunk: &'a [u8],
}

/// Returns whether `datagram` begins with a long header (RFC 9000 §17.2), which Gecko splits.
pub(super) fn is_long_header(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|byte| byte & 0x80 != 0)
}

/// Returns whether `payload` claims to be a fragment.
pub(super) fn is_fragment(payload: &[u8]) -> bool {
    payload.first() == Some(&MAGIC)
}

/// Decodes a fragment; `None` when it can never be one.
pub(super) fn parse(payload: &[u8]) -> Option<Fragment<'_>> {
    let (&[magic, message, position, pad_high, pad_low], rest) =
        payload.split_first_chunk::<HEADER_LEN>()?;
    let (index, count) = (position >> 4, position & 0x0f);
    if magic != MAGIC || !(MIN_CHUNKS..=MAX_CHUNKS).contains(&count) || index >= count {
        return None;
    }
    let chunk = rest.get(usize::from(u16::from_be_bytes([pad_high, pad_low]))..)?;
    Some(Fragment {
        message,
        index,
        count,
        chunk,
    })
}

/// Splits a datagram into `count` near-equal chunks, the last of which takes the remainder.
pub(super) fn chunks(datagram: &[u8], count: u8) -> impl Iterator<Item = (u8, &[u8])> {
    let size = datagram.len() / usize::from(count);
    (0..count).map(move |index| {
        let start = usize::from(index) * size;
        let end = if index + 1 == count {
            datagram.len()
        } else {
            start + size
        };
        (index, &datagram[start..end])
    })
}

/// Writes one fragment to `target`, which has exactly its size.
pub(super) fn write(
    message: u8,
    index: u8,
    count: u8,
    padding: &[u8],
    chunk: &[u8],
    target: &mut [u8],
) {
    let [pad_high, pad_low] = (padding.len() as u16).to_be_bytes();
    let (head, rest) = target.split_at_mut(HEADER_LEN);
    head.copy_from_slice(&[MAGIC, message, index << 4 | count, pad_high, pad_low]);
    let (pad, body) = rest.split_at_mut(padding.len());
    pad.copy_from_slice(padding);
    body.copy_from_slice(chunk);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captured_fragment_is_read() {
        let mut wire = hex::decode("8001060278").unwrap();
        wire.extend([0xee; 632]);
        wire.extend(hex::decode("c00000000108ba75").unwrap());
        let fragment = parse(&wire).unwrap();
        assert_eq!(
            (fragment.message, fragment.index, fragment.count),
            (1, 0, 6)
        );
        assert_eq!(fragment.chunk, hex::decode("c00000000108ba75").unwrap());
    }

    #[test]
    fn impossible_fragments_are_refused() {
        for wire in [
            "",
            "80552200",
            "0000220000",
            "8000000000",
            "8000010000",
            "8000090000",
            "8000440000",
            "80000200120102",
        ] {
            assert_eq!(parse(&hex::decode(wire).unwrap()), None, "{wire}");
        }
    }
}
