use std::net::Ipv4Addr;

use super::*;

fn source(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn fragment(message: u8, index: u8, count: u8, chunk: &[u8]) -> Fragment<'_> {
    Fragment {
        message,
        index,
        count,
        chunk,
    }
}

#[test]
fn chunks_in_any_order_make_the_datagram() {
    let mut all = Reassembler::default();
    let now = Instant::now();
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let mut outcome = Outcome::Dropped;
        for index in order {
            let chunk = [&b"ab"[..], b"cd", b"efg"][usize::from(index)];
            outcome = all.insert(source(1), &fragment(5, index, 3, chunk), now);
        }
        assert_eq!(outcome, Outcome::Complete(b"abcdefg".to_vec()));
    }
    assert_eq!((all.bytes, all.messages, all.sources.len()), (0, 0, 0));
}

#[test]
fn messages_of_different_sources_do_not_mix() {
    let mut all = Reassembler::default();
    let now = Instant::now();
    assert_eq!(
        all.insert(source(1), &fragment(5, 0, 2, b"a"), now),
        Outcome::Kept
    );
    assert_eq!(
        all.insert(source(2), &fragment(5, 1, 2, b"b"), now),
        Outcome::Kept
    );
    assert_eq!(
        all.insert(source(1), &fragment(5, 1, 2, b"c"), now),
        Outcome::Complete(b"ac".to_vec())
    );
}

#[test]
fn duplicates_and_other_counts_are_dropped() {
    let mut all = Reassembler::default();
    let now = Instant::now();
    assert_eq!(
        all.insert(source(1), &fragment(5, 0, 2, b"a"), now),
        Outcome::Kept
    );
    assert_eq!(
        all.insert(source(1), &fragment(5, 0, 2, b"x"), now),
        Outcome::Dropped
    );
    assert_eq!(
        all.insert(source(1), &fragment(5, 1, 3, b"x"), now),
        Outcome::Dropped
    );
    assert_eq!(
        all.insert(source(1), &fragment(5, 1, 2, b"b"), now),
        Outcome::Complete(b"ab".to_vec())
    );
}

#[test]
fn incomplete_message_expires() {
    let mut all = Reassembler::default();
    let start = Instant::now();
    all.insert(source(1), &fragment(5, 0, 2, b"old"), start);
    assert_eq!(
        all.insert(source(1), &fragment(5, 1, 2, b"new"), start + TTL),
        Outcome::Kept
    );
    assert_eq!(all.messages, 1);
    assert_eq!(all.bytes, 3);
}

#[test]
fn ninth_message_of_a_source_evicts_its_oldest() {
    let mut all = Reassembler::default();
    let now = Instant::now();
    for message in 0..9 {
        all.insert(source(1), &fragment(message, 0, 2, b"a"), now);
    }
    assert_eq!(all.messages, MAX_PER_SOURCE);
    assert_eq!(
        all.insert(source(1), &fragment(8, 1, 2, b"b"), now),
        Outcome::Complete(b"ab".to_vec())
    );
    // Message 0 is gone, so this opens it anew.
    assert_eq!(
        all.insert(source(1), &fragment(0, 1, 2, b"b"), now),
        Outcome::Kept
    );
}

#[test]
fn a_flood_of_fragments_stays_within_bounds() {
    let mut all = Reassembler::default();
    let now = Instant::now();
    let chunk = vec![0; 2000];
    for n in 0..40_000_u32 {
        let port = (n / 8) as u16;
        all.insert(source(port), &fragment(n as u8, 0, 8, &chunk), now);
        assert!(all.bytes <= MAX_BYTES);
        assert!(all.messages <= MAX_MESSAGES);
        assert!(all.order.len() <= 2 * MAX_MESSAGES);
    }
    let live: usize = all.sources.values().map(Vec::len).sum();
    assert_eq!(live, all.messages);
    assert_eq!(all.bytes, live * chunk.len());
    // And a message that comes whole still gets through.
    all.insert(source(9), &fragment(1, 0, 2, b"a"), now);
    assert_eq!(
        all.insert(source(9), &fragment(1, 1, 2, b"b"), now),
        Outcome::Complete(b"ab".to_vec())
    );
}

#[test]
fn completed_messages_leave_no_growing_trace() {
    let mut all = Reassembler::default();
    let now = Instant::now();
    for n in 0..3 * MAX_MESSAGES {
        all.insert(source(1), &fragment(n as u8, 0, 2, b"a"), now);
        let done = all.insert(source(1), &fragment(n as u8, 1, 2, b"b"), now);
        assert_eq!(done, Outcome::Complete(b"ab".to_vec()));
        assert!(all.order.len() <= 2 * MAX_MESSAGES);
    }
    assert_eq!((all.bytes, all.messages), (0, 0));
}
