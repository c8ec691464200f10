//! A server socket that speaks two obfuscations for a while: each peer is understood under the one that it speaks and
//! answered under the one that it was heard under last, and noise changes nothing of that.
//!
//! Planted bug: a stranger whose datagrams were nothing under either was answered under the previous one.

use std::net::SocketAddr;

use arbitrary::Unstructured;
use hy2_core::{fuzzing::socket::Changing, socket::Obfuscation};
use hy2_proto::{
    gecko::{self, split},
    salamander::{SALT_LEN, Salamander},
};

use crate::{pattern, read, take};

const PASSWORDS: [&str; 4] = [
    "one key of some length",
    "another key of some length",
    "a third key of some length",
    "a key of somebody else",
];

/// Takes the two obfuscations and a program.
pub fn target(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let (current, previous) = (read::<u8>(&mut input) % 4, read::<u8>(&mut input) % 3);
    // Not the same twice.
    let spoken = [current, (current + 1 + previous) % 4];
    let [current, previous] = spoken.map(kind);
    let recognises = |identifier: &[u8]| identifier.starts_with(b"ours");
    let mut world = World {
        socket: Changing::new(&current, &previous, recognises),
        spoken,
        peers: [0; PEERS],
    };
    for _ in 0..60 {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
        for (at, speaks) in world.peers.iter().enumerate() {
            let expected = [&current, &previous][*speaks];
            assert_eq!(world.socket.towards(&address(at)), expected, "peer {at}");
        }
    }
}

const PEERS: usize = 4;

fn address(peer: usize) -> SocketAddr {
    ([192, 0, 2, peer as u8], 7).into()
}

const GECKO: u8 = 3;

fn kind(number: u8) -> Obfuscation {
    let obfuscation = match number {
        0 => Ok(Obfuscation::Plain),
        1 => Obfuscation::salamander(PASSWORDS[0]),
        2 => Obfuscation::salamander(PASSWORDS[1]),
        _ => Obfuscation::gecko(PASSWORDS[2], 512, 1200),
    };
    obfuscation.expect("long enough")
}

/// Covers a datagram as an obfuscation does; under a key of somebody else for none of them.
fn covered(number: Option<u8>, datagram: &[u8], salt: u8) -> Vec<u8> {
    let password = match number {
        Some(0) => return datagram.to_vec(),
        Some(number) => PASSWORDS[usize::from(number) - 1],
        None => PASSWORDS[3],
    };
    let cover = Salamander::new(password).expect("long enough");
    let mut wire = vec![0; SALT_LEN + datagram.len()];
    // Salts that do not look like the beginning of a QUIC packet.
    let salt = [salt & 0x3f; SALT_LEN];
    cover.obfuscate(salt, datagram, &mut wire).expect("room");
    wire
}

struct World {
    socket: Changing,
    /// What the socket speaks and spoke.
    spoken: [u8; 2],
    /// Which of them each peer was heard under last.
    peers: [usize; PEERS],
}

impl World {
    fn step(&mut self, input: &mut Unstructured<'_>) {
        let (choice, salt) = (read::<u8>(input), read::<u8>(input));
        let peer = usize::from(choice >> 4) % PEERS;
        match choice % 8 {
            0..=2 => self.packets(input, peer, usize::from(choice >> 7), salt),
            3 | 4 => self.long(input, peer, usize::from(choice >> 7), salt),
            5 => {
                let len = usize::from(read::<u16>(input) % 1400);
                let mut noise = covered(None, &pattern(salt.into(), len), salt);
                let stride = noise.len();
                self.receive(&mut noise, stride, peer);
                // Gecko's frames have little to tell them by.
                if self.spoken.contains(&GECKO) {
                    self.believe(peer);
                }
            }
            6 => {
                let number = self.spoken[usize::from(salt) % 2];
                let len = usize::from(read::<u8>(input));
                let mut wire = covered(Some(number), take(input, len), salt);
                let stride = wire.len();
                self.receive(&mut wire, stride, peer);
                self.believe(peer);
            }
            _ => {
                let stride = usize::from(read::<u16>(input));
                let len = usize::from(read::<u8>(input)) * 4;
                let mut any = take(input, len).to_vec();
                self.receive(&mut any, stride, peer);
                self.believe(peer);
            }
        }
    }

    /// Packets of a connection, joined as the kernel does: short headers to an identifier that was given out.
    fn packets(&mut self, input: &mut Unstructured<'_>, peer: usize, speaks: usize, salt: u8) {
        let each = 9 + usize::from(read::<u16>(input) % 1200);
        let count = 1 + usize::from(read::<u8>(input) % 5);
        let mut plain = pattern(salt.into(), each * count);
        let mut wire = Vec::new();
        for packet in plain.chunks_mut(each) {
            packet[0] = 0x40 | packet[0] & 0x3f;
            packet[1..5].copy_from_slice(b"ours");
            wire.extend(covered(Some(self.spoken[speaks]), packet, salt));
        }
        let stride = wire.len() / count;
        let (len, stride) = self.receive(&mut wire, stride, peer);
        assert!(wire[..len] == plain && stride == each, "other packets");
        self.peers[peer] = speaks;
    }

    /// The first packet of a connection, in frames where Gecko is spoken.
    fn long(&mut self, input: &mut Unstructured<'_>, peer: usize, speaks: usize, salt: u8) {
        let len = usize::from(read::<u16>(input) % 1200);
        let mut packet = pattern(salt.into(), 9 + len);
        packet[..5].copy_from_slice(&[0xc0, 0, 0, 0, 1]);
        let number = self.spoken[speaks];
        if number != GECKO {
            let mut wire = covered(Some(number), &packet, salt);
            let stride = wire.len();
            let (len, stride) = self.receive(&mut wire, stride, peer);
            assert!(wire[..len] == packet && stride == packet.len());
        } else {
            for frame in split(&packet, salt, read(input)) {
                let mut plain = Vec::new();
                frame.encode(b"padding", &mut plain);
                let mut wire = covered(Some(number), &plain, salt);
                let stride = wire.len();
                self.receive(&mut wire, stride, peer);
            }
        }
        self.peers[peer] = speaks;
    }

    /// Takes over what the socket makes of a peer that may have spoken either.
    fn believe(&mut self, peer: usize) {
        let towards = self.socket.towards(&address(peer));
        self.peers[peer] = usize::from(*towards != kind(self.spoken[0]));
    }

    /// Decodes a buffer and checks what quinn relies on.
    fn receive(&self, buf: &mut [u8], stride: usize, peer: usize) -> (usize, usize) {
        let before = buf.len();
        let datagrams = before.div_ceil(stride.clamp(1, before.max(1))).max(1);
        let (len, stride, dropped) = self.socket.decode(buf, stride, address(peer));
        assert!(len <= before && dropped <= datagrams);
        // What is not covered passes as it came.
        if !self.spoken.contains(&0) {
            assert!(stride <= len && (len == 0 || stride > 0));
        }
        let mut whole = [0; gecko::MAX_DATAGRAM_LEN];
        while let Some(len) = self.socket.take_ready(&mut whole) {
            assert!(len <= whole.len());
        }
        (len, stride)
    }
}
