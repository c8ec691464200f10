//! SOCKS5 (RFC 1928) with user name and password (RFC 1929): CONNECT and UDP ASSOCIATE.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use self::wire::{Command, Method, Reply, Request, WireError};
use super::{Credentials, DialFailure, Dialer, InboundLimits, listener, relay};

mod associate;
pub mod wire;

/// Settings of a [`Socks5`] inbound.
#[derive(Debug, Clone)]
pub struct Socks5Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// What programs must show; `None` serves everyone who can connect.
    pub credentials: Option<Credentials>,
    /// Whether to refuse UDP ASSOCIATE.
    pub disable_udp: bool,
    /// What local programs may take.
    pub limits: InboundLimits,
}

impl Socks5Config {
    /// Serves everyone at `listen`, UDP included.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            credentials: None,
            disable_udp: false,
            limits: InboundLimits::default(),
        }
    }
}

/// A SOCKS5 server whose connections go through the tunnel.
#[derive(Debug)]
pub struct Socks5 {
    listener: TcpListener,
    config: Arc<Socks5Config>,
}

impl Socks5 {
    /// Binds the listener. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// The system's error, such as an address in use.
    pub fn bind(config: Socks5Config) -> io::Result<Self> {
        Ok(Self {
            listener: listener::bind_tcp(config.listen)?,
            config: Arc::new(config),
        })
    }

    /// Returns the bound address.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is cancelled; connections end with it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends everything at once, as `stop` does.
    pub async fn run<D: Dialer>(self, dialer: D, stop: CancellationToken) {
        let slots = self.config.limits.max_connections;
        listener::serve(&self.listener, slots, &stop, |stream, peer| {
            serve_connection(Arc::clone(&self.config), dialer.clone(), stream, peer)
        })
        .await;
    }
}

/// Serves one connection from its first byte to its end.
pub(super) async fn serve_connection<D: Dialer>(
    config: Arc<Socks5Config>,
    dialer: D,
    stream: TcpStream,
    peer: SocketAddr,
) {
    let session = Session {
        config,
        stream,
        buffer: BytesMut::new(),
    };
    if let Err(error) = session.run(dialer, peer).await {
        debug!(
            error = &error as &dyn std::error::Error,
            "SOCKS5 connection ended"
        );
    }
}

/// Why a SOCKS5 connection ended early. Most of these are what programs do wrong.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("connection broke")]
    Io(#[from] io::Error),
    #[error("not SOCKS5 as we speak it")]
    Wire(#[from] WireError),
    #[error("request took too long")]
    TooSlow,
    #[error("no acceptable authentication method offered")]
    NoMethod,
    #[error("wrong user name or password")]
    WrongCredentials,
    #[error("request refused with reply {0:?}")]
    Refused(Reply),
}

/// One connection. The steps are methods called in order, each of which reads what it needs; no
/// step can be reached without those before it.
struct Session {
    config: Arc<Socks5Config>,
    stream: TcpStream,
    buffer: BytesMut,
}

impl Session {
    async fn run<D: Dialer>(mut self, dialer: D, peer: SocketAddr) -> Result<(), SessionError> {
        let limit = self.config.limits.request_timeout;
        let request = timeout(limit, async {
            self.authenticate().await?;
            self.request().await
        })
        .await
        .map_err(|_| SessionError::TooSlow)??;
        match request.command {
            Command::Connect => self.connect(dialer, request).await,
            Command::UdpAssociate if !self.config.disable_udp => self.associate(dialer, peer).await,
            _ => self.refuse(Reply::CommandNotSupported).await,
        }
    }

    async fn authenticate(&mut self) -> Result<(), SessionError> {
        let wanted = match self.config.credentials {
            Some(_) => Method::Password,
            None => Method::None,
        };
        let offered = self.read(|bytes| {
            let greeting = wire::parse_greeting(bytes)?;
            Ok(greeting.map(|(methods, len)| (methods.contains(&wanted.code()), len)))
        });
        if !offered.await? {
            self.stream
                .write_all(&[wire::VERSION, wire::NO_METHOD])
                .await?;
            return Err(SessionError::NoMethod);
        }
        self.stream
            .write_all(&[wire::VERSION, wanted.code()])
            .await?;

        let config = Arc::clone(&self.config);
        let Some(credentials) = &config.credentials else {
            return Ok(());
        };
        let right = self.read(|bytes| {
            let shown = wire::parse_credentials(bytes)?;
            Ok(shown.map(|(name, password, len)| (credentials.matches(name, password), len)))
        });
        let right = right.await?;
        self.stream
            .write_all(&[wire::AUTH_VERSION, u8::from(!right)])
            .await?;
        if right {
            Ok(())
        } else {
            Err(SessionError::WrongCredentials)
        }
    }

    async fn request(&mut self) -> Result<Request, SessionError> {
        match self.read(wire::parse_request).await {
            Err(SessionError::Wire(error)) => {
                let reply = match error {
                    WireError::AddressType => Reply::AddressTypeNotSupported,
                    _ => Reply::GeneralFailure,
                };
                self.answer(reply, UNSPECIFIED).await?;
                Err(error.into())
            }
            result => result,
        }
    }

    async fn connect<D: Dialer>(mut self, dialer: D, request: Request) -> Result<(), SessionError> {
        let tunnel = match dialer.tcp(&request.target).await {
            Ok(tunnel) => tunnel,
            Err(failure) => return self.refuse(failure.into()).await,
        };
        self.answer(Reply::Succeeded, UNSPECIFIED).await?;
        let early = std::mem::take(&mut self.buffer).freeze();
        relay::join::<D, _>(self.stream, tunnel, early).await?;
        Ok(())
    }

    async fn associate<D: Dialer>(
        &mut self,
        dialer: D,
        peer: SocketAddr,
    ) -> Result<(), SessionError> {
        let tunnel = match dialer.udp().await {
            Ok(tunnel) => tunnel,
            Err(failure) => return self.refuse(failure.into()).await,
        };
        let local = SocketAddr::new(self.stream.local_addr()?.ip(), 0);
        let socket = listener::bind_udp(local)?;
        let bound = socket.local_addr()?;
        let bound = SocketAddr::new(bound.ip().to_canonical(), bound.port());
        self.answer(Reply::Succeeded, bound).await?;
        associate::run(&socket, &tunnel, &mut self.stream, peer.ip()).await;
        Ok(())
    }

    async fn refuse(&mut self, reply: Reply) -> Result<(), SessionError> {
        self.answer(reply, UNSPECIFIED).await?;
        self.stream.shutdown().await?;
        Err(SessionError::Refused(reply))
    }

    async fn answer(&mut self, reply: Reply, bound: SocketAddr) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(wire::MAX_REPLY);
        wire::encode_reply(reply, bound, &mut bytes);
        self.stream.write_all(&bytes).await
    }

    /// Reads until `parse` finds a whole message and takes its bytes off the buffer. The parsers
    /// bound what they ask for (513 bytes at most), and so the buffer.
    async fn read<T>(
        &mut self,
        parse: impl Fn(&[u8]) -> Result<Option<(T, usize)>, WireError>,
    ) -> Result<T, SessionError> {
        loop {
            if let Some((message, len)) = parse(&self.buffer)? {
                self.buffer.advance(len);
                return Ok(message);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }
}

/// The bound address of a connection through the tunnel is the server's affair.
const UNSPECIFIED: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

impl From<DialFailure> for Reply {
    fn from(failure: DialFailure) -> Self {
        match failure {
            DialFailure::Refused => Self::ConnectionRefused,
            DialFailure::Unreachable => Self::NetworkUnreachable,
            DialFailure::Unresolvable => Self::HostUnreachable,
            DialFailure::Denied => Self::NotAllowed,
            DialFailure::TimedOut => Self::TtlExpired,
            DialFailure::UdpDisabled => Self::CommandNotSupported,
            DialFailure::TunnelDown | DialFailure::Other => Self::GeneralFailure,
        }
    }
}

#[cfg(test)]
mod tests;
