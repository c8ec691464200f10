//! The client: connects, stays connected, opens streams and sessions.

mod config;
mod connect;
mod session;
mod speedtest;
mod stillness;
mod udp;

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::{FutureExt, Shared, WeakShared};
use hy2_proto::bandwidth::Bandwidth;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

pub use config::{ClientConfig, FallbackCongestion, ServerAddress};
pub use hy2_proto::speedtest::Direction;
pub use speedtest::{Amount, SpeedtestError, SpeedtestProgress, SpeedtestResult};
#[cfg(feature = "fuzzing")]
pub(crate) use udp::fuzzing;
pub use udp::{UdpPacket, UdpSession};

use crate::{
    BoxFuture,
    congestion::CongestionSnapshot,
    error::{ConnectError, OpenError},
    relay::TcpStream,
};
use session::{NotOpened, Session};

/// A Hysteria 2 client; cheap to clone, clones share one connection.
///
/// When the connection is lost, the next call dials anew (and resolves the server's name again).
/// The connection closes when the last clone, stream and session are dropped, or on
/// [`Client::close`]; bytes that are still on their way then are lost.
///
/// # Examples
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use hy2_core::{Client, ClientConfig, client::ServerAddress};
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// let server = ServerAddress::new("example.com", 443);
/// let client = Client::connect(ClientConfig::new(server, "a long random password")).await?;
/// let mut stream = client.tcp("example.org:80").await?;
/// stream.write_all(b"GET / HTTP/1.0\r\nHost: example.org\r\n\r\n").await?;
/// let mut answer = Vec::new();
/// stream.read_to_end(&mut answer).await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    config: Arc<ClientConfig>,
    tunnel: Mutex<Tunnel>,
    closed: CancellationToken,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("config", &self.config)
            .field("closed", &self.closed.is_cancelled())
            .finish_non_exhaustive()
    }
}

/// The connection in use, or the attempt at one.
#[derive(Default)]
struct Tunnel {
    session: Option<Arc<Session>>,
    /// One attempt serves all calls that wait for it, with the same outcome; it ends when the
    /// last of them is dropped.
    dial: Option<WeakShared<Dial>>,
    /// Attempts so far; tells the present one from one whose outcome came late to a caller.
    attempt: u64,
}

type Dial = BoxFuture<'static, Result<Arc<Session>, ConnectError>>;

/// What the two ends agreed on, and how the connection does.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Where the server is.
    pub remote: SocketAddr,
    /// Whether the server relays UDP.
    pub udp: bool,
    /// The Brutal rate we send at; `None` under BBR or Reno.
    pub tx: Option<Bandwidth>,
    /// Round trip time.
    pub rtt: Duration,
    /// Congestion figures.
    pub congestion: CongestionSnapshot,
    /// Largest datagram payload the server takes, in bytes.
    pub max_datagram: Option<usize>,
}

impl Client {
    /// Connects and authenticates.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] tells apart a wrong credential, a certificate that is not trusted or not
    /// the pinned one, silence (perhaps another obfuscation), and failures of our own side.
    ///
    /// # Cancel safety
    ///
    /// Safe: the attempt ends with the future, and nothing of it stays.
    pub async fn connect(config: ClientConfig) -> Result<Self, ConnectError> {
        let client = Self::lazy(config);
        client.session().await?;
        Ok(client)
    }

    /// Makes a client that connects when it is first used.
    pub fn lazy(config: ClientConfig) -> Self {
        Self {
            inner: Arc::new(Inner {
                config: Arc::new(config),
                tunnel: Mutex::default(),
                closed: CancellationToken::new(),
            }),
        }
    }

    /// Opens a TCP connection to `target` (`host:port`, IPv6 in brackets).
    ///
    /// With `fast_open` it returns before the server answered, see [`TcpStream::established`].
    ///
    /// # Errors
    ///
    /// [`OpenError::Refused`] when the server did not reach the target, [`OpenError::Limit`] when
    /// too many streams are open, others when the tunnel failed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the stream up.
    pub async fn tcp(&self, target: &str) -> Result<TcpStream, OpenError> {
        self.open(target, self.inner.config.fast_open).await
    }

    /// As [`Self::tcp`], and always returns before the server answered: for who could not tell
    /// anybody that the target is not reached, and saves a round trip by sending at once.
    ///
    /// # Errors
    ///
    /// As [`Self::tcp`]; what the server says comes with the first read, see
    /// [`TcpStream::established`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the stream up.
    pub async fn tcp_early(&self, target: &str) -> Result<TcpStream, OpenError> {
        self.open(target, true).await
    }

    async fn open(&self, target: &str, fast_open: bool) -> Result<TcpStream, OpenError> {
        let session = self.session().await.map_err(OpenError::Connect)?;
        match session.tcp(target, fast_open).await {
            Err(NotOpened {
                error,
                unseen: true,
            }) => {
                tracing::debug!(%error, "tunnel was gone, dialling anew");
                let session = self.session().await.map_err(OpenError::Connect)?;
                session.tcp(target, fast_open).await
            }
            result => result,
        }
        .map_err(|failure| failure.error)
    }

    /// Opens a UDP session: one source port at the server, any number of destinations.
    ///
    /// # Errors
    ///
    /// [`OpenError::UdpDisabled`] when the server relays none, others when the tunnel failed.
    ///
    /// # Cancel safety
    ///
    /// Safe: what is waited for is only the connection, and an attempt at it goes on for others
    /// who wait.
    pub async fn udp(&self) -> Result<UdpSession, OpenError> {
        let session = self.session().await.map_err(OpenError::Connect)?;
        session.udp()
    }

    /// Returns what was agreed on; connects when necessary.
    ///
    /// # Errors
    ///
    /// As [`Client::connect`].
    ///
    /// # Cancel safety
    ///
    /// Safe, as [`Client::udp`].
    pub async fn info(&self) -> Result<ConnectionInfo, ConnectError> {
        Ok(self.session().await?.info())
    }

    /// Returns what was agreed on with the server that the client is connected to; `None` without
    /// a connection. Never connects.
    pub fn connection(&self) -> Option<ConnectionInfo> {
        let session = self.inner.tunnel.lock().session.clone();
        session
            .filter(|session| session.is_alive())
            .map(|session| session.info())
    }

    /// Measures the throughput to the server; the server must allow it.
    ///
    /// `progress` is called about every 200 ms.
    ///
    /// # Errors
    ///
    /// [`SpeedtestError`] when the server does not offer the test or the tunnel fails.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the test at both ends; what was measured is lost.
    pub async fn speed_test(
        &self,
        direction: Direction,
        amount: Amount,
        progress: impl FnMut(SpeedtestProgress) + Send,
    ) -> Result<SpeedtestResult, SpeedtestError> {
        speedtest::run(self, direction, amount, progress).await
    }

    /// Waits until the present connection is lost; returns at once when there is none.
    ///
    /// # Cancel safety
    ///
    /// Safe; a loss that was not waited for is not told again.
    pub async fn disconnected(&self) {
        let session = self.inner.tunnel.lock().session.clone();
        if let Some(session) = session {
            session.closed().await;
        }
    }

    /// Closes the connection for good, streams and sessions included; waiting and later calls
    /// fail with [`ConnectError::Closed`].
    ///
    /// # Cancel safety
    ///
    /// Safe: the rest of it is only waiting until the server was told.
    pub async fn close(&self) {
        self.inner.closed.cancel();
        let session = self.inner.tunnel.lock().session.take();
        if let Some(session) = session {
            session.close().await;
        }
    }

    /// Returns the connection in use, or waits for a new one.
    async fn session(&self) -> Result<Arc<Session>, ConnectError> {
        let (attempt, dial) = match self.present() {
            Present::Session(session) => return Ok(session),
            Present::Dial(attempt, dial) => (attempt, dial),
        };
        let dialled = tokio::select! {
            biased;
            () = self.inner.closed.cancelled() => return Err(ConnectError::Closed),
            dialled = dial => dialled,
        };
        let mut tunnel = self.inner.tunnel.lock();
        // Checked under the lock: `close` takes the session after it set the mark.
        if self.inner.closed.is_cancelled() {
            return Err(ConnectError::Closed);
        }
        if tunnel.attempt == attempt && tunnel.dial.take().is_some() {
            tunnel.session = dialled.as_ref().ok().cloned();
        }
        dialled
    }

    fn present(&self) -> Present {
        let mut tunnel = self.inner.tunnel.lock();
        if let Some(session) = tunnel.session.take_if(|session| !session.is_alive()) {
            tracing::debug!(remote = %session.info().remote, "tunnel connection lost");
        }
        if let Some(session) = &tunnel.session {
            return Present::Session(Arc::clone(session));
        }
        if let Some(dial) = tunnel.dial.as_ref().and_then(WeakShared::upgrade) {
            return Present::Dial(tunnel.attempt, dial);
        }
        let config = Arc::clone(&self.inner.config);
        let dial: Dial = Box::pin(async move { connect::dial(&config).await.map(Arc::new) });
        let dial = dial.shared();
        tunnel.dial = dial.downgrade();
        tunnel.attempt += 1;
        Present::Dial(tunnel.attempt, dial)
    }
}

enum Present {
    Session(Arc<Session>),
    Dial(u64, Shared<Dial>),
}
