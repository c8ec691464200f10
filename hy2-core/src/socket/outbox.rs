//! What waits to be sent: wire bytes in order, cut into runs of one system call each.
//!
//! No I/O here. [`UdpSocket`](super::udp::UdpSocket) decides when a run leaves; this decides
//! what may share a run, and obfuscates while it copies, so that bytes are touched once.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
};

use hy2_proto::{
    gecko::{self, PacketSizes},
    salamander::{KEY_BATCH, Key, SALT_LEN, Salamander},
};
use quinn::udp::{EcnCodepoint, Transmit};
use rand::{Rng, RngExt, rngs::StdRng};

use super::obfs::Obfuscation;

/// Datagrams in a full transmit, which is as many as quinn is asked for at a time: after a full one,
/// more is likely to follow at once.
///
/// Few, because each connection keeps a buffer of one packet more than it ever sent in a transmit,
/// and runs make up for it: 3 and quinn's most, 10, cost the same per GiB, and 10 takes 10 KiB more
/// per connection.
pub(super) const FULL_TRANSMIT: usize = 3;
/// Most datagrams in one run. Linux takes 64, but 44 of 1452 bytes fill one IP packet.
pub(super) const MAX_RUN_DATAGRAMS: usize = 44;
/// Most bytes in one run; an IP packet, which a run is until it is cut, ends at 65,535.
pub(super) const MAX_RUN_BYTES: usize = 65_000;

/// Wire bytes in order of sending.
pub(super) struct Outbox {
    /// `start..end` waits to be sent; the rest is scratch that stays initialised.
    buf: Vec<u8>,
    start: usize,
    end: usize,
    runs: VecDeque<Run>,
    /// Salts and padding. A cryptographic generator, because a cheap one would show on the
    /// wire as a pattern in the salts; seeded once, so it never blocks.
    rng: StdRng,
    keys: Keys,
    next_message: u8,
}

/// Keys for datagrams to come: salts are random, so they need not wait for what they cover, and
/// several at once are cheaper.
#[derive(Default)]
struct Keys {
    /// What they are of.
    cover: Option<Salamander>,
    ready: Vec<([u8; SALT_LEN], Key)>,
}

impl Keys {
    fn next(&mut self, cover: &Salamander, rng: &mut StdRng) -> ([u8; SALT_LEN], Key) {
        if self.cover.as_ref() != Some(cover) {
            self.cover = Some(cover.clone());
            self.ready.clear();
        }
        self.ready.pop().unwrap_or_else(|| {
            let salts = [(); KEY_BATCH].map(|()| rng.next_u64().to_le_bytes());
            let keys = cover.keys(&salts);
            let [first, rest @ ..] = salts;
            let [first_key, rest_keys @ ..] = keys;
            self.ready.extend(rest.into_iter().zip(rest_keys));
            (first, first_key)
        })
    }
}

/// Datagrams that one system call may send: one destination, equal sizes but for the last.
#[derive(Debug, Clone, Copy)]
struct Run {
    destination: SocketAddr,
    ecn: Option<EcnCodepoint>,
    src_ip: Option<IpAddr>,
    len: usize,
    segment: usize,
    /// Ends with a datagram of full size, so that more may follow.
    open: bool,
}

impl Outbox {
    pub(super) fn new() -> Self {
        let mut rng: StdRng = rand::make_rng();
        Self {
            buf: Vec::new(),
            start: 0,
            end: 0,
            runs: VecDeque::new(),
            next_message: rng.random(),
            keys: Keys::default(),
            rng,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Returns whether `transmit` may leave in the same system call as what waits last.
    pub(super) fn accepts(&self, transmit: &Transmit<'_>, obfs: &Obfuscation) -> bool {
        let Some(run) = self.runs.back() else {
            return false;
        };
        if obfs.splits(transmit.contents) {
            // Fragments have sizes of their own.
            return false;
        }
        let overhead = usize::from(obfs.overhead());
        let len = transmit.contents.len();
        let segment = segment_size(transmit);
        let count = len.div_ceil(segment.max(1));
        // One datagram may also be the shorter end of the run.
        let fits =
            segment + overhead == run.segment || (count == 1 && segment + overhead < run.segment);
        fits && run.continues(transmit, len + count * overhead, count)
    }

    /// Returns whether one more full transmit like those before would fit in the last run.
    pub(super) fn has_room(&self) -> bool {
        self.runs.back().is_some_and(|run| {
            run.open
                && run.datagrams() + FULL_TRANSMIT <= MAX_RUN_DATAGRAMS
                && run.len + FULL_TRANSMIT * run.segment <= MAX_RUN_BYTES
        })
    }

    /// Adds the datagrams of `transmit` at the end.
    pub(super) fn push(&mut self, transmit: &Transmit<'_>, obfs: &Obfuscation) {
        let segment = segment_size(transmit).max(1);
        match obfs {
            Obfuscation::Plain => {
                for datagram in transmit.contents.chunks(segment) {
                    self.reserve_run(transmit, datagram.len())
                        .copy_from_slice(datagram);
                }
            }
            Obfuscation::Salamander(_) | Obfuscation::Gecko(..) => {
                let Some(cover) = obfs.cover() else { return };
                for datagram in transmit.contents.chunks(segment) {
                    match obfs {
                        Obfuscation::Gecko(_, sizes) if obfs.splits(datagram) => {
                            self.push_split(transmit, datagram, cover, *sizes);
                        }
                        _ => self.push_obfuscated(transmit, cover, datagram),
                    }
                }
            }
        }
    }

    fn push_obfuscated(&mut self, transmit: &Transmit<'_>, cover: &Salamander, datagram: &[u8]) {
        let (salt, key) = self.keys.next(cover, &mut self.rng);
        let target = self.reserve_run(transmit, SALT_LEN + datagram.len());
        let (head, body) = target.split_at_mut(SALT_LEN);
        head.copy_from_slice(&salt);
        // The room was made for exactly this much.
        let _ = key.apply_into(datagram, body);
    }

    fn push_split(
        &mut self,
        transmit: &Transmit<'_>,
        datagram: &[u8],
        cover: &Salamander,
        sizes: PacketSizes,
    ) {
        let message = self.next_message;
        self.next_message = message.wrapping_add(1);
        let count = gecko::chunk_count(self.rng.next_u32());
        for frame in gecko::split(datagram, message, count) {
            let padding = sizes.padding_len(frame.chunk.len(), self.rng.next_u32());
            let padding = usize::from(padding);
            let (salt, key) = self.keys.next(cover, &mut self.rng);
            // Padding goes over the wire under a key stream that repeats: only random
            // bytes keep the repetition from showing.
            let mut pad = [0; gecko::MAX_DATAGRAM_LEN];
            let pad = &mut pad[..padding];
            self.rng.fill_bytes(pad);
            let len = SALT_LEN + gecko::HEADER_LEN + padding + frame.chunk.len();
            let target = self.reserve_run(transmit, len);
            let (head, body) = target.split_at_mut(SALT_LEN);
            head.copy_from_slice(&salt);
            frame.encode(pad, &mut &mut *body);
            key.apply(body);
        }
    }

    /// Makes room for one datagram of `len` wire bytes at the end, in the last run when it
    /// may share it, and returns the room.
    fn reserve_run(&mut self, transmit: &Transmit<'_>, len: usize) -> &mut [u8] {
        match self.runs.back_mut() {
            Some(run) if len <= run.segment && run.continues(transmit, len, 1) => {
                run.len += len;
                run.open = len == run.segment;
            }
            _ => self.runs.push_back(Run {
                destination: transmit.destination,
                ecn: transmit.ecn,
                src_ip: transmit.src_ip,
                len,
                segment: len,
                open: true,
            }),
        }
        if self.end + len > self.buf.len() && self.start > 0 {
            self.buf.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let start = self.end;
        self.end += len;
        if self.buf.len() < self.end {
            self.buf.resize(self.end.max(MAX_RUN_BYTES), 0);
        }
        &mut self.buf[start..self.end]
    }

    /// Returns the next thing to send.
    pub(super) fn front(&self) -> Option<Transmit<'_>> {
        let run = self.runs.front()?;
        Some(Transmit {
            destination: run.destination,
            ecn: run.ecn,
            contents: &self.buf[self.start..self.start + run.len],
            segment_size: Some(run.segment),
            src_ip: run.src_ip,
        })
    }

    /// Forgets the first `len` bytes of what [`front`](Self::front) returned: they left.
    pub(super) fn advance(&mut self, len: usize) {
        let Some(run) = self.runs.front_mut() else {
            return;
        };
        let len = len.min(run.len);
        run.len -= len;
        self.start += len;
        if run.len == 0 {
            self.runs.pop_front();
        }
        if self.runs.is_empty() {
            self.start = 0;
            self.end = 0;
        }
    }
}

impl Run {
    fn datagrams(&self) -> usize {
        self.len.div_ceil(self.segment.max(1))
    }

    fn continues(&self, transmit: &Transmit<'_>, len: usize, datagrams: usize) -> bool {
        self.open
            && self.destination == transmit.destination
            && self.ecn == transmit.ecn
            && self.src_ip == transmit.src_ip
            && self.datagrams() + datagrams <= MAX_RUN_DATAGRAMS
            && self.len + len <= MAX_RUN_BYTES
    }
}

/// Returns the size of each datagram in `transmit` but the last.
pub(super) fn segment_size(transmit: &Transmit<'_>) -> usize {
    transmit.segment_size.unwrap_or(transmit.contents.len())
}

/// Returns whether `transmit` is as large as quinn makes them.
pub(super) fn is_full(transmit: &Transmit<'_>) -> bool {
    transmit
        .segment_size
        .is_some_and(|segment| transmit.contents.len() == segment * FULL_TRANSMIT)
}
