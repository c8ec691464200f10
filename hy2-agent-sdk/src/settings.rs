//! A node's configuration, checked: what comes out of [`NodeSettings::parse`] can be applied, but
//! for what only the host knows (files, free ports).

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hy2_core::{
    Bandwidth,
    client::FallbackCongestion,
    congestion::BbrProfile,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri},
    rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::ServerConfig,
    socket::Obfuscation,
    tls::SniGuard,
};
use hy2_proto::control::rpc::{self, ErrorCode, FieldError, NodeConfig};

use crate::{
    clock::{moment, span},
    ledger::field_error,
};

/// A checked configuration.
#[derive(Clone)]
#[non_exhaustive]
pub struct NodeSettings {
    /// What it was made of.
    pub message: Arc<NodeConfig>,
    /// UDP addresses to listen on, none twice.
    pub listen: Vec<SocketAddr>,
    /// Where the certificate comes from.
    pub certificate: CertificateSource,
    /// Which names in a client's hello fit.
    pub sni_guard: SniGuard,
    /// What clients should speak.
    pub obfuscation: Obfuscation,
    /// What is understood beside it, and until when.
    pub previous_obfuscation: Option<(Obfuscation, SystemTime)>,
    /// What people without a credential see.
    pub site: Site,
    /// Let users reach addresses that are not public.
    pub allow_private_targets: bool,
    /// How long old listeners and their connections may finish.
    pub drain_grace: Duration,
    /// Keys of verifiers.
    pub keys: VerifierKeys,
    /// Let nobody new in when the newest manifest is past its validity.
    pub drain_when_expired: bool,
}

impl fmt::Debug for NodeSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeSettings")
            .field("listen", &self.listen)
            .field("obfuscation", &self.obfuscation)
            .finish_non_exhaustive()
    }
}

/// Where a certificate comes from.
#[derive(Clone)]
pub enum CertificateSource {
    /// PEM files on the node.
    Files {
        /// The chain.
        certificate: PathBuf,
        /// The private key.
        key: PathBuf,
    },
    /// From the master.
    Issued {
        /// Leaf first.
        chain: Vec<CertificateDer<'static>>,
        /// PKCS#8, DER.
        key: zeroize::Zeroizing<Vec<u8>>,
    },
}

impl fmt::Debug for CertificateSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files { certificate, key } => f
                .debug_struct("Files")
                .field("certificate", certificate)
                .field("key", key)
                .finish(),
            Self::Issued { chain, .. } => f
                .debug_struct("Issued")
                .field("chain", &chain.len())
                .field("key", &"***")
                .finish(),
        }
    }
}

impl CertificateSource {
    pub(crate) fn issued_key(der: &[u8]) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(der.to_vec()).into()
    }
}

/// What people without a credential see.
#[derive(Debug, Clone, PartialEq)]
pub enum Site {
    /// The small built-in site.
    BuiltIn,
    /// "Not found" for everything.
    NotFound,
    /// One text for everything.
    Text {
        /// The body.
        content: String,
        /// Headers beside those that every answer has.
        headers: HeaderMap,
        /// The status.
        status: u16,
    },
    /// Files of a folder.
    Files(PathBuf),
    /// Another web server.
    Proxy {
        /// Its URL.
        url: String,
        /// Send its own name as `Host`.
        rewrite_host: bool,
        /// Tell it who asks.
        x_forwarded: bool,
        /// Do not check its certificate.
        insecure: bool,
    },
}

/// Keys by which a credential becomes a verifier.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifierKeys {
    pub(crate) fleet: [u8; 32],
    pub(crate) node: [u8; 32],
}

impl fmt::Debug for VerifierKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VerifierKeys(***)")
    }
}

impl NodeSettings {
    /// Checks `config`.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, each with its path.
    pub fn parse(config: &Arc<NodeConfig>) -> Result<Self, Vec<FieldError>> {
        let mut check = Check::default();
        let listen = listen(&config.listen, &mut check);
        let certificate = certificate(config.tls.as_ref(), &mut check);
        let sni_guard = check.choice(
            "tls.sni_guard",
            config.tls.as_ref().map_or(0, |tls| tls.sni_guard),
            |guard: rpc::SniGuard| match guard {
                rpc::SniGuard::Unspecified | rpc::SniGuard::DnsSan => SniGuard::DnsSan,
                rpc::SniGuard::Strict => SniGuard::Strict,
                rpc::SniGuard::Disable => SniGuard::Disable,
            },
        );
        let obfuscation = obfuscation("obfuscation", config.obfuscation.as_ref(), &mut check);
        let previous_obfuscation = previous(config.previous_obfuscation.as_ref(), &mut check);
        let site = site(config.masquerade.as_ref(), &mut check);
        let drain_grace = match config.drain_grace.as_ref() {
            None => DRAIN_GRACE,
            some => check.span("drain_grace", some, Duration::ZERO..=DRAIN_GRACE_MAX),
        };
        let keys = keys(config.verifier_keys.as_ref(), &mut check);
        let drain_when_expired = check.choice(
            "expiry_policy",
            config.expiry_policy,
            |policy: rpc::ExpiryPolicy| policy == rpc::ExpiryPolicy::Drain,
        );
        check_server(config, &mut check);
        match (
            check.errors.is_empty(),
            certificate,
            obfuscation,
            site,
            keys,
        ) {
            (true, Some(certificate), Some(obfuscation), Some(site), Some(keys)) => Ok(Self {
                message: Arc::clone(config),
                listen,
                certificate,
                sni_guard: sni_guard.unwrap_or_default(),
                obfuscation,
                previous_obfuscation,
                site,
                allow_private_targets: config.allow_private_targets,
                drain_grace,
                keys,
                drain_when_expired: drain_when_expired.unwrap_or_default(),
            }),
            _ => Err(check.errors),
        }
    }

    /// Puts what concerns the server into `server`; the rest of it stays.
    pub fn fill(&self, server: &mut ServerConfig) {
        let config = &self.message;
        let defaults = ServerConfig::default();
        let rate = |bytes: u64| (bytes > 0).then(|| Bandwidth::from_bytes_per_sec(bytes));
        let bandwidth = config.bandwidth.unwrap_or_default();
        server.max_tx = rate(bandwidth.up_bytes_per_s);
        server.max_rx = rate(bandwidth.down_bytes_per_s);
        server.ignore_client_bandwidth = bandwidth.ignore_client_bandwidth;
        let congestion = config.congestion.unwrap_or_default();
        server.loss_compensation = !congestion.disable_loss_compensation;
        server.overclaim_guard = congestion.overclaim_guard;
        server.congestion = match congestion.r#type() {
            rpc::CongestionType::Reno => FallbackCongestion::Reno,
            _ => FallbackCongestion::Bbr(match congestion.bbr_profile() {
                rpc::BbrProfile::Conservative => BbrProfile::Conservative,
                rpc::BbrProfile::Aggressive => BbrProfile::Aggressive,
                _ => BbrProfile::Standard,
            }),
        };
        let quic = config.quic.unwrap_or_default();
        let or = |value: u64, default: u64| if value == 0 { default } else { value };
        server.quic.stream_receive_window = or(
            quic.stream_receive_window,
            defaults.quic.stream_receive_window,
        );
        server.quic.receive_window =
            or(quic.connection_receive_window, defaults.quic.receive_window);
        server.quic.max_idle_timeout =
            span(quic.max_idle_timeout.as_ref()).unwrap_or(defaults.quic.max_idle_timeout);
        server.quic.max_incoming_streams = match quic.max_incoming_streams {
            0 => defaults.quic.max_incoming_streams,
            streams => streams,
        };
        server.quic.path_mtu_discovery = !quic.disable_path_mtu_discovery;
        let udp = config.udp.unwrap_or_default();
        server.disable_udp = udp.disabled;
        server.udp_idle_timeout =
            span(udp.idle_timeout.as_ref()).unwrap_or(defaults.udp_idle_timeout);
        server.speed_test = config.speed_test;
        server.obfuscation = self.obfuscation.clone();
    }
}

const DRAIN_GRACE: Duration = Duration::from_secs(300);
/// Longest time that connections may be given to finish.
pub(crate) const DRAIN_GRACE_MAX: Duration = Duration::from_secs(86_400);
/// More sockets than that are a mistake.
const MAX_LISTENERS: usize = 64;

/// Collects what is wrong.
#[derive(Default)]
struct Check {
    errors: Vec<FieldError>,
}

impl Check {
    fn wrong(&mut self, path: &str, message: impl fmt::Display) {
        let message = message.to_string();
        self.errors
            .push(field_error(ErrorCode::InvalidField, path, &message));
    }

    fn choice<E: TryFrom<i32>, T>(
        &mut self,
        path: &str,
        value: i32,
        meaning: impl FnOnce(E) -> T,
    ) -> Option<T> {
        match E::try_from(value) {
            Ok(value) => Some(meaning(value)),
            Err(_) => {
                self.wrong(path, format!("{value} is not a known choice"));
                None
            }
        }
    }

    fn span(
        &mut self,
        path: &str,
        value: Option<&prost_types::Duration>,
        range: std::ops::RangeInclusive<Duration>,
    ) -> Duration {
        match span(value) {
            Some(found) if range.contains(&found) => found,
            _ => {
                let (low, high) = (range.start().as_secs(), range.end().as_secs());
                self.wrong(path, format!("must be between {low} s and {high} s"));
                *range.start()
            }
        }
    }

    fn at_least(&mut self, path: &str, value: u64, least: u64, unit: &str) {
        if value != 0 && value < least {
            self.wrong(path, format!("must be 0 or at least {least} {unit}"));
        }
    }
}

fn listen(addresses: &[String], check: &mut Check) -> Vec<SocketAddr> {
    if addresses.is_empty() {
        check.wrong("listen", "needs at least one address");
    }
    if addresses.len() > MAX_LISTENERS {
        check.wrong("listen", format!("has more than {MAX_LISTENERS} addresses"));
    }
    let mut listen: Vec<SocketAddr> = Vec::new();
    for (at, text) in addresses.iter().enumerate() {
        let path = format!("listen[{at}]");
        let address = match text.strip_prefix(':') {
            Some(port) => port
                .parse()
                .ok()
                .map(|port| SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)),
            None => text.parse().ok(),
        };
        match address {
            None => check.wrong(
                &path,
                format!("{text:?} is not \":port\" or \"address:port\""),
            ),
            Some(address) if address.port() != 0 && listen.contains(&address) => {
                check.wrong(&path, format!("{text:?} is listed before"));
            }
            Some(address) => listen.push(address),
        }
    }
    listen
}

fn certificate(tls: Option<&rpc::Tls>, check: &mut Check) -> Option<CertificateSource> {
    let Some(source) = tls.and_then(|tls| tls.source.as_ref()) else {
        check.wrong("tls", "needs a certificate: \"files\" or \"issued\"");
        return None;
    };
    match source {
        rpc::tls::Source::Files(files) => {
            for (path, file) in [
                ("tls.files.certificate", &files.certificate),
                ("tls.files.key", &files.key),
            ] {
                if file.is_empty() {
                    check.wrong(path, "is empty");
                }
            }
            Some(CertificateSource::Files {
                certificate: files.certificate.clone().into(),
                key: files.key.clone().into(),
            })
        }
        rpc::tls::Source::Issued(issued) => {
            if issued.chain.is_empty() {
                check.wrong("tls.issued.chain", "is empty");
            }
            if issued.key.is_empty() {
                check.wrong("tls.issued.key", "is empty");
            }
            let chain = issued.chain.iter();
            Some(CertificateSource::Issued {
                chain: chain
                    .map(|der| CertificateDer::from(der.to_vec()))
                    .collect(),
                key: zeroize::Zeroizing::new(issued.key.to_vec()),
            })
        }
    }
}

fn obfuscation(
    path: &str,
    wanted: Option<&rpc::Obfuscation>,
    check: &mut Check,
) -> Option<Obfuscation> {
    let Some(wanted) = wanted else {
        return Some(Obfuscation::Plain);
    };
    match &wanted.kind {
        None => {
            check.wrong(path, "has no kind: \"salamander\" or \"gecko\"");
            None
        }
        Some(rpc::obfuscation::Kind::Salamander(salamander)) => {
            let made = Obfuscation::salamander(&salamander.password);
            made.map_err(|error| check.wrong(&format!("{path}.salamander.password"), error))
                .ok()
        }
        Some(rpc::obfuscation::Kind::Gecko(gecko)) => {
            let path = format!("{path}.gecko");
            let size = |field: &str, value: u32, default: u16, check: &mut Check| match value {
                0 => default,
                value => u16::try_from(value).unwrap_or_else(|_| {
                    check.wrong(&format!("{path}.{field}"), "must not exceed 2048");
                    default
                }),
            };
            let min = size("min_packet_size", gecko.min_packet_size, 512, check);
            let max = size("max_packet_size", gecko.max_packet_size, 1200, check);
            match Obfuscation::gecko(&gecko.password, min, max) {
                Ok(made) => Some(made),
                Err(error @ hy2_core::socket::ObfuscationError::Password(_)) => {
                    check.wrong(&format!("{path}.password"), error);
                    None
                }
                Err(error) => {
                    check.wrong(&format!("{path}.min_packet_size"), error);
                    None
                }
            }
        }
    }
}

fn previous(
    previous: Option<&rpc::PreviousObfuscation>,
    check: &mut Check,
) -> Option<(Obfuscation, SystemTime)> {
    let previous = previous?;
    let path = "previous_obfuscation";
    let until = moment(previous.until.as_ref());
    if until.is_none() {
        check.wrong(&format!("{path}.until"), "is missing");
    }
    let inner = format!("{path}.obfuscation");
    let spoken = obfuscation(&inner, previous.obfuscation.as_ref(), check)?;
    Some((spoken, until?))
}

fn site(masquerade: Option<&rpc::Masquerade>, check: &mut Check) -> Option<Site> {
    use rpc::masquerade::Site as Wanted;
    let Some(masquerade) = masquerade else {
        return Some(Site::BuiltIn);
    };
    Some(match &masquerade.site {
        None => {
            check.wrong("masquerade", "has no site");
            return None;
        }
        Some(Wanted::NotFound(_)) => Site::NotFound,
        Some(Wanted::String(text)) => {
            let status = match text.status {
                0 => 200,
                status => u16::try_from(status).unwrap_or(0),
            };
            let path = "masquerade.string.status";
            // 233 tells clients that they are in (reference §1.2).
            if status < 200
                || status == 233
                || StatusCode::from_u16(status).is_err()
                || status > 599
            {
                check.wrong(path, "must be an HTTP status from 200 to 599 and not 233");
            }
            let mut headers = HeaderMap::new();
            for (name, value) in &text.headers {
                match (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
                    (Ok(name), Ok(value)) => {
                        headers.insert(name, value);
                    }
                    _ => check.wrong(
                        &format!("masquerade.string.headers[{name:?}]"),
                        "is not an HTTP header",
                    ),
                }
            }
            Site::Text {
                content: text.content.clone(),
                headers,
                status,
            }
        }
        Some(Wanted::File(file)) => {
            if file.directory.is_empty() {
                check.wrong("masquerade.file.directory", "is empty");
            }
            Site::Files(file.directory.clone().into())
        }
        Some(Wanted::Proxy(proxy)) => {
            let url = proxy.url.parse::<Uri>().ok();
            if !url.is_some_and(|url| {
                matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some()
            }) {
                check.wrong("masquerade.proxy.url", "is not an http:// or https:// URL");
            }
            Site::Proxy {
                url: proxy.url.clone(),
                rewrite_host: proxy.rewrite_host,
                x_forwarded: proxy.x_forwarded,
                insecure: proxy.insecure,
            }
        }
    })
}

fn keys(keys: Option<&rpc::VerifierKeys>, check: &mut Check) -> Option<VerifierKeys> {
    let Some(keys) = keys else {
        check.wrong("verifier_keys", "is missing");
        return None;
    };
    let mut key = |path: &str, bytes: &[u8]| {
        let key = bytes.try_into().ok();
        if key.is_none() {
            check.wrong(path, "must have 32 bytes");
        }
        key
    };
    let fleet = key("verifier_keys.fleet_key", &keys.fleet_key);
    let node = key("verifier_keys.node_key", &keys.node_key);
    Some(VerifierKeys {
        fleet: fleet?,
        node: node?,
    })
}

/// The ranges of the server itself (`hy2_core::server::ServerConfig`).
fn check_server(config: &NodeConfig, check: &mut Check) {
    let bandwidth = config.bandwidth.unwrap_or_default();
    let bytes = "bytes per second";
    check.at_least(
        "bandwidth.up_bytes_per_s",
        bandwidth.up_bytes_per_s,
        65_536,
        bytes,
    );
    check.at_least(
        "bandwidth.down_bytes_per_s",
        bandwidth.down_bytes_per_s,
        65_536,
        bytes,
    );
    let congestion = config.congestion.unwrap_or_default();
    check.choice(
        "congestion.type",
        congestion.r#type,
        |_: rpc::CongestionType| (),
    );
    check.choice(
        "congestion.bbr_profile",
        congestion.bbr_profile,
        |_: rpc::BbrProfile| (),
    );
    let quic = config.quic.unwrap_or_default();
    for (path, window) in [
        ("quic.stream_receive_window", quic.stream_receive_window),
        (
            "quic.connection_receive_window",
            quic.connection_receive_window,
        ),
    ] {
        check.at_least(path, window, 16_384, "bytes");
        if window > MAX_WINDOW {
            check.wrong(path, format!("must not exceed {MAX_WINDOW} bytes"));
        }
    }
    if quic.max_idle_timeout.is_some() {
        let range = Duration::from_secs(4)..=Duration::from_secs(120);
        check.span(
            "quic.max_idle_timeout",
            quic.max_idle_timeout.as_ref(),
            range,
        );
    }
    check.at_least(
        "quic.max_incoming_streams",
        quic.max_incoming_streams.into(),
        8,
        "streams",
    );
    let udp = config.udp.unwrap_or_default();
    if udp.idle_timeout.is_some() {
        let range = Duration::from_secs(2)..=Duration::from_secs(600);
        check.span("udp.idle_timeout", udp.idle_timeout.as_ref(), range);
    }
}

/// A window beyond this is a mistake and not a choice.
const MAX_WINDOW: u64 = 1 << 30;
