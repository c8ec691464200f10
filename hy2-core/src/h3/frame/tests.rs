use bytes::BufMut;
use proptest::prelude::*;

use super::*;

fn frame(kind: u64, length: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    varint::encode(kind, &mut out);
    varint::encode(length, &mut out);
    out.put_slice(payload);
    out
}

/// Feeds `input` in one piece and returns everything found, adjacent DATA joined.
fn decode(place: Place, input: &[u8]) -> (Vec<Frame>, Result<FrameDecoder, FrameError>) {
    decode_chunks(place, &[input])
}

fn decode_chunks(place: Place, chunks: &[&[u8]]) -> (Vec<Frame>, Result<FrameDecoder, FrameError>) {
    let mut decoder = FrameDecoder::new(place);
    let mut found: Vec<Frame> = Vec::new();
    for chunk in chunks {
        let mut input = Bytes::copy_from_slice(chunk);
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(Frame::Data(more))) => match found.last_mut() {
                    Some(Frame::Data(data)) => {
                        *data = [data.as_ref(), more.as_ref()].concat().into()
                    }
                    _ => found.push(Frame::Data(more)),
                },
                Ok(Some(frame)) => found.push(frame),
                Ok(None) => break,
                Err(error) => return (found, Err(error)),
            }
        }
        assert!(
            input.is_empty(),
            "a decoder that wants more has used up its input"
        );
    }
    (found, Ok(decoder))
}

/// The bytes that were gathered for a frame that is not complete. The memory for them, [`FrameDecoder::held`], depends on
/// the chunks they came in.
fn gathered(decoder: &FrameDecoder) -> usize {
    match &decoder.state {
        State::Section { held, .. } | State::Settings { held, .. } => held.len(),
        _ => 0,
    }
}

#[test]
fn a_request_with_body_and_trailers() {
    let input = [
        frame(1, 3, b"abc"),
        frame(0x21, 4, b"skip"),
        frame(0, 5, b"hello"),
        frame(1, 2, b"xy"),
    ]
    .concat();
    let (found, end) = decode(Place::Request, &input);
    assert_eq!(
        found,
        [
            Frame::Headers(Bytes::from_static(b"abc")),
            Frame::DataHead(5),
            Frame::Data(Bytes::from_static(b"hello")),
            Frame::Headers(Bytes::from_static(b"xy")),
        ]
    );
    assert!(end.expect("valid").is_between_frames());
}

#[test]
fn an_announced_length_reserves_nothing() {
    for kind in [1, 0x21, 0x401] {
        for length in [1 << 40, varint::MAX] {
            let (found, end) = decode(Place::Request, &frame(kind, length, &[0; 1000]));
            assert_eq!(found, []);
            match end {
                Err(error) => assert_eq!((kind, error), (1, FrameError::SectionTooLarge)),
                Ok(decoder) => assert_eq!(decoder.held(), 0),
            }
        }
    }
    let (_, end) = decode(Place::Request, &frame(1, MAX_SECTION, b"abc"));
    // Three bytes came; a small buffer holds them, whatever was announced.
    let held = end.expect("within the limit").held();
    assert!((3..=64).contains(&held), "{held}");
    assert_eq!(
        decode(Place::Request, &frame(1, MAX_SECTION + 1, b""))
            .1
            .err(),
        Some(FrameError::SectionTooLarge)
    );
}

#[test]
fn a_data_head_is_found_before_its_bytes() {
    assert_eq!(
        decode(Place::Request, &frame(0, 1 << 60, b"")).0,
        [Frame::DataHead(1 << 60)]
    );
    assert_eq!(
        decode(Place::Request, &frame(0, 0, b"")).0,
        [Frame::DataHead(0)]
    );
}

#[test]
fn frames_of_http2_are_refused() {
    for kind in [2, 6, 8, 9] {
        assert_eq!(
            decode(Place::Request, &frame(kind, 0, b"")).1.err(),
            Some(FrameError::Reserved)
        );
    }
}

#[test]
fn settings_are_checked() {
    let settings = |payload: &[u8]| {
        let (found, end) = decode(Place::Control, &frame(4, payload.len() as u64, payload));
        (found, end.err())
    };
    assert_eq!(settings(&[]), (vec![Frame::Settings], None));
    assert_eq!(
        settings(&hex::decode("0680a00000").expect("hex")),
        (vec![Frame::Settings], None)
    );
    assert_eq!(
        settings(&[6, 1, 6, 1]).1,
        Some(FrameError::Malformed),
        "twice"
    );
    assert_eq!(
        settings(&[8, 2]).1,
        Some(FrameError::Malformed),
        "neither 0 nor 1"
    );
    assert_eq!(settings(&[6]).1, Some(FrameError::CutShort), "no value");
    assert_eq!(
        decode(Place::Control, &frame(4, MAX_SETTINGS + 1, b""))
            .1
            .err(),
        Some(FrameError::Malformed)
    );
    assert_eq!(
        decode(Place::Control, &frame(7, 1, &[0])).0,
        [Frame::GoAway]
    );
    assert_eq!(
        decode(Place::Control, &frame(7, 2, &[0, 0])).1.err(),
        Some(FrameError::Malformed)
    );
    assert_eq!(
        decode(Place::Control, &frame(1, 1 << 60, b"")).0,
        [Frame::HeadersHead]
    );
}

prop_compose! {
    fn any_frame()(
        kind in prop_oneof![Just(0u64), Just(1), Just(4), Just(7), Just(0x401), 0u64..40, any::<u64>()],
        payload in proptest::collection::vec(any::<u8>(), 0..120),
    ) -> Vec<u8> {
        frame(kind & varint::MAX, payload.len() as u64, &payload)
    }
}

proptest! {
    #[test]
    fn chunking_changes_nothing(
        frames in proptest::collection::vec(any_frame(), 0..8),
        garbage in proptest::collection::vec(any::<u8>(), 0..40),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let input = [frames.concat(), garbage].concat();
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
        at.sort_unstable();
        let mut chunks = Vec::new();
        let mut start = 0;
        for cut in at {
            chunks.push(&input[start..cut]);
            start = cut;
        }
        chunks.push(&input[start..]);
        for place in [Place::Request, Place::Control] {
            let (whole, whole_end) = decode(place, &input);
            let (cut, cut_end) = decode_chunks(place, &chunks);
            prop_assert_eq!(whole, cut);
            prop_assert_eq!(
                whole_end.map(|decoder| (gathered(&decoder), decoder.is_between_frames())),
                cut_end.map(|decoder| (gathered(&decoder), decoder.is_between_frames()))
            );
        }
    }

    #[test]
    fn never_more_is_held_than_one_section(input in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let (_, Ok(decoder)) = decode(Place::Request, &input) {
            prop_assert!(gathered(&decoder) as u64 <= MAX_SECTION);
            prop_assert!(gathered(&decoder) <= input.len());
            // An empty buffer that grows takes a few bytes at least, and a growing one no more than twice its content.
            prop_assert!(decoder.held() <= 2 * gathered(&decoder) + 64);
        }
    }
}
