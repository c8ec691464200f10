//! One memory budget per process, drawn from by everything whose size a peer can influence.
//!
//! Send windows, reassemblers and UDP queues reserve bytes here. Near the limit new connections
//! are refused first, then idle connections give back their windows, then the connection that
//! holds most is reset. Pure book-keeping: nothing here allocates.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// Share of the machine's (or cgroup's) memory that [`MemoryBudget::of_machine`] takes, percent.
const MACHINE_SHARE_PERCENT: u64 = 60;

/// Above this share of the limit a server lets no new connection in, percent.
const REFUSE_PERCENT: usize = 90;

/// Above this share idle connections shrink, percent.
const SHRINK_PERCENT: usize = 75;

/// The most that the buffers of one connection may hold, whatever the budget.
const CONNECTION_MAX: usize = 128 << 20;

/// A connection may hold this many times what is left for all others: one alone 31/32 of the
/// budget, two 31/63 each, and whoever comes later always finds something.
const TIMES_FREE: usize = 31;

/// A limit on bytes, shared by clones of its `Arc`.
pub struct MemoryBudget {
    limit: usize,
    used: AtomicUsize,
    /// What this one is a share of.
    parent: Option<Arc<Self>>,
}

impl MemoryBudget {
    /// Allows `limit` bytes. Anything below 1 MiB is raised to 1 MiB.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit: limit.max(1 << 20),
            used: AtomicUsize::new(0),
            parent: None,
        })
    }

    /// Makes the share of one connection: up to 31 times what the whole has free, and 128 MiB.
    /// What it reserves counts in both.
    pub(crate) fn share(self: &Arc<Self>) -> Arc<Self> {
        Arc::new(Self {
            limit: self.limit.min(CONNECTION_MAX),
            used: AtomicUsize::new(0),
            parent: Some(Arc::clone(self)),
        })
    }

    /// Makes a part of at most `limit` bytes of this budget, which counts in it.
    pub(crate) fn part(self: &Arc<Self>, limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit: limit.min(self.limit),
            used: AtomicUsize::new(0),
            parent: Some(Arc::clone(self)),
        })
    }

    /// Allows 60 % of what the cgroup or else the machine has; 1 GiB where neither can be read.
    pub fn of_machine() -> Arc<Self> {
        let total = machine_memory().unwrap_or(1 << 30);
        Self::new(usize::try_from(total / 100 * MACHINE_SHARE_PERCENT).unwrap_or(usize::MAX))
    }

    /// Returns the limit in bytes.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Returns the bytes reserved at this moment.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// Returns the bytes that are still free.
    pub fn free(&self) -> usize {
        let used = self.used();
        let own = self.limit.saturating_sub(used);
        self.parent.as_ref().map_or(own, |parent| {
            let most = parent.free().saturating_mul(TIMES_FREE);
            own.min(most.saturating_sub(used) / (TIMES_FREE + 1))
        })
    }

    /// Tells whether new connections should be turned away.
    pub fn refuses_connections(&self) -> bool {
        self.used() > self.limit / 100 * REFUSE_PERCENT
    }

    /// Tells whether idle connections should give back what they hold.
    pub fn wants_shrinking(&self) -> bool {
        self.used() > self.limit / 100 * SHRINK_PERCENT
    }

    /// Reserves nothing yet; the reservation grows and shrinks with its owner.
    pub fn reservation(self: &Arc<Self>) -> Reservation {
        Reservation {
            budget: Arc::clone(self),
            bytes: 0,
        }
    }

    fn take(&self, bytes: usize) -> bool {
        if self.parent.is_some() && bytes > self.free() {
            return false;
        }
        let taken = self
            .used
            .fetch_update(Relaxed, Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= self.limit)
            })
            .is_ok();
        if let (true, Some(parent)) = (taken, &self.parent)
            && !parent.take(bytes)
        {
            self.used.fetch_sub(bytes, Relaxed);
            return false;
        }
        taken
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Relaxed);
        if let Some(parent) = &self.parent {
            parent.give_back(bytes);
        }
    }
}

impl fmt::Debug for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBudget")
            .field("limit", &self.limit)
            .field("used", &self.used())
            .finish()
    }
}

/// Bytes taken from a [`MemoryBudget`]; given back on drop.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<MemoryBudget>,
    bytes: usize,
}

impl Reservation {
    /// Returns the bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes `bytes` more, or nothing and returns `false` when the budget has no room.
    pub fn try_grow(&mut self, bytes: usize) -> bool {
        let taken = self.budget.take(bytes);
        if taken {
            self.bytes += bytes;
        }
        taken
    }

    /// Gives back `bytes`, at most what is held.
    pub fn shrink(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.budget.give_back(bytes);
    }

    /// Moves towards `target` bytes as far as the budget allows and returns what is held then.
    pub fn resize(&mut self, target: usize) -> usize {
        if target <= self.bytes {
            self.shrink(self.bytes - target);
        } else {
            let mut wanted = (target - self.bytes).min(self.budget.free());
            // Fails only when somebody else was quicker.
            while wanted > 0 && !self.try_grow(wanted) {
                wanted /= 2;
            }
        }
        self.bytes
    }

    /// Returns the budget this was taken from.
    pub fn budget(&self) -> &Arc<MemoryBudget> {
        &self.budget
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

/// Reads the tighter of the cgroup's limit and the machine's memory, in bytes.
fn machine_memory() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| total_of_meminfo(&text));
    let cgroup = std::fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| {
            let path = text
                .lines()
                .find_map(|line| line.strip_prefix("0::"))?
                .to_owned();
            std::fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.max")).ok()
        })
        .or_else(|| std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok())
        .and_then(|text| text.trim().parse().ok());
    match (machine, cgroup) {
        (Some(machine), Some(cgroup)) => Some(machine.min(cgroup)),
        (machine, cgroup) => machine.or(cgroup),
    }
}

fn total_of_meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_never_exceed_the_limit_and_return_on_drop() {
        let budget = MemoryBudget::new(4 << 20);
        let mut first = budget.reservation();
        let mut second = budget.reservation();
        assert!(first.try_grow(3 << 20));
        assert!(!second.try_grow(2 << 20));
        assert!(second.try_grow(1 << 20));
        assert_eq!(budget.free(), 0);
        assert!(budget.refuses_connections());
        drop(first);
        assert_eq!(budget.used(), 1 << 20);
        second.shrink(usize::MAX);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_share_counts_in_the_whole() {
        let whole = MemoryBudget::new(8 << 20);
        let (one, two) = (whole.share(), whole.share());
        let mut first = one.reservation();
        assert!(!first.try_grow(8 << 20), "more than a share");
        assert!(first.try_grow(7 << 20));
        let mut second = two.reservation();
        assert!(!second.try_grow(1 << 20), "all that the whole has left");
        assert_eq!((two.used(), whole.used()), (0, 7 << 20));
        drop(first);
        assert!(second.try_grow(3 << 20));
        assert_eq!(whole.used(), 3 << 20);
    }

    #[test]
    fn shares_that_want_everything_end_up_equal() {
        let whole = MemoryBudget::new(64 << 20);
        let shares = [whole.share(), whole.share(), whole.share()];
        let mut held = shares.each_ref().map(|share| share.reservation());
        assert!(held[0].resize(usize::MAX) >= 61 << 20);
        for _ in 0..100 {
            for reservation in &mut held {
                // What is delivered is given back, whoever holds more gives more.
                reservation.shrink(reservation.bytes() / 4);
                reservation.resize(usize::MAX);
            }
        }
        let bytes = held.each_ref().map(Reservation::bytes);
        let fair = (64 << 20) / 3;
        assert!(
            bytes.iter().all(|held| held.abs_diff(fair) < fair / 4),
            "{bytes:?}"
        );
        assert!(whole.used() < whole.limit());
    }

    #[test]
    fn resize_takes_part_of_the_rest_when_the_budget_is_short() {
        let budget = MemoryBudget::new(4 << 20);
        let mut other = budget.reservation();
        assert!(other.try_grow(3 << 20));
        let mut window = budget.reservation();
        let got = window.resize(64 << 20);
        assert!((512 << 10..=1 << 20).contains(&got), "{got}");
        assert_eq!(window.resize(1000), 1000);
        assert_eq!(budget.used(), (3 << 20) + 1000);
    }

    #[test]
    fn the_machine_total_is_read_from_meminfo() {
        let text = "MemTotal:       24600000 kB\nMemFree:  1 kB\n";
        assert_eq!(total_of_meminfo(text), Some(24_600_000 * 1024));
        assert_eq!(total_of_meminfo("nothing"), None);
        assert!(MemoryBudget::of_machine().limit() >= 1 << 20);
    }
}
