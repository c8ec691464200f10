use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

fn wire(message: &UdpMessage<'_>) -> Vec<u8> {
    let mut buf = Vec::new();
    message.encode(&mut buf);
    buf
}

#[expect(clippy::disallowed_methods, reason = "any origin will do")]
fn origin() -> Instant {
    Instant::now()
}

fn part<'a>(packet_id: u16, frag_id: u8, frag_count: u8, data: &'a str) -> UdpMessage<'a> {
    UdpMessage {
        session_id: 123,
        packet_id,
        frag_id,
        frag_count,
        address: "test:123",
        data: data.as_bytes(),
    }
}

fn text(assembled: Option<Assembled>) -> Option<String> {
    assembled.map(|whole| String::from_utf8(whole.data.to_vec()).unwrap())
}

/// Reference `frag_test.go`.
#[test]
fn reference_fragments() {
    for (data, max_size, expected) in [
        ("hello", 20, &["hel", "lo"][..]),
        ("abcdefgh", 19, &["ab", "cd", "ef", "gh"]),
        ("hello", 22, &["hello"]),
        ("hello", 1200, &["hello"]),
    ] {
        let message = UdpMessage::whole(123, "test:123", data.as_bytes());
        let fragments = fragment(&message, max_size, 4321).unwrap();
        let count = expected.len();
        assert_eq!(fragments.len(), count);
        for ((id, part), expected) in (0..).zip(fragments).zip(expected) {
            assert_eq!(part.data, expected.as_bytes());
            assert_eq!(part.frag_id, id);
            assert_eq!(usize::from(part.frag_count), count);
            assert!(part.encoded_len() <= max_size);
        }
    }
}

/// Derived from the format: packet 4321 (0x10e1), session 123.
#[test]
fn fragment_bytes() {
    let message = UdpMessage::whole(123, "test:123", b"hello");
    let wires: Vec<_> = fragment(&message, 20, 4321)
        .unwrap()
        .map(|part| hex::encode(wire(&part)))
        .collect();
    // session | packet | fragment | of 2 | length 8 | test:123 | data
    assert_eq!(
        wires,
        [
            "0000007b10e1000208746573743a31323368656c",
            "0000007b10e1010208746573743a3132336c6f",
        ]
    );
}

#[test]
fn a_message_that_fits_keeps_its_packet_number() {
    let message = UdpMessage {
        packet_id: 7,
        ..UdpMessage::whole(1, "a:1", b"data")
    };
    let fragments: Vec<_> = fragment(&message, 100, 99).unwrap().collect();
    assert_eq!(fragments, [message]);
}

/// Sizes that a hostile `max_datagram_frame_size` can bring about: 4,096 bytes behind a header of
/// 19 need more than 255 fragments up to a size of 35.
#[test]
fn fragment_count_never_overflows() {
    let data = vec![0; 4096];
    let message = UdpMessage::whole(1, "1.2.3.4:53", &data);
    assert_eq!(udp::header_len(message.address.len()), 19);
    for (max_size, needed) in [(22, 1366), (27, 512), (34, 274), (35, 256)] {
        assert_eq!(
            fragment(&message, max_size, 1).unwrap_err(),
            FragmentError::TooManyFragments(needed)
        );
    }
    assert_eq!(fragment(&message, 36, 1).unwrap().len(), 241);
    let exactly_255 = &data[..255 * 16];
    let message = UdpMessage::whole(1, "1.2.3.4:53", exactly_255);
    let fragments = fragment(&message, 35, 1).unwrap();
    assert_eq!(fragments.len(), 255);
    assert_eq!(fragments.last().map(|last| last.frag_id), Some(254));
}

#[test]
fn tiny_sizes_are_errors() {
    let message = UdpMessage::whole(1, "1.2.3.4:53", b"x");
    for max_size in 0..=19 {
        assert_eq!(
            fragment(&message, max_size, 1).unwrap_err(),
            FragmentError::MaxSizeTooSmall {
                max_size,
                header_len: 19
            }
        );
    }
    assert_eq!(fragment(&message, 20, 1).unwrap().len(), 1);
}

#[test]
fn what_the_format_cannot_express_is_an_error() {
    let long = "a".repeat(udp::MAX_ADDRESS_LEN + 1);
    for (address, data, error) in [
        ("a:1", &b""[..], FragmentError::EmptyData),
        ("", b"x", FragmentError::AddressLength),
        (&long, b"x", FragmentError::AddressLength),
    ] {
        let message = UdpMessage::whole(1, address, data);
        assert_eq!(fragment(&message, 4096, 1).unwrap_err(), error);
    }
}

/// Reference `frag_test.go`: one state machine all the way.
#[test]
fn reference_defragmenter() {
    let mut defragmenter = Defragmenter::new();
    for (message, expected) in [
        (part(987, 0, 2, "hello "), None),
        (part(987, 1, 2, "moto"), Some("hello moto")),
        (part(3, 0, 3, "deco"), None),
        (part(3, 1, 3, "*"), None),
        (part(3, 2, 3, "27"), Some("deco*27")),
        (part(233, 1, 2, "shinsekai"), None),
        // Another packet evicts 233.
        (part(244, 1, 2, "what"), None),
        (part(233, 1, 2, " annaijo"), None),
        // A fragment beyond the count is dropped and evicts nothing.
        (part(233, 88, 2, "shinsekai"), None),
        (part(233, 0, 2, "shinsekai"), Some("shinsekai annaijo")),
    ] {
        let whole = text(defragmenter.push(&message));
        assert_eq!(whole.as_deref(), expected, "{message:?}");
    }
}

#[test]
fn whole_messages_pass_and_leave_the_partial_alone() {
    let mut defragmenter = Defragmenter::new();
    assert_eq!(defragmenter.push(&part(5, 0, 2, "a")), None);
    for count in [0, 1] {
        let whole = defragmenter.push(&part(9, 3, count, "whole"));
        assert_eq!(text(whole).as_deref(), Some("whole"));
    }
    assert_eq!(
        text(defragmenter.push(&part(5, 1, 2, "b"))).as_deref(),
        Some("ab")
    );
}

#[test]
fn a_contradictory_fragment_evicts_nothing() {
    let mut defragmenter = Defragmenter::new();
    assert_eq!(defragmenter.push(&part(5, 0, 2, "a")), None);
    for (frag_id, data) in [(2, "x"), (u8::MAX, "x"), (0, "")] {
        assert_eq!(defragmenter.push(&part(6, frag_id, 2, data)), None);
    }
    assert_eq!(
        text(defragmenter.push(&part(5, 1, 2, "b"))).as_deref(),
        Some("ab")
    );
}

#[test]
fn another_count_starts_over() {
    let mut defragmenter = Defragmenter::new();
    assert_eq!(defragmenter.push(&part(5, 0, 2, "a")), None);
    assert_eq!(defragmenter.push(&part(5, 1, 3, "b")), None);
    assert_eq!(defragmenter.push(&part(5, 0, 3, "a")), None);
    assert_eq!(
        text(defragmenter.push(&part(5, 2, 3, "c"))).as_deref(),
        Some("abc")
    );
}

#[test]
fn a_finished_message_does_not_come_twice() {
    let mut defragmenter = Defragmenter::new();
    for _ in 0..3 {
        defragmenter.push(&part(5, 0, 2, "a"));
        defragmenter.push(&part(5, 1, 2, "b"));
    }
    assert_eq!(defragmenter.push(&part(5, 0, 2, "a")), None);
    assert_eq!(defragmenter.push(&part(5, 1, 2, "b")), None);
    assert_eq!(defragmenter.held_bytes(), 0);
    // The next packet is welcome.
    assert_eq!(defragmenter.push(&part(6, 0, 2, "c")), None);
    assert!(defragmenter.push(&part(6, 1, 2, "d")).is_some());
}

#[test]
fn the_last_fragment_names_the_address() {
    let mut defragmenter = Defragmenter::new();
    let first = UdpMessage {
        address: "first:1",
        ..part(5, 0, 2, "a")
    };
    let last = UdpMessage {
        address: "last:2",
        ..part(5, 1, 2, "b")
    };
    assert_eq!(defragmenter.push(&last), None);
    let whole = defragmenter.push(&first).unwrap();
    assert_eq!(whole.address, "first:1");
    assert_eq!((whole.session_id, whole.packet_id), (123, 5));
}

#[test]
fn a_fragment_bomb_stays_within_its_bound() {
    let mut defragmenter = Defragmenter::new();
    let data = vec![0; 4000];
    let mut most = 0;
    for frag_id in 0..u8::MAX {
        let message = UdpMessage {
            frag_id,
            frag_count: u8::MAX,
            packet_id: 1,
            ..UdpMessage::whole(1, "a:1", &data)
        };
        assert_eq!(defragmenter.push(&message), None);
        most = most.max(defragmenter.held_bytes());
    }
    assert!(most >= 60_000, "{most}");
    assert!(most <= MAX_ASSEMBLED_LEN + 255 * 4, "{most}");
    assert_eq!(defragmenter.held_bytes(), 0, "given up and freed");
}

#[test]
fn a_single_byte_reserves_little() {
    let mut defragmenter = Defragmenter::new();
    defragmenter.push(&part(1, 7, u8::MAX, "x"));
    assert!(defragmenter.held_bytes() <= 255 + 255 * 4);
}

#[test]
fn data_up_to_the_bound_is_assembled() {
    let mut defragmenter = Defragmenter::new();
    let data = vec![9; MAX_ASSEMBLED_LEN];
    let message = UdpMessage::whole(1, "a:1", &data);
    let mut whole = None;
    for part in fragment(&message, 1000, 1).unwrap() {
        whole = defragmenter.push(&part).or(whole);
    }
    assert_eq!(whole.unwrap().data, data);

    let data = vec![9; MAX_ASSEMBLED_LEN + 1];
    let message = UdpMessage::whole(1, "a:1", &data);
    for part in fragment(&message, 1000, 2).unwrap() {
        assert_eq!(defragmenter.push(&part), None);
    }
}

#[test]
fn stale_partials_expire() {
    let start = origin();
    let mut defragmenter = Defragmenter::new();
    assert!(!defragmenter.expire(start));
    defragmenter.push(&part(5, 0, 2, "a"));
    assert!(!defragmenter.expire(start), "age counts from here");
    let almost = start + PARTIAL_TTL - Duration::from_millis(1);
    assert!(!defragmenter.expire(almost));
    assert!(defragmenter.held_bytes() > 0);
    assert!(defragmenter.expire(start + PARTIAL_TTL));
    assert_eq!(defragmenter.held_bytes(), 0);
    assert_eq!(defragmenter.push(&part(5, 1, 2, "b")), None, "it is gone");
}

#[test]
fn a_new_partial_gets_its_own_age() {
    let start = origin();
    let mut defragmenter = Defragmenter::new();
    defragmenter.push(&part(5, 0, 2, "a"));
    defragmenter.expire(start);
    defragmenter.push(&part(6, 0, 2, "a"));
    assert!(!defragmenter.expire(start + PARTIAL_TTL));
    assert!(defragmenter.expire(start + PARTIAL_TTL * 2));
}

proptest! {
    /// Every payload, datagram size and address length: fragments that fit and join, or an error
    /// for a stated reason.
    #[test]
    fn fragments_fit_or_the_reason_is_true(
        len in prop_oneof![0..5000_usize, 0..=65_535_usize],
        max_size in prop_oneof![0..100_usize, 0..=1500_usize],
        address_len in prop_oneof![1..40_usize, 1..=2048_usize],
    ) {
        let data: Vec<u8> = (0..=u8::MAX).cycle().take(len).collect();
        let address = "a".repeat(address_len);
        let message = UdpMessage::whole(1, &address, &data);
        let header = udp::header_len(address_len);
        match fragment(&message, max_size, 5) {
            Ok(fragments) => {
                let count = fragments.len();
                prop_assert!((1..=255).contains(&count));
                prop_assert_eq!(count, len.div_ceil(max_size - header), "as few as possible");
                let even = len.div_ceil(count);
                let mut joined = Vec::new();
                for (id, part) in fragments.clone().enumerate() {
                    prop_assert!(part.data.len() == even || id + 1 == count && part.data.len() < even);
                    prop_assert!(part.encoded_len() <= max_size);
                    prop_assert!(!part.data.is_empty());
                    prop_assert_eq!(usize::from(part.frag_id), id);
                    prop_assert_eq!(usize::from(part.frag_count), count);
                    prop_assert_eq!(part.packet_id, if count == 1 { 0 } else { 5 });
                    prop_assert_eq!(part.address, message.address);
                    joined.extend_from_slice(part.data);
                }
                prop_assert_eq!(fragments.count(), count);
                prop_assert_eq!(joined, data);
            }
            Err(FragmentError::EmptyData) => prop_assert_eq!(len, 0),
            Err(FragmentError::MaxSizeTooSmall { .. }) => prop_assert!(max_size <= header),
            Err(FragmentError::TooManyFragments(needed)) => {
                prop_assert!(needed > 255);
                prop_assert!((max_size - header) * 255 < len);
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    /// Any order, any duplicates: the message comes out exactly once, when its last part is in.
    #[test]
    fn fragments_join_in_any_order(
        data in vec(any::<u8>(), 1..5000),
        max_size in 40..1300_usize,
        order in vec(any::<Index>(), 0..40),
        shuffle in any::<proptest::sample::Selector>(),
    ) {
        let message = UdpMessage::whole(77, "test:123", &data);
        let Ok(fragments) = fragment(&message, max_size, 42) else { return Ok(()) };
        let parts: Vec<_> = fragments.collect();
        // Random draws with repetition, then whatever is missing.
        let mut sequence: Vec<_> = order.iter().map(|index| index.index(parts.len())).collect();
        sequence.push(shuffle.select(0..parts.len()));
        sequence.extend((0..parts.len()).rev());
        let mut missing = parts.len();
        let mut seen = vec![false; parts.len()];
        let mut defragmenter = Defragmenter::new();
        for id in sequence {
            let whole = defragmenter.push(&parts[id]);
            let completes = !std::mem::replace(&mut seen[id], true) && {
                missing -= 1;
                missing == 0
            };
            if parts.len() == 1 {
                prop_assert_eq!(&whole.unwrap().data[..], &data[..]);
                continue;
            }
            prop_assert_eq!(whole.is_some(), completes);
            if let Some(whole) = whole {
                prop_assert_eq!(&whole.data[..], &data[..]);
                prop_assert_eq!((whole.session_id, whole.packet_id), (77, 42));
                prop_assert_eq!(whole.address.as_str(), "test:123");
            }
        }
        if parts.len() > 1 {
            prop_assert_eq!(missing, 0);
            prop_assert_eq!(defragmenter.held_bytes(), 0);
        }
    }

    #[test]
    fn any_fragments_stay_within_the_bound(
        parts in vec((0..3_u16, any::<u8>(), any::<u8>(), 0..4096_usize), 0..200),
    ) {
        let data = vec![0; 4096];
        let mut defragmenter = Defragmenter::new();
        for (packet_id, frag_id, frag_count, len) in parts {
            defragmenter.push(&UdpMessage {
                packet_id, frag_id, frag_count, ..UdpMessage::whole(1, "a:1", &data[..len])
            });
            prop_assert!(defragmenter.held_bytes() <= MAX_ASSEMBLED_LEN + 255 * 4);
        }
    }
}
