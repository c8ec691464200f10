//! Salamander and Gecko, packet by packet and in the batches of the sockets.

use std::{hint::black_box, net::SocketAddr};

use hy2_core::{
    fuzzing::socket::{FULL_TRANSMIT, Inbox, MAX_RUN_DATAGRAMS, Outbox},
    quinn::udp::Transmit,
    socket::Obfuscation,
};
use hy2_proto::{
    gecko::{Frame, PacketSizes, Reassembler, split},
    salamander::{SALT_LEN, Salamander},
};

use crate::{Case, payload};

const PASSWORD: &str = "a password of some length";
const FULL: usize = 1452;
const BATCH: usize = MAX_RUN_DATAGRAMS * (FULL - SALT_LEN);

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("salamander/key", || {
            let (cover, mut salt) = (cover(), [7_u8; SALT_LEN]);
            Box::new(move || {
                salt[0] = salt[0].wrapping_add(1);
                black_box(cover.key(black_box(&salt)));
            })
        }),
        Case::new("salamander/xor 64", || xor(64)).bytes(64),
        Case::new("salamander/xor 1200", || xor(1200)).bytes(1200),
        Case::new("salamander/xor 1452", || xor(1452)).bytes(1452),
        Case::new("salamander/packet out 64", || out(64)).bytes(64),
        Case::new("salamander/packet out 1200", || out(1200)).bytes(1200),
        Case::new("salamander/packet out 1452", || out(1452)).bytes(1452),
        Case::new("salamander/packet in 64", || inward(64)).bytes(64),
        Case::new("salamander/packet in 1200", || inward(1200)).bytes(1200),
        Case::new("salamander/packet in 1452", || inward(1452)).bytes(1452),
        Case::new("batch/plain out", || batch_out(Obfuscation::Plain))
            .bytes(BATCH)
            .items(MAX_RUN_DATAGRAMS as u64),
        Case::new("batch/salamander out", || batch_out(salamander()))
            .bytes(BATCH)
            .items(MAX_RUN_DATAGRAMS as u64),
        // With a copy of the batch into the buffer, as the kernel makes it: see `batch/copy`.
        Case::new("batch/salamander in, compacted", || batch_in(salamander()))
            .bytes(BATCH)
            .items(MAX_RUN_DATAGRAMS as u64),
        Case::new("batch/copy", || {
            let from = payload(MAX_RUN_DATAGRAMS * FULL);
            let mut to = vec![0; from.len()];
            Box::new(move || {
                to.copy_from_slice(black_box(&from));
                black_box(&to);
            })
        })
        .bytes(BATCH)
        .items(MAX_RUN_DATAGRAMS as u64),
        // What of `batch/salamander in, compacted` closes the gaps that the salts leave.
        Case::new("batch/compaction", || {
            let mut buf = payload(MAX_RUN_DATAGRAMS * FULL);
            Box::new(move || {
                let mut to = 0;
                for from in (0..buf.len()).step_by(FULL) {
                    buf.copy_within(black_box(from + SALT_LEN..from + FULL), to);
                    to += FULL - SALT_LEN;
                }
                black_box(&buf);
            })
        })
        .bytes(BATCH)
        .items(MAX_RUN_DATAGRAMS as u64),
        Case::new("gecko/split and pad 1200", || {
            let sizes = PacketSizes::new(512, 1200).expect("in order");
            let datagram = long(1200);
            let (padding, mut wire, mut message) = (payload(1200), Vec::with_capacity(2048), 0_u8);
            Box::new(move || {
                message = message.wrapping_add(1);
                for frame in split(black_box(&datagram), message, 4) {
                    let len = sizes.padding_len(frame.chunk.len(), 0x7fff_ffff);
                    wire.clear();
                    frame.encode(&padding[..len.into()], &mut wire);
                    black_box(&wire);
                }
            })
        })
        .bytes(1200)
        .items(4),
        // Only handshakes are split: the parts and the whole.
        Case::new("gecko/join 1200", || {
            let source: SocketAddr = ([192, 0, 2, 1], 443).into();
            let mut joining = Reassembler::new();
            let datagram = long(1200);
            let frames: Vec<Vec<u8>> = split(&datagram, 1, 4)
                .map(|frame| {
                    let mut wire = Vec::new();
                    frame.encode(&[0; 100], &mut wire);
                    wire
                })
                .collect();
            let now = std::time::Instant::now();
            Box::new(move || {
                let mut whole = None;
                for wire in &frames {
                    let frame = Frame::decode(black_box(wire)).expect("valid");
                    whole = joining.push(&source, &frame, now);
                }
                assert!(black_box(whole).is_some(), "joined");
            })
        })
        .bytes(1200)
        .items(4)
        .allocates(6.0),
        Case::new("gecko/socket out, handshake", || {
            let obfuscation = gecko();
            let datagram = long(1200);
            let mut outbox = Outbox::default();
            Box::new(move || {
                outbox.push(&transmit(&datagram, None), &obfuscation);
                while outbox.take(|bytes, _| _ = black_box(bytes)) {}
            })
        })
        .bytes(1200),
        Case::new("gecko/socket out, bulk", || batch_out(gecko()))
            .bytes(BATCH)
            .items(MAX_RUN_DATAGRAMS as u64),
        Case::new("gecko/socket in, bulk", || batch_in(gecko()))
            .bytes(BATCH)
            .items(MAX_RUN_DATAGRAMS as u64),
    ]
}

fn cover() -> Salamander {
    Salamander::new(PASSWORD).expect("long enough")
}

fn salamander() -> Obfuscation {
    Obfuscation::salamander(PASSWORD).expect("long enough")
}

fn gecko() -> Obfuscation {
    Obfuscation::gecko(PASSWORD, 512, 1200).expect("in order")
}

/// A QUIC packet with a long header of version 1.
fn long(len: usize) -> Vec<u8> {
    let mut datagram = payload(len);
    datagram[..5].copy_from_slice(&[0xc0, 0, 0, 0, 1]);
    datagram
}

fn xor(len: usize) -> Box<dyn FnMut()> {
    let key = cover().key(&[7; SALT_LEN]);
    let mut data = payload(len);
    Box::new(move || {
        key.apply(&mut data);
        black_box(&data);
    })
}

fn out(len: usize) -> Box<dyn FnMut()> {
    let (cover, data) = (cover(), payload(len));
    let (mut wire, mut salt) = (vec![0; SALT_LEN + len], [7_u8; SALT_LEN]);
    Box::new(move || {
        salt[0] = salt[0].wrapping_add(1);
        black_box(cover.obfuscate(salt, black_box(&data), &mut wire));
    })
}

fn inward(len: usize) -> Box<dyn FnMut()> {
    let cover = cover();
    let mut wire = payload(SALT_LEN + len);
    Box::new(move || {
        black_box(cover.deobfuscate(black_box(&mut wire)));
    })
}

fn transmit(contents: &[u8], segment_size: Option<usize>) -> Transmit<'_> {
    Transmit {
        destination: ([192, 0, 2, 1], 443).into(),
        ecn: None,
        contents,
        segment_size,
        src_ip: None,
    }
}

/// As many datagrams as one send takes, in the transmits that the QUIC layer makes.
fn batch_out(obfuscation: Obfuscation) -> Box<dyn FnMut()> {
    let segment = FULL - SALT_LEN;
    let mut contents = payload(BATCH);
    for datagram in contents.chunks_mut(segment) {
        // A short header.
        datagram[0] = 0x40;
    }
    let mut outbox = Outbox::default();
    Box::new(move || {
        for full in contents.chunks(FULL_TRANSMIT * segment) {
            outbox.push(&transmit(full, Some(segment)), &obfuscation);
        }
        while outbox.take(|bytes, _| _ = black_box(bytes)) {}
    })
}

/// As many datagrams as one read brings, in one buffer.
fn batch_in(obfuscation: Obfuscation) -> Box<dyn FnMut()> {
    let mut contents = payload(BATCH);
    for datagram in contents.chunks_mut(FULL - SALT_LEN) {
        datagram[0] = 0x40;
    }
    let mut wire = Vec::new();
    let mut outbox = Outbox::default();
    outbox.push(&transmit(&contents, Some(FULL - SALT_LEN)), &obfuscation);
    while outbox.take(|bytes, _| wire.extend_from_slice(bytes)) {}
    assert_eq!(wire.len(), MAX_RUN_DATAGRAMS * FULL);
    let inbox = Inbox::new(&obfuscation);
    let from = ([192, 0, 2, 1], 443).into();
    let mut buf = wire.clone();
    Box::new(move || {
        buf.copy_from_slice(black_box(&wire));
        let (len, stride, dropped) = inbox.decode(&mut buf, FULL, from);
        assert_eq!((len, stride, dropped), (BATCH, FULL - SALT_LEN, 0));
        black_box(&buf);
    })
}
