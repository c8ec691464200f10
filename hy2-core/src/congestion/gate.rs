//! The token bucket that decides when the next packet may leave.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::shared::Shared;

/// A window above this turns quinn's own pacer off (`quinn-proto` `connection/pacing.rs`).
const OPEN: u64 = u64::MAX / 2;

/// A window that lets no packet out. Not zero, which quinn forbids.
const CLOSED: u64 = 1;

/// How much may leave at once after a pause, in nanoseconds of the rate (reference: four times the
/// pacing granularity of 1 ms).
const BURST_NANOS: u64 = 4_000_000;

/// The same while data waits for the gate: a timer that is late must not cost rate.
const CATCH_UP_NANOS: u64 = 16_000_000;

/// Packets that may leave at once at any rate (reference: ten).
const BURST_PACKETS: u64 = 10;

/// Shortest sleep, the granularity of the runtime's timers.
const SLEEP_NANOS: u64 = 1_000_000;

const NANOS_PER_SEC: u64 = 1_000_000_000;

/// The bucket of one controller.
///
/// All fields are only touched under quinn's connection lock; they are atomics because
/// `Controller::window` takes `&self`.
#[derive(Debug)]
pub(super) struct Gate {
    /// Bytes per second; 0 is no gate.
    rate: u64,
    mtu: u64,
    tokens: AtomicI64,
    /// Time of `tokens`, in nanoseconds of [`Shared`].
    filled: AtomicU64,
    /// Calls of `window` since the last event: quinn asks twice per datagram, first for the
    /// window and then for its pacer, and reports what was sent only at the end of a batch.
    calls: AtomicU32,
    /// 1 while data waits for the gate.
    waiting: AtomicU32,
}

impl Gate {
    pub(super) fn new(mtu: u64) -> Self {
        Self {
            rate: 0,
            mtu,
            tokens: AtomicI64::new(as_signed(BURST_PACKETS * mtu)),
            filled: AtomicU64::new(0),
            calls: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
        }
    }

    /// Goes on at another rate. What the old one saved up is no part of it beyond what the new one
    /// may save; after no rate there is a burst.
    pub(super) fn set_rate(&mut self, now: u64, rate: u64) {
        self.refill(now);
        let was = std::mem::replace(&mut self.rate, rate);
        if was == 0 {
            let burst = as_signed(BURST_PACKETS * self.mtu);
            self.tokens.store(burst, Relaxed);
        } else if rate > 0 && rate < was {
            let tokens = self.tokens.load(Relaxed);
            let most = as_signed(self.cap(CATCH_UP_NANOS));
            self.tokens.store(tokens.min(most), Relaxed);
        }
    }

    pub(super) fn set_mtu(&mut self, mtu: u64) {
        self.mtu = mtu;
    }

    /// Charges what was really sent.
    pub(super) fn on_sent(&mut self, now: u64, bytes: u64) {
        self.refill(now);
        if self.rate > 0 {
            let tokens = self.tokens.load(Relaxed).saturating_sub(as_signed(bytes));
            self.tokens.store(tokens, Relaxed);
        }
        self.waiting.store(0, Relaxed);
        self.calls.store(0, Relaxed);
    }

    /// Something happened between two batches: the count of calls starts anew.
    pub(super) fn resynchronise(&self) {
        self.calls.store(0, Relaxed);
    }

    fn refill(&self, now: u64) {
        let filled = self.filled.load(Relaxed);
        if now <= filled {
            return;
        }
        self.filled.store(now, Relaxed);
        let burst = if self.waiting.load(Relaxed) == 1 {
            CATCH_UP_NANOS
        } else {
            BURST_NANOS
        };
        let cap = self.cap(burst);
        let tokens = self.tokens.load(Relaxed);
        let fresh = as_signed(self.bytes_in(now - filled));
        let sum = tokens.saturating_add(fresh).min(as_signed(cap).max(tokens));
        self.tokens.store(sum, Relaxed);
    }

    /// The most tokens when `burst` nanoseconds may be saved up.
    fn cap(&self, burst: u64) -> u64 {
        self.bytes_in(burst).max(BURST_PACKETS * self.mtu)
    }

    fn bytes_in(&self, nanos: u64) -> u64 {
        scale(self.rate, nanos, NANOS_PER_SEC).unwrap_or(u64::MAX / 4)
    }

    /// Answers quinn's question for the window, see the module documentation of `congestion`.
    ///
    /// `room` returns how many more bytes the algorithm's window allows in flight.
    pub(super) fn window(&self, shared: &Shared, room: impl FnOnce() -> u64) -> u64 {
        let calls = self.calls.load(Relaxed);
        self.calls.store(calls.wrapping_add(1), Relaxed);
        if calls % 2 == 1 {
            return OPEN;
        }
        // Datagrams that this batch holds already.
        let pending = u64::from(calls / 2) * self.mtu;
        if room() < pending + self.mtu {
            // The next acknowledgement makes room and wakes the connection.
            self.calls.store(0, Relaxed);
            return CLOSED;
        }
        if self.rate == 0 {
            return OPEN;
        }
        let needed = as_signed(pending + self.mtu);
        if self.tokens.load(Relaxed) >= needed {
            return OPEN;
        }
        let Some(now) = shared.now() else {
            return OPEN;
        };
        self.refill(now);
        let tokens = self.tokens.load(Relaxed);
        if tokens >= needed {
            return OPEN;
        }
        self.calls.store(0, Relaxed);
        self.waiting.store(1, Relaxed);
        if pending == 0 {
            let missing = needed.saturating_sub(tokens).unsigned_abs();
            // One more, as both divisions round down: at a few bytes a second nothing would ever be enough.
            let nanos = scale(missing, NANOS_PER_SEC, self.rate.max(1)).unwrap_or(u64::MAX / 2) + 1;
            shared.arm(now.saturating_add(nanos.max(SLEEP_NANOS)));
        }
        CLOSED
    }
}

/// Returns `value * by / over`, rounded down; `None` above 64 bits.
///
/// A second at 18 GB/s needs no product of 128 bits, whose division takes many times as long.
fn scale(value: u64, by: u64, over: u64) -> Option<u64> {
    match value.checked_mul(by) {
        Some(product) => Some(product / over),
        None => u64::try_from(u128::from(value) * u128::from(by) / u128::from(over)).ok(),
    }
}

fn as_signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_left_without_a_rate_is_owed_by_nobody() {
        let mut gate = Gate::new(1000);
        gate.set_rate(5, 0);
        gate.on_sent(10, 1 << 40);
        gate.set_rate(20, 1_000_000);
        assert_eq!(gate.tokens.load(Relaxed), 10_000, "a burst");
        gate.on_sent(20, 4000);
        assert_eq!(gate.tokens.load(Relaxed), 6000);
        // Nor is the time without one saved up.
        gate.set_rate(30, 0);
        gate.set_rate(NANOS_PER_SEC, 1_000_000);
        assert_eq!(gate.tokens.load(Relaxed), 10_000);
    }
}
