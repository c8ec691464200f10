//! How much unacknowledged data a connection may hold, and where that memory comes from.

use std::sync::Arc;

use super::SEND_WINDOW_MAX;
use crate::{
    congestion::CongestionHandle,
    memory::{MemoryBudget, Reservation},
};

/// The smallest useful window.
const MIN: usize = 1 << 20;

/// Who gets less than this acknowledged between two adjustments does not count as sending; window
/// updates are acknowledged too.
const SENDING: u64 = 128 << 10;

/// Round trips of the rate that a window covers: at 30 % loss a segment needs several attempts,
/// and everything behind it waits.
const ROUND_TRIPS: f64 = 12.0;

/// Counts a connection's send window in its share of the memory budget while it sends.
///
/// Receiving goes first: what reassemblers hold is taken off twice, so that within a few
/// adjustments a connection that receives much is left with a quarter for sending.
#[derive(Debug)]
pub(crate) struct SendWindow {
    reservation: Reservation,
    limit: u64,
    /// Bytes acknowledged up to the latest adjustment.
    acked: u64,
}

impl SendWindow {
    pub(crate) fn new(share: &Arc<MemoryBudget>, congestion: &CongestionHandle) -> Self {
        let mut window = Self {
            reservation: share.reservation(),
            limit: 0,
            acked: 0,
        };
        window.adjust(congestion);
        window
    }

    /// Follows the rate and the memory that is left; to be called about once a second.
    pub(crate) fn adjust(&mut self, congestion: &CongestionHandle) {
        let share = Arc::clone(self.reservation.budget());
        let figures = congestion.snapshot();
        let acked = figures.bytes_acked - self.acked;
        self.acked = figures.bytes_acked;
        let wanted = if acked < SENDING {
            0
        } else {
            let product = figures.target_rate as f64 * figures.smoothed_rtt.as_secs_f64();
            ((product * ROUND_TRIPS) as usize).max(MIN)
        };
        let receiving = share.used().saturating_sub(self.reservation.bytes());
        let reachable = share.free() + share.used();
        let most = (reachable - reachable / 16)
            .saturating_sub(2 * receiving)
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
}
