//! SOCKS5 messages: pure functions over bytes.
//!
//! Stream parsers return `Ok(None)` while a message may still be completed and an error as soon
//! as no continuation can make it valid.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hy2_proto::address::{Address, Host};

/// Protocol version (RFC 1928 §3).
pub const VERSION: u8 = 5;

/// Version of the user name and password exchange (RFC 1929 §2).
pub const AUTH_VERSION: u8 = 1;

/// Answer when no offered method is acceptable (RFC 1928 §3).
pub const NO_METHOD: u8 = 0xff;

/// Length of the longest reply that [`encode_reply`] writes, in bytes.
pub const MAX_REPLY: usize = 22;

const IPV4: u8 = 1;
const DOMAIN: u8 = 3;
const IPV6: u8 = 4;

/// What makes bytes no SOCKS5 message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The first byte is another version.
    #[error("unsupported version")]
    Version,
    /// A greeting offers no method.
    #[error("no authentication methods")]
    NoMethods,
    /// The address type is none of IPv4, domain and IPv6.
    #[error("unsupported address type")]
    AddressType,
    /// A domain is empty, not UTF-8 or not a host name.
    #[error("host is not a name")]
    Host,
    /// A UDP packet is cut short or its reserved bytes are not zero.
    #[error("malformed UDP packet")]
    Packet,
    /// A UDP packet is a fragment; reassembly is optional (RFC 1928 §7) and not offered.
    #[error("fragmented UDP packet")]
    Fragment,
}

/// Authentication methods we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// No authentication.
    None,
    /// User name and password.
    Password,
}

impl Method {
    /// Returns the method's number (RFC 1928 §3).
    pub const fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Password => 2,
        }
    }
}

/// What a program asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// A TCP connection to the target.
    Connect,
    /// A UDP relay.
    UdpAssociate,
    /// Anything else, BIND (2) included.
    Other(u8),
}

/// A request (RFC 1928 §4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// With what.
    pub target: Address,
}

/// Outcome of a request (RFC 1928 §6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reply {
    /// The request succeeded.
    Succeeded = 0,
    /// A failure without a number of its own.
    GeneralFailure = 1,
    /// A rule forbids the target.
    NotAllowed = 2,
    /// No route.
    NetworkUnreachable = 3,
    /// The host cannot be reached or has no address.
    HostUnreachable = 4,
    /// The target refused.
    ConnectionRefused = 5,
    /// The target did not answer in time.
    TtlExpired = 6,
    /// The command is not offered.
    CommandNotSupported = 7,
    /// The address type is unknown.
    AddressTypeNotSupported = 8,
}

/// A UDP packet of the relay (RFC 1928 §7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Where it goes or came from.
    pub address: Address,
    /// Its payload.
    pub data: &'a [u8],
}

/// Parses a greeting into the offered methods and the bytes taken.
pub fn parse_greeting(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, WireError> {
    match bytes {
        [version, ..] if *version != VERSION => Err(WireError::Version),
        [_, 0, ..] => Err(WireError::NoMethods),
        [_, count, rest @ ..] => {
            let count = usize::from(*count);
            Ok(rest.get(..count).map(|methods| (methods, 2 + count)))
        }
        _ => Ok(None),
    }
}

/// Parses a user name and password message (RFC 1929 §2). Empty fields are read as they are.
#[expect(clippy::type_complexity, reason = "two borrowed fields and a length")]
pub fn parse_credentials(bytes: &[u8]) -> Result<Option<(&[u8], &[u8], usize)>, WireError> {
    match bytes {
        [version, ..] if *version != AUTH_VERSION => Err(WireError::Version),
        [_, rest @ ..] => {
            let parsed = length_prefixed(rest)
                .and_then(|(name, rest)| Some((name, length_prefixed(rest)?.0)));
            Ok(parsed.map(|(name, password)| (name, password, 3 + name.len() + password.len())))
        }
        [] => Ok(None),
    }
}

/// Parses a request and the number of its bytes. The reserved byte is not looked at.
pub fn parse_request(bytes: &[u8]) -> Result<Option<(Request, usize)>, WireError> {
    match bytes {
        [version, ..] if *version != VERSION => Err(WireError::Version),
        [_, command, _, rest @ ..] => {
            let command = match command {
                1 => Command::Connect,
                3 => Command::UdpAssociate,
                other => Command::Other(*other),
            };
            // "No address yet" of UDP ASSOCIATE is sometimes sent as an empty domain.
            if command == Command::UdpAssociate
                && let [DOMAIN, 0, port @ ..] = rest
            {
                return Ok(port.first_chunk().map(|port| {
                    let port = u16::from_be_bytes(*port);
                    let target = Address::new(IpAddr::from(Ipv4Addr::UNSPECIFIED), port);
                    (Request { command, target }, 7)
                }));
            }
            let parsed = parse_address(rest)?;
            Ok(parsed.map(|(target, len)| (Request { command, target }, 3 + len)))
        }
        _ => Ok(None),
    }
}

/// Parses a UDP packet, which is always whole.
pub fn parse_packet(bytes: &[u8]) -> Result<Packet<'_>, WireError> {
    match bytes {
        [0, 0, 0, rest @ ..] => {
            let (address, len) = parse_address(rest)?.ok_or(WireError::Packet)?;
            let data = rest.get(len..).ok_or(WireError::Packet)?;
            Ok(Packet { address, data })
        }
        [0, 0, _, ..] => Err(WireError::Fragment),
        _ => Err(WireError::Packet),
    }
}

/// Appends a reply with the bound address.
pub fn encode_reply(reply: Reply, bound: SocketAddr, out: &mut Vec<u8>) {
    out.extend_from_slice(&[VERSION, reply as u8, 0]);
    encode_address(&bound.into(), out);
}

/// Appends the header of a UDP packet; the payload follows it.
pub fn encode_packet_header(address: &Address, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0, 0, 0]);
    encode_address(address, out);
}

fn parse_address(bytes: &[u8]) -> Result<Option<(Address, usize)>, WireError> {
    let (host, len) = match bytes {
        [IPV4, rest @ ..] => match rest.first_chunk::<4>() {
            Some(ip) => (Host::Ip(Ipv4Addr::from(*ip).into()), 5),
            None => return Ok(None),
        },
        [IPV6, rest @ ..] => match rest.first_chunk::<16>() {
            Some(ip) => (Host::Ip(Ipv6Addr::from(*ip).into()), 17),
            None => return Ok(None),
        },
        [DOMAIN, 0, ..] => return Err(WireError::Host),
        [DOMAIN, rest @ ..] => match length_prefixed(rest) {
            Some((name, _)) => (parse_host(name)?, 2 + name.len()),
            None => return Ok(None),
        },
        [] => return Ok(None),
        _ => return Err(WireError::AddressType),
    };
    let port = bytes.get(len..).and_then(|rest| rest.first_chunk::<2>());
    Ok(port.map(|port| (Address::new(host, u16::from_be_bytes(*port)), len + 2)))
}

/// Reads a name; an IP address written as a name is an IP address.
fn parse_host(name: &[u8]) -> Result<Host, WireError> {
    std::str::from_utf8(name)
        .ok()
        .and_then(|name| name.parse().ok())
        .ok_or(WireError::Host)
}

fn encode_address(address: &Address, out: &mut Vec<u8>) {
    match &address.host {
        Host::Ip(IpAddr::V4(ip)) => {
            out.push(IPV4);
            out.extend_from_slice(&ip.octets());
        }
        Host::Ip(IpAddr::V6(ip)) => {
            out.push(IPV6);
            out.extend_from_slice(&ip.octets());
        }
        Host::Domain(name) => {
            // A name is at most 255 bytes long (hy2_proto::address::MAX_DOMAIN_LEN).
            let name = name.as_bytes();
            let name = name.get(..usize::from(u8::MAX)).unwrap_or(name);
            out.extend_from_slice(&[DOMAIN, name.len() as u8]);
            out.extend_from_slice(name);
        }
    }
    out.extend_from_slice(&address.port.to_be_bytes());
}

/// Splits a field with a length byte off the front.
fn length_prefixed(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*len))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        hex::decode(text.replace(' ', "")).expect("hex")
    }

    #[test]
    fn golden_messages() {
        assert_eq!(
            parse_greeting(&hex("05 02 00 02")),
            Ok(Some((&[0u8, 2][..], 4)))
        );
        assert_eq!(
            parse_credentials(&hex("01 04 6a6f686e 04 7769636b")),
            Ok(Some((&b"john"[..], &b"wick"[..], 11)))
        );
        for (bytes, command, target) in [
            ("05 01 00 01 01020304 0050", Command::Connect, "1.2.3.4:80"),
            (
                "05 01 00 03 0a 676f6f676c652e636f6d 01bb",
                Command::Connect,
                "google.com:443",
            ),
            (
                "05 01 00 03 07 312e322e332e34 0050",
                Command::Connect,
                "1.2.3.4:80",
            ),
            (
                "05 03 00 04 20010db8000000000000000000000001 0035",
                Command::UdpAssociate,
                "[2001:db8::1]:53",
            ),
            ("05 03 00 03 00 0000", Command::UdpAssociate, "0.0.0.0:0"),
            (
                "05 02 ff 01 7f000001 ffff",
                Command::Other(2),
                "127.0.0.1:65535",
            ),
        ] {
            let bytes = hex(bytes);
            let target = target.parse().expect("address");
            let request = Request { command, target };
            assert_eq!(parse_request(&bytes), Ok(Some((request, bytes.len()))));
        }
        let packet = hex("0000 00 01 08080808 0035 c0ffee");
        let parsed = parse_packet(&packet).expect("packet");
        assert_eq!(parsed.address.to_string(), "8.8.8.8:53");
        assert_eq!(parsed.data, [0xc0, 0xff, 0xee]);
    }

    #[test]
    fn replies_are_written_as_the_rfc_draws_them() {
        let mut out = Vec::new();
        encode_reply(Reply::Succeeded, ([127, 0, 0, 1], 1080).into(), &mut out);
        assert_eq!(out, hex("05 00 00 01 7f000001 0438"));
        out.clear();
        encode_reply(
            Reply::HostUnreachable,
            "[::1]:1".parse().expect("address"),
            &mut out,
        );
        assert_eq!(
            out,
            hex("05 04 00 04 00000000000000000000000000000001 0001")
        );
        assert_eq!(out.len(), MAX_REPLY);
    }

    #[test]
    fn never_valid_bytes_are_refused_before_they_are_whole() {
        use WireError::*;
        for (bytes, error) in [("04", Version), ("47", Version), ("05 00", NoMethods)] {
            assert_eq!(parse_greeting(&hex(bytes)), Err(error), "{bytes}");
        }
        assert_eq!(parse_credentials(&hex("05")), Err(Version));
        for (bytes, error) in [
            ("04 01", Version),
            ("05 01 00 02", AddressType),
            ("05 01 00 00", AddressType),
            ("05 01 00 03 00", Host),
            ("05 01 00 03 02 ff fe 0000", Host),
            ("05 01 00 03 03 61 20 62 0000", Host),
        ] {
            assert_eq!(parse_request(&hex(bytes)), Err(error), "{bytes}");
        }
        for (bytes, error) in [
            ("", Packet),
            ("0000", Packet),
            ("0001 00 01 08080808 0035", Packet),
            ("0000 00", Packet),
            ("0000 00 01 080808", Packet),
            ("0000 01 01 08080808 0035 00", Fragment),
            ("0000 80 01 08080808 0035 00", Fragment),
            ("0000 00 05 08080808 0035 00", AddressType),
        ] {
            assert_eq!(parse_packet(&hex(bytes)), Err(error), "{bytes}");
        }
    }

    /// Found by the fuzz target `socks5`: a prefix was refused for its empty name.
    #[test]
    fn an_association_without_an_address_may_come_byte_by_byte() {
        let bytes = hex("05 03 00 03 00 1f90");
        for len in 0..bytes.len() {
            assert_eq!(parse_request(&bytes[..len]), Ok(None), "{len} bytes");
        }
        let (request, len) = parse_request(&bytes).unwrap().unwrap();
        assert_eq!(request.target.to_string(), "0.0.0.0:8080");
        assert_eq!(len, bytes.len());
    }

    proptest! {
        #[test]
        fn every_prefix_of_a_message_asks_for_more(name in "[a-z]{1,40}(\\.[a-z]{1,40}){0,4}", port: u16) {
            let mut bytes = vec![VERSION, 1, 0];
            encode_address(&Address::new(name.parse::<Host>().unwrap(), port), &mut bytes);
            for len in 0..bytes.len() {
                prop_assert_eq!(parse_request(&bytes[..len]), Ok(None));
            }
            bytes.extend_from_slice(b"tail");
            let (request, len) = parse_request(&bytes).unwrap().unwrap();
            prop_assert_eq!(request.target.to_string(), format!("{name}:{port}"));
            prop_assert_eq!(len, bytes.len() - 4);
        }

        #[test]
        fn any_bytes_are_judged(bytes: Vec<u8>) {
            let _ = parse_greeting(&bytes);
            let _ = parse_credentials(&bytes);
            let _ = parse_packet(&bytes);
            if let Ok(Some((_, len))) = parse_request(&bytes) {
                prop_assert!(len <= bytes.len());
            }
        }

        #[test]
        fn packets_round_trip(addr: SocketAddr, data: Vec<u8>) {
            let mut bytes = Vec::new();
            encode_packet_header(&addr.into(), &mut bytes);
            bytes.extend_from_slice(&data);
            let packet = parse_packet(&bytes).unwrap();
            prop_assert_eq!(packet, Packet { address: addr.into(), data: &data });
        }
    }
}
