//! Puts Gecko's fragments together again, within bounds.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::gecko::{Fragment, MAX_CHUNKS};

/// How long a message waits for its missing fragments (reference: 8 s).
const TTL: Duration = Duration::from_secs(8);
/// Incomplete messages kept per source address (reference: 8).
const MAX_PER_SOURCE: usize = 8;
/// Incomplete messages kept altogether (reference: 4096).
const MAX_MESSAGES: usize = 4096;
/// Bytes kept altogether. The reference has no such bound; 4096 messages of honest size
/// stay just below it.
const MAX_BYTES: usize = 6 << 20;

/// Incomplete messages of all sources.
#[derive(Debug, Default)]
pub(super) struct Reassembler {
    sources: HashMap<SocketAddr, Vec<Partial>>,
    /// Every incomplete message from the oldest on, and some that are gone already.
    order: VecDeque<(Instant, SocketAddr, u64)>,
    messages: usize,
    bytes: usize,
    next_id: u64,
}

#[derive(Debug)]
struct Partial {
    id: u64,
    message: u8,
    count: u8,
    chunks: [Option<Box<[u8]>>; MAX_CHUNKS as usize],
}

/// What became of a fragment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was the last one missing; this is the datagram.
    Complete(Vec<u8>),
    /// It is kept until the others come.
    Kept,
    /// It is a duplicate, or does not agree with the others of its message.
    Dropped,
}

impl Reassembler {
    /// Takes one fragment that came from `source` at `now`.
    pub(super) fn insert(
        &mut self,
        source: SocketAddr,
        fragment: &Fragment<'_>,
        now: Instant,
    ) -> Outcome {
        self.expire(now);
        let known = self
            .sources
            .get(&source)
            .and_then(|list| list.iter().position(|p| p.message == fragment.message));
        if known.is_none() {
            self.open(source, fragment, now);
        }
        let Some(list) = self.sources.get_mut(&source) else {
            return Outcome::Dropped;
        };
        let at = known.unwrap_or(list.len() - 1);
        let partial = &mut list[at];
        let slot = &mut partial.chunks[usize::from(fragment.index)];
        if partial.count != fragment.count || slot.is_some() {
            return Outcome::Dropped;
        }
        *slot = Some(fragment.chunk.into());
        self.bytes += fragment.chunk.len();
        let complete = partial.chunks[..usize::from(partial.count)]
            .iter()
            .all(Option::is_some);
        if complete {
            let partial = list.swap_remove(at);
            let datagram: Vec<u8> = partial.chunks.into_iter().flatten().flatten().collect();
            self.forget(source, datagram.len());
            return Outcome::Complete(datagram);
        }
        while self.bytes > MAX_BYTES && self.drop_oldest() {}
        Outcome::Kept
    }

    fn open(&mut self, source: SocketAddr, fragment: &Fragment<'_>, now: Instant) {
        if self.messages >= MAX_MESSAGES {
            self.drop_oldest();
        }
        if let Some(list) = self.sources.get(&source)
            && list.len() >= MAX_PER_SOURCE
            && let Some(oldest) = list.iter().map(|p| p.id).min()
        {
            self.remove(source, oldest);
        }
        // Messages that completed leave their place in `order` behind; one sweep per as many
        // messages as may be alive keeps the cost of each constant.
        if self.order.len() >= 2 * MAX_MESSAGES {
            let sources = &self.sources;
            self.order.retain(|(_, source, id)| {
                sources
                    .get(source)
                    .is_some_and(|list| list.iter().any(|p| p.id == *id))
            });
        }
        let id = self.next_id;
        self.next_id += 1;
        self.order.push_back((now, source, id));
        self.messages += 1;
        self.sources.entry(source).or_default().push(Partial {
            id,
            message: fragment.message,
            count: fragment.count,
            chunks: Default::default(),
        });
    }

    fn expire(&mut self, now: Instant) {
        while let Some(&(at, source, id)) = self.order.front()
            && now.saturating_duration_since(at) >= TTL
        {
            self.order.pop_front();
            self.remove(source, id);
        }
    }

    /// Drops the oldest incomplete message; false when there is none.
    fn drop_oldest(&mut self) -> bool {
        while let Some((_, source, id)) = self.order.pop_front() {
            if self.remove(source, id) {
                return true;
            }
        }
        false
    }

    fn remove(&mut self, source: SocketAddr, id: u64) -> bool {
        let Some(list) = self.sources.get_mut(&source) else {
            return false;
        };
        let Some(at) = list.iter().position(|p| p.id == id) else {
            return false;
        };
        let partial = list.swap_remove(at);
        self.bytes -= partial
            .chunks
            .iter()
            .flatten()
            .map(|c| c.len())
            .sum::<usize>();
        self.messages -= 1;
        if list.is_empty() {
            self.sources.remove(&source);
        }
        true
    }

    /// Accounts for a message that was completed and taken out of its list.
    fn forget(&mut self, source: SocketAddr, len: usize) {
        self.bytes -= len;
        self.messages -= 1;
        if self.sources.get(&source).is_some_and(Vec::is_empty) {
            self.sources.remove(&source);
        }
    }
}

#[cfg(test)]
mod tests;
