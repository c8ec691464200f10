//! Wall-clock time as an argument: certificates, validity, expiry and leases are about dates.

use std::{
    fmt,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

/// Tells the date. What merely waits (heartbeats, backoff) uses tokio's clock.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Returns the present moment.
    fn now(&self) -> SystemTime;

    /// Returns how much time has passed since some moment. Nobody sets this: it goes on evenly when
    /// the date is set.
    fn passed(&self) -> Duration;
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn passed(&self) -> Duration {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        START.elapsed()
    }
}

/// A clock that moves when it is told to, for tests.
#[derive(Debug)]
pub struct ManualClock {
    /// Milliseconds since 1970.
    now: AtomicU64,
    /// Milliseconds.
    passed: AtomicU64,
}

impl ManualClock {
    /// Starts at `now`.
    pub fn new(now: SystemTime) -> Self {
        Self {
            now: AtomicU64::new(unix_ms(now)),
            passed: AtomicU64::new(0),
        }
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.now.fetch_add(by, Relaxed);
        self.passed.fetch_add(by, Relaxed);
    }

    /// Sets the date, as somebody does who finds it wrong. No time passes.
    pub fn set(&self, now: SystemTime) {
        self.now.store(unix_ms(now), Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        from_unix_ms(self.now.load(Relaxed))
    }

    fn passed(&self) -> Duration {
        Duration::from_millis(self.passed.load(Relaxed))
    }
}

/// The master's time: users' ends and leases are moments of the master's, and a host whose date is wrong, or is set, must
/// not refuse who is in time, nor serve who is not. Until the master was met once, it is the host's.
#[derive(Debug)]
pub(crate) struct MastersClock {
    host: Arc<dyn Clock>,
    /// A moment of the master's, and what had passed on the host then.
    met: Mutex<Option<(SystemTime, Duration)>>,
}

/// Up to here the clocks of master and host count as one.
pub(crate) const SAME: Duration = Duration::from_secs(2);

/// A clock that is so far behind lost its battery.
const LOST: Duration = Duration::from_secs(365 * 86_400);

impl MastersClock {
    pub(crate) fn new(host: Arc<dyn Clock>) -> Self {
        Self {
            host,
            met: Mutex::new(None),
        }
    }

    /// Takes over that the master's clock says `master` now. Returns how far the host's is from it.
    pub(crate) fn follow(&self, master: SystemTime) -> Duration {
        let (host, passed) = (self.host.now(), self.host.passed());
        let skew = distance(host, master);
        // What the master said was on its way for a while.
        let moment = if skew > SAME { master } else { host };
        *self.met.lock() = Some((moment, passed));
        skew
    }

    /// Takes over that a moment is past, which a host without a battery does not know when it starts without a master:
    /// then the users' ends of years would lie ahead. A clock that is merely wrong is not judged by this, because the
    /// master may have been wrong about the moment.
    pub(crate) fn is_past(&self, moment: SystemTime) {
        let host = self.host.now();
        let mut met = self.met.lock();
        if met.is_none() && host + LOST <= moment {
            tracing::warn!(
                "the host's clock is more than a year behind; time goes on from the last manifest"
            );
            *met = Some((moment, self.host.passed()));
        }
    }

    /// Returns how far the host's clock is from the master's now; `None` while that is not known.
    pub(crate) fn skew(&self) -> Option<Duration> {
        let met = *self.met.lock();
        met.map(|_| distance(self.host.now(), self.now()))
    }
}

impl Clock for MastersClock {
    fn now(&self) -> SystemTime {
        match *self.met.lock() {
            // A moment at the end of all time stays where it is.
            Some((moment, then)) => moment
                .checked_add(self.host.passed().saturating_sub(then))
                .unwrap_or(moment),
            None => self.host.now(),
        }
    }

    fn passed(&self) -> Duration {
        self.host.passed()
    }
}

/// What certificates are judged by.
#[derive(Debug)]
pub(crate) struct CertificateTime(pub(crate) Arc<dyn Clock>);

impl TimeProvider for CertificateTime {
    fn current_time(&self) -> Option<UnixTime> {
        let since = self.0.now().duration_since(UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since))
    }
}

fn distance(a: SystemTime, b: SystemTime) -> Duration {
    Duration::from_millis(unix_ms(a).abs_diff(unix_ms(b)))
}

/// Milliseconds since 1970; 0 for what lies before. There is room above for sums: no message
/// names a moment that overflows them.
pub(crate) fn unix_ms(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| {
        u64::try_from(since.as_millis()).map_or(LAST_MS, |ms| ms.min(LAST_MS))
    })
}

/// In 292 million years.
const LAST_MS: u64 = u64::MAX / 2;

pub(crate) fn from_unix_ms(ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(ms)
}

/// The moment of a message's timestamp; `None` when it is absent or before 1970.
pub(crate) fn moment(at: Option<&prost_types::Timestamp>) -> Option<SystemTime> {
    let at = SystemTime::try_from(*at?).ok()?;
    (at >= UNIX_EPOCH).then_some(at)
}

/// The duration of a message; `None` when it is absent or negative.
pub(crate) fn span(of: Option<&prost_types::Duration>) -> Option<Duration> {
    let of = of?;
    // By hand: the conversion of prost-types 0.14 overflows at the least seconds.
    let nanos = i128::from(of.seconds) * SECOND + i128::from(of.nanos);
    let seconds = u64::try_from(nanos.div_euclid(SECOND)).ok()?;
    let rest = u32::try_from(nanos.rem_euclid(SECOND)).ok()?;
    Some(Duration::new(seconds, rest))
}

/// In nanoseconds.
const SECOND: i128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn durations_and_moments_of_messages_are_taken_to_the_last_bit() {
        let duration = |seconds, nanos| span(Some(&prost_types::Duration { seconds, nanos }));
        for (seconds, nanos, expected) in [
            (0, 0, Some(Duration::ZERO)),
            (1, 500_000_000, Some(Duration::from_millis(1500))),
            (1, -500_000_000, Some(Duration::from_millis(500))),
            (-1, 2_000_000_000, Some(Duration::from_secs(1))),
            (
                i64::MAX,
                999_999_999,
                Some(Duration::new(i64::MAX.unsigned_abs(), 999_999_999)),
            ),
            (
                i64::MAX,
                i32::MAX,
                Some(Duration::new(i64::MAX.unsigned_abs() + 2, 147_483_647)),
            ),
            (0, -1, None),
            (-1, 999_999_999, None),
            (i64::MIN, 0, None),
            (i64::MIN, -1, None),
            (i64::MIN, i32::MIN, None),
            (i64::MIN, i32::MAX, None),
        ] {
            assert_eq!(duration(seconds, nanos), expected, "{seconds} s {nanos} ns");
        }
        assert_eq!(span(None), None);
        for seconds in [i64::MIN, i64::MIN + 1, -1, 0, i64::MAX - 1, i64::MAX] {
            for nanos in [i32::MIN, -1, 0, 1, i32::MAX] {
                let found = moment(Some(&prost_types::Timestamp { seconds, nanos }));
                assert!(found.is_none() || seconds >= -1, "{seconds} s {nanos} ns");
                // Sums of two stay in range.
                let ms = found.map_or(0, unix_ms);
                assert!(ms.checked_add(ms).is_some());
                let clock = MastersClock::new(Arc::new(ManualClock::new(at(1000))));
                if let Some(found) = found {
                    clock.follow(found);
                    clock.is_past(found);
                    clock.skew();
                }
            }
        }
    }

    fn at(hour: u32) -> SystemTime {
        UNIX_EPOCH + hour * HOUR
    }

    #[test]
    fn a_wrong_clock_is_put_right_by_the_masters_and_a_right_one_left_alone() {
        let host = Arc::new(ManualClock::new(at(1000)));
        let clock = MastersClock::new(Arc::clone(&host) as _);
        assert_eq!((clock.now(), clock.skew()), (at(1000), None));
        assert_eq!(clock.follow(at(1000) + SAME), SAME);
        assert_eq!(
            (clock.now(), clock.skew()),
            (at(1000), Some(Duration::ZERO))
        );
        for master in [at(1005), at(995)] {
            assert_eq!(clock.follow(master), 5 * HOUR);
            assert_eq!((clock.now(), clock.skew()), (master, Some(5 * HOUR)));
            host.advance(HOUR);
            assert_eq!(clock.now(), master + HOUR);
            host.set(at(1000));
        }
        clock.follow(at(1000));
        host.advance(HOUR);
        assert_eq!(
            (clock.now(), clock.skew()),
            (at(1001), Some(Duration::ZERO))
        );
    }

    #[test]
    fn who_sets_the_host_s_clock_moves_nothing() {
        let host = Arc::new(ManualClock::new(at(1000)));
        let clock = MastersClock::new(Arc::clone(&host) as _);
        for (master, set) in [(1000, 1001), (1000, 990), (1007, 1007), (900, 1000)] {
            clock.follow(at(master));
            host.set(at(set));
            assert_eq!(clock.now(), at(master));
            let skew = HOUR * u32::abs_diff(master, set);
            assert_eq!(clock.skew(), Some(skew));
            host.advance(HOUR);
            assert_eq!((clock.now(), clock.skew()), (at(master + 1), Some(skew)));
        }
    }

    #[test]
    fn a_clock_that_was_lost_goes_on_from_the_last_manifest_until_the_master_is_met() {
        let year = u32::try_from(LOST.as_secs() / 3600).unwrap();
        for (host, expected) in [(0, 2 * year), (year, 2 * year), (year + 1, year + 1)] {
            let clock = MastersClock::new(Arc::new(ManualClock::new(at(host))));
            clock.is_past(at(2 * year));
            assert_eq!(clock.now(), at(expected));
            clock.follow(at(3 * year));
            clock.is_past(at(5 * year));
            assert_eq!(clock.now(), at(3 * year));
        }
    }

    #[test]
    fn certificates_are_judged_by_the_master_s_time() {
        let clock = MastersClock::new(Arc::new(ManualClock::new(at(1000))));
        clock.follow(at(2000));
        let time = CertificateTime(Arc::new(clock)).current_time().unwrap();
        assert_eq!(time.as_secs(), 2000 * 3600);
    }
}
