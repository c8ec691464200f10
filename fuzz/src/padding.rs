//! Padding: lengths from a range, characters from the input as random bytes.

use arbitrary::Unstructured;
use hy2_proto::padding::{
    AUTH_REQUEST, AUTH_RESPONSE, PaddingRange, TCP_REQUEST, TCP_RESPONSE, alphanumeric, fill,
};

use crate::read;

/// Fills padding of each range and of one range from the input.
pub fn target(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let any = PaddingRange {
        min: read::<u16>(&mut input) % 4096,
        end: read::<u16>(&mut input) % 4097,
    };
    let seed = read::<u32>(&mut input);
    let entropy = input.take_rest();
    for range in [AUTH_REQUEST, AUTH_RESPONSE, TCP_REQUEST, TCP_RESPONSE, any] {
        let longest = range.end.max(range.min.saturating_add(1)) - 1;
        let span = usize::from(range.min)..=usize::from(longest);
        for random in [0, seed, u32::MAX] {
            assert!(span.contains(&range.pick(random)), "{range:?} {random}");
        }
        assert_eq!(range.pick(0), *span.start());
        assert_eq!(range.pick(u32::MAX), *span.end());
        assert!(range.pick(seed) <= range.pick(seed.saturating_add(1)));

        let mut calls = 0;
        let text = fill(range, |bytes| {
            calls += 1;
            for (at, byte) in bytes.iter_mut().enumerate() {
                *byte = entropy.get(at % entropy.len().max(1)).copied().unwrap_or(0);
            }
        });
        assert_eq!(calls, 2);
        assert!(span.contains(&text.len()), "{range:?}: {}", text.len());
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    }
    let mut bytes = entropy.to_vec();
    alphanumeric(&mut bytes);
    assert!(bytes.iter().all(u8::is_ascii_alphanumeric));
    assert_eq!(bytes.len(), entropy.len());
}
