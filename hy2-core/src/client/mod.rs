//! The client: connects, stays connected, opens streams and sessions.

mod config;
mod connect;
mod session;
mod speedtest;
mod udp;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use hy2_proto::bandwidth::Bandwidth;
use tokio::sync::Mutex;

pub use config::{ClientConfig, FallbackCongestion, ServerAddress};
pub use hy2_proto::speedtest::Direction;
pub use speedtest::{Amount, SpeedtestError, SpeedtestProgress, SpeedtestResult};
pub use udp::{UdpPacket, UdpSession};

use crate::{
    congestion::CongestionSnapshot,
    error::{ConnectError, OpenError},
    relay::TcpStream,
};
use session::Session;

/// A Hysteria 2 client; cheap to clone, clones share one connection.
///
/// When the connection is lost, the next call dials anew (and resolves the server's name again).
/// The connection closes when the last clone, stream and session are dropped, or on
/// [`Client::close`].
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

#[derive(Debug)]
struct Inner {
    config: ClientConfig,
    /// The connection in use. Held while dialling, so that one dial serves all waiting calls.
    session: Mutex<Option<Arc<Session>>>,
    closed: AtomicBool,
}

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
    pub async fn connect(config: ClientConfig) -> Result<Self, ConnectError> {
        let client = Self::lazy(config);
        client.session().await?;
        Ok(client)
    }

    /// Makes a client that connects when it is first used.
    pub fn lazy(config: ClientConfig) -> Self {
        Self {
            inner: Arc::new(Inner {
                config,
                session: Mutex::new(None),
                closed: AtomicBool::new(false),
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
        let session = self.session().await.map_err(OpenError::Connect)?;
        session.tcp(target, self.inner.config.fast_open).await
    }

    /// Opens a UDP session: one source port at the server, any number of destinations.
    ///
    /// # Errors
    ///
    /// [`OpenError::UdpDisabled`] when the server relays none, others when the tunnel failed.
    pub async fn udp(&self) -> Result<UdpSession, OpenError> {
        let session = self.session().await.map_err(OpenError::Connect)?;
        session.udp()
    }

    /// Returns what was agreed on; connects when necessary.
    ///
    /// # Errors
    ///
    /// As [`Client::connect`].
    pub async fn info(&self) -> Result<ConnectionInfo, ConnectError> {
        Ok(self.session().await?.info())
    }

    /// Measures the throughput to the server; the server must allow it.
    ///
    /// `progress` is called about every 200 ms.
    ///
    /// # Errors
    ///
    /// [`SpeedtestError`] when the server does not offer the test or the tunnel fails.
    pub async fn speed_test(
        &self,
        direction: Direction,
        amount: Amount,
        progress: impl FnMut(SpeedtestProgress) + Send,
    ) -> Result<SpeedtestResult, SpeedtestError> {
        speedtest::run(self, direction, amount, progress).await
    }

    /// Waits until the present connection is lost; returns at once when there is none.
    pub async fn disconnected(&self) {
        let session = self.inner.session.lock().await.clone();
        if let Some(session) = session {
            session.closed().await;
        }
    }

    /// Closes the connection for good; every later call fails.
    pub async fn close(&self) {
        self.inner.closed.store(true, Relaxed);
        if let Some(session) = self.inner.session.lock().await.take() {
            session.close().await;
        }
    }

    async fn session(&self) -> Result<Arc<Session>, ConnectError> {
        let mut current = self.inner.session.lock().await;
        if self.inner.closed.load(Relaxed) {
            return Err(ConnectError::Closed);
        }
        if let Some(session) = &*current
            && session.is_alive()
        {
            return Ok(Arc::clone(session));
        }
        *current = None;
        let session = Arc::new(connect::dial(&self.inner.config).await?);
        *current = Some(Arc::clone(&session));
        Ok(session)
    }
}
