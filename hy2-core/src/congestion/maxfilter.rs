//! The largest value of the last few rounds.

/// Running maximum over a window of rounds in constant space (Kathleen Nichols' algorithm, as in Linux
/// `lib/win_minmax.c`): the best, and the best since each of two later moments.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct MaxFilter {
    window: u64,
    samples: [(u64, f64); 3],
}

impl MaxFilter {
    pub(super) fn new(window: u64) -> Self {
        Self {
            window,
            samples: [(0, 0.0); 3],
        }
    }

    pub(super) fn get(&self) -> f64 {
        self.samples[0].1
    }

    pub(super) fn update(&mut self, round: u64, value: f64) {
        let s = &mut self.samples;
        let expired = |at: u64| round.saturating_sub(at) > self.window;
        if value >= s[0].1 || expired(s[2].0) {
            *s = [(round, value); 3];
            return;
        }
        if value >= s[1].1 {
            s[1] = (round, value);
            s[2] = s[1];
        } else if value >= s[2].1 {
            s[2] = (round, value);
        }
        if expired(s[0].0) {
            *s = [s[1], s[2], (round, value)];
            if expired(s[0].0) {
                *s = [s[1], s[2], (round, value)];
            }
        } else if s[1].0 == s[0].0 && round - s[0].0 > self.window / 4 {
            s[1] = (round, value);
            s[2] = s[1];
        } else if s[2].0 == s[1].0 && round - s[1].0 > self.window / 2 {
            s[2] = (round, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maximum_lasts_for_the_window_and_then_falls_to_the_next_best() {
        let mut filter = MaxFilter::new(10);
        filter.update(1, 100.0);
        for round in 2..=11 {
            filter.update(round, 50.0 + round as f64);
            assert_eq!(filter.get(), 100.0);
        }
        filter.update(12, 40.0);
        assert!(filter.get() < 100.0 && filter.get() >= 50.0, "{filter:?}");
    }

    #[test]
    fn larger_value_wins_at_once() {
        let mut filter = MaxFilter::new(10);
        filter.update(1, 5.0);
        filter.update(1, 7.0);
        assert_eq!(filter.get(), 7.0);
    }
}
