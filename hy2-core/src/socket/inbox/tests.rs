use std::net::Ipv4Addr;

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::socket::obfs::Obfuscation;

fn source() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 4000).into()
}

fn salamander() -> (Obfuscation, Salamander) {
    let password = "average_password";
    (
        Obfuscation::salamander(password).unwrap(),
        Salamander::new(password).unwrap(),
    )
}

fn gecko() -> (Obfuscation, Salamander) {
    let password = "average_password";
    (
        Obfuscation::gecko(password, 512, 1200).unwrap(),
        Salamander::new(password).unwrap(),
    )
}

/// The datagrams that quinn would see of those in `wire`, received in one buffer.
fn decode(inbox: &Inbox, wire: &[Vec<u8>]) -> (Vec<Vec<u8>>, usize) {
    let stride = wire[0].len();
    let mut buf = wire.concat();
    buf.resize(buf.len() + 64, 0xee);
    let mut meta = [RecvMeta::default()];
    meta[0].addr = source();
    meta[0].len = wire.iter().map(Vec::len).sum();
    meta[0].stride = stride;
    let mut bufs = [IoSliceMut::new(&mut buf)];
    let dropped = inbox.decode(&mut bufs, &mut meta);
    let mut seen = split(&bufs[0], &meta[0]);
    let mut room = vec![0; 4096];
    while let Some(count) = inbox.take_ready(&mut [IoSliceMut::new(&mut room)], &mut meta) {
        assert_eq!((count, meta[0].addr), (1, source()));
        seen.extend(split(&room, &meta[0]));
    }
    (seen, dropped)
}

/// Cuts a buffer as quinn does.
fn split(buf: &[u8], meta: &RecvMeta) -> Vec<Vec<u8>> {
    if meta.len == 0 {
        return Vec::new();
    }
    assert!(meta.stride > 0, "quinn would spin");
    buf[..meta.len]
        .chunks(meta.stride)
        .map(<[u8]>::to_vec)
        .collect()
}

fn cover(cover: &Salamander, salt: u8, payload: &[u8]) -> Vec<u8> {
    let mut wire = vec![0; SALT_LEN + payload.len()];
    cover
        .obfuscate([salt; SALT_LEN], payload, &mut wire)
        .unwrap();
    wire
}

#[test]
fn reference_vectors_are_read() {
    for (password, wire, plain) in [
        (
            "average_password",
            "010203040506070850458cbe794ecd5196d2b6a2110960d73af8ddb0fdc16f39f74a0e85b76300166c00\
             96b77516826bc381aea80d07648528acc6b0ff80316ab94c1283f2644b",
            hex::encode("Hello, Hysteria 2 salamander test vector, longer than 32 bytes."),
        ),
        (
            "cry_me_a_r1ver",
            "ffffffffffffffff3a0908735fccca3031cd666e4a169c8348c9f95cfe7d2a9aa0dfbff01f58a7751a29\
             28537fecea10",
            hex::encode((0..=0x27).collect::<Vec<u8>>()),
        ),
    ] {
        let inbox = Inbox::new(&Obfuscation::salamander(password).unwrap());
        let (seen, dropped) = decode(&inbox, &[hex::decode(wire).unwrap()]);
        assert_eq!((hex::encode(&seen[0]), dropped), (plain, 0));
    }
}

#[test]
fn datagrams_without_payload_are_dropped() {
    let (obfs, key) = salamander();
    let inbox = Inbox::new(&obfs);
    for len in 0..=SALT_LEN {
        assert_eq!(decode(&inbox, &[vec![7; len]]), (Vec::new(), 1));
    }
    // The end of a batch may be too short, the rest of it is not.
    let good = cover(&key, 1, b"payload");
    let (seen, dropped) = decode(&inbox, &[good.clone(), good, vec![7; SALT_LEN]]);
    assert_eq!((seen, dropped), (vec![b"payload".to_vec(); 2], 1));
}

#[test]
fn unknown_versions_are_not_left_to_quinn() {
    let long = |version: u32| [&[0xc3][..], &version.to_be_bytes(), &[8; 1300]].concat();
    {
        let (obfs, key) = salamander();
        let inbox = Inbox::new(&obfs);
        for version in [0, 1, 0x6b33_43cf] {
            let (seen, dropped) = decode(&inbox, &[cover(&key, 1, &long(version))]);
            assert_eq!((seen, dropped), (vec![long(version)], 0));
        }
        for version in [2, 0x0a1a_2a3a, 0xdead_beef, u32::MAX] {
            let (seen, dropped) = decode(&inbox, &[cover(&key, 1, &long(version))]);
            assert_eq!((seen, dropped), (Vec::new(), 1));
        }
        assert_eq!(decode(&inbox, &[cover(&key, 1, &[0xc0, 0, 0, 0])]).1, 1);
    }
}

#[test]
fn fragments_among_other_datagrams_are_joined() {
    let (obfs, key) = gecko();
    let inbox = Inbox::new(&obfs);
    let datagram = [&[0xc0, 0, 0, 0, 1][..], &[9; 295]].concat();
    let short = vec![0x40; 305];
    let fragments: Vec<_> = gecko::split(&datagram, 77, 2)
        .map(|frame| {
            let mut wire = Vec::new();
            frame.encode(&[3; 150], &mut wire);
            cover(&key, frame.index, &wire)
        })
        .collect();
    assert_eq!(fragments[0].len(), 8 + short.len());
    let last = cover(&key, 9, &[0x41; 30]);
    let wire = [
        cover(&key, 3, &short),
        fragments[1].clone(),
        cover(&key, 4, &short),
        fragments[0].clone(),
        fragments[0].clone(),
        last,
    ];
    let (seen, dropped) = decode(&inbox, &wire);
    assert_eq!(seen, [short.clone(), short, vec![0x41; 30], datagram],);
    // The repeated one opens a message of its own, which nothing will complete.
    assert_eq!(dropped, 0);
}

#[test]
fn long_header_outside_a_frame_is_dropped_under_gecko() {
    let (obfs, key) = gecko();
    let inbox = Inbox::new(&obfs);
    let datagram = [&[0xc0, 0, 0, 0, 1][..], &[9; 1200]].concat();
    let short = vec![0x40; datagram.len()];
    let wire = [cover(&key, 1, &datagram), cover(&key, 2, &short)];
    assert_eq!(decode(&inbox, &wire), (vec![short], 1));
}

#[test]
fn joined_datagram_that_quinn_would_answer_is_dropped() {
    let (obfs, key) = gecko();
    let inbox = Inbox::new(&obfs);
    let datagram = [&[0xc0, 9, 9, 9, 9][..], &[9; 1300]].concat();
    let mut dropped = 0;
    for frame in gecko::split(&datagram, 1, 3) {
        let mut wire = Vec::new();
        frame.encode(&[], &mut wire);
        let (seen, more) = decode(&inbox, &[cover(&key, frame.index, &wire)]);
        assert_eq!(seen, Vec::<Vec<u8>>::new());
        dropped += more;
    }
    assert_eq!(dropped, 1);
}

proptest! {
    /// In place and by stride gives what one datagram after the other gives.
    #[test]
    fn batches_decode_like_single_datagrams(
        size in 1_usize..1500,
        count in 1_usize..20,
        last in 1_usize..1500,
        fill: u8,
    ) {
        let (obfs, key) = salamander();
        let inbox = Inbox::new(&obfs);
        let mut plain: Vec<Vec<u8>> = (0..count)
            .map(|i| (0..size).map(|j| (fill as usize + i * 31 + j) as u8 & 0x7f).collect())
            .collect();
        plain.push(vec![fill & 0x7f; last.min(size)]);
        let wire: Vec<_> = plain.iter().zip(0..).map(|(p, i)| cover(&key, i, p)).collect();
        prop_assert_eq!(decode(&inbox, &wire), (plain, 0));
    }

    /// Nothing received may panic, make quinn spin, or grow.
    #[test]
    fn garbage_is_survived(
        bytes in vec(any::<u8>(), 0..4000),
        stride in 0_usize..1600,
        magic: bool,
    ) {
        for (obfs, key) in [salamander(), gecko()] {
            let inbox = Inbox::new(&obfs);
            let bytes = if magic {
                // Beyond the cover, so that the parser of fragments is reached.
                let beneath = [&[0x80][..], &bytes].concat();
                cover(&key, 5, &beneath)
            } else {
                bytes.clone()
            };
            let mut buf = bytes.clone();
            let mut meta = [RecvMeta::default()];
            meta[0].len = bytes.len();
            meta[0].stride = stride;
            inbox.decode(&mut [IoSliceMut::new(&mut buf)], &mut meta);
            prop_assert!(meta[0].len <= bytes.len());
            split(&buf, &meta[0]);
        }
    }
}
