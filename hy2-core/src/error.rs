//! Errors of the public operations.

use std::io;

use hy2_proto::codec::DecodeError;

use crate::relay::{copy::RelayError, recv::RecvError};

/// Why a client could not connect.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The settings cannot be used; nothing was sent.
    #[error("client settings: {0}")]
    Config(String),
    /// The server's name has no address.
    #[error("server name does not resolve")]
    Unresolvable(#[source] std::sync::Arc<io::Error>),
    /// No socket could be opened.
    #[error("cannot open a UDP socket")]
    Socket(#[source] std::sync::Arc<io::Error>),
    /// The server answered like a web site: the credential is wrong, or it is no Hysteria server.
    #[error("authentication rejected (HTTP status {status})")]
    AuthRejected {
        /// Status of the answer.
        status: u16,
    },
    /// The leaf certificate is not the pinned one.
    #[error("server certificate does not match the pin")]
    PinMismatch,
    /// The TLS handshake failed, for example because the certificate is not trusted.
    #[error("TLS: {0}")]
    Tls(String),
    /// Nothing came back. The server may be down or unreachable, or the obfuscation password
    /// differs: a mismatch looks like silence.
    #[error("no answer from the server (is it up, and is the obfuscation the same?)")]
    Silence,
    /// The server answered, but not as the protocol says.
    #[error("unexpected answer from the server: {0}")]
    Protocol(String),
    /// The connection ended while it was set up.
    #[error("connection lost")]
    Lost(#[source] quinn::ConnectionError),
    /// The client was closed.
    #[error("client is closed")]
    Closed,
}

/// Why a stream or session could not be opened through the tunnel.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The tunnel itself could not be set up.
    #[error("tunnel: {0}")]
    Connect(#[source] ConnectError),
    /// The tunnel broke; the next call dials anew.
    #[error("tunnel connection lost")]
    Lost(#[source] quinn::ConnectionError),
    /// The server did not reach the target; the text is the server's.
    #[error("target not reached: {0}")]
    Refused(String),
    /// The target is not of the form `host:port`, or its name is too long.
    #[error("target address: {0}")]
    Address(String),
    /// The server does not relay UDP.
    #[error("UDP is disabled on the server")]
    UdpDisabled,
    /// As many streams are open as the server allows.
    #[error("stream limit of the server reached")]
    Limit,
    /// The server's answer is not valid.
    #[error("invalid answer from the server")]
    Protocol(#[source] DecodeError),
    /// The server ended the stream.
    #[error("stream ended by the server")]
    Ended,
    /// The stream holds too much memory without progress.
    #[error("stream starved of memory")]
    Starved,
}

impl From<RecvError> for OpenError {
    fn from(error: RecvError) -> Self {
        match error {
            RecvError::Read(quinn::ReadError::ConnectionLost(error)) => Self::Lost(error),
            RecvError::Read(_) => Self::Ended,
            RecvError::Starved => Self::Starved,
        }
    }
}

/// Why joining a local connection with the tunnel ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayFailure {
    /// The target was not reached.
    #[error(transparent)]
    Open(OpenError),
    /// The local side failed.
    #[error("local connection failed")]
    Local(#[source] io::Error),
    /// The tunnel failed.
    #[error("tunnel failed")]
    Tunnel(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl RelayFailure {
    pub(crate) fn tunnel(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Tunnel(Box::new(error))
    }
}

impl From<RelayError> for RelayFailure {
    fn from(error: RelayError) -> Self {
        match error {
            RelayError::TargetRead(error) | RelayError::TargetWrite(error) => Self::Local(error),
            error => Self::tunnel(error),
        }
    }
}

/// Why a datagram could not be sent through the tunnel.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum UdpSendError {
    /// Header and data together exceed 4,096 bytes, or the data is empty.
    #[error("datagram of {len} bytes cannot be carried (at most {max} to this target)")]
    Size {
        /// Bytes of data given.
        len: usize,
        /// Most bytes that fit for this target address.
        max: usize,
    },
    /// The target is not of the form `host:port`, or too long.
    #[error("target address: {0}")]
    Address(String),
    /// The peer accepts no datagrams large enough even for fragments.
    #[error("the server's datagram limit is too small")]
    PeerLimit,
    /// The tunnel broke.
    #[error("tunnel connection lost")]
    Lost(#[source] quinn::ConnectionError),
}

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// A setting is out of its range.
    #[error("server settings: {0}")]
    Config(String),
    /// A socket could not be bound.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] crate::tls::CertificateError),
    /// No address to listen on was given.
    #[error("no address to listen on")]
    NoListener,
    /// Called outside a tokio runtime.
    #[error("must be called inside a tokio runtime")]
    NoRuntime,
}
