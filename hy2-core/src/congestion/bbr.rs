//! BBR: follow the bandwidth that the path delivers, not the packets it loses.
//!
//! The model of the first version (two filters, four modes), with the reference's three profiles.
//! Three things keep the bottleneck's queue short, which the reference fills (its wire efficiency
//! is 0.5 to 0.8): every packet is really paced, the pacing rate stays 1 % below the estimate, and
//! a start-up that loses packets *and* sees the round trip grow ends at once.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{BbrProfile, INITIAL_PACKETS, maxfilter::MaxFilter};

/// Rounds that the bandwidth filter looks back.
const BANDWIDTH_ROUNDS: u64 = 10;
/// The smallest round trip is measured anew after this time.
const MIN_RTT_EXPIRY: Duration = Duration::from_secs(10);
/// Time spent with a nearly empty pipe for that.
const PROBE_RTT: Duration = Duration::from_millis(200);
/// Packets in flight meanwhile, and at least.
const MIN_PACKETS: u64 = 4;
/// With fewer packets than these in flight nobody asks what the path carries: whoever only receives
/// sends acknowledgements and renews windows.
const FEW_PACKETS: u64 = 2;
/// Growth per round below which start-up is over, after some rounds of it.
const STARTUP_GROWTH: f64 = 1.25;
/// Lost share of a round that ends start-up when the queue grows too.
const STARTUP_LOSS: f64 = 0.02;
/// Share of the estimate that is used.
const MARGIN: f64 = 0.99;
/// Slowest pacing in bytes per second (reference).
const MIN_RATE: f64 = 65_536.0;
/// Below this round trip pacing is left to the window: timers of a millisecond cannot pace what is
/// acknowledged sooner, and would cost a wake-up each.
const SHORT_PATH: Duration = Duration::from_millis(2);
/// What the window then covers at least: a few wake-ups of either end.
const SHORT_PATH_WINDOW: Duration = Duration::from_millis(4);
/// Send records kept; beyond this the oldest are forgotten.
const MAX_RECORDS: usize = 1 << 16;

/// What a profile changes.
#[derive(Debug, Clone, Copy)]
struct Gains {
    startup: f64,
    startup_window: f64,
    window: f64,
    startup_rounds: u32,
}

impl Gains {
    fn of(profile: BbrProfile) -> Self {
        match profile {
            BbrProfile::Conservative => Self {
                startup: 2.25,
                startup_window: 1.75,
                window: 1.75,
                startup_rounds: 2,
            },
            BbrProfile::Standard => Self {
                startup: 2.885,
                startup_window: 2.885,
                window: 2.0,
                startup_rounds: 3,
            },
            BbrProfile::Aggressive => Self {
                startup: 3.0,
                startup_window: 2.25,
                window: 2.5,
                startup_rounds: 4,
            },
        }
    }
}

/// Gains of the phases of steady probing, one minimum round trip each.
const CYCLE: [f64; 8] = [1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Startup,
    Drain,
    ProbeBandwidth,
    ProbeRtt,
}

/// What was known when a batch was sent.
#[derive(Debug, Clone, Copy)]
struct Record {
    sent: Instant,
    delivered: u64,
    delivered_at: Instant,
    first_sent: Instant,
    app_limited: bool,
}

/// State of the algorithm.
#[derive(Debug, Clone)]
pub(super) struct Bbr {
    gains: Gains,
    mode: Mode,
    bandwidth: MaxFilter,
    round: u64,
    round_end: u64,
    delivered: u64,
    delivered_at: Instant,
    first_sent: Instant,
    records: VecDeque<Record>,
    /// Newest record acknowledged in the batch under way, and when it was sent.
    newest: Option<Record>,
    min_rtt: Option<Duration>,
    min_rtt_at: Instant,
    full_bandwidth: f64,
    full_rounds: u32,
    full: bool,
    phase: usize,
    phase_start: Instant,
    probe_rtt_end: Option<Instant>,
    window: u64,
    round_lost: u64,
    round_acked: u64,
    round_max_rtt: Duration,
    app_limited: bool,
    /// Draws the first phase of probing, so that flows do not probe in step.
    draw: u32,
}

impl Bbr {
    pub(super) fn new(now: Instant, profile: BbrProfile, mtu: u64) -> Self {
        Self {
            gains: Gains::of(profile),
            mode: Mode::Startup,
            bandwidth: MaxFilter::new(BANDWIDTH_ROUNDS),
            round: 0,
            round_end: 0,
            delivered: 0,
            delivered_at: now,
            first_sent: now,
            records: VecDeque::new(),
            newest: None,
            min_rtt: None,
            min_rtt_at: now,
            full_bandwidth: 0.0,
            full_rounds: 0,
            full: false,
            phase: 0,
            phase_start: now,
            probe_rtt_end: None,
            window: INITIAL_PACKETS * mtu,
            round_lost: 0,
            round_acked: 0,
            round_max_rtt: Duration::ZERO,
            app_limited: false,
            draw: rand::random(),
        }
    }

    #[cfg(feature = "fuzzing")]
    pub(super) fn draw_from(&mut self, seed: u32) {
        self.draw = seed;
    }

    /// The path changed: the estimate of the old one is a start, its round trip is not.
    pub(super) fn on_new_path(&mut self, now: Instant) {
        self.min_rtt = None;
        self.min_rtt_at = now;
        self.records.clear();
        self.newest = None;
    }

    pub(super) fn on_sent(&mut self, now: Instant, in_flight_before: u64, mtu: u64) {
        if in_flight_before == 0 {
            self.first_sent = now;
            self.delivered_at = now;
        }
        let few = in_flight_before < FEW_PACKETS * mtu;
        if let Some(last) = self.records.back_mut()
            && last.sent == now
        {
            // What goes out at once counts as a whole.
            last.app_limited &= few || self.app_limited;
            return;
        }
        if self.records.len() >= MAX_RECORDS {
            self.records.pop_front();
        }
        self.records.push_back(Record {
            sent: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent: self.first_sent,
            app_limited: self.app_limited || few,
        });
    }

    pub(super) fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64) {
        self.delivered += bytes;
        self.delivered_at = now;
        self.round_acked += bytes;
        let rtt = now.saturating_duration_since(sent);
        self.round_max_rtt = self.round_max_rtt.max(rtt);
        if self.min_rtt.is_none_or(|min| rtt <= min) {
            self.min_rtt = Some(rtt.max(Duration::from_micros(50)));
            self.min_rtt_at = now;
        }
        if self.newest.is_some_and(|newest| newest.sent >= sent) {
            return;
        }
        let at = self.records.partition_point(|record| record.sent < sent);
        if let Some(record) = self.records.get(at)
            && record.sent == sent
        {
            self.newest = Some(*record);
            self.first_sent = sent;
        }
    }

    pub(super) fn on_loss(&mut self, bytes: u64, persistent: bool, mtu: u64) {
        self.round_lost += bytes;
        if persistent {
            self.window = MIN_PACKETS * mtu;
        }
    }

    /// Ends the processing of one acknowledgement frame.
    pub(super) fn on_batch(
        &mut self,
        now: Instant,
        acked: u64,
        in_flight: u64,
        app_limited: bool,
        mtu: u64,
    ) {
        self.app_limited = app_limited;
        let Some(record) = self.newest.take() else {
            return;
        };
        self.forget_records_before(record.sent);
        let new_round = record.delivered >= self.round_end;
        if new_round {
            self.round += 1;
            self.round_end = self.delivered;
        }
        self.sample(now, &record);
        if new_round {
            self.check_full(&record);
            (self.round_lost, self.round_acked) = (0, 0);
            self.round_max_rtt = Duration::ZERO;
        }
        self.step(now, in_flight, mtu);
        self.adjust_window(acked, mtu);
    }

    /// Records before this one are still needed for packets that arrive late, but not for ever.
    fn forget_records_before(&mut self, sent: Instant) {
        let keep = self.min_rtt.unwrap_or_default() * 2 + Duration::from_millis(50);
        while let Some(first) = self.records.front()
            && sent.saturating_duration_since(first.sent) > keep
        {
            self.records.pop_front();
        }
        // A burst of the past must not cost memory for the connection's life.
        if self.records.len() < self.records.capacity() / 4 {
            self.records.shrink_to(2 * self.records.len());
        }
    }

    fn sample(&mut self, now: Instant, record: &Record) {
        let acked_over = now.saturating_duration_since(record.delivered_at);
        let sent_over = record.sent.saturating_duration_since(record.first_sent);
        let over = acked_over.max(sent_over).as_secs_f64();
        // Shorter than the round trip is the work of compressed acknowledgements.
        let floor = self.min_rtt.unwrap_or_default().as_secs_f64();
        if over <= 0.0 || over < floor * 0.9 {
            return;
        }
        let rate = (self.delivered - record.delivered) as f64 / over;
        if !record.app_limited || rate > self.bandwidth.get() {
            self.bandwidth.update(self.round, rate);
        }
    }

    fn check_full(&mut self, record: &Record) {
        if self.full || record.app_limited {
            return;
        }
        let lossy =
            self.round_lost as f64 > STARTUP_LOSS * (self.round_acked + self.round_lost) as f64;
        let queued = self
            .min_rtt
            .is_some_and(|min| self.round_max_rtt > min * 5 / 4);
        if lossy && queued && self.bandwidth.get() < self.full_bandwidth * 1.5 {
            self.full = true;
            return;
        }
        if self.bandwidth.get() >= self.full_bandwidth * STARTUP_GROWTH {
            self.full_bandwidth = self.bandwidth.get();
            self.full_rounds = 0;
            return;
        }
        self.full_rounds += 1;
        self.full = self.full_rounds >= self.gains.startup_rounds;
    }

    fn step(&mut self, now: Instant, in_flight: u64, mtu: u64) {
        if self.mode == Mode::Startup && self.full {
            self.mode = Mode::Drain;
        }
        if self.mode == Mode::Drain && in_flight <= self.product(1.0) {
            self.enter_probing(now);
        }
        if self.mode == Mode::ProbeBandwidth {
            self.advance_phase(now, in_flight);
        }
        let expired = now.saturating_duration_since(self.min_rtt_at) > MIN_RTT_EXPIRY;
        if expired && self.mode != Mode::ProbeRtt {
            self.mode = Mode::ProbeRtt;
            self.probe_rtt_end = None;
        }
        if self.mode == Mode::ProbeRtt {
            match self.probe_rtt_end {
                None if in_flight <= MIN_PACKETS * mtu => {
                    let rtt = self.min_rtt.unwrap_or_default();
                    self.probe_rtt_end = Some(now + PROBE_RTT.max(rtt));
                    // What is measured from here on counts.
                    self.min_rtt = None;
                }
                Some(end) if now >= end => {
                    self.min_rtt_at = now;
                    if self.full {
                        self.enter_probing(now);
                    } else {
                        self.mode = Mode::Startup;
                    }
                }
                _ => {}
            }
        }
    }

    fn enter_probing(&mut self, now: Instant) {
        self.mode = Mode::ProbeBandwidth;
        // Any phase but the draining one.
        self.draw = self
            .draw
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        let at = (self.draw >> 16) as usize % (CYCLE.len() - 1);
        self.phase = if at == 0 { 0 } else { at + 1 };
        self.phase_start = now;
    }

    fn advance_phase(&mut self, now: Instant, in_flight: u64) {
        let lasted = now.saturating_duration_since(self.phase_start);
        let full_length = lasted > self.min_rtt.unwrap_or_default();
        let gain = CYCLE[self.phase];
        let over = if gain > 1.0 {
            full_length && (self.round_lost > 0 || in_flight >= self.product(gain))
        } else if gain < 1.0 {
            full_length || in_flight <= self.product(1.0)
        } else {
            full_length
        };
        if over {
            self.phase = (self.phase + 1) % CYCLE.len();
            self.phase_start = now;
        }
    }

    fn adjust_window(&mut self, acked: u64, mtu: u64) {
        let gain = if self.full {
            self.gains.window
        } else {
            self.gains.startup_window
        };
        // Room for packets whose acknowledgement is under way.
        let mut target = self.product(gain) + 3 * mtu;
        if self.is_short() {
            let covered = self.bandwidth.get() * SHORT_PATH_WINDOW.as_secs_f64();
            target = target.max(covered as u64);
        }
        if self.full {
            self.window = self.window.saturating_add(acked).min(target);
        } else if self.window < target || self.delivered < INITIAL_PACKETS * mtu {
            self.window = self.window.saturating_add(acked);
        }
        self.window = self.window.max(MIN_PACKETS * mtu);
    }

    fn is_short(&self) -> bool {
        self.min_rtt.is_some_and(|rtt| rtt < SHORT_PATH)
    }

    /// `gain` times the bandwidth-delay product in bytes.
    fn product(&self, gain: f64) -> u64 {
        match self.min_rtt {
            Some(rtt) if self.bandwidth.get() > 0.0 => {
                (self.bandwidth.get() * rtt.as_secs_f64() * gain) as u64
            }
            _ => self.window,
        }
    }

    pub(super) fn window(&self, mtu: u64) -> u64 {
        match self.mode {
            Mode::ProbeRtt => MIN_PACKETS * mtu,
            _ => self.window,
        }
    }

    /// The bandwidth estimate in bytes per second.
    pub(super) fn target(&self) -> u64 {
        self.bandwidth.get() as u64
    }

    /// The rate in bytes per second; 0 leaves it to the window.
    pub(super) fn pacing_rate(&self, smoothed_rtt: Duration, mtu: u64) -> u64 {
        if self.is_short() {
            return 0;
        }
        // Start-up is never slower than at its beginning, however little was to be sent since.
        let first = || {
            let rtt = smoothed_rtt.max(Duration::from_millis(1)).as_secs_f64();
            (INITIAL_PACKETS * mtu) as f64 / rtt * self.gains.startup
        };
        let gain = match self.mode {
            Mode::Startup => self.gains.startup,
            Mode::Drain => 1.0 / self.gains.startup,
            Mode::ProbeBandwidth => CYCLE[self.phase],
            Mode::ProbeRtt => 1.0,
        };
        let bandwidth = self.bandwidth.get();
        let rate = match self.mode {
            Mode::Startup => first().max(bandwidth * MARGIN * gain),
            _ if bandwidth > 0.0 => bandwidth * MARGIN * gain,
            _ => first(),
        };
        rate.max(MIN_RATE) as u64
    }
}
