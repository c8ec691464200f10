//! How much unacknowledged data a connection may hold, and where that memory comes from.

use std::sync::Arc;

use super::SEND_WINDOW_MAX;
use crate::{
    congestion::{CongestionHandle, send_window_round_trips},
    memory::{MemoryBudget, Reservation},
};

/// The smallest useful window.
const MIN: usize = 1 << 20;

/// Who gets less than this acknowledged between two adjustments does not count as sending; window
/// updates are acknowledged too.
const SENDING: u64 = 128 << 10;

/// Adjustments, a second apart, over which what a connection holds should leave it. A window that
/// waits for eight or nine attempts at its oldest segment takes 3 s over a round trip of 300 ms, and
/// 6 s over a satellite's.
const TURNOVER: u64 = 10;

/// Counts a connection's send window in its share of the memory budget while it sends, and tells
/// the budget whether the share is turned over.
///
/// Receiving goes first: what reassemblers hold is taken off twice, so that within a few
/// adjustments a connection that receives much is left with a quarter for sending.
#[derive(Debug)]
pub(crate) struct SendWindow {
    reservation: Reservation,
    limit: u64,
    /// Bytes acknowledged up to the latest adjustment.
    acked: u64,
    /// Bytes that left lately, sent and received: a sum that forgets a tenth per adjustment.
    moved: u64,
}

impl SendWindow {
    pub(crate) fn new(share: &Arc<MemoryBudget>, congestion: &CongestionHandle) -> Self {
        let mut window = Self {
            reservation: share.reservation(),
            limit: 0,
            acked: congestion.snapshot().bytes_acked,
            moved: 0,
        };
        window.adjust(congestion);
        window
    }

    /// Follows the rate and the memory that is left; to be called about once a second.
    pub(crate) fn adjust(&mut self, congestion: &CongestionHandle) {
        let share = Arc::clone(self.reservation.budget());
        let figures = congestion.snapshot();
        let drained = congestion.take_drained();
        let acked = figures.bytes_acked.saturating_sub(self.acked);
        self.acked = figures.bytes_acked;
        self.moved = self.moved - self.moved.div_ceil(TURNOVER) + acked + share.take_moved();
        // Lent to those only who moved lately as much as they may hold then.
        share.set_moving(self.moved >= share.reachable() as u64);

        let wanted = if acked >= SENDING {
            // An estimate of what the path could carry is no reason to hold more than is sent.
            let rate = figures.target_rate.min(2 * acked) as f64;
            let round_trips = send_window_round_trips(1.0 - figures.ack_rate);
            ((rate * figures.smoothed_rtt.as_secs_f64() * round_trips) as usize).max(MIN)
        } else if drained {
            0
        } else {
            // Something is on its way: a peer that acknowledges everything but one byte keeps all
            // that was sent behind it here.
            self.reservation.bytes()
        };
        let reachable = share.reachable();
        let receiving = share.used().saturating_sub(self.reservation.bytes());
        // A reassembler that was refused needs something to begin with.
        let margin = if share.take_refused() {
            reachable / 8
        } else {
            0
        };
        let most = reachable
            .saturating_sub(margin.max(2 * receiving))
            .max(reachable / 4);
        let max = usize::try_from(SEND_WINDOW_MAX).unwrap_or(usize::MAX);
        let reserved = self.reservation.resize(wanted.min(most).min(max));
        // What is not reserved yet lets a connection speed up between two adjustments.
        let limit = (reserved + share.free() / 4).clamp(MIN, max) as u64;
        if limit != self.limit {
            self.limit = limit;
            congestion.set_send_window_limit(limit);
        }
    }

    /// Returns the bytes taken from the budget.
    pub(crate) fn reserved(&self) -> usize {
        self.reservation.bytes()
    }

    /// Tells whether nothing is held, and hardly anything moved lately.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.moved < SENDING && self.reservation.budget().used() == 0
    }

    /// Tells whether the connection holds more than left it in the last [`TURNOVER`] seconds.
    pub(crate) fn is_stagnant(&self) -> bool {
        self.reservation.budget().used() as u64 > self.moved
    }
}
