//! Congestion control: Brutal, BBR and Reno behind one switchable controller per connection.
//!
//! A [`CongestionHandle`] belongs to one QUIC connection. Its [`factory`](CongestionHandle::factory) goes
//! into that connection's `TransportConfig`; every controller that quinn builds from it, also the ones
//! it builds after the peer changed its address, works on the state behind the handle. So a rate that was
//! negotiated once survives migration, and [`set`](CongestionHandle::set) can switch the algorithm at any
//! time: after authentication, or because an operator changed a limit.
//!
//! # Pacing
//!
//! quinn paces at 1.25 windows per round trip, which cannot express "send at this rate" (a window of two
//! bandwidth-delay products, the reference's, sends at twice the rate). So the rate lives in a token
//! bucket of our own (`gate`). The window that quinn sees has three values: *open* (above `u32::MAX`,
//! which turns quinn's pacer off), *closed* (1 byte), and the algorithm's own window when that is what
//! limits. While the bucket says no, nothing in quinn would wake the connection up again, because being
//! blocked by the window arms no timer; [`CongestionHandle::attach`] starts the task that does it.
//! A connection without that task is paced by quinn within a plain window, which never exceeds the
//! target but may fall short of it; that is the state during the handshake.
//!
//! What is sent is charged to the bucket by its real size when it is sent, so the rate is exact in the
//! long run whatever the order or number of quinn's `window()` calls; those only decide how smooth it is.

mod bbr;
mod brutal;
mod controller;
mod figures;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod gate;
mod guard;
mod maxfilter;
mod pacing;
mod reno;
mod rest;
mod shared;
mod tuning;

use std::sync::Arc;

pub use figures::CongestionSnapshot;
pub use pacing::Pacing;
pub use tuning::tune;

pub(crate) use rest::Roused;
use shared::Shared;
pub(crate) use shared::{MAX_SEND_WINDOW, send_window_round_trips};

/// Packets in flight before anything is known (reference: 32).
const INITIAL_PACKETS: u64 = 32;

/// What decides how fast a connection sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Algorithm {
    /// Sends at a fixed rate, whatever is lost (reference `core/internal/congestion/brutal`).
    Brutal {
        /// Rate that should arrive, in bytes per second, headers of QUIC included.
        rate: u64,
        /// Sends up to 1.25 times the rate to make up for measured loss.
        loss_compensation: bool,
        /// Sends a path that carries less than `rate` little more than it carries. Random loss is told
        /// from a narrow path by trying another rate for a moment; it costs up to 3 % where more than 22 % is lost.
        overclaim_guard: bool,
    },
    /// Estimates the bandwidth of the path and follows it.
    Bbr(BbrProfile),
    /// Loss-based control of RFC 9002.
    Reno,
}

impl Default for Algorithm {
    fn default() -> Self {
        Self::Bbr(BbrProfile::Standard)
    }
}

/// How eagerly BBR probes (the reference's `congestion.bbrProfile`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BbrProfile {
    /// Smaller gains and an empty queue after each probe.
    Conservative,
    /// The default.
    #[default]
    Standard,
    /// Larger gains and a longer start-up.
    Aggressive,
}

/// The congestion control of one connection: what it should do, and what it does.
///
/// Cheap to clone; all clones mean the same connection.
#[derive(Debug, Clone)]
pub struct CongestionHandle(Arc<Shared>);

impl CongestionHandle {
    /// A handle for a connection that starts with `algorithm`.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(Arc::new(Shared::new(algorithm)))
    }

    /// The factory for this connection's `TransportConfig::congestion_controller_factory`.
    ///
    /// Use it for one connection only: two connections with the same handle would share one rate's
    /// bookkeeping and pace wrongly.
    pub fn factory(&self) -> Arc<dyn quinn::congestion::ControllerFactory + Send + Sync> {
        Arc::new(controller::Factory::new(self.0.clone()))
    }

    /// Starts pacing for `connection`; it ends when the returned guard is dropped or the connection closes.
    ///
    /// Call it as soon as the connection exists. `runtime` must be the one the endpoint was made with,
    /// because the pacer and quinn have to read the same clock. The task also keeps quinn's send window at
    /// [`send_window_target`](Self::send_window_target). It holds a clone of `connection`, so a
    /// connection is not closed by dropping its other handles while the guard lives.
    #[must_use = "pacing ends when the guard is dropped"]
    pub fn attach(
        &self,
        connection: &quinn::Connection,
        runtime: Arc<dyn quinn::Runtime>,
    ) -> Pacing {
        Pacing::start(self.0.clone(), connection.clone(), runtime)
    }

    /// Switches the algorithm; in force from the next packet or acknowledgement.
    pub fn set(&self, algorithm: Algorithm) {
        self.0.set(algorithm);
    }

    /// Counts the calls of [`set`](Self::set).
    pub(crate) fn generation(&self) -> u64 {
        self.0.generation()
    }

    /// The algorithm that was set last.
    pub fn algorithm(&self) -> Algorithm {
        self.0.algorithm()
    }

    /// The figures of the connection since its start.
    pub fn snapshot(&self) -> CongestionSnapshot {
        self.0.figures.snapshot(self.algorithm())
    }

    /// Bytes of unacknowledged stream data that quinn should be allowed to hold for this connection.
    ///
    /// Twelve round trips' worth of the rate, at 15 to 28 % loss growing to eighteen, because quinn counts data up to
    /// the oldest gap: a lost segment needs several attempts, and everything behind it waits. At least 1 MiB, at most
    /// the limit of [`set_send_window_limit`](Self::set_send_window_limit).
    pub fn send_window_target(&self) -> u64 {
        self.0.send_window_target()
    }

    /// Tells whether everything that was sent has been acknowledged or given up at some moment since
    /// the last call.
    pub(crate) fn take_drained(&self) -> bool {
        self.0.figures.take_drained()
    }

    /// Lets the connection rest: `roused` is told of its `id` once it sends more than it takes to stay alive.
    pub(crate) fn rest(&self, id: u64, roused: &Arc<Roused>) {
        self.0.rest(id, roused);
    }

    /// Bounds [`send_window_target`](Self::send_window_target), in bytes; 96 MB until it is called.
    pub fn set_send_window_limit(&self, limit: u64) {
        self.0.set_send_window_limit(limit);
    }
}
