//! Slices of quotas, and places for devices, that the master lent to this node.
//!
//! A slice is an interval on the user's own byte counter: it begins where the slice before ended
//! and is as long as what was granted. So how much of it is used follows from the counter alone,
//! also after a kill, and no bookkeeping has to be kept in step. A user moves nothing beyond the
//! end of the last slice, with or without a master.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use hy2_proto::control::{
    MULTIPLIER_ONE,
    rpc::{DeviceWant, LeaseRequest, LeaseResponse, LeaseUse, LeaseWant},
};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{Notify, watch};

use crate::{
    clock::{Clock, moment, unix_ms},
    files,
};

/// Which slices a stretch of a user's counter came out of.
pub(crate) trait Intervals {
    /// Returns up to where a user's counter, which says `total`, may be cut: what went over the end
    /// of a slice while more is asked for waits for the slice that it will come out of.
    fn complete(&self, user: u64, total: u64) -> u64;

    /// Splits the bytes from `from` to `to` of a user's counter by slice, in billed bytes.
    fn used(&self, user: u64, from: u64, to: u64) -> Vec<LeaseUse>;
}

/// One slice, as it is on disk.
#[derive(Clone, PartialEq, Message)]
struct Slice {
    #[prost(uint64, tag = "1")]
    lease: u64,
    #[prost(uint64, tag = "2")]
    user: u64,
    /// Counter at which it begins.
    #[prost(uint64, tag = "3")]
    start: u64,
    #[prost(uint64, tag = "4")]
    granted: u64,
    #[prost(uint64, tag = "5")]
    multiplier: u64,
    #[prost(uint64, tag = "6")]
    expires_ms: u64,
    /// Counter at which it was taken back or ran out; 0: it was not.
    #[prost(uint64, tag = "7")]
    ended: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Places {
    #[prost(uint64, tag = "1")]
    user: u64,
    #[prost(uint32, tag = "2")]
    slots: u32,
    #[prost(uint64, tag = "3")]
    expires_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(message, repeated, tag = "1")]
    slices: Vec<Slice>,
    #[prost(message, repeated, tag = "2")]
    places: Vec<Places>,
}

impl Slice {
    /// Raw bytes that it is good for.
    fn length(&self) -> u64 {
        let raw = u128::from(self.granted) * u128::from(MULTIPLIER_ONE)
            / u128::from(self.multiplier.max(1));
        u64::try_from(raw).unwrap_or(u64::MAX)
    }

    fn end(&self) -> u64 {
        let end = self.start.saturating_add(self.length());
        if self.ended == 0 {
            end
        } else {
            // A file may say that it ended before it began.
            end.min(self.ended).max(self.start)
        }
    }

    /// Billed bytes up to a place of the counter. Rounded once from the start on, so that parts
    /// add up.
    fn billed(&self, at: u64) -> u64 {
        let raw = at.clamp(self.start, self.end()) - self.start;
        let billed = u128::from(raw) * u128::from(self.multiplier) / u128::from(MULTIPLIER_ONE);
        u64::try_from(billed).unwrap_or(u64::MAX)
    }
}

/// Everything that is lent to this node.
#[derive(Debug)]
pub(crate) struct Leases {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    inner: Mutex<Inner>,
    /// There is something to ask for.
    pub(crate) wanted: Notify,
    /// Changes with every answer.
    answered: watch::Sender<u64>,
    /// Whether somebody can be asked.
    online: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    /// Ascending by start.
    slices: HashMap<u64, Vec<Slice>>,
    places: HashMap<u64, Places>,
    wants: HashSet<u64>,
    /// Whose wants are with the master.
    asked: HashSet<u64>,
    device_wants: HashMap<u64, DeviceWant>,
    /// Rests of slices that go back.
    releases: Vec<LeaseWant>,
    /// Users who have nothing left to grant; asked again only when they come back.
    exhausted: HashSet<u64>,
}

/// Most bytes beyond an allowance while the master is asked: 100 Mbit/s for 20 ms.
const SLACK_MAX: u64 = 256 << 10;

/// How long before their end places in use are asked for again. They are lent for 15 minutes.
const PLACES_RENEWED_MS: u64 = 5 * 60_000;

/// A user's counter, as far as slices are concerned.
pub(crate) trait Counters {
    /// Returns the user's bytes both ways.
    fn total(&self, user: u64) -> u64;

    /// Returns how many of them were cut.
    fn spooled(&self, user: u64) -> u64;
}

impl Leases {
    /// Reads what was lent from `folder`.
    pub(crate) fn open(folder: &Path, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let path = folder.join("leases");
        let mut inner = Inner::default();
        if let Some(bytes) = files::read(&path)? {
            match Stored::decode(&*bytes) {
                Ok(stored) => {
                    for slice in stored.slices {
                        inner.slices.entry(slice.user).or_default().push(slice);
                    }
                    let places = stored.places.into_iter();
                    inner.places = places.map(|places| (places.user, places)).collect();
                }
                // The master debits them until the spool has come or somebody gives them up.
                Err(error) => tracing::error!(%error, "damaged lease file is not used"),
            }
        }
        Ok(Self {
            path,
            clock,
            inner: Mutex::new(inner),
            wanted: Notify::new(),
            answered: watch::Sender::new(0),
            online: AtomicBool::new(false),
        })
    }

    /// Returns the counter up to which a user may go; 0 without a slice.
    pub(crate) fn allowance(&self, user: u64) -> u64 {
        let now = unix_ms(self.clock.now());
        let inner = self.inner.lock();
        let slices = inner.slices.get(&user).into_iter().flatten();
        slices
            .filter(|slice| slice.ended == 0 && !expired(slice.expires_ms, now))
            .map(Slice::end)
            .max()
            .unwrap_or(0)
    }

    /// Returns how far beyond the allowance a user may go while the master is asked for more, so
    /// that a fast transfer need not be cut for the time of an answer. None without anybody to
    /// ask, and when the answer is known.
    pub(crate) fn slack(&self, user: u64) -> u64 {
        let inner = self.inner.lock();
        if !self.is_online() || inner.exhausted.contains(&user) {
            return 0;
        }
        let last = inner.slices.get(&user).and_then(|slices| slices.last());
        last.filter(|slice| slice.ended == 0)
            .map_or(0, |slice| (slice.length() / 4).min(SLACK_MAX))
    }

    /// Returns the counter at which the next slice should be asked for.
    pub(crate) fn renew_at(&self, user: u64) -> u64 {
        let inner = self.inner.lock();
        let last = inner.slices.get(&user).and_then(|slices| slices.last());
        last.map_or(0, |slice| slice.end() - (slice.end() - slice.start) / 2)
    }

    /// When something of a user's runs out next.
    pub(crate) fn due(&self, user: u64) -> Option<u64> {
        let now = unix_ms(self.clock.now());
        let inner = self.inner.lock();
        let slices = inner.slices.get(&user).into_iter().flatten();
        slices
            .map(|slice| slice.expires_ms)
            .filter(|at| *at > now)
            .min()
    }

    /// Asks for a slice, soon.
    pub(crate) fn want(&self, user: u64) {
        let mut inner = self.inner.lock();
        inner.exhausted.remove(&user);
        if inner.wants.insert(user) {
            self.wanted.notify_one();
        }
    }

    /// Asks for places, soon.
    pub(crate) fn want_places(&self, user: u64, in_use: u32, wanted: u32) {
        let want = DeviceWant {
            user_id: user,
            in_use,
            wanted,
        };
        self.inner.lock().device_wants.insert(user, want);
        self.wanted.notify_one();
    }

    /// Returns how many devices a user may have here; 0 without a lease. What was lent stays good
    /// past its end while no master can be asked: users come in without one.
    pub(crate) fn places(&self, user: u64) -> u32 {
        let now = unix_ms(self.clock.now());
        let inner = self.inner.lock();
        let places = inner.places.get(&user);
        places.map_or(0, |places| {
            if expired(places.expires_ms, now) && self.is_online() {
                0
            } else {
                places.slots
            }
        })
    }

    /// When the places of a user should be asked for again, while they are in use.
    pub(crate) fn places_due(&self, user: u64) -> Option<u64> {
        let inner = self.inner.lock();
        let places = inner.places.get(&user).filter(|places| places.slots > 0)?;
        Some(places.expires_ms.saturating_sub(PLACES_RENEWED_MS))
    }

    pub(crate) fn is_exhausted(&self, user: u64) -> bool {
        self.inner.lock().exhausted.contains(&user)
    }

    /// Notes whether somebody can be asked.
    pub(crate) fn set_online(&self, online: bool) {
        self.online.store(online, Relaxed);
        if online {
            self.wanted.notify_one();
        }
        self.answered.send_modify(|version| *version += 1);
    }

    pub(crate) fn is_online(&self) -> bool {
        self.online.load(Relaxed)
    }

    /// Returns what tells of every answer.
    pub(crate) fn answers(&self) -> watch::Receiver<u64> {
        self.answered.subscribe()
    }

    /// Gives back what is left of a user's slices, because the user is gone. The user must not be
    /// connected.
    pub(crate) fn release(&self, user: u64, total: u64) {
        let mut inner = self.inner.lock();
        let Inner {
            slices, releases, ..
        } = &mut *inner;
        let open = slices.get_mut(&user).into_iter().flatten();
        let mut changed = false;
        for slice in open.filter(|slice| slice.ended == 0 && slice.end() > total) {
            releases.push(LeaseWant {
                user_id: user,
                lease_id: slice.lease,
                remaining_bytes: slice.billed(slice.end()) - slice.billed(total),
                release: true,
            });
            // An end of 0 means none; a slice that begins there has nothing to give either way.
            slice.ended = total.max(slice.start).max(1);
            changed = true;
        }
        if changed {
            self.keep(&inner);
            self.wanted.notify_one();
        }
    }

    /// Takes what is to be asked for, so much as fits one request; `None` when nothing is.
    pub(crate) fn request(&self, counters: &dyn Counters) -> Option<LeaseRequest> {
        let mut inner = self.inner.lock();
        let wants: Vec<u64> = inner.wants.iter().copied().take(WANTS_MAX).collect();
        for user in &wants {
            inner.wants.remove(user);
        }
        inner.asked.extend(&wants);
        let places: Vec<u64> = inner.device_wants.keys().copied().take(WANTS_MAX).collect();
        let devices: Vec<_> = places
            .iter()
            .filter_map(|user| inner.device_wants.remove(user))
            .collect();
        let kept = inner.releases.len().saturating_sub(WANTS_MAX);
        let releases = inner.releases.split_off(kept);
        if wants.is_empty() && devices.is_empty() && releases.is_empty() {
            return None;
        }
        let quotas = wants.into_iter().map(|user| {
            let last = inner.slices.get(&user).and_then(|slices| slices.last());
            LeaseWant {
                user_id: user,
                lease_id: last.map_or(0, |slice| slice.lease),
                remaining_bytes: last.map_or(0, |slice| {
                    slice.billed(slice.end()) - slice.billed(counters.total(user))
                }),
                release: false,
            }
        });
        Some(LeaseRequest {
            quotas: quotas.chain(releases).collect(),
            devices,
        })
    }

    /// Puts back what could not be asked.
    pub(crate) fn again(&self, request: LeaseRequest) {
        let mut inner = self.inner.lock();
        let (releases, wants): (Vec<_>, Vec<_>) =
            request.quotas.into_iter().partition(|want| want.release);
        for want in &wants {
            inner.asked.remove(&want.user_id);
            inner.wants.insert(want.user_id);
        }
        inner.releases.extend(releases);
        for want in request.devices {
            inner.device_wants.entry(want.user_id).or_insert(want);
        }
    }

    /// Notes that these users' wants were answered, with something or with nothing.
    pub(crate) fn settle(&self, users: &[u64]) {
        let mut inner = self.inner.lock();
        for user in users {
            inner.asked.remove(user);
        }
    }

    /// Takes what the master granted and returns whom it concerns. Nothing may be cut meanwhile:
    /// see [`Traffic::between_cuts`](crate::traffic::Traffic::between_cuts). Blocks on the disk.
    pub(crate) fn grant(&self, response: &LeaseResponse, counters: &dyn Counters) -> BTreeSet<u64> {
        let now = unix_ms(self.clock.now());
        let mut concerned = BTreeSet::new();
        let mut inner = self.inner.lock();
        for quota in &response.quotas {
            let total = counters.total(quota.user_id);
            let expires_ms = moment(quota.expires_at.as_ref()).map_or(0, unix_ms);
            let slices = inner.slices.entry(quota.user_id).or_default();
            for slice in slices.iter_mut() {
                if slice.ended == 0 && expired(slice.expires_ms, now) {
                    let first = slice.start.saturating_add(1);
                    slice.ended = total.clamp(first, slice.end().max(first));
                }
            }
            match slices
                .iter_mut()
                .find(|slice| slice.lease == quota.lease_id)
            {
                // The same again, or longer.
                Some(known) => {
                    known.granted = known.granted.max(quota.granted_bytes);
                    known.expires_ms = expires_ms;
                }
                None => {
                    // What went over the end before counts into the next. What of it was cut was
                    // billed without a slice: in this one it would be owed for good.
                    let start = match slices.last() {
                        Some(last) if last.ended == 0 => {
                            last.end().max(counters.spooled(quota.user_id))
                        }
                        _ => total,
                    };
                    slices.push(Slice {
                        lease: quota.lease_id,
                        user: quota.user_id,
                        start,
                        granted: quota.granted_bytes,
                        multiplier: quota.billing_multiplier,
                        expires_ms,
                        ended: 0,
                    });
                }
            }
            inner.exhausted.remove(&quota.user_id);
            concerned.insert(quota.user_id);
        }
        for device in &response.devices {
            let places = Places {
                user: device.user_id,
                slots: device.slots,
                expires_ms: moment(device.expires_at.as_ref()).map_or(0, unix_ms),
            };
            inner.places.insert(device.user_id, places);
            concerned.insert(device.user_id);
        }
        for user in &response.exhausted {
            inner.exhausted.insert(*user);
            concerned.insert(*user);
        }
        self.keep(&inner);
        drop(inner);
        self.answered.send_modify(|version| *version += 1);
        concerned
    }

    /// Ends slices that the master takes back and returns whom it concerns.
    pub(crate) fn recall(&self, leases: &[u64], counters: &dyn Counters) -> BTreeSet<u64> {
        let mut concerned = BTreeSet::new();
        let mut inner = self.inner.lock();
        for slice in inner.slices.values_mut().flatten() {
            if leases.contains(&slice.lease) && slice.ended == 0 {
                // An end of 0 means none.
                let total = counters.total(slice.user).max(slice.start).max(1);
                slice.ended = total;
                concerned.insert(slice.user);
            }
        }
        self.keep(&inner);
        concerned
    }

    /// Forgets slices that are used up and whose use is in the spool.
    pub(crate) fn prune(&self, spooled: impl Fn(u64) -> u64) {
        let mut inner = self.inner.lock();
        for (user, slices) in &mut inner.slices {
            let done = spooled(*user);
            while slices.len() > 1 && slices[0].end() <= done {
                slices.remove(0);
            }
        }
    }

    fn keep(&self, inner: &Inner) {
        let stored = Stored {
            slices: inner.slices.values().flatten().cloned().collect(),
            places: inner.places.values().cloned().collect(),
        };
        // Without it on disk, a restart gives up the rest of the slices: less, never more.
        if let Err(error) = files::write_atomic(&self.path, &stored.encode_to_vec()) {
            tracing::warn!(%error, "leases not kept on disk");
        }
    }
}

impl Intervals for Leases {
    fn complete(&self, user: u64, total: u64) -> u64 {
        let now = unix_ms(self.clock.now());
        let inner = self.inner.lock();
        let awaited = inner.wants.contains(&user) || inner.asked.contains(&user);
        if !awaited || !self.is_online() || inner.exhausted.contains(&user) {
            return total;
        }
        let last = inner.slices.get(&user).and_then(|slices| slices.last());
        last.filter(|slice| slice.ended == 0 && !expired(slice.expires_ms, now))
            .map_or(total, |slice| slice.end().min(total))
    }

    fn used(&self, user: u64, from: u64, to: u64) -> Vec<LeaseUse> {
        let inner = self.inner.lock();
        let slices = inner.slices.get(&user).into_iter().flatten();
        slices
            .map(|slice| LeaseUse {
                lease_id: slice.lease,
                billed_bytes: slice.billed(to).saturating_sub(slice.billed(from)),
            })
            .filter(|used| used.billed_bytes > 0)
            .collect()
    }
}

/// Users of each kind in one request.
const WANTS_MAX: usize = 500;

/// 0 never runs out.
fn expired(expires_ms: u64, now: u64) -> bool {
    expires_ms != 0 && expires_ms <= now
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing {
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

        /// See `Leases::grant`.
        pub fn grant(&self, response: &LeaseResponse, total: u64) {
            self.leases.grant(response, &At(total));
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
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, time::Duration};

    use hy2_proto::control::rpc::QuotaLease;

    use super::*;
    use crate::clock::ManualClock;

    /// What was counted, and what of it was cut.
    struct At(Cell<u64>, Cell<u64>);

    impl At {
        fn new(total: u64) -> Self {
            Self(Cell::new(total), Cell::new(0))
        }
    }

    impl Counters for At {
        fn total(&self, _: u64) -> u64 {
            self.0.get()
        }

        fn spooled(&self, _: u64) -> u64 {
            self.1.get()
        }
    }

    fn quota(lease_id: u64, granted_bytes: u64, multiplier: u64) -> LeaseResponse {
        LeaseResponse {
            quotas: vec![QuotaLease {
                lease_id,
                user_id: 1,
                granted_bytes,
                expires_at: Some(prost_types::Timestamp {
                    seconds: 2000,
                    nanos: 0,
                }),
                billing_multiplier: multiplier,
            }],
            ..Default::default()
        }
    }

    fn open(folder: &Path) -> (Leases, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(crate::clock::from_unix_ms(1_000_000)));
        (Leases::open(folder, clock.clone()).unwrap(), clock)
    }

    #[test]
    fn slices_follow_each_other_and_uses_add_up_to_what_was_granted() {
        let folder = tempfile::tempdir().unwrap();
        let (leases, _) = open(folder.path());
        let at = At::new(500);
        assert_eq!(leases.allowance(1), 0);
        leases.grant(&quota(7, 1000, MULTIPLIER_ONE), &at);
        assert_eq!((leases.allowance(1), leases.renew_at(1)), (1500, 1000));
        at.0.set(1600);
        leases.grant(&quota(8, 3000, 3 * MULTIPLIER_ONE), &at);
        assert_eq!(leases.allowance(1), 2500);
        let mut sums = HashMap::new();
        let cuts = [500, 501, 777, 1499, 1501, 1600, 2000, 2500, 9999];
        for cut in cuts.windows(2) {
            for used in leases.used(1, cut[0], cut[1]) {
                *sums.entry(used.lease_id).or_insert(0) += used.billed_bytes;
            }
        }
        assert_eq!(sums, HashMap::from([(7, 1000), (8, 3000)]));
        // The same after a restart.
        drop(leases);
        let (leases, _) = open(folder.path());
        assert_eq!(leases.allowance(1), 2500);
        assert_eq!(
            leases.used(1, 0, 600),
            [LeaseUse {
                lease_id: 7,
                billed_bytes: 100
            }]
        );
    }

    #[test]
    fn parts_of_a_fraction_are_not_lost_to_rounding() {
        let folder = tempfile::tempdir().unwrap();
        let (leases, _) = open(folder.path());
        let at = At::new(0);
        leases.grant(&quota(1, 100, MULTIPLIER_ONE / 3), &at);
        let end = leases.allowance(1);
        let sum: u64 = (0..end)
            .flat_map(|byte| leases.used(1, byte, byte + 1))
            .map(|used| used.billed_bytes)
            .sum();
        assert!((99..=100).contains(&sum), "{sum}");
    }

    #[test]
    fn what_goes_over_the_end_waits_for_the_answer_and_is_owed_once() {
        let folder = tempfile::tempdir().unwrap();
        let (leases, _) = open(folder.path());
        let at = At::new(0);
        leases.set_online(true);
        leases.grant(&quota(1, 1000, MULTIPLIER_ONE), &at);
        assert_eq!(leases.complete(1, 1200), 1200, "nobody was asked");
        leases.want(1);
        assert_eq!(leases.complete(1, 900), 900);
        assert_eq!(leases.complete(1, 1200), 1000);
        let request = leases.request(&at).unwrap();
        assert_eq!(leases.complete(1, 1200), 1000);
        leases.set_online(false);
        assert_eq!(leases.complete(1, 1200), 1200);
        leases.set_online(true);
        leases.again(request);
        assert_eq!(leases.complete(1, 1200), 1000);
        leases.request(&at).unwrap();
        leases.settle(&[1]);
        assert_eq!(leases.complete(1, 1200), 1200, "there was no answer to it");
        // It was cut, without a slice: the next begins behind it.
        at.0.set(1300);
        at.1.set(1200);
        leases.grant(&quota(2, 1000, MULTIPLIER_ONE), &at);
        let owed = |lease_id, billed_bytes| LeaseUse {
            lease_id,
            billed_bytes,
        };
        assert_eq!(leases.used(1, 0, 1200), [owed(1, 1000)]);
        assert_eq!(leases.used(1, 1200, 9999), [owed(2, 1000)]);
    }

    #[test]
    fn what_ran_out_or_was_taken_back_is_worth_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (leases, clock) = open(folder.path());
        let at = At::new(0);
        leases.grant(&quota(1, 1000, MULTIPLIER_ONE), &at);
        at.0.set(300);
        assert_eq!(leases.recall(&[1], &at), BTreeSet::from([1]));
        assert_eq!(leases.allowance(1), 0);
        assert_eq!(
            leases.used(1, 0, 900),
            [LeaseUse {
                lease_id: 1,
                billed_bytes: 300
            }]
        );
        leases.grant(&quota(2, 1000, MULTIPLIER_ONE), &at);
        assert_eq!(leases.allowance(1), 1300);
        clock.advance(Duration::from_secs(1001));
        assert_eq!(leases.allowance(1), 0);
    }

    #[test]
    fn what_a_user_leaves_goes_back_and_counts_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let (leases, _) = open(folder.path());
        let at = At::new(100);
        leases.grant(&quota(1, 1000, 2 * MULTIPLIER_ONE), &at);
        assert_eq!(leases.allowance(1), 600);
        leases.release(1, 250);
        assert_eq!(leases.allowance(1), 0);
        let request = leases.request(&at).unwrap();
        let want = request.quotas[0];
        assert_eq!(
            (want.lease_id, want.remaining_bytes, want.release),
            (1, 700, true)
        );
        assert_eq!(leases.used(1, 0, 9999)[0].billed_bytes, 300);
        leases.again(request.clone());
        assert_eq!(leases.request(&at), Some(request));
        assert!(leases.request(&at).is_none());
    }

    #[test]
    fn a_file_with_impossible_slices_is_worth_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let slice = |start, granted, ended| Slice {
            lease: 1,
            user: 1,
            start,
            granted,
            multiplier: MULTIPLIER_ONE,
            expires_ms: 1,
            ended,
        };
        let stored = Stored {
            // Ended before it began, and begins where numbers end.
            slices: vec![slice(1000, 500, 10), slice(u64::MAX, u64::MAX, 0)],
            places: Vec::new(),
        };
        std::fs::write(folder.path().join("leases"), stored.encode_to_vec()).unwrap();
        let (leases, _) = open(folder.path());
        assert_eq!((leases.allowance(1), leases.slack(1)), (0, 0));
        assert_eq!(leases.used(1, 0, u64::MAX), []);
        assert_eq!(leases.used(1, 9, 3), [], "a counter that went back");
        let at = At::new(100);
        leases.grant(&quota(2, 1000, MULTIPLIER_ONE), &at);
        assert_eq!(leases.allowance(1), 1100);
    }

    #[test]
    fn what_is_wanted_is_asked_once_and_again_after_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let (leases, _) = open(folder.path());
        let at = At::new(0);
        assert!(leases.request(&at).is_none());
        leases.want(1);
        leases.want(1);
        leases.want_places(2, 1, 2);
        let request = leases.request(&at).unwrap();
        assert_eq!((request.quotas.len(), request.devices.len()), (1, 1));
        assert!(leases.request(&at).is_none());
        leases.again(request.clone());
        assert_eq!(leases.request(&at), Some(request));
    }
}
