//! One try of one delivery: the address, the signature, the request.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use url::{Host, Url};

use crate::service::Service;
use crate::service::webhooks::SECRET_PLACE;
use crate::store::webhooks::{DeliveryRow, WebhookRow};

/// How long a receiver may take until the head of its answer is there.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How long the body of an answer is read on.
const LINGER: Duration = Duration::from_secs(1);

/// Most that is read of a receiver's answer, in bytes.
const MAX_ANSWER: usize = 64 << 10;

/// Why a try failed. Kept with the delivery, so it says nothing of the receiver's answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("the address is not allowed")]
    Address,
    #[error("the name does not resolve")]
    Resolve,
    #[error("cannot connect")]
    Connect,
    #[error("TLS failed")]
    Tls,
    #[error("TLS failed: the receiver's certificate {0}")]
    Certificate(&'static str),
    #[error("HTTP failed")]
    Http,
    #[error("took too long")]
    Timeout,
    #[error("the key does not open")]
    Key,
}

/// What a receiver answered. Its status decides; the rest is read for politeness.
struct Answer {
    status: u16,
    rest: BoxFuture<'static, ()>,
}

/// Sends a delivery once and returns the status of the answer.
pub(super) async fn send(
    service: &Service,
    tls: &Arc<rustls::ClientConfig>,
    hook: &WebhookRow,
    row: &DeliveryRow,
    body: String,
) -> Result<u16, SendError> {
    let sent = tokio::time::timeout(PATIENCE, ask(service, tls, hook, row, body)).await;
    let answer = sent.unwrap_or(Err(SendError::Timeout))?;
    // Read, so that the receiver does not see a reset; one that drips has answered all the same.
    let _ = tokio::time::timeout(LINGER, answer.rest).await;
    Ok(answer.status)
}

async fn ask(
    service: &Service,
    tls: &Arc<rustls::ClientConfig>,
    hook: &WebhookRow,
    row: &DeliveryRow,
    body: String,
) -> Result<Answer, SendError> {
    let url = Url::parse(&hook.url).map_err(|_| SendError::Address)?;
    let policy = service.targets();
    // Judged again: the policy may have changed since the webhook was made.
    if !policy.allows_url(&url) {
        return Err(SendError::Address);
    }
    let secret = service
        .vault()
        .open(SECRET_PLACE, hook.id.as_bytes(), &hook.secret_enc)
        .map_err(|_| SendError::Key)?;
    let at = service.now().0 / 1_000;
    let signed = format!("{at}.{body}");
    let signature = sign(&Key::new(HMAC_SHA256, &secret), signed.as_bytes());
    let signature = format!("t={at},v1={}", hex::encode(signature));

    let address = resolve(&url, |address| policy.allows(address)).await?;
    let stream = TcpStream::connect(address)
        .await
        .map_err(|_| SendError::Connect)?;
    let path = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let request = Request::post(path)
        .header(header::HOST, host_header(&url))
        .header(header::CONTENT_TYPE, "application/json")
        .header(
            header::USER_AGENT,
            concat!("hy2-webhook/", env!("CARGO_PKG_VERSION")),
        )
        .header("hy2-delivery", row.id.to_string())
        .header("hy2-attempt", row.attempts.to_string())
        .header("hy2-signature", signature)
        .body(Full::new(Bytes::from(body)))
        .map_err(|_| SendError::Address)?;
    if url.scheme() == "http" {
        return exchange(stream, request).await;
    }
    let name = server_name(&url).ok_or(SendError::Address)?;
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(tls));
    let stream = connector
        .connect(name, stream)
        .await
        .map_err(|error| tls_error(&error))?;
    exchange(stream, request).await
}

/// Says what is wrong with a certificate, in words of our own.
fn tls_error(error: &std::io::Error) -> SendError {
    use rustls::CertificateError as Wrong;
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    let Some(rustls::Error::InvalidCertificate(wrong)) = inner else {
        return SendError::Tls;
    };
    SendError::Certificate(match wrong {
        Wrong::Expired | Wrong::ExpiredContext { .. } => "is over",
        Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => "is not valid yet",
        Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => "is for another name",
        Wrong::UnknownIssuer => "is from nobody who is trusted",
        _ => "is not valid",
    })
}

/// Resolves a host and returns the first address; refuses if any of them is not allowed, because the
/// name may be meant to lead somewhere else half of the time.
async fn resolve(url: &Url, allows: impl Fn(IpAddr) -> bool) -> Result<SocketAddr, SendError> {
    let port = url.port_or_known_default().ok_or(SendError::Address)?;
    let found: Vec<SocketAddr> = match url.host().ok_or(SendError::Address)? {
        Host::Ipv4(address) => vec![(address, port).into()],
        Host::Ipv6(address) => vec![(address, port).into()],
        Host::Domain(name) => tokio::net::lookup_host((name, port))
            .await
            .map_err(|_| SendError::Resolve)?
            .collect(),
    };
    if !found.iter().all(|address| allows(address.ip())) {
        return Err(SendError::Address);
    }
    found.first().copied().ok_or(SendError::Resolve)
}

fn host_header(url: &Url) -> String {
    let host = url.host().map(|host| host.to_string()).unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host,
    }
}

fn server_name(url: &Url) -> Option<ServerName<'static>> {
    Some(match url.host()? {
        Host::Domain(name) => ServerName::try_from(name.to_owned()).ok()?,
        Host::Ipv4(address) => ServerName::from(IpAddr::V4(address)),
        Host::Ipv6(address) => ServerName::from(IpAddr::V6(address)),
    })
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Answer, SendError> {
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|_| SendError::Http)?;
    // A connection that ends tells the sender; what it read before still arrives.
    let mut driven = Box::pin(async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    });
    let response = tokio::select! {
        biased;
        response = sender.send_request(request) => response.map_err(|_| SendError::Http)?,
        () = &mut driven => return Err(SendError::Http),
    };
    let status = response.status().as_u16();
    let rest = Box::pin(async move {
        // Without the sender the connection would end at once.
        let _sender = sender;
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect();
        tokio::select! {
            biased;
            _ = body => {}
            () = driven => {}
        }
    });
    Ok(Answer { status, rest })
}

#[cfg(test)]
mod tests {
    use rustls::{CertificateError, Error};

    use super::*;

    #[test]
    fn what_is_wrong_with_a_certificate_is_said() {
        let said = |error: Error| tls_error(&std::io::Error::other(error)).to_string();
        for (wrong, end) in [
            (CertificateError::Expired, "is over"),
            (CertificateError::NotValidForName, "is for another name"),
            (
                CertificateError::UnknownIssuer,
                "is from nobody who is trusted",
            ),
            (CertificateError::BadSignature, "is not valid"),
        ] {
            let said = said(Error::InvalidCertificate(wrong));
            assert_eq!(
                said,
                format!("TLS failed: the receiver's certificate {end}")
            );
        }
        assert_eq!(said(Error::HandshakeNotComplete), "TLS failed");
    }

    #[tokio::test]
    async fn a_name_that_leads_to_the_host_itself_is_refused() {
        let url = Url::parse("https://localhost.example.invalid/").unwrap();
        assert!(matches!(
            resolve(&url, |_| true).await,
            Err(SendError::Resolve)
        ));
        let url = Url::parse("https://localhost/").unwrap();
        let public = |address| crate::targets::TargetPolicy::Public.allows(address);
        assert!(matches!(
            resolve(&url, public).await,
            Err(SendError::Address)
        ));
    }
}
