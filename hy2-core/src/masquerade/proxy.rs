//! Another web server's site: the reference's masquerade of type `proxy`.

use std::{fmt, path::PathBuf, time::Duration};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, FORWARDED, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
        TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::{
    client::legacy::{Client, Error},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::{Body, Masquerade, Peer, body::unsized_empty, empty};
use crate::BoxFuture;

mod connect;

use connect::Connector;

/// Idle connections kept to the upstream, as in the reference.
const IDLE_CONNECTIONS: usize = 32;
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// How long the upstream may take to begin its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Most fields, and bytes, in the head of the upstream's answer.
const MAX_FIELDS: usize = 1_000;
const MAX_HEAD: usize = 1 << 20;
/// Connections that were upgraded, at once.
const MAX_UPGRADED: usize = 1_000;

/// Where a [`ReverseProxy`] gets its answers.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ProxyConfig {
    /// `http://` or `https://` with an optional path to put before every path; or the path of a Unix socket that
    /// speaks HTTP/1.1, as `unix:///path` or `/path`.
    pub url: String,
    /// Sends the upstream its own host instead of the one the client asked for.
    pub rewrite_host: bool,
    /// Tells the upstream about the client in `x-forwarded-for`, `-host` and `-proto`.
    pub x_forwarded: bool,
    /// Accepts any certificate from the upstream.
    pub insecure: bool,
}

impl ProxyConfig {
    /// Passes requests to `url` and changes nothing else.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            rewrite_host: false,
            x_forwarded: false,
            insecure: false,
        }
    }
}

/// Why a [`ReverseProxy`] cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyConfigError {
    /// The address is not a URL with a host, nor an absolute path.
    #[error("not a URL of a web server: {0}")]
    InvalidUrl(String),
    /// The address has a scheme other than http, https and unix.
    #[error("scheme {0} is not one of http, https and unix")]
    UnsupportedScheme(String),
    /// The TLS configuration for the upstream cannot be made.
    #[error("TLS for the upstream")]
    Tls(#[source] rustls::Error),
}

/// Passes every request on to another web server and its answer back; bodies stream both ways.
///
/// An upstream that cannot be reached, or does not begin to answer within 60 s, makes an empty answer with status 502.
/// A request without a body whose method changes nothing is sent once more, on a new connection, when the first was lost
/// before the answer began.
/// Requests of HTTP/1.1 to upgrade the connection, as WebSocket makes, are passed on, and after an answer with status 101
/// so are the bytes, on at most 1,000 connections at once; other versions of HTTP have no such requests.
/// Dropping this ends them.
pub struct ReverseProxy {
    client: Client<Connector, Body>,
    /// Never uses a connection twice: an upstream may close an idle one in the moment of a request.
    fresh: Client<Connector, Body>,
    target: Target,
    config: ProxyConfig,
    upgraded: Mutex<JoinSet<()>>,
}

impl fmt::Debug for ReverseProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReverseProxy")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone)]
struct Target {
    scheme: Scheme,
    authority: Authority,
    /// Path before every path, without a slash at its end.
    base: String,
    query: Option<String>,
}

impl ReverseProxy {
    /// Checks the configuration; the upstream is not contacted.
    ///
    /// # Errors
    /// [`ProxyConfigError`] for a URL that is none of the known forms.
    pub fn new(config: ProxyConfig) -> Result<Self, ProxyConfigError> {
        let socket = socket_path(&config.url);
        let target = if socket.is_some() {
            Target {
                scheme: Scheme::HTTP,
                authority: Authority::from_static("localhost"),
                base: String::new(),
                query: None,
            }
        } else {
            Target::parse(&config.url)?
        };
        let connector = Connector::new(socket, config.insecure).map_err(ProxyConfigError::Tls)?;
        let client = |idle| {
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_TIMEOUT)
                .pool_max_idle_per_host(idle)
                .http1_max_headers(MAX_FIELDS)
                .http1_max_buf_size(MAX_HEAD)
                .http1_allow_obsolete_multiline_headers_in_responses(true)
                .build(connector.clone())
        };
        Ok(Self {
            client: client(IDLE_CONNECTIONS),
            fresh: client(0),
            target,
            config,
            upgraded: Mutex::default(),
        })
    }

    async fn forward(&self, mut request: Request<Body>) -> Response<Body> {
        let upgrade = wanted_upgrade(&request);
        let client = upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
        let Some(mut request) = self.rewrite(request) else {
            return bad_gateway();
        };
        if let Some(protocol) = upgrade {
            put_upgrade(request.headers_mut(), protocol);
        }
        let is_head = request.method() == Method::HEAD;
        match tokio::time::timeout(ANSWER_TIMEOUT, self.ask(request)).await {
            Ok(Ok(mut response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                let upstream = hyper::upgrade::on(&mut response);
                let joined = client.is_some_and(|client| self.join(client, upstream));
                let protocol = response.headers().get(UPGRADE).cloned();
                let (mut head, _) = response.into_parts();
                remove_hop_by_hop(&mut head.headers);
                match protocol {
                    Some(protocol) if joined => put_upgrade(&mut head.headers, protocol),
                    // Nobody asked, or there are too many.
                    _ => return bad_gateway(),
                }
                Response::from_parts(head, empty())
            }
            Ok(Ok(response)) => {
                let (mut head, body) = response.into_parts();
                let is_chunked = head.headers.contains_key(TRANSFER_ENCODING);
                remove_hop_by_hop(&mut head.headers);
                if is_chunked {
                    // It overrides a length (RFC 9112, section 6.3).
                    head.headers.remove(CONTENT_LENGTH);
                } else if let Some(length) = head.headers.get(CONTENT_LENGTH).cloned() {
                    // Some upstreams say it twice, or speak HTTP/1.0.
                    head.headers.insert(CONTENT_LENGTH, length);
                }
                head.version = Version::HTTP_11;
                // How long the page would be only the upstream knows; it need not say so.
                let body = match is_head {
                    true => unsized_empty(),
                    false => body.map_err(Into::into).boxed_unsync(),
                };
                Response::from_parts(head, body)
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "masquerade upstream failed");
                bad_gateway()
            }
            Err(_elapsed) => {
                tracing::warn!("masquerade upstream is too slow");
                bad_gateway()
            }
        }
    }

    /// Passes bytes between two upgraded connections, in a task; `false` when there are too many.
    fn join(&self, client: OnUpgrade, upstream: OnUpgrade) -> bool {
        let mut upgraded = self.upgraded.lock();
        while upgraded.try_join_next().is_some() {}
        if upgraded.len() >= MAX_UPGRADED {
            return false;
        }
        upgraded.spawn(async move {
            if let Ok((client, upstream)) = tokio::try_join!(client, upstream) {
                let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
                let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
            }
        });
        true
    }

    async fn ask(&self, request: Request<Body>) -> Result<Response<Incoming>, Error> {
        if !is_bare(request.method()) || !request.body().is_end_stream() {
            return self.client.request(request).await;
        }
        let (head, body) = request.into_parts();
        let again = Request::from_parts(head.clone(), empty());
        match self.client.request(Request::from_parts(head, body)).await {
            Err(error) if is_lost(&error) => self.fresh.request(again).await,
            answered => answered,
        }
    }

    fn rewrite(&self, request: Request<Body>) -> Option<Request<Body>> {
        let (mut head, body) = request.into_parts();
        let asked_host = match head.uri.authority() {
            Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
            None => head.headers.get(HOST).cloned(),
        };
        head.uri = self.target.uri(&head.uri)?;
        head.version = Version::HTTP_11;
        remove_hop_by_hop(&mut head.headers);
        for name in [
            FORWARDED,
            X_FORWARDED_FOR,
            X_FORWARDED_HOST,
            X_FORWARDED_PROTO,
        ] {
            head.headers.remove(name);
        }
        if self.config.x_forwarded {
            add_forwarded(
                &mut head.headers,
                head.extensions.get::<Peer>(),
                asked_host.as_ref(),
            );
        }
        match asked_host.filter(|_| !self.config.rewrite_host) {
            Some(host) => head.headers.insert(HOST, host),
            None => head.headers.insert(
                HOST,
                HeaderValue::from_str(self.target.authority.as_str()).ok()?,
            ),
        };
        head.extensions.clear();
        // A request without a declared length has no body in practice, but only its end would say so. Sending such a
        // one on in chunks confuses servers.
        let body = if is_bare(&head.method) && !head.headers.contains_key(CONTENT_LENGTH) {
            empty()
        } else {
            body
        };
        Some(Request::from_parts(head, body))
    }
}

impl Masquerade for ReverseProxy {
    fn serve(&self, request: Request<Body>) -> BoxFuture<'_, Response<Body>> {
        Box::pin(self.forward(request))
    }
}

impl Target {
    fn parse(url: &str) -> Result<Self, ProxyConfigError> {
        let invalid = || ProxyConfigError::InvalidUrl(url.to_owned());
        let parts = url.parse::<Uri>().map_err(|_| invalid())?.into_parts();
        let (scheme, authority) = parts.scheme.zip(parts.authority).ok_or_else(invalid)?;
        if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
            return Err(ProxyConfigError::UnsupportedScheme(scheme.to_string()));
        }
        let path = parts
            .path_and_query
            .unwrap_or_else(|| PathAndQuery::from_static("/"));
        // As the reference, which sends neither a name nor a password that stand in front of the host.
        let host = authority.as_str().rsplit('@').next();
        let authority = host
            .and_then(|host| host.parse().ok())
            .ok_or_else(invalid)?;
        Ok(Self {
            scheme,
            authority,
            base: path.path().trim_end_matches('/').to_owned(),
            query: path.query().map(str::to_owned),
        })
    }

    /// Returns the upstream's URI for a requested one.
    fn uri(&self, asked: &Uri) -> Option<Uri> {
        let path = if asked.path().starts_with('/') {
            asked.path()
        } else {
            "/"
        };
        let mut whole = format!("{}{path}", self.base);
        match (&self.query, asked.query()) {
            (Some(own), Some(asked)) => whole.push_str(&format!("?{own}&{asked}")),
            (Some(query), None) => whole.push_str(&format!("?{query}")),
            (None, Some(query)) => whole.push_str(&format!("?{query}")),
            (None, None) => {}
        }
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(whole)
            .build()
            .ok()
    }
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

fn add_forwarded(headers: &mut HeaderMap, peer: Option<&Peer>, host: Option<&HeaderValue>) {
    if let Some(peer) = peer {
        if let Ok(address) = HeaderValue::try_from(peer.address.ip().to_canonical().to_string()) {
            headers.insert(X_FORWARDED_FOR, address);
        }
        let proto = if peer.encrypted { "https" } else { "http" };
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(proto));
    }
    if let Some(host) = host {
        headers.insert(X_FORWARDED_HOST, host.clone());
    }
}

/// Whether a connection ended before an answer began, rather than that there was none or that it made no sense.
fn is_lost(error: &Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref());
    !error.is_connect() && cause.is_some_and(|cause: &hyper::Error| !cause.is_parse())
}

/// Whether requests of a method change nothing, and have no body as a rule.
fn is_bare(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE
    )
}

/// Returns the protocol that a request of HTTP/1.1 wants its connection to change to.
fn wanted_upgrade(request: &Request<Body>) -> Option<HeaderValue> {
    let asks = request.headers().get_all(CONNECTION).iter().any(|value| {
        let names = value.to_str().unwrap_or_default();
        let mut names = names.split(',').map(str::trim);
        names.any(|name| name.eq_ignore_ascii_case("upgrade"))
    });
    let protocol = request.headers().get(UPGRADE)?;
    (asks && request.version() == Version::HTTP_11).then(|| protocol.clone())
}

fn put_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// Fields that are about one connection and not about the message (RFC 9110, section 7.6.1).
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|names| names.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    let wants_trailers = headers.get(TE).is_some_and(|te| te == "trailers");
    for name in [
        CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

fn socket_path(url: &str) -> Option<PathBuf> {
    let path = url.strip_prefix("unix://").unwrap_or(url);
    path.starts_with('/').then(|| PathBuf::from(path))
}

fn bad_gateway() -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response
}

#[cfg(test)]
mod tests;
