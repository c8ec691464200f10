//! Messages that a local program sends to the SOCKS5 inbound.
//!
//! Planted bug: a greeting without a method was accepted.

use arbitrary::Unstructured;
use hy2_core::inbound::socks5::wire::{
    self, AUTH_VERSION, Command, MAX_REPLY, Reply, VERSION, WireError,
};

/// Parses the input as each message, and as the conversation that a connection is.
pub fn target(data: &[u8]) {
    prefixes(data, |bytes| {
        let parsed = wire::parse_greeting(bytes)?;
        Ok(parsed.map(|(methods, used)| {
            assert!(!methods.is_empty() && used == 2 + methods.len());
            assert_eq!(bytes[0], VERSION);
            used
        }))
    });
    prefixes(data, |bytes| {
        let parsed = wire::parse_credentials(bytes)?;
        Ok(parsed.map(|(name, password, used)| {
            assert_eq!(bytes[0], AUTH_VERSION);
            assert_eq!(bytes[2..2 + name.len()], *name);
            assert_eq!(bytes[used - password.len()..used], *password);
            used
        }))
    });
    prefixes(data, |bytes| {
        let parsed = wire::parse_request(bytes)?;
        Ok(parsed.map(|(request, used)| {
            let command = match request.command {
                Command::Connect => 1,
                Command::UdpAssociate => 3,
                Command::Other(other) => other,
            };
            assert_eq!(bytes[..2], [VERSION, command]);
            assert_eq!(bytes[used - 2..used], request.target.port.to_be_bytes());
            let printed = request.target.to_string();
            assert_eq!(printed.parse(), Ok(request.target), "{printed}");
            used
        }))
    });
    conversation(data);
    packet(data);
    replies(data);
}

/// Checks that prefixes of a message are unfinished, that what is invalid stays so, and that no
/// message is longer than a connection's buffer is meant to grow.
fn prefixes(data: &[u8], parse: impl Fn(&[u8]) -> Result<Option<usize>, WireError>) {
    let whole = parse(data);
    let end = match whole {
        Ok(Some(used)) => {
            assert!((3..=513).contains(&used) && used <= data.len());
            assert_eq!(parse(&data[..used]), whole);
            used
        }
        Ok(None) => {
            assert!(data.len() < 513, "asks for more than any message has");
            data.len()
        }
        Err(_) => data.len(),
    };
    for len in 0..end.min(600) {
        match parse(&data[..len]) {
            Ok(None) => {}
            Ok(Some(used)) => panic!("{used} bytes of {end} are a whole message"),
            error => assert_eq!(error, whole),
        }
    }
}

/// Greeting, credentials and request, one behind the other.
fn conversation(data: &[u8]) {
    let Ok(Some((methods, used))) = wire::parse_greeting(data) else {
        return;
    };
    let mut rest = &data[used..];
    if methods.contains(&2)
        && let Ok(Some((.., used))) = wire::parse_credentials(rest)
    {
        rest = &rest[used..];
    }
    if let Ok(Some((_, used))) = wire::parse_request(rest) {
        assert!(used <= rest.len());
    }
}

fn packet(data: &[u8]) {
    let Ok(packet) = wire::parse_packet(data) else {
        return;
    };
    assert!(data.ends_with(packet.data));
    let mut again = Vec::new();
    wire::encode_packet_header(&packet.address, &mut again);
    again.extend_from_slice(packet.data);
    // An IP address that was written as a name comes back as an address.
    assert_eq!(wire::parse_packet(&again), Ok(packet));
}

fn replies(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let (ip, port): (std::net::IpAddr, u16) = match input.arbitrary() {
        Ok(parts) => parts,
        Err(_) => return,
    };
    let mut out = Vec::new();
    wire::encode_reply(Reply::Succeeded, (ip, port).into(), &mut out);
    assert!(out.len() <= MAX_REPLY);
    // A reply is laid out as a request is.
    let (request, used) = wire::parse_request(&out).ok().flatten().expect("whole");
    assert_eq!(used, out.len());
    assert_eq!(request.target.socket_addr(), Some((ip, port).into()));
}
