//! Turns what came off the wire into what quinn reads, in quinn's own buffers.

use std::{
    collections::VecDeque,
    io::IoSliceMut,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use hy2_proto::salamander::{SALT_LEN, Salamander};
use parking_lot::Mutex;
use quinn::udp::{EcnCodepoint, RecvMeta};

use super::{
    gecko,
    obfs::Obfuscation,
    reassembly::{Outcome, Reassembler},
};

/// The receiving half of an obfuscation.
pub(super) enum Inbox {
    Plain,
    Salamander(Obfuscation),
    Gecko(Obfuscation, Box<Mutex<Fragments>>),
}

/// Datagrams that arrive in fragments.
#[derive(Default)]
pub(super) struct Fragments {
    reassembler: Reassembler,
    /// Complete datagrams for which the current read has no buffer. Drained before the next
    /// read, so it never holds more than one read can complete.
    ready: VecDeque<Ready>,
}

struct Ready {
    datagram: Vec<u8>,
    addr: SocketAddr,
    ecn: Option<EcnCodepoint>,
    dst_ip: Option<IpAddr>,
}

impl Inbox {
    pub(super) fn new(obfs: &Obfuscation) -> Self {
        match obfs {
            Obfuscation::Plain => Self::Plain,
            Obfuscation::Salamander(_) => Self::Salamander(obfs.clone()),
            Obfuscation::Gecko(..) => Self::Gecko(obfs.clone(), Box::default()),
        }
    }

    /// Hands out complete datagrams that an earlier read left over; `None` without any.
    pub(super) fn take_ready(
        &self,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Option<usize> {
        let Self::Gecko(_, fragments) = self else {
            return None;
        };
        let ready = &mut fragments.lock().ready;
        let mut count = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Some(next) = ready.pop_front() else { break };
            next.write(buf, meta);
            count += 1;
        }
        (count > 0).then_some(count)
    }

    /// Decodes received buffers in place and returns how many datagrams were discarded.
    ///
    /// A buffer of which nothing is left has length 0, which quinn skips. What is not
    /// QUIC under our key is passed on as what it decodes to: quinn ignores it, so it is
    /// met with the same silence as any garbage.
    pub(super) fn decode(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let obfs = match self {
            Self::Plain => return 0,
            Self::Salamander(obfs) | Self::Gecko(obfs, _) => obfs,
        };
        let Some(cover) = obfs.cover() else {
            return 0;
        };
        let mut dropped = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta.iter_mut()) {
            dropped += reveal(cover, buf, meta);
            if let Self::Gecko(_, fragments) = self
                && meta.len > 0
                && buf[..meta.len].chunks(meta.stride).any(gecko::is_fragment)
            {
                dropped += fragments.lock().collect(buf, meta, Instant::now());
            }
        }
        dropped
    }
}

/// Removes Salamander from every datagram in `buf` and closes the gaps the salts leave.
/// Returns the number of datagrams too short to have a payload.
fn reveal(cover: &Salamander, buf: &mut [u8], meta: &mut RecvMeta) -> usize {
    let len = meta.len.min(buf.len());
    let stride = meta.stride.clamp(1, len.max(1));
    let mut dropped = 0;
    let mut to = 0;
    let mut from = 0;
    while from < len {
        let end = len.min(from + stride);
        match cover.deobfuscate(&mut buf[from..end]) {
            Some(payload) => {
                let len = payload.len();
                buf.copy_within(end - len..end, to);
                to += len;
            }
            None => dropped += 1,
        }
        from = end;
    }
    if len == 0 {
        dropped = 1;
    }
    meta.len = to;
    meta.stride = stride.saturating_sub(SALT_LEN).min(to);
    dropped
}

impl Fragments {
    /// Takes the fragments out of `buf`, closes the gaps they leave, and puts together what
    /// they complete. Returns the number of fragments that were of no use.
    fn collect(&mut self, buf: &mut [u8], meta: &mut RecvMeta, now: Instant) -> usize {
        let mut dropped = 0;
        let mut to = 0;
        let mut from = 0;
        while from < meta.len {
            let end = meta.len.min(from + meta.stride);
            let datagram = &buf[from..end];
            if gecko::is_fragment(datagram) {
                let outcome = match gecko::parse(datagram) {
                    Some(fragment) => self.reassembler.insert(meta.addr, &fragment, now),
                    None => Outcome::Dropped,
                };
                match outcome {
                    Outcome::Complete(datagram) => self.ready.push_back(Ready {
                        datagram,
                        addr: meta.addr,
                        ecn: meta.ecn,
                        dst_ip: meta.dst_ip,
                    }),
                    Outcome::Kept => {}
                    Outcome::Dropped => dropped += 1,
                }
            } else {
                buf.copy_within(from..end, to);
                to += end - from;
            }
            from = end;
        }
        meta.len = to;
        meta.stride = meta.stride.min(to);
        dropped
    }
}

impl Ready {
    fn write(&self, buf: &mut [u8], meta: &mut RecvMeta) {
        // One that does not fit is larger than any datagram quinn would accept.
        let len = match buf.get_mut(..self.datagram.len()) {
            Some(target) => {
                target.copy_from_slice(&self.datagram);
                target.len()
            }
            None => 0,
        };
        *meta = RecvMeta {
            addr: self.addr,
            len,
            stride: len,
            ecn: self.ecn,
            dst_ip: self.dst_ip,
        };
    }
}
