//! What the handle, the controllers and the pacing task of one connection have in common.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::*},
    },
    time::{Duration, Instant},
};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use quinn::Runtime;

use hy2_proto::brutal::AckRate;

use super::{
    Algorithm,
    figures::{Figures, add},
    rest::{Rest, Roused},
};

#[derive(Debug)]
pub(super) struct Shared {
    command: Mutex<Algorithm>,
    /// Counts the commands, so that the controller sees a new one by comparing a number.
    generation: AtomicU64,
    pub(super) figures: Figures,
    send_window_limit: AtomicU64,
    /// The controller's time zero; nanoseconds below count from here.
    epoch: OnceLock<Instant>,
    clock: OnceLock<Arc<dyn Runtime>>,
    attached: AtomicBool,
    /// When the pacing task has to wake the connection; [`NEVER`] if it need not.
    deadline: AtomicU64,
    pub(super) waker: AtomicWaker,
    carried: CarriedCells,
    rest: Rest,
}

/// What a controller leaves for the one that quinn builds after a change of address.
#[derive(Debug, Clone, Copy)]
pub(super) struct Carried {
    pub(super) smoothed_rtt: Duration,
    pub(super) ack_rate: Option<AckRate>,
}

/// Where [`Carried`] is kept. It is written for each acknowledgement; controllers write and read it
/// under quinn's connection lock only, so the cells need not agree by themselves.
#[derive(Debug)]
struct CarriedCells {
    /// [`NEVER`] while there is nothing.
    smoothed_rtt_nanos: AtomicU64,
    /// 0 without an ack rate.
    acked: AtomicU64,
    lost: AtomicU64,
}

impl CarriedCells {
    const fn empty() -> Self {
        Self {
            smoothed_rtt_nanos: AtomicU64::new(NEVER),
            acked: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }
}

pub(super) const NEVER: u64 = u64::MAX;

impl Shared {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        let figures = Figures::default();
        figures.ack_rate_millionths.store(1_000_000, Relaxed);
        Self {
            command: Mutex::new(algorithm),
            generation: AtomicU64::new(0),
            figures,
            send_window_limit: AtomicU64::new(MAX_SEND_WINDOW),
            epoch: OnceLock::new(),
            clock: OnceLock::new(),
            attached: AtomicBool::new(false),
            deadline: AtomicU64::new(NEVER),
            waker: AtomicWaker::new(),
            carried: CarriedCells::empty(),
            rest: Rest::none(),
        }
    }

    /// Notes what the controller sends.
    pub(super) fn on_sent(&self, bytes: u64) {
        let sent = &self.figures.bytes_sent;
        add(sent, bytes);
        self.rest.on_sent(sent.load(Relaxed));
    }

    pub(super) fn rest(&self, id: u64, roused: &Arc<Roused>) {
        let sent = self.figures.bytes_sent.load(Relaxed);
        self.rest.begin(sent, id, roused);
    }

    pub(super) fn set(&self, algorithm: Algorithm) {
        let mut command = self.command.lock();
        *command = algorithm;
        self.generation.fetch_add(1, Release);
        drop(command);
        // A connection that waits for its next packet at the former rate should not sleep through this.
        self.wake_connection();
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        *self.command.lock()
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Acquire)
    }

    pub(super) fn send_window_target(&self) -> u64 {
        let rate = self.figures.target_rate.load(Relaxed);
        let rtt = self.figures.smoothed_rtt_nanos.load(Relaxed);
        let lost = 1.0 - self.figures.ack_rate_millionths.load(Relaxed) as f64 / 1e6;
        let window = rate as f64 * rtt as f64 / 1e9 * send_window_round_trips(lost);
        let limit = self.send_window_limit.load(Relaxed);
        (window as u64).max(MIN_SEND_WINDOW).min(limit)
    }

    pub(super) fn set_send_window_limit(&self, limit: u64) {
        let before = self.send_window_target();
        self.send_window_limit
            .store(limit.min(MAX_SEND_WINDOW), Relaxed);
        // The limit is set anew every second, and an idle connection should sleep through that. One that
        // has something under way is woken as a matter of course: should anything have made it
        // miss its turn, it is late by a second and not until its peer speaks.
        if self.send_window_target() != before || self.figures.in_flight.load(Relaxed) > 0 {
            self.wake_connection();
        }
    }

    pub(super) fn nanos(&self, at: Instant) -> u64 {
        let epoch = *self.epoch.get_or_init(|| at);
        at.saturating_duration_since(epoch).as_nanos() as u64
    }

    pub(super) fn instant(&self, nanos: u64) -> Option<Instant> {
        self.epoch.get()?.checked_add(Duration::from_nanos(nanos))
    }

    /// The time in nanoseconds, if a pacing task runs.
    pub(super) fn now(&self) -> Option<u64> {
        if !self.attached.load(Relaxed) {
            return None;
        }
        self.clock.get().map(|clock| self.nanos(clock.now()))
    }

    pub(super) fn set_attached(&self, runtime: &Arc<dyn Runtime>) {
        let clock = self.clock.get_or_init(|| runtime.clone());
        self.nanos(clock.now());
        self.attached.store(true, Release);
    }

    pub(super) fn set_detached(&self) {
        self.attached.store(false, Release);
        self.waker.wake();
    }

    pub(super) fn is_attached(&self) -> bool {
        self.attached.load(Acquire)
    }

    pub(super) fn deadline(&self) -> u64 {
        self.deadline.load(Acquire)
    }

    /// Asks the pacing task to wake the connection at `at`, in place of any other time.
    pub(super) fn arm(&self, at: u64) {
        let before = self.deadline.swap(at, AcqRel);
        // A task that sleeps until an earlier moment finds the later one by itself.
        if at < before {
            self.waker.wake();
        }
    }

    /// Takes back a deadline that has been served, unless there is a new one already.
    pub(super) fn disarm(&self, served: u64) {
        let _ = self
            .deadline
            .compare_exchange(served, NEVER, AcqRel, Relaxed);
    }

    fn wake_connection(&self) {
        if self.is_attached() {
            self.arm(0);
        }
    }

    pub(super) fn carry(&self, carried: Carried) {
        let (acked, lost) = carried.ack_rate.map_or((0, 0), AckRate::as_counts);
        let nanos = u64::try_from(carried.smoothed_rtt.as_nanos()).unwrap_or(NEVER - 1);
        self.carried.acked.store(acked, Relaxed);
        self.carried.lost.store(lost, Relaxed);
        self.carried.smoothed_rtt_nanos.store(nanos, Relaxed);
    }

    pub(super) fn carried(&self) -> Option<Carried> {
        let nanos = self.carried.smoothed_rtt_nanos.load(Relaxed);
        if nanos == NEVER {
            return None;
        }
        let acked = self.carried.acked.load(Relaxed);
        let lost = self.carried.lost.load(Relaxed);
        Some(Carried {
            smoothed_rtt: Duration::from_nanos(nanos),
            ack_rate: (acked > 0).then(|| AckRate::from_counts(acked, lost)),
        })
    }

    /// Lets the pacing task adjust quinn's send window when its target has moved by a quarter.
    pub(super) fn request_send_window_update(&self) {
        self.wake_connection();
    }
}

/// quinn reserves nothing by it, and below this a page load at a low estimated rate would wait for ACKs.
const MIN_SEND_WINDOW: u64 = 1 << 20;

/// The largest send window, in bytes: 200 Mbit/s over 200 ms at 30 % loss.
pub(crate) const MAX_SEND_WINDOW: u64 = 96_000_000;

/// How many round trips of the rate a send window covers when the share `lost` of the packets, 0 to 1, does not arrive.
///
/// A segment is lost k times in a row once in (1 / lost)^k packets, each attempt takes 1.1 round trips, and everything
/// behind it waits meanwhile. Twelve round trips are used up once in 10^9 packets at 15 % loss, eighteen at 28 %.
/// Beyond, memory costs more than the silence that it avoids.
pub(crate) fn send_window_round_trips(lost: f64) -> f64 {
    12.0 + 6.0 * ((lost - 0.15) / 0.13).clamp(0.0, 1.0)
}
