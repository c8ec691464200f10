//! Who is connected: counters, limits and live connections by user.

use std::{collections::HashMap, sync::Arc};

use hy2_proto::bandwidth::Bandwidth;
use parking_lot::Mutex;
use quinn::Connection;

use crate::{
    authenticator::{Grant, UserId, UserLimits},
    congestion::{Algorithm, CongestionHandle},
    event::{ConnectionId, Peer},
    memory::MemoryBudget,
    meter::UserCounters,
    outbound::Lookups,
    quic::{SendWindow, close},
    relay::{copy::UserTally, limiter::RateLimiter},
};

/// One user's shared state; lives until the embedder takes the figures of absent users.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) id: UserId,
    /// The cells of the latest grant.
    counters: Mutex<Arc<UserCounters>>,
    /// Towards targets.
    pub(crate) tx: Arc<RateLimiter>,
    /// Towards the client.
    pub(crate) rx: Arc<RateLimiter>,
    limits: Mutex<UserLimits>,
    pub(crate) lookups: Lookups,
}

/// An authenticated connection.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) peer: Peer,
    pub(crate) connection: Connection,
    pub(crate) congestion: CongestionHandle,
    /// What the connection holds of the server's budget.
    pub(crate) memory: Arc<MemoryBudget>,
    /// The Brutal rate agreed on with the client or set since, before the user's limit.
    pub(crate) agreed: Option<Bandwidth>,
    pub(crate) loss_compensation: bool,
    pub(crate) overclaim_guard: bool,
    /// Where this connection counts. A later grant with other cells does not move them.
    pub(crate) counters: Arc<UserCounters>,
    pub(crate) send_window: Arc<Mutex<SendWindow>>,
    /// The supervisor found nothing that moves or is held, and is told when that ends; true of the copy in the registry
    /// only.
    pub(crate) at_rest: bool,
    pub(crate) user: Arc<User>,
}

impl<'a> UserTally<'a> {
    /// Counts into the connection's cells and pauses at its user's rates.
    pub(crate) fn of(member: &'a Member) -> Self {
        Self {
            counters: &member.counters,
            tx: &member.user.tx,
            rx: &member.user.rx,
        }
    }
}

impl Member {
    /// Bytes that the connection makes the server hold, as far as they are counted.
    pub(crate) fn held(&self) -> u64 {
        self.memory.used() as u64
    }

    /// Puts the agreed rate into force, capped by the user's limit.
    pub(crate) fn apply_rate(&self) -> Option<Bandwidth> {
        let cap = self.user.limits.lock().down.filter(|cap| !cap.is_zero());
        let rate = match (self.agreed, cap) {
            (Some(agreed), Some(cap)) => Some(agreed.min(cap)),
            (agreed, _) => agreed,
        };
        if let Some(rate) = rate {
            self.congestion.set(Algorithm::Brutal {
                rate: rate.bytes_per_sec(),
                loss_compensation: self.loss_compensation,
                overclaim_guard: self.overclaim_guard,
            });
        }
        rate
    }
}

/// All authenticated connections of a server.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    users: HashMap<UserId, Entry>,
    members: HashMap<ConnectionId, Member>,
}

#[derive(Debug)]
struct Entry {
    user: Arc<User>,
    connections: Vec<ConnectionId>,
}

/// The user holds as many connections as the limit allows.
#[derive(Debug)]
pub(crate) struct TooManyConnections;

impl Registry {
    /// Finds or makes the user of a grant and adds a connection to it.
    pub(crate) fn admit(
        &self,
        grant: &Grant,
        member: impl FnOnce(Arc<User>) -> Member,
    ) -> Result<Member, TooManyConnections> {
        let mut inner = self.inner.lock();
        let Inner { users, members } = &mut *inner;
        let entry = users.entry(grant.user.clone()).or_insert_with(|| Entry {
            user: Arc::new(User {
                id: grant.user.clone(),
                counters: Mutex::new(grant.counters.clone().unwrap_or_default()),
                tx: Arc::new(RateLimiter::unlimited()),
                rx: Arc::new(RateLimiter::unlimited()),
                limits: Mutex::default(),
                lookups: Lookups::default(),
            }),
            connections: Vec::new(),
        });
        if let Some(max) = grant.limits.max_connections
            && entry.connections.len() >= usize::try_from(max).unwrap_or(usize::MAX)
        {
            return Err(TooManyConnections);
        }
        if let Some(counters) = &grant.counters {
            *entry.user.counters.lock() = Arc::clone(counters);
        }
        entry.user.set_limits(grant.limits);
        let others = entry.connections.iter().filter_map(|id| members.get(id));
        others.for_each(|member| {
            member.apply_rate();
        });
        let member = member(Arc::clone(&entry.user));
        entry.connections.push(member.peer.connection);
        members.insert(member.peer.connection, member.clone());
        Ok(member)
    }

    /// Forgets a connection. Its user's counters stay readable.
    pub(crate) fn leave(&self, id: ConnectionId) {
        let mut inner = self.inner.lock();
        if let Some(member) = inner.members.remove(&id)
            && let Some(entry) = inner.users.get_mut(&member.peer.user)
        {
            entry.connections.retain(|other| *other != id);
        }
    }

    pub(crate) fn user(&self, id: &UserId) -> Option<Arc<User>> {
        self.inner
            .lock()
            .users
            .get(id)
            .map(|entry| Arc::clone(&entry.user))
    }

    pub(crate) fn users(&self) -> Vec<Arc<User>> {
        let inner = self.inner.lock();
        inner
            .users
            .values()
            .map(|entry| Arc::clone(&entry.user))
            .collect()
    }

    /// Looks at every connection; `look` must be short and must not come back here.
    pub(crate) fn for_each(&self, look: impl FnMut(&mut Member)) {
        self.inner.lock().members.values_mut().for_each(look);
    }

    /// Has these looked at like all others again.
    pub(crate) fn rouse(&self, ids: &[u64]) {
        let mut inner = self.inner.lock();
        for id in ids {
            if let Some(member) = inner.members.get_mut(&ConnectionId(*id)) {
                member.at_rest = false;
            }
        }
    }

    pub(crate) fn members(&self) -> Vec<Member> {
        self.inner.lock().members.values().cloned().collect()
    }

    pub(crate) fn members_of(&self, id: &UserId) -> Vec<Member> {
        let inner = self.inner.lock();
        let Some(entry) = inner.users.get(id) else {
            return Vec::new();
        };
        entry
            .connections
            .iter()
            .filter_map(|id| inner.members.get(id).cloned())
            .collect()
    }

    /// Closes every connection of a user and returns how many there were.
    pub(crate) fn kick(&self, id: &UserId) -> usize {
        let members = self.members_of(id);
        for member in &members {
            member.connection.close(close::EXCESSIVE_LOAD, b"");
        }
        members.len()
    }

    /// Closes one connection; `false` when there is none of this number.
    pub(crate) fn kick_connection(&self, id: ConnectionId) -> bool {
        let connection = match self.inner.lock().members.get(&id) {
            Some(member) => member.connection.clone(),
            None => return false,
        };
        connection.close(close::EXCESSIVE_LOAD, b"");
        true
    }

    /// Changes a user's limits while connected; `false` when the user is unknown.
    pub(crate) fn set_limits(&self, id: &UserId, limits: UserLimits) -> bool {
        let Some(user) = self.user(id) else {
            return false;
        };
        user.set_limits(limits);
        let members = self.members_of(id);
        for member in &members {
            member.apply_rate();
        }
        if let Some(max) = limits.max_connections {
            // The oldest stay.
            let mut newest: Vec<_> = members.iter().collect();
            newest.sort_by_key(|member| member.peer.connection);
            for member in newest
                .into_iter()
                .skip(usize::try_from(max).unwrap_or(usize::MAX))
            {
                member.connection.close(close::EXCESSIVE_LOAD, b"");
            }
        }
        true
    }

    /// Holds a user's relays back, or lets them go on; `false` when the user is unknown.
    pub(crate) fn hold(&self, id: &UserId, held: bool) -> bool {
        let Some(user) = self.user(id) else {
            return false;
        };
        user.tx.hold(held);
        user.rx.hold(held);
        true
    }

    /// Changes the congestion control of a user's connections and returns how many there are.
    pub(crate) fn set_congestion(&self, id: &UserId, algorithm: Algorithm) -> usize {
        let mut inner = self.inner.lock();
        let Inner { users, members } = &mut *inner;
        let Some(entry) = users.get(id) else {
            return 0;
        };
        for id in &entry.connections {
            let Some(member) = members.get_mut(id) else {
                continue;
            };
            match algorithm {
                Algorithm::Brutal {
                    rate,
                    loss_compensation,
                    overclaim_guard,
                } => {
                    member.agreed = Some(Bandwidth::from_bytes_per_sec(rate));
                    member.loss_compensation = loss_compensation;
                    member.overclaim_guard = overclaim_guard;
                    member.apply_rate();
                }
                other => {
                    // A later change of limits must not bring the old rate back.
                    member.agreed = None;
                    member.congestion.set(other);
                }
            }
        }
        entry.connections.len()
    }

    /// Forgets users without connections and returns their last figures' cells.
    pub(crate) fn forget_absent(&self) -> Vec<Arc<User>> {
        let mut inner = self.inner.lock();
        let absent: Vec<UserId> = inner
            .users
            .iter()
            .filter(|(_, entry)| entry.connections.is_empty())
            .map(|(id, _)| id.clone())
            .collect();
        absent
            .iter()
            .filter_map(|id| inner.users.remove(id).map(|entry| entry.user))
            .collect()
    }
}

impl User {
    fn set_limits(&self, limits: UserLimits) {
        *self.limits.lock() = limits;
        self.tx.set(limits.up.map(Bandwidth::bytes_per_sec));
        self.rx.set(limits.down.map(Bandwidth::bytes_per_sec));
    }

    pub(crate) fn counters(&self) -> Arc<UserCounters> {
        Arc::clone(&self.counters.lock())
    }

    pub(crate) fn limits(&self) -> UserLimits {
        *self.limits.lock()
    }
}
