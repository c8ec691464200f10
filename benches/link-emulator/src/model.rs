//! What one direction of a link does to each datagram.

use std::{collections::VecDeque, time::Duration};

use serde::Serialize;

use crate::rng::SplitMix64;

/// How datagrams get lost after they have crossed the bottleneck.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Loss {
    /// Nothing is lost at random.
    #[default]
    None,
    /// Each datagram is lost independently with this probability (0 to 1).
    Bernoulli(f64),
    /// The Gilbert-Elliott two-state chain: a state change is drawn before each datagram.
    GilbertElliott {
        /// Probability to go from the good to the bad state.
        to_bad: f64,
        /// Probability to go from the bad to the good state.
        to_good: f64,
        /// Loss probability in the good state.
        good_loss: f64,
        /// Loss probability in the bad state.
        bad_loss: f64,
    },
}

/// A share of the datagrams that arrives later than the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Reorder {
    /// Share of the datagrams that is held back (0 to 1).
    pub probability: f64,
    /// By how much they are held back.
    pub extra_delay: Duration,
}

/// One direction of a link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkConfig {
    /// Bottleneck rate in bits of UDP payload per second; `None` is infinitely fast.
    pub rate_bps: Option<u64>,
    /// Propagation delay, one way.
    pub delay: Duration,
    /// Bytes that may wait in front of the bottleneck; what does not fit is dropped at the tail.
    pub buffer_bytes: u64,
    /// Random loss.
    pub loss: Loss,
    /// Reordering by extra delay.
    pub reorder: Reorder,
    /// Share of the datagrams that arrives twice (0 to 1).
    pub duplicate: f64,
    /// Largest UDP payload that passes; larger ones vanish, as behind a black hole.
    pub mtu: usize,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            rate_bps: None,
            delay: Duration::ZERO,
            buffer_bytes: u64::MAX,
            loss: Loss::None,
            reorder: Reorder::default(),
            duplicate: 0.0,
            mtu: 1472,
        }
    }
}

impl LinkConfig {
    /// A clean link with a rate in Mbit/s, a one-way delay, and a buffer that holds `buffer` worth of the rate.
    pub fn clean(mbps: f64, delay: Duration, buffer: Duration) -> Self {
        let rate = mbps * 1e6;
        Self {
            rate_bps: Some(rate as u64),
            delay,
            buffer_bytes: (rate / 8.0 * buffer.as_secs_f64()) as u64,
            ..Self::default()
        }
    }

    /// The same link with independent loss of probability `p`.
    pub fn with_loss(self, p: f64) -> Self {
        Self {
            loss: Loss::Bernoulli(p),
            ..self
        }
    }
}

/// What happened to the datagrams of one direction since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Datagrams that reached the entry.
    pub offered_packets: u64,
    /// Their UDP payload bytes.
    pub offered_bytes: u64,
    /// UDP payload bytes of the largest of them.
    pub largest_bytes: u64,
    /// Datagrams lost at random.
    pub lost_packets: u64,
    /// Datagrams dropped because the buffer was full.
    pub overflow_packets: u64,
    /// Datagrams larger than the MTU.
    pub oversized_packets: u64,
    /// Datagrams sent on to the other end, copies included.
    pub delivered_packets: u64,
    /// Their UDP payload bytes.
    pub delivered_bytes: u64,
    /// Extra copies among the delivered ones.
    pub duplicated_packets: u64,
    /// Delivered datagrams that were held back.
    pub reordered_packets: u64,
    /// Most bytes that ever waited in the buffer.
    pub peak_queue_bytes: u64,
}

/// When the copies of one datagram arrive: none, one or two times, in nanoseconds of the caller's clock.
pub type Arrivals = [Option<u64>; 2];

/// One direction of a link with its state.
#[derive(Debug)]
pub struct Link {
    config: LinkConfig,
    rng: SplitMix64,
    bad_state: bool,
    /// When the bottleneck will have sent everything it accepted.
    idle_at: u64,
    /// End of service and size of what waits, to know the queue in bytes.
    queue: VecDeque<(u64, u64)>,
    queued_bytes: u64,
    counters: Counters,
    offered_per_ms: Vec<u32>,
}

impl Link {
    /// A link whose random decisions follow from `seed`.
    pub fn new(config: LinkConfig, seed: u64) -> Self {
        Self {
            config,
            rng: SplitMix64::new(seed),
            bad_state: false,
            idle_at: 0,
            queue: VecDeque::new(),
            queued_bytes: 0,
            counters: Counters::default(),
            offered_per_ms: Vec::new(),
        }
    }

    /// Replaces the properties of the link; what is under way keeps its arrival time.
    pub fn reconfigure(&mut self, config: LinkConfig) {
        self.config = config;
    }

    /// The properties in force.
    pub fn config(&self) -> &LinkConfig {
        &self.config
    }

    /// The counters so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Bytes offered at the entry in each millisecond since time zero.
    pub fn offered_per_ms(&self) -> &[u32] {
        &self.offered_per_ms
    }

    /// Takes one datagram of `len` bytes at `now` nanoseconds and says when it arrives, if it does.
    pub fn offer(&mut self, now: u64, len: usize) -> Arrivals {
        let bytes = len as u64;
        self.counters.offered_packets += 1;
        self.counters.offered_bytes += bytes;
        self.counters.largest_bytes = self.counters.largest_bytes.max(bytes);
        self.record_bin(now, len);

        if len > self.config.mtu {
            self.counters.oversized_packets += 1;
            return [None, None];
        }
        let Some(departure) = self.enqueue(now, bytes) else {
            self.counters.overflow_packets += 1;
            return [None, None];
        };
        if self.loses() {
            self.counters.lost_packets += 1;
            return [None, None];
        }

        let mut arrival = departure + nanos(self.config.delay);
        if self.rng.chance(self.config.reorder.probability) {
            arrival += nanos(self.config.reorder.extra_delay);
            self.counters.reordered_packets += 1;
        }
        self.deliver(bytes);
        if self.rng.chance(self.config.duplicate) {
            self.counters.duplicated_packets += 1;
            self.deliver(bytes);
            return [Some(arrival), Some(arrival)];
        }
        [Some(arrival), None]
    }

    /// The end of service of a datagram, or `None` when the buffer has no room for it.
    fn enqueue(&mut self, now: u64, bytes: u64) -> Option<u64> {
        let Some(rate) = self.config.rate_bps else {
            return Some(now);
        };
        while let Some(&(done, size)) = self.queue.front() {
            if done > now {
                break;
            }
            self.queue.pop_front();
            self.queued_bytes -= size;
        }
        if self.queued_bytes + bytes > self.config.buffer_bytes && !self.queue.is_empty() {
            return None;
        }
        let service = (u128::from(bytes) * 8 * 1_000_000_000 / u128::from(rate.max(1))) as u64;
        self.idle_at = self.idle_at.max(now) + service;
        self.queue.push_back((self.idle_at, bytes));
        self.queued_bytes += bytes;
        self.counters.peak_queue_bytes = self.counters.peak_queue_bytes.max(self.queued_bytes);
        Some(self.idle_at)
    }

    fn loses(&mut self) -> bool {
        match self.config.loss {
            Loss::None => false,
            Loss::Bernoulli(p) => self.rng.chance(p),
            Loss::GilbertElliott {
                to_bad,
                to_good,
                good_loss,
                bad_loss,
            } => {
                let change = if self.bad_state { to_good } else { to_bad };
                if self.rng.chance(change) {
                    self.bad_state = !self.bad_state;
                }
                let p = if self.bad_state { bad_loss } else { good_loss };
                self.rng.chance(p)
            }
        }
    }

    fn deliver(&mut self, bytes: u64) {
        self.counters.delivered_packets += 1;
        self.counters.delivered_bytes += bytes;
    }

    fn record_bin(&mut self, now: u64, len: usize) {
        let bin = (now / 1_000_000) as usize;
        // A day of bins is 330 MB: a relay that runs for longer keeps its counters and stops the bins.
        if bin >= MAX_BINS {
            return;
        }
        if self.offered_per_ms.len() <= bin {
            self.offered_per_ms.resize(bin + 1, 0);
        }
        self.offered_per_ms[bin] += len as u32;
    }
}

const MAX_BINS: usize = 3_600_000;

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn bottleneck_spaces_datagrams_by_their_size() {
        // 8 Mbit/s is 1000 bytes per millisecond.
        let mut link = Link::new(
            LinkConfig::clean(8.0, Duration::from_millis(10), Duration::from_millis(50)),
            1,
        );
        assert_eq!(link.offer(0, 1000)[0], Some(11 * MS));
        assert_eq!(link.offer(0, 500)[0], Some(11 * MS + MS / 2));
        assert_eq!(link.offer(100 * MS, 1000)[0], Some(111 * MS));
    }

    #[test]
    fn full_buffer_drops_at_the_tail() {
        let mut link = Link::new(
            LinkConfig::clean(8.0, Duration::ZERO, Duration::from_millis(3)),
            1,
        );
        for _ in 0..5 {
            link.offer(0, 1000);
        }
        assert_eq!(link.counters().overflow_packets, 2);
        assert_eq!(link.counters().peak_queue_bytes, 3000);
        // One of the three has left after a millisecond.
        assert!(link.offer(MS, 1000)[0].is_some());
    }

    #[test]
    fn bernoulli_loss_matches_its_probability_and_repeats_with_the_seed() {
        let run = |seed| {
            let mut link = Link::new(LinkConfig::default().with_loss(0.2), seed);
            for i in 0..100_000 {
                link.offer(i, 100);
            }
            link.counters()
        };
        let counters = run(7);
        assert!(
            (19_500..20_500).contains(&counters.lost_packets),
            "{counters:?}"
        );
        assert_eq!(counters, run(7));
        assert_ne!(counters.lost_packets, run(8).lost_packets);
    }

    #[test]
    fn gilbert_elliott_loses_in_bursts() {
        let loss = Loss::GilbertElliott {
            to_bad: 0.01,
            to_good: 0.1,
            good_loss: 0.0,
            bad_loss: 1.0,
        };
        let mut link = Link::new(
            LinkConfig {
                loss,
                ..LinkConfig::default()
            },
            3,
        );
        let lost: Vec<bool> = (0..200_000)
            .map(|i| link.offer(i, 100)[0].is_none())
            .collect();
        let total = lost.iter().filter(|l| **l).count() as f64;
        let bursts = lost.windows(2).filter(|w| !w[0] && w[1]).count() as f64;
        // The chain spends 1/11 of its time in the bad state, ten datagrams at a time.
        assert!((total / 200_000.0 - 1.0 / 11.0).abs() < 0.01, "{total}");
        assert!((total / bursts - 10.0).abs() < 1.0, "{}", total / bursts);
    }

    #[test]
    fn duplicates_reordering_and_mtu_are_counted() {
        let config = LinkConfig {
            reorder: Reorder {
                probability: 0.3,
                extra_delay: Duration::from_millis(4),
            },
            duplicate: 0.1,
            mtu: 1200,
            ..LinkConfig::default()
        };
        let mut link = Link::new(config, 5);
        for i in 0..10_000 {
            link.offer(i, 1200);
        }
        assert_eq!(link.offer(0, 1201), [None, None]);
        let c = link.counters();
        assert!((2_800..3_200).contains(&c.reordered_packets), "{c:?}");
        assert!((900..1_100).contains(&c.duplicated_packets), "{c:?}");
        assert_eq!(c.delivered_packets, 10_000 + c.duplicated_packets);
        assert_eq!(c.oversized_packets, 1);
    }

    #[test]
    fn every_impairment_repeats_with_the_seed() {
        let run = |seed| {
            let config = LinkConfig {
                loss: Loss::GilbertElliott {
                    to_bad: 0.02,
                    to_good: 0.2,
                    good_loss: 0.01,
                    bad_loss: 0.6,
                },
                reorder: Reorder {
                    probability: 0.2,
                    extra_delay: Duration::from_millis(7),
                },
                duplicate: 0.05,
                ..LinkConfig::clean(10.0, Duration::from_millis(30), Duration::from_millis(20))
            };
            let mut link = Link::new(config, seed);
            (0..20_000)
                .map(|i| link.offer(i * MS, 1200))
                .collect::<Vec<_>>()
        };
        assert_eq!(run(11), run(11));
        assert_ne!(run(11), run(12));
    }

    #[test]
    fn gilbert_elliott_loss_is_the_stationary_mean_of_its_states() {
        let loss = Loss::GilbertElliott {
            to_bad: 0.02,
            to_good: 0.08,
            good_loss: 0.01,
            bad_loss: 0.5,
        };
        let config = LinkConfig {
            loss,
            ..LinkConfig::default()
        };
        let mut link = Link::new(config, 4);
        for i in 0..400_000 {
            link.offer(i, 100);
        }
        // One fifth of the time bad: 0.8 x 0.01 + 0.2 x 0.5.
        let share = link.counters().lost_packets as f64 / 400_000.0;
        assert!((share - 0.108).abs() < 0.005, "{share}");
    }

    #[test]
    fn the_long_run_rate_is_the_configured_one() {
        let mut link = Link::new(
            LinkConfig::clean(50.0, Duration::ZERO, Duration::from_millis(50)),
            1,
        );
        // Twice the rate for ten seconds.
        for i in 0..100_000u64 {
            link.offer(i * 100_000, 1250);
        }
        let mbps = link.counters().delivered_bytes as f64 * 8.0 / 10.05 / 1e6;
        assert!((mbps - 50.0).abs() < 0.1, "{mbps}");
    }

    #[test]
    fn held_back_datagrams_are_overtaken() {
        let config = LinkConfig {
            delay: Duration::from_millis(10),
            reorder: Reorder {
                probability: 0.3,
                extra_delay: Duration::from_millis(4),
            },
            ..LinkConfig::default()
        };
        let mut link = Link::new(config, 5);
        for i in 0..1_000u64 {
            let before = link.counters().reordered_packets;
            let arrival = link.offer(i * MS, 100)[0];
            let held_back = link.counters().reordered_packets > before;
            let delay = if held_back { 14 } else { 10 };
            assert_eq!(arrival, Some((i + delay) * MS));
        }
    }

    #[test]
    fn bins_add_up_to_the_offered_bytes() {
        let mut link = Link::new(LinkConfig::default(), 1);
        link.offer(0, 10);
        link.offer(MS - 1, 20);
        link.offer(2 * MS, 30);
        assert_eq!(link.offered_per_ms(), [30, 0, 30]);
    }
}
