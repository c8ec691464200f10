//! Leases, for the fuzz targets.

use std::time::Duration;

use super::*;
use crate::clock::{ManualClock, from_unix_ms};

/// What is lent to a node whose date is moved by hand. Counters stand where each call says, for
/// all users alike.
#[derive(Debug)]
pub struct Loans {
    leases: Leases,
    clock: Arc<ManualClock>,
}

struct At(u64);

impl Counters for At {
    fn total(&self, _: u64) -> u64 {
        self.0
    }

    fn spooled(&self, _: u64) -> u64 {
        0
    }
}

impl Loans {
    /// Opens what is lent in `folder`, at a date.
    ///
    /// # Errors
    ///
    /// Those of the disk.
    pub fn open(folder: &Path, now_ms: u64) -> io::Result<Self> {
        let clock = Arc::new(ManualClock::new(from_unix_ms(now_ms)));
        let leases = Leases::open(folder, Arc::clone(&clock) as Arc<dyn Clock>)?;
        Ok(Self { leases, clock })
    }

    /// Moves the date.
    pub fn advance(&self, ms: u64) {
        self.clock.advance(Duration::from_millis(ms));
    }

    /// See `Leases::set_online`.
    pub fn set_online(&self, online: bool) {
        self.leases.set_online(online);
    }

    /// See `Leases::allowance`.
    pub fn allowance(&self, user: u64) -> u64 {
        self.leases.allowance(user)
    }

    /// Slack, the counter to renew at, when something is due, places and when they are due.
    pub fn figures(&self, user: u64) -> (u64, u64, Option<u64>, u32, Option<u64>) {
        let leases = &self.leases;
        (
            leases.slack(user),
            leases.renew_at(user),
            leases.due(user),
            leases.places(user),
            leases.places_due(user),
        )
    }

    /// See `Leases::used`.
    pub fn used(&self, user: u64, from: u64, to: u64) -> Vec<LeaseUse> {
        self.leases.used(user, from, to)
    }

    /// See `Leases::want` and `Leases::want_places`.
    pub fn want(&self, user: u64, places: u32) {
        self.leases.want(user);
        self.leases.want_places(user, places, places);
    }

    /// See `Leases::request`.
    pub fn request(&self, total: u64) -> Option<LeaseRequest> {
        self.leases.request(&At(total))
    }

    /// See `Leases::again`.
    pub fn again(&self, request: LeaseRequest) {
        self.leases.again(request);
    }

    /// See `Leases::released`.
    pub fn released(&self, request: &LeaseRequest) {
        self.leases.released(request);
    }

    /// See `Leases::delivered`.
    pub fn delivered(&self) {
        self.leases.delivered();
    }

    /// See `Leases::enter_epoch`.
    pub fn enter_epoch(&self, epoch: u64, total: u64) -> bool {
        self.leases.enter_epoch(epoch, &At(total))
    }

    /// Returns which leases there are slices of.
    pub fn held(&self) -> BTreeSet<u64> {
        let inner = self.leases.inner.lock();
        let slices = inner.slices.values().flatten();
        slices.map(|slice| slice.lease).collect()
    }

    /// See `Leases::grant`.
    pub fn grant(&self, response: &LeaseResponse, total: u64) {
        self.leases.grant(response, &At(total), &NoCut::NO_COUNTERS);
    }

    /// See `Leases::recall`.
    pub fn recall(&self, leases: &[u64], total: u64) {
        self.leases.recall(leases, &At(total));
    }

    /// See `Leases::release`.
    pub fn release(&self, user: u64, total: u64) {
        self.leases.release(user, total);
    }

    /// See `Leases::prune`.
    pub fn prune(&self, spooled: u64) {
        self.leases.prune(|_| spooled);
    }
}
