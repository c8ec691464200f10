//! The file of a server.

use std::time::Duration;

use super::{
    Auth, Congestion, Listen, Masquerade, Obfs, Quic, Rate, ServerTls, auth, masquerade, obfs,
    quic, rate,
    section::{
        Keys::{self, Value},
        Section,
    },
    tls,
    tree::Node,
};

/// Settings of a server.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Server {
    pub(crate) listen: Listen,
    pub(crate) obfs: Obfs,
    pub(crate) tls: ServerTls,
    pub(crate) quic: Quic,
    pub(crate) rate: Rate,
    pub(crate) ignore_client_bandwidth: bool,
    pub(crate) congestion: Congestion,
    pub(crate) speed_test: bool,
    pub(crate) disable_udp: bool,
    pub(crate) udp_idle_timeout: Duration,
    pub(crate) auth: Auth,
    pub(crate) masquerade: Masquerade,
    /// Ours: whether targets may be private, loopback or link-local addresses.
    pub(crate) allow_private_targets: bool,
}

pub(super) fn read(root: &Section<'_>) -> Option<Server> {
    refuse_unsupported(root);
    let listen = match root.text("listen") {
        None => Some(Listen::everywhere(443)),
        text => root.parsed("listen", text, read_listen),
    };
    let obfs = root.section("obfs", obfs::read);
    let tls = root.section("tls", tls::read_server);
    let quic = root.section("quic", quic::read_server);
    let rate = root.section("bandwidth", rate::read_server);
    let congestion = root.section("congestion", rate::read_congestion);
    let (low, high) = (Duration::from_secs(2), Duration::from_secs(600));
    let udp_idle_timeout = root.duration("udpIdleTimeout", Duration::from_secs(60), low..=high);
    let auth = root.section("auth", auth::read);
    let masquerade = root.section("masquerade", masquerade::read);
    Some(Server {
        ignore_client_bandwidth: root.flag("ignoreClientBandwidth"),
        speed_test: root.flag("speedTest"),
        disable_udp: root.flag("disableUDP"),
        allow_private_targets: root.flag("allowPrivateTargets"),
        listen: listen?,
        obfs: obfs?,
        tls: tls?,
        quic,
        rate,
        congestion: congestion?,
        udp_idle_timeout,
        auth: auth?,
        masquerade: masquerade?,
    })
}

fn read_listen(text: &str) -> Result<Listen, String> {
    if text.starts_with("realm") && text.contains("://") {
        return Err("not supported in this version: realm".into());
    }
    let ports = text.rsplit_once(':').map_or(text, |(_, ports)| ports);
    if ports.contains(['-', ',']) {
        return Err("not supported in this version: listening on several ports \
                    (listen on one and redirect the others to it)"
            .into());
    }
    Listen::parse(text)
}

/// Features of the reference that this version lacks.
fn refuse_unsupported(root: &Section<'_>) {
    let files = "ACME; certificates come from files (tls.cert and tls.key)";
    root.refuse_section("acme", ACME, |node| off(node, "domains"), files);
    let hello = "encrypted ClientHello";
    root.refuse_section("ech", ECH, |node| off(node, "keyPath"), hello);
    // Only used when listen is a realm, which is refused there.
    root.ignore_section("realm", REALM);
    root.refuse_section("mimic", MIMIC, disabled, "mimic");
    root.refuse_section("sniff", SNIFF, disabled, "sniffing");
    let resolvers = "resolvers other than the system's";
    root.refuse_section("resolver", RESOLVER, is_system_resolver, resolvers);
    let none = |node: &Node| off(node, "file") && off(node, "inline");
    root.refuse_section("acl", ACL, none, "ACL rules");
    let outbounds = "outbounds other than a plain direct one";
    root.refuse_section("outbounds", OUTBOUND, are_direct, outbounds);
    let statistics = "the traffic statistics API";
    let silent = |node: &Node| off(node, "listen");
    root.refuse_section("trafficStats", TRAFFIC_STATS, silent, statistics);
}

// The keys of those features (`app/cmd/server.go` of the reference).

const ACME: &[(&str, Keys)] = &[
    ("domains", Value),
    ("email", Value),
    ("ca", Value),
    ("listenHost", Value),
    ("dir", Value),
    ("type", Value),
    ("http", Keys::Section(&[("altPort", Value)])),
    ("tls", Keys::Section(&[("altPort", Value)])),
    ("dns", Keys::Section(&[("name", Value), ("config", Value)])),
    ("disableHTTP", Value),
    ("disableTLSALPN", Value),
    ("altHTTPPort", Value),
    ("altTLSALPNPort", Value),
];

const ECH: &[(&str, Keys)] = &[("keyPath", Value)];

const REALM: &[(&str, Keys)] = &[
    ("stunServers", Value),
    ("stunTimeout", Value),
    ("punchTimeout", Value),
    ("heartbeatInterval", Value),
    ("insecure", Value),
    ("ipMode", Value),
    (
        "portMapping",
        Keys::Section(&[("enabled", Value), ("timeout", Value), ("lifetime", Value)]),
    ),
];

pub(super) const MIMIC: &[(&str, Keys)] = &[
    ("enabled", Value),
    ("interface", Value),
    ("xdpMode", Value),
    ("path", Value),
    ("extraArgs", Value),
];

const SNIFF: &[(&str, Keys)] = &[
    ("enable", Value),
    ("timeout", Value),
    ("rewriteDomain", Value),
    ("tcpPorts", Value),
    ("udpPorts", Value),
];

const RESOLVER: &[(&str, Keys)] = &[
    ("type", Value),
    ("tcp", PLAIN_RESOLVER),
    ("udp", PLAIN_RESOLVER),
    ("tls", TLS_RESOLVER),
    ("https", TLS_RESOLVER),
];

const PLAIN_RESOLVER: Keys = Keys::Section(&[("addr", Value), ("timeout", Value)]);

const TLS_RESOLVER: Keys = Keys::Section(&[
    ("addr", Value),
    ("timeout", Value),
    ("sni", Value),
    ("insecure", Value),
]);

const ACL: &[(&str, Keys)] = &[
    ("file", Value),
    ("inline", Value),
    ("geoip", Value),
    ("geosite", Value),
    ("geoUpdateInterval", Value),
];

const OUTBOUND: &[(&str, Keys)] = &[
    ("name", Value),
    ("type", Value),
    (
        "direct",
        Keys::Section(&[
            ("mode", Value),
            ("bindIPv4", Value),
            ("bindIPv6", Value),
            ("bindDevice", Value),
            ("fastOpen", Value),
        ]),
    ),
    (
        "socks5",
        Keys::Section(&[("addr", Value), ("username", Value), ("password", Value)]),
    ),
    (
        "http",
        Keys::Section(&[("url", Value), ("insecure", Value)]),
    ),
];

const TRAFFIC_STATS: &[(&str, Keys)] = &[("listen", Value), ("secret", Value)];

/// Tells whether a section's key asks for nothing.
fn off(section: &Node, key: &str) -> bool {
    matches!(section, Node::Map(_)) && section.get(key).is_none_or(Node::is_off)
}

/// Tells whether a section says itself that it is off.
fn disabled(section: &Node) -> bool {
    off(section, "enable") && off(section, "enabled")
}

fn is_system_resolver(resolver: &Node) -> bool {
    match resolver.get("type") {
        Some(Node::Text(kind)) => kind.is_empty() || kind.eq_ignore_ascii_case("system"),
        kind => matches!(resolver, Node::Map(_)) && kind.is_none_or(Node::is_off),
    }
}

/// One direct outbound without settings is what there is without any.
fn are_direct(outbounds: &Node) -> bool {
    let Node::List(list) = outbounds else {
        return false;
    };
    list.len() <= 1
        && list.iter().all(|outbound| {
            let kind = outbound.get("type");
            let direct = outbound.get("direct").unwrap_or(&Node::Null);
            let mode = match direct.get("mode") {
                Some(Node::Text(mode)) => mode.is_empty() || mode.eq_ignore_ascii_case("auto"),
                mode => mode.is_none_or(Node::is_off),
            };
            matches!(kind, Some(Node::Text(kind)) if kind.eq_ignore_ascii_case("direct"))
                && mode
                && ["bindIPv4", "bindIPv6", "bindDevice", "fastOpen"]
                    .into_iter()
                    .all(|key| direct.get(key).is_none_or(Node::is_off))
        })
}
