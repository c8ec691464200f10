//! TLS on the ports for people and programs, with a certificate that can change while it is in use.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Handshakes that may be under way at once; others wait in the system's queue.
const MAX_HANDSHAKES: usize = 256;

/// A certificate and its key cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// The chain is not PEM, or has no certificate in it.
    #[error("the certificate is not PEM")]
    Certificate(#[source] rustls_pki_types::pem::Error),
    /// There is no certificate.
    #[error("there is no certificate")]
    Empty,
    /// The key is not PEM.
    #[error("the key is not PEM")]
    Key(#[source] rustls_pki_types::pem::Error),
    /// The two do not belong together, or are of a kind that is not known.
    #[error("certificate and key cannot be used together")]
    Unusable(#[source] rustls::Error),
}

/// TLS of a listener. Clones share the certificate.
#[derive(Clone)]
pub struct ListenerTls {
    config: Arc<ServerConfig>,
    certificate: Arc<Current>,
}

impl ListenerTls {
    /// Reads a chain, the listener's own certificate first, and its key, both PEM.
    ///
    /// # Errors
    ///
    /// [`CertificateError`].
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let certified = read(chain, key, &provider)?;
        let certificate = Arc::new(Current(ArcSwap::from_pointee(certified)));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(CertificateError::Unusable)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&certificate) as _);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            config: Arc::new(config),
            certificate,
        })
    }

    /// Replaces the certificate: handshakes from here on show the new one, connections stay.
    ///
    /// # Errors
    ///
    /// [`CertificateError`]; the old one stays then.
    pub fn replace(&self, chain: &[u8], key: &[u8]) -> Result<(), CertificateError> {
        let certified = read(chain, key, self.config.crypto_provider())?;
        self.certificate.0.store(Arc::new(certified));
        Ok(())
    }
}

impl fmt::Debug for ListenerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenerTls").finish_non_exhaustive()
    }
}

fn read(
    chain: &[u8],
    key: &[u8],
    provider: &CryptoProvider,
) -> Result<CertifiedKey, CertificateError> {
    let chain = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<Vec<_>, _>>()
        .map_err(CertificateError::Certificate)?;
    if chain.is_empty() {
        return Err(CertificateError::Empty);
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(CertificateError::Key)?;
    CertifiedKey::from_der(chain, key, provider).map_err(CertificateError::Unusable)
}

#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// A port, with TLS or without.
pub(crate) struct Listener {
    tcp: TcpListener,
    tls: Option<ListenerTls>,
    handshakes: JoinSet<Option<(TlsStream<TcpStream>, SocketAddr)>>,
}

impl Listener {
    pub(crate) fn new(tcp: TcpListener, tls: Option<ListenerTls>) -> Self {
        Self {
            tcp,
            tls,
            handshakes: JoinSet::new(),
        }
    }
}

impl axum::serve::Listener for Listener {
    type Io = Stream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Stream, SocketAddr) {
        loop {
            tokio::select! {
                // Cancel safe: a connection is accepted or stays in the backlog.
                accepted = self.tcp.accept(), if self.handshakes.len() < MAX_HANDSHAKES => {
                    let (stream, address) = match accepted {
                        Ok(accepted) => accepted,
                        Err(error) => {
                            // Out of files, or a connection that is gone already.
                            tracing::debug!(%error, "cannot accept a connection");
                            tokio::time::sleep(Duration::from_millis(50)).await;
                            continue;
                        }
                    };
                    let _ = stream.set_nodelay(true);
                    let Some(tls) = &self.tls else {
                        return (Stream::Plain(stream), address);
                    };
                    let acceptor = TlsAcceptor::from(Arc::clone(&tls.config));
                    self.handshakes.spawn(async move {
                        let shaking = acceptor.accept(stream);
                        let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, shaking).await;
                        Some((shaken.ok()?.ok()?, address))
                    });
                }
                // Cancel safe: a finished handshake is taken or stays.
                Some(shaken) = self.handshakes.join_next() => {
                    if let Ok(Some((stream, address))) = shaken {
                        return (Stream::Tls(Box::new(stream)), address);
                    }
                    metrics::counter!("hy2_master_handshakes_failed_total").increment(1);
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

/// Where a connection comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerAddress(pub(crate) SocketAddr);

impl Connected<IncomingStream<'_, Listener>> for PeerAddress {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        Self(*stream.remote_addr())
    }
}

/// A connection, with TLS or without.
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

macro_rules! either {
    ($self:ident, $poll:ident $(, $argument:expr)*) => {
        match $self.get_mut() {
            Stream::Plain(stream) => std::pin::Pin::new(stream).$poll($($argument),*),
            Stream::Tls(stream) => std::pin::Pin::new(&mut **stream).$poll($($argument),*),
        }
    };
}

type Context<'a, 'b> = &'a mut std::task::Context<'b>;
type Poll<T> = std::task::Poll<std::io::Result<T>>;
type Pinned<'a> = std::pin::Pin<&'a mut Stream>;

impl AsyncRead for Stream {
    fn poll_read(self: Pinned<'_>, cx: Context<'_, '_>, buffer: &mut ReadBuf<'_>) -> Poll<()> {
        either!(self, poll_read, cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pinned<'_>, cx: Context<'_, '_>, bytes: &[u8]) -> Poll<usize> {
        either!(self, poll_write, cx, bytes)
    }

    fn poll_flush(self: Pinned<'_>, cx: Context<'_, '_>) -> Poll<()> {
        either!(self, poll_flush, cx)
    }

    fn poll_shutdown(self: Pinned<'_>, cx: Context<'_, '_>) -> Poll<()> {
        either!(self, poll_shutdown, cx)
    }

    fn poll_write_vectored(
        self: Pinned<'_>,
        cx: Context<'_, '_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<usize> {
        either!(self, poll_write_vectored, cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
