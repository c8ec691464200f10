//! Streams of HTTP/3 cut into any chunks: who gets the stream, and which frames come out, must not
//! depend on the cuts.
//!
//! Planted bug: one byte more was read of a stream than its type has, and kept from the relay.

use arbitrary::Unstructured;
use bytes::Bytes;
use hy2_core::fuzzing::h3::{Dispatcher, Event, Frames, request};
use hy2_proto::tcp::FRAME_TYPE;

use crate::{read, take};

/// Takes flags, cuts and the bytes of a stream.
pub fn target(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let flags = read::<u8>(&mut input);
    let (authenticated, one_way) = (flags & 1 != 0, flags & 2 != 0);
    let cuts = take(&mut input, usize::from(flags >> 5));
    let stream = input.take_rest();
    let whole = outcome([stream], authenticated, one_way);
    let bytes = outcome(stream.chunks(1), authenticated, one_way);
    assert_eq!(bytes, whole, "byte by byte");
    let mut chunks = Vec::new();
    let mut rest = stream;
    for len in cuts {
        let (chunk, after) = rest.split_at(rest.len().min(usize::from(*len)));
        chunks.push(chunk);
        rest = after;
    }
    chunks.push(rest);
    assert_eq!(outcome(chunks, authenticated, one_way), whole);

    // What a relay gets is the stream behind the frame type, and only after authentication.
    let kind = hy2_proto::varint::decode(stream).ok();
    let for_relay = authenticated && !one_way && kind.map(|(kind, _)| kind) == Some(FRAME_TYPE);
    match &whole {
        Outcome::Relay(rest) => {
            assert!(for_relay);
            assert_eq!(Some(rest.len()), kind.map(|(_, used)| stream.len() - used));
            assert!(stream.ends_with(rest));
        }
        _ => assert!(!for_relay),
    }
    if let Outcome::Frames { events, .. } = &whole {
        for event in events {
            if let Event::Headers(section) = event {
                let _ = request(section);
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The stream did not say what it is.
    Undecided,
    Relay(Vec<u8>),
    /// A stream in one direction that is no control stream.
    Other(u64),
    Frames {
        events: Vec<Event>,
        /// Between frames and inside a section, unless there was an error.
        end: Option<(bool, bool)>,
    },
}

fn outcome<'a>(
    chunks: impl IntoIterator<Item = &'a [u8]>,
    authenticated: bool,
    one_way: bool,
) -> Outcome {
    let mut chunks = chunks.into_iter();
    let mut dispatcher = Dispatcher::default();
    let (kind, rest) = loop {
        let Some(chunk) = chunks.next() else {
            return if one_way {
                Outcome::Undecided
            } else {
                frames([dispatcher.into_bytes()].into_iter(), false)
            };
        };
        let mut rest = chunk;
        if let Some(kind) = dispatcher.feed(&mut rest) {
            break (kind, rest);
        }
    };
    let chunks = std::iter::once(rest).chain(chunks);
    if one_way {
        if kind != 0 {
            return Outcome::Other(kind);
        }
        let first = std::iter::once(dispatcher.behind_value());
        return frames(first.chain(chunks.map(Bytes::copy_from_slice)), true);
    }
    if authenticated && kind == FRAME_TYPE {
        assert!(dispatcher.behind_value().is_empty(), "a byte of the relay");
        return Outcome::Relay(chunks.collect::<Vec<_>>().concat());
    }
    let first = std::iter::once(dispatcher.into_bytes());
    frames(first.chain(chunks.map(Bytes::copy_from_slice)), false)
}

fn frames(chunks: impl Iterator<Item = Bytes>, control: bool) -> Outcome {
    let mut frames = Frames::new(control);
    let mut events: Vec<Event> = Vec::new();
    let mut received = 0;
    for mut chunk in chunks {
        received += chunk.len();
        while let Some(event) = frames.decode(&mut chunk) {
            if event.is_error() {
                events.push(event);
                return Outcome::Frames { events, end: None };
            }
            match (events.last_mut(), &event) {
                (Some(Event::Data(before)), Event::Data(more)) => {
                    *before = [&before[..], &more[..]].concat().into();
                }
                _ => events.push(event),
            }
        }
        assert!(chunk.is_empty(), "input left over");
        // Grows with what arrived, by doubling, and not with what was announced.
        assert!(frames.held() <= 64 + 2 * received);
        assert!(frames.held() <= 128 << 10);
    }
    Outcome::Frames {
        events,
        end: Some(frames.end()),
    }
}
