//! The same site over TCP: HTTP and HTTPS, as a server that offers HTTP/3 has them beside it.

mod idle;
mod prompt;
mod unread;

use std::{
    fmt, io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{ALT_SVC, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION},
    uri::Authority,
};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    rt::bounds::Http2ServerConnExec,
    server::conn::{http1, http2},
    service::{HttpService, service_fn},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::{
    idle::{Counted, Requests},
    prompt::Prompt,
    unread::ReadOn,
};
use super::{Body, BodyError, Masquerade, Peer, empty, entity::put, full};
use crate::socket::listen::bind_tcp;

/// A TLS handshake that takes longer is given up.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// The head of a request has to arrive within this time, counted from when it could begin.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest head of a request, in bytes.
const MAX_HEADER: u32 = 64 * 1024;
/// Most fields in the head of a request of HTTP/1.
const MAX_FIELDS: usize = 1_000;
/// How long a connection that is told to end may take for it, when nothing is under way.
const GOODBYE: Duration = Duration::from_secs(5);
/// Wait after an accept that failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a [`TcpSite`] listens on and says.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TcpSiteConfig {
    /// Address for plain HTTP; needs `https` too.
    pub http: Option<SocketAddr>,
    /// Address for HTTPS, with certificates. ALPN is set here.
    pub https: Option<(SocketAddr, Arc<rustls::ServerConfig>)>,
    /// UDP port where the same site is served over HTTP/3, for the `alt-svc` header.
    pub quic_port: u16,
    /// Answers plain HTTP with a redirection to HTTPS.
    pub force_https: bool,
    /// Most connections at a time, each listener by itself; more wait in the operating system's queue.
    pub max_connections: usize,
    /// A connection on which nothing was asked for so long is closed, also if it answers or sends PINGs; 5 minutes
    /// as Caddy. Before its first request and between two of HTTP/1 it is 30 s.
    pub idle_timeout: Duration,
}

impl TcpSiteConfig {
    /// Announces HTTP/3 on `quic_port`, listens on nothing yet, and serves 1,024 connections at a time.
    pub fn new(quic_port: u16) -> Self {
        Self {
            http: None,
            https: None,
            quic_port,
            force_https: false,
            max_connections: 1024,
            idle_timeout: Duration::from_secs(300),
        }
    }
}

/// Why a [`TcpSite`] does not listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TcpSiteError {
    /// Plain HTTP alone does not look like a site with HTTP/3.
    #[error("an HTTP listener needs an HTTPS listener beside it")]
    HttpWithoutHttps,
    /// An address cannot be listened on.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// A site on TCP whose sockets are bound.
///
/// Every answer carries `alt-svc: h3=":<port>"; ma=2592000`; redirections to HTTPS do not, as in the reference.
pub struct TcpSite {
    http: Option<TcpListener>,
    https: Option<(TcpListener, TlsAcceptor)>,
    addresses: Addresses,
    site: Arc<Site>,
    max_connections: usize,
}

impl fmt::Debug for TcpSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpSite")
            .field("addresses", &self.addresses)
            .field("site", &self.site)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy)]
struct Addresses {
    http: Option<SocketAddr>,
    https: Option<SocketAddr>,
}

#[derive(Debug)]
struct Site {
    masquerade: Arc<dyn Masquerade>,
    alt_svc: HeaderValue,
    /// Port of HTTPS, if plain HTTP redirects to it.
    redirect_to: Option<u16>,
    idle_timeout: Duration,
}

impl TcpSite {
    /// Binds the listeners; nothing is accepted until [`spawn`](Self::spawn). Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`TcpSiteError`] when the configuration makes no sense or an address is not to be had.
    pub fn bind(
        config: TcpSiteConfig,
        masquerade: Arc<dyn Masquerade>,
    ) -> Result<Self, TcpSiteError> {
        if config.http.is_some() && config.https.is_none() {
            return Err(TcpSiteError::HttpWithoutHttps);
        }
        let https = match config.https {
            Some((address, tls)) => {
                let mut tls = rustls::ServerConfig::clone(&tls);
                tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
                Some((listen(address)?, TlsAcceptor::from(Arc::new(tls))))
            }
            None => None,
        };
        let http = match config.http {
            Some(address) => Some(listen(address)?),
            None => None,
        };
        let addresses = Addresses {
            http: http
                .as_ref()
                .and_then(|listener| listener.local_addr().ok()),
            https: https
                .as_ref()
                .and_then(|(listener, _)| listener.local_addr().ok()),
        };
        let alt_svc = format!("h3=\":{}\"; ma=2592000", config.quic_port);
        let site = Site {
            masquerade,
            alt_svc: HeaderValue::try_from(alt_svc).unwrap_or(HeaderValue::from_static("clear")),
            redirect_to: addresses
                .https
                .filter(|_| config.force_https)
                .map(|address| address.port()),
            idle_timeout: config.idle_timeout,
        };
        Ok(Self {
            http,
            https,
            addresses,
            site: Arc::new(site),
            max_connections: config.max_connections,
        })
    }

    /// Starts to serve.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn spawn(self) -> TcpSiteHandle {
        let mut tasks = JoinSet::new();
        let stop = CancellationToken::new();
        if let Some(listener) = self.http {
            tasks.spawn(accept(
                listener,
                None,
                Arc::clone(&self.site),
                self.max_connections,
                stop.clone(),
            ));
        }
        if let Some((listener, tls)) = self.https {
            tasks.spawn(accept(
                listener,
                Some(tls),
                self.site,
                self.max_connections,
                stop.clone(),
            ));
        }
        TcpSiteHandle {
            tasks,
            stop,
            addresses: self.addresses,
        }
    }
}

/// A site that is being served; dropping it ends everything at once.
#[derive(Debug)]
pub struct TcpSiteHandle {
    tasks: JoinSet<()>,
    stop: CancellationToken,
    addresses: Addresses,
}

impl TcpSiteHandle {
    /// Returns the address of the HTTP listener, if there is one.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.addresses.http
    }

    /// Returns the address of the HTTPS listener, if there is one.
    pub fn https_addr(&self) -> Option<SocketAddr> {
        self.addresses.https
    }

    /// Takes no more connections, lets requests being served end, and returns after `grace` at the latest.
    ///
    /// # Cancel safety
    /// Dropping the future ends everything at once.
    pub async fn shutdown(mut self, grace: Duration) {
        self.stop.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        // What did not end in time is aborted when the tasks are dropped.
        let _ = timeout(grace, ended).await;
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener, TcpSiteError> {
    bind_tcp(address).map_err(|source| TcpSiteError::Bind { address, source })
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    site: Arc<Site>,
    max_connections: usize,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(max_connections));
    let mut connections = JoinSet::new();
    loop {
        // Cancel safe: a place that was acquired is given back, and an accept takes a connection only to return it.
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, listener.accept().await)
            } => accepted,
        };
        let (Ok(place), Ok((stream, peer))) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (tls, site, stop) = (tls.clone(), Arc::clone(&site), stop.clone());
        connections.spawn(async move {
            let _place = place;
            let peer = Peer {
                address: peer,
                encrypted: tls.is_some(),
            };
            match tls {
                Some(tls) => {
                    if let Some(stream) = handshake(&tls, stream).await {
                        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                        serve(stream, site, peer, is_http2, stop).await;
                    }
                }
                None => serve(stream, site, peer, false, stop).await,
            }
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn handshake(
    tls: &TlsAcceptor,
    stream: TcpStream,
) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    // Without this the last part of an answer may wait for an acknowledgement; with an error it just may.
    let _ = stream.set_nodelay(true);
    timeout(HANDSHAKE_TIMEOUT, tls.accept(stream))
        .await
        .ok()?
        .ok()
}

/// Serves one connection in the version of HTTP that its handshake agreed on; without TLS that is
/// HTTP/1, as with Caddy and the reference.
async fn serve(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    site: Arc<Site>,
    peer: Peer,
    is_http2: bool,
    stop: CancellationToken,
) {
    let (requests, idle_timeout) = (Requests::new(), site.idle_timeout);
    let counting = requests.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (site, under_way) = (Arc::clone(&site), counting.begin());
        async move {
            let answer = site.answer(request, peer).await;
            let answer = answer.map(|body| Counted::new(body, under_way));
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    let stream = TokioIo::new(Prompt::new(stream, is_http2, HEADER_TIMEOUT));
    let ended = if is_http2 {
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(HEADER_TIMEOUT)
            .max_concurrent_streams(100)
            .max_pending_accept_reset_streams(20)
            .max_header_list_size(MAX_HEADER)
            .serve_connection(stream, service);
        drive(connection, &requests, idle_timeout, &stop).await
    } else {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .title_case_headers(true)
            .header_read_timeout(HEADER_TIMEOUT)
            .max_headers(MAX_FIELDS)
            .max_buf_size(MAX_HEADER as usize)
            .serve_connection(stream, service)
            .with_upgrades();
        drive(connection, &requests, idle_timeout, &stop).await
    };
    // Whatever a client does wrong with its own connection is no concern of ours.
    if let Err(error) = ended {
        tracing::trace!(%error, "masquerade connection");
    }
}

/// A connection of either version that can be told to end when its requests are over.
trait Graceful: Future<Output = hyper::Result<()>> {
    fn finish(self: Pin<&mut Self>);
}

impl<I, S, B> Graceful for http1::UpgradeableConnection<I, S>
where
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<BodyError>,
    I: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
    B: http_body::Body + 'static,
    B::Error: Into<BodyError>,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, S, B, E> Graceful for http2::Connection<I, S, E>
where
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<BodyError>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    B: http_body::Body + 'static,
    B::Error: Into<BodyError>,
    E: Http2ServerConnExec<S::Future, B>,
{
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

async fn drive(
    connection: impl Graceful,
    requests: &Requests,
    idle_timeout: Duration,
    stop: &CancellationToken,
) -> hyper::Result<()> {
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().finish();
            // For as long as its requests take and the whole site has.
            connection.await
        }
        () = requests.idle(idle_timeout) => {
            connection.as_mut().finish();
            timeout(GOODBYE, connection).await.unwrap_or(Ok(()))
        }
    }
}

impl Site {
    async fn answer(&self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        if let Some(answer) = unusable(&request) {
            return answer;
        }
        if let Some(port) = self.redirect_to.filter(|_| !peer.encrypted) {
            return redirect(&request, port);
        }
        let is_head = request.method() == Method::HEAD;
        let mut request = request.map(|body| {
            let body = ReadOn::new(body);
            body.map_err(Into::into).boxed_unsync()
        });
        complete_uri(&mut request, peer.encrypted);
        request.extensions_mut().insert(peer);
        let mut response = self.masquerade.serve(request).await;
        response.headers_mut().insert(ALT_SVC, self.alt_svc.clone());
        if is_head {
            // hyper leaves the body out over HTTP/1 only.
            response = without_body(response);
        }
        response
    }
}

/// Answers what Go's server answers by itself, in its words: requests of HTTP/1.1 without one usable
/// `Host` (RFC 9112 section 3.2), and questions about the server as a whole.
fn unusable(request: &Request<Incoming>) -> Option<Response<Body>> {
    if request.method() == Method::OPTIONS && request.uri().path() == "*" {
        return Some(Response::new(empty()));
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let reason = match (hosts.next(), hosts.next()) {
        (None, _) if request.version() == Version::HTTP_11 => "missing required Host header",
        (Some(_), Some(_)) => "too many Host headers",
        (Some(host), None) if !host.as_bytes().iter().all(|byte| is_of_host(*byte)) => {
            "malformed Host header"
        }
        _ => return None,
    };
    let mut response = Response::new(full(format!("400 Bad Request: {reason}")));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Some(response)
}

fn is_of_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=[]_~".contains(&byte)
}

/// Keeps the length that the answer would have had.
fn without_body(mut response: Response<Body>) -> Response<Body> {
    if let Some(length) = response.body().size_hint().exact() {
        response
            .headers_mut()
            .entry(CONTENT_LENGTH)
            .or_insert_with(|| HeaderValue::from(length));
    }
    response.map(|_| empty())
}

/// Gives a request of HTTP/1 the scheme and authority that it has in HTTP/2 and HTTP/3.
fn complete_uri(request: &mut Request<Body>, encrypted: bool) {
    if request.uri().authority().is_some() {
        return;
    }
    let Some(host) = request
        .headers()
        .get(HOST)
        .and_then(|host| Authority::try_from(host.as_bytes()).ok())
    else {
        return;
    };
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str());
    let scheme = if encrypted { "https" } else { "http" };
    let whole = Uri::builder()
        .scheme(scheme)
        .authority(host)
        .path_and_query(path)
        .build();
    if let Ok(whole) = whole {
        *request.uri_mut() = whole;
    }
}

/// Points to the same place over HTTPS, in the form of Go's `http.Redirect`.
fn redirect(request: &Request<Incoming>, port: u16) -> Response<Body> {
    let host = match request.uri().authority() {
        Some(authority) => Some(authority.clone()),
        None => request
            .headers()
            .get(HOST)
            .and_then(|host| Authority::try_from(host.as_bytes()).ok()),
    };
    let Some(host) = host else {
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    };
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str());
    let port = if port == 443 {
        String::new()
    } else {
        format!(":{port}")
    };
    let location = format!("https://{}{port}{path}", host.host());
    let escaped = location
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&#34;");
    let mut response = Response::new(full(format!(
        "<a href=\"{escaped}\">Moved Permanently</a>.\n\n"
    )));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    put(headers, LOCATION, &location);
    response
}

#[cfg(test)]
mod tests;
