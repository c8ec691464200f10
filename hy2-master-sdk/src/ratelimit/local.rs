//! Buckets in this process.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{KeyHash, Limit, Limited, hash};

/// Keys that one limit may hold before those that are full again are dropped.
const SWEEP_AT: usize = 10_000;

/// Keys that one limit may hold at all; beyond it all unknown keys share one bucket.
const MAX_KEYS: usize = 200_000;

/// Where the keys beyond [`MAX_KEYS`] meet.
const OVERFLOW: KeyHash = [0; 16];

/// Token buckets by limit and hash of the key, each as the moment at which it is full again. Keys hold what was typed as a
/// name, of any length.
#[derive(Default)]
pub struct LocalLimiter {
    limits: Mutex<HashMap<Limit, HashMap<KeyHash, Instant>>>,
}

impl LocalLimiter {
    /// Takes one from the bucket of `key`.
    ///
    /// # Errors
    ///
    /// [`Limited`] if it is empty.
    pub fn check(&self, limit: Limit, key: &str) -> Result<(), Limited> {
        self.check_at(limit, key, Instant::now())
    }

    /// Puts back what was taken of the bucket of `key`; a full one stays full.
    pub fn give_back(&self, limit: Limit, key: &str) {
        let mut limits = self.limits.lock();
        if let Some(full_at) = limits
            .get_mut(&limit)
            .and_then(|keys| keys.get_mut(&hash(key)))
            && let Some(earlier) = full_at.checked_sub(each(limit))
        {
            *full_at = earlier;
        }
    }

    fn check_at(&self, limit: Limit, key: &str, now: Instant) -> Result<(), Limited> {
        let mut limits = self.limits.lock();
        let keys = limits.entry(limit).or_default();
        if keys.len() > SWEEP_AT {
            keys.retain(|_, full_at| *full_at > now);
        }
        let mut key = hash(key);
        if keys.len() > MAX_KEYS && !keys.contains_key(&key) {
            key = OVERFLOW;
        }
        let each = each(limit);
        let full_at = keys.get(&key).map_or(now, |full_at| (*full_at).max(now)) + each;
        let empty_for = full_at.saturating_duration_since(now);
        match empty_for.checked_sub(each * limit.burst.max(1)) {
            Some(retry_after) if retry_after > Duration::ZERO => Err(Limited { retry_after }),
            _ => {
                keys.insert(key, full_at);
                Ok(())
            }
        }
    }
}

/// How long one takes to come back.
fn each(limit: Limit) -> Duration {
    limit.period / limit.burst.max(1)
}

impl std::fmt::Debug for LocalLimiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalLimiter").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_bucket_fills_by_one_after_the_other_and_holds_no_more_than_it_did() {
        let (limiter, start) = (LocalLimiter::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for _ in 0..5 {
            limiter.check_at(FIVE, "a", start).unwrap();
        }
        let limited = limiter.check_at(FIVE, "a", at(1)).unwrap_err();
        assert_eq!(limited.retry_after, Duration::from_secs(179));
        limiter.check_at(FIVE, "a", at(180)).unwrap();
        assert!(limiter.check_at(FIVE, "a", at(180)).is_err());
        for _ in 0..5 {
            limiter.check_at(FIVE, "a", at(9_000)).unwrap();
        }
        assert!(limiter.check_at(FIVE, "a", at(9_000)).is_err());
    }

    #[test]
    fn what_is_given_back_can_be_taken_once_more_and_a_full_bucket_stays_as_it_is() {
        let (limiter, now) = (LocalLimiter::default(), Instant::now());
        for _ in 0..50 {
            limiter.check_at(FIVE, "a", now).unwrap();
            limiter.give_back(FIVE, "a");
        }
        limiter.give_back(FIVE, "a");
        limiter.give_back(FIVE, "nobody");
        for _ in 0..5 {
            limiter.check_at(FIVE, "a", now).unwrap();
        }
        assert!(limiter.check_at(FIVE, "a", now).is_err());
        limiter.give_back(FIVE, "a");
        limiter.check_at(FIVE, "a", now).unwrap();
        assert!(limiter.check_at(FIVE, "a", now).is_err());
    }

    #[test]
    fn keys_of_any_length_take_the_same_room() {
        let limiter = LocalLimiter::default();
        for at in 0..100 {
            let name = format!("{}{at}", "a".repeat(16_384));
            limiter.check(FIVE, &name).unwrap();
        }
        let limits = limiter.limits.lock();
        let held: usize = limits[&FIVE].keys().map(|key| key.len()).sum();
        assert!(held <= 100 * 64, "{held} bytes");
    }

    #[test]
    fn beyond_so_many_keys_new_ones_share_a_bucket() {
        let (limiter, now) = (LocalLimiter::default(), Instant::now());
        for key in 0..=MAX_KEYS {
            let key = hash(&key.to_string());
            let mut limits = limiter.limits.lock();
            let keys = limits.entry(FIVE).or_default();
            keys.insert(key, now + Duration::from_secs(900));
        }
        for key in ["a", "b", "c", "d", "e"] {
            limiter.check_at(FIVE, key, now).unwrap();
        }
        assert!(limiter.check_at(FIVE, "f", now).is_err());
    }
}
