//! Padding: lengths from a range, characters from the input as random bytes.
//!
//! Planted bug: `pick` could return one more than the longest length.

use arbitrary::Unstructured;
use hy2_proto::padding::{
    AUTH_REQUEST, AUTH_RESPONSE, PaddingRange, TCP_REQUEST, TCP_RESPONSE, alphanumeric, fill,
};

use crate::read;

/// Fills padding of each range and of one range from the input.
pub fn target(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let any = PaddingRange {
        min: read::<u16>(&mut input) % 300,
        end: read::<u16>(&mut input) % 301,
    };
    let seed = read::<u32>(&mut input);
    let entropy = input.take_rest();
    for range in [AUTH_REQUEST, AUTH_RESPONSE, TCP_REQUEST, TCP_RESPONSE, any] {
        let span = span(range);
        for random in [0, seed, u32::MAX] {
            assert!(span.contains(&range.pick(random)), "{range:?} {random}");
        }
        assert_eq!(range.pick(0), *span.start());
        assert_eq!(range.pick(u32::MAX), *span.end());
        assert!(range.pick(seed) <= range.pick(seed.saturating_add(1)));
    }
    let mut calls = 0;
    let text = fill(any, |bytes| {
        calls += 1;
        for (byte, random) in bytes.iter_mut().zip(entropy.iter().cycle()) {
            *byte = *random;
        }
    });
    assert_eq!(calls, 2);
    assert!(span(any).contains(&text.len()), "{any:?}: {}", text.len());
    assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric()));

    let mut bytes = entropy.to_vec();
    alphanumeric(&mut bytes);
    assert!(bytes.iter().all(u8::is_ascii_alphanumeric));
    assert_eq!(bytes.len(), entropy.len());
}

/// The lengths of a range; its first one if there is no other.
fn span(range: PaddingRange) -> std::ops::RangeInclusive<usize> {
    let longest = range.end.max(range.min.saturating_add(1)) - 1;
    usize::from(range.min)..=usize::from(longest)
}
