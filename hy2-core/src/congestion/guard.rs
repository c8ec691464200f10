//! Keeps Brutal from flooding a path that carries less than was claimed (`docs/adr/0005-overclaim-guard.md`).
//!
//! Loss alone does not tell a path that is too narrow from one that loses at random; Brutal exists for the second. So
//! when more is lost than the compensation makes up for, the guard tries another rate for a moment and looks at what
//! arrives: on a narrow path as much as before, on a lossy one in proportion less. A narrow path is then sent little
//! more than it carries, and tried with more from time to time.

use std::time::{Duration, Instant};

/// Share of lost bytes above which the guard looks closer: 1.28 bytes sent for each that arrives. Brutal makes up for
/// 20 %.
const SUSPICIOUS: f64 = 0.22;

/// Loss that grows by this share is judged anew.
const GROWTH: f64 = 0.1;

/// Packets in a sample: one part in twenty of noise at 30 % loss would be three standard deviations.
const SAMPLE_PACKETS: u64 = 400;
const SAMPLE_TIME: Duration = Duration::from_millis(200);
/// When more is lost than arrives, every moment counts and noise does not.
const FLOODED_TIME: Duration = Duration::from_millis(50);

/// A verdict needs rates that differ by this share.
const MIN_STEP: f64 = 0.1;

/// Bytes per second that a path is always sent: the least bandwidth that the reference's server takes.
const LEAST: f64 = 65_536.0;

/// What is sent on a narrow path, over what arrives.
const HEADROOM: f64 = 1.05;

/// Time until a path found lossy, or a trial that came to nothing, is tried again.
const RETRIAL: Duration = Duration::from_secs(20);
const RETRY: Duration = Duration::from_secs(2);

/// Times between trials of more on a narrow path, doubling while they fail.
const FIRST_RAISE: Duration = Duration::from_secs(2);
const LAST_RAISE: Duration = Duration::from_secs(32);

/// State of the guard of one path.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    epoch: Epoch,
    trial: Option<Trial>,
    /// Bytes per second that a narrow path is sent.
    cap: Option<f64>,
    /// Share of loss that was found to be none of the rate's doing.
    excused: Option<f64>,
    next_lowering: Instant,
    next_raise: Instant,
    raise_interval: Duration,
    /// By how much the next trial of more goes up.
    raise: f64,
}

/// A rate that is tried.
#[derive(Debug, Clone, Copy)]
struct Trial {
    rate: f64,
    before: Sample,
    /// From here on acknowledgements tell of packets sent at this rate.
    settles: Instant,
}

/// Bytes per second over a while.
#[derive(Debug, Clone, Copy)]
struct Sample {
    sent: f64,
    arrived: f64,
}

impl Sample {
    fn lost(self) -> f64 {
        1.0 - self.arrived / self.sent
    }
}

/// What was learnt since the acknowledgement at `start`.
#[derive(Debug, Clone, Copy)]
struct Epoch {
    start: Instant,
    latest: Instant,
    packets: u64,
    acked: u64,
    lost: u64,
}

impl Epoch {
    fn new(now: Instant) -> Self {
        Self {
            start: now,
            latest: now,
            packets: 0,
            acked: 0,
            lost: 0,
        }
    }
}

/// The bytes of one acknowledgement and of what it showed to be lost.
#[derive(Debug, Clone, Copy)]
pub(super) struct News {
    pub(super) packets: u64,
    pub(super) acked: u64,
    pub(super) lost: u64,
}

impl Guard {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            epoch: Epoch::new(now),
            trial: None,
            cap: None,
            excused: None,
            next_lowering: now,
            next_raise: now,
            raise_interval: FIRST_RAISE,
            raise: 1.25,
        }
    }

    /// The rate in bytes per second above which nothing should be sent.
    pub(super) fn limit(&self) -> Option<u64> {
        let rate = self.trial.map(|trial| trial.rate).or(self.cap)?;
        Some(rate.max(LEAST) as u64)
    }

    /// Takes an acknowledgement. `wanted` is what Brutal would send, in bytes per second.
    pub(super) fn on_batch(&mut self, now: Instant, news: News, rtt: Duration, wanted: u64) {
        let silence = now.saturating_duration_since(self.epoch.latest);
        if silence > 2 * rtt + Duration::from_millis(300) {
            // Nothing was sent for a while, or nothing answered: that is no rate.
            self.give_up(now);
            return;
        }
        self.epoch.latest = now;
        self.epoch.packets += news.packets;
        self.epoch.acked += news.acked;
        self.epoch.lost += news.lost;
        if self.trial.is_some_and(|trial| now < trial.settles) {
            self.epoch = Epoch::new(now);
            return;
        }
        let time = now.saturating_duration_since(self.epoch.start);
        let flooded = self.trial.is_none() && self.epoch.lost > self.epoch.acked;
        let enough = if flooded {
            FLOODED_TIME
        } else {
            SAMPLE_TIME.max(rtt)
        };
        if self.epoch.packets < SAMPLE_PACKETS || time < enough {
            return;
        }
        let sample = Sample {
            sent: (self.epoch.acked + self.epoch.lost) as f64 / time.as_secs_f64(),
            arrived: self.epoch.acked as f64 / time.as_secs_f64(),
        };
        self.epoch = Epoch::new(now);
        match self.trial.take() {
            Some(trial) if trial.rate < trial.before.sent => self.judge_less(now, trial, sample),
            Some(trial) => self.judge_more(now, trial, sample, wanted),
            None => self.watch(now, sample, rtt, wanted),
        }
    }

    fn give_up(&mut self, now: Instant) {
        self.epoch = Epoch::new(now);
        if self.trial.take().is_some() {
            self.next_lowering = now + RETRY;
            self.next_raise = now + self.raise_interval;
        }
    }

    fn watch(&mut self, now: Instant, sample: Sample, rtt: Duration, wanted: u64) {
        let lost = sample.lost();
        let grown = self.excused.is_none_or(|excused| lost > excused + GROWTH);
        let settles = now + rtt + rtt / 2 + Duration::from_millis(50);
        if lost > SUSPICIOUS {
            if self.excused.is_some() && grown || now >= self.next_lowering {
                // Still a fifth more than arrives: what a narrow path carries does not change.
                let share = (1.2 * (1.0 - lost)).clamp(0.1, 0.75);
                self.trial = Some(Trial {
                    rate: share * sample.sent,
                    before: sample,
                    settles,
                });
                return;
            }
        } else {
            self.excused = None;
        }
        if let Some(cap) = self.cap {
            if cap >= wanted as f64 {
                self.cap = None;
            } else if now >= self.next_raise
                && !(lost > SUSPICIOUS && grown)
                && sample.sent > 0.9 * cap
            {
                self.trial = Some(Trial {
                    rate: self.raise * cap,
                    before: sample,
                    settles,
                });
            }
        }
    }

    fn judge_less(&mut self, now: Instant, trial: Trial, sample: Sample) {
        let before = trial.before;
        let step = 1.0 - sample.sent / before.sent;
        // Where nothing arrived before there is nothing to compare with.
        if !step.is_finite() || step < MIN_STEP || before.arrived <= 0.0 {
            self.next_lowering = now + RETRY;
            return;
        }
        let missed = 1.0 - sample.arrived / before.arrived;
        if missed > step / 2.0 {
            self.excused = Some(before.lost());
            self.next_lowering = now + RETRIAL;
        } else {
            self.cap = Some(HEADROOM * sample.arrived);
            self.excused = None;
            self.next_lowering = now;
            self.raise = 1.25;
            self.raise_interval = FIRST_RAISE;
            self.next_raise = now + FIRST_RAISE;
        }
    }

    fn judge_more(&mut self, now: Instant, trial: Trial, sample: Sample, wanted: u64) {
        let before = trial.before;
        let step = sample.sent / before.sent - 1.0;
        let gained = sample.arrived / before.arrived - 1.0;
        if step >= MIN_STEP && gained > step / 2.0 {
            self.cap = Some(trial.rate).filter(|rate| *rate < wanted as f64);
            self.raise = 1.5;
            self.raise_interval = FIRST_RAISE;
            self.next_raise = now;
        } else {
            if step >= MIN_STEP {
                self.raise_interval = (2 * self.raise_interval).min(LAST_RAISE);
            }
            self.raise = 1.25;
            self.next_raise = now + self.raise_interval;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(100);

    /// A path that loses `loss` of what comes and then carries `capacity` bytes per second.
    struct Model {
        guard: Guard,
        now: Instant,
        wanted: f64,
        /// Rates of the last round trip, one per 10 ms.
        sent: std::collections::VecDeque<f64>,
    }

    impl Model {
        fn new(wanted: f64) -> Self {
            let now = Instant::now();
            Self {
                guard: Guard::new(now),
                now,
                wanted,
                sent: std::iter::repeat_n(wanted, 10).collect(),
            }
        }

        fn rate(&self) -> f64 {
            let limit = self.guard.limit().map_or(f64::INFINITY, |rate| rate as f64);
            limit.min(self.wanted)
        }

        fn run(&mut self, seconds: u64, loss: f64, capacity: f64) -> Vec<f64> {
            let mut rates = Vec::new();
            for _ in 0..100 * seconds {
                self.now += Duration::from_millis(10);
                self.sent.push_back(self.rate());
                let sent = self.sent.pop_front().expect("ten");
                let arrived = (sent * (1.0 - loss)).min(capacity);
                let news = News {
                    packets: (sent / 140_000.0) as u64,
                    acked: (arrived / 100.0) as u64,
                    lost: ((sent - arrived) / 100.0) as u64,
                };
                self.guard.on_batch(self.now, news, RTT, self.wanted as u64);
                rates.push(self.rate());
            }
            rates
        }
    }

    fn mean(rates: &[f64]) -> f64 {
        rates.iter().sum::<f64>() / rates.len() as f64
    }

    #[test]
    fn up_to_a_fifth_of_loss_changes_nothing() {
        let mut model = Model::new(25e6);
        let rates = model.run(60, 0.2, f64::INFINITY);
        assert!(rates.iter().all(|rate| *rate == 25e6));
    }

    #[test]
    fn a_narrow_path_is_capped_within_a_second() {
        let mut model = Model::new(25e6);
        model.run(1, 0.0, 2.5e6);
        let rates = model.run(60, 0.0, 2.5e6);
        assert!((2.5e6..=2.8e6).contains(&mean(&rates)), "{}", mean(&rates));
    }

    #[test]
    fn random_loss_is_excused() {
        for loss in [0.25, 0.3, 0.5, 0.7] {
            let mut model = Model::new(25e6);
            let rates = model.run(120, loss, f64::INFINITY);
            assert!(mean(&rates) > 0.95 * 25e6, "{loss}: {}", mean(&rates));
        }
    }

    #[test]
    fn loss_on_a_path_that_is_capped_does_not_starve_it() {
        let mut model = Model::new(25e6);
        model.run(5, 0.0, 5e6);
        let rates = model.run(60, 0.3, f64::INFINITY);
        assert!(
            mean(&rates[3000..]) > 0.9 * 25e6,
            "{}",
            mean(&rates[3000..])
        );
    }

    #[test]
    fn a_path_that_narrows_after_random_loss_is_capped_at_once() {
        let mut model = Model::new(25e6);
        model.run(10, 0.3, f64::INFINITY);
        let rates = model.run(10, 0.3, 2.5e6);
        assert!(mean(&rates[100..]) < 5e6, "{}", mean(&rates[100..]));
    }

    #[test]
    fn a_path_that_carries_nothing_for_a_while_is_not_capped_at_nothing() {
        let mut model = Model::new(25e6);
        let rates = model.run(20, 1.0, 0.0);
        assert!(rates.iter().all(|rate| *rate >= LEAST));
        let rates = model.run(60, 0.0, f64::INFINITY);
        assert_eq!(rates.last(), Some(&25e6));
    }

    #[test]
    fn a_pause_ends_a_trial_without_a_verdict() {
        let mut model = Model::new(25e6);
        let lossy = News {
            packets: 1_000,
            acked: 700_000,
            lost: 300_000,
        };
        for _ in 0..2 {
            model.now += Duration::from_millis(150);
            model.guard.on_batch(model.now, lossy, RTT, 25_000_000);
        }
        assert!(model.guard.limit().is_some());
        model.now += Duration::from_secs(2);
        let news = News {
            packets: 1,
            acked: 1_000,
            lost: 0,
        };
        model.guard.on_batch(model.now, news, RTT, 25_000_000);
        assert_eq!(model.guard.limit(), None);
    }
}
