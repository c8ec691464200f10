//! What a client offers local programs: `socks5`, `http`, `tcpForwarding`, `udpForwarding`.

use std::time::Duration;

use hy2_proto::address::Address;
use hyper::header::HeaderValue;

use super::{Listen, Secret, address, section::Section};

/// All local inbounds of a client.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Inbounds {
    pub(crate) socks5: Option<Socks5Inbound>,
    pub(crate) http: Option<HttpInbound>,
    pub(crate) tcp_forwards: Vec<Forward>,
    pub(crate) udp_forwards: Vec<UdpForwardInbound>,
}

impl Inbounds {
    /// Tells whether there is nothing to listen on.
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A user name and password that local programs must show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) username: String,
    pub(crate) password: Secret,
}

/// `socks5`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Socks5Inbound {
    pub(crate) listen: Listen,
    pub(crate) login: Option<Login>,
    pub(crate) disable_udp: bool,
}

/// `http`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HttpInbound {
    pub(crate) listen: Listen,
    pub(crate) login: Option<Login>,
    pub(crate) realm: String,
}

/// One of `tcpForwarding`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Forward {
    pub(crate) listen: Listen,
    pub(crate) remote: Address,
}

/// One of `udpForwarding`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct UdpForwardInbound {
    pub(crate) forward: Forward,
    pub(crate) timeout: Duration,
}

/// Longest user name or password in bytes (RFC 1929 §2).
const MAX_LOGIN: usize = 255;

pub(super) fn read(root: &Section<'_>, needed: bool) -> Inbounds {
    let other = "transparent proxying and TUN";
    for key in ["tcpTProxy", "udpTProxy", "tcpRedirect"] {
        root.refuse(key, |_| false, other);
    }
    // The reference has a TUN device as soon as the section is there.
    root.refuse("tun", |_| false, other);
    let inbounds = Inbounds {
        socks5: root.optional("socks5", read_socks5).flatten(),
        http: root.optional("http", read_http).flatten(),
        tcp_forwards: list(root, "tcpForwarding", read_forward),
        udp_forwards: list(root, "udpForwarding", |section| {
            let timeout = Duration::from_secs(60);
            let timeout = section.duration("timeout", timeout, Duration::ZERO..=Duration::MAX);
            let forward = read_forward(section)?;
            Some(UdpForwardInbound { forward, timeout })
        }),
    };
    let keys = ["socks5", "http", "tcpForwarding", "udpForwarding"];
    if needed && inbounds.is_empty() && !keys.into_iter().any(|key| root.has(key)) {
        let what = "missing: a client needs socks5, http, tcpForwarding or udpForwarding";
        root.mistake("socks5", what);
    }
    inbounds
}

fn list<T>(
    root: &Section<'_>,
    key: &'static str,
    read: impl Fn(&Section<'_>) -> Option<T>,
) -> Vec<T> {
    root.list(key, read).into_iter().flatten().collect()
}

fn read_socks5(section: &Section<'_>) -> Option<Socks5Inbound> {
    let (login, disable_udp) = (read_login(section), section.flag("disableUDP"));
    Some(Socks5Inbound {
        listen: read_listen(section)?,
        login,
        disable_udp,
    })
}

fn read_http(section: &Section<'_>) -> Option<HttpInbound> {
    let (login, realm) = (read_login(section), section.text("realm"));
    let realm = section.parsed("realm", realm, |text| match HeaderValue::from_str(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("must be text without control characters".into()),
    });
    Some(HttpInbound {
        listen: read_listen(section)?,
        login,
        realm: realm.unwrap_or_else(|| "Hysteria".into()),
    })
}

fn read_forward(section: &Section<'_>) -> Option<Forward> {
    let listen = read_listen(section);
    let remote = section.required("remote", "where connections go");
    let remote = section.parsed("remote", remote, address::target);
    Some(Forward {
        listen: listen?,
        remote: remote?,
    })
}

fn read_listen(section: &Section<'_>) -> Option<Listen> {
    let listen = section.required("listen", "the address to listen on");
    section.parsed("listen", listen, Listen::parse)
}

fn read_login(section: &Section<'_>) -> Option<Login> {
    let username = section.text("username");
    let password = section.text("password");
    for (key, value) in [("username", &username), ("password", &password)] {
        if value.as_ref().is_some_and(|value| value.len() > MAX_LOGIN) {
            section.mistake(key, "must have at most 255 bytes");
        }
    }
    match (username, password) {
        (Some(username), Some(password)) => Some(Login {
            username,
            password: password.into(),
        }),
        (None, None) => None,
        (Some(_), None) => {
            section.mistake("password", "missing: a username needs a password");
            None
        }
        (None, Some(_)) => {
            section.mistake("username", "missing: a password needs a username");
            None
        }
    }
}
