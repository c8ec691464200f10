//! Splits UDP messages that are too large for one QUIC datagram, and joins them again.
//!
//! Every fragment repeats the whole header, address included, and carries the next part of the
//! data. The receiving side keeps at most one unfinished message per session, as the reference
//! does (`core/internal/frag`): a fragment of another message throws the old one away. What a
//! peer can make us hold is therefore [`MAX_ASSEMBLED_LEN`] per session, and
//! [`Defragmenter::expire`] takes even that back.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::udp::{self, UdpMessage};

/// Most bytes of data that fragments may add up to. No UDP datagram is larger.
pub const MAX_ASSEMBLED_LEN: usize = 65_535;

/// How long a message may stay unfinished, counted from the first [`Defragmenter::expire`] that
/// sees it.
pub const PARTIAL_TTL: Duration = Duration::from_secs(5);

/// Why a message cannot be split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FragmentError {
    /// There is no data, which the format cannot express.
    #[error("a UDP message carries at least one byte")]
    EmptyData,
    /// The address is empty or longer than [`udp::MAX_ADDRESS_LEN`].
    #[error("address length out of range")]
    AddressLength,
    /// Datagrams of this size have no room for data behind the header.
    #[error("datagrams of {max_size} bytes have no room for data behind a header of {header_len}")]
    MaxSizeTooSmall {
        /// The datagram size asked for, in bytes.
        max_size: usize,
        /// What the header takes, in bytes.
        header_len: usize,
    },
    /// The format counts fragments in one byte.
    #[error("message needs {0} fragments, and 255 are possible")]
    TooManyFragments(usize),
}

/// Splits `message` so that no encoded fragment exceeds `max_size` bytes.
///
/// `max_size` comes from the peer and may be anything; the answer is fragments or an error. A
/// message that fits is returned as it is, whole and with its own packet number. Otherwise there are
/// as few fragments as possible, all equally long but for the last, and all
/// fragments carry `packet_id`, which is to differ from that of the message before it in the same
/// session; the reference draws it at random from 1 to 65,535.
///
/// # Errors
///
/// See [`FragmentError`]; the caller drops the message.
///
/// # Examples
///
/// ```
/// use hy2_proto::frag::fragment;
/// use hy2_proto::udp::UdpMessage;
///
/// let message = UdpMessage::whole(123, "test:123", b"hello");
/// let parts: Vec<_> = fragment(&message, 20, 4321)?.map(|part| part.data).collect();
/// assert_eq!(parts, [&b"hel"[..], b"lo"]);
/// # Ok::<(), hy2_proto::frag::FragmentError>(())
/// ```
pub fn fragment<'a>(
    message: &UdpMessage<'a>,
    max_size: usize,
    packet_id: u16,
) -> Result<Fragments<'a>, FragmentError> {
    let data = message.data;
    if data.is_empty() {
        return Err(FragmentError::EmptyData);
    }
    if !(1..=udp::MAX_ADDRESS_LEN).contains(&message.address.len()) {
        return Err(FragmentError::AddressLength);
    }
    let header_len = udp::header_len(message.address.len());
    let room = max_size.saturating_sub(header_len);
    if room == 0 {
        return Err(FragmentError::MaxSizeTooSmall {
            max_size,
            header_len,
        });
    }
    let needed = data.len().div_ceil(room);
    let count = u8::try_from(needed).map_err(|_| FragmentError::TooManyFragments(needed))?;
    Ok(Fragments {
        message: UdpMessage {
            packet_id: if count == 1 {
                message.packet_id
            } else {
                packet_id
            },
            frag_count: count,
            ..*message
        },
        rest: data,
        // Even parts: what is as long as its neighbours can leave in one system call with them.
        room: data.len().div_ceil(needed),
        next: 0,
    })
}

/// The fragments of one message, in order; made by [`fragment`].
#[derive(Debug, Clone)]
pub struct Fragments<'a> {
    /// What all fragments have in common.
    message: UdpMessage<'a>,
    rest: &'a [u8],
    room: usize,
    next: u8,
}

impl<'a> Iterator for Fragments<'a> {
    type Item = UdpMessage<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let (data, rest) = self.rest.split_at(self.room.min(self.rest.len()));
        let part = UdpMessage {
            frag_id: self.next,
            data,
            ..self.message
        };
        self.rest = rest;
        self.next = self.next.saturating_add(1);
        Some(part)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::from(self.message.frag_count.saturating_sub(self.next));
        (left, Some(left))
    }
}

impl ExactSizeIterator for Fragments<'_> {}

/// A message put together from fragments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assembled {
    /// Session of the fragments.
    pub session_id: u32,
    /// Packet number of the fragments.
    pub packet_id: u16,
    /// Address of the fragment that arrived last, which is the one the reference takes.
    pub address: String,
    /// The data of all fragments.
    pub data: Bytes,
}

/// Joins the fragments of one session.
///
/// Whole messages need not come here: check [`UdpMessage::is_fragment`] and save the copy.
/// Nothing is allocated until the first fragment.
///
/// # Examples
///
/// ```
/// use hy2_proto::frag::{Defragmenter, fragment};
/// use hy2_proto::udp::UdpMessage;
///
/// let message = UdpMessage::whole(1, "example.com:53", b"a long question");
/// let mut defragmenter = Defragmenter::new();
/// let mut whole = None;
/// for part in fragment(&message, 30, 99)? {
///     whole = defragmenter.push(&part).or(whole);
/// }
/// assert_eq!(whole.expect("all parts are there").data, &b"a long question"[..]);
/// # Ok::<(), hy2_proto::frag::FragmentError>(())
/// ```
#[derive(Debug, Default)]
pub struct Defragmenter {
    partial: Option<Partial>,
}

impl Defragmenter {
    /// Makes an empty defragmenter.
    #[must_use]
    pub const fn new() -> Self {
        Self { partial: None }
    }

    /// Takes one message in, and returns a whole one if this completes it.
    ///
    /// Rules of the reference: a fragment with another packet number or count starts over, with
    /// the unfinished message thrown away; a fragment number not below the count is dropped, and
    /// so is one that is there already; a count of 0 or 1 passes through. After completion further
    /// fragments with the same packet number and count are dropped, so duplicates cannot make the
    /// message appear twice. Beyond the reference: a message over [`MAX_ASSEMBLED_LEN`] is given
    /// up, its memory freed and its other fragments dropped.
    pub fn push(&mut self, message: &UdpMessage<'_>) -> Option<Assembled> {
        if !message.is_fragment() {
            return Some(assembled(message, Bytes::copy_from_slice(message.data)));
        }
        if message.frag_id >= message.frag_count || message.data.is_empty() {
            return None;
        }
        let partial = match &mut self.partial {
            Some(partial) if partial.belongs(message) => partial,
            other => other.insert(Partial::new(message)),
        };
        partial
            .add(message.frag_id, message.data)
            .map(|data| assembled(message, data))
    }

    /// Frees an unfinished message that has been so for [`PARTIAL_TTL`], and returns whether
    /// there was one.
    ///
    /// Call it now and then, once a second perhaps. The age of a message counts from the first
    /// call after its first fragment, so that [`push`](Self::push) needs no clock.
    pub fn expire(&mut self, now: Instant) -> bool {
        let Some(partial) = &mut self.partial else {
            return false;
        };
        let seen = *partial.seen.get_or_insert(now);
        let expired = now.saturating_duration_since(seen) >= PARTIAL_TTL;
        if expired {
            self.partial = None;
        }
        expired
    }

    /// Returns the bytes of memory that an unfinished message takes, for a budget that spans
    /// sessions.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, Partial::held_bytes)
    }
}

fn assembled(message: &UdpMessage<'_>, data: Bytes) -> Assembled {
    Assembled {
        session_id: message.session_id,
        packet_id: message.packet_id,
        address: message.address.to_owned(),
        data,
    }
}

/// Where one fragment lies in [`Partial::data`]; a length of 0 means it has not come.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    start: u16,
    len: u16,
}

impl Slot {
    fn is_filled(self) -> bool {
        self.len > 0
    }
}

#[derive(Debug)]
struct Partial {
    packet_id: u16,
    frag_count: u8,
    received: u8,
    /// Fragments came in order so far, so `data` can be used as it lies.
    in_order: bool,
    /// One per fragment; empty once the message is complete or given up.
    slots: Vec<Slot>,
    /// The data of the fragments in the order of their arrival.
    data: Vec<u8>,
    /// When [`Defragmenter::expire`] came by first.
    seen: Option<Instant>,
}

impl Partial {
    fn new(first: &UdpMessage<'_>) -> Self {
        let count = usize::from(first.frag_count);
        // Exact for messages of equal fragments within the usual limit, and never much more than
        // the peer has sent.
        let len = first.data.len();
        let guess = (len * count).min(udp::MAX_MESSAGE_LEN).max(len);
        Self {
            packet_id: first.packet_id,
            frag_count: first.frag_count,
            received: 0,
            in_order: true,
            slots: vec![Slot::default(); count],
            data: Vec::with_capacity(guess.min(MAX_ASSEMBLED_LEN)),
            seen: None,
        }
    }

    fn belongs(&self, message: &UdpMessage<'_>) -> bool {
        self.packet_id == message.packet_id && self.frag_count == message.frag_count
    }

    /// Stores one fragment, and returns the data of all if none is missing any more.
    fn add(&mut self, frag_id: u8, data: &[u8]) -> Option<Bytes> {
        let slot = self.slots.get_mut(usize::from(frag_id))?;
        if slot.is_filled() {
            return None;
        }
        let start = self.data.len();
        let fits = start + data.len() <= MAX_ASSEMBLED_LEN;
        let (Ok(at), Ok(len), true) = (u16::try_from(start), u16::try_from(data.len()), fits)
        else {
            self.close();
            return None;
        };
        *slot = Slot { start: at, len };
        self.in_order &= frag_id == self.received;
        self.received += 1;
        self.grow_for(data.len());
        self.data.extend_from_slice(data);
        (self.received == self.frag_count).then(|| self.finish())
    }

    /// Doubles the buffer at need, but never beyond what a message may hold.
    fn grow_for(&mut self, additional: usize) {
        let len = self.data.len();
        if self.data.capacity() - len < additional {
            let target = (self.data.capacity() * 2)
                .min(MAX_ASSEMBLED_LEN)
                .max(len + additional);
            self.data.reserve_exact(target - len);
        }
    }

    fn finish(&mut self) -> Bytes {
        let (slots, data) = self.close();
        if self.in_order {
            return Bytes::from(data);
        }
        let mut joined = Vec::with_capacity(data.len());
        for slot in slots {
            let start = usize::from(slot.start);
            let part = data.get(start..start + usize::from(slot.len));
            joined.extend_from_slice(part.unwrap_or_default());
        }
        Bytes::from(joined)
    }

    /// Frees the memory; without slots, [`add`](Self::add) drops whatever else comes.
    fn close(&mut self) -> (Vec<Slot>, Vec<u8>) {
        (
            std::mem::take(&mut self.slots),
            std::mem::take(&mut self.data),
        )
    }

    fn held_bytes(&self) -> usize {
        self.data.capacity() + self.slots.capacity() * size_of::<Slot>()
    }
}

#[cfg(test)]
mod tests;
