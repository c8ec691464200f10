//! Reno: slow start, one halving per round trip with loss (RFC 9002 §7).

use std::time::Instant;

/// State of the algorithm.
#[derive(Debug, Clone)]
pub(super) struct Reno {
    window: u64,
    threshold: u64,
    recovery_start: Option<Instant>,
    acked: u64,
}

impl Reno {
    pub(super) fn new(mtu: u64) -> Self {
        Self {
            window: super::INITIAL_PACKETS * mtu,
            threshold: u64::MAX,
            recovery_start: None,
            acked: 0,
        }
    }

    pub(super) fn on_ack(&mut self, sent: Instant, bytes: u64, app_limited: bool, mtu: u64) {
        if app_limited || self.recovery_start.is_some_and(|start| sent <= start) {
            return;
        }
        if self.window < self.threshold {
            self.window = self.window.saturating_add(bytes);
            return;
        }
        self.acked += bytes;
        if self.acked >= self.window {
            self.acked -= self.window;
            self.window = self.window.saturating_add(mtu);
        }
    }

    pub(super) fn on_loss(&mut self, now: Instant, sent: Instant, persistent: bool, mtu: u64) {
        if self.recovery_start.is_none_or(|start| sent > start) {
            self.recovery_start = Some(now);
            self.window = (self.window / 2).max(2 * mtu);
            self.threshold = self.window;
            self.acked = 0;
        }
        if persistent {
            self.window = 2 * mtu;
        }
    }

    pub(super) fn window(&self) -> u64 {
        self.window
    }
}
