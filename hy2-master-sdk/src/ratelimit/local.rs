//! Buckets in this process.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota};
use parking_lot::Mutex;

use super::{Limit, Limited};

/// Keys that one limit may hold before those that are full again are dropped.
const SWEEP_AT: usize = 10_000;

/// Keys that one limit may hold at all; beyond it all unknown keys share one bucket.
const MAX_KEYS: usize = 200_000;

/// Where the keys beyond [`MAX_KEYS`] meet.
const OVERFLOW: &str = "\0overflow";

/// Token buckets by limit and key.
#[derive(Default)]
pub struct LocalLimiter {
    clock: DefaultClock,
    limits: Mutex<HashMap<Limit, Arc<DefaultKeyedRateLimiter<String>>>>,
}

impl LocalLimiter {
    /// Takes one from the bucket of `key`.
    ///
    /// # Errors
    ///
    /// [`Limited`] if it is empty.
    pub fn check(&self, limit: Limit, key: &str) -> Result<(), Limited> {
        let limiter = self.limiter(limit);
        if limiter.len() > SWEEP_AT {
            limiter.retain_recent();
        }
        let key = if limiter.len() > MAX_KEYS {
            OVERFLOW
        } else {
            key
        };
        limiter
            .check_key(&key.to_owned())
            .map_err(|not_until| Limited {
                retry_after: not_until.wait_time_from(self.clock.now()),
            })
    }

    fn limiter(&self, limit: Limit) -> Arc<DefaultKeyedRateLimiter<String>> {
        let mut limits = self.limits.lock();
        let made = limits.entry(limit).or_insert_with(|| {
            let burst = NonZeroU32::new(limit.burst).unwrap_or(NonZeroU32::MIN);
            let quota = Quota::with_period(limit.period / burst.get())
                .unwrap_or_else(|| Quota::per_second(burst))
                .allow_burst(burst);
            Arc::new(DefaultKeyedRateLimiter::keyed(quota))
        });
        Arc::clone(made)
    }
}

impl std::fmt::Debug for LocalLimiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalLimiter").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const FIVE: Limit = Limit::new("five", 5, 900);

    #[test]
    fn a_bucket_empties_and_says_when_to_come_back() {
        let limiter = LocalLimiter::default();
        for _ in 0..5 {
            limiter.check(FIVE, "a").unwrap();
        }
        let limited = limiter.check(FIVE, "a").unwrap_err();
        assert!(limited.retry_after > Duration::ZERO);
        assert!(limited.retry_after <= Duration::from_secs(180));
    }

    #[test]
    fn keys_and_limits_do_not_meet() {
        let limiter = LocalLimiter::default();
        for _ in 0..5 {
            limiter.check(FIVE, "a").unwrap();
        }
        limiter.check(FIVE, "b").unwrap();
        limiter.check(Limit::new("six", 5, 900), "a").unwrap();
    }
}
