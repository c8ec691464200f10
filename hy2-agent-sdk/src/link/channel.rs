//! One TLS connection to a master, and HTTP/2 on it.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hy2_proto::control::{ALPN_MASTER, ALPN_REVERSE, MASTER_NAME, MAX_MESSAGE};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{ClientConfig, RootCertStore, client::WebPkiServerVerifier};
use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, task::JoinSet, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{LinkError, Master, PING_INTERVAL, PING_TIMEOUT, provider};
use crate::{
    agent::Node,
    clock::CertificateTime,
    config::CaPin,
    identity::{Identity, PinVerifier},
};

/// TCP and TLS each must be there within this time.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// How the agent shows itself, and whom it believes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Dial {
    /// Without a certificate, to a master known by its CA's pin.
    Pinned(CaPin),
    /// Without a certificate, because it has run out; to a master of a known CA.
    Anonymous,
    /// With the node's certificate.
    Node,
    /// With the node's certificate; roles are swapped afterwards.
    Reverse,
}

/// Opens a connection to `master`.
pub(crate) async fn connect(
    master: &str,
    node: &Node,
    dial: Dial,
) -> Result<TlsStream<TcpStream>, LinkError> {
    let time = CertificateTime(Arc::clone(&node.clock));
    let config = tls(&node.identity, dial, time)?;
    let tcp = timeout(CONNECT_MAX, TcpStream::connect(master))
        .await
        .map_err(|_| LinkError::TimedOut("connect"))?
        .map_err(LinkError::Connect)?;
    tcp.set_nodelay(true).map_err(LinkError::Connect)?;
    // Whatever address is dialled: no other certificate of the CA has this name.
    let name = ServerName::try_from(MASTER_NAME).map_err(|_| LinkError::Protocol)?;
    let alpn = config.alpn_protocols.first().cloned();
    let stream = timeout(
        CONNECT_MAX,
        TlsConnector::from(Arc::new(config)).connect(name, tcp),
    )
    .await
    .map_err(|_| LinkError::TimedOut("TLS"))?
    .map_err(LinkError::Connect)?;
    if stream.get_ref().1.alpn_protocol() != alpn.as_deref() {
        return Err(LinkError::Protocol);
    }
    Ok(stream)
}

fn tls(identity: &Identity, dial: Dial, time: CertificateTime) -> Result<ClientConfig, LinkError> {
    let provider = provider();
    let builder = ClientConfig::builder_with_details(Arc::clone(&provider), Arc::new(time))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(LinkError::Tls)?
        .dangerous();
    let not_enrolled = LinkError::NoToken;
    let mut config = match dial {
        Dial::Pinned(pin) => builder
            .with_custom_certificate_verifier(Arc::new(PinVerifier { pin, provider }))
            .with_no_client_auth(),
        Dial::Anonymous | Dial::Node | Dial::Reverse => {
            let credentials = identity.credentials().ok_or(not_enrolled)?;
            let mut roots = RootCertStore::empty();
            for ca in &credentials.trusted_cas {
                roots.add(ca.clone()).map_err(LinkError::Tls)?;
            }
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| LinkError::Tls(rustls::Error::General(error.to_string())))?;
            let builder = builder.with_custom_certificate_verifier(verifier);
            match dial {
                Dial::Anonymous => builder.with_no_client_auth(),
                _ => builder
                    .with_client_auth_cert(credentials.chain.clone(), identity.key().private_key())
                    .map_err(LinkError::Tls)?,
            }
        }
    };
    let alpn = match dial {
        Dial::Reverse => ALPN_REVERSE,
        _ => ALPN_MASTER,
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

/// HTTP/2 on one connection. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Channel(http2::SendRequest<tonic::body::Body>);

impl tower_service::Service<http::Request<tonic::body::Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// A connection to a master; it ends when this is dropped.
pub(crate) struct Connection {
    pub(crate) master: Master,
    driver: JoinSet<()>,
}

impl Connection {
    pub(crate) async fn open(master: &str, node: &Node, dial: Dial) -> Result<Self, LinkError> {
        let stream = connect(master, node, dial).await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(LinkError::Http)?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the master ended");
            }
        });
        let origin = http::Uri::builder()
            .scheme("https")
            .authority(MASTER_NAME)
            .path_and_query("/")
            .build()
            .map_err(|_| LinkError::Protocol)?;
        Ok(Self {
            master: Master::with_origin(Channel(sender), origin)
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
            driver,
        })
    }

    /// Waits until the connection is over.
    pub(crate) async fn over(&mut self) {
        while self.driver.join_next().await.is_some() {}
    }
}

/// Calls and waits a bounded time for the answer.
pub(crate) async fn bounded<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, LinkError> {
    match timeout(super::CALL_MAX, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(LinkError::TimedOut("answer")),
    }
}
