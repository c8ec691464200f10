//! TLS on the ports for people and programs, with a certificate that can change while it is in use.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::server::TlsStream;

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

    /// Returns what handshakes go by.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
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

/// A connection, with TLS or without. It holds its place until it is dropped, whoever has it by then.
pub(crate) struct Stream {
    either: Either,
    _place: OwnedSemaphorePermit,
}

enum Either {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    pub(crate) const fn plain(stream: TcpStream, place: OwnedSemaphorePermit) -> Self {
        Self {
            either: Either::Plain(stream),
            _place: place,
        }
    }

    pub(crate) fn tls(stream: TlsStream<TcpStream>, place: OwnedSemaphorePermit) -> Self {
        Self {
            either: Either::Tls(Box::new(stream)),
            _place: place,
        }
    }
}

macro_rules! either {
    ($self:ident, $poll:ident $(, $argument:expr)*) => {
        match &mut $self.get_mut().either {
            Either::Plain(stream) => std::pin::Pin::new(stream).$poll($($argument),*),
            Either::Tls(stream) => std::pin::Pin::new(&mut **stream).$poll($($argument),*),
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
        match &self.either {
            Either::Plain(stream) => stream.is_write_vectored(),
            Either::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
