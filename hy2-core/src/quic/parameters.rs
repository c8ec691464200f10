//! Transport parameters as they go over the wire.
//!
//! quinn ties some parameters to its own settings and sends extensions that no web server sends.
//! Those are re-encoded here. Flow-control limits and stream counts are never touched: quinn keeps
//! its own copy of them and withholds updates below an eighth of the window, so a peer that was
//! told less than quinn believes would wait for credit that does not come.

use std::io::Cursor;

use hy2_proto::varint;
use quinn_proto::{Side, transport_parameters::TransportParameters};

use super::MAX_DATAGRAM_FRAME;

/// Transport parameters (RFC 9000 §18.2, RFC 9221 §3).
mod id {
    pub(super) const ORIGINAL_DESTINATION: u64 = 0x00;
    pub(super) const IDLE_TIMEOUT: u64 = 0x01;
    pub(super) const RESET_TOKEN: u64 = 0x02;
    pub(super) const UDP_PAYLOAD: u64 = 0x03;
    pub(super) const DATA: u64 = 0x04;
    pub(super) const STREAM_DATA_BIDI_LOCAL: u64 = 0x05;
    pub(super) const STREAM_DATA_BIDI_REMOTE: u64 = 0x06;
    pub(super) const STREAM_DATA_UNI: u64 = 0x07;
    pub(super) const STREAMS_BIDI: u64 = 0x08;
    pub(super) const STREAMS_UNI: u64 = 0x09;
    pub(super) const ACK_DELAY: u64 = 0x0b;
    pub(super) const CONNECTION_IDS: u64 = 0x0e;
    pub(super) const SOURCE: u64 = 0x0f;
    pub(super) const RETRY_SOURCE: u64 = 0x10;
    pub(super) const DATAGRAM: u64 = 0x20;
}

/// What a server sends, in the order in which the QUIC stack of Caddy and the reference writes it.
/// The order of that stack does not change from connection to connection.
const SERVER_ORDER: [u64; 15] = [
    id::STREAM_DATA_BIDI_LOCAL,
    id::STREAM_DATA_BIDI_REMOTE,
    id::STREAM_DATA_UNI,
    id::DATA,
    id::STREAMS_BIDI,
    id::STREAMS_UNI,
    id::IDLE_TIMEOUT,
    id::UDP_PAYLOAD,
    id::ACK_DELAY,
    id::RESET_TOKEN,
    id::ORIGINAL_DESTINATION,
    id::CONNECTION_IDS,
    id::SOURCE,
    id::RETRY_SOURCE,
    id::DATAGRAM,
];

/// The largest packet a server says it takes. quinn takes 1,472 bytes, which leaves room for what
/// obfuscation adds.
const UDP_PAYLOAD: u64 = 1452;

/// Milliseconds by which a server says it delays acknowledgements at most; quinn keeps to 25.
const ACK_DELAY: u64 = 26;

/// Identifiers of the peer that a server says it stores; quinn stores five.
const CONNECTION_IDS: u64 = 4;

/// Encodes a server's parameters as an ordinary web server would say them. `params` are quinn's;
/// what is not in [`SERVER_ORDER`], its extensions, is left out.
pub(super) fn of_server(params: &TransportParameters) -> Vec<u8> {
    let mut quinns = Vec::with_capacity(256);
    params.write(&mut quinns);
    let mut sent = Vec::with_capacity(256);
    write_reserved(rand::random(), &mut sent);
    for id in SERVER_ORDER {
        match id {
            id::UDP_PAYLOAD => write_number(id, UDP_PAYLOAD, &mut sent),
            id::ACK_DELAY => write_number(id, ACK_DELAY, &mut sent),
            id::CONNECTION_IDS => write_number(id, CONNECTION_IDS, &mut sent),
            id::DATAGRAM => write_number(id, MAX_DATAGRAM_FRAME, &mut sent),
            id => {
                if let Some((_, bytes)) = all(&quinns).find(|(this, _)| *this == id) {
                    sent.extend_from_slice(bytes);
                }
            }
        }
    }
    sent
}

/// A parameter that means nothing (RFC 9000 §18.1), with up to 15 bytes.
fn write_reserved(random: [u8; 17], sent: &mut Vec<u8>) {
    let [choice, value @ ..] = random;
    let [length, ..] = value;
    let value = value.get(..usize::from(length % 16)).unwrap_or(&[]);
    varint::encode(27 + 31 * u64::from(choice), sent);
    varint::encode(value.len() as u64, sent);
    sent.extend_from_slice(value);
}

fn write_number(id: u64, value: u64, sent: &mut Vec<u8>) {
    varint::encode(id, sent);
    varint::encode(varint::len(value) as u64, sent);
    varint::encode(value, sent);
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Rule {
    Replace,
    AddIfMissing,
}

/// Re-encodes `params` with our datagram size. `reader` is the side that reads the parameters,
/// which decides which ones are legal.
pub(super) fn with_datagram_size(
    params: &TransportParameters,
    reader: Side,
    rule: Rule,
) -> TransportParameters {
    let mut encoded = Vec::with_capacity(256);
    params.write(&mut encoded);
    let (mut kept, present) = without(&encoded, id::DATAGRAM);
    if present && rule == Rule::AddIfMissing {
        return *params;
    }
    write_number(id::DATAGRAM, MAX_DATAGRAM_FRAME, &mut kept);
    // What was just written from a valid set reads back; if a future quinn disagrees, its own
    // parameters still make a working connection.
    TransportParameters::read(reader, &mut Cursor::new(kept)).unwrap_or(*params)
}

/// Copies an encoded parameter list without parameter `id`; tells whether it was there.
fn without(encoded: &[u8], id: u64) -> (Vec<u8>, bool) {
    let mut kept = Vec::with_capacity(encoded.len() + 8);
    let mut present = false;
    for (this, bytes) in all(encoded) {
        if this == id {
            present = true;
        } else {
            kept.extend_from_slice(bytes);
        }
    }
    (kept, present)
}

/// Walks over `(id, whole parameter)` of an encoded list, up to where it is cut short.
fn all(mut rest: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    std::iter::from_fn(move || {
        let (id, len) = header(rest)?;
        let (parameter, tail) = rest.split_at_checked(len)?;
        rest = tail;
        Some((id, parameter))
    })
}

/// Reads `(id, length of the whole parameter)` of the first parameter.
fn header(bytes: &[u8]) -> Option<(u64, usize)> {
    let (id, id_len) = varint::decode(bytes).ok()?;
    let (len, len_len) = varint::decode(bytes.get(id_len..)?).ok()?;
    let len = usize::try_from(len).ok()?.checked_add(id_len + len_len)?;
    Some((id, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(hex_text: &str, reader: Side) -> TransportParameters {
        let bytes = hex::decode(hex_text.replace(' ', "")).expect("hex");
        TransportParameters::read(reader, &mut Cursor::new(bytes)).expect("valid parameters")
    }

    fn encoded(params: &TransportParameters) -> Vec<u8> {
        let mut bytes = Vec::new();
        params.write(&mut bytes);
        bytes
    }

    #[test]
    fn a_missing_datagram_size_is_assumed() {
        // 0x1 = 30000, 0xf = empty: what the official client sends, shortened.
        let theirs = parse("010480007530 0f00", Side::Server);
        let seen = encoded(&with_datagram_size(
            &theirs,
            Side::Server,
            Rule::AddIfMissing,
        ));
        let (_, present) = without(&seen, id::DATAGRAM);
        assert!(present);
        assert!(
            seen.windows(4).any(|w| w == [0x20, 0x02, 0x44, 0xb0]),
            "{seen:02x?}"
        );
    }

    #[test]
    fn a_peer_that_says_its_size_is_believed() {
        // 0x20 = 65535 beside 0xf.
        let theirs = parse("20048000ffff0f00", Side::Server);
        let seen = with_datagram_size(&theirs, Side::Server, Rule::AddIfMissing);
        assert_eq!(encoded(&seen), encoded(&theirs));
    }

    #[test]
    fn our_own_size_is_replaced_and_nothing_else_changes() {
        let ours = parse("010480007530 030245c0 20048000ffff 0f00", Side::Server);
        let (before, _) = without(&encoded(&ours), id::DATAGRAM);
        let sent = encoded(&with_datagram_size(&ours, Side::Server, Rule::Replace));
        let (after, present) = without(&sent, id::DATAGRAM);
        assert!(present);
        assert_eq!(before, after);
        assert!(sent.windows(4).any(|w| w == [0x20, 0x02, 0x44, 0xb0]));
    }

    #[test]
    fn a_server_leaves_out_extensions_and_keeps_what_it_must_say() {
        // Of quinn: 0x0, 0x1, 0x3, 0x6, 0xe, 0xf, 0x20 and min_ack_delay; 0xff04de1b is eight bytes.
        let quinns = parse(
            "000401020304 010480007530 030245c0 060480800000 0e0105 0f020506 20048000ffff c0000000ff04de1b0243e8",
            Side::Client,
        );
        let sent = of_server(&quinns);
        let mut parameters = all(&sent);
        let (reserved, _) = parameters.next().expect("a reserved one");
        assert_eq!(reserved % 31, 27);
        let rest: Vec<_> = parameters.flat_map(|(_, bytes)| bytes.to_vec()).collect();
        assert_eq!(
            hex::encode(rest),
            "060480800000010480007530030245ac0b011a0004010203040e01040f020506200244b0"
        );
    }

    #[test]
    fn reserved_parameters_are_whole_whatever_their_length() {
        for length in 0..=255 {
            let mut random = [7; 17];
            random[1] = length;
            let mut sent = Vec::new();
            write_reserved(random, &mut sent);
            let (_, whole) = header(&sent).expect("a parameter");
            assert_eq!(whole, sent.len());
        }
    }

    #[test]
    fn a_truncated_list_does_not_panic() {
        let full = [0x20, 0x02, 0x44, 0xb0, 0x0f, 0x00];
        for len in 0..full.len() {
            let _ = without(&full[..len], id::DATAGRAM);
        }
    }
}
