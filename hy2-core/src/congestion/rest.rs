//! Connections that do nothing but keep themselves alive, and the moment at which that ends.

use std::sync::{
    Arc, OnceLock,
    atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use parking_lot::Mutex;

use super::shared::NEVER;

/// Who rests may send this much, in bytes: some twenty acknowledgements of keep-alives. Those of a transfer
/// are more after 100 KB.
const UNNOTICED: u64 = 1 << 10;

/// The connections that were at rest and are not any more, in no order.
#[derive(Debug, Default)]
pub(crate) struct Roused(Mutex<Vec<u64>>);

impl Roused {
    /// Returns who was roused since the last call.
    pub(crate) fn take(&self) -> Vec<u64> {
        std::mem::take(&mut self.0.lock())
    }
}

/// Whether one connection rests. The controller looks at it for each transmit.
#[derive(Debug)]
pub(super) struct Rest {
    /// Bytes sent at which it ends; [`NEVER`] while the connection does not rest.
    until: AtomicU64,
    /// Whom to tell, and by which number.
    tell: OnceLock<(u64, Arc<Roused>)>,
}

impl Rest {
    pub(super) const fn none() -> Self {
        Self {
            until: AtomicU64::new(NEVER),
            tell: OnceLock::new(),
        }
    }

    /// Begins when `sent` bytes have been sent. Whom to tell is settled by the first call.
    pub(super) fn begin(&self, sent: u64, id: u64, roused: &Arc<Roused>) {
        self.tell.get_or_init(|| (id, Arc::clone(roused)));
        self.until.store(sent.saturating_add(UNNOTICED), Release);
    }

    /// Notes that `sent` bytes have been sent.
    pub(super) fn on_sent(&self, sent: u64) {
        if sent > self.until.load(Relaxed) {
            self.end();
        }
    }

    #[cold]
    fn end(&self) {
        if self.until.swap(NEVER, Acquire) != NEVER
            && let Some((id, roused)) = self.tell.get()
        {
            roused.0.lock().push(*id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_moves_is_told_of_once_and_who_keeps_alive_is_not() {
        let roused = Arc::new(Roused::default());
        let rest = Rest::none();
        rest.on_sent(1 << 20);
        rest.begin(1 << 20, 7, &roused);
        for acknowledgements in 1..20 {
            rest.on_sent((1 << 20) + 40 * acknowledgements);
        }
        assert!(roused.take().is_empty());
        for sent in [1 << 21, 1 << 22] {
            rest.on_sent(sent);
        }
        assert_eq!(roused.take(), [7]);
        assert!(roused.take().is_empty());
        rest.begin(1 << 22, 7, &roused);
        rest.on_sent(1 << 23);
        assert_eq!(roused.take(), [7]);
    }
}
