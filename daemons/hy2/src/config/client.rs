//! The file of a client.

use std::{error::Error, time::Duration};

use hy2_proto::uri::{self, ShareUri};

use super::{
    ClientTls, Congestion, Inbounds, Obfs, Quic, Rate, Secret, ServerAddress, inbound, obfs, quic,
    rate, section::Section, server::MIMIC, tls,
};

/// Settings of a client.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Client {
    pub(crate) server: ServerAddress,
    pub(crate) auth: Secret,
    pub(crate) hop: Hop,
    pub(crate) obfs: Obfs,
    pub(crate) tls: ClientTls,
    pub(crate) quic: Quic,
    pub(crate) congestion: Congestion,
    pub(crate) rate: Rate,
    pub(crate) fast_open: bool,
    pub(crate) lazy: bool,
    pub(crate) inbounds: Inbounds,
}

/// How often to change the port, if there are several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hop {
    pub(crate) min: Duration,
    pub(crate) max: Duration,
}

/// Shortest stay on a port (`extras/transport/udphop` of the reference).
const MIN_HOP: Duration = Duration::from_secs(5);

const DEFAULT_HOP: Duration = Duration::from_secs(30);

pub(super) fn read(root: &Section<'_>, inbounds: bool) -> Option<Client> {
    let disabled = |node: &super::tree::Node| {
        ["enable", "enabled"]
            .into_iter()
            .all(|key| node.get(key).is_none_or(|on| on.is_off()))
    };
    root.refuse_section("mimic", MIMIC, disabled, "mimic");
    let server = root.required("server", "the server's address");
    let server = root.parsed_server(server);
    let auth = root.text("auth").unwrap_or_default();
    let hop = root.section("transport", read_transport);
    let obfs = root.section("obfs", obfs::read);
    let tls = root.section("tls", tls::read_client);
    let quic = root.section("quic", quic::read_client);
    let congestion = root.section("congestion", rate::read_congestion);
    let rate = root.section("bandwidth", rate::read_client);
    let inbounds = inbound::read(root, inbounds);
    let (fast_open, lazy) = (root.flag("fastOpen"), root.flag("lazy"));
    let mut client = Client {
        server: ServerAddress::parse("unknown").ok()?,
        auth: auth.into(),
        hop,
        obfs: obfs?,
        tls,
        quic,
        congestion: congestion?,
        rate,
        fast_open,
        lazy,
        inbounds,
    };
    match server? {
        Place::Address(address) => client.server = address,
        Place::Link(link) => client.apply(root, *link)?,
    }
    Some(client)
}

/// What `server` may be.
enum Place {
    Address(ServerAddress),
    Link(Box<ShareUri>),
}

impl Section<'_> {
    fn parsed_server(&self, text: Option<String>) -> Option<Place> {
        let text = text?;
        let scheme = text
            .split_once("://")
            .map(|(scheme, _)| scheme.to_ascii_lowercase());
        match scheme.as_deref() {
            Some(scheme) if scheme.contains("realm") => {
                self.mistake("server", "not supported in this version: realm");
                None
            }
            // A link holds the password, so it is not repeated.
            Some(_) => match text.parse::<ShareUri>() {
                Ok(link) => Some(Place::Link(Box::new(link))),
                Err(error) => {
                    let reason = error.source().map(|reason| format!(": {reason}"));
                    let reason = reason.unwrap_or_default();
                    self.mistake("server", format!("{error}{reason}"));
                    None
                }
            },
            None => self
                .parsed("server", Some(text), ServerAddress::parse)
                .map(Place::Address),
        }
    }
}

impl Client {
    /// Takes over what a link says; the rest stays as the file has it.
    fn apply(&mut self, root: &Section<'_>, link: ShareUri) -> Option<()> {
        if link.ech.is_some() {
            root.mistake(
                "server",
                "not supported in this version: encrypted ClientHello",
            );
        }
        let ports = match ServerAddress::usable(link.server_ports().into_owned()) {
            Ok(ports) => ports,
            Err(reason) => {
                root.mistake("server", reason);
                return None;
            }
        };
        self.server = ServerAddress {
            ports,
            host: link.host,
        };
        if let Some(auth) = link.auth {
            self.auth = auth.into();
        }
        match link.obfs {
            None => {}
            Some(uri::Obfs::Salamander(password)) => self.obfs = Obfs::Salamander(password.into()),
            Some(uri::Obfs::Gecko(password)) => {
                self.obfs = Obfs::Gecko(password.into(), Default::default());
            }
            Some(_) => root.mistake("server", "not supported in this version: this obfuscation"),
        }
        if self
            .obfs
            .password()
            .is_some_and(|password| password.reveal().len() < 4)
        {
            root.mistake(
                "server",
                "the obfuscation password must have at least 4 bytes",
            );
        }
        let named = root.parsed("server", link.sni, tls::server_name);
        self.tls.sni = named.or_else(|| self.tls.sni.take());
        self.tls.insecure |= link.insecure;
        if let Some(pin) = link.pin_sha256 {
            self.tls.pin = Some(root.parsed("server", Some(pin), tls::pin)?);
        }
        Some(())
    }

    /// Returns the link that makes another client connect to the same server.
    pub(crate) fn share_link(&self) -> ShareUri {
        let mut link = ShareUri::new(self.server.host.clone());
        let port = self.server.ports.single();
        link.ports = (port != Some(uri::DEFAULT_PORT)).then(|| self.server.ports.clone());
        link.auth = Some(self.auth.reveal().to_owned()).filter(|auth| !auth.is_empty());
        link.obfs = match &self.obfs {
            Obfs::Plain => None,
            Obfs::Salamander(password) => Some(uri::Obfs::Salamander(password.reveal().into())),
            Obfs::Gecko(password, _) => Some(uri::Obfs::Gecko(password.reveal().into())),
        };
        link.sni = self.tls.sni.clone();
        link.insecure = self.tls.insecure;
        link.pin_sha256 = self
            .tls
            .pin
            .map(|pin| pin.iter().map(|byte| format!("{byte:02x}")).collect());
        link
    }
}

fn read_transport(section: &Section<'_>) -> Hop {
    section.choice("type", &[("udp", ())]);
    section.section("udp", |section| {
        let read = |key| section.optional_duration(key, MIN_HOP..=Duration::MAX);
        let fixed = read("hopInterval");
        let (min, max) = (read("minHopInterval"), read("maxHopInterval"));
        match (fixed, min, max) {
            (_, None, None) => {
                let stay = fixed.unwrap_or(DEFAULT_HOP);
                Hop {
                    min: stay,
                    max: stay,
                }
            }
            (None, Some(min), Some(max)) if min <= max => Hop { min, max },
            _ => {
                let reason = match fixed {
                    Some(_) => "set either hopInterval or minHopInterval and maxHopInterval",
                    None if min.is_some() && max.is_some() => {
                        "minHopInterval must not be above maxHopInterval"
                    }
                    None => "minHopInterval and maxHopInterval need each other",
                };
                // A value that was refused has been noted already.
                let refused = (min.is_none() && section.has("minHopInterval"))
                    || (max.is_none() && section.has("maxHopInterval"));
                if !refused {
                    section.own_mistake(reason);
                }
                Hop {
                    min: DEFAULT_HOP,
                    max: DEFAULT_HOP,
                }
            }
        }
    })
}
