//! Addresses in files: where to listen, where the server is.

use std::{
    fmt, io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use hy2_proto::{
    address::{Address, AddressError, Host},
    ports::PortUnion,
    uri::DEFAULT_PORT,
};

/// Where to listen: `:443` (everywhere, both families), `127.0.0.1:1080`, `localhost:1080`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listen {
    host: Option<Host>,
    port: u16,
}

impl Listen {
    /// Listens everywhere on a port.
    pub(crate) fn everywhere(port: u16) -> Self {
        Self { host: None, port }
    }

    /// Reads an address; the error says what it must look like.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Some(port) = text.strip_prefix(':') {
            let port = port.parse::<u16>().ok().filter(|_| is_digits(port));
            return port
                .map(Self::everywhere)
                .ok_or_else(|| "port must be from 0 to 65535".into());
        }
        let address: Address = text.parse().map_err(|error| {
            format!("must be an address to listen on such as \":443\" ({error})")
        })?;
        Ok(Self {
            host: Some(address.host),
            port: address.port,
        })
    }

    /// Returns the socket address, the first one if the host is a name with several.
    pub(crate) async fn resolve(&self) -> io::Result<SocketAddr> {
        match &self.host {
            None => Ok((Ipv6Addr::UNSPECIFIED, self.port).into()),
            Some(Host::Ip(ip)) => Ok((*ip, self.port).into()),
            Some(Host::Domain(name)) => tokio::net::lookup_host((&**name, self.port))
                .await?
                .next()
                .ok_or_else(|| io::Error::other(format!("{name} has no address"))),
        }
    }

    /// Returns the port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            None => write!(f, ":{}", self.port),
            Some(host) => write!(f, "{host}:{}", self.port),
        }
    }
}

/// How many ports `all` are.
const ALL_PORTS: u32 = 1 << 16;

/// Where a client's server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerAddress {
    /// Host name or IP address.
    pub(crate) host: Host,
    /// Its ports; more than one asks for port hopping.
    pub(crate) ports: PortUnion,
}

impl ServerAddress {
    /// Reads `host`, `host:port` or `host:ports`; the error says what it must look like.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let shape = |reason: &dyn fmt::Display| {
            format!("must be a server address such as \"example.com:443\" ({reason})")
        };
        // A bare IPv6 address has colons of its own.
        let colon = match text.rfind(']') {
            Some(bracket) => text[bracket..].find(':').map(|at| bracket + at),
            None if text.parse::<Ipv6Addr>().is_ok() => None,
            None => text.find(':'),
        };
        let (host, ports) = match colon {
            Some(colon) => (&text[..colon], Some(&text[colon + 1..])),
            None => (text, None),
        };
        // A leading `@` marks targets that a server answers itself, and would be lost in a link.
        if host.starts_with('@') {
            return Err(shape(&AddressError::Host));
        }
        let host: Host = host.parse().map_err(|error| shape(&error))?;
        let ports = match ports {
            None => PortUnion::from(DEFAULT_PORT),
            Some(ports) => ports.parse().map_err(|error| shape(&error))?,
        };
        let ports = Self::usable(ports).map_err(|reason| shape(&reason))?;
        Ok(Self { host, ports })
    }

    /// Returns the ports that a server can have: `all` begins at 1; the error is for port 0 where
    /// it was asked for.
    pub(super) fn usable(ports: PortUnion) -> Result<PortUnion, &'static str> {
        const NONE: &str = "port 0 is no port of a server";
        match (ports.count(), ports.contains(0)) {
            (ALL_PORTS, _) => "1-65535".parse().map_err(|_| NONE),
            (_, true) => Err(NONE),
            (_, false) => Ok(ports),
        }
    }

    /// Returns the host as name lookups and certificates want it, without brackets.
    pub(crate) fn host_text(&self) -> String {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => ip.to_string(),
            host => host.to_string(),
        }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.ports)
    }
}

/// Reads a target that forwards go to.
pub(super) fn target(text: &str) -> Result<Address, String> {
    text.parse()
        .map_err(|error| format!("must be a target such as \"example.com:80\" ({error})"))
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ports_of_a_server_begin_at_1() {
        for all in ["example.com:all", "example.com:*"] {
            let parsed = ServerAddress::parse(all).expect("all");
            assert_eq!(parsed.ports.to_string(), "1-65535");
        }
        assert!(ServerAddress::parse("example.com:0,443").is_err());
    }

    #[tokio::test]
    async fn listening() {
        for (text, resolved) in [
            (":443", "[::]:443"),
            ("0.0.0.0:80", "0.0.0.0:80"),
            ("[::1]:0", "[::1]:0"),
            ("127.0.0.1:1080", "127.0.0.1:1080"),
        ] {
            let listen = Listen::parse(text).expect(text);
            assert_eq!(listen.to_string(), text);
            assert_eq!(listen.resolve().await.expect(text).to_string(), resolved);
        }
        let listen = Listen::parse("localhost:5").expect("a name");
        assert!(listen.resolve().await.expect("resolves").ip().is_loopback());
        for text in [
            "", "443", ":", ":65536", ":+1", ":443-500", "::1:443", "a b:1",
        ] {
            assert!(Listen::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn servers() {
        for (text, host, ports) in [
            ("example.com", "example.com", "443"),
            ("example.com:8443", "example.com", "8443"),
            ("example.com:443,5000-6000", "example.com", "443,5000-6000"),
            ("[2001:db8::1]:443", "2001:db8::1", "443"),
            ("2001:db8::1", "2001:db8::1", "443"),
            ("1.2.3.4:5", "1.2.3.4", "5"),
        ] {
            let server = ServerAddress::parse(text).expect(text);
            assert_eq!(
                (&*server.host_text(), &*server.ports.to_string()),
                (host, ports)
            );
        }
        for text in [
            "",
            ":443",
            "example.com:",
            "example.com:99999",
            "a:b:1",
            "a:0",
            "a:0-5",
            "[::1",
        ] {
            assert!(ServerAddress::parse(text).is_err(), "{text}");
        }
    }
}
