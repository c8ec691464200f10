//! Gecko: hides the shape of the handshake under Salamander.
//!
//! A datagram with a QUIC long header is cut into two to eight chunks, each in a frame with
//! padding of random length, and each frame is obfuscated by [`crate::salamander`] as a datagram
//! of its own. Datagrams with a short header pass as they are.
//!
//! ```text
//! 80 | u8 message | u4 index, u4 count | u16 padding length | padding | chunk
//! ```
//!
//! The highest bit of the first byte tells frames from short headers (RFC 9000, section 17), so a
//! long header never appears outside a frame. Rules are those of the reference
//! (`extras/obfs/gecko.go`, `gecko_frame.go`).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::BufMut;

use crate::codec::{DecodeError, InvalidKind, Reader};
use crate::salamander::SALT_LEN;

/// Bytes of a frame in front of its padding.
pub const HEADER_LEN: usize = 5;
/// Fewest chunks that a datagram is cut into.
pub const MIN_CHUNKS: u8 = 2;
/// Most chunks that a datagram is cut into.
pub const MAX_CHUNKS: u8 = 8;
/// Largest datagram that is reassembled, in bytes; the reference reads into buffers of this size.
pub const MAX_DATAGRAM_LEN: usize = 2048;
/// How long a datagram may stay without some of its chunks.
pub const REASSEMBLY_TTL: Duration = Duration::from_secs(8);
/// Most unfinished datagrams of one source address.
pub const MAX_PER_SOURCE: usize = 8;
/// Most unfinished datagrams in all.
pub const MAX_UNFINISHED: usize = 4096;

const MARKER: u8 = 0x80;

/// Returns whether a datagram has to be sent in frames, or has arrived as one: the highest bit of
/// its first byte is set.
#[must_use]
pub fn is_long_header(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & MARKER != 0)
}

/// One chunk of a datagram with its place.
///
/// # Examples
///
/// ```
/// use hy2_proto::gecko::{Frame, split};
///
/// let mut wire = Vec::new();
/// for frame in split(&[0xc0; 100], 7, 3) {
///     wire.clear();
///     frame.encode(b"random padding", &mut wire);
///     assert_eq!(Frame::decode(&wire), Ok(frame));
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Joins the chunks of one datagram.
    pub message_id: u8,
    /// Place of the chunk, from 0, below `count`.
    pub index: u8,
    /// Number of chunks, [`MIN_CHUNKS`] to [`MAX_CHUNKS`].
    pub count: u8,
    /// Part of the datagram; empty if it had fewer bytes than chunks.
    pub chunk: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Decodes a whole datagram, after Salamander. The low bits of the first byte are reserved
    /// and not looked at.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Incomplete`] if the datagram ends within header or padding: a prefix that
    /// reaches the chunk is a valid frame with a shorter chunk. [`DecodeError::Invalid`] if it is
    /// no frame, or index and count contradict the format. The reference drops either silently.
    pub fn decode(datagram: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(datagram);
        if reader.u8()? & MARKER == 0 {
            return Err(InvalidKind::Type.into());
        }
        let message_id = reader.u8()?;
        let place = reader.u8()?;
        let (index, count) = (place >> 4, place & 0x0f);
        if !(MIN_CHUNKS..=MAX_CHUNKS).contains(&count) || index >= count {
            return Err(InvalidKind::Fragment.into());
        }
        let padding = reader.u16()?;
        reader.bytes(usize::from(padding))?;
        Ok(Self {
            message_id,
            index,
            count,
            chunk: reader.into_rest(),
        })
    }

    /// Appends the frame with `padding`, random bytes of a length from
    /// [`PacketSizes::padding_len`]. Padding beyond 65,535 bytes is cut off.
    ///
    /// # Panics
    ///
    /// If `buf` has no room for [`HEADER_LEN`], padding and chunk.
    pub fn encode(&self, padding: &[u8], buf: &mut impl BufMut) {
        let padding_len = u16::try_from(padding.len()).unwrap_or(u16::MAX);
        buf.put_u8(MARKER);
        buf.put_u8(self.message_id);
        buf.put_u8(self.index << 4 | self.count & 0x0f);
        buf.put_u16(padding_len);
        buf.put_slice(padding.get(..padding_len.into()).unwrap_or_default());
        buf.put_slice(self.chunk);
    }
}

/// Picks a number of chunks, evenly, for a random number that is even over all of `u32`.
#[must_use]
pub fn chunk_count(random: u32) -> u8 {
    let offset = below(random, u32::from(MAX_CHUNKS - MIN_CHUNKS) + 1);
    u8::try_from(offset).map_or(MIN_CHUNKS, |offset| MIN_CHUNKS + offset)
}

/// Cuts a datagram into `count` chunks of equal length, the last of which takes the remainder.
///
/// `message_id` is to differ from those of the datagrams before; the reference counts up. A
/// `count` outside [`MIN_CHUNKS`] to [`MAX_CHUNKS`] is moved to the nearer end.
pub fn split(
    datagram: &[u8],
    message_id: u8,
    count: u8,
) -> impl ExactSizeIterator<Item = Frame<'_>> {
    let count = count.clamp(MIN_CHUNKS, MAX_CHUNKS);
    let chunk_len = datagram.len() / usize::from(count);
    let mut rest = datagram;
    (0..count).map(move |index| {
        let len = if index + 1 == count {
            rest.len()
        } else {
            chunk_len
        };
        let (chunk, after) = rest.split_at_checked(len).unwrap_or((rest, &[]));
        rest = after;
        Frame {
            message_id,
            index,
            count,
            chunk,
        }
    })
}

/// The span of sizes that framed datagrams take on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketSizes {
    min: u16,
    max: u16,
}

/// The sizes are not in order from 1 to 2,048.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("packet sizes must satisfy 1 <= minimum <= maximum <= 2048")]
pub struct PacketSizesError;

impl PacketSizes {
    /// Takes the smallest and largest size in bytes of a UDP payload, salt included.
    ///
    /// # Errors
    ///
    /// [`PacketSizesError`] unless 1 ≤ `min` ≤ `max` ≤ [`MAX_DATAGRAM_LEN`].
    pub fn new(min: u16, max: u16) -> Result<Self, PacketSizesError> {
        if min >= 1 && min <= max && usize::from(max) <= MAX_DATAGRAM_LEN {
            Ok(Self { min, max })
        } else {
            Err(PacketSizesError)
        }
    }

    /// Returns the smallest size in bytes.
    #[must_use]
    pub fn min(self) -> u16 {
        self.min
    }

    /// Returns the largest size in bytes.
    #[must_use]
    pub fn max(self) -> u16 {
        self.max
    }

    /// Returns how much padding brings a chunk to an even choice among the sizes it can take, for
    /// a random number that is even over all of `u32`. A chunk that is too large gets none.
    #[must_use]
    pub fn padding_len(self, chunk_len: usize, random: u32) -> u16 {
        let Ok(bare) = u16::try_from(SALT_LEN + HEADER_LEN + chunk_len) else {
            return 0;
        };
        let low = self.min.max(bare);
        if low > self.max {
            return 0;
        }
        let extra = below(random, u32::from(self.max - low) + 1);
        (low - bare).saturating_add(u16::try_from(extra).unwrap_or(0))
    }
}

impl Default for PacketSizes {
    /// The reference's 512 to 1,200 bytes.
    fn default() -> Self {
        Self {
            min: 512,
            max: 1200,
        }
    }
}

/// Scales a random number to `0..end`.
fn below(random: u32, end: u32) -> u32 {
    u32::try_from((u64::from(random) * u64::from(end)) >> 32).unwrap_or(0)
}

/// Puts datagrams together from frames of many sources `K`, such as socket addresses.
///
/// It holds at most [`MAX_PER_SOURCE`] unfinished datagrams of a source and [`MAX_UNFINISHED`] in
/// all, each of [`MAX_DATAGRAM_LEN`] bytes for at most [`REASSEMBLY_TTL`]: 8 MiB of chunks,
/// whatever arrives. At either limit the oldest datagram makes way, where the reference refuses
/// the newest of a source: after loss the newest is the retransmission that matters.
#[derive(Debug)]
pub struct Reassembler<K> {
    sources: BTreeMap<K, Vec<Unfinished>>,
    /// Sources of all unfinished datagrams, by age.
    by_age: BTreeMap<u64, K>,
    next_age: u64,
}

#[derive(Debug)]
struct Unfinished {
    /// Key in [`Reassembler::by_age`].
    age: u64,
    started: Instant,
    message_id: u8,
    count: u8,
    len: usize,
    chunks: [Option<Box<[u8]>>; MAX_CHUNKS as usize],
}

impl<K: Ord + Clone> Reassembler<K> {
    /// Makes an empty reassembler.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            sources: BTreeMap::new(),
            by_age: BTreeMap::new(),
            next_age: 0,
        }
    }

    /// Takes a frame in, and returns the datagram if this completes it.
    ///
    /// A chunk that is there already is dropped, and so is one whose count differs from that of
    /// the first.
    pub fn push(&mut self, source: &K, frame: &Frame<'_>, now: Instant) -> Option<Vec<u8>> {
        self.expire(now);
        if frame.index >= frame.count || frame.chunk.len() > MAX_DATAGRAM_LEN {
            return None;
        }
        let known = self.sources.get(source).is_some_and(|unfinished| {
            unfinished
                .iter()
                .any(|one| one.message_id == frame.message_id)
        });
        if !known {
            self.start(source, frame, now);
        }
        let unfinished = self
            .sources
            .get_mut(source)?
            .iter_mut()
            .find(|one| one.message_id == frame.message_id)?;
        let slot = unfinished.chunks.get_mut(usize::from(frame.index))?;
        let len = unfinished.len + frame.chunk.len();
        if unfinished.count != frame.count || slot.is_some() || len > MAX_DATAGRAM_LEN {
            return None;
        }
        *slot = Some(frame.chunk.into());
        unfinished.len = len;
        if unfinished.missing() > 0 {
            return None;
        }
        let age = unfinished.age;
        self.remove(age).map(Unfinished::join)
    }

    /// Frees what has waited for [`REASSEMBLY_TTL`]. [`push`](Self::push) does so as well; a timer
    /// is needed only to free memory while nothing arrives.
    pub fn expire(&mut self, now: Instant) {
        while let Some((age, source)) = self.by_age.first_key_value() {
            let age = *age;
            let fresh = self
                .sources
                .get(source)
                .and_then(|unfinished| unfinished.iter().find(|one| one.age == age))
                .is_some_and(|one| now.saturating_duration_since(one.started) < REASSEMBLY_TTL);
            if fresh {
                break;
            }
            self.remove(age);
        }
    }

    /// Returns the number of unfinished datagrams.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.by_age.len()
    }

    fn start(&mut self, source: &K, frame: &Frame<'_>, now: Instant) {
        // Ages only grow, so the first of a source is its oldest.
        let evicted = match self.sources.get(source) {
            Some(own) if own.len() >= MAX_PER_SOURCE => own.first().map(|one| one.age),
            _ if self.by_age.len() >= MAX_UNFINISHED => {
                self.by_age.first_key_value().map(|(age, _)| *age)
            }
            _ => None,
        };
        if let Some(age) = evicted {
            self.remove(age);
        }
        let age = self.next_age;
        self.next_age += 1;
        self.by_age.insert(age, source.clone());
        self.sources
            .entry(source.clone())
            .or_default()
            .push(Unfinished {
                age,
                started: now,
                message_id: frame.message_id,
                count: frame.count,
                len: 0,
                chunks: Default::default(),
            });
    }

    fn remove(&mut self, age: u64) -> Option<Unfinished> {
        let source = self.by_age.remove(&age)?;
        let unfinished = self.sources.get_mut(&source)?;
        let at = unfinished.iter().position(|one| one.age == age)?;
        let removed = unfinished.remove(at);
        if unfinished.is_empty() {
            self.sources.remove(&source);
        }
        Some(removed)
    }
}

impl<K: Ord + Clone> Default for Reassembler<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl Unfinished {
    fn missing(&self) -> usize {
        let present = self.chunks.iter().flatten().count();
        usize::from(self.count).saturating_sub(present)
    }

    fn join(self) -> Vec<u8> {
        let mut datagram = Vec::with_capacity(self.len);
        for chunk in self.chunks.iter().flatten() {
            datagram.extend_from_slice(chunk);
        }
        datagram
    }
}

#[cfg(test)]
mod tests;
