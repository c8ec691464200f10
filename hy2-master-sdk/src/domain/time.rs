//! Moments, as the store and the contracts carry them, and where they come from.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment: milliseconds since 1970, UTC.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    sqlx::Type,
    serde::Serialize,
    serde::Deserialize,
)]
#[sqlx(transparent)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Milliseconds of an hour.
    pub const HOUR: i64 = 3_600_000;
    /// Milliseconds of a day.
    pub const DAY: i64 = 24 * Self::HOUR;
    /// The first moment that RFC 3339 can write: the year 0 begins.
    pub const FIRST: Self = Self(-62_167_219_200_000);
    /// The last one: the year 9999 ends.
    pub const LAST: Self = Self(253_402_300_799_999);

    /// Tells whether RFC 3339 can write the moment; any other would go out as what cannot be read back.
    #[must_use]
    pub const fn is_rfc_3339(self) -> bool {
        Self::FIRST.0 <= self.0 && self.0 <= Self::LAST.0
    }

    /// Returns the moment `days` times 24 hours later, or the last one there is.
    #[must_use]
    pub fn plus_days(self, days: i64) -> Self {
        Self(self.0.saturating_add(days.saturating_mul(Self::DAY)))
    }

    /// Returns the moment `by` later, or the last one there is.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)),
        )
    }

    /// Returns the moment `by` earlier, or the first one there is.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)),
        )
    }

    /// Returns how long after `earlier` this is; zero when it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Returns the start of the hour this is in.
    #[must_use]
    pub fn hour(self) -> Self {
        Self(self.0.div_euclid(Self::HOUR) * Self::HOUR)
    }

    /// Returns the start of the day (UTC) this is in.
    #[must_use]
    pub fn day(self) -> Self {
        Self(self.0.div_euclid(Self::DAY) * Self::DAY)
    }

    /// Returns the moment as a protobuf timestamp.
    pub fn to_proto(self) -> prost_types::Timestamp {
        prost_types::Timestamp {
            seconds: self.0.div_euclid(1000),
            nanos: i32::try_from(self.0.rem_euclid(1000)).unwrap_or(0) * 1_000_000,
        }
    }

    /// Takes a protobuf timestamp; what does not fit becomes the nearest moment that does.
    pub fn from_proto(at: &prost_types::Timestamp) -> Self {
        Self(
            at.seconds
                .saturating_mul(1000)
                .saturating_add(i64::from(at.nanos.clamp(0, 999_999_999)) / 1_000_000),
        )
    }

    /// Returns the moment as the system's type; before 1970 is 1970.
    pub fn to_system(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(u64::try_from(self.0).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let formatted =
            time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000)
                .ok()
                .and_then(|at| {
                    at.format(&time::format_description::well_known::Rfc3339)
                        .ok()
                });
        match formatted {
            Some(text) => f.write_str(&text),
            None => write!(f, "{} ms", self.0),
        }
    }
}

/// Where the master takes the time from.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Returns the present moment.
    fn now(&self) -> Timestamp;
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

/// A clock that moves when it is told to.
#[derive(Debug)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// Starts at a moment.
    pub fn new(at: Timestamp) -> Self {
        Self(AtomicI64::new(at.0))
    }

    /// Moves on.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(
            i64::try_from(by.as_millis()).unwrap_or(i64::MAX),
            Ordering::SeqCst,
        );
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_start_at_utc_hours_and_days_also_before_1970() {
        let at = Timestamp(1_700_000_123_456);
        assert_eq!(at.hour().0 % Timestamp::HOUR, 0);
        assert!(at.0 - at.hour().0 < Timestamp::HOUR);
        assert_eq!(at.day().0 % Timestamp::DAY, 0);
        assert_eq!(Timestamp(-1).hour(), Timestamp(-Timestamp::HOUR));
    }

    #[test]
    fn protobuf_and_back_is_the_same() {
        for ms in [0, 1, -1, 1_700_000_123_456, -1_234] {
            assert_eq!(
                Timestamp::from_proto(&Timestamp(ms).to_proto()),
                Timestamp(ms)
            );
        }
    }

    #[test]
    fn it_prints_as_rfc_3339() {
        assert_eq!(Timestamp(0).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(Timestamp::FIRST.to_string(), "0000-01-01T00:00:00Z");
        assert_eq!(Timestamp::LAST.to_string(), "9999-12-31T23:59:59.999Z");
        for at in [
            Timestamp(Timestamp::FIRST.0 - 1),
            Timestamp(Timestamp::LAST.0 + 1),
        ] {
            assert!(!at.is_rfc_3339() && at.to_string().ends_with(" ms"), "{at}");
        }
        assert_eq!(Timestamp(i64::MAX).to_string(), format!("{} ms", i64::MAX));
    }
}
