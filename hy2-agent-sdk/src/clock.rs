//! Wall-clock time as an argument: certificates, validity, expiry and leases are about dates.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

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
