//! Share links: everything a client needs to connect, in one line.
//!
//! ```text
//! hysteria2://auth@host:ports/?obfs=salamander&obfs-password=…&sni=…&insecure=1&pinSHA256=…&ech=…#name
//! ```
//!
//! All parts but the host may be missing; `hy2://` means the same. Rules are those of the
//! reference (`app/cmd/client.go`), and printing gives its form: parameters sorted by name. Two
//! deviations, both towards keeping what was written: a bare `+` in the credentials stays a plus
//! sign (the reference reads a space), and a link that is malformed anywhere is an error (the
//! reference skips parameters it cannot decode).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use crate::address::{AddressError, Host};
use crate::auth::parse_bool;
use crate::ports::{PortUnion, PortUnionError};

/// Longest link that is parsed, in bytes.
pub const MAX_LEN: usize = 16 * 1024;

/// Port of a link that names none.
pub const DEFAULT_PORT: u16 = 443;

/// A share link in parts.
///
/// `Display` prints the link, secrets included; `Debug` prints them as `***`.
///
/// # Examples
///
/// ```
/// use hy2_proto::uri::ShareUri;
///
/// let link = "hysteria2://saul@better.call:7000-10000,20000/?sni=crap.cc#office";
/// let uri: ShareUri = link.parse()?;
/// assert_eq!(uri.auth.as_deref(), Some("saul"));
/// assert_eq!(uri.server_ports().count(), 3002);
/// assert_eq!(uri.to_string(), link);
/// # Ok::<(), hy2_proto::uri::UriError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShareUri {
    /// Credentials; `user:password` where the server has users.
    pub auth: Option<String>,
    /// The server.
    pub host: Host,
    /// Its ports, if the link names any; more than one asks for port hopping.
    pub ports: Option<PortUnion>,
    /// Obfuscation under QUIC.
    pub obfs: Option<Obfs>,
    /// TLS server name, if it is not the host.
    pub sni: Option<String>,
    /// Whether to accept any certificate.
    pub insecure: bool,
    /// SHA-256 of the server's certificate as it was written; see [`normalise_pin`].
    pub pin_sha256: Option<String>,
    /// Encrypted ClientHello configuration in base64.
    pub ech: Option<String>,
    /// What to call the server in a list.
    pub name: Option<String>,
}

/// Obfuscation that a link asks for, with its password.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Obfs {
    /// [`crate::salamander`].
    Salamander(String),
    /// [`crate::gecko`] over Salamander.
    Gecko(String),
}

/// Why a text is not a share link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// It does not begin with `hysteria2://` or `hy2://`.
    #[error("link must begin with hysteria2:// or hy2://")]
    Scheme,
    /// It is longer than [`MAX_LEN`].
    #[error("link is longer than 16384 bytes")]
    TooLong,
    /// The host cannot be one.
    #[error("host in link")]
    Host(#[source] AddressError),
    /// What follows the host is no list of ports.
    #[error("ports in link")]
    Ports(#[source] PortUnionError),
    /// A percent sign is not followed by two hexadecimal digits, or the bytes are not UTF-8.
    #[error("percent-encoding in link")]
    Encoding,
    /// `obfs` names something else than `salamander` or `gecko`.
    #[error("unknown obfuscation {0:?} in link")]
    UnknownObfs(String),
    /// `obfs` is there, but `obfs-password` is not.
    #[error("link asks for obfuscation without obfs-password")]
    NoObfsPassword,
}

impl ShareUri {
    /// Makes a link to a host with nothing else.
    #[must_use]
    pub fn new(host: impl Into<Host>) -> Self {
        Self {
            auth: None,
            host: host.into(),
            ports: None,
            obfs: None,
            sni: None,
            insecure: false,
            pin_sha256: None,
            ech: None,
            name: None,
        }
    }

    /// Returns the ports to connect to, [`DEFAULT_PORT`] if the link names none.
    #[must_use]
    pub fn server_ports(&self) -> Cow<'_, PortUnion> {
        match &self.ports {
            Some(ports) => Cow::Borrowed(ports),
            None => Cow::Owned(PortUnion::from(DEFAULT_PORT)),
        }
    }

    fn read_query(&mut self, query: &str) -> Result<(), UriError> {
        let query = Query::parse(query)?;
        self.sni = query.get("sni");
        self.insecure = query
            .get("insecure")
            .and_then(|value| parse_bool(&value))
            .unwrap_or(false);
        self.pin_sha256 = query.get("pinSHA256");
        self.ech = query.get("ech");
        self.obfs = match query.get("obfs") {
            None => None,
            Some(kind) => {
                let make = match kind.to_ascii_lowercase().as_str() {
                    "plain" => return Ok(()),
                    "salamander" => Obfs::Salamander,
                    "gecko" => Obfs::Gecko,
                    _ => return Err(UriError::UnknownObfs(kind)),
                };
                let password = query.get("obfs-password");
                Some(make(password.ok_or(UriError::NoObfsPassword)?))
            }
        };
        Ok(())
    }

    /// The parameters of the link in the order of their names.
    fn query(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let (obfs, password) = match &self.obfs {
            None => (None, None),
            Some(Obfs::Salamander(password)) => (Some("salamander"), Some(password.as_str())),
            Some(Obfs::Gecko(password)) => (Some("gecko"), Some(password.as_str())),
        };
        [
            ("ech", self.ech.as_deref()),
            ("insecure", self.insecure.then_some("1")),
            ("obfs", obfs),
            ("obfs-password", password),
            ("pinSHA256", self.pin_sha256.as_deref()),
            ("sni", self.sni.as_deref()),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
    }
}

impl FromStr for ShareUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_LEN {
            return Err(UriError::TooLong);
        }
        let (scheme, rest) = text.split_once("://").ok_or(UriError::Scheme)?;
        if !["hysteria2", "hy2"]
            .iter()
            .any(|known| scheme.eq_ignore_ascii_case(known))
        {
            return Err(UriError::Scheme);
        }
        let (rest, name) = cut(rest, '#');
        let (rest, query) = cut(rest, '?');
        let (authority, _path) = cut(rest, '/');
        let (auth, server) = match authority.rsplit_once('@') {
            Some((auth, server)) => (auth, server),
            None => ("", authority),
        };
        let (host, ports) = split_server(server);

        let mut uri = Self::new(host.parse::<Host>().map_err(UriError::Host)?);
        uri.auth = non_empty(decode(auth, Plus::Literal)?);
        uri.ports = ports
            .map(|ports| ports.parse().map_err(UriError::Ports))
            .transpose()?;
        uri.name = non_empty(decode(name, Plus::Literal)?);
        uri.read_query(query)?;
        Ok(uri)
    }
}

impl fmt::Display for ShareUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hysteria2://")?;
        if let Some(auth) = &self.auth {
            // The colon between user and password may stay as it is.
            write!(f, "{}@", Encoded(auth, ":"))?;
        }
        write!(f, "{}", self.host)?;
        if let Some(ports) = &self.ports {
            write!(f, ":{ports}")?;
        }
        f.write_str("/")?;
        for (index, (name, value)) in self.query().enumerate() {
            let separator = if index == 0 { '?' } else { '&' };
            write!(f, "{separator}{name}={}", Encoded(value, ""))?;
        }
        if let Some(name) = &self.name {
            write!(f, "#{}", Encoded(name, ""))?;
        }
        Ok(())
    }
}

impl fmt::Debug for ShareUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShareUri")
            .field("auth", &self.auth.as_ref().map(|_| "***"))
            .field("host", &self.host)
            .field("ports", &self.ports)
            .field("obfs", &self.obfs)
            .field("sni", &self.sni)
            .field("insecure", &self.insecure)
            .field("pin_sha256", &self.pin_sha256)
            .field("ech", &self.ech)
            .field("name", &self.name)
            .finish()
    }
}

impl fmt::Debug for Obfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Salamander(_) => "Salamander(***)",
            Self::Gecko(_) => "Gecko(***)",
        })
    }
}

/// Brings a certificate fingerprint to bare lower-case digits: colons and dashes go.
///
/// # Examples
///
/// ```
/// assert_eq!(hy2_proto::uri::normalise_pin("BA:88-45"), "ba8845");
/// ```
#[must_use]
pub fn normalise_pin(pin: &str) -> String {
    pin.chars()
        .filter(|c| !matches!(c, ':' | '-'))
        .map(|c| c.to_ascii_lowercase())
        .collect()
}

/// Splits at the first `delimiter`; without one, everything comes before it.
fn cut(text: &str, delimiter: char) -> (&str, &str) {
    text.split_once(delimiter).unwrap_or((text, ""))
}

fn non_empty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// Splits `host[:ports]`, minding the colons of an IPv6 address in brackets.
fn split_server(server: &str) -> (&str, Option<&str>) {
    let colon = match server.rfind(']') {
        Some(bracket) => server
            .get(bracket..)
            .and_then(|after| after.find(':'))
            .map(|colon| bracket + colon),
        None => server.find(':'),
    };
    match colon.and_then(|colon| server.split_at_checked(colon)) {
        Some((host, ports)) => (host, ports.strip_prefix(':')),
        None => (server, None),
    }
}

/// Decoded parameters. Of several with one name the first counts.
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(query: &str) -> Result<Self, UriError> {
        query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = cut(pair, '=');
                Ok((decode(name, Plus::Space)?, decode(value, Plus::Space)?))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Returns a value, unless it is empty or missing, which are the same to the reference.
    fn get(&self, name: &str) -> Option<String> {
        let (_, value) = self.0.iter().find(|(known, _)| known == name)?;
        non_empty(value.clone())
    }
}

/// What a bare plus sign stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plus {
    Literal,
    /// As in forms, and so in query strings.
    Space,
}

fn decode(text: &str, plus: Plus) -> Result<String, UriError> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let high = bytes.next().and_then(hex_digit);
                let low = bytes.next().and_then(hex_digit);
                high.zip(low)
                    .map(|(high, low)| high << 4 | low)
                    .ok_or(UriError::Encoding)?
            }
            b'+' if plus == Plus::Space => b' ',
            other => other,
        });
    }
    String::from_utf8(decoded).map_err(|_| UriError::Encoding)
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

/// Prints text with everything encoded but the unreserved characters of RFC 3986, section 2.3,
/// and those of the second part.
struct Encoded<'a>(&'a str, &'static str);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes() {
            let c = char::from(byte);
            if c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '~') || self.1.contains(c)
            {
                write!(f, "{c}")?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
