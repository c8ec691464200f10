//! Slices of quotas, and places for devices, that the master lent to this node.
//!
//! A slice is an interval on the user's own byte counter: it begins where the slice before ended
//! and is as long as what was granted. So how much of it is used follows from the counter alone,
//! also after a kill, and no bookkeeping has to be kept in step. A user moves nothing beyond the
//! end of the last slice, with or without a master.

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    path::Path,
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
    files::{self, Content, Pair},
    traffic::NoCut,
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
    /// Whether the master knows that the rest came back, or nobody is owed it.
    #[prost(bool, tag = "8")]
    settled: bool,
    /// Whether it ended before a byte of it was used.
    #[prost(bool, tag = "9")]
    unused: bool,
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
    /// The master's epoch that they are of; 0: not known.
    #[prost(uint64, tag = "3")]
    epoch: u64,
}

impl Slice {
    /// Raw bytes that it is good for.
    fn length(&self) -> u64 {
        if self.unused {
            return 0;
        }
        let raw = u128::from(self.granted) * u128::from(MULTIPLIER_ONE)
            / u128::from(self.multiplier.max(1));
        u64::try_from(raw).unwrap_or(u64::MAX)
    }

    /// Where it would end by itself.
    fn full_end(&self) -> u64 {
        self.start.saturating_add(self.length())
    }

    fn end(&self) -> u64 {
        let end = self.full_end();
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

    /// Ends it where the counter stands; returns what goes back of it.
    fn end_at(&mut self, total: u64) -> Option<LeaseWant> {
        // An end of 0 means none; a slice that begins there has nothing to give either way.
        let first = self.start.max(1);
        self.ended = total.clamp(first, self.full_end().max(first));
        self.unused = total <= self.start;
        self.owed()
    }

    /// What goes back of a slice that has ended, until the master knows.
    fn owed(&self) -> Option<LeaseWant> {
        if self.ended == 0 || self.settled {
            return None;
        }
        let used = self.billed(self.end());
        let rest = self.granted.saturating_sub(used);
        (rest > 0).then_some(LeaseWant {
            user_id: self.user,
            lease_id: self.lease,
            remaining_bytes: rest,
            release: true,
            used_bytes: Some(used),
        })
    }
}

/// Everything that is lent to this node.
#[derive(Debug)]
pub(crate) struct Leases {
    clock: Arc<dyn Clock>,
    inner: Mutex<Inner>,
    /// See [`Self::not_kept`].
    unkept: Mutex<Option<String>>,
    /// There is something to ask for.
    pub(crate) wanted: Notify,
    /// Changes with every answer.
    answered: watch::Sender<u64>,
    /// Whether somebody can be asked.
    online: AtomicBool,
    /// Whether cuts take everything, see [`Self::finish`].
    finished: AtomicBool,
}

#[derive(Debug)]
struct Inner {
    file: Pair,
    /// The master's epoch that everything here is of; 0: not known.
    epoch: u64,
    /// Ascending by start.
    slices: HashMap<u64, Vec<Slice>>,
    places: HashMap<u64, Places>,
    wants: HashSet<u64>,
    /// Whose wants are with the master.
    asked: HashSet<u64>,
    device_wants: HashMap<u64, DeviceWant>,
    /// Rests of slices that go back.
    releases: Vec<LeaseWant>,
    /// Leases that were taken back and never came here, until the master knows.
    unheard: BTreeSet<u64>,
    /// Those of them that are not among the releases yet.
    unsaid: Vec<u64>,
    /// Users who have nothing left to grant; asked again only when they come back.
    exhausted: HashSet<u64>,
}

/// Most bytes beyond an allowance while the master is asked: 100 Mbit/s for 20 ms.
const SLACK_MAX: u64 = 256 << 10;

/// How long before the end of a slice's time more is asked for, so that a master that is away just then cuts nobody.
const PROLONGED_MS: u64 = 86_400_000;

/// How long before their end places in use are asked for again. They are lent for 15 minutes.
const PLACES_RENEWED_MS: u64 = 5 * 60_000;

/// A user's counter, as far as slices are concerned.
pub(crate) trait Counters {
    /// Returns the user's bytes both ways.
    fn total(&self, user: u64) -> u64;

    /// Returns how many of them were cut.
    fn spooled(&self, user: u64) -> u64;
}

impl Inner {
    fn new(file: Pair) -> Self {
        Self {
            file,
            epoch: 0,
            slices: HashMap::new(),
            places: HashMap::new(),
            wants: HashSet::new(),
            asked: HashSet::new(),
            device_wants: HashMap::new(),
            releases: Vec::new(),
            unheard: BTreeSet::new(),
            unsaid: Vec::new(),
            exhausted: HashSet::new(),
        }
    }
}

/// What an answer of the master changes.
struct Lent {
    /// Of those whom it concerns.
    slices: Vec<(u64, Vec<Slice>)>,
    releases: Vec<LeaseWant>,
    unheard: BTreeSet<u64>,
    unsaid: Vec<u64>,
}

impl Inner {
    fn lent(&self, response: &LeaseResponse) -> Lent {
        let users: BTreeSet<u64> = response.quotas.iter().map(|quota| quota.user_id).collect();
        let slices = users.into_iter().map(|user| {
            let slices = self.slices.get(&user).cloned().unwrap_or_default();
            (user, slices)
        });
        Lent {
            slices: slices.collect(),
            releases: self.releases.clone(),
            unheard: self.unheard.clone(),
            unsaid: self.unsaid.clone(),
        }
    }

    fn undo(&mut self, before: Lent) {
        self.slices.extend(before.slices);
        self.releases = before.releases;
        self.unheard = before.unheard;
        self.unsaid = before.unsaid;
    }
}

impl Leases {
    /// Reads what was lent from `folder`.
    pub(crate) fn open(folder: &Path, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let path = folder.join("leases");
        let (file, content) = Pair::open(&path)?;
        let mut inner = Inner::new(file);
        let stored = match content {
            Content::Whole(bytes) => Some(Stored::decode(&*bytes).map_err(|_| ())),
            Content::Damaged => Some(Err(())),
            // As versions before 28 November 2026 kept them.
            Content::None => {
                let bytes = files::read(&path)?;
                if let Some(bytes) = &bytes
                    && inner.file.write(bytes).is_ok()
                {
                    std::fs::remove_file(&path)?;
                }
                bytes.map(|bytes| Stored::decode(&*bytes).map_err(|_| ()))
            }
        };
        if let Some(stored) = stored {
            match stored {
                Ok(stored) => {
                    inner.epoch = stored.epoch;
                    for slice in stored.slices {
                        inner.releases.extend(slice.owed());
                        inner.slices.entry(slice.user).or_default().push(slice);
                    }
                    let places = stored.places.into_iter();
                    inner.places = places.map(|places| (places.user, places)).collect();
                }
                // The master debits them until the spool has come or somebody gives them up.
                Err(()) => tracing::error!("damaged lease files are not used"),
            }
        }
        Ok(Self {
            clock,
            inner: Mutex::new(inner),
            unkept: Mutex::default(),
            wanted: Notify::new(),
            answered: watch::Sender::new(0),
            online: AtomicBool::new(false),
            finished: AtomicBool::new(false),
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

    /// When something of a user's runs out next, or should be prolonged before that.
    pub(crate) fn due(&self, user: u64) -> Option<u64> {
        let now = unix_ms(self.clock.now());
        let inner = self.inner.lock();
        let slices = inner.slices.get(&user).into_iter().flatten();
        slices
            .filter(|slice| slice.ended == 0)
            .flat_map(|slice| {
                [
                    slice.expires_ms.saturating_sub(PROLONGED_MS),
                    slice.expires_ms,
                ]
            })
            .filter(|at| *at > now)
            .min()
    }

    /// Whether something is left of a slice that has not ended, at a counter that says `total`.
    pub(crate) fn has_rest(&self, user: u64, total: u64) -> bool {
        let inner = self.inner.lock();
        let mut slices = inner.slices.get(&user).into_iter().flatten();
        slices.any(|slice| slice.ended == 0 && slice.end() > total)
    }

    /// Whether the slice in hand runs out soon.
    pub(crate) fn is_ending(&self, user: u64) -> bool {
        let soon = unix_ms(self.clock.now()) + PROLONGED_MS;
        let inner = self.inner.lock();
        let last = inner.slices.get(&user).and_then(|slices| slices.last());
        last.is_some_and(|slice| slice.ended == 0 && expired(slice.expires_ms, soon))
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

    /// Gives back the places of a user who is gone. On disk they may stay until the answer is there: nobody looks at those
    /// of users who are not here.
    pub(crate) fn release_places(&self, user: u64) {
        let mut inner = self.inner.lock();
        let places = inner.places.remove(&user);
        inner.device_wants.remove(&user);
        if places.is_none_or(|places| places.slots == 0) {
            return;
        }
        let nothing = DeviceWant {
            user_id: user,
            in_use: 0,
            wanted: 0,
        };
        inner.device_wants.insert(user, nothing);
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

    /// Whether the master is being asked for a slice, or will be next.
    pub(crate) fn is_awaited(&self, user: u64) -> bool {
        let inner = self.inner.lock();
        inner.wants.contains(&user) || inner.asked.contains(&user)
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
        self.tell();
    }

    /// Lets cuts take everything from now on: the node ends, and no later cut would have what
    /// waits for a slice.
    pub(crate) fn finish(&self) {
        self.finished.store(true, Relaxed);
    }

    pub(crate) fn is_online(&self) -> bool {
        self.online.load(Relaxed)
    }

    /// Tells who waits that there was an answer and that what came of it can be seen.
    pub(crate) fn tell(&self) {
        self.answered.send_modify(|version| *version += 1);
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
            releases.extend(slice.end_at(total));
            changed = true;
        }
        if changed {
            self.keep(&mut inner);
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
                used_bytes: None,
            }
        });
        Some(LeaseRequest {
            // What comes back first can be lent again.
            quotas: releases.into_iter().chain(quotas).collect(),
            devices,
        })
    }

    /// As [`Self::request`], for the way to the master.
    pub(crate) fn ask(self: &Arc<Self>, counters: &dyn Counters) -> Option<Asked> {
        let request = self.request(counters)?;
        Some(Asked {
            leases: Arc::clone(self),
            request: Some(request),
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
        // A restore of the master may have been seen since: it is owed nothing of before.
        let Inner {
            slices,
            releases: waiting,
            unheard,
            ..
        } = &mut *inner;
        waiting.extend(releases.into_iter().filter(|want| {
            let mut slices = slices.get(&want.user_id).into_iter().flatten();
            slices.any(|slice| slice.lease == want.lease_id && !slice.settled)
                || (want.user_id == 0 && unheard.contains(&want.lease_id))
        }));
        for want in request.devices {
            inner.device_wants.entry(want.user_id).or_insert(want);
        }
        self.wanted.notify_one();
    }

    /// Notes that these users' wants were answered, with something or with nothing: a cut between
    /// the answer and this would not know which.
    pub(crate) fn settle(&self, users: &[u64], _: &NoCut<'_>) {
        let mut inner = self.inner.lock();
        for user in users {
            inner.asked.remove(user);
        }
    }

    /// Notes that the master knows what came back.
    pub(crate) fn released(&self, request: &LeaseRequest) {
        let back = request.quotas.iter().filter(|want| want.release);
        let mut inner = self.inner.lock();
        let mut changed = false;
        for want in back {
            let slices = inner.slices.get_mut(&want.user_id).into_iter().flatten();
            for slice in slices.filter(|slice| slice.lease == want.lease_id) {
                slice.settled = true;
                changed = true;
            }
            if want.user_id == 0 {
                inner.unheard.remove(&want.lease_id);
            }
        }
        if changed {
            self.keep(&mut inner);
        }
    }

    /// Goes over to an epoch of the master. After a restore it does not know what it lent last, and lends anew: every slice
    /// ends, nothing goes back. Returns whether that was so.
    pub(crate) fn enter_epoch(&self, epoch: u64, counters: &dyn Counters) -> bool {
        let mut inner = self.inner.lock();
        let before = std::mem::replace(&mut inner.epoch, epoch);
        if before == epoch {
            return false;
        }
        let restored = before != 0;
        if restored {
            for slice in inner.slices.values_mut().flatten() {
                if slice.ended == 0 {
                    slice.end_at(counters.total(slice.user));
                }
                slice.settled = true;
            }
            inner.releases.clear();
            inner.unheard.clear();
            inner.unsaid.clear();
            inner.places.clear();
            inner.exhausted.clear();
        }
        self.keep(&mut inner);
        restored
    }

    /// Takes what the master granted and returns whom it concerns. A new slice begins where the
    /// last cut ended, so nothing may be cut meanwhile. Blocks on the disk.
    ///
    /// A slice that cannot be kept there is not taken: after a restart nobody would know what was used of it, and the master
    /// would lend it again. Then [`Self::not_kept`] says why.
    pub(crate) fn grant(
        &self,
        response: &LeaseResponse,
        counters: &dyn Counters,
        _: &NoCut<'_>,
    ) -> BTreeSet<u64> {
        let now = unix_ms(self.clock.now());
        let mut concerned = BTreeSet::new();
        let mut inner = self.inner.lock();
        let before = (!response.quotas.is_empty()).then(|| inner.lent(response));
        for quota in &response.quotas {
            let total = counters.total(quota.user_id);
            let expires_ms = moment(quota.expires_at.as_ref()).map_or(0, unix_ms);
            let Inner {
                slices,
                releases,
                unheard,
                unsaid,
                wants,
                ..
            } = &mut *inner;
            let slices = slices.entry(quota.user_id).or_default();
            let over = slices.iter_mut().filter(|slice| {
                let is_over = slice.ended == 0 && expired(slice.expires_ms, now);
                is_over && slice.lease != quota.lease_id
            });
            for slice in over {
                if let Some(rest) = slice.end_at(total) {
                    releases.push(rest);
                    self.wanted.notify_one();
                }
            }
            close_up(slices, total);
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
                        _ => open_end(slices).max(total),
                    };
                    let mut slice = Slice {
                        lease: quota.lease_id,
                        user: quota.user_id,
                        start,
                        granted: quota.granted_bytes,
                        multiplier: quota.billing_multiplier,
                        expires_ms,
                        ended: 0,
                        settled: false,
                        unused: false,
                    };
                    if unheard.remove(&quota.lease_id) {
                        // Taken back before it came: it goes back, and another is asked for.
                        releases.retain(|want| want.lease_id != quota.lease_id);
                        unsaid.retain(|lease| *lease != quota.lease_id);
                        releases.extend(slice.end_at(total));
                        wants.insert(quota.user_id);
                        self.wanted.notify_one();
                    }
                    slices.push(slice);
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
        if !self.keep(&mut inner)
            && let Some(before) = before
        {
            inner.undo(before);
        }
        concerned
    }

    /// Ends slices that the master takes back and returns whom it concerns. What is left of them goes back with the
    /// next request: only this node knows how much that is. Of one that never came here nothing was used; that is said
    /// once [`Self::delivered`], because a slice whose use waits in the spool may be forgotten here.
    pub(crate) fn recall(&self, leases: &[u64], counters: &dyn Counters) -> BTreeSet<u64> {
        let mut concerned = BTreeSet::new();
        let mut inner = self.inner.lock();
        let Inner {
            slices,
            releases,
            unheard,
            unsaid,
            ..
        } = &mut *inner;
        let named: BTreeSet<u64> = leases.iter().copied().collect();
        let mut unknown = named.clone();
        for (user, slices) in slices {
            let mut back: Vec<_> = slices
                .iter_mut()
                .filter(|slice| named.contains(&slice.lease))
                .collect();
            for slice in &back {
                unknown.remove(&slice.lease);
            }
            back.retain(|slice| slice.ended == 0);
            if back.is_empty() {
                continue;
            }
            let total = counters.total(*user);
            for slice in back {
                releases.extend(slice.end_at(total));
            }
            close_up(slices, total);
            concerned.insert(*user);
        }
        unsaid.extend(unknown.into_iter().filter(|lease| unheard.insert(*lease)));
        self.keep(&mut inner);
        self.wanted.notify_one();
        concerned
    }

    /// Notes that the master has everything that was cut before this: what was taken back and is
    /// not here was not used beyond that.
    pub(crate) fn delivered(&self) {
        let mut inner = self.inner.lock();
        let unsaid = std::mem::take(&mut inner.unsaid);
        if unsaid.is_empty() {
            return;
        }
        inner.releases.extend(unsaid.into_iter().map(|lease_id| {
            // Whose it is, the master knows.
            LeaseWant {
                user_id: 0,
                lease_id,
                remaining_bytes: 0,
                release: true,
                used_bytes: Some(0),
            }
        }));
        self.wanted.notify_one();
    }

    /// Forgets slices that are used up and whose use is in the spool, once the master knows what came back of them.
    pub(crate) fn prune(&self, spooled: impl Fn(u64) -> u64) {
        let mut inner = self.inner.lock();
        for (user, slices) in &mut inner.slices {
            let done = spooled(*user);
            while slices.len() > 1 && slices[0].end() <= done && slices[0].owed().is_none() {
                slices.remove(0);
            }
        }
    }

    /// Writes everything in place; returns whether that was possible.
    fn keep(&self, inner: &mut Inner) -> bool {
        let stored = Stored {
            slices: inner.slices.values().flatten().cloned().collect(),
            places: inner.places.values().cloned().collect(),
            epoch: inner.epoch,
        };
        let failed = inner.file.write(&stored.encode_to_vec()).err();
        if let Some(error) = &failed {
            tracing::warn!(%error, "leases not kept on disk");
        }
        let mut unkept = self.unkept.lock();
        *unkept = failed.map(|error| error.to_string());
        unkept.is_none()
    }

    /// Why the last change is not on the disk, if it is not.
    pub(crate) fn not_kept(&self) -> Option<String> {
        self.unkept.lock().clone()
    }
}

impl Intervals for Leases {
    fn complete(&self, user: u64, total: u64) -> u64 {
        let now = unix_ms(self.clock.now());
        let inner = self.inner.lock();
        let awaited = inner.wants.contains(&user) || inner.asked.contains(&user);
        let is_last = self.finished.load(Relaxed) || !self.is_online();
        if !awaited || is_last || inner.exhausted.contains(&user) {
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

/// A request on its way. Where it is dropped without an answer, as by the end of a session, it is put back.
#[derive(Debug)]
pub(crate) struct Asked {
    leases: Arc<Leases>,
    request: Option<LeaseRequest>,
}

impl Asked {
    /// Returns what the master is asked.
    pub(crate) fn request(&self) -> LeaseRequest {
        self.request.clone().unwrap_or_default()
    }

    /// Notes that the master has answered, and returns what it was asked.
    pub(crate) fn answered(mut self) -> LeaseRequest {
        self.request.take().unwrap_or_default()
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            self.leases.again(request);
        }
    }
}

/// Returns where the last of the slices that have not ended ends; 0 without one.
fn open_end(slices: &[Slice]) -> u64 {
    let open = slices.iter().filter(|slice| slice.ended == 0);
    open.map(Slice::end).max().unwrap_or(0)
}

/// Lets slices that nothing was used of begin where those before end, of which some may have ended short of it: what lies
/// between is lent to nobody.
fn close_up(slices: &mut [Slice], total: u64) {
    let mut end = total;
    for slice in slices.iter_mut().filter(|slice| slice.ended == 0) {
        slice.start = slice.start.min(end);
        end = end.max(slice.end());
    }
}

/// Users of each kind in one request.
const WANTS_MAX: usize = 500;

/// 0 never runs out.
fn expired(expires_ms: u64, now: u64) -> bool {
    expires_ms != 0 && expires_ms <= now
}
