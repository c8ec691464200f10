//! A rate shared by all relays of one user, changeable while they run.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// The longest pause ordered at a time: a changed rate is in force everywhere by then.
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// Smallest burst, so that slow rates still move whole chunks.
const MIN_BURST: f64 = 65_536.0;

/// What one mover may move at a time at the slowest rates, in bytes.
const QUANTUM_MIN: usize = 4096;

/// What one mover may move at a time at most, in bytes: somewhat more than what a full batch has. What waited is in one
/// piece, of megabytes, and who holds a user back cannot take back what is moved.
const QUANTUM_MAX: usize = 128 << 10;

/// How long a mover that is held waits before it looks again.
const HELD_PAUSE: Duration = Duration::from_millis(20);

/// Says in [`RateLimiter::rate`] that nothing may move, whatever the rate.
const HELD: u64 = 1 << 63;

/// A token bucket over bytes. Without a rate it costs one relaxed load.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    /// Bytes per second; 0 is no limit. [`HELD`] comes on top.
    rate: AtomicU64,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn fill(&mut self, rate: f64) -> Instant {
        let now = Instant::now();
        let burst = (rate * 0.05).max(MIN_BURST);
        let refill = now.saturating_duration_since(self.filled).as_secs_f64() * rate;
        self.tokens = (self.tokens + refill).min(burst);
        self.filled = now;
        now
    }

    fn pause(&self, rate: f64, now: Instant) -> Option<Instant> {
        // Less than a byte of debt is rounding.
        let due = (self.tokens <= -1.0).then(|| Duration::from_secs_f64(-self.tokens / rate));
        due.map(|due| now + due.min(PAUSE_MAX))
    }
}

impl RateLimiter {
    pub(crate) fn unlimited() -> Self {
        Self {
            rate: AtomicU64::new(0),
            bucket: Mutex::new(Bucket {
                tokens: 0.0,
                filled: Instant::now(),
            }),
        }
    }

    /// Changes the rate in bytes per second; `None` lifts the limit.
    ///
    /// What was moved too much before is paid off at the new rate.
    pub(crate) fn set(&self, rate: Option<u64>) {
        let rate = rate.unwrap_or(0).min(HELD - 1);
        // Rates and holds change under the lock only.
        let mut bucket = self.bucket.lock();
        let old = self.rate.load(Relaxed);
        self.rate.store(rate | (old & HELD), Relaxed);
        match old & !HELD {
            0 => {
                bucket.tokens = 0.0;
                bucket.filled = Instant::now();
            }
            old => {
                bucket.fill(old as f64);
            }
        }
    }

    /// Holds everybody back, or lets them go on at their rate.
    pub(crate) fn hold(&self, held: bool) {
        let _bucket = self.bucket.lock();
        let rate = self.rate.load(Relaxed) & !HELD;
        let bit = if held { HELD } else { 0 };
        self.rate.store(rate | bit, Relaxed);
    }

    /// Takes `bytes` if they are there, for what may be dropped instead of delayed.
    pub(crate) fn try_take(&self, bytes: usize) -> bool {
        let rate = self.rate.load(Relaxed);
        if rate == 0 {
            return true;
        }
        if rate & HELD != 0 {
            return false;
        }
        let mut bucket = self.bucket.lock();
        bucket.fill(rate as f64);
        let enough = bucket.tokens >= bytes as f64;
        if enough {
            bucket.tokens -= bytes as f64;
        }
        enough
    }

    /// Returns how many bytes to move at most before [`Self::take`]: a twentieth of a second's worth, within
    /// limits. 0 for who is held, and has to [`Self::pause`] first.
    pub(crate) fn quantum(&self) -> usize {
        match self.rate.load(Relaxed) {
            0 => QUANTUM_MAX,
            rate if rate & HELD != 0 => 0,
            rate => usize::try_from(rate / 20)
                .map_or(QUANTUM_MAX, |bytes| bytes.clamp(QUANTUM_MIN, QUANTUM_MAX)),
        }
    }

    /// Takes `bytes` that were moved; returns until when the mover must pause before it asks
    /// [`Self::pause`] again.
    ///
    /// Debt is allowed: a mover cannot know in advance how much a read brings.
    pub(crate) fn take(&self, bytes: usize) -> Option<Instant> {
        let rate = self.rate.load(Relaxed);
        if rate == 0 {
            return None;
        }
        let mut bucket = self.bucket.lock();
        let held = rate & HELD != 0;
        let rate = rate & !HELD;
        if rate == 0 {
            return held.then(|| Instant::now() + HELD_PAUSE);
        }
        let now = bucket.fill(rate as f64);
        bucket.tokens -= bytes as f64;
        let pause = bucket.pause(rate as f64, now);
        held.then(|| now + HELD_PAUSE).or(pause)
    }

    /// Returns until when a mover must go on to pause; `None` when it may move.
    pub(crate) fn pause(&self) -> Option<Instant> {
        let rate = self.rate.load(Relaxed);
        if rate == 0 {
            return None;
        }
        if rate & HELD != 0 {
            return Some(Instant::now() + HELD_PAUSE);
        }
        let mut bucket = self.bucket.lock();
        let now = bucket.fill(rate as f64);
        bucket.pause(rate as f64, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{advance, sleep_until};

    #[tokio::test(start_paused = true)]
    async fn the_long_run_rate_is_the_configured_one() {
        let limiter = RateLimiter::unlimited();
        assert_eq!(limiter.take(1 << 30), None);
        limiter.set(Some(1_000_000));
        let start = Instant::now();
        for _ in 0..100 {
            let mut pause = limiter.take(100_000);
            while let Some(until) = pause {
                sleep_until(until).await;
                pause = limiter.pause();
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        assert!((9.8..=10.2).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn idle_time_buys_a_short_burst_only() {
        let limiter = RateLimiter::unlimited();
        limiter.set(Some(1_000_000));
        advance(Duration::from_secs(60)).await;
        assert_eq!(limiter.take(65_000), None);
        assert!(limiter.take(65_000).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_held_moves_nothing_until_let_go_on_and_then_at_the_rate() {
        for rate in [None, Some(1_000_000)] {
            let limiter = RateLimiter::unlimited();
            limiter.hold(true);
            limiter.set(rate);
            assert!(limiter.take(1).is_some());
            assert_eq!(limiter.quantum(), 0);
            for _ in 0..100 {
                let until = limiter.pause().expect("still held");
                sleep_until(until).await;
                assert!(!limiter.try_take(1));
            }
            limiter.hold(false);
            assert_eq!(limiter.pause(), None);
            assert!(limiter.try_take(1));
            assert_eq!(limiter.take(1 << 30).is_some(), rate.is_some());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_debt_at_a_slow_rate_does_not_outlive_the_rate() {
        let limiter = RateLimiter::unlimited();
        limiter.set(Some(1_000));
        let start = Instant::now();
        // A quarter of an hour at this rate.
        let mut pause = limiter.take(900_000);
        sleep_until(pause.expect("debt")).await;
        limiter.set(Some(1_000_000));
        pause = limiter.pause();
        while let Some(until) = pause {
            sleep_until(until).await;
            pause = limiter.pause();
        }
        let seconds = start.elapsed().as_secs_f64();
        assert!((1.0..1.3).contains(&seconds), "{seconds}");
        limiter.set(Some(1));
        assert!(limiter.take(1_000_000).is_some());
        limiter.set(None);
        assert_eq!(limiter.pause(), None);
    }
}
