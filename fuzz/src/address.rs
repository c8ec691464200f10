//! Addresses as text: `host:port`.
//!
//! Planted bug: a port above 65,535 was cut to 16 bits.

use std::net::{IpAddr, SocketAddr};

use hy2_proto::address::{Address, AddressRef, Host, HostRef, MAX_DOMAIN_LEN};

/// Parses the input as an address and as a host.
pub fn target(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    address(text);
    host(text);
}

fn address(text: &str) {
    let parsed = AddressRef::parse(text);
    // The standard library's judgement of literal addresses, but for zones and ports of more than
    // five digits.
    if let Ok(literal) = text.parse::<SocketAddr>()
        && !text.contains('%')
        && text.rsplit(':').next().is_some_and(|port| port.len() <= 5)
    {
        let parsed = parsed.expect("a literal address");
        assert_eq!(parsed.to_owned().socket_addr(), Some(literal));
    }
    assert_eq!(
        text.parse::<Address>().map_err(|error| error.to_string()),
        parsed
            .map(AddressRef::to_owned)
            .map_err(|error| error.to_string())
    );
    let Ok(address) = parsed else { return };
    let (_, port) = text.rsplit_once(':').expect("there is a port");
    assert_eq!(port.parse(), Ok(address.port));
    let printed = address.to_string();
    assert_eq!(AddressRef::parse(&printed), Ok(address));
    assert_eq!(address.to_owned().to_string(), printed);
    if let Some(literal) = address.to_owned().socket_addr() {
        assert_eq!(Address::from(literal), address.to_owned());
        assert_eq!(literal.to_string(), printed);
    }
}

fn host(text: &str) {
    let Ok(host) = HostRef::parse(text) else {
        assert!(text.parse::<IpAddr>().is_err());
        return;
    };
    match host {
        HostRef::Ip(ip) => {
            let bare = text.trim_start_matches('[').trim_end_matches(']');
            assert_eq!(bare.parse(), Ok(ip));
        }
        HostRef::Domain(name) => {
            assert_eq!(name, text);
            assert!((1..=MAX_DOMAIN_LEN).contains(&name.len()));
            assert!(!name.contains(|c: char| c.is_control() || ":/?#[]%".contains(c)));
        }
    }
    let owned: Host = host.to_owned();
    assert_eq!(owned.as_ref(), host);
    assert_eq!(owned.to_string().parse(), Ok(owned));
}
