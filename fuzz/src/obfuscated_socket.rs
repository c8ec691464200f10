//! What an obfuscated socket makes of received buffers, as batches of datagrams at a stride.
//!
//! Planted bug: the stride of a batch could exceed what was left of the buffer.

use std::net::SocketAddr;

use arbitrary::Unstructured;
use hy2_core::{fuzzing::socket::Inbox, socket::Obfuscation};
use hy2_proto::{
    gecko::{self, is_long_header, split},
    salamander::{SALT_LEN, Salamander},
};

use crate::{pattern, read, take};

const PASSWORD: &str = "a password of length";

/// Receives buffers made of proper and of any datagrams.
pub fn target(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let gecko = read::<u8>(&mut input) % 2 == 1;
    let obfuscation = if gecko {
        Obfuscation::gecko(PASSWORD, 512, 1200)
    } else {
        Obfuscation::salamander(PASSWORD)
    };
    let inbox = Inbox::new(&obfuscation.expect("long enough"));
    let cover = Salamander::new(PASSWORD).expect("long enough");
    for _ in 0..40 {
        if input.is_empty() {
            break;
        }
        let from = SocketAddr::from(([192, 0, 2, read::<u8>(&mut input) % 4], 1));
        match read::<u8>(&mut input) % 4 {
            // Any bytes at any stride.
            0 => {
                let stride = usize::from(read::<u16>(&mut input));
                let len = usize::from(read::<u8>(&mut input)) * 4;
                let mut buf = take(&mut input, len).to_vec();
                receive(&inbox, &mut buf, stride, from);
            }
            // A batch of short headers, the last one shorter: comes out whole and in order.
            1 => {
                let each = 1 + usize::from(read::<u8>(&mut input));
                let count = usize::from(read::<u8>(&mut input) % 8);
                let last = usize::from(read::<u8>(&mut input)) % each;
                let mut plain = pattern(3, each * count + last);
                for first in plain.iter_mut().step_by(each) {
                    *first &= 0x7f;
                }
                let mut wire = Vec::new();
                for datagram in plain.chunks(each) {
                    cover_into(&cover, datagram, &mut wire);
                }
                let (len, stride) = receive(&inbox, &mut wire, each + SALT_LEN, from);
                assert_eq!(wire[..len], plain);
                assert_eq!(stride, each.min(len));
            }
            // Frames of Gecko, one of which may be missing.
            2 => {
                let len = usize::from(read::<u16>(&mut input) % 2200);
                let mut datagram = pattern(5, len.max(5));
                datagram[..5].copy_from_slice(&[0xc0, 0, 0, 0, 1]);
                let (id, count) = (read::<u8>(&mut input), read::<u8>(&mut input));
                let missing = usize::from(read::<u8>(&mut input) % 16);
                let frames: Vec<_> = split(&datagram, id, count).collect();
                for (at, frame) in frames.iter().enumerate() {
                    if at == missing {
                        continue;
                    }
                    let mut plain = Vec::new();
                    frame.encode(b"padding", &mut plain);
                    let mut wire = Vec::new();
                    cover_into(&cover, &plain, &mut wire);
                    let stride = wire.len();
                    receive(&inbox, &mut wire, stride, from);
                }
            }
            // Any payload under the right password.
            _ => {
                let len = usize::from(read::<u8>(&mut input));
                let payload = take(&mut input, len);
                let mut wire = Vec::new();
                cover_into(&cover, payload, &mut wire);
                let stride = wire.len();
                receive(&inbox, &mut wire, stride, from);
            }
        }
    }
}

fn cover_into(cover: &Salamander, payload: &[u8], wire: &mut Vec<u8>) {
    let start = wire.len();
    wire.resize(start + SALT_LEN + payload.len(), 0);
    let salt = [start as u8; SALT_LEN];
    cover
        .obfuscate(salt, payload, &mut wire[start..])
        .expect("room");
}

/// Decodes a buffer and checks what quinn relies on.
fn receive(inbox: &Inbox, buf: &mut [u8], stride: usize, from: SocketAddr) -> (usize, usize) {
    let before = buf.len();
    let datagrams = before.div_ceil(stride.clamp(1, before.max(1))).max(1);
    let (len, stride, dropped) = inbox.decode(buf, stride, from);
    assert!(len <= before && stride <= len);
    assert!(len == 0 || stride > 0, "quinn steps by the stride");
    assert!(dropped <= datagrams);
    for datagram in buf[..len].chunks(stride.max(1)) {
        answerable(datagram);
    }
    let mut whole = [0; gecko::MAX_DATAGRAM_LEN];
    while let Some(len) = inbox.take_ready(&mut whole) {
        assert!(len <= whole.len());
        answerable(&whole[..len]);
    }
    (len, stride)
}

/// Long headers of versions that quinn does not know would make a server answer noise.
fn answerable(datagram: &[u8]) {
    if is_long_header(datagram) {
        let version = datagram.get(1..5).expect("a whole version");
        let known: [[u8; 4]; 3] = [[0; 4], [0, 0, 0, 1], [0x6b, 0x33, 0x43, 0xcf]];
        assert!(known.iter().any(|known| known == version), "{version:?}");
    }
}
