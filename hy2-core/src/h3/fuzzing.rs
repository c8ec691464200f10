//! The parsers of HTTP/3 for the fuzz targets.

use bytes::Bytes;
use http::Request;
use hy2_proto::auth::{AuthRequest, AuthResponse};

use super::{
    auth,
    client::{self, AuthError},
    frame::{Frame, FrameDecoder, FrameError, Place},
    huffman,
    peek::Peek,
    qpack::{Decoder, Encoder},
    reader::ReadFault,
    request,
};

/// Reads the first varint of a stream, which decides who gets the stream.
#[derive(Debug, Default)]
pub struct Dispatcher(Peek);

impl Dispatcher {
    /// Takes what it wants of `input` and returns the value once it is known.
    pub fn feed(&mut self, input: &mut &[u8]) -> Option<u64> {
        loop {
            if let Some(value) = self.0.known() {
                return Some(value);
            }
            let room = self.0.room();
            let len = room.len().min(input.len());
            let (taken, rest) = input.split_at(len);
            if taken.is_empty() {
                return None;
            }
            room[..len].copy_from_slice(taken);
            *input = rest;
            self.0.filled(len);
        }
    }

    /// Returns what was read behind the value.
    pub fn behind_value(&self) -> Bytes {
        self.0.behind_value()
    }

    /// Returns all that was read.
    pub fn into_bytes(self) -> Bytes {
        self.0.into_bytes()
    }
}

/// What the frame decoder found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The head of DATA.
    DataHead(u64),
    /// Bytes of DATA.
    Data(Bytes),
    /// A field section.
    Headers(Bytes),
    /// The head of HEADERS on a control stream.
    HeadersHead,
    /// SETTINGS.
    Settings,
    /// GOAWAY.
    GoAway,
    /// Announced more than is accepted.
    SectionTooLarge,
    /// A type of HTTP/2.
    Reserved,
    /// A frame without sense.
    Malformed,
    /// SETTINGS that end within a setting.
    CutShort,
}

impl Event {
    /// Tells whether nothing can follow.
    pub fn is_error(&self) -> bool {
        matches!(
            self,
            Self::SectionTooLarge | Self::Reserved | Self::Malformed | Self::CutShort
        )
    }
}

/// Cuts frames out of a stream.
#[derive(Debug)]
pub struct Frames(FrameDecoder);

impl Frames {
    /// Decodes a request stream, or a control stream.
    pub fn new(control: bool) -> Self {
        Self(FrameDecoder::new(if control {
            Place::Control
        } else {
            Place::Request
        }))
    }

    /// Takes bytes from `input` until there is a frame or nothing is left.
    pub fn decode(&mut self, input: &mut Bytes) -> Option<Event> {
        Some(match self.0.decode(input) {
            Ok(frame) => match frame? {
                Frame::DataHead(length) => Event::DataHead(length),
                Frame::Data(data) => Event::Data(data),
                Frame::Headers(section) => Event::Headers(section),
                Frame::HeadersHead => Event::HeadersHead,
                Frame::Settings => Event::Settings,
                Frame::GoAway => Event::GoAway,
            },
            Err(FrameError::SectionTooLarge) => Event::SectionTooLarge,
            Err(FrameError::Reserved) => Event::Reserved,
            Err(FrameError::Malformed) => Event::Malformed,
            Err(FrameError::CutShort) => Event::CutShort,
        })
    }

    /// Bytes held for a frame that is not complete.
    pub fn held(&self) -> usize {
        self.0.held()
    }

    /// Whether the stream may end here, and whether it would end inside a section.
    pub fn end(&self) -> (bool, bool) {
        (self.0.is_between_frames(), self.0.is_inside_section())
    }
}

/// Decodes a field section; `None` if it cannot be decoded.
pub fn fields(section: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut decoder = Decoder::new(section);
    let mut fields = Vec::new();
    while let Some(field) = decoder.next_field().ok()? {
        fields.push((field.name, field.value));
    }
    Some(fields)
}

/// Encodes a field section.
pub fn encode_fields<'a>(fields: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Vec<u8> {
    let mut section = Vec::new();
    let mut encoder = Encoder::new(&mut section);
    for (name, value) in fields {
        encoder.field(name, value);
    }
    section
}

/// Decodes Huffman code; `None` if it is none.
pub fn huffman_decode(input: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    huffman::decode(input, &mut out).ok()?;
    Some(out)
}

/// Encodes with the Huffman code, and says how long that was to become.
pub fn huffman_encode(text: &[u8]) -> (Vec<u8>, usize) {
    let mut out = Vec::new();
    huffman::encode(text, &mut out);
    (out, huffman::encoded_len(text))
}

/// Reads a request: its head, declared length and size. The error is its name.
pub fn request(section: &[u8]) -> Result<(Request<()>, Option<u64>, usize), String> {
    request::parse(section)
        .map(|head| (head.request, head.content_length, head.size))
        .map_err(|refusal| format!("{refusal:?}"))
}

/// Checks trailers. The error is its name.
pub fn trailers(section: &[u8]) -> Result<(), String> {
    request::check_trailers(section).map_err(|refusal| format!("{refusal:?}"))
}

/// What a server reads of an authentication request; `None` for any other request.
pub fn auth_request(request: &Request<()>) -> Option<AuthRequest<'_>> {
    auth::is_auth_request(request).then(|| auth::read_request(request))
}

/// What a client reads of the answer to its authentication, in chunks as they come: what is granted, or the text that
/// says why not.
pub fn answer(chunks: impl IntoIterator<Item = Bytes>) -> Result<AuthResponse, String> {
    let mut chunks = chunks.into_iter();
    read_answer(&mut chunks).map_err(|error| error.to_string())
}

fn read_answer(chunks: &mut dyn Iterator<Item = Bytes>) -> Result<AuthResponse, AuthError> {
    let mut decoder = FrameDecoder::new(Place::Request);
    let mut input = Bytes::new();
    loop {
        // As a reader of the stream does.
        let frame = match decoder.decode(&mut input).map_err(ReadFault::Frame)? {
            Some(frame) => Some(frame),
            None => match chunks.next() {
                Some(chunk) => {
                    input = chunk;
                    continue;
                }
                None if decoder.is_between_frames() => None,
                None => return Err(ReadFault::Truncated.into()),
            },
        };
        if let Some(granted) = client::answer(frame)? {
            return Ok(granted);
        }
    }
}
