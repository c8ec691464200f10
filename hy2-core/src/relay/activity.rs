//! When something was used last, for what ends after it was idle for some time.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

/// The latest use of something that both of its directions note, in whole milliseconds.
#[derive(Debug)]
pub(crate) struct Activity {
    opened: Instant,
    /// Milliseconds from `opened`.
    latest: AtomicU64,
}

impl Activity {
    /// Begins now.
    pub(crate) fn begin() -> Self {
        Self {
            opened: Instant::now(),
            latest: AtomicU64::new(0),
        }
    }

    /// Notes a use.
    pub(crate) fn touch(&self) {
        let since = self.opened.elapsed().as_millis();
        self.latest
            .store(u64::try_from(since).unwrap_or(u64::MAX), Relaxed);
    }

    /// When it will have been idle for `timeout`, if it is not used again.
    pub(crate) fn idle_at(&self, timeout: Duration) -> Instant {
        self.opened + Duration::from_millis(self.latest.load(Relaxed)) + timeout
    }

    /// When it began.
    pub(crate) fn opened(&self) -> Instant {
        self.opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn idleness_counts_from_the_latest_use() {
        let (start, timeout) = (Instant::now(), Duration::from_secs(60));
        let activity = Activity::begin();
        assert_eq!(activity.idle_at(timeout), start + timeout);
        tokio::time::advance(Duration::from_millis(2500)).await;
        activity.touch();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(
            activity.idle_at(timeout),
            start + Duration::from_millis(2500) + timeout
        );
        assert_eq!(activity.opened(), start);
    }
}
