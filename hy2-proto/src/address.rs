//! Target and source addresses: a host and a port, written `host:port`.
//!
//! The wire carries addresses as text ([`crate::tcp`], [`crate::udp`]). This module judges that
//! text and prints it. Ports are `u16` and nothing else: a port above 65,535 is an error and is
//! never cut down to another port, which would slip past rules made for the first.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// Longest host name, in bytes. DNS allows 253 in text form; the rest is slack for names that
/// something else than DNS resolves.
pub const MAX_DOMAIN_LEN: usize = 255;

/// Why a text is not an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// There is no colon between host and port.
    #[error("no port in address")]
    NoPort,
    /// The port is not a decimal number from 0 to 65535.
    #[error("port is not a number from 0 to 65535")]
    Port,
    /// There is nothing before the port.
    #[error("no host in address")]
    NoHost,
    /// The host is neither an IP address nor anything that could be a name.
    #[error("host is neither an IP address nor a name")]
    Host,
    /// An IPv6 address lacks its brackets.
    #[error("IPv6 address needs brackets before a port")]
    Brackets,
    /// The name is longer than [`MAX_DOMAIN_LEN`].
    #[error("host name is longer than 255 bytes")]
    TooLong,
}

/// A host that borrows its name: see [`Host`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HostRef<'a> {
    /// An IP address.
    Ip(IpAddr),
    /// A name, as it was written.
    Domain(&'a str),
}

impl<'a> HostRef<'a> {
    /// Judges a host without a port: a name, an IP address, or an IPv6 address in brackets.
    ///
    /// A name is kept as written, in its case and with a trailing dot. It may hold anything but
    /// white space, control characters and the delimiters `: / ? # [ ] @ %`, with one exception:
    /// a leading `@` marks the reference's internal targets (`@SpeedTest`).
    ///
    /// # Errors
    ///
    /// [`AddressError::NoHost`], [`AddressError::Host`] or [`AddressError::TooLong`]. IPv6 zones
    /// (`%eth0`) mean nothing on another machine and are not accepted.
    pub fn parse(host: &'a str) -> Result<Self, AddressError> {
        if host.is_empty() {
            return Err(AddressError::NoHost);
        }
        if let Some(inner) = host.strip_prefix('[') {
            return inner
                .strip_suffix(']')
                .and_then(|ip| ip.parse::<Ipv6Addr>().ok())
                .map(|ip| Self::Ip(ip.into()))
                .ok_or(AddressError::Host);
        }
        if let Ok(ip) = host.parse() {
            return Ok(Self::Ip(ip));
        }
        if host.len() > MAX_DOMAIN_LEN {
            return Err(AddressError::TooLong);
        }
        let name = host.strip_prefix('@').unwrap_or(host);
        if name.is_empty() || name.contains(never_in_a_name) {
            return Err(AddressError::Host);
        }
        Ok(Self::Domain(host))
    }

    /// Copies the name, if it is one.
    #[must_use]
    pub fn to_owned(self) -> Host {
        match self {
            Self::Ip(ip) => Host::Ip(ip),
            Self::Domain(name) => Host::Domain(name.into()),
        }
    }
}

impl fmt::Display for HostRef<'_> {
    /// Writes the host as it stands in front of a port: IPv6 in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Ip(ip) => write!(f, "{ip}"),
            Self::Domain(name) => f.write_str(name),
        }
    }
}

/// An IP address or a name that somebody has yet to resolve.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// An IP address.
    Ip(IpAddr),
    /// A name, as it was written.
    Domain(Box<str>),
}

impl Host {
    /// Borrows the host.
    #[must_use]
    pub fn as_ref(&self) -> HostRef<'_> {
        match self {
            Self::Ip(ip) => HostRef::Ip(*ip),
            Self::Domain(name) => HostRef::Domain(name),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_ref().fmt(f)
    }
}

impl FromStr for Host {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        HostRef::parse(text).map(HostRef::to_owned)
    }
}

impl From<IpAddr> for Host {
    fn from(ip: IpAddr) -> Self {
        Self::Ip(ip)
    }
}

/// An address that borrows its name, for paths that look at one address per packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AddressRef<'a> {
    /// Where to.
    pub host: HostRef<'a>,
    /// Which port there.
    pub port: u16,
}

impl<'a> AddressRef<'a> {
    /// Parses `host:port` without allocating. IPv6 hosts stand in brackets.
    ///
    /// # Errors
    ///
    /// See [`AddressError`].
    ///
    /// # Examples
    ///
    /// ```
    /// use hy2_proto::address::{AddressError, AddressRef, HostRef};
    ///
    /// let address = AddressRef::parse("example.com:443")?;
    /// assert_eq!(address.host, HostRef::Domain("example.com"));
    /// assert_eq!(AddressRef::parse("127.0.0.1:99999"), Err(AddressError::Port));
    /// # Ok::<(), AddressError>(())
    /// ```
    pub fn parse(text: &'a str) -> Result<Self, AddressError> {
        let (host, port) = text.rsplit_once(':').ok_or(AddressError::NoPort)?;
        if !host.starts_with('[') && host.contains(':') {
            return Err(AddressError::Brackets);
        }
        if host.starts_with('[') && !host.ends_with(']') && text.ends_with(']') {
            return Err(AddressError::NoPort);
        }
        let port = parse_port(port).ok_or(AddressError::Port)?;
        let host = HostRef::parse(host)?;
        Ok(Self { host, port })
    }

    /// Copies the name, if there is one.
    #[must_use]
    pub fn to_owned(self) -> Address {
        Address {
            host: self.host.to_owned(),
            port: self.port,
        }
    }
}

impl fmt::Display for AddressRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A host and a port.
///
/// # Examples
///
/// ```
/// use hy2_proto::address::Address;
///
/// let address: Address = "[2001:db8::1]:53".parse()?;
/// assert_eq!(address.port, 53);
/// assert_eq!(address.to_string(), "[2001:db8::1]:53");
/// # Ok::<(), hy2_proto::address::AddressError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    /// Where to.
    pub host: Host,
    /// Which port there.
    pub port: u16,
}

impl Address {
    /// Makes an address from its parts.
    #[must_use]
    pub fn new(host: impl Into<Host>, port: u16) -> Self {
        Self {
            host: host.into(),
            port,
        }
    }

    /// Borrows the address.
    #[must_use]
    pub fn as_ref(&self) -> AddressRef<'_> {
        AddressRef {
            host: self.host.as_ref(),
            port: self.port,
        }
    }

    /// Returns the socket address, unless the host is a name.
    #[must_use]
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Domain(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_ref().fmt(f)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        AddressRef::parse(text).map(AddressRef::to_owned)
    }
}

impl From<SocketAddr> for Address {
    /// Drops the zone and flow label of an IPv6 address, which the wire cannot carry.
    fn from(addr: SocketAddr) -> Self {
        Self::new(addr.ip(), addr.port())
    }
}

/// Parses a port: decimal digits only, at most five, at most 65535.
pub(crate) fn parse_port(text: &str) -> Option<u16> {
    let digits = text.len() <= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

fn never_in_a_name(c: char) -> bool {
    c.is_control()
        || c.is_whitespace()
        || matches!(c, ':' | '/' | '?' | '#' | '[' | ']' | '@' | '%')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn accepted() {
        for (text, host, port) in [
            ("google.com:443", Host::Domain("google.com".into()), 443),
            ("1.2.3.4:80", Host::Ip([1, 2, 3, 4].into()), 80),
            ("[::1]:0", Host::Ip(IpAddr::V6(Ipv6Addr::LOCALHOST)), 0),
            ("localhost.:65535", Host::Domain("localhost.".into()), 65535),
            ("@SpeedTest:0", Host::Domain("@SpeedTest".into()), 0),
            ("Пример.рф:1", Host::Domain("Пример.рф".into()), 1),
            ("a_b:00080", Host::Domain("a_b".into()), 80),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address, Address { host, port }, "{text}");
        }
    }

    #[test]
    fn refused() {
        use AddressError::*;
        let long = format!("{}:1", "a".repeat(MAX_DOMAIN_LEN + 1));
        for (text, error) in [
            ("", NoPort),
            ("host", NoPort),
            ("[::1]", NoPort),
            (":80", NoHost),
            ("host:", Port),
            ("host:65536", Port),
            ("127.0.0.1:99999", Port),
            ("host:-1", Port),
            ("host:+80", Port),
            ("host: 80", Port),
            ("host:0x50", Port),
            ("host:000080", Port),
            ("host:٣", Port),
            ("host:http", Port),
            ("::1:80", Brackets),
            ("a:b:80", Brackets),
            ("[]:80", Host),
            ("[1.2.3.4]:80", Host),
            ("[fe80::1%eth0]:80", Host),
            ("[::1:80", Host),
            ("[::1]x:80", Host),
            ("ho st:80", Host),
            ("ho\nst:80", Host),
            ("user@host:80", Host),
            ("@:80", Host),
            ("a/b:80", Host),
            (long.as_str(), TooLong),
        ] {
            assert_eq!(AddressRef::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn ipv6_prints_in_brackets() {
        let addr: SocketAddr = "[2001:db8::1]:53".parse().unwrap();
        let address = Address::from(addr);
        assert_eq!(address.to_string(), "[2001:db8::1]:53");
        assert_eq!(address.socket_addr(), Some(addr));
        assert_eq!(Host::from_str("::1").unwrap().to_string(), "[::1]");
        assert_eq!(Host::from_str("[::1]").unwrap().to_string(), "[::1]");
    }

    proptest! {
        #[test]
        fn socket_addresses_round_trip(addr: SocketAddr) {
            let address = Address::from(addr);
            prop_assert_eq!(address.to_string().parse::<Address>(), Ok(address));
        }

        #[test]
        fn names_round_trip(name in "[a-zA-Z0-9_-]{1,30}(\\.[a-z0-9-]{1,20}){0,3}\\.?", port: u16) {
            let text = format!("{name}:{port}");
            let address = AddressRef::parse(&text).unwrap();
            prop_assert_eq!(address.to_string(), text.as_str());
            let owned = address.to_owned();
            prop_assert_eq!(owned.as_ref(), address);
        }

        #[test]
        fn any_text_is_judged(text in ".{0,40}") {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }
    }
}
