//! Where the master may connect to on somebody's word: webhooks.
//!
//! A name is resolved once, every address is judged, and the connection goes to a judged address, so
//! that a name cannot point elsewhere the second time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

/// Which addresses may be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum TargetPolicy {
    /// Public addresses over `https`.
    #[default]
    Public,
    /// Any address, also over `http`: for receivers on the master's own network, as the operator of
    /// the host decides.
    Any,
}

impl TargetPolicy {
    /// Returns whether an address may be a target, as far as it can be said without resolving.
    #[must_use]
    pub fn allows_url(self, url: &Url) -> bool {
        let scheme = match self {
            Self::Public => url.scheme() == "https",
            Self::Any => matches!(url.scheme(), "https" | "http"),
        };
        let host = match url.host() {
            None => false,
            Some(Host::Domain(name)) => self == Self::Any || is_public_name(name),
            Some(Host::Ipv4(address)) => self.allows(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => self.allows(IpAddr::V6(address)),
        };
        scheme && host && url.username().is_empty() && url.password().is_none()
    }

    /// Returns whether a resolved address may be connected to.
    #[must_use]
    pub fn allows(self, address: IpAddr) -> bool {
        self == Self::Any || is_public(address)
    }
}

/// Names that mean the host itself or its network; addresses are judged again after resolving.
fn is_public_name(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let local = ["localhost", "local", "internal", "lan", "home.arpa"];
    name.contains('.')
        && !local.iter().any(|end| {
            name == *end
                || name
                    .strip_suffix(end)
                    .is_some_and(|rest| rest.ends_with('.'))
        })
}

/// Returns whether an address is on the public internet (IANA special-purpose registries), judging
/// IPv4 inside IPv6 by itself.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, d] = address.octets();
    let special = matches!(
        (a, b, c),
        (0 | 10 | 127, ..)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
            | (224..=255, ..)
    );
    // Metadata services with addresses of their own.
    let metadata = matches!((a, b, c, d), (168, 63, 129, 16));
    !special && !metadata
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // Mapped and compatible, and NAT64.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            embedded(high, low)
        }
        // 6to4 carries the address behind the prefix.
        [0x2002, high, low, ..] => embedded(high, low),
        // Teredo, ORCHID, documentation, benchmarking.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // Global unicast is 2000::/3; everything else is special.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(url: &str) -> bool {
        Url::parse(url).is_ok_and(|url| TargetPolicy::Public.allows_url(&url))
    }

    #[test]
    fn public_hosts_over_https_are_allowed() {
        for url in [
            "https://hooks.example.com/x?y=z",
            "https://93.184.216.34/",
            "https://[2606:2800:220:1::1]:8443/",
        ] {
            assert!(allows(url), "{url}");
        }
    }

    #[test]
    fn the_hosts_own_network_is_not() {
        for url in [
            "http://hooks.example.com/",
            "ftp://hooks.example.com/",
            "https://user:pass@hooks.example.com/",
            "https://localhost/",
            "https://a.localhost./",
            "https://db/",
            "https://db.internal/",
            "https://127.0.0.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://0/",
            "https://10.1.2.3/",
            "https://169.254.169.254/latest/meta-data",
            "https://168.63.129.16/",
            "https://100.100.100.200/",
            "https://192.168.0.1/",
            "https://172.31.255.255/",
            "https://[::1]/",
            "https://[::]/",
            "https://[::ffff:127.0.0.1]/",
            "https://[64:ff9b::7f00:1]/",
            "https://[64:ff9b:1::1]/",
            "https://[2002:7f00:1::1]/",
            "https://[2001:0:1::1]/",
            "https://[2001:db8::1]/",
            "https://[fd00:ec2::254]/",
            "https://[fe80::1]/",
            "https://[ff02::1]/",
        ] {
            assert!(!allows(url), "{url}");
        }
    }

    #[test]
    fn an_address_behind_nat64_is_judged_by_itself() {
        assert!(TargetPolicy::Public.allows("64:ff9b::5db8:d822".parse().unwrap()));
        assert!(TargetPolicy::Public.allows("::ffff:93.184.216.34".parse().unwrap()));
    }
}
