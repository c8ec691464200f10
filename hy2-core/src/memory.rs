//! One memory budget per process, drawn from by everything whose size a peer can influence.
//!
//! Send windows, reassemblers and UDP queues reserve bytes here. What one connection may hold
//! depends on what is free and on whether it turns over what it holds (see
//! `docs/adr/0004-memory-shares.md`). Near the limit a server refuses new connections first, then
//! makes those that it has hold less, then resets one that does not give way. Pure book-keeping:
//! nothing here allocates.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

/// Share of the machine's (or cgroup's) memory that [`MemoryBudget::of_machine`] takes, percent.
const MACHINE_SHARE_PERCENT: u64 = 60;

/// Above this share of the limit a server lets no new connection in, percent.
const REFUSE_PERCENT: usize = 90;

/// The most that the buffers of one connection may hold, whatever the budget.
const CONNECTION_MAX: usize = 128 << 20;

/// How many times as much as is left for all others a connection may hold: one alone three
/// quarters, two 3/7 each, and whoever comes later always finds something.
const TIMES_FREE: usize = 3;

/// The same for one that turns over what it holds within seconds: one alone nearly everything,
/// two half each. Memory lent to it comes back as fast as others ask for it.
const TIMES_FREE_MOVING: usize = 127;

/// The part of the whole that connections leave alone while somebody waits to be let in; more than
/// [`REFUSE_PERCENT`] leaves.
const HEADROOM: usize = 8;

/// A limit on bytes, shared by clones of its `Arc`.
pub struct MemoryBudget {
    limit: usize,
    used: AtomicUsize,
    /// What this one is a share of.
    parent: Option<Arc<Self>>,
    /// How many times the parent's free bytes this one may hold; 0 when only its limit counts.
    times_free: AtomicUsize,
    /// Bytes that the shares must leave free.
    headroom: AtomicUsize,
    /// Bytes that left what is counted here since [`MemoryBudget::take_moved`].
    moved: AtomicU64,
    /// Somebody wanted more than there was since [`MemoryBudget::take_refused`].
    refused: AtomicBool,
}

impl MemoryBudget {
    /// Allows `limit` bytes. Anything below 1 MiB is raised to 1 MiB.
    pub fn new(limit: usize) -> Arc<Self> {
        Self::with(limit.max(1 << 20), None, 0)
    }

    fn with(limit: usize, parent: Option<Arc<Self>>, times_free: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
            parent,
            times_free: AtomicUsize::new(times_free),
            headroom: AtomicUsize::new(0),
            moved: AtomicU64::new(0),
            refused: AtomicBool::new(false),
        })
    }

    /// Makes the share of one connection, which counts in the whole: up to three times what
    /// the whole has free, and 128 MiB.
    pub(crate) fn share(self: &Arc<Self>) -> Arc<Self> {
        let limit = self.limit.min(CONNECTION_MAX);
        Self::with(limit, Some(Arc::clone(self)), TIMES_FREE)
    }

    /// Makes a part of at most `limit` bytes of this budget, which counts in it.
    pub(crate) fn part(self: &Arc<Self>, limit: usize) -> Arc<Self> {
        Self::with(limit.min(self.limit), Some(Arc::clone(self)), 0)
    }

    /// Allows 60 % of the least of what the machine has and its cgroups allow (version 1 or 2);
    /// of 1 GiB where neither can be read.
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
        let free = self.reachable().saturating_sub(self.used());
        match &self.parent {
            Some(parent) => free.min(parent.free()),
            None => free,
        }
    }

    /// Returns how many bytes may be held here in all, as things are; less than is held when others
    /// wait for it.
    pub(crate) fn reachable(&self) -> usize {
        let times = self.times_free.load(Relaxed);
        let Some(parent) = self.parent.as_ref().filter(|_| times > 0) else {
            return self.limit;
        };
        // What it would have free if nothing were held here.
        let most = parent
            .limit
            .saturating_sub(parent.headroom.load(Relaxed))
            .saturating_add(self.used())
            .saturating_sub(parent.used());
        (most - most.div_ceil(times + 1)).min(self.limit)
    }

    /// Lends a share more while it turns over what it holds and nobody waits to be let in, or no
    /// longer.
    pub(crate) fn set_moving(&self, moving: bool) {
        let contended = self
            .parent
            .as_ref()
            .is_some_and(|parent| parent.headroom.load(Relaxed) > 0);
        let times = if moving && !contended {
            TIMES_FREE_MOVING
        } else {
            TIMES_FREE
        };
        self.times_free.store(times, Relaxed);
    }

    /// Makes all shares leave room for somebody who waits to be let in, or no longer.
    pub(crate) fn set_contended(&self, contended: bool) {
        let headroom = if contended { self.limit / HEADROOM } else { 0 };
        self.headroom.store(headroom, Relaxed);
    }

    /// Notes that `bytes` of what is held here reached their destination.
    pub(crate) fn add_moved(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Relaxed);
    }

    /// Returns the bytes noted since the last call.
    pub(crate) fn take_moved(&self) -> u64 {
        self.moved.swap(0, Relaxed)
    }

    /// Tells whether a reservation was refused since the last call.
    pub(crate) fn take_refused(&self) -> bool {
        self.refused.swap(false, Relaxed)
    }

    /// Tells whether new connections should be turned away.
    pub fn refuses_connections(&self) -> bool {
        self.used() > self.limit / 100 * REFUSE_PERCENT
    }

    /// Reserves nothing yet; the reservation grows and shrinks with its owner.
    pub fn reservation(self: &Arc<Self>) -> Reservation {
        Reservation {
            budget: Arc::clone(self),
            bytes: 0,
        }
    }

    fn take(&self, bytes: usize) -> bool {
        let reachable = self.reachable();
        let mut taken = self
            .used
            .fetch_update(Relaxed, Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= reachable)
            })
            .is_ok();
        if let (true, Some(parent)) = (taken, &self.parent)
            && !parent.take(bytes)
        {
            self.used.fetch_sub(bytes, Relaxed);
            taken = false;
        }
        if !taken {
            self.refused.store(true, Relaxed);
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

/// Reads the tightest of the cgroups' limits and the machine's memory, in bytes.
fn machine_memory() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| total_of_meminfo(&text));
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    let cgroup = cgroup_limit(&groups, read);
    machine.into_iter().chain(cgroup).min()
}

/// Finds the tightest limit of the groups in the text of `/proc/self/cgroup` and of those that they
/// are in: of version 2 (`memory.max`) and of version 1 (`memory.limit_in_bytes`). In a container
/// the text may name a path of the host while the files are the container's own, so that the
/// roots are asked in any case.
fn cgroup_limit(groups: &str, read: impl Fn(&str) -> Option<String>) -> Option<u64> {
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (root, file) = if number == "0" && controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            continue;
        };
        let mut path = path.trim_end_matches('/');
        loop {
            // `max` is no number, and no limit.
            let limit = read(&format!("{root}{path}/{file}"));
            limits.extend(limit.and_then(|limit| limit.trim().parse::<u64>().ok()));
            let Some((above, _)) = path.rsplit_once('/') else {
                break;
            };
            path = above;
        }
    }
    limits.into_iter().min()
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
        assert!(!first.try_grow(7 << 20), "more than a share");
        assert!(first.try_grow(6 << 20));
        let mut second = two.reservation();
        assert!(!second.try_grow(3 << 20), "more than the whole has left");
        assert_eq!((two.used(), whole.used()), (0, 6 << 20));
        drop(first);
        assert!(second.try_grow(3 << 20));
        assert_eq!(whole.used(), 3 << 20);
    }

    #[test]
    fn a_share_that_moves_is_lent_nearly_everything() {
        let whole = MemoryBudget::new(16 << 20);
        let (one, two) = (whole.share(), whole.share());
        let mut first = one.reservation();
        assert_eq!(first.resize(usize::MAX), 12 << 20);
        one.set_moving(true);
        assert!(first.resize(usize::MAX) > 15 << 20);
        assert!(whole.refuses_connections());
        // Somebody wants to come in: what is held is more than may be.
        whole.set_contended(true);
        assert!(!first.try_grow(1));
        assert_eq!(one.free(), 0);
        assert!(one.reachable() < 14 << 20);
        first.resize(one.reachable());
        assert!(!whole.refuses_connections());
        // What was lent comes back too, for whoever came.
        one.set_moving(true);
        first.resize(one.reachable());
        assert!(two.free() > 2 << 20, "{two:?}");
        whole.set_contended(false);
        one.set_moving(false);
        assert_eq!(one.reachable(), 12 << 20);
    }

    #[test]
    fn shares_that_move_end_up_equal() {
        let whole = MemoryBudget::new(64 << 20);
        let shares = [whole.share(), whole.share(), whole.share()];
        shares.iter().for_each(|share| share.set_moving(true));
        let mut held = shares.each_ref().map(|share| share.reservation());
        assert!(held[0].resize(usize::MAX) >= 63 << 20);
        for _ in 0..1000 {
            for reservation in &mut held {
                // What is delivered is given back; whoever holds more gives more.
                reservation.shrink(reservation.bytes() / 16);
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
    fn a_refusal_is_remembered_once() {
        let whole = MemoryBudget::new(4 << 20);
        let share = whole.share();
        assert!(!share.reservation().try_grow(4 << 20));
        assert!(share.take_refused());
        assert!(!share.take_refused());
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

    #[test]
    fn the_tightest_cgroup_counts_whatever_its_version() {
        let limit = |groups: &str, files: &[(&str, &str)]| {
            cgroup_limit(groups, |path| {
                let file = files.iter().find(|(name, _)| *name == path)?;
                Some(format!("{}\n", file.1))
            })
        };
        let v2 = "0::/system.slice/hy2.service\n";
        let own = "/sys/fs/cgroup/system.slice/hy2.service/memory.max";
        let above = "/sys/fs/cgroup/system.slice/memory.max";
        assert_eq!(limit(v2, &[(own, "max")]), None);
        assert_eq!(limit(v2, &[(own, "500"), (above, "max")]), Some(500));
        assert_eq!(limit(v2, &[(own, "max"), (above, "400")]), Some(400));
        // A container that sees the host's path and its own files.
        assert_eq!(
            limit(v2, &[("/sys/fs/cgroup/memory.max", "300")]),
            Some(300)
        );

        let v1 = "4:memory:/docker/1f\n3:cpu,cpuacct:/docker/1f\n0::/docker/1f\n";
        let unlimited = "9223372036854771712";
        let own = "/sys/fs/cgroup/memory/docker/1f/memory.limit_in_bytes";
        let root = "/sys/fs/cgroup/memory/memory.limit_in_bytes";
        assert_eq!(
            limit(v1, &[(own, "268435456"), (root, unlimited)]),
            Some(256 << 20)
        );
        assert_eq!(limit(v1, &[(root, "200")]), Some(200));
        assert_eq!(limit("nonsense\n", &[(root, "200")]), None);
    }
}
