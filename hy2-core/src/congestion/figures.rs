//! The numbers of a connection, readable from any thread.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::Algorithm;

/// The congestion control of a connection at one moment; counters run since its start.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct CongestionSnapshot {
    /// The algorithm in force.
    pub algorithm: Algorithm,
    /// Bytes per second that should arrive: Brutal's rate, or what the algorithm estimates.
    pub target_rate: u64,
    /// Bytes per second that are sent, loss compensation and probing included.
    pub pacing_rate: u64,
    /// Share of the packets of the last five seconds that arrived, from 0.8 to 1 (reference §1.9); 1 with
    /// other algorithms than Brutal.
    pub ack_rate: f64,
    /// Smoothed round-trip time; zero before the first measurement.
    pub smoothed_rtt: Duration,
    /// Bytes of UDP payload given to the socket.
    pub bytes_sent: u64,
    /// Bytes in acknowledged packets.
    pub bytes_acked: u64,
    /// Bytes in packets that were declared lost.
    pub bytes_lost: u64,
    /// Acknowledged packets that elicited the acknowledgement.
    pub packets_acked: u64,
    /// Packets declared lost; derived from the bytes, as quinn reports losses in bytes.
    pub packets_lost: u64,
    /// Bytes on their way.
    pub in_flight: u64,
    /// Bytes that may be on their way.
    pub window: u64,
}

/// One writer (the controller, under quinn's connection lock), any number of readers.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) target_rate: AtomicU64,
    pub(super) pacing_rate: AtomicU64,
    pub(super) ack_rate_millionths: AtomicU64,
    pub(super) smoothed_rtt_nanos: AtomicU64,
    pub(super) bytes_sent: AtomicU64,
    pub(super) bytes_acked: AtomicU64,
    pub(super) bytes_lost: AtomicU64,
    pub(super) packets_acked: AtomicU64,
    pub(super) packets_lost: AtomicU64,
    pub(super) in_flight: AtomicU64,
    pub(super) window: AtomicU64,
    /// What was on its way after the latest acknowledgement or loss. Unlike `in_flight`, which also
    /// counts acknowledgements sent since, it goes down to zero.
    unacked: AtomicU64,
    /// That was nothing at some moment since somebody asked.
    drained: AtomicBool,
}

impl Figures {
    /// Notes what is on its way after an acknowledgement or a loss.
    pub(super) fn set_in_flight(&self, bytes: u64) {
        self.in_flight.store(bytes, Relaxed);
        self.unacked.store(bytes, Relaxed);
        if bytes == 0 {
            self.drained.store(true, Relaxed);
        }
    }

    pub(super) fn take_drained(&self) -> bool {
        self.drained.swap(false, Relaxed) || self.unacked.load(Relaxed) == 0
    }

    pub(super) fn snapshot(&self, algorithm: Algorithm) -> CongestionSnapshot {
        CongestionSnapshot {
            algorithm,
            target_rate: self.target_rate.load(Relaxed),
            pacing_rate: self.pacing_rate.load(Relaxed),
            ack_rate: self.ack_rate_millionths.load(Relaxed) as f64 / 1e6,
            smoothed_rtt: Duration::from_nanos(self.smoothed_rtt_nanos.load(Relaxed)),
            bytes_sent: self.bytes_sent.load(Relaxed),
            bytes_acked: self.bytes_acked.load(Relaxed),
            bytes_lost: self.bytes_lost.load(Relaxed),
            packets_acked: self.packets_acked.load(Relaxed),
            packets_lost: self.packets_lost.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            window: self.window.load(Relaxed),
        }
    }
}

/// Adds without a locked instruction, which one writer does not need.
pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(n), Relaxed);
}
