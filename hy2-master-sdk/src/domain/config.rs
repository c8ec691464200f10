//! What an operator configures of nodes: JSON bodies for the fleet, a region, a node, merged in that
//! order ([`merge`]), then checked as a whole.
//!
//! Passwords in a body are sealed before it is stored ([`seal`]) and opened when it becomes what a
//! node runs ([`open`]).

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderName, HeaderValue, Uri};
use hy2_proto::control::rpc;
use hy2_proto::gecko::PacketSizes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;
use utoipa::ToSchema;

use super::Timestamp;
use crate::secrets::Vault;

/// What nodes run, apart from their keys and users. Every field has a default. In the body of a scope, absent fields are as
/// in the more general scope, and `null` sets a field back to its default (RFC 7396).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct ConfigBody {
    /// UDP addresses, `host:port` or `:port`; empty: every address, the node's port.
    pub listen: Vec<String>,
    /// Where the Hysteria certificate comes from.
    pub tls: TlsBody,
    /// Which server names are let in: `dns-san`, `strict` or `disable`.
    pub sni_guard: SniGuardBody,
    /// Obfuscation; none when absent.
    pub obfs: Option<ObfsBody>,
    /// Accepted beside `obfs` for a while.
    pub previous_obfs: Option<PreviousObfsBody>,
    /// Most bytes per second that the server sends to one client; 0: no limit.
    pub up_bytes_per_s: u64,
    /// Most bytes per second that the server takes from one client; 0: no limit.
    pub down_bytes_per_s: u64,
    /// Whether what clients say of their bandwidth is ignored.
    pub ignore_client_bandwidth: bool,
    /// Whether a client whose path carries less than it claimed is sent little more than the path carries.
    pub overclaim_guard: bool,
    /// Congestion control when no rate is agreed on.
    pub congestion: CongestionBody,
    /// QUIC limits; 0: the default.
    pub quic: QuicBody,
    /// Whether UDP is not relayed.
    pub udp_disabled: bool,
    /// How long a UDP session may be idle; 0: 60 s.
    pub udp_idle_s: u32,
    /// What a client sees that is none.
    pub masquerade: Option<MasqueradeBody>,
    /// Whether clients may test their speed.
    pub speed_test: bool,
    /// Whether clients reach private addresses behind the node.
    pub allow_private_targets: bool,
    /// How long old listeners and connections may finish after a change; 0: 300 s.
    pub drain_grace_s: u32,
    /// What nodes do when they have not heard from the master for a week.
    pub on_expiry: OnExpiryBody,
}

/// Where a node's Hysteria certificate comes from.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum TlsBody {
    /// The master makes one; subscriptions carry its pin.
    #[default]
    Issued,
    /// Files on the node.
    Files {
        /// Path of a PEM file.
        certificate: String,
        /// Path of a PEM file.
        key: String,
    },
}

/// Which server names are let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the reference's words")]
pub enum SniGuardBody {
    #[default]
    DnsSan,
    Strict,
    Disable,
}

/// Obfuscation of datagrams.
#[derive(Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum ObfsBody {
    /// Salamander.
    Salamander {
        /// At least 16 bytes.
        password: String,
    },
    /// Gecko.
    Gecko {
        /// At least 16 bytes.
        password: String,
        /// 0: the default.
        #[serde(default)]
        min_packet_size: u32,
        /// 0: the default.
        #[serde(default)]
        max_packet_size: u32,
    },
}

impl std::fmt::Debug for ObfsBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Salamander { .. } => "Salamander(***)",
            Self::Gecko { .. } => "Gecko(***)",
        })
    }
}

/// An obfuscation that clients still use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PreviousObfsBody {
    /// Absent: plain.
    pub obfs: Option<ObfsBody>,
    /// Until when it is accepted, in milliseconds since 1970.
    #[schema(value_type = i64)]
    pub until: Timestamp,
}

/// Congestion control.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CongestionBody {
    /// `bbr` or `reno`.
    pub kind: CongestionKindBody,
    /// `standard`, `conservative` or `aggressive`.
    pub bbr_profile: BbrProfileBody,
}

/// A congestion controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the reference's words")]
pub enum CongestionKindBody {
    #[default]
    Bbr,
    Reno,
}

/// How BBR behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the reference's words")]
pub enum BbrProfileBody {
    #[default]
    Standard,
    Conservative,
    Aggressive,
}

/// QUIC limits; 0: the default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "the reference's words")]
pub struct QuicBody {
    pub stream_receive_window: u64,
    pub connection_receive_window: u64,
    pub max_idle_timeout_s: u32,
    pub max_incoming_streams: u32,
    pub disable_path_mtu_discovery: bool,
}

/// What a client sees that is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum MasqueradeBody {
    /// An empty 404.
    NotFound,
    /// A fixed answer.
    String {
        /// The body.
        content: String,
        /// Its headers.
        #[serde(default)]
        headers: BTreeMap<String, String>,
        /// 0: 200.
        #[serde(default)]
        status: u16,
    },
    /// Files on the node.
    File {
        /// Which directory.
        directory: String,
    },
    /// Another site.
    Proxy {
        /// Its address.
        url: String,
        /// Whether the site sees its own name.
        #[serde(default)]
        rewrite_host: bool,
        /// Whether the site gets the client's address.
        #[serde(default)]
        x_forwarded: bool,
        /// Whether its certificate is not checked.
        #[serde(default)]
        insecure: bool,
    },
}

/// What a node does past the validity of its manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnExpiryBody {
    /// Keeps serving.
    #[default]
    Serve,
    /// Lets nobody new in.
    Drain,
}

/// A field of a body is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{path}: {message}")]
pub struct ConfigError {
    /// Where: `masquerade.proxy.url`.
    pub path: String,
    /// Why.
    pub message: String,
}

/// What a node adds to its configuration.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NodeParts {
    /// Its Hysteria port.
    pub listen_port: u16,
    /// Its certificate and key (DER) for [`TlsBody::Issued`].
    pub issued: Option<(Vec<u8>, Vec<u8>)>,
    /// `K_fleet`.
    pub fleet_key: [u8; 32],
    /// `K_node`.
    pub node_key: [u8; 32],
}

impl NodeParts {
    /// Of a node without an issued certificate.
    pub fn new(listen_port: u16, fleet_key: [u8; 32], node_key: [u8; 32]) -> Self {
        Self {
            listen_port,
            issued: None,
            fleet_key,
            node_key,
        }
    }
}

/// Lays the body of a scope over that of the more general ones: objects merge, null removes, the rest replaces
/// (RFC 7396), but for what is not made of parts:
///
/// - Of `obfs`, `masquerade` and `tls` one kind is chosen. Another kind replaces, the same kind merges.
/// - `previous_obfs` is taken as a whole from the most specific scope that has it. It goes with `obfs`: a scope that
///   has an `obfs` of its own takes no window from a more general one, whose clients are others.
pub fn merge(target: &mut Value, patch: &Value) {
    if let (Value::Object(target), Value::Object(patch)) = (&mut *target, patch) {
        for field in ["obfs", "masquerade", "tls"] {
            let kinds = target.get(field).zip(patch.get(field));
            if kinds.is_some_and(|(old, new)| is_other_kind(old, new)) {
                target.remove(field);
            }
        }
        if patch.contains_key("obfs") || patch.contains_key("previous_obfs") {
            target.remove("previous_obfs");
        }
    }
    merge_parts(target, patch);
}

/// Tells whether a choice between kinds, `{"kind": {..}}`, falls on another one.
fn is_other_kind(old: &Value, new: &Value) -> bool {
    let (Value::Object(old), Value::Object(new)) = (old, new) else {
        return false;
    };
    let mut chosen = new.iter().filter(|(_, value)| !value.is_null());
    chosen.any(|(kind, _)| !old.contains_key(kind))
}

/// Applies `patch` to `target` as RFC 7396 says.
fn merge_parts(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(target) = target else {
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge_parts(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

impl ConfigBody {
    /// Reads a merged body, passwords in clear, and checks it.
    ///
    /// # Errors
    ///
    /// Every field that is wrong.
    pub fn parse(value: Value) -> Result<Self, Vec<ConfigError>> {
        let body: Self = serde_path_to_error::deserialize(value).map_err(|error| {
            vec![ConfigError {
                path: error.path().to_string(),
                message: error.inner().to_string(),
            }]
        })?;
        let mut errors = Vec::new();
        body.check(&mut errors);
        if errors.is_empty() {
            Ok(body)
        } else {
            Err(errors)
        }
    }

    fn check(&self, errors: &mut Vec<ConfigError>) {
        let mut wrong = |path: String, message: &str| {
            errors.push(ConfigError {
                path,
                message: message.to_owned(),
            });
        };
        if self.listen.len() > MAX_LISTEN {
            wrong("listen".to_owned(), "more than 16 addresses");
        }
        for (index, address) in self.listen.iter().enumerate() {
            let port = address
                .rsplit_once(':')
                .map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(1..))) {
                wrong(format!("listen[{index}]"), "not host:port");
            }
        }
        if let TlsBody::Files { certificate, key } = &self.tls {
            for (path, file) in [
                ("tls.files.certificate", certificate),
                ("tls.files.key", key),
            ] {
                if file.is_empty() {
                    wrong(path.to_owned(), "no file");
                }
            }
        }
        let until = self.previous_obfs.as_ref().map(|previous| previous.until);
        if until.is_some_and(|until| !until.is_rfc_3339()) {
            let path = "previous_obfs.until".to_owned();
            wrong(path, "not milliseconds since 1970 within the year 9999");
        }
        let obfs = [
            ("obfs", self.obfs.as_ref()),
            (
                "previous_obfs.obfs",
                self.previous_obfs
                    .as_ref()
                    .and_then(|previous| previous.obfs.as_ref()),
            ),
        ];
        for (path, obfs) in obfs {
            match obfs {
                Some(ObfsBody::Salamander { password }) if password.len() < MIN_OBFS_PASSWORD => {
                    wrong(
                        format!("{path}.salamander.password"),
                        "shorter than 16 bytes",
                    );
                }
                Some(ObfsBody::Gecko { password, .. }) if password.len() < MIN_OBFS_PASSWORD => {
                    wrong(format!("{path}.gecko.password"), "shorter than 16 bytes");
                }
                Some(ObfsBody::Gecko {
                    min_packet_size: min,
                    max_packet_size: max,
                    ..
                }) if *max != 0 && min > max => {
                    wrong(
                        format!("{path}.gecko.min_packet_size"),
                        "larger than max_packet_size",
                    );
                }
                _ => {}
            }
        }
        match &self.masquerade {
            Some(MasqueradeBody::Proxy { url, .. })
                if !url.starts_with("http://") && !url.starts_with("https://") =>
            {
                wrong("masquerade.proxy.url".to_owned(), "neither http nor https");
            }
            Some(MasqueradeBody::String { status, .. })
                if *status != 0 && !(200..=599).contains(status) =>
            {
                wrong(
                    "masquerade.string.status".to_owned(),
                    "not between 200 and 599",
                );
            }
            Some(MasqueradeBody::File { directory }) if directory.is_empty() => {
                wrong("masquerade.file.directory".to_owned(), "no directory");
            }
            _ => {}
        }
    }

    /// Checks whether nodes take this, so that who configures hears of it and not who looks at nodes later. Bodies that
    /// are stored were checked when they were written: what was in force stays so.
    ///
    /// # Errors
    ///
    /// Every field that a node would refuse.
    pub fn check_for_nodes(&self) -> Result<(), Vec<ConfigError>> {
        let mut errors = Vec::new();
        let mut wrong = |path: &str, message: String| {
            errors.push(ConfigError {
                path: path.to_owned(),
                message,
            });
        };
        let mut listen: Vec<SocketAddr> = Vec::new();
        for (index, text) in self.listen.iter().enumerate() {
            let path = format!("listen[{index}]");
            let address = match text.strip_prefix(':') {
                Some(port) => port
                    .parse()
                    .ok()
                    .map(|port| (Ipv6Addr::UNSPECIFIED, port).into()),
                None => text.parse().ok(),
            };
            match address {
                None => wrong(&path, "not :port or address:port".to_owned()),
                Some(address) if listen.contains(&address) => {
                    wrong(&path, "listed before".to_owned());
                }
                Some(address) => listen.push(address),
            }
        }
        let quic = &self.quic;
        for (path, value, range) in [
            ("up_bytes_per_s", self.up_bytes_per_s, 65_536..=u64::MAX),
            ("down_bytes_per_s", self.down_bytes_per_s, 65_536..=u64::MAX),
            (
                "quic.stream_receive_window",
                quic.stream_receive_window,
                WINDOW,
            ),
            (
                "quic.connection_receive_window",
                quic.connection_receive_window,
                WINDOW,
            ),
            (
                "quic.max_idle_timeout_s",
                quic.max_idle_timeout_s.into(),
                4..=120,
            ),
            (
                "quic.max_incoming_streams",
                quic.max_incoming_streams.into(),
                8..=u64::MAX,
            ),
            ("udp_idle_s", self.udp_idle_s.into(), 2..=600),
            ("drain_grace_s", self.drain_grace_s.into(), 1..=86_400),
        ] {
            if value != 0 && !range.contains(&value) {
                let (least, most) = range.into_inner();
                wrong(
                    path,
                    match most {
                        u64::MAX => format!("neither 0 nor at least {least}"),
                        _ => format!("neither 0 nor between {least} and {most}"),
                    },
                );
            }
        }
        let previous = self.previous_obfs.as_ref();
        if previous.is_some_and(|previous| previous.until.0 < 0) {
            wrong("previous_obfs.until", "before 1970".to_owned());
        }
        for (path, obfs) in [
            ("obfs", self.obfs.as_ref()),
            (
                "previous_obfs.obfs",
                previous.and_then(|previous| previous.obfs.as_ref()),
            ),
        ] {
            let Some(ObfsBody::Gecko {
                min_packet_size,
                max_packet_size,
                ..
            }) = obfs
            else {
                continue;
            };
            let size = |size: u32, default: u16| match size {
                0 => Some(default),
                size => u16::try_from(size).ok(),
            };
            let sizes = size(*min_packet_size, 512).zip(size(*max_packet_size, 1200));
            if sizes.is_none_or(|(min, max)| PacketSizes::new(min, max).is_err()) {
                wrong(
                    &format!("{path}.gecko.min_packet_size"),
                    "larger than max_packet_size (0: 512 and 1200), or that beyond 2048".to_owned(),
                );
            }
        }
        match &self.masquerade {
            Some(MasqueradeBody::Proxy { url, .. }) => {
                let url = url.parse::<Uri>().ok();
                if !url.is_some_and(|url| {
                    matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some()
                }) {
                    wrong(
                        "masquerade.proxy.url",
                        "not an http:// or https:// URL".to_owned(),
                    );
                }
            }
            Some(MasqueradeBody::String {
                headers, status, ..
            }) => {
                if *status == AUTH_STATUS {
                    let message = "233 is what tells clients that they are in";
                    wrong("masquerade.string.status", message.to_owned());
                }
                for (name, value) in headers {
                    if name.parse::<HeaderName>().is_err() || value.parse::<HeaderValue>().is_err()
                    {
                        let message = format!("{name:?} or its value cannot be an HTTP header");
                        wrong("masquerade.string.headers", message);
                    }
                }
            }
            _ => {}
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors)
        }
    }

    /// Returns the configuration as the node gets it.
    pub fn to_proto(&self, parts: &NodeParts) -> rpc::NodeConfig {
        let listen = if self.listen.is_empty() {
            vec![format!(":{}", parts.listen_port)]
        } else {
            self.listen.clone()
        };
        let source = match (&self.tls, &parts.issued) {
            (TlsBody::Files { certificate, key }, _) => {
                Some(rpc::tls::Source::Files(rpc::TlsFiles {
                    certificate: certificate.clone(),
                    key: key.clone(),
                }))
            }
            (TlsBody::Issued, Some((certificate, key))) => {
                Some(rpc::tls::Source::Issued(rpc::TlsIssued {
                    chain: vec![certificate.clone().into()],
                    key: key.clone().into(),
                }))
            }
            (TlsBody::Issued, None) => None,
        };
        rpc::NodeConfig {
            listen,
            tls: Some(rpc::Tls {
                source,
                sni_guard: match self.sni_guard {
                    SniGuardBody::DnsSan => rpc::SniGuard::DnsSan,
                    SniGuardBody::Strict => rpc::SniGuard::Strict,
                    SniGuardBody::Disable => rpc::SniGuard::Disable,
                }
                .into(),
            }),
            obfuscation: self.obfs.as_ref().map(obfuscation),
            previous_obfuscation: self.previous_obfs.as_ref().map(|previous| {
                rpc::PreviousObfuscation {
                    obfuscation: previous.obfs.as_ref().map(obfuscation),
                    until: Some(previous.until.to_proto()),
                }
            }),
            bandwidth: Some(rpc::ServerBandwidth {
                up_bytes_per_s: self.up_bytes_per_s,
                down_bytes_per_s: self.down_bytes_per_s,
                ignore_client_bandwidth: self.ignore_client_bandwidth,
            }),
            congestion: Some(rpc::Congestion {
                r#type: match self.congestion.kind {
                    CongestionKindBody::Bbr => rpc::CongestionType::Bbr,
                    CongestionKindBody::Reno => rpc::CongestionType::Reno,
                }
                .into(),
                bbr_profile: match self.congestion.bbr_profile {
                    BbrProfileBody::Standard => rpc::BbrProfile::Standard,
                    BbrProfileBody::Conservative => rpc::BbrProfile::Conservative,
                    BbrProfileBody::Aggressive => rpc::BbrProfile::Aggressive,
                }
                .into(),
                overclaim_guard: self.overclaim_guard,
                ..Default::default()
            }),
            quic: Some(rpc::Quic {
                stream_receive_window: self.quic.stream_receive_window,
                connection_receive_window: self.quic.connection_receive_window,
                max_idle_timeout: seconds(self.quic.max_idle_timeout_s),
                max_incoming_streams: self.quic.max_incoming_streams,
                disable_path_mtu_discovery: self.quic.disable_path_mtu_discovery,
            }),
            udp: Some(rpc::UdpRelay {
                disabled: self.udp_disabled,
                idle_timeout: seconds(self.udp_idle_s),
            }),
            masquerade: self.masquerade.as_ref().map(masquerade),
            speed_test: self.speed_test,
            allow_private_targets: self.allow_private_targets,
            drain_grace: seconds(if self.drain_grace_s == 0 {
                300
            } else {
                self.drain_grace_s
            }),
            verifier_keys: Some(rpc::VerifierKeys {
                fleet_key: parts.fleet_key.to_vec().into(),
                node_key: parts.node_key.to_vec().into(),
            }),
            expiry_policy: match self.on_expiry {
                OnExpiryBody::Serve => rpc::ExpiryPolicy::Serve,
                OnExpiryBody::Drain => rpc::ExpiryPolicy::Drain,
            }
            .into(),
        }
    }
}

/// Seals the passwords in a body or patch that is about to be stored; sealed ones stay.
pub fn seal(vault: &Vault, body: &mut Value) {
    each_password(body, &mut |password| {
        if !password.starts_with(SEALED) {
            let sealed = vault.seal(PLACE, b"", password.as_bytes());
            *password = format!("{SEALED}{}", URL_SAFE_NO_PAD.encode(sealed));
        }
    });
}

/// Opens the passwords in a stored body.
///
/// # Errors
///
/// One does not open.
pub fn open(vault: &Vault, body: &mut Value) -> Result<(), crate::secrets::OpenError> {
    let mut result = Ok(());
    each_password(body, &mut |password| {
        let Some(sealed) = password.strip_prefix(SEALED) else {
            return;
        };
        let opened = URL_SAFE_NO_PAD
            .decode(sealed)
            .map_err(|_| crate::secrets::OpenError::Format)
            .and_then(|sealed| vault.open(PLACE, b"", &sealed))
            .and_then(|plain| {
                String::from_utf8(plain.to_vec()).map_err(|_| crate::secrets::OpenError::Format)
            });
        match opened {
            Ok(plain) => *password = plain,
            Err(error) => result = Err(error),
        }
    });
    result
}

fn each_password(value: &mut Value, visit: &mut dyn FnMut(&mut String)) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                match field {
                    Value::String(text) if key == "password" => visit(text),
                    other => each_password(other, visit),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| each_password(item, visit)),
        _ => {}
    }
}

fn obfuscation(obfs: &ObfsBody) -> rpc::Obfuscation {
    rpc::Obfuscation {
        kind: Some(match obfs {
            ObfsBody::Salamander { password } => {
                rpc::obfuscation::Kind::Salamander(rpc::Salamander {
                    password: password.clone(),
                })
            }
            ObfsBody::Gecko {
                password,
                min_packet_size,
                max_packet_size,
            } => rpc::obfuscation::Kind::Gecko(rpc::Gecko {
                password: password.clone(),
                min_packet_size: *min_packet_size,
                max_packet_size: *max_packet_size,
            }),
        }),
    }
}

fn masquerade(body: &MasqueradeBody) -> rpc::Masquerade {
    use rpc::masquerade::Site;
    rpc::Masquerade {
        site: Some(match body {
            MasqueradeBody::NotFound => Site::NotFound(rpc::MasqueradeNotFound {}),
            MasqueradeBody::String {
                content,
                headers,
                status,
            } => Site::String(rpc::MasqueradeString {
                content: content.clone(),
                headers: headers.clone().into_iter().collect(),
                status: u32::from(*status),
            }),
            MasqueradeBody::File { directory } => Site::File(rpc::MasqueradeFile {
                directory: directory.clone(),
            }),
            MasqueradeBody::Proxy {
                url,
                rewrite_host,
                x_forwarded,
                insecure,
            } => Site::Proxy(rpc::MasqueradeProxy {
                url: url.clone(),
                rewrite_host: *rewrite_host,
                x_forwarded: *x_forwarded,
                insecure: *insecure,
            }),
        }),
    }
}

fn seconds(seconds: u32) -> Option<prost_types::Duration> {
    (seconds != 0)
        .then(|| prost_types::Duration::try_from(Duration::from_secs(u64::from(seconds))).ok())
        .flatten()
}

/// What a node takes for a window of QUIC, in bytes.
const WINDOW: RangeInclusive<u64> = 16_384..=1 << 30;
/// Reference §1.2.
const AUTH_STATUS: u16 = 233;
const MAX_LISTEN: usize = 16;
/// security.md §3.1; the reference takes 4.
const MIN_OBFS_PASSWORD: usize = 16;
const SEALED: &str = "sealed:";
const PLACE: &str = "config.password";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::MasterKeys;
    use serde_json::json;

    #[test]
    fn bodies_merge_as_rfc_7396_says() {
        // The examples of its appendix A.
        for (original, patch, expected) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (
                json!({"a":"b","b":"c"}),
                json!({"a":null}),
                json!({"b":"c"}),
            ),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (
                json!({"a":{"b":"c"}}),
                json!({"a":{"b":"d","c":null}}),
                json!({"a":{"b":"d"}}),
            ),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
            (
                json!({}),
                json!({"a":{"bb":{"ccc":null}}}),
                json!({"a":{"bb":{}}}),
            ),
        ] {
            let mut target = original;
            merge(&mut target, &patch);
            assert_eq!(target, expected);
        }
    }

    #[test]
    fn of_kinds_one_is_chosen() {
        let merged = |bodies: &[Value]| {
            let mut target = json!({});
            for body in bodies {
                merge(&mut target, body);
            }
            target
        };
        let salamander = json!({"salamander": {"password": "a-password-of-16"}});
        let gecko = json!({"gecko": {"password": "b-password-of-16", "min_packet_size": 600}});
        let file = json!({"file": {"directory": "/srv"}});
        let proxy = json!({"proxy": {"url": "https://example.org"}});
        let files = json!({"files": {"certificate": "/c", "key": "/k"}});
        for (field, old, new) in [
            ("obfs", &gecko, &salamander),
            ("obfs", &salamander, &gecko),
            ("masquerade", &file, &proxy),
            ("masquerade", &json!("not_found"), &proxy),
            ("masquerade", &proxy, &json!("not_found")),
            ("tls", &files, &json!("issued")),
            ("tls", &json!("issued"), &files),
        ] {
            let found = merged(&[json!({field: old}), json!({field: new})]);
            assert_eq!(found, json!({field: new}));
            ConfigBody::parse(found).unwrap();
        }
        // The same kind merges, and one kind beside another is still a mistake.
        let size = json!({"obfs": {"gecko": {"min_packet_size": 700}}});
        let found = merged(&[json!({"obfs": gecko}), size]);
        assert_eq!(
            found["obfs"],
            json!({"gecko": {"password": "b-password-of-16", "min_packet_size": 700}})
        );
        let both =
            json!({"obfs": {"gecko": gecko["gecko"], "salamander": salamander["salamander"]}});
        assert!(ConfigBody::parse(merged(&[json!({"obfs": gecko}), both])).is_err());
        let headers =
            |name: &str| json!({"masquerade": {"string": {"content": "", "headers": {name: "x"}}}});
        let found = merged(&[headers("a"), headers("b")]);
        assert_eq!(
            found["masquerade"]["string"]["headers"],
            json!({"a": "x", "b": "x"})
        );
    }

    #[test]
    fn a_window_belongs_to_the_most_specific_scope_as_a_whole() {
        let salamander = json!({"salamander": {"password": "a-password-of-16"}});
        let gecko = json!({"gecko": {"password": "b-password-of-16"}});
        let fleet = json!({"obfs": salamander, "previous_obfs": {"obfs": gecko, "until": 5}});
        for (own, expected) in [
            (json!({}), json!({"obfs": gecko, "until": 5})),
            (json!({"previous_obfs": {"until": 7}}), json!({"until": 7})),
            (
                json!({"previous_obfs": {"obfs": null, "until": 7}}),
                json!({"until": 7}),
            ),
            (
                json!({"previous_obfs": {"obfs": salamander, "until": 7}}),
                json!({"obfs": salamander, "until": 7}),
            ),
            (json!({"previous_obfs": null}), Value::Null),
            // Who has an obfuscation of its own has nothing to do with what the fleet had.
            (json!({"obfs": gecko}), Value::Null),
            (json!({"obfs": null}), Value::Null),
        ] {
            let mut merged = fleet.clone();
            merge(&mut merged, &own);
            assert_eq!(merged["previous_obfs"], expected, "{own}");
            ConfigBody::parse(merged).unwrap();
        }
    }

    #[test]
    fn wrong_fields_are_named() {
        let path = |value| {
            ConfigBody::parse(value)
                .unwrap_err()
                .into_iter()
                .map(|error| error.path)
                .collect::<Vec<_>>()
        };
        assert_eq!(path(json!({"udp_idle_s": "x"})), ["udp_idle_s"]);
        assert_eq!(
            path(json!({"obfs": {"salamander": {"password": "short"}}})),
            ["obfs.salamander.password"]
        );
        assert_eq!(
            path(json!({"listen": ["x", ":0", ":1"], "masquerade": {"proxy": {"url": "ftp://x"}}})),
            ["listen[0]", "listen[1]", "masquerade.proxy.url"]
        );
        assert!(
            ConfigBody::parse(json!({"unknown": 1})).unwrap_err()[0]
                .message
                .contains("unknown")
        );
        assert_eq!(ConfigBody::parse(json!({})).unwrap(), ConfigBody::default());
    }

    #[test]
    fn what_nodes_would_refuse_is_named() {
        let paths = |value| {
            let body = ConfigBody::parse(value).unwrap();
            let errors = body.check_for_nodes().err().unwrap_or_default();
            errors
                .into_iter()
                .map(|error| error.path)
                .collect::<Vec<_>>()
        };
        let text = |more: Value| json!({"masquerade": {"string": more}});
        for (value, path) in [
            (json!({"udp_idle_s": 1}), "udp_idle_s"),
            (json!({"drain_grace_s": 86_401}), "drain_grace_s"),
            (json!({"up_bytes_per_s": 65_535}), "up_bytes_per_s"),
            (json!({"listen": [":1", "[::]:1"]}), "listen[1]"),
            (json!({"listen": ["name:1"]}), "listen[0]"),
            (
                json!({"quic": {"max_idle_timeout_s": 121}}),
                "quic.max_idle_timeout_s",
            ),
            (
                json!({"quic": {"max_incoming_streams": 7}}),
                "quic.max_incoming_streams",
            ),
            (
                json!({"quic": {"stream_receive_window": 1}}),
                "quic.stream_receive_window",
            ),
            (
                json!({"obfs": {"gecko": {"password": "a-password-of-16", "max_packet_size": 511}}}),
                "obfs.gecko.min_packet_size",
            ),
            (
                text(json!({"content": "", "status": 233})),
                "masquerade.string.status",
            ),
            (
                text(json!({"content": "", "headers": {"a b": "c"}})),
                "masquerade.string.headers",
            ),
            (
                json!({"masquerade": {"proxy": {"url": "https://"}}}),
                "masquerade.proxy.url",
            ),
        ] {
            assert_eq!(paths(value), [path]);
        }
        let good = json!({"udp_idle_s": 2, "drain_grace_s": 86_400, "listen": [":1", "1.2.3.4:1"]});
        assert_eq!(paths(good), Vec::<String>::new());
    }

    #[test]
    fn the_nodes_port_is_the_default_listener_and_keys_go_along() {
        let config = ConfigBody::default().to_proto(&NodeParts::new(4433, [1; 32], [2; 32]));
        assert_eq!(config.listen, [":4433"]);
        assert_eq!(config.verifier_keys.unwrap().node_key, [2; 32].as_slice());
    }

    #[test]
    fn passwords_are_stored_sealed_and_opened_again() {
        let vault = Vault::new(MasterKeys::generate().unwrap());
        let clear = json!({"obfs": {"salamander": {"password": "correct horse battery"}}});
        let mut body = clear.clone();
        seal(&vault, &mut body);
        assert!(!body.to_string().contains("horse"));
        let sealed = body.clone();
        seal(&vault, &mut body);
        assert_eq!(body, sealed);
        open(&vault, &mut body).unwrap();
        assert_eq!(body, clear);
    }
}
