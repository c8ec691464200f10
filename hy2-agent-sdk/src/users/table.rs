//! The table itself, and what changes in it do to live connections.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{
            AtomicBool, AtomicU8, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    time::{Duration, SystemTime},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use aws_lc_rs::hmac;
use hy2_core::{Bandwidth, authenticator::UserLimits};
use hy2_proto::control::rpc::{LeaseRequest, LeaseResponse, UserEntry};
use parking_lot::{Mutex, RwLock};

use crate::{
    clock::{Clock, moment, unix_ms},
    engine::Engine,
    leases::{Counters, Leases},
    ledger::{StoredUser, UserChanges},
    settings::VerifierKeys,
    traffic::{Cell, Traffic},
};

/// Whether anybody new is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doors {
    Open,
    /// Nobody new; who is in stays.
    Closed,
}

pub(super) type Verifier = [u8; 32];

/// All users of a node.
pub(crate) struct UserTable {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) leases: Arc<Leases>,
    inner: RwLock<Inner>,
    keys: ArcSwapOption<Keys>,
    doors: AtomicU8,
    engine: OnceLock<Weak<dyn Engine>>,
    pub(crate) accepted: AtomicU64,
    pub(crate) rejected: AtomicU64,
}

#[derive(Default)]
struct Inner {
    by_id: HashMap<u64, Arc<User>>,
    by_verifier: HashMap<Verifier, Arc<User>, ahash::RandomState>,
    /// When a user has to be looked at again, by the clock.
    due: BTreeSet<(u64, u64)>,
}

struct Keys {
    wanted: VerifierKeys,
    fleet: hmac::Key,
    node: hmac::Key,
}

impl Keys {
    fn verifier(&self, credential: &str) -> Verifier {
        let inner = hmac::sign(&self.fleet, credential.as_bytes());
        let outer = hmac::sign(&self.node, inner.as_ref());
        let mut verifier = [0; 32];
        verifier.copy_from_slice(outer.as_ref());
        verifier
    }
}

/// One user.
pub(crate) struct User {
    pub(crate) id: u64,
    entry: ArcSwap<Entry>,
    rate: Mutex<Option<Rate>>,
    /// Live connections: where from, since when.
    live: Mutex<BTreeMap<u64, (IpAddr, SystemTime)>>,
    /// Clients that were let in and have not come in yet, with what they showed.
    admitted: Mutex<HashMap<SocketAddr, Verifier>>,
    /// Counter up to which the user has a quota; `u64::MAX` without one.
    allowance: AtomicU64,
    /// Counter at which the user is stopped without waiting for an answer.
    limit: AtomicU64,
    /// Counter at which the next slice is asked for.
    renew_at: AtomicU64,
    /// More was asked for at the present allowance.
    asked: AtomicBool,
    /// The user was stopped at the present limit.
    stopped: AtomicBool,
    /// Since when the user is held back at the end of the allowance, while more is asked for.
    held: Mutex<Option<u64>>,
    /// Since when nobody is connected, by the clock; `u64::MAX` while somebody is, or nothing was lent yet.
    idle_since: AtomicU64,
}

/// After this long without a connection, what is left of a user's slices goes back, so that other
/// nodes can have it.
const IDLE_MS: u64 = 60_000;

/// How long a user is held back at the end of a slice while the master does not answer.
const HELD_MAX_MS: u64 = 10_000;

/// After this long without its device, a place goes back; a device that only connects anew finds
/// it.
const PLACES_IDLE_MS: u64 = 3_000;

/// A client that was let in. Kept as long as its connection: one that does not come in is forgotten.
pub(super) struct Admission {
    user: Arc<User>,
    remote: SocketAddr,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.user.admitted.lock().remove(&self.remote);
    }
}

/// What the desired state says of a user.
struct Entry {
    verifier: Verifier,
    limits: UserLimits,
    max_devices: u32,
    expires_ms: Option<u64>,
    metered: bool,
}

/// A rate that an operator ordered.
#[derive(Clone, Copy)]
struct Rate {
    up: Option<Bandwidth>,
    down: Option<Bandwidth>,
    until_ms: u64,
}

impl Entry {
    fn of(entry: &UserEntry) -> Self {
        let rate = |bytes: u64| (bytes > 0).then(|| Bandwidth::from_bytes_per_sec(bytes));
        let mut verifier = [0; 32];
        // The ledger lets no other length through.
        let len = entry.verifier.len().min(32);
        verifier[..len].copy_from_slice(&entry.verifier[..len]);
        Self {
            verifier,
            limits: UserLimits {
                down: rate(entry.down_bytes_per_s),
                up: rate(entry.up_bytes_per_s),
                max_connections: (entry.max_connections > 0).then_some(entry.max_connections),
            },
            max_devices: entry.max_devices,
            expires_ms: moment(entry.expires_at.as_ref()).map(unix_ms),
            metered: entry.metered,
        }
    }
}

impl User {
    pub(crate) fn limits(&self) -> UserLimits {
        let mut limits = self.entry.load().limits;
        if let Some(rate) = *self.rate.lock() {
            limits.up = rate.up;
            limits.down = rate.down;
        }
        limits
    }

    pub(super) fn max_devices(&self) -> u32 {
        self.entry.load().max_devices
    }

    pub(super) fn is_metered(&self) -> bool {
        self.entry.load().metered
    }

    /// Notes that a client is let in who showed a credential.
    pub(super) fn admit(self: &Arc<Self>, remote: SocketAddr, verifier: Verifier) -> Admission {
        self.admitted.lock().insert(remote, verifier);
        Admission {
            user: Arc::clone(self),
            remote,
        }
    }

    fn is_expired(&self, now_ms: u64) -> bool {
        self.entry.load().expires_ms.is_some_and(|at| at <= now_ms)
    }

    pub(super) fn has_allowance(&self, total: u64) -> bool {
        total < self.allowance.load(Acquire)
    }

    /// Whether nobody has been connected for long.
    fn is_idle(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.idle_since.load(Relaxed)) >= IDLE_MS
    }

    fn is_held_too_long(&self, now_ms: u64) -> bool {
        let since = *self.held.lock();
        since.is_some_and(|since| now_ms.saturating_sub(since) >= HELD_MAX_MS)
    }

    fn device_count(&self) -> u32 {
        u32::try_from(self.devices().len()).unwrap_or(u32::MAX)
    }

    /// Addresses of the user's devices.
    pub(super) fn devices(&self) -> HashSet<IpAddr> {
        self.live.lock().values().map(|(ip, _)| *ip).collect()
    }
}

impl std::fmt::Debug for UserTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserTable")
            .field("users", &self.inner.read().by_id.len())
            .finish_non_exhaustive()
    }
}

impl UserTable {
    pub(crate) fn new(clock: Arc<dyn Clock>, traffic: Arc<Traffic>, leases: Arc<Leases>) -> Self {
        Self {
            clock,
            traffic,
            leases,
            inner: RwLock::default(),
            keys: ArcSwapOption::empty(),
            doors: AtomicU8::new(0),
            engine: OnceLock::new(),
            accepted: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
        }
    }

    /// Names the engine whose connections are cut.
    pub(crate) fn connect(&self, engine: &Arc<dyn Engine>) {
        let _ = self.engine.set(Arc::downgrade(engine));
    }

    pub(super) fn engine(&self) -> Option<Arc<dyn Engine>> {
        self.engine.get()?.upgrade()
    }

    pub(crate) fn set_keys(&self, keys: &VerifierKeys) {
        if let Some(current) = &*self.keys.load()
            && current.wanted == *keys
        {
            return;
        }
        self.keys.store(Some(Arc::new(Keys {
            fleet: hmac::Key::new(hmac::HMAC_SHA256, &keys.fleet),
            node: hmac::Key::new(hmac::HMAC_SHA256, &keys.node),
            wanted: keys.clone(),
        })));
    }

    pub(crate) fn set_doors(&self, doors: Doors) {
        self.doors.store(u8::from(doors == Doors::Closed), Release);
    }

    pub(crate) fn doors(&self) -> Doors {
        match self.doors.load(Acquire) {
            0 => Doors::Open,
            _ => Doors::Closed,
        }
    }

    /// Finds who has a credential, and what it is known by.
    pub(super) fn who(&self, credential: &str) -> Option<(Arc<User>, Verifier)> {
        let keys = self.keys.load_full()?;
        let verifier = keys.verifier(credential);
        let user = self.inner.read().by_verifier.get(&verifier).cloned()?;
        Some((user, verifier))
    }

    #[cfg(any(test, feature = "bench"))]
    pub(super) fn verifier(&self, credential: &str) -> Option<[u8; 32]> {
        Some(self.keys.load_full()?.verifier(credential))
    }

    pub(super) fn user(&self, id: u64) -> Option<Arc<User>> {
        self.inner.read().by_id.get(&id).cloned()
    }

    /// Whether a user who showed a credential may be connected at this moment, quota aside.
    pub(super) fn permits(&self, user: &Arc<User>, verifier: &Verifier) -> bool {
        let now = unix_ms(self.clock.now());
        self.has(user) && user.entry.load().verifier == *verifier && !user.is_expired(now)
    }

    /// Whether this is the user that the table has, and not one who was removed.
    fn has(&self, user: &User) -> bool {
        let inner = self.inner.read();
        let known = inner.by_id.get(&user.id);
        known.is_some_and(|known| std::ptr::eq(Arc::as_ptr(known), user))
    }

    /// Makes the table what `users` says. What has ended ends here, before this returns.
    pub(crate) fn apply(&self, users: &BTreeMap<u64, StoredUser>, changes: &UserChanges) {
        let mut actions = Vec::new();
        let mut inner = self.inner.write();
        if changes.all {
            let gone: Vec<u64> = inner
                .by_id
                .keys()
                .copied()
                .filter(|id| !users.contains_key(id))
                .collect();
            for id in gone {
                self.remove(&mut inner, id, &mut actions);
            }
            for stored in users.values() {
                self.upsert(&mut inner, &stored.entry, &mut actions);
            }
        } else {
            for id in &changes.remove {
                if !users.contains_key(id) {
                    self.remove(&mut inner, *id, &mut actions);
                }
            }
            for id in &changes.upsert {
                if let Some(stored) = users.get(id) {
                    self.upsert(&mut inner, &stored.entry, &mut actions);
                }
            }
        }
        drop(inner);
        self.act(actions);
    }

    fn upsert(&self, inner: &mut Inner, message: &UserEntry, actions: &mut Vec<Action>) {
        let entry = Entry::of(message);
        let id = message.user_id;
        let user = match inner.by_id.get(&id) {
            None => {
                let user = Arc::new(User {
                    id,
                    entry: ArcSwap::from_pointee(entry),
                    rate: Mutex::default(),
                    live: Mutex::default(),
                    admitted: Mutex::default(),
                    allowance: AtomicU64::new(u64::MAX),
                    limit: AtomicU64::new(u64::MAX),
                    renew_at: AtomicU64::new(u64::MAX),
                    asked: AtomicBool::new(false),
                    stopped: AtomicBool::new(false),
                    held: Mutex::default(),
                    idle_since: AtomicU64::new(u64::MAX),
                });
                inner.by_id.insert(id, Arc::clone(&user));
                actions.push(Action::Free(Arc::clone(&user)));
                user
            }
            Some(known) => {
                let user = Arc::clone(known);
                let before = user.entry.load_full();
                if before.verifier != entry.verifier {
                    // The credential changed: who came with the old one goes.
                    forget_verifier(inner, &before.verifier, id);
                    actions.push(Action::Kick(id));
                }
                if before.limits != entry.limits {
                    *user.rate.lock() = None;
                    actions.push(Action::Limits(Arc::clone(&user)));
                }
                if entry.max_devices != 0 && entry.max_devices != before.max_devices {
                    actions.push(Action::Devices(Arc::clone(&user)));
                    self.ask_for_fewer(&user, entry.max_devices);
                }
                user.entry.store(Arc::new(entry));
                user
            }
        };
        let entry = user.entry.load();
        if let Some(other) = inner.by_verifier.insert(entry.verifier, Arc::clone(&user))
            && other.id != id
        {
            tracing::warn!(user = id, other = other.id, "two users have one credential");
        }
        if let Some(at) = entry.expires_ms {
            inner.due.insert((at, id));
            if at <= unix_ms(self.clock.now()) {
                actions.push(Action::Kick(id));
            }
        }
        self.refresh_locked(inner, &user, actions);
    }

    fn remove(&self, inner: &mut Inner, id: u64, actions: &mut Vec<Action>) {
        if let Some(user) = inner.by_id.remove(&id) {
            forget_verifier(inner, &user.entry.load().verifier, id);
            actions.push(Action::Kick(id));
            // Whatever the user may come back to: what is left here can be had elsewhere meanwhile.
            actions.push(Action::Release(id));
            actions.push(Action::LetGo(user));
        }
    }

    /// Reads anew how far a user's quota goes, and when places for devices are due.
    fn refresh_locked(&self, inner: &mut Inner, user: &Arc<User>, actions: &mut Vec<Action>) {
        let entry = user.entry.load();
        if entry.max_devices > 0 {
            let soon = unix_ms(self.clock.now()) + PLACES_IDLE_MS;
            let held = self.leases.places(user.id);
            let renewed = self.leases.places_due(user.id);
            // Who came in while fewer places were on their way here has to have one; what no device
            // takes, as after a restart, other nodes can have.
            let differs = user.device_count() != held && self.leases.is_online();
            if let Some(at) = if differs { Some(soon) } else { renewed } {
                inner.due.insert((at.max(soon), user.id));
            }
        }
        if !entry.metered {
            user.allowance.store(u64::MAX, Release);
            user.limit.store(u64::MAX, Release);
            user.renew_at.store(u64::MAX, Relaxed);
            user.stopped.store(false, Release);
            actions.push(Action::LetGo(Arc::clone(user)));
            return;
        }
        let allowance = self.leases.allowance(user.id);
        let total = self.total(user.id);
        self.note_idle(inner, user, total);
        // At half of the slice; past that, and not granted more, at half of what is left.
        let half_of_rest = total.saturating_add(allowance.saturating_sub(total) / 2);
        let renew_at = self.leases.renew_at(user.id).max(half_of_rest);
        user.renew_at.store(renew_at.min(allowance), Relaxed);
        let before = user.allowance.swap(allowance, AcqRel);
        if let Some(at) = self.leases.due(user.id) {
            inner.due.insert((at, user.id));
        }
        let limit = allowance.saturating_add(self.leases.slack(user.id));
        user.limit.store(limit, Release);
        if allowance > before {
            user.asked.store(false, Release);
            user.stopped.store(false, Release);
        }
        if total < allowance {
            actions.push(Action::LetGo(Arc::clone(user)));
        } else if !user.live.lock().is_empty() {
            let awaited = self.leases.is_awaited(user.id);
            let answered = user.asked.load(Acquire) && !awaited;
            if answered || !self.may_wait(user) || user.is_held_too_long(unix_ms(self.clock.now()))
            {
                actions.push(Action::Stop(Arc::clone(user)));
                return;
            }
            user.asked.store(true, Release);
            if !awaited {
                self.leases.want(user.id);
            }
            actions.push(Action::Hold(Arc::clone(user)));
        }
    }

    /// Notes when a slice goes back that nobody uses: of a user who was lent it before a restart, who did not come in after
    /// all, or whose time for it came while there was no master.
    fn note_idle(&self, inner: &mut Inner, user: &User, total: u64) {
        if !user.live.lock().is_empty() || !self.leases.has_rest(user.id, total) {
            return;
        }
        let now = unix_ms(self.clock.now());
        let since = user
            .idle_since
            .compare_exchange(u64::MAX, now, Relaxed, Relaxed)
            .map_or_else(|since| since, |_| now);
        let at = since.saturating_add(IDLE_MS);
        // Past that, it waits for a master: everybody is looked at when there is one.
        if at > now || self.leases.is_online() {
            inner.due.insert((at, user.id));
        }
    }

    /// Asks for the places of the devices here anew, because the user may have fewer than before: devices on other nodes
    /// count too.
    fn ask_for_fewer(&self, user: &User, max: u32) {
        let before = user.max_devices();
        let devices = user.device_count().min(max);
        if devices > 0 && max < before && self.leases.is_online() {
            self.leases.want_places(user.id, devices, devices);
        }
    }

    /// Cuts the devices, the newest first, for which the master has no place although it was asked for one. Who came in since
    /// is asked for next.
    pub(crate) fn keep_to_places(&self, request: &LeaseRequest, response: &LeaseResponse) {
        let Some(engine) = self.engine() else {
            return;
        };
        for want in &request.devices {
            let mut lent = response.devices.iter();
            let Some(lent) = lent.find(|one| one.user_id == want.user_id) else {
                continue;
            };
            let Some(user) = self.user(want.user_id) else {
                continue;
            };
            if user.max_devices() > 0 && user.device_count() <= want.wanted {
                for connection in self.surplus(&user, lent.slots) {
                    engine.kick_connection(connection);
                }
            }
        }
    }

    /// Whether the master may still give a user who is at the end of the allowance more.
    fn may_wait(&self, user: &User) -> bool {
        self.leases.is_online() && !self.leases.is_exhausted(user.id)
    }

    /// Holds a user back until there is an answer; `false` when the engine cannot. Who was removed
    /// meanwhile is not held: the engine would hold whoever comes back by that number.
    fn hold_back(&self, user: &User) -> bool {
        let Some(engine) = self.engine() else {
            return false;
        };
        let mut held = user.held.lock();
        if !engine.hold_user(user.id, true) {
            return false;
        }
        if held.is_none() {
            let now = unix_ms(self.clock.now());
            *held = Some(now);
            drop(held);
            let until = now + HELD_MAX_MS;
            self.inner.write().due.insert((until, user.id));
            // The answer, or the end of the user here, may have come before the hold.
            self.resume(user);
        }
        true
    }

    /// Lets a user go on who was held back and has more, or was removed. What was lent may be used up again: relays do not
    /// wait for whoever found that there is more.
    fn resume(&self, user: &User) {
        let gone = !self.has(user);
        let mut held = user.held.lock();
        if (gone || user.has_allowance(self.total(user.id)))
            && held.take().is_some()
            && let Some(engine) = self.engine()
        {
            engine.hold_user(user.id, false);
        }
    }

    /// Reads anew what was lent to every user, and when their time is over: whether somebody can be asked has changed, or
    /// what the time is.
    pub(crate) fn refresh_all(&self) {
        let now = unix_ms(self.clock.now());
        let lent_to: Vec<u64> = {
            let mut inner = self.inner.write();
            let inner = &mut *inner;
            for user in inner.by_id.values() {
                // Who was over by a clock that was ahead is looked at again in time.
                if let Some(at) = user.entry.load().expires_ms
                    && at > now
                {
                    inner.due.insert((at, user.id));
                }
            }
            let users = inner.by_id.values();
            users
                .filter(|user| user.is_metered() || user.max_devices() > 0)
                .map(|user| user.id)
                .collect()
        };
        self.refresh(lent_to);
    }

    /// Reads anew how far the quota of `users` goes; who is over it is cut off.
    pub(crate) fn refresh(&self, users: impl IntoIterator<Item = u64>) {
        let mut actions = Vec::new();
        let mut inner = self.inner.write();
        for id in users {
            match inner.by_id.get(&id).cloned() {
                Some(user) => self.refresh_locked(&mut inner, &user, &mut actions),
                // Places that were on their way here when the user was removed.
                None => self.leases.release_places(id),
            }
        }
        drop(inner);
        self.act(actions);
        // After the quotas were read: who waits for an answer looks there.
        self.leases.tell();
    }

    /// Whether [`Self::tick`] has something to do.
    pub(crate) fn is_due(&self) -> bool {
        let now = unix_ms(self.clock.now());
        let inner = self.inner.read();
        inner.due.first().is_some_and(|(at, _)| *at <= now)
    }

    /// Does what is due by the clock: expiry, ends of ordered rates, leases that ran out, slices
    /// that nobody uses. Blocks on the disk.
    pub(crate) fn tick(&self) {
        let now = unix_ms(self.clock.now());
        let mut actions = Vec::new();
        let mut inner = self.inner.write();
        // What becomes due meanwhile is for the next time.
        let later = inner.due.split_off(&(now.saturating_add(1), 0));
        for (_, id) in std::mem::replace(&mut inner.due, later) {
            let Some(user) = inner.by_id.get(&id).cloned() else {
                continue;
            };
            if user.is_expired(now) {
                actions.push(Action::Kick(id));
            }
            let mut rate = user.rate.lock();
            if rate.is_some_and(|rate| rate.until_ms <= now) {
                *rate = None;
                actions.push(Action::Limits(Arc::clone(&user)));
            }
            drop(rate);
            if user.is_metered()
                && self.leases.is_ending(id)
                && !user.live.lock().is_empty()
                && !self.leases.is_awaited(id)
                && self.may_wait(&user)
            {
                self.leases.want(id);
            }
            if user.is_metered() && user.is_idle(now) {
                actions.push(Action::Idle(Arc::clone(&user)));
            }
            if user.max_devices() > 0 {
                self.look_at_places(&user, now);
            }
            self.refresh_locked(&mut inner, &user, &mut actions);
        }
        drop(inner);
        self.act(actions);
    }

    /// Gives places back that no device takes, so that other nodes can have them; asks again for
    /// those in use before they end.
    fn look_at_places(&self, user: &User, now: u64) {
        if !self.leases.is_online() {
            return;
        }
        let (devices, held) = (user.device_count(), self.leases.places(user.id));
        let due = self.leases.places_due(user.id).is_some_and(|at| at <= now);
        if devices != held || (devices > 0 && due) {
            self.leases.want_places(user.id, devices, devices);
        }
    }

    /// Orders a rate for a user, and returns how many connections it concerns; `None` when there
    /// is no such user.
    pub(crate) fn set_rate(
        &self,
        id: u64,
        up: u64,
        down: u64,
        span: Option<Duration>,
    ) -> Option<usize> {
        let user = self.user(id)?;
        let rate = |bytes: u64| (bytes > 0).then(|| Bandwidth::from_bytes_per_sec(bytes));
        let until = span.map(|span| {
            let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
            unix_ms(self.clock.now()).saturating_add(span)
        });
        *user.rate.lock() = (up > 0 || down > 0).then(|| Rate {
            up: rate(up).or(user.entry.load().limits.up),
            down: rate(down).or(user.entry.load().limits.down),
            until_ms: until.unwrap_or(u64::MAX),
        });
        if let Some(until) = until {
            self.inner.write().due.insert((until, id));
        }
        let connections = user.live.lock().len();
        self.act(vec![Action::Limits(user)]);
        Some(connections)
    }

    fn act(&self, actions: Vec<Action>) {
        let Some(engine) = self.engine() else {
            return;
        };
        for action in actions {
            match action {
                Action::Kick(user) => {
                    engine.kick_user(user);
                }
                Action::Hold(user) => {
                    if !self.hold_back(&user) {
                        engine.kick_user(user.id);
                    }
                }
                Action::Stop(user) => self.stop(&user, &*engine),
                Action::Release(user) => {
                    self.leases.release(user, self.total(user));
                    self.leases.release_places(user);
                }
                Action::LetGo(user) => self.resume(&user),
                Action::Free(user) => {
                    let held = user.held.lock();
                    if held.is_none() {
                        engine.hold_user(user.id, false);
                    }
                }
                Action::Limits(user) => engine.set_limits(user.id, user.limits()),
                Action::Idle(user) => {
                    let live = user.live.lock();
                    // Who comes in meanwhile waits for this lock and sees that the slice is gone.
                    if live.is_empty() && self.leases.is_online() {
                        user.allowance.store(0, Release);
                        user.limit.store(0, Release);
                        self.leases.release(user.id, self.total(user.id));
                    }
                }
                Action::Devices(user) => {
                    for connection in self.surplus(&user, user.max_devices()) {
                        engine.kick_connection(connection);
                    }
                }
            }
        }
    }

    /// Connections of devices beyond `max`; the oldest devices stay.
    fn surplus(&self, user: &User, max: u32) -> Vec<u64> {
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let live = user.live.lock();
        let mut kept = HashSet::new();
        let beyond = live.iter().filter(|(_, (ip, _))| {
            // Numbers grow, so the oldest come first.
            !kept.contains(ip) && (kept.len() >= max || !kept.insert(*ip))
        });
        beyond.map(|(connection, _)| *connection).collect()
    }

    /// Notes a connection; `false` when it must not stay.
    pub(super) fn entered(&self, id: u64, connection: u64, remote: SocketAddr) -> bool {
        let Some(user) = self.user(id) else {
            return false;
        };
        let from = remote.ip();
        let shown = user.admitted.lock().remove(&remote);
        let since = self.clock.now();
        let max = user.max_devices();
        let places = usize::try_from(self.leases.places(id).min(max)).unwrap_or(usize::MAX);
        {
            let mut live = user.live.lock();
            let known = live.values().any(|(ip, _)| *ip == from);
            live.insert(connection, (from, since));
            let devices: HashSet<_> = live.values().map(|(ip, _)| ip).collect();
            // Devices that were judged at the same time saw the same place free: the first to come in has it.
            if max > 0 && !known && devices.len() > places {
                live.remove(&connection);
                return false;
            }
        }
        user.idle_since.store(u64::MAX, Relaxed);
        // Whoever changes the table after this look cuts the connection itself.
        shown.is_some_and(|shown| self.permits(&user, &shown)) && user.has_allowance(self.total(id))
    }

    pub(super) fn left(&self, id: u64, connection: u64) {
        let Some(user) = self.user(id) else {
            return;
        };
        let nobody_left = {
            let mut live = user.live.lock();
            live.remove(&connection);
            live.is_empty()
        };
        if user.max_devices() > 0 && user.device_count() < self.leases.places(id) {
            let soon = unix_ms(self.clock.now()) + PLACES_IDLE_MS;
            self.inner.write().due.insert((soon, id));
        }
        if nobody_left && user.is_metered() {
            let now = unix_ms(self.clock.now());
            user.idle_since.store(now, Relaxed);
            self.inner.write().due.insert((now + IDLE_MS, id));
        }
    }

    /// Returns since when a connection is here.
    pub(crate) fn since(&self, id: u64, connection: u64) -> Option<SystemTime> {
        let user = self.user(id)?;
        let live = user.live.lock();
        live.get(&connection).map(|(_, since)| *since)
    }

    /// Looks at the quota of a user whose `cell` has just moved. Called for every chunk: two
    /// loads for who has none.
    pub(super) fn moved(&self, user: &User, cell: &Cell) {
        let renew_at = user.renew_at.load(Relaxed);
        if renew_at == u64::MAX {
            return;
        }
        let total = cell.total();
        if total < renew_at {
            return;
        }
        let allowance = user.allowance.load(Acquire);
        if renew_at < allowance
            && user
                .renew_at
                .compare_exchange(renew_at, allowance, Relaxed, Relaxed)
                .is_ok()
        {
            self.leases.want(user.id);
        }
        if total < allowance {
            return;
        }
        if !user.asked.swap(true, AcqRel) {
            self.leases.want(user.id);
        }
        if self.may_wait(user) && self.hold_back(user) {
            return;
        }
        if total >= user.limit.load(Acquire)
            && !user.stopped.swap(true, AcqRel)
            && let Some(engine) = self.engine()
        {
            self.stop(user, &*engine);
        }
    }

    /// Ends a user's connections at the end of the quota. Relays go on with what they have in hand until they are
    /// over, so the user is held back as well, until there is more.
    fn stop(&self, user: &User, engine: &dyn Engine) {
        self.hold_back(user);
        engine.kick_user(user.id);
    }

    pub(crate) fn online(&self) -> u32 {
        let inner = self.inner.read();
        let online = inner
            .by_id
            .values()
            .filter(|user| !user.live.lock().is_empty());
        u32::try_from(online.count()).unwrap_or(u32::MAX)
    }
}

impl Counters for UserTable {
    fn total(&self, user: u64) -> u64 {
        self.traffic
            .cells
            .of(user)
            .map_or(u64::MAX, |cell| cell.total())
    }

    fn spooled(&self, user: u64) -> u64 {
        self.traffic.spooled_total(user)
    }
}

fn forget_verifier(inner: &mut Inner, verifier: &Verifier, id: u64) {
    if inner
        .by_verifier
        .get(verifier)
        .is_some_and(|user| user.id == id)
    {
        inner.by_verifier.remove(verifier);
    }
}

/// What a change does to live connections, once the table is unlocked.
enum Action {
    Kick(u64),
    Release(u64),
    Hold(Arc<User>),
    Stop(Arc<User>),
    LetGo(Arc<User>),
    /// Lets a user go on who is new here, whatever was held by that number before.
    Free(Arc<User>),
    Limits(Arc<User>),
    Devices(Arc<User>),
    Idle(Arc<User>),
}
