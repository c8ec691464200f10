//! What UDP may take of a fixed rate while TCP streams are open.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::limiter::RateLimiter;
use crate::congestion::{Algorithm, CongestionHandle};

/// Part of a Brutal rate that datagrams may take beside streams, in percent.
const PERCENT: u64 = 70;

/// Keeps a connection's datagrams from starving its streams: quinn sends DATAGRAM frames before
/// STREAM frames, so a flood of them would take a whole fixed rate.
///
/// Without a stream, or under a congestion control that has no fixed rate, nothing is limited.
#[derive(Debug)]
pub(crate) struct UdpShare {
    limiter: RateLimiter,
    congestion: CongestionHandle,
    streams: Mutex<usize>,
    opened: Notify,
    /// The command to the congestion control that the limit follows.
    generation: AtomicU64,
}

impl UdpShare {
    pub(crate) fn new(congestion: &CongestionHandle) -> Arc<Self> {
        Arc::new(Self {
            limiter: RateLimiter::unlimited(),
            congestion: congestion.clone(),
            streams: Mutex::new(0),
            opened: Notify::new(),
            generation: AtomicU64::new(0),
        })
    }

    /// Counts a stream for as long as the guard lives.
    pub(crate) fn enter_stream(self: &Arc<Self>) -> StreamPresence {
        let mut streams = self.streams.lock();
        *streams += 1;
        if *streams == 1 {
            self.follow();
            self.opened.notify_one();
        }
        StreamPresence(Arc::clone(self))
    }

    /// Waits until there is a stream. For one waiter; what happened before the call is not lost.
    pub(crate) async fn opened(&self) {
        while !self.has_streams() {
            self.opened.notified().await;
        }
    }

    /// Tells whether there is a stream.
    pub(crate) fn has_streams(&self) -> bool {
        *self.streams.lock() > 0
    }

    /// Tells whether a datagram of `bytes` may be sent; otherwise it is to be dropped.
    pub(crate) fn try_take(&self, bytes: usize) -> bool {
        if self.congestion.generation() != self.generation.load(Relaxed) {
            let streams = self.streams.lock();
            if *streams > 0 {
                self.follow();
            }
        }
        self.limiter.try_take(bytes)
    }

    /// Takes the rate in force; called with the streams locked.
    fn follow(&self) {
        self.generation.store(self.congestion.generation(), Relaxed);
        self.limiter.set(match self.congestion.algorithm() {
            // Nothing at all is no limit to the limiter.
            Algorithm::Brutal { rate, .. } => Some((rate / 100 * PERCENT).max(1)),
            _ => None,
        });
    }
}

/// One stream of a connection.
#[derive(Debug)]
pub(crate) struct StreamPresence(Arc<UdpShare>);

impl Drop for StreamPresence {
    fn drop(&mut self) {
        let mut streams = self.0.streams.lock();
        *streams -= 1;
        if *streams == 0 {
            self.0.limiter.set(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::congestion::BbrProfile;

    fn brutal(rate: u64) -> Algorithm {
        Algorithm::Brutal {
            rate,
            loss_compensation: true,
            overclaim_guard: false,
        }
    }

    /// Offers ten times the rate for a second and returns what was let through.
    async fn flood(share: &UdpShare, rate: usize) -> usize {
        let mut taken = 0;
        for _ in 0..1000 {
            tokio::time::advance(Duration::from_millis(1)).await;
            for _ in 0..10 {
                if share.try_take(rate / 1000) {
                    taken += rate / 1000;
                }
            }
        }
        taken
    }

    #[tokio::test(start_paused = true)]
    async fn datagrams_leave_room_for_streams_only_while_there_are_some() {
        let congestion = CongestionHandle::new(brutal(1_000_000));
        let share = UdpShare::new(&congestion);
        assert_eq!(flood(&share, 1_000_000).await, 10_000_000);
        let first = share.enter_stream();
        let second = share.enter_stream();
        drop(first);
        let taken = flood(&share, 1_000_000).await;
        assert!((690_000..=710_000).contains(&taken), "{taken}");
        drop(second);
        assert_eq!(flood(&share, 1_000_000).await, 10_000_000);
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_follows_the_rate() {
        let congestion = CongestionHandle::new(brutal(1_000_000));
        let share = UdpShare::new(&congestion);
        let _stream = share.enter_stream();
        congestion.set(brutal(2_000_000));
        let taken = flood(&share, 2_000_000).await;
        assert!((1_390_000..=1_470_000).contains(&taken), "{taken}");
        congestion.set(Algorithm::Bbr(BbrProfile::Standard));
        assert_eq!(flood(&share, 1_000_000).await, 10_000_000);
    }
}
