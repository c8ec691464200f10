//! A server socket's obfuscation while it changes: what clients spoke before is understood, and
//! answered, for a while beside what they should speak.
//!
//! Nothing in an obfuscated datagram names its key, so each is tried: under the right one a
//! datagram to a server is a QUIC packet with a known version or an identifier that the server
//! gave out. Answers go out as the peer was heard last.

use std::{
    collections::HashSet,
    fmt,
    io::IoSliceMut,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use hy2_proto::{
    gecko::{self, Frame},
    salamander::SALT_LEN,
};
use parking_lot::Mutex;
use quinn::udp::RecvMeta;

use super::{
    inbox::{Inbox, is_answerable_noise},
    obfs::Obfuscation,
};
use crate::quic::Recogniser;

/// Most peers that are remembered to speak the previous obfuscation; those beyond have to be heard
/// under the present one.
const MAX_PEERS: usize = 1 << 16;

/// Bytes of a packet that tell whether it is one: first byte, and an identifier or a version.
const HEADER: usize = 1 + IDENTIFIER;
/// Length of the identifiers that our endpoints give out.
const IDENTIFIER: usize = 8;

/// What a socket speaks.
pub(super) struct Spoken {
    pub(super) current: Obfuscation,
    inbox: Inbox,
    previous: Option<Previous>,
}

struct Previous {
    obfuscation: Obfuscation,
    inbox: Inbox,
    /// Who was heard under it last.
    peers: Mutex<HashSet<SocketAddr>>,
    /// Size of `peers`.
    count: AtomicUsize,
    recognises: Recogniser,
}

impl fmt::Debug for Spoken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spoken")
            .field("current", &self.current)
            .field("previous", &self.previous.as_ref().map(|p| &p.obfuscation))
            .finish()
    }
}

impl Spoken {
    pub(super) fn new(current: &Obfuscation) -> Self {
        Self {
            current: current.clone(),
            inbox: Inbox::new(current),
            previous: None,
        }
    }

    /// Speaks `current`, and `previous` with `peers` and whoever is heard under it.
    pub(super) fn changing(
        current: &Obfuscation,
        previous: &Obfuscation,
        peers: HashSet<SocketAddr>,
        recognises: Recogniser,
    ) -> Self {
        Self {
            previous: Some(Previous {
                obfuscation: previous.clone(),
                inbox: Inbox::new(previous),
                count: AtomicUsize::new(peers.len()),
                peers: Mutex::new(peers),
                recognises,
            }),
            ..Self::new(current)
        }
    }

    /// Returns the obfuscation that `peer` was heard under last; the present one for a stranger.
    pub(super) fn towards(&self, peer: &SocketAddr) -> &Obfuscation {
        match &self.previous {
            Some(previous) if previous.knows(peer) => &previous.obfuscation,
            _ => &self.current,
        }
    }

    /// See [`Inbox::take_ready`].
    pub(super) fn take_ready(
        &self,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Option<usize> {
        self.inbox
            .take_ready(bufs, meta)
            .or_else(|| self.previous.as_ref()?.inbox.take_ready(bufs, meta))
    }

    /// See [`Inbox::decode`].
    pub(super) fn decode(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let Some(previous) = &self.previous else {
            return self.inbox.decode(bufs, meta);
        };
        let mut dropped = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta.iter_mut()) {
            let received = &buf[..meta.len.min(buf.len())];
            // The kernel joins datagrams of one sender only, and a sender has one key.
            let known = previous.knows(&meta.addr);
            let looks = |obfuscation: &Obfuscation| {
                let datagrams = received.chunks(meta.stride.max(1));
                datagrams
                    .map(|datagram| likeness(obfuscation, datagram, &previous.recognises))
                    .max()
                    .unwrap_or(Likeness::None)
            };
            let (before, present) = (looks(&previous.obfuscation), looks(&self.current));
            // In doubt, a peer speaks as it did.
            let is_previous = before > present || (known && before == present);
            if is_previous != known {
                previous.note(meta.addr, is_previous);
            }
            let inbox = if is_previous {
                &previous.inbox
            } else {
                &self.inbox
            };
            dropped += inbox.decode(std::slice::from_mut(buf), std::slice::from_mut(meta));
        }
        dropped
    }
}

impl Previous {
    fn knows(&self, peer: &SocketAddr) -> bool {
        self.count.load(Relaxed) > 0 && self.peers.lock().contains(peer)
    }

    fn note(&self, peer: SocketAddr, speaks_it: bool) {
        let mut peers = self.peers.lock();
        if !speaks_it {
            peers.remove(&peer);
        } else if peers.len() < MAX_PEERS {
            peers.insert(peer);
        }
        self.count.store(peers.len(), Relaxed);
    }
}

/// How much a datagram looks like a packet to this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Likeness {
    None,
    /// One of Gecko's frames, which has little to tell it by: noise passes one time in fifteen.
    Some,
    Certain,
}

/// Judges `datagram` when read as `obfuscation` has it.
fn likeness(obfuscation: &Obfuscation, datagram: &[u8], recognises: &Recogniser) -> Likeness {
    let mut plain = [0; HEADER];
    let header = match obfuscation.cover() {
        None => &datagram[..HEADER.min(datagram.len())],
        Some(cover) => {
            let Some((salt, payload)) = datagram.split_first_chunk::<SALT_LEN>() else {
                return Likeness::None;
            };
            let len = payload.len().min(HEADER);
            plain[..len].copy_from_slice(&payload[..len]);
            cover.key(salt).apply(&mut plain[..len]);
            &plain[..len]
        }
    };
    let gecko = matches!(obfuscation, Obfuscation::Gecko(..));
    let (found, fits) = match header {
        [] => (Likeness::None, false),
        [_, ..] if gecko && gecko::is_long_header(header) => {
            let mut frame = [0; HEADER];
            frame[..header.len()].copy_from_slice(header);
            // Padding is behind what was uncovered.
            frame[3..5].fill(0);
            (Likeness::Some, Frame::decode(&frame).is_ok())
        }
        [_, ..] if gecko::is_long_header(header) => {
            (Likeness::Certain, !is_answerable_noise(header))
        }
        [first, identifier @ ..] => {
            let ours = identifier.len() == IDENTIFIER && recognises(identifier);
            (Likeness::Certain, first & 0x40 != 0 && ours)
        }
    };
    if fits { found } else { Likeness::None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quic::ResetKey;

    fn covered(obfuscation: &Obfuscation, packet: &[u8]) -> Vec<u8> {
        match obfuscation.cover() {
            None => packet.to_vec(),
            Some(cover) => {
                let mut wire = vec![0; SALT_LEN + packet.len()];
                cover.obfuscate([7; SALT_LEN], packet, &mut wire).unwrap();
                wire
            }
        }
    }

    fn long() -> Vec<u8> {
        let mut packet = vec![0xc0, 0, 0, 0, 1, 8];
        packet.resize(1200, 0x5a);
        packet
    }

    fn decode(spoken: &Spoken, wire: &[u8], from: SocketAddr) -> Vec<u8> {
        let mut buf = wire.to_vec();
        let mut meta = [RecvMeta {
            addr: from,
            len: wire.len(),
            stride: wire.len(),
            ecn: None,
            dst_ip: None,
        }];
        spoken.decode(&mut [IoSliceMut::new(&mut buf)], &mut meta);
        buf.truncate(meta[0].len);
        buf
    }

    #[test]
    fn each_peer_is_understood_and_answered_as_it_speaks() {
        let key = |text: &str| Obfuscation::salamander(text).unwrap();
        let kinds = [
            Obfuscation::Plain,
            key("one key of some length"),
            key("another key of some length"),
        ];
        let a: SocketAddr = ([127, 0, 0, 1], 1).into();
        let b: SocketAddr = ([127, 0, 0, 1], 2).into();
        for current in &kinds {
            for previous in kinds.iter().filter(|previous| *previous != current) {
                let spoken = Spoken::changing(
                    current,
                    previous,
                    HashSet::new(),
                    ResetKey::random().recogniser(),
                );
                assert_eq!(decode(&spoken, &covered(previous, &long()), a), long());
                assert_eq!(decode(&spoken, &covered(current, &long()), b), long());
                assert_eq!(spoken.towards(&a), previous);
                assert_eq!(spoken.towards(&b), current);
                // It changed over.
                assert_eq!(decode(&spoken, &covered(current, &long()), a), long());
                assert_eq!(spoken.towards(&a), current);
            }
        }
    }

    #[test]
    fn noise_and_foreign_identifiers_teach_nothing() {
        let previous = Obfuscation::salamander("one key of some length").unwrap();
        let current = Obfuscation::salamander("another key of some length").unwrap();
        let recognises = ResetKey::random().recogniser();
        let spoken = Spoken::changing(&current, &previous, HashSet::new(), recognises);
        let from: SocketAddr = ([127, 0, 0, 1], 1).into();
        let short: Vec<u8> = std::iter::once(0x40).chain([9; 40]).collect();
        for packet in [short, vec![0xff; 1200], Vec::new(), vec![0x40]] {
            decode(&spoken, &covered(&previous, &packet), from);
            assert_eq!(spoken.towards(&from), &current);
        }
    }
}
