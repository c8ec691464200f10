use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[expect(clippy::disallowed_methods, reason = "any origin will do")]
fn origin() -> Instant {
    Instant::now()
}

fn frame(message_id: u8, index: u8, count: u8, chunk: &[u8]) -> Frame<'_> {
    Frame {
        message_id,
        index,
        count,
        chunk,
    }
}

/// Captured from the official client: 632 bytes of padding, 208 of chunk.
#[test]
fn captured_frame() {
    // marker | message 1 | chunk 0 of 6 | padding of 0x278
    let mut wire = hex::decode("8001060278").unwrap();
    wire.resize(HEADER_LEN + 632, 0xee);
    wire.extend(hex::decode("c00000000108ba75").unwrap());
    wire.resize(HEADER_LEN + 632 + 208, 0x11);
    let decoded = Frame::decode(&wire).unwrap();
    assert_eq!(
        (decoded.message_id, decoded.index, decoded.count),
        (1, 0, 6)
    );
    assert_eq!(decoded.chunk.len(), 208);
    assert!(
        decoded
            .chunk
            .starts_with(&[0xc0, 0, 0, 0, 1, 8, 0xba, 0x75])
    );

    let mut again = Vec::new();
    decoded.encode(&[0xee; 632], &mut again);
    assert_eq!(again, wire);
}

/// Reference `gecko_frame_test.go`.
#[test]
fn invalid_vectors() {
    for (hex, error) in [
        ("", DecodeError::Incomplete),
        // Cut short within the header. 0x22: chunk 2 of 2, which is out of range.
        ("80552200", InvalidKind::Fragment.into()),
        ("80550200", DecodeError::Incomplete),
        // Not a frame.
        ("0000220000", InvalidKind::Type.into()),
        // 0, 1 and 9 chunks.
        ("8000000000", InvalidKind::Fragment.into()),
        ("8000010000", InvalidKind::Fragment.into()),
        ("8000090000", InvalidKind::Fragment.into()),
        // Chunk 4 of 4.
        ("8000440000", InvalidKind::Fragment.into()),
        // Padding of 18 bytes where 2 are left.
        ("80000200120102", DecodeError::Incomplete),
    ] {
        let bytes = hex::decode(hex).unwrap();
        assert_eq!(Frame::decode(&bytes), Err(error), "{hex}");
    }
}

#[test]
fn reserved_bits_are_ignored() {
    assert_eq!(
        Frame::decode(&[0xff, 3, 0x12, 0, 0, 9]),
        Ok(frame(3, 1, 2, &[9]))
    );
}

#[test]
fn long_headers_are_told_by_the_first_bit() {
    assert!(is_long_header(&[0xc0]));
    assert!(is_long_header(&[0x80]));
    assert!(!is_long_header(&[0x7f]));
    assert!(!is_long_header(&[]));
}

#[test]
fn the_last_chunk_takes_the_remainder() {
    let datagram = [0xc1; 1250];
    let lens: Vec<_> = split(&datagram, 0, 6).map(|f| f.chunk.len()).collect();
    assert_eq!(lens, [208, 208, 208, 208, 208, 210]);
    let lens: Vec<_> = split(&[0xc1; 3], 0, 8).map(|f| f.chunk.len()).collect();
    assert_eq!(lens, [0, 0, 0, 0, 0, 0, 0, 3]);
    assert_eq!(split(&datagram, 0, 0).len(), 2);
    assert_eq!(split(&datagram, 0, 255).len(), 8);
}

#[test]
fn counts_cover_two_to_eight() {
    assert_eq!(chunk_count(0), 2);
    assert_eq!(chunk_count(u32::MAX), 8);
}

#[test]
fn padding_spans_the_sizes() {
    let sizes = PacketSizes::default();
    let wire = |chunk: usize, random| {
        SALT_LEN + HEADER_LEN + chunk + usize::from(sizes.padding_len(chunk, random))
    };
    assert_eq!((wire(208, 0), wire(208, u32::MAX)), (512, 1200));
    assert_eq!((wire(0, 0), wire(0, u32::MAX)), (512, 1200));
    assert_eq!((wire(700, 0), wire(700, u32::MAX)), (713, 1200));
    assert_eq!((wire(1187, 0), wire(1187, u32::MAX)), (1200, 1200));
    assert_eq!((wire(1300, 0), wire(1300, u32::MAX)), (1313, 1313));
    assert_eq!(sizes.padding_len(usize::from(u16::MAX), 0), 0);
}

#[test]
fn sizes_are_checked() {
    for (min, max, good) in [
        (1, 1, true),
        (512, 1200, true),
        (2048, 2048, true),
        (0, 1200, false),
        (1200, 512, false),
        (512, 2049, false),
    ] {
        assert_eq!(PacketSizes::new(min, max).is_ok(), good, "{min} {max}");
    }
}

#[test]
fn sources_and_messages_do_not_mix() {
    let now = origin();
    let mut reassembler = Reassembler::new();
    assert_eq!(reassembler.push(&"a", &frame(1, 0, 2, b"a1"), now), None);
    assert_eq!(reassembler.push(&"b", &frame(1, 1, 2, b"b1"), now), None);
    assert_eq!(reassembler.push(&"a", &frame(2, 1, 2, b"a2"), now), None);
    assert_eq!(
        reassembler
            .push(&"a", &frame(1, 1, 2, b"!"), now)
            .as_deref(),
        Some(&b"a1!"[..])
    );
    assert_eq!(
        reassembler
            .push(&"b", &frame(1, 0, 2, b">"), now)
            .as_deref(),
        Some(&b">b1"[..])
    );
    assert_eq!(reassembler.unfinished(), 1);
}

#[test]
fn duplicates_and_other_counts_are_dropped() {
    let now = origin();
    let mut reassembler = Reassembler::new();
    assert_eq!(reassembler.push(&0, &frame(1, 0, 2, b"first"), now), None);
    assert_eq!(reassembler.push(&0, &frame(1, 0, 2, b"again"), now), None);
    assert_eq!(reassembler.push(&0, &frame(1, 1, 3, b"other"), now), None);
    assert_eq!(
        reassembler.push(&0, &frame(1, 1, 2, b""), now).as_deref(),
        Some(&b"first"[..])
    );
    assert_eq!(reassembler.unfinished(), 0);
}

#[test]
fn frames_that_no_decoder_makes_are_dropped() {
    let now = origin();
    let mut reassembler = Reassembler::new();
    for bad in [frame(1, 2, 2, b"x"), frame(1, 200, 255, b"x")] {
        assert_eq!(reassembler.push(&0, &bad, now), None);
    }
    assert_eq!(reassembler.push(&0, &frame(1, 0, 0, b"x"), now), None);
}

#[test]
fn chunks_expire_together() {
    let start = origin();
    let mut reassembler = Reassembler::new();
    reassembler.push(&0, &frame(1, 0, 2, b"a"), start);
    let almost = start + REASSEMBLY_TTL - Duration::from_millis(1);
    reassembler.push(&0, &frame(2, 0, 2, b"b"), almost);
    reassembler.expire(almost);
    assert_eq!(reassembler.unfinished(), 2);
    let late = start + REASSEMBLY_TTL;
    assert_eq!(reassembler.push(&0, &frame(1, 1, 2, b"!"), late), None);
    assert!(
        reassembler.push(&0, &frame(2, 1, 2, b"!"), late).is_some(),
        "younger chunks stay"
    );
    reassembler.expire(late + REASSEMBLY_TTL);
    assert_eq!(reassembler.unfinished(), 0);
    assert!(reassembler.sources.is_empty());
}

#[test]
fn a_source_keeps_its_eight_newest() {
    let now = origin();
    let mut reassembler = Reassembler::new();
    reassembler.push(&"other", &frame(0, 0, 2, b"x"), now);
    for message_id in 0..=8 {
        reassembler.push(&"flood", &frame(message_id, 0, 2, b"x"), now);
    }
    assert_eq!(reassembler.unfinished(), 1 + MAX_PER_SOURCE);
    for message_id in 1..=8 {
        let whole = reassembler.push(&"flood", &frame(message_id, 1, 2, b"y"), now);
        assert!(whole.is_some(), "{message_id}");
    }
    assert_eq!(
        reassembler.push(&"flood", &frame(0, 1, 2, b"y"), now),
        None,
        "the first made way"
    );
    assert!(
        reassembler
            .push(&"other", &frame(0, 1, 2, b"y"), now)
            .is_some()
    );
}

#[test]
fn the_oldest_of_all_makes_way() {
    let now = origin();
    let mut reassembler = Reassembler::new();
    for source in 0..=MAX_UNFINISHED {
        reassembler.push(&source, &frame(0, 0, 2, b"x"), now);
        assert!(reassembler.unfinished() <= MAX_UNFINISHED);
    }
    assert!(reassembler.push(&1, &frame(0, 1, 2, b"y"), now).is_some());
    assert_eq!(reassembler.push(&0, &frame(0, 1, 2, b"y"), now), None);
}

#[test]
fn a_datagram_beyond_the_limit_is_never_whole() {
    let now = origin();
    let mut reassembler = Reassembler::new();
    let chunk = [0; 1025];
    assert_eq!(reassembler.push(&0, &frame(1, 0, 2, &chunk), now), None);
    assert_eq!(reassembler.push(&0, &frame(1, 1, 2, &chunk), now), None);
    assert!(
        reassembler
            .push(&0, &frame(1, 1, 2, &chunk[2..]), now)
            .is_some()
    );
}

proptest! {
    #[test]
    fn frames_round_trip(
        message_id: u8, count in MIN_CHUNKS..=MAX_CHUNKS, index in 0..MAX_CHUNKS,
        padding in vec(any::<u8>(), 0..700), chunk in vec(any::<u8>(), 0..300),
    ) {
        let frame = frame(message_id, index % count, count, &chunk);
        let mut wire = Vec::new();
        frame.encode(&padding, &mut wire);
        prop_assert_eq!(wire.len(), HEADER_LEN + padding.len() + chunk.len());
        prop_assert!(is_long_header(&wire));
        prop_assert_eq!(Frame::decode(&wire), Ok(frame));
        for cut in 0..HEADER_LEN + padding.len() {
            prop_assert_eq!(Frame::decode(&wire[..cut]), Err(DecodeError::Incomplete));
        }
    }

    #[test]
    fn datagrams_come_back_in_any_order(
        datagram in vec(any::<u8>(), 1..=1500), count in MIN_CHUNKS..=MAX_CHUNKS,
        order in Just((0..MAX_CHUNKS).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let now = origin();
        let frames: Vec<_> = split(&datagram, 5, count).collect();
        prop_assert_eq!(frames.len(), usize::from(count));
        let mut reassembler = Reassembler::new();
        let mut whole = None;
        for index in order.into_iter().filter(|index| *index < count) {
            prop_assert!(whole.is_none());
            whole = reassembler.push(&"peer", &frames[usize::from(index)], now);
        }
        prop_assert_eq!(whole, Some(datagram));
        prop_assert_eq!(reassembler.unfinished(), 0);
    }

    #[test]
    fn padding_keeps_to_the_sizes(min in 1..=2048_u16, span in 0..2048_u16, chunk_len in 0..3000_usize, random: u32) {
        let max = (min + span).min(2048);
        let sizes = PacketSizes::new(min, max).unwrap();
        let bare = SALT_LEN + HEADER_LEN + chunk_len;
        let wire = bare + usize::from(sizes.padding_len(chunk_len, random));
        if bare > usize::from(max) {
            prop_assert_eq!(wire, bare);
        } else {
            prop_assert!((usize::from(min)..=usize::from(max)).contains(&wire));
        }
    }

    /// Floods of any frames stay within both limits, and the two indexes agree.
    #[test]
    fn any_frames_stay_within_the_limits(
        frames in vec((0..4_u8, any::<u8>(), any::<u8>(), any::<u8>(), 0..3000_u64), 0..300),
    ) {
        let mut now = origin();
        let mut reassembler = Reassembler::new();
        for (source, message_id, index, count, millis) in frames {
            now += Duration::from_millis(millis);
            reassembler.push(&source, &frame(message_id, index % 9, count % 10, b"chunk"), now);
            let by_source: usize = reassembler.sources.values().map(Vec::len).sum();
            prop_assert_eq!(by_source, reassembler.unfinished());
            prop_assert!(reassembler.sources.values().all(|own| own.len() <= MAX_PER_SOURCE));
        }
    }
}
