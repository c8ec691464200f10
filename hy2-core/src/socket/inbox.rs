//! Turns what came off the wire into what quinn reads, in quinn's own buffers.

use std::{
    collections::VecDeque,
    io::IoSliceMut,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use hy2_proto::{
    gecko::{self, Frame, Reassembler},
    salamander::{KEY_BATCH, Key, SALT_LEN, Salamander},
};
use parking_lot::Mutex;
use quinn::udp::{EcnCodepoint, RecvMeta};

use super::obfs::Obfuscation;

/// "Version" of a version negotiation packet (RFC 9000 §17.2.1).
const VERSION_NEGOTIATION: u32 = 0;
const QUIC_V1: u32 = 1;
/// RFC 9369 §3.1; what the QUIC layer makes of it is its own business.
const QUIC_V2: u32 = 0x6b33_43cf;

/// The receiving half of an obfuscation.
pub(super) enum Inbox {
    Plain,
    Salamander(Obfuscation),
    Gecko(Obfuscation, Box<Mutex<Fragments>>),
}

/// Datagrams that arrive in fragments.
#[derive(Default)]
pub(super) struct Fragments {
    reassembler: Reassembler<SocketAddr>,
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
    /// QUIC under our key is passed on as what it decodes to, for quinn to ignore, unless it
    /// is something quinn would answer: see [`is_answerable_noise`].
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
            dropped += reveal(cover, buf, meta, matches!(self, Self::Gecko(..)));
            if let Self::Gecko(_, fragments) = self
                && meta.len > 0
                && buf[..meta.len]
                    .chunks(meta.stride)
                    .any(gecko::is_long_header)
            {
                dropped += fragments.lock().collect(buf, meta, Instant::now());
            }
        }
        dropped
    }
}

/// Removes Salamander from every datagram in `buf` and closes the gaps the salts leave.
/// Returns the number of datagrams that are too short to have a payload or must not be
/// answered. When `framed`, what has a long header is one of Gecko's frames.
fn reveal(cover: &Salamander, buf: &mut [u8], meta: &mut RecvMeta, framed: bool) -> usize {
    let len = meta.len.min(buf.len());
    let stride = meta.stride.clamp(1, len.max(1));
    let mut dropped = 0;
    let mut to = 0;
    let mut from = 0;
    while from < len {
        let group = len.min(from + KEY_BATCH * stride);
        let keys = keys_of(cover, &buf[from..group], stride);
        for at in 0..KEY_BATCH {
            let start = from + at * stride;
            if start >= group {
                break;
            }
            let end = group.min(start + stride);
            match uncover(
                cover,
                keys.as_ref().map(|keys| &keys[at]),
                &mut buf[start..end],
            ) {
                Some(payload) if framed || !is_answerable_noise(payload) => {
                    let len = payload.len();
                    buf.copy_within(end - len..end, to);
                    to += len;
                }
                _ => dropped += 1,
            }
        }
        from = group;
    }
    if len == 0 {
        dropped = 1;
    }
    meta.len = to;
    meta.stride = stride.saturating_sub(SALT_LEN).min(to);
    dropped
}

/// Derives the keys of the datagrams in `buf` at once; `None` where that gains nothing.
fn keys_of(cover: &Salamander, buf: &[u8], stride: usize) -> Option<[Key; KEY_BATCH]> {
    // Fewer than half take as long as each on its own.
    if buf.len() <= KEY_BATCH / 2 * stride {
        return None;
    }
    // The last datagram may be the end of a salt only; nobody asks for its key.
    let mut salts = [[0; SALT_LEN]; KEY_BATCH];
    for (salt, datagram) in salts.iter_mut().zip(buf.chunks(stride)) {
        if let Some(found) = datagram.first_chunk() {
            *salt = *found;
        }
    }
    Some(cover.keys(&salts))
}

/// Uncovers one datagram, with its key if that is known.
fn uncover<'a>(
    cover: &Salamander,
    key: Option<&Key>,
    datagram: &'a mut [u8],
) -> Option<&'a mut [u8]> {
    let Some(key) = key else {
        return cover.deobfuscate(datagram);
    };
    let (_, payload) = datagram.split_first_chunk_mut::<SALT_LEN>()?;
    if payload.is_empty() {
        return None;
    }
    key.apply(payload);
    Some(payload)
}

/// Returns whether quinn would answer `payload` although it makes no sense.
///
/// To a long header of an unknown version a server replies with version negotiation (RFC
/// 9000 §6.1), so half of all large datagrams under a wrong key would be answered, and a
/// server that has to look like nothing would show. No sender reaches one of the versions
/// let through by chance.
pub(super) fn is_answerable_noise(payload: &[u8]) -> bool {
    if !gecko::is_long_header(payload) {
        return false;
    }
    let version = match payload {
        [_, a, b, c, d, ..] => u32::from_be_bytes([*a, *b, *c, *d]),
        _ => return true,
    };
    !matches!(version, VERSION_NEGOTIATION | QUIC_V1 | QUIC_V2)
}

impl Fragments {
    /// Takes the fragments out of `buf`, closes the gaps they leave, and puts together what
    /// they complete. Returns the number of frames that cannot be right.
    fn collect(&mut self, buf: &mut [u8], meta: &mut RecvMeta, now: Instant) -> usize {
        let mut dropped = 0;
        let mut to = 0;
        let mut from = 0;
        while from < meta.len {
            let end = meta.len.min(from + meta.stride);
            let datagram = &buf[from..end];
            if gecko::is_long_header(datagram) {
                match Frame::decode(datagram) {
                    Ok(frame) => match self.reassembler.push(&meta.addr, &frame, now) {
                        Some(datagram) if is_answerable_noise(&datagram) => dropped += 1,
                        Some(datagram) => self.ready.push_back(Ready {
                            datagram,
                            addr: meta.addr,
                            ecn: meta.ecn,
                            dst_ip: meta.dst_ip,
                        }),
                        None => {}
                    },
                    Err(_) => dropped += 1,
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

#[cfg(test)]
mod tests;
