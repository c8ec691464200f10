//! Noise that hides the true size of requests and responses.
//!
//! The ranges are those of the reference (`core/internal/protocol/padding.go`), whose upper end
//! is not included. Characters are letters and digits, since the same noise goes into headers.
//! Random bytes come from the caller; they need not be fit for keys.

/// Lengths that one kind of message picks its padding from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PaddingRange {
    /// Shortest length in bytes.
    pub min: u16,
    /// One more than the longest length in bytes.
    pub end: u16,
}

/// For [`crate::auth::AuthRequest`].
pub const AUTH_REQUEST: PaddingRange = PaddingRange::new(256, 2048);
/// For [`crate::auth::AuthResponse`].
pub const AUTH_RESPONSE: PaddingRange = PaddingRange::new(256, 2048);
/// For [`crate::tcp::TcpRequest`].
pub const TCP_REQUEST: PaddingRange = PaddingRange::new(64, 512);
/// For [`crate::tcp::TcpResponse`].
pub const TCP_RESPONSE: PaddingRange = PaddingRange::new(128, 1024);

const CHARACTERS: &[u8; 62] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

/// The character for each byte.
#[expect(clippy::indexing_slicing, reason = "evaluated when compiled")]
const ALPHANUMERIC: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = CHARACTERS[byte % CHARACTERS.len()];
        byte += 1;
    }
    table
};

impl PaddingRange {
    const fn new(min: u16, end: u16) -> Self {
        Self { min, end }
    }

    /// Picks a length, evenly, for a random number that is even over all of `u32`.
    #[must_use]
    pub fn pick(self, random: u32) -> usize {
        let span = u64::from(self.end.saturating_sub(self.min));
        // The high half of the product lies below the span, so it fits `u16` as well.
        let offset = u16::try_from((u64::from(random) * span) >> 32).unwrap_or(0);
        usize::from(self.min.saturating_add(offset))
    }
}

/// Draws padding of a random length from `range`.
///
/// `entropy` fills the slice it is given with random bytes; it is called twice.
///
/// # Examples
///
/// ```
/// use hy2_proto::padding;
///
/// // A real caller passes its random number generator.
/// let text = padding::fill(padding::TCP_REQUEST, |bytes| bytes.fill(0x80));
/// assert!((64..512).contains(&text.len()));
/// assert!(text.bytes().all(|c| c.is_ascii_alphanumeric()));
/// ```
#[must_use]
pub fn fill(range: PaddingRange, mut entropy: impl FnMut(&mut [u8])) -> String {
    let mut random = [0; 4];
    entropy(&mut random);
    let mut bytes = vec![0; range.pick(u32::from_be_bytes(random))];
    entropy(&mut bytes);
    alphanumeric(&mut bytes);
    String::from_utf8(bytes).unwrap_or_default()
}

/// Turns random bytes into random letters and digits, in place.
///
/// The first eight characters come up a quarter more often than the others, which is of no
/// consequence inside encryption.
pub fn alphanumeric(bytes: &mut [u8]) {
    for byte in bytes {
        // There is one for every byte.
        *byte = ALPHANUMERIC
            .get(usize::from(*byte))
            .copied()
            .unwrap_or(b'a');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_half_open() {
        for (range, min, end) in [
            (AUTH_REQUEST, 256, 2048),
            (AUTH_RESPONSE, 256, 2048),
            (TCP_REQUEST, 64, 512),
            (TCP_RESPONSE, 128, 1024),
        ] {
            assert_eq!(range.pick(0), min);
            assert_eq!(range.pick(u32::MAX), end - 1);
        }
    }

    #[test]
    fn an_empty_range_gives_its_start() {
        assert_eq!(PaddingRange { min: 9, end: 9 }.pick(u32::MAX), 9);
        assert_eq!(PaddingRange { min: 9, end: 2 }.pick(u32::MAX), 9);
    }

    #[test]
    fn every_character_comes_up_and_no_other() {
        let mut bytes: Vec<u8> = (0..=u8::MAX).collect();
        alphanumeric(&mut bytes);
        assert!(bytes.iter().all(u8::is_ascii_alphanumeric));
        bytes.sort_unstable();
        bytes.dedup();
        assert_eq!(bytes.len(), 62);
    }

    proptest! {
        #[test]
        fn picks_stay_in_range(random: u32, min in 0..3000_u16, span in 1..3000_u16) {
            let range = PaddingRange { min, end: min + span };
            prop_assert!((usize::from(min)..usize::from(min + span)).contains(&range.pick(random)));
        }

        #[test]
        fn fill_uses_what_it_is_given(seed: u8) {
            let mut next = seed;
            let text = fill(AUTH_REQUEST, |bytes| for byte in bytes {
                next = next.wrapping_mul(31).wrapping_add(7);
                *byte = next;
            });
            prop_assert!((256..2048).contains(&text.len()));
            prop_assert!(text.bytes().all(|c| c.is_ascii_alphanumeric()));
        }
    }
}
