//! The test data that peers and origins send: see "The pattern" in `interop/README.md`.

/// The period: the largest prime below 1 MiB.
const PERIOD: usize = (1 << 20) - 3;

/// Returns the first `len` bytes of the pattern of a seed.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut out = Vec::with_capacity(len.min(PERIOD) + 8);
    while out.len() < len.min(PERIOD) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        out.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    out.truncate(len.min(PERIOD));
    while out.len() < len {
        let more = (len - out.len()).min(PERIOD);
        out.extend_from_within(..more);
    }
    out
}
