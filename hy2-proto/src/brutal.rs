//! Arithmetic of the Brutal congestion control: how fast to send, given loss.
//!
//! Brutal sends at the rate that was agreed, and more where packets are lost, so that the agreed
//! rate is what arrives. It counts packets in a window of five seconds and divides the rate by the
//! share that was acknowledged, but never by less than 0.8. This module is only the arithmetic,
//! exact and in integers; pacing and the place in a QUIC stack are elsewhere. Constants are those
//! of the reference (`core/internal/congestion/brutal`).

use std::time::{Duration, Instant};

use crate::bandwidth::Bandwidth;

/// Slots of history, one second each.
const SLOTS: usize = 5;
const SECONDS: u64 = SLOTS as u64;

/// Packets below which nothing is concluded from losses.
pub const MIN_SAMPLES: u64 = 50;

/// Window in bytes until the first round-trip time is known.
pub const INITIAL_WINDOW: u64 = 10_240;

/// Share of packets that were acknowledged, from 0.8 to 1.
///
/// Kept as a fraction, so that rates come out exact.
#[derive(Debug, Clone, Copy)]
pub struct AckRate {
    acked: u64,
    total: u64,
}

impl AckRate {
    /// Nothing is lost, or nothing is known.
    pub const FULL: Self = Self { acked: 1, total: 1 };

    /// The least that is reckoned with: heavier loss is not compensated further.
    pub const FLOOR: Self = Self {
        acked: 40,
        total: 50,
    };

    /// Computes the share from counts of packets. Below [`MIN_SAMPLES`] it is [`Self::FULL`].
    ///
    /// # Examples
    ///
    /// ```
    /// use hy2_proto::brutal::AckRate;
    ///
    /// assert_eq!(AckRate::from_counts(90, 10).as_f64(), 0.9);
    /// assert_eq!(AckRate::from_counts(50, 50).as_f64(), 0.8);
    /// assert_eq!(AckRate::from_counts(10, 5).as_f64(), 1.0);
    /// ```
    #[must_use]
    pub fn from_counts(acked: u64, lost: u64) -> Self {
        let Some(total) = acked.checked_add(lost) else {
            return Self::from_counts(acked / 2, lost / 2);
        };
        if total < MIN_SAMPLES {
            Self::FULL
        } else if acked <= lost.saturating_mul(4) {
            Self::FLOOR
        } else {
            Self { acked, total }
        }
    }

    /// Returns counts of packets that make the same share: acknowledged and lost, for
    /// [`from_counts`](Self::from_counts).
    #[must_use]
    pub fn as_counts(self) -> (u64, u64) {
        (self.acked, self.total - self.acked)
    }

    /// Returns the share as a number from 0.8 to 1, for display and for floating arithmetic.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "packet counts of five seconds")]
    pub fn as_f64(self) -> f64 {
        self.acked as f64 / self.total as f64
    }

    /// Divides by the share, rounding down.
    fn compensate(self, value: u64) -> u64 {
        scale(value, self.total, self.acked.max(1))
    }

    fn compensate_wide(self, value: u128) -> u64 {
        let product = value.saturating_mul(self.total.into());
        saturate(product / u128::from(self.acked.max(1)))
    }
}

impl PartialEq for AckRate {
    fn eq(&self, other: &Self) -> bool {
        u128::from(self.acked) * u128::from(other.total)
            == u128::from(other.acked) * u128::from(self.total)
    }
}

impl Eq for AckRate {}

/// Counts acknowledged and lost packets of the last five seconds.
///
/// # Examples
///
/// ```
/// use std::time::{Duration, Instant};
/// use hy2_proto::brutal::{AckRate, AckWindow};
///
/// let start = Instant::now();
/// let mut window = AckWindow::new(start);
/// window.record(start, 90, 10);
/// assert_eq!(window.ack_rate(start).as_f64(), 0.9);
/// // History fades after five seconds.
/// assert_eq!(window.ack_rate(start + Duration::from_secs(6)), AckRate::FULL);
/// ```
#[derive(Debug, Clone)]
pub struct AckWindow {
    origin: Instant,
    slots: [Slot; SLOTS],
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    second: u64,
    acked: u64,
    lost: u64,
}

impl AckWindow {
    /// Makes an empty window. Seconds are counted from `origin`; earlier times count as `origin`.
    #[must_use]
    pub fn new(origin: Instant) -> Self {
        Self {
            origin,
            slots: Default::default(),
        }
    }

    /// Adds the packets of one acknowledgement.
    pub fn record(&mut self, now: Instant, acked: u64, lost: u64) {
        let second = self.second(now);
        let Some(slot) = self.slots.get_mut(place(second)) else {
            return;
        };
        if slot.second != second {
            *slot = Slot {
                second,
                ..Slot::default()
            };
        }
        slot.acked = slot.acked.saturating_add(acked);
        slot.lost = slot.lost.saturating_add(lost);
    }

    /// Returns the share of packets acknowledged in this second and the five before it, as far as
    /// their slots have not been used again.
    #[must_use]
    pub fn ack_rate(&self, now: Instant) -> AckRate {
        let (acked, lost) = self.counts(now);
        AckRate::from_counts(acked, lost)
    }

    /// Returns how many packets were acknowledged and lost in the time that
    /// [`ack_rate`](Self::ack_rate) looks at.
    #[must_use]
    pub fn counts(&self, now: Instant) -> (u64, u64) {
        let oldest = self.second(now).saturating_sub(SECONDS);
        self.slots.iter().filter(|slot| slot.second >= oldest).fold(
            (0_u64, 0_u64),
            |(acked, lost), slot| {
                (
                    acked.saturating_add(slot.acked),
                    lost.saturating_add(slot.lost),
                )
            },
        )
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.origin).as_secs()
    }
}

/// Index of the slot for a second.
fn place(second: u64) -> usize {
    usize::try_from(second % SECONDS).unwrap_or(0)
}

/// Returns the rate to send at so that `target` arrives: at most a quarter more.
///
/// # Examples
///
/// ```
/// use hy2_proto::bandwidth::Bandwidth;
/// use hy2_proto::brutal::{AckRate, send_rate};
///
/// let target = Bandwidth::from_bytes_per_sec(1_000_000);
/// let rate = send_rate(target, AckRate::from_counts(80, 20));
/// assert_eq!(rate.bytes_per_sec(), 1_250_000);
/// ```
#[must_use]
pub fn send_rate(target: Bandwidth, ack_rate: AckRate) -> Bandwidth {
    let rate = ack_rate.compensate(target.bytes_per_sec());
    Bandwidth::from_bytes_per_sec(rate)
}

/// Returns the congestion window in bytes: two bandwidth-delay products at the sending rate, at
/// least one datagram, and [`INITIAL_WINDOW`] while `srtt` is zero for unknown.
#[must_use]
pub fn congestion_window(
    target: Bandwidth,
    ack_rate: AckRate,
    srtt: Duration,
    max_datagram: u64,
) -> u64 {
    if srtt.is_zero() {
        return INITIAL_WINDOW;
    }
    let rate = target.bytes_per_sec();
    let narrow = nanos(srtt).and_then(|nanos| rate.checked_mul(nanos)?.checked_mul(2));
    let window = match narrow {
        Some(double) => ack_rate.compensate(double / NANOS_PER_SEC),
        // More than 18 GB/s over half a second.
        None => {
            let double = u128::from(rate).saturating_mul(srtt.as_nanos());
            ack_rate.compensate_wide(double.saturating_mul(2) / u128::from(NANOS_PER_SEC))
        }
    };
    window.max(max_datagram)
}

/// Returns how many bytes may leave at once after a pause: 4 ms at `rate`, at least ten datagrams
/// (`core/internal/congestion/common/pacer.go`).
#[must_use]
pub fn burst(rate: Bandwidth, max_datagram: u64) -> u64 {
    bytes_in(rate, Duration::from_millis(4)).max(max_datagram.saturating_mul(10))
}

/// Returns how many whole bytes `rate` sends in `time`.
#[must_use]
pub fn bytes_in(rate: Bandwidth, time: Duration) -> u64 {
    match nanos(time) {
        Some(nanos) => scale(rate.bytes_per_sec(), nanos, NANOS_PER_SEC),
        None => {
            let product = u128::from(rate.bytes_per_sec()).saturating_mul(time.as_nanos());
            saturate(product / u128::from(NANOS_PER_SEC))
        }
    }
}

/// Returns how long `rate` takes to send `bytes`, rounded up to a nanosecond;
/// [`Duration::MAX`] if it never does.
#[must_use]
pub fn time_for(rate: Bandwidth, bytes: u64) -> Duration {
    if rate.is_zero() {
        return if bytes == 0 {
            Duration::ZERO
        } else {
            Duration::MAX
        };
    }
    match bytes.checked_mul(NANOS_PER_SEC) {
        Some(product) => Duration::from_nanos(product.div_ceil(rate.bytes_per_sec())),
        None => {
            let product = u128::from(bytes) * u128::from(NANOS_PER_SEC);
            Duration::from_nanos_u128(product.div_ceil(rate.bytes_per_sec().into()))
        }
    }
}

const NANOS_PER_SEC: u64 = 1_000_000_000;

/// Returns `value * by / over`, rounded down and saturating; `over` must not be 0.
///
/// The product of a rate and a time fits 64 bits for all that occurs on a path, and dividing 128 bits takes many
/// times as long.
#[inline]
fn scale(value: u64, by: u64, over: u64) -> u64 {
    match value.checked_mul(by) {
        Some(product) => product / over,
        None => saturate(u128::from(value) * u128::from(by) / u128::from(over)),
    }
}

/// Returns the nanoseconds of what is shorter than 584 years.
fn nanos(time: Duration) -> Option<u64> {
    u64::try_from(time.as_nanos()).ok()
}

fn saturate(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "any origin will do")]
    fn origin() -> Instant {
        Instant::now()
    }

    fn rate(bytes_per_sec: u64) -> Bandwidth {
        Bandwidth::from_bytes_per_sec(bytes_per_sec)
    }

    /// Reference `brutal_test.go`.
    #[test]
    fn reference_vectors() {
        for ((acked, lost), expected) in [
            ((100, 0), 1.0),
            ((80, 20), 0.8),
            ((50, 50), 0.8),
            ((10, 5), 1.0),
        ] {
            let start = origin();
            let mut window = AckWindow::new(start);
            window.record(start, acked, lost);
            assert_eq!(window.ack_rate(start).as_f64(), expected, "{acked} {lost}");
        }
    }

    #[test]
    fn fifty_samples_are_enough() {
        assert_eq!(AckRate::from_counts(40, 9), AckRate::FULL);
        assert_eq!(AckRate::from_counts(45, 5).as_f64(), 0.9);
        assert_eq!(AckRate::from_counts(0, 50), AckRate::FLOOR);
        assert_eq!(AckRate::from_counts(0, 0), AckRate::FULL);
        assert_eq!(AckRate::from_counts(u64::MAX, u64::MAX), AckRate::FLOOR);
    }

    #[test]
    fn acknowledgements_of_several_seconds_add_up() {
        let start = origin();
        let mut window = AckWindow::new(start);
        for second in 0..5 {
            window.record(start + Duration::from_secs(second), 18, 2);
        }
        let now = start + Duration::from_secs(4);
        assert_eq!(window.counts(now), (90, 10));
        assert_eq!(window.ack_rate(now).as_f64(), 0.9);
    }

    #[test]
    fn a_slot_is_used_again_after_five_seconds() {
        let start = origin();
        let mut window = AckWindow::new(start);
        window.record(start, 0, 100);
        window.record(start + Duration::from_secs(5), 100, 0);
        assert_eq!(window.counts(start + Duration::from_secs(5)), (100, 0));
    }

    #[test]
    fn history_reaches_back_five_seconds() {
        let start = origin();
        let mut window = AckWindow::new(start);
        window.record(start + Duration::from_secs(10), 50, 50);
        for (second, expected) in [(10, (50, 50)), (15, (50, 50)), (16, (0, 0))] {
            let now = start + Duration::from_secs(second);
            assert_eq!(window.counts(now), expected, "second {second}");
        }
    }

    #[test]
    fn time_before_the_origin_is_the_origin() {
        let start = origin() + Duration::from_secs(60);
        let mut window = AckWindow::new(start);
        window.record(start - Duration::from_secs(30), 60, 0);
        assert_eq!(window.counts(start), (60, 0));
    }

    #[test]
    fn rates_are_exact() {
        for (lost, expected) in [
            (0, 12_500_000),
            (1, 12_626_262),
            (5, 13_157_894),
            (10, 13_888_888),
            (20, 15_625_000),
            (30, 15_625_000),
        ] {
            let ack_rate = AckRate::from_counts(100 - lost, lost);
            assert_eq!(
                send_rate(rate(12_500_000), ack_rate).bytes_per_sec(),
                expected,
                "{lost} % lost"
            );
        }
    }

    #[test]
    fn the_window_is_two_bandwidth_delay_products() {
        let target = rate(12_500_000);
        let rtt = Duration::from_millis(200);
        assert_eq!(
            congestion_window(target, AckRate::FULL, rtt, 1200),
            5_000_000
        );
        assert_eq!(
            congestion_window(target, AckRate::FLOOR, rtt, 1200),
            6_250_000
        );
        assert_eq!(
            congestion_window(target, AckRate::FULL, Duration::ZERO, 1200),
            INITIAL_WINDOW
        );
        assert_eq!(
            congestion_window(rate(1), AckRate::FULL, rtt, 1200),
            1200,
            "one datagram at least"
        );
    }

    #[test]
    fn bursts_and_times() {
        assert_eq!(burst(rate(12_500_000), 1200), 50_000);
        assert_eq!(burst(rate(125_000), 1200), 12_000);
        assert_eq!(bytes_in(rate(1500), Duration::from_millis(1)), 1);
        assert_eq!(time_for(rate(1_000_000), 1200), Duration::from_micros(1200));
        assert_eq!(time_for(rate(3), 1), Duration::from_nanos(333_333_334));
        assert_eq!(time_for(rate(0), 1), Duration::MAX);
        assert_eq!(time_for(rate(0), 0), Duration::ZERO);
    }

    #[test]
    fn extremes_saturate() {
        let most = rate(u64::MAX);
        assert_eq!(send_rate(most, AckRate::FLOOR), most);
        assert_eq!(
            congestion_window(most, AckRate::FLOOR, Duration::MAX, 1),
            u64::MAX
        );
        assert_eq!(bytes_in(most, Duration::MAX), u64::MAX);
        assert_eq!(burst(most, u64::MAX), u64::MAX);
        assert_eq!(time_for(rate(1), u64::MAX), Duration::from_secs(u64::MAX));
    }

    proptest! {
        #[test]
        fn the_share_stays_between_floor_and_one(acked: u64, lost: u64, target in 1..u64::from(u32::MAX)) {
            let ack_rate = AckRate::from_counts(acked, lost);
            prop_assert!((0.8..=1.0).contains(&ack_rate.as_f64()));
            let rate = send_rate(rate(target), ack_rate).bytes_per_sec();
            prop_assert!((target..=target + target / 4).contains(&rate));
        }

        #[test]
        fn time_and_bytes_agree(bytes_per_sec in 1..10_000_000_000_u64, bytes in 0..1_000_000_000_u64) {
            let rate = rate(bytes_per_sec);
            let sent = bytes_in(rate, time_for(rate, bytes));
            // Rounding up by less than a nanosecond is worth at most ten bytes at this rate.
            prop_assert!((bytes..=bytes + 10).contains(&sent), "{bytes} {sent}");
        }

        /// Where products of 64 bits are enough and where not.
        #[test]
        fn arithmetic_is_exact(
            bytes_per_sec: u64,
            shift in 0..64_u32,
            acked: u64,
            lost: u64,
            few in 0..64_u32,
            secs in 0..100_u64,
            nanos in 0..1_000_000_000_u32,
            bytes: u64,
        ) {
            let target = rate(bytes_per_sec >> shift);
            let (acked, lost) = (acked >> few >> 1, lost >> few >> 1);
            let wide = u128::from(target.bytes_per_sec());
            let ack_rate = AckRate::from_counts(acked, lost);
            let enough = acked + lost >= MIN_SAMPLES;
            let floor = u128::from(acked) * 5 <= u128::from(acked + lost) * 4;
            prop_assert_eq!(ack_rate == AckRate::FLOOR, enough && floor);
            let (acked, lost) = ack_rate.as_counts();
            prop_assert_eq!(AckRate::from_counts(acked, lost), ack_rate);
            let (acked, total) = (u128::from(ack_rate.acked), u128::from(ack_rate.total));
            prop_assert_eq!(send_rate(target, ack_rate).bytes_per_sec(), saturate(wide * total / acked));
            let time = Duration::new(secs, nanos);
            let ns = u128::from(NANOS_PER_SEC);
            prop_assert_eq!(bytes_in(target, time), saturate(wide * time.as_nanos() / ns));
            let bytes = bytes >> few;
            if !target.is_zero() {
                let expected = (u128::from(bytes) * ns).div_ceil(wide);
                prop_assert_eq!(time_for(target, bytes), Duration::from_nanos_u128(expected));
            }
            // Within 64 + 37 + 1 bits before the share, so that the definition does not saturate.
            let double = wide * time.as_nanos() * 2 / ns;
            if let (false, Some(product)) = (time.is_zero(), double.checked_mul(total)) {
                prop_assert_eq!(congestion_window(target, ack_rate, time, 1), saturate(product / acked).max(1));
            }
        }

        #[test]
        fn any_history_is_counted(events in proptest::collection::vec((0..3000_u64, 0..100_u64, 0..100_u64), 0..100)) {
            let start = origin();
            let mut now = start;
            let mut window = AckWindow::new(start);
            let mut all = Vec::new();
            for (millis, acked, lost) in events {
                now += Duration::from_millis(millis);
                window.record(now, acked, lost);
                all.push(((now - start).as_secs(), acked, lost));
            }
            // Right after a record, exactly the five latest seconds count.
            let current = (now - start).as_secs();
            let expected = all.iter().filter(|(second, ..)| second + 5 > current)
                .fold((0, 0), |(a, l), (_, acked, lost)| (a + acked, l + lost));
            prop_assert_eq!(window.counts(now), expected);
        }
    }
}
