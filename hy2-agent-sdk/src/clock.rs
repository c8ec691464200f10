//! Wall-clock time as an argument: certificates, validity, expiry and leases are about dates.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;

/// Tells the date. What merely waits (heartbeats, backoff) uses tokio's clock.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Returns the present moment.
    fn now(&self) -> SystemTime;
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A clock that moves when it is told to, for tests.
#[derive(Debug)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// Starts at `now`.
    pub fn new(now: SystemTime) -> Self {
        Self(AtomicU64::new(unix_ms(now)))
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.0.fetch_add(by, Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        from_unix_ms(self.0.load(Relaxed))
    }
}

/// The host's clock, put right by the master's: users' ends and leases are moments of the master's, and a host whose clock
/// is wrong must not refuse who is in time, nor serve who is not.
#[derive(Debug)]
pub(crate) struct MastersClock {
    host: Arc<dyn Clock>,
    /// What the host's clock lacks, in milliseconds; 0 while it is right.
    lacks: AtomicI64,
    /// What the host's clock said last, and when that was.
    looked: Mutex<(SystemTime, Instant)>,
}

/// Up to here the clocks of master and host count as one.
pub(crate) const SAME: Duration = Duration::from_secs(2);

impl MastersClock {
    pub(crate) fn new(host: Arc<dyn Clock>) -> Self {
        let looked = Mutex::new((host.now(), Instant::now()));
        Self {
            host,
            lacks: AtomicI64::new(0),
            looked,
        }
    }

    /// Takes over that the master's clock says `master` now. Returns how far the host's is from it.
    pub(crate) fn follow(&self, master: SystemTime) -> Duration {
        let host = self.host.now();
        *self.looked.lock() = (host, Instant::now());
        let lacks = distance(host, master);
        let skew = Duration::from_millis(lacks.unsigned_abs());
        let lacks = if skew > SAME { lacks } else { 0 };
        self.lacks.store(lacks, Relaxed);
        skew
    }

    /// Notices that a wrong clock was set; to be called every few seconds. The time that passed meanwhile is known
    /// without it.
    pub(crate) fn look(&self) {
        let host = self.host.now();
        let mut looked = self.looked.lock();
        let expected = looked.0 + looked.1.elapsed();
        *looked = (host, Instant::now());
        let set = distance(expected, host);
        let lacks = self.lacks.load(Relaxed);
        if lacks != 0 && Duration::from_millis(set.unsigned_abs()) > SAME {
            let lacks = lacks.saturating_sub(set);
            tracing::info!(milliseconds = set, "the host's clock was set");
            self.lacks.store(lacks, Relaxed);
        }
    }
}

impl Clock for MastersClock {
    fn now(&self) -> SystemTime {
        let host = self.host.now();
        match self.lacks.load(Relaxed) {
            0 => host,
            lacks => from_unix_ms(unix_ms(host).saturating_add_signed(lacks)),
        }
    }
}

/// Milliseconds from one moment to another, negative when that is the earlier.
fn distance(from: SystemTime, to: SystemTime) -> i64 {
    let (from, to) = (unix_ms(from), unix_ms(to));
    i64::try_from(i128::from(to) - i128::from(from)).unwrap_or(if to > from {
        i64::MAX
    } else {
        i64::MIN
    })
}

/// Milliseconds since 1970; 0 for what lies before.
pub(crate) fn unix_ms(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

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
    Duration::try_from(*of?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Equal but for what passes while a test runs.
    fn is_about(a: SystemTime, b: SystemTime) -> bool {
        distance(a, b).unsigned_abs() < 60_000
    }

    #[test]
    fn a_wrong_clock_is_put_right_by_the_masters_and_a_right_one_left_alone() {
        let start = UNIX_EPOCH + 1000 * HOUR;
        let host = Arc::new(ManualClock::new(start));
        let clock = MastersClock::new(Arc::clone(&host) as _);
        assert_eq!(clock.follow(start + SAME), SAME);
        assert_eq!(clock.now(), start);
        for master in [start + 5 * HOUR, start - 5 * HOUR] {
            assert_eq!(clock.follow(master), 5 * HOUR);
            assert_eq!(clock.now(), master);
        }
        clock.follow(start);
        assert_eq!(clock.now(), start);
        // A right clock goes as it goes, also over a sleep of the host's.
        host.advance(HOUR);
        clock.look();
        assert_eq!(clock.now(), start + HOUR);
    }

    #[test]
    fn a_wrong_clock_that_is_set_right_is_not_put_right_twice() {
        let start = UNIX_EPOCH + 1000 * HOUR;
        let host = Arc::new(ManualClock::new(start));
        let clock = MastersClock::new(Arc::clone(&host) as _);
        clock.follow(start + HOUR);
        clock.look();
        assert!(is_about(clock.now(), start + HOUR));
        host.advance(HOUR);
        clock.look();
        assert!(is_about(clock.now(), start + HOUR), "{:?}", clock.now());
        clock.look();
        assert!(is_about(clock.now(), start + HOUR));
    }
}
