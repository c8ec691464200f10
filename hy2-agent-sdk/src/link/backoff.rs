//! Pauses between attempts: full jitter, so that a fleet does not come back as one.

use std::time::Duration;

use rand::RngExt;

/// Pauses that grow until something works.
#[derive(Debug)]
pub(super) struct Backoff {
    shortest: Duration,
    longest: Duration,
    attempt: u32,
}

impl Backoff {
    pub(super) fn new((shortest, longest): (Duration, Duration)) -> Self {
        Self {
            shortest,
            longest,
            attempt: 0,
        }
    }

    /// Something worked.
    pub(super) fn reset(&mut self) {
        self.attempt = 0;
    }

    /// Returns the next pause: anything up to a bound that doubles with each attempt.
    pub(super) fn pause(&mut self) -> Duration {
        let bound = self
            .shortest
            .saturating_mul(1 << self.attempt.min(16))
            .min(self.longest);
        self.attempt = self.attempt.saturating_add(1);
        bound.mul_f64(rand::rng().random_range(0.0..=1.0))
    }
}

/// Returns a pause that somebody named, or up to as much again: who named it says the same to the whole fleet.
pub(super) fn spread(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(1.0..=2.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_that_was_named_is_spread_over_as_much_again() {
        let pause = Duration::from_secs(1);
        let all: Vec<_> = (0..200).map(|_| spread(pause)).collect();
        let (least, most) = (all.iter().min().unwrap(), all.iter().max().unwrap());
        assert!(*least >= pause && *most <= 2 * pause, "{least:?} {most:?}");
        assert!(*most > pause.mul_f64(1.5) && *least < pause.mul_f64(1.5));
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew() {
        let (low, high) = (Duration::from_millis(500), Duration::from_secs(60));
        let mut backoff = Backoff::new((low, high));
        for attempt in 0..20 {
            let bound = low.saturating_mul(1 << attempt).min(high);
            assert!(backoff.pause() <= bound);
        }
        let longest = (0..200).map(|_| backoff.pause()).max().unwrap();
        assert!(longest > high / 2, "{longest:?}");
        backoff.reset();
        assert!(backoff.pause() <= low);
    }
}
