//! Frames of a request stream, cut out of a stream of bytes without trusting any declared length.
//!
//! The bytes of DATA are passed on as they arrive and unknown frames are counted down and forgotten, so the only
//! memory a peer can make this hold is one field section of at most [`MAX_SECTION`] bytes, and it grows with what
//! arrived and not with what was announced.

use bytes::{Buf, Bytes, BytesMut};
use hy2_proto::{codec, varint};

/// Largest HEADERS frame that is accepted, in bytes of payload.
pub(super) const MAX_SECTION: u64 = 64 * 1024;
/// Largest SETTINGS frame that is read to its end, in bytes of payload.
const MAX_SETTINGS: u64 = 8 * 1024;
/// Type and length, eight bytes each at most.
const MAX_HEAD: usize = 16;

/// What [`FrameDecoder::decode`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    /// The head of a DATA frame of this many bytes; [`Frame::Data`] follows.
    DataHead(u64),
    /// Bytes of the current DATA frame.
    Data(Bytes),
    /// A whole HEADERS frame.
    Headers(Bytes),
    /// The head of a HEADERS frame in [`Place::Control`], whose payload is skipped.
    HeadersHead,
    /// A well-formed SETTINGS frame.
    Settings,
    /// A well-formed GOAWAY frame.
    GoAway,
}

/// Where in the conversation the frames are expected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Place {
    /// On a request stream.
    #[default]
    Request,
    /// On a control stream.
    Control,
}

/// Input that ends the stream or the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FrameError {
    /// A HEADERS frame larger than [`MAX_SECTION`] was announced.
    SectionTooLarge,
    /// A frame type that HTTP/2 used and HTTP/3 forbids (RFC 9114, section 7.2.8).
    Reserved,
    /// A SETTINGS or GOAWAY frame that makes no sense.
    Malformed,
    /// A SETTINGS frame whose payload ends inside a setting. The reference's stack mistakes it for the end of the
    /// stream, so it gets another code than the rest.
    CutShort,
}

/// Cuts frames out of bytes that arrive in any chunks.
#[derive(Debug, Default)]
pub(super) struct FrameDecoder {
    place: Place,
    state: State,
}

#[derive(Debug)]
enum State {
    Head {
        bytes: [u8; MAX_HEAD],
        len: usize,
    },
    Data {
        left: u64,
    },
    Section {
        left: u64,
        held: BytesMut,
    },
    Settings {
        left: u64,
        held: BytesMut,
    },
    GoAway {
        length: u64,
        bytes: [u8; varint::MAX_LEN],
        len: usize,
    },
    Skip {
        left: u64,
    },
}

impl Default for State {
    fn default() -> Self {
        Self::Head {
            bytes: [0; MAX_HEAD],
            len: 0,
        }
    }
}

impl FrameDecoder {
    /// Starts at the beginning of a stream, or between two frames.
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            state: State::default(),
        }
    }

    /// Takes bytes from `input` until a frame is found or `input` is used up.
    ///
    /// # Errors
    /// [`FrameError`]; the decoder must not be used after it.
    pub(super) fn decode(&mut self, input: &mut Bytes) -> Result<Option<Frame>, FrameError> {
        loop {
            match &mut self.state {
                State::Head { bytes, len } => match head(bytes, len, input) {
                    Some((kind, length)) => {
                        if let Some(frame) = self.start(kind, length)? {
                            return Ok(Some(frame));
                        }
                    }
                    None => return Ok(None),
                },
                State::Data { left } => {
                    let Some(data) = take(left, input) else {
                        return Ok(None);
                    };
                    if *left == 0 {
                        self.state = State::default();
                    }
                    return Ok(Some(Frame::Data(data)));
                }
                State::Skip { left } => {
                    if *left > 0 && take(left, input).is_none() {
                        return Ok(None);
                    }
                    if *left == 0 {
                        self.state = State::default();
                    }
                }
                State::Section { left, held } => {
                    if !gather(left, held, input) {
                        return Ok(None);
                    }
                    let section = std::mem::take(held).freeze();
                    self.state = State::default();
                    return Ok(Some(Frame::Headers(section)));
                }
                State::Settings { left, held } => {
                    if !gather(left, held, input) {
                        return Ok(None);
                    }
                    let found = check_settings(held);
                    self.state = State::default();
                    return found.map(Some);
                }
                // The stream ID is read before it is compared with the length, as in the reference's stack.
                State::GoAway { length, bytes, len } => {
                    let Some(used) = one_varint(bytes, len, input) else {
                        return Ok(None);
                    };
                    if used as u64 != *length {
                        return Err(FrameError::Malformed);
                    }
                    self.state = State::default();
                    return Ok(Some(Frame::GoAway));
                }
            }
        }
    }

    /// Returns how many bytes of memory are held for a frame that is not complete.
    pub(super) fn held(&self) -> usize {
        match &self.state {
            State::Section { held, .. } | State::Settings { held, .. } => held.capacity(),
            _ => 0,
        }
    }

    /// Returns whether a part of a field section has arrived, and a part has not.
    pub(super) fn is_inside_section(&self) -> bool {
        matches!(&self.state, State::Section { held, .. } if !held.is_empty())
    }

    /// Returns whether the stream may end here.
    pub(super) fn is_between_frames(&self) -> bool {
        matches!(self.state, State::Head { len: 0, .. })
    }

    fn start(&mut self, kind: u64, length: u64) -> Result<Option<Frame>, FrameError> {
        match kind {
            DATA => {
                if length > 0 {
                    self.state = State::Data { left: length };
                } else {
                    self.state = State::default();
                }
                return Ok(Some(Frame::DataHead(length)));
            }
            HEADERS if self.place == Place::Control => {
                self.state = State::Skip { left: length };
                return Ok(Some(Frame::HeadersHead));
            }
            HEADERS if length > MAX_SECTION => return Err(FrameError::SectionTooLarge),
            HEADERS => {
                self.state = State::Section {
                    left: length,
                    held: BytesMut::new(),
                }
            }
            SETTINGS if length > MAX_SETTINGS => return Err(FrameError::Malformed),
            SETTINGS => {
                self.state = State::Settings {
                    left: length,
                    held: BytesMut::new(),
                }
            }
            GOAWAY => {
                self.state = State::GoAway {
                    length,
                    bytes: [0; varint::MAX_LEN],
                    len: 0,
                }
            }
            0x2 | 0x6 | 0x8 | 0x9 => return Err(FrameError::Reserved),
            // CANCEL_PUSH, PUSH_PROMISE and MAX_PUSH_ID have no meaning here either: the reference's stack skips them
            // wherever it meets them.
            _ => self.state = State::Skip { left: length },
        }
        Ok(None)
    }
}

const DATA: u64 = 0x0;
const HEADERS: u64 = 0x1;
const SETTINGS: u64 = 0x4;
const GOAWAY: u64 = 0x7;

/// Reads type and length byte by byte, so that nothing behind them is taken.
fn head(bytes: &mut [u8; MAX_HEAD], len: &mut usize, input: &mut Bytes) -> Option<(u64, u64)> {
    loop {
        if let Some(found) = parse_head(bytes.get(..*len)?) {
            *len = 0;
            return Some(found);
        }
        if !input.has_remaining() {
            return None;
        }
        *bytes.get_mut(*len)? = input.get_u8();
        *len += 1;
    }
}

fn parse_head(bytes: &[u8]) -> Option<(u64, u64)> {
    let (kind, used) = varint::decode(bytes).ok()?;
    let (length, _) = varint::decode(bytes.get(used..)?).ok()?;
    Some((kind, length))
}

/// Takes up to `left` bytes that are there; `None` when none are.
fn take(left: &mut u64, input: &mut Bytes) -> Option<Bytes> {
    if input.is_empty() {
        return None;
    }
    let len = usize::try_from(*left)
        .unwrap_or(usize::MAX)
        .min(input.len());
    *left -= len as u64;
    Some(input.split_to(len))
}

/// Moves bytes to `held` and returns whether all of them are there.
fn gather(left: &mut u64, held: &mut BytesMut, input: &mut Bytes) -> bool {
    if *left > 0
        && let Some(part) = take(left, input)
    {
        held.extend_from_slice(&part);
    }
    *left == 0
}

/// Applies the checks of the reference's stack: whole varints, no setting twice, boolean settings 0 or 1.
fn check_settings(mut payload: &[u8]) -> Result<Frame, FrameError> {
    let mut seen = Vec::new();
    while !payload.is_empty() {
        let id = next_varint(&mut payload).ok_or(FrameError::CutShort)?;
        let value = next_varint(&mut payload).ok_or(FrameError::CutShort)?;
        let is_flag = matches!(id, ENABLE_CONNECT_PROTOCOL | H3_DATAGRAM);
        if seen.contains(&id) || seen.len() == MAX_SETTINGS_COUNT || (is_flag && value > 1) {
            return Err(FrameError::Malformed);
        }
        seen.push(id);
    }
    Ok(Frame::Settings)
}

const ENABLE_CONNECT_PROTOCOL: u64 = 0x8;
const H3_DATAGRAM: u64 = 0x33;
/// Bounds the search for duplicates; nobody sends more than a handful.
const MAX_SETTINGS_COUNT: usize = 256;

/// Reads a varint byte by byte and returns how many bytes it had.
fn one_varint(
    bytes: &mut [u8; varint::MAX_LEN],
    len: &mut usize,
    input: &mut Bytes,
) -> Option<usize> {
    loop {
        if let Ok((_, used)) = varint::decode(bytes.get(..*len)?) {
            return Some(used);
        }
        if !input.has_remaining() {
            return None;
        }
        *bytes.get_mut(*len)? = input.get_u8();
        *len += 1;
    }
}

fn next_varint(payload: &mut &[u8]) -> Option<u64> {
    match varint::decode(payload) {
        Ok((value, used)) => {
            *payload = payload.get(used..)?;
            Some(value)
        }
        Err(codec::DecodeError::Incomplete | codec::DecodeError::Invalid(_)) => None,
    }
}

#[cfg(test)]
mod tests;
