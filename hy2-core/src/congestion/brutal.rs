//! Brutal: a fixed rate, whatever is lost (reference `core/internal/congestion/brutal`).

use std::time::{Duration, Instant};

use super::guard::{Guard, News};
use hy2_proto::{
    bandwidth::Bandwidth,
    brutal::{AckRate, AckWindow, congestion_window, send_rate},
};

/// State of the algorithm.
#[derive(Debug, Clone)]
pub(super) struct Brutal {
    target: Bandwidth,
    compensate: bool,
    acks: AckWindow,
    ack_rate: AckRate,
    guard: Option<Box<Guard>>,
}

impl Brutal {
    pub(super) fn new(
        now: Instant,
        rate: u64,
        compensate: bool,
        guard: bool,
        carried: Option<AckRate>,
    ) -> Self {
        Self {
            target: Bandwidth::from_bytes_per_sec(rate),
            compensate,
            acks: AckWindow::new(now),
            ack_rate: carried.filter(|_| compensate).unwrap_or(AckRate::FULL),
            guard: guard.then(|| Box::new(Guard::new(now))),
        }
    }

    /// Takes the packets of one acknowledgement.
    pub(super) fn on_batch(&mut self, now: Instant, acked: u64, lost: u64) {
        self.acks.record(now, acked, lost);
        if self.compensate {
            self.ack_rate = self.acks.ack_rate(now);
        }
    }

    /// Takes the bytes of the same acknowledgement, for the guard.
    pub(super) fn guard(&mut self, now: Instant, news: News, smoothed_rtt: Duration) {
        let wanted = send_rate(self.target, self.ack_rate).bytes_per_sec();
        if let Some(guard) = &mut self.guard {
            guard.on_batch(now, news, smoothed_rtt, wanted);
        }
    }

    pub(super) fn ack_rate(&self) -> AckRate {
        self.ack_rate
    }

    pub(super) fn target(&self) -> u64 {
        self.target.bytes_per_sec()
    }

    pub(super) fn pacing_rate(&self) -> u64 {
        let rate = send_rate(self.target, self.ack_rate).bytes_per_sec();
        let limit = self.guard.as_ref().and_then(|guard| guard.limit());
        limit.map_or(rate, |limit| limit.min(rate))
    }

    pub(super) fn window(&self, smoothed_rtt: Duration, mtu: u64) -> u64 {
        // Below ten packets a path of a millisecond could not carry the rate: acknowledgements
        // come at the peer's leisure, up to 25 ms late.
        let slack = Duration::from_millis(25);
        congestion_window(self.target, self.ack_rate, smoothed_rtt.max(slack), mtu).max(10 * mtu)
    }
}
