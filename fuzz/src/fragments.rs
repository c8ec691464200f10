//! Fragments of UDP messages: cut, and put together in any order with whatever lies in between,
//! against a model that keeps the parts as they are.
//!
//! Planted bug: a fragment that was there already was taken in again.

use std::time::{Duration, Instant};

use arbitrary::Unstructured;
use hy2_proto::{
    frag::{Assembled, Defragmenter, FragmentError, MAX_ASSEMBLED_LEN, PARTIAL_TTL, fragment},
    udp::{MAX_ADDRESS_LEN, UdpMessage, header_len},
};

use crate::{pattern, read};

/// Runs a program of cutting, pushing and waiting.
pub fn target(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let start = Instant::now();
    let mut now = 0;
    let mut real = Defragmenter::new();
    let mut model = Model::default();
    for _ in 0..60 {
        if input.is_empty() {
            break;
        }
        match read::<u8>(&mut input) % 4 {
            // A message in fragments, some of them left out or repeated.
            0 => {
                let len = usize::from(read::<u16>(&mut input));
                // The whole range, but mostly short ones: long ones take their time.
                let len = if len % 16 == 15 { len } else { len % 2048 };
                let address = "a".repeat(usize::from(read::<u16>(&mut input)) % 2100);
                let max_size = usize::from(read::<u16>(&mut input));
                let id = read::<u8>(&mut input) % 4;
                let body = pattern(id.into(), len);
                let message = UdpMessage::whole(9, &address, &body);
                let parts = cut(&message, max_size, id.into());
                let order = read::<u32>(&mut input);
                for part in shuffled(&parts, order) {
                    push(&mut real, &mut model, part);
                }
            }
            // Any one fragment.
            1 | 2 => {
                let len = usize::from(read::<u16>(&mut input) % 700);
                let body = pattern(7, len);
                let message = UdpMessage {
                    session_id: 9,
                    packet_id: (read::<u8>(&mut input) % 4).into(),
                    frag_id: read::<u8>(&mut input),
                    frag_count: read::<u8>(&mut input),
                    address: ["x:1", "long.example.com:65535"][len % 2],
                    data: &body,
                };
                push(&mut real, &mut model, &message);
            }
            _ => {
                now += u64::from(read::<u8>(&mut input)) * 40;
                let freed = real.expire(start + Duration::from_millis(now));
                assert_eq!(freed, model.expire(now));
            }
        }
        let most = MAX_ASSEMBLED_LEN + 255 * 4;
        assert!(real.held_bytes() <= most, "{} bytes", real.held_bytes());
        assert!(model.bytes() <= real.held_bytes(), "memory not counted");
    }
}

/// Cuts a message and checks the cuts.
fn cut<'a>(message: &UdpMessage<'a>, max_size: usize, id: u16) -> Vec<UdpMessage<'a>> {
    let header = header_len(message.address.len());
    let room = max_size.saturating_sub(header);
    let parts = match fragment(message, max_size, id) {
        Ok(parts) => parts,
        Err(error) => {
            let holds = match error {
                FragmentError::EmptyData => message.data.is_empty(),
                FragmentError::AddressLength => {
                    !(1..=MAX_ADDRESS_LEN).contains(&message.address.len())
                }
                FragmentError::MaxSizeTooSmall { .. } => room == 0,
                FragmentError::TooManyFragments(_) => message.data.len().div_ceil(room) > 255,
                _ => false,
            };
            assert!(holds, "{error}");
            return Vec::new();
        }
    };
    let announced = parts.len();
    let parts: Vec<_> = parts.collect();
    assert_eq!(parts.len(), announced);
    assert_eq!(parts.len(), message.data.len().div_ceil(room));
    let mut joined = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        assert_eq!(usize::from(part.frag_id), index);
        assert_eq!(usize::from(part.frag_count), parts.len());
        assert_eq!((part.session_id, part.address), (9, message.address));
        let expected = if parts.len() == 1 { 0 } else { id };
        assert_eq!(part.packet_id, expected);
        assert!(part.encoded_len() <= max_size);
        joined.extend_from_slice(part.data);
    }
    assert_eq!(joined, message.data);
    parts
}

/// All in an order that `seed` draws, one of three times with a part left out and one twice.
fn shuffled<'a, 'b>(parts: &'b [UdpMessage<'a>], mut seed: u32) -> Vec<&'b UdpMessage<'a>> {
    let mut left: Vec<_> = parts.iter().collect();
    let mut order = Vec::new();
    let whole = seed % 3 != 0;
    if seed & 0x80 == 0 {
        return left;
    }
    while !left.is_empty() {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let part = left.swap_remove((seed >> 8) as usize % left.len());
        if whole || seed >> 29 != 0 {
            order.push(part);
        }
        if !whole && seed >> 29 == 1 {
            order.push(part);
        }
    }
    order
}

fn push(real: &mut Defragmenter, model: &mut Model, message: &UdpMessage<'_>) {
    assert_eq!(real.push(message), model.push(message), "{message:?}");
}

/// The rules of the format, without regard for memory or copies.
#[derive(Debug, Default)]
struct Model {
    key: Option<(u16, u8)>,
    /// Empty when the message is complete or given up.
    parts: Vec<Option<Vec<u8>>>,
    seen: Option<u64>,
}

impl Model {
    fn push(&mut self, message: &UdpMessage<'_>) -> Option<Assembled> {
        let assembled = |data: Vec<u8>| Assembled {
            session_id: message.session_id,
            packet_id: message.packet_id,
            address: message.address.to_owned(),
            data: data.into(),
        };
        if message.frag_count <= 1 {
            return Some(assembled(message.data.to_vec()));
        }
        if message.frag_id >= message.frag_count || message.data.is_empty() {
            return None;
        }
        let key = Some((message.packet_id, message.frag_count));
        if self.key != key {
            let parts = vec![None; message.frag_count.into()];
            *self = Self {
                key,
                parts,
                seen: None,
            };
        }
        let total = self.bytes() + message.data.len();
        let part = self.parts.get_mut(usize::from(message.frag_id))?;
        if part.is_some() {
            return None;
        }
        if total > MAX_ASSEMBLED_LEN {
            self.parts.clear();
            return None;
        }
        *part = Some(message.data.to_vec());
        if self.parts.iter().any(Option::is_none) {
            return None;
        }
        let whole = self.parts.drain(..).flatten().collect::<Vec<_>>().concat();
        Some(assembled(whole))
    }

    fn bytes(&self) -> usize {
        self.parts.iter().flatten().map(Vec::len).sum()
    }

    fn expire(&mut self, now: u64) -> bool {
        if self.key.is_none() {
            return false;
        }
        let seen = *self.seen.get_or_insert(now);
        let expired = now - seen >= PARTIAL_TTL.as_millis() as u64;
        if expired {
            *self = Self::default();
        }
        expired
    }
}
