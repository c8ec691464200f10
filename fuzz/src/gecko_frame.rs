//! Frames of Gecko: decoding one, cutting a datagram into several.
//!
//! Planted bug: an index equal to the count was accepted.

use arbitrary::Unstructured;
use hy2_proto::gecko::{
    Frame, HEADER_LEN, MAX_CHUNKS, MAX_DATAGRAM_LEN, MIN_CHUNKS, PacketSizes, chunk_count,
    is_long_header, split,
};
use hy2_proto::salamander::SALT_LEN;

use crate::read;

/// Decodes the input as a frame; cuts it into frames of sizes that its first bytes name.
pub fn target(data: &[u8]) {
    decode(data);
    cut(Unstructured::new(data));
}

fn decode(data: &[u8]) {
    let Ok(frame) = Frame::decode(data) else {
        return;
    };
    assert!(is_long_header(data));
    assert!((MIN_CHUNKS..=MAX_CHUNKS).contains(&frame.count) && frame.index < frame.count);
    assert!(data.ends_with(frame.chunk));
    let padding = &data[HEADER_LEN..data.len() - frame.chunk.len()];
    let mut wire = Vec::new();
    frame.encode(padding, &mut wire);
    // All but the reserved bits.
    assert_eq!(wire[0], 0x80);
    assert_eq!(wire[1..], data[1..]);
    assert_eq!(Frame::decode(&wire), Ok(frame));
    for len in (0..HEADER_LEN + padding.len()).take(16) {
        assert!(Frame::decode(&data[..len]).is_err_and(|error| error.is_incomplete()));
    }
}

fn cut(mut input: Unstructured<'_>) {
    let random = read::<u32>(&mut input);
    let (min, max) = (read::<u16>(&mut input), read::<u16>(&mut input));
    let wanted = read::<u8>(&mut input);
    let message_id = read::<u8>(&mut input);
    let datagram = input.take_rest();

    assert!((MIN_CHUNKS..=MAX_CHUNKS).contains(&chunk_count(random)));
    let sizes = PacketSizes::new(min, max);
    let orderly = 1 <= min && min <= max && usize::from(max) <= MAX_DATAGRAM_LEN;
    assert_eq!(sizes.is_ok(), orderly);
    let sizes = sizes.unwrap_or_default();

    let frames = split(datagram, message_id, wanted);
    let count = wanted.clamp(MIN_CHUNKS, MAX_CHUNKS);
    assert_eq!(frames.len(), usize::from(count));
    let mut joined = Vec::new();
    let mut wire = Vec::new();
    for (index, frame) in frames.enumerate() {
        assert_eq!((usize::from(frame.index), frame.count), (index, count));
        let padding = sizes.padding_len(frame.chunk.len(), random);
        let bare = SALT_LEN + HEADER_LEN + frame.chunk.len();
        let size = bare + usize::from(padding);
        if bare <= usize::from(sizes.max()) {
            let low = usize::from(sizes.min()).max(bare);
            assert!((low..=usize::from(sizes.max())).contains(&size), "{size}");
        } else {
            assert_eq!(padding, 0);
        }
        wire.clear();
        frame.encode(&vec![0x5a; padding.into()], &mut wire);
        assert_eq!(SALT_LEN + wire.len(), size);
        assert_eq!(Frame::decode(&wire), Ok(frame));
        joined.extend_from_slice(frame.chunk);
    }
    assert_eq!(joined, datagram);
}
