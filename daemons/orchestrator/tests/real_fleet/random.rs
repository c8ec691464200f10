//! Chance that can be repeated.

/// SplitMix64.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// Of `HY2_SEED`, or of a new seed; says which.
    pub(crate) fn seeded(what: &str) -> Self {
        let named = std::env::var("HY2_SEED").ok();
        let seed = named.map_or_else(rand::random, |seed| {
            seed.parse().expect("HY2_SEED is a number")
        });
        crate::say(&format!("{what}: HY2_SEED={seed}"));
        Self(seed)
    }

    pub(crate) const fn of(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) const fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        let at = usize::try_from(self.below(among.len() as u64)).expect("in range");
        among[at]
    }

    /// `each` of every kind, in an order of chance.
    pub(crate) fn order<T: Copy>(&mut self, kinds: &[T], each: usize) -> Vec<T> {
        let mut order: Vec<T> = (0..each).flat_map(|_| kinds.iter().copied()).collect();
        for at in (1..order.len()).rev() {
            let other = usize::try_from(self.below(at as u64 + 1)).expect("in range");
            order.swap(at, other);
        }
        order
    }
}
