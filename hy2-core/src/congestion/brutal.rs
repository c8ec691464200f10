//! Brutal: a fixed rate, whatever is lost (reference `core/internal/congestion/brutal`).

use std::time::{Duration, Instant};

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
}

impl Brutal {
    pub(super) fn new(now: Instant, rate: u64, compensate: bool, carried: Option<AckRate>) -> Self {
        Self {
            target: Bandwidth::from_bytes_per_sec(rate),
            compensate,
            acks: AckWindow::new(now),
            ack_rate: carried.filter(|_| compensate).unwrap_or(AckRate::FULL),
        }
    }

    /// Takes the packets of one acknowledgement.
    pub(super) fn on_batch(&mut self, now: Instant, acked: u64, lost: u64) {
        self.acks.record(now, acked, lost);
        if self.compensate {
            self.ack_rate = self.acks.ack_rate(now);
        }
    }

    pub(super) fn ack_rate(&self) -> AckRate {
        self.ack_rate
    }

    pub(super) fn target(&self) -> u64 {
        self.target.bytes_per_sec()
    }

    pub(super) fn pacing_rate(&self) -> u64 {
        send_rate(self.target, self.ack_rate).bytes_per_sec()
    }

    pub(super) fn window(&self, smoothed_rtt: Duration, mtu: u64) -> u64 {
        // Below ten packets a path of a millisecond could not carry the rate: acknowledgements
        // come at the peer's leisure, up to 25 ms late.
        let slack = Duration::from_millis(25);
        congestion_window(self.target, self.ack_rate, smoothed_rtt.max(slack), mtu).max(10 * mtu)
    }
}
