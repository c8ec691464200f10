//! A server's answer to the authentication of a client, cut into any chunks: who is let in, and with what, must not depend
//! on the cuts, and nobody is let in by anything but the one status.
//!
//! Planted bug: of a status only the first three characters counted.

use arbitrary::Unstructured;
use bytes::Bytes;
use hy2_core::fuzzing::h3::{Event, Frames, answer, encode_fields, fields};
use hy2_proto::{auth::AuthResponse, varint};

use crate::{read, take};

/// Takes flags, cuts, and the bytes of a stream or a program that makes them.
pub fn target(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let flags = read::<u8>(&mut input);
    let cuts = take(&mut input, usize::from(flags >> 5));
    let stream = match flags % 2 {
        0 => input.take_rest().to_vec(),
        _ => made(&mut input),
    };
    let whole = outcome([&stream[..]]);
    assert_eq!(outcome(stream.chunks(1)), whole, "byte by byte");
    let mut chunks = Vec::new();
    let mut rest = &stream[..];
    for len in cuts {
        let (chunk, after) = rest.split_at(rest.len().min(usize::from(*len)));
        chunks.push(chunk);
        rest = after;
    }
    chunks.push(rest);
    assert_eq!(outcome(chunks), whole);
    if let Some(granted) = expected(&stream) {
        assert_eq!(whole.ok(), granted);
    }
}

fn outcome<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Result<AuthResponse, String> {
    answer(chunks.into_iter().map(Bytes::copy_from_slice))
}

/// A stream of frames such as servers send, whatever they say.
fn made(input: &mut Unstructured<'_>) -> Vec<u8> {
    let mut stream = Vec::new();
    for _ in 0..8 {
        if input.is_empty() {
            break;
        }
        let kind = read::<u8>(input);
        let payload = match kind % 5 {
            0 | 1 => section(input, kind),
            2 => encode_fields([(":status", &b"103"[..]), ("link", &b"</style.css>"[..])]),
            _ => {
                let len = usize::from(read::<u8>(input));
                take(input, len).to_vec()
            }
        };
        let kind = match kind % 5 {
            0..=2 => 1,
            3 => 0,
            // Of a type that nobody knows.
            _ => 0x21 + 0x1f * u64::from(kind),
        };
        varint::encode(kind, &mut stream);
        varint::encode(payload.len() as u64, &mut stream);
        stream.extend_from_slice(&payload);
    }
    stream
}

fn section(input: &mut Unstructured<'_>, kind: u8) -> Vec<u8> {
    const NAMES: [&str; 5] = [
        ":status",
        "hysteria-udp",
        "hysteria-cc-rx",
        "hysteria-padding",
        "content-type",
    ];
    let (first, count) = (usize::from(kind >> 5), 1 + usize::from(kind >> 3 & 3));
    let mut values = Vec::new();
    for at in 0..count {
        let len = usize::from(read::<u8>(input) % 24);
        values.push((NAMES[(first + at) % 5], take(input, len)));
    }
    encode_fields(values)
}

/// What a client has to make of a whole stream; `None` where fields stand that cannot be read.
fn expected(stream: &[u8]) -> Option<Option<AuthResponse>> {
    let mut frames = Frames::new(false);
    let mut input = Bytes::copy_from_slice(stream);
    while let Some(event) = frames.decode(&mut input) {
        let Event::Headers(section) = event else {
            return Some(None);
        };
        let fields = fields(&section)?;
        let is_interim = |(name, value): &(Vec<u8>, Vec<u8>)| {
            name == b":status" && value.starts_with(b"1")
        };
        if fields.first().is_some_and(is_interim) {
            continue;
        }
        let get = |name: &str| {
            let mut fields = fields.iter();
            let found = fields.find(|(known, _)| known == name.as_bytes());
            // What is no text is none of the values that mean something.
            found.map(|(_, value)| std::str::from_utf8(value).unwrap_or("?"))
        };
        let status = get(":status").and_then(|status| status.parse::<u16>().ok());
        return Some((status == Some(233)).then(|| AuthResponse::from_headers(get)));
    }
    Some(None)
}
