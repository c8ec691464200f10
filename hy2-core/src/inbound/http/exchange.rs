//! One connection of a program to the HTTP proxy, request by request.

use std::sync::Arc;

use bytes::Bytes;
use http::{
    Method, Request, Response, StatusCode,
    header::{
        CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue, PROXY_AUTHENTICATE, TRANSFER_ENCODING,
    },
};
use http_body_util::{Either, Full};
use hy2_proto::address::Address;
use hyper::{
    body::Incoming, client::conn::http1::SendRequest, server::conn::http1, service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::{HttpProxyConfig, request};
use crate::{
    inbound::{DialFailure, Dialer, relay},
    outbound::TcpConnection,
};

/// Longest request head in bytes.
const MAX_HEAD: usize = 64 << 10;

/// Longest response head in bytes, as Go's server would take.
const MAX_ANSWER_HEAD: usize = 1 << 20;

/// Most fields in a head.
const MAX_FIELDS: usize = 1_000;

type Body = Either<Incoming, Full<Bytes>>;

/// Serves one connection from its first byte to its end.
pub(in crate::inbound) async fn serve_connection<D: Dialer, L>(
    config: Arc<HttpProxyConfig>,
    dialer: D,
    stream: L,
) where
    L: TcpConnection,
{
    let timeout = config.limits.request_timeout;
    let proxy = Arc::new(Proxy {
        config,
        dialer,
        origin: Mutex::new(None),
        tunnel: Mutex::new(None),
    });
    let service = service_fn(|request| {
        let proxy = Arc::clone(&proxy);
        async move { Ok::<_, std::convert::Infallible>(proxy.answer(request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(timeout)
        .max_headers(MAX_FIELDS)
        .max_buf_size(MAX_HEAD)
        .preserve_header_case(true)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        debug!(%error, "HTTP proxy connection ended");
    }
    let tunnel = proxy.tunnel.lock().take();
    if let Some((upgrade, tunnel)) = tunnel {
        join::<D, L>(upgrade, tunnel).await;
    }
}

/// Relays after a CONNECT was answered.
async fn join<D: Dialer, L>(upgrade: OnUpgrade, tunnel: D::Stream)
where
    L: TcpConnection,
{
    let Ok(upgraded) = upgrade.await else {
        // The program left before the answer was written.
        return;
    };
    let ended = match upgraded.downcast::<TokioIo<L>>() {
        Ok(parts) => relay::join::<D, L>(parts.io.into_inner(), tunnel, parts.read_buf).await,
        Err(upgraded) => D::join(TokioIo::new(upgraded), tunnel, Bytes::new()).await,
    };
    if let Err(error) = ended {
        debug!(%error, "HTTP tunnel broke");
    }
}

struct Proxy<D: Dialer> {
    config: Arc<HttpProxyConfig>,
    dialer: D,
    /// The last origin, kept for the next request of the same program.
    origin: Mutex<Option<Origin>>,
    /// Set by CONNECT, taken when hyper has let go of the connection.
    tunnel: Mutex<Option<(OnUpgrade, D::Stream)>>,
}

/// An HTTP/1.1 connection to an origin through the tunnel.
struct Origin {
    target: Address,
    sender: SendRequest<Incoming>,
    /// Moves the bytes; ends with the origin.
    _driver: AbortOnDropHandle<()>,
}

impl<D: Dialer> Proxy<D> {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if let Some(credentials) = &self.config.credentials
            && !request::authorized(request.headers(), credentials)
        {
            let mut response = text(
                StatusCode::PROXY_AUTHENTICATION_REQUIRED,
                "user name and password are required",
            );
            let challenge = request::challenge(&self.config.realm);
            response.headers_mut().insert(PROXY_AUTHENTICATE, challenge);
            return response;
        }
        if request.method() == Method::CONNECT {
            self.connect(request).await
        } else {
            self.forward(request).await
        }
    }

    async fn connect(&self, request: Request<Incoming>) -> Response<Body> {
        let Some(target) = request::connect_target(request.uri()) else {
            return text(StatusCode::BAD_REQUEST, "CONNECT needs a target host:port");
        };
        match self.dialer.tcp(&target).await {
            Ok(tunnel) => {
                *self.tunnel.lock() = Some((hyper::upgrade::on(request), tunnel));
                Response::new(Either::Right(Full::default()))
            }
            Err(failure) => failed(failure),
        }
    }

    async fn forward(&self, mut request: Request<Incoming>) -> Response<Body> {
        let Some((target, path)) = request::plain_target(request.uri()) else {
            return text(
                StatusCode::BAD_REQUEST,
                "this is a proxy: it takes CONNECT and http:// requests",
            );
        };
        *request.uri_mut() = path;
        *request.version_mut() = http::Version::HTTP_11;
        request::remove_hop_by_hop(request.headers_mut());
        if let Some(host) = request::host_header(&target) {
            request.headers_mut().insert(HOST, host);
        }
        match self.exchange(target, request).await {
            Ok(mut response) => {
                if response.headers().contains_key(TRANSFER_ENCODING) {
                    // It overrides a length (RFC 9112, section 6.3).
                    response.headers_mut().remove(CONTENT_LENGTH);
                }
                request::remove_hop_by_hop(response.headers_mut());
                *response.version_mut() = http::Version::HTTP_11;
                response.map(Either::Left)
            }
            Err(ExchangeError::Dial(failure)) => failed(failure),
            Err(ExchangeError::Http(error)) => {
                debug!(%error, "origin broke the exchange");
                text(StatusCode::BAD_GATEWAY, "the target's answer is not usable")
            }
        }
    }

    /// Sends the request over the kept origin, or a new one. A kept origin may have closed in
    /// the meantime; a request that it did not take goes over a new one.
    async fn exchange(
        &self,
        target: Address,
        mut request: Request<Incoming>,
    ) -> Result<Response<Incoming>, ExchangeError> {
        let kept = self
            .origin
            .lock()
            .take()
            .filter(|kept| kept.target == target);
        if let Some(mut kept) = kept
            && kept.sender.ready().await.is_ok()
        {
            match kept.sender.try_send_request(request).await {
                Ok(response) => {
                    *self.origin.lock() = Some(kept);
                    return Ok(response);
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(ExchangeError::Http(error.into_error())),
                },
            }
        }
        let mut origin = self.open(target).await?;
        let response = origin.sender.send_request(request).await?;
        *self.origin.lock() = Some(origin);
        Ok(response)
    }

    async fn open(&self, target: Address) -> Result<Origin, ExchangeError> {
        let stream = self.dialer.tcp(&target).await?;
        let (sender, connection) = hyper::client::conn::http1::Builder::new()
            .preserve_header_case(true)
            .max_headers(MAX_FIELDS)
            .max_buf_size(MAX_ANSWER_HEAD)
            .allow_obsolete_multiline_headers_in_responses(true)
            .handshake(TokioIo::new(stream))
            .await?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "connection to an origin ended");
            }
        });
        Ok(Origin {
            target,
            sender,
            _driver: AbortOnDropHandle::new(driver),
        })
    }
}

enum ExchangeError {
    Dial(DialFailure),
    Http(hyper::Error),
}

impl From<DialFailure> for ExchangeError {
    fn from(failure: DialFailure) -> Self {
        Self::Dial(failure)
    }
}

impl From<hyper::Error> for ExchangeError {
    fn from(error: hyper::Error) -> Self {
        Self::Http(error)
    }
}

fn failed(failure: DialFailure) -> Response<Body> {
    let (status, reason) = match failure {
        DialFailure::Refused => (StatusCode::BAD_GATEWAY, "the target refused the connection"),
        DialFailure::Unreachable => (StatusCode::BAD_GATEWAY, "the target is unreachable"),
        DialFailure::Unresolvable => (StatusCode::BAD_GATEWAY, "the target has no address"),
        DialFailure::Denied => (StatusCode::FORBIDDEN, "the target is not allowed"),
        DialFailure::TimedOut => (StatusCode::GATEWAY_TIMEOUT, "the target did not answer"),
        DialFailure::TunnelDown => (
            StatusCode::SERVICE_UNAVAILABLE,
            "there is no connection to the server",
        ),
        DialFailure::UdpDisabled | DialFailure::Other => {
            (StatusCode::BAD_GATEWAY, "the target could not be reached")
        }
    };
    text(status, reason)
}

fn text(status: StatusCode, reason: &'static str) -> Response<Body> {
    let mut response = Response::new(Either::Right(Full::from(reason)));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
