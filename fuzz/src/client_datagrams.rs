//! What a server sends to the UDP sessions of a client, in any order with sessions that come and go and with time: each
//! datagram reaches its own session or nobody, and what waits has its limits.
//!
//! Planted bug: fragments of all sessions together could be any number of bytes.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use arbitrary::Unstructured;
use bytes::Bytes;
use hy2_core::fuzzing::client::{MAX_FRAGMENTS, QUEUE, Sessions};
use hy2_proto::{
    frag::{Defragmenter, MAX_ASSEMBLED_LEN, fragment},
    udp::UdpMessage,
};
use tokio::time::{self, Instant};

use crate::{pattern, read, take};

/// Runs a program in virtual time.
pub fn target(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without drivers");
    runtime.block_on(program(data));
}

async fn program(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut world = World::default();
    for _ in 0..60 {
        if input.is_empty() {
            break;
        }
        world.step(&mut input).await;
        world.check();
    }
    world.drain();
}

/// Sessions that the steps choose from.
const SESSIONS: u32 = 6;

/// Those that a flood goes to: together they would hold more than they may.
const FLOODED: std::ops::Range<u32> = 1_000..1_080;

const SOURCES: [&str; 3] = ["192.0.2.1:53", "[2001:db8::1]:443", "not an address"];

#[derive(Default)]
struct World {
    real: Sessions,
    model: BTreeMap<u32, Session>,
}

/// A session as it should be.
#[derive(Default)]
struct Session {
    waiting: VecDeque<(String, Vec<u8>)>,
    joining: Defragmenter,
}

impl World {
    async fn step(&mut self, input: &mut Unstructured<'_>) {
        let session = u32::from(read::<u8>(input)) % SESSIONS;
        match read::<u8>(input) % 12 {
            0 => self.open(session),
            1 => {
                self.real.close(session);
                self.model.remove(&session);
            }
            2 | 3 => {
                let source = SOURCES[usize::from(read::<u8>(input)) % 3];
                let data = pattern(session.into(), 1 + usize::from(read::<u16>(input) % 1500));
                self.message(&UdpMessage::whole(session, source, &data));
            }
            // In fragments, one of which may be missing and one there twice, in either order.
            4 | 5 => {
                let source = SOURCES[usize::from(read::<u8>(input)) % 3];
                let packet = u16::from(read::<u8>(input) % 4);
                let data = pattern(packet.into(), 1 + usize::from(read::<u16>(input) % 9000));
                let max = 40 + usize::from(read::<u16>(input) % 1200);
                let (missing, twice) = (read::<u8>(input), read::<u8>(input));
                let whole = UdpMessage::whole(session, source, &data);
                let Ok(parts) = fragment(&whole, max, packet) else {
                    return;
                };
                let mut parts: Vec<_> = parts.collect();
                if twice % 2 == 1 {
                    parts.reverse();
                }
                for (at, part) in parts.iter().enumerate() {
                    if at != usize::from(missing) {
                        self.message(part);
                    }
                    if at == usize::from(twice) {
                        self.message(part);
                    }
                }
            }
            // Any fragment.
            6 => {
                let data = pattern(3, usize::from(read::<u16>(input) % 3000));
                self.message(&UdpMessage {
                    session_id: session,
                    packet_id: u16::from(read::<u8>(input) % 4),
                    frag_id: read(input),
                    frag_count: read(input),
                    address: SOURCES[data.len() % 3],
                    data: &data,
                });
            }
            // Any bytes.
            7 => {
                let len = usize::from(read::<u8>(input));
                let datagram = Bytes::copy_from_slice(take(input, len));
                self.datagram(datagram);
            }
            8 => {
                let millis = u64::from(read::<u8>(input)) * 30;
                time::advance(Duration::from_millis(millis)).await;
                let now = Instant::now().into_std();
                for session in self.model.values_mut() {
                    session.joining.expire(now);
                }
                assert_eq!(self.real.expire(), self.held() > 0);
            }
            9 => {
                let more = usize::from(read::<u8>(input) % 8);
                for at in 0..QUEUE - 4 + more {
                    self.message(&UdpMessage::whole(session, SOURCES[0], &[at as u8]));
                }
            }
            10 => {
                let many = usize::from(read::<u8>(input) % 4);
                for _ in 0..many {
                    self.receive(session);
                }
            }
            // Much that stays unfinished.
            _ => {
                let packet = u16::from(read::<u8>(input) % 2);
                let data = pattern(9, 4_000);
                for session in FLOODED {
                    self.open(session);
                    for frag_id in 0..16 {
                        self.message(&UdpMessage {
                            session_id: session,
                            packet_id: packet,
                            frag_id,
                            frag_count: 17,
                            address: SOURCES[0],
                            data: &data,
                        });
                    }
                }
            }
        }
    }

    fn open(&mut self, session: u32) {
        if let std::collections::btree_map::Entry::Vacant(new) = self.model.entry(session) {
            self.real.open(session);
            new.insert(Session::default());
        }
    }

    fn message(&mut self, message: &UdpMessage<'_>) {
        let mut datagram = Vec::new();
        message.encode(&mut datagram);
        self.datagram(datagram.into());
    }

    fn datagram(&mut self, datagram: Bytes) {
        let was_fragment = self.real.dispatch(&datagram);
        let message = UdpMessage::decode(&datagram).ok();
        assert_eq!(was_fragment, message.is_some_and(|it| it.is_fragment()));
        let Some(message) = message else { return };
        let full = self.held() > MAX_FRAGMENTS;
        let Some(session) = self.model.get_mut(&message.session_id) else {
            return;
        };
        if message.is_fragment() && full {
            return;
        }
        // A whole message leaves what is unfinished alone.
        let whole = match message.is_fragment() {
            true => session.joining.push(&message).map(|it| (it.address, it.data.to_vec())),
            false => Some((message.address.to_owned(), message.data.to_vec())),
        };
        if session.waiting.len() < QUEUE {
            session.waiting.extend(whole);
        }
    }

    /// Takes the next datagram out of a session.
    fn receive(&mut self, session: u32) -> bool {
        let packet = self.real.recv(session);
        let packet = packet.map(|packet| (packet.source().to_owned(), packet.data.to_vec()));
        let expected = self.model.get_mut(&session);
        let expected = expected.and_then(|session| session.waiting.pop_front());
        assert_eq!(packet, expected, "session {session}");
        packet.is_some()
    }

    fn held(&self) -> usize {
        let sessions = self.model.values();
        sessions.map(|session| session.joining.held_bytes()).sum()
    }

    fn check(&self) {
        let held = self.real.held();
        assert_eq!(held, self.held());
        // One that was let in grows once more.
        assert!(held <= MAX_FRAGMENTS + MAX_ASSEMBLED_LEN + 1_024, "{held}");
    }

    fn drain(&mut self) {
        let sessions: Vec<_> = self.model.keys().copied().collect();
        for session in sessions {
            while self.receive(session) {}
        }
    }
}
