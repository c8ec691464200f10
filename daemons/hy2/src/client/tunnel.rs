//! The client behind the inbounds; says now and then why there is no connection.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hy2_core::{
    Address, Client,
    bytes::Bytes,
    client::UdpSession,
    error::OpenError,
    inbound::{DialFailure, Dialer},
    relay::TcpStream,
};
use metrics::counter;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
};
use tracing::{debug, info, warn};

use super::{announce, figures};
use crate::failure;

/// Programs retry; the log need not.
const QUIET: Duration = Duration::from_secs(5);

/// A client whose failures to connect are logged.
#[derive(Debug, Clone)]
pub(super) struct Tunnel {
    client: Client,
    last_warning: Arc<Mutex<Option<Instant>>>,
    connected: Arc<Connected>,
}

/// Whether the log says that there is a connection.
#[derive(Debug)]
struct Connected {
    said: AtomicBool,
    news: Notify,
}

impl Tunnel {
    /// Works through `client`, which connects when a program needs it if it is `lazy`.
    pub(super) fn new(client: Client, lazy: bool) -> Self {
        let connected = Connected {
            said: AtomicBool::new(!lazy),
            news: Notify::new(),
        };
        Self {
            client,
            last_warning: Arc::default(),
            connected: Arc::new(connected),
        }
    }

    /// Says when the connection of a lazy client is lost, for ever.
    pub(super) async fn watch_lazy(&self) {
        loop {
            self.connected.news.notified().await;
            self.client.disconnected().await;
            self.connected.said.store(false, Relaxed);
            info!("connection ended; connecting when a program needs it");
        }
    }

    fn opened(&self) {
        // Gone already: the next opening looks again.
        if !self.connected.said.load(Relaxed)
            && let Some(info) = self.client.connection()
            && !self.connected.said.swap(true, Relaxed)
        {
            announce("connected", &info);
            self.connected.news.notify_one();
        }
    }

    fn failure(&self, error: &OpenError) -> DialFailure {
        counter!(figures::FAILURES).increment(1);
        match error {
            OpenError::Connect(error) if self.may_warn() => {
                warn!(kind = failure::kind(error), %error, "cannot connect");
            }
            OpenError::UdpDisabled | OpenError::Limit if self.may_warn() => {
                warn!(%error, "not opened");
            }
            error => debug!(%error, "not opened"),
        }
        error.into()
    }

    fn may_warn(&self) -> bool {
        let mut last = self
            .last_warning
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let may = last.is_none_or(|last| last.elapsed() >= QUIET);
        if may {
            *last = Some(Instant::now());
        }
        may
    }
}

impl Dialer for Tunnel {
    type Stream = TcpStream;
    type Udp = UdpSession;

    async fn tcp(&self, target: &Address) -> Result<TcpStream, DialFailure> {
        let opened = self.client.tcp(&target.to_string()).await;
        opened
            .inspect(|_| {
                counter!(figures::STREAMS).increment(1);
                self.opened();
            })
            .map_err(|error| self.failure(&error))
    }

    async fn udp(&self) -> Result<UdpSession, DialFailure> {
        let opened = self.client.udp().await;
        opened
            .inspect(|_| {
                counter!(figures::SESSIONS).increment(1);
                self.opened();
            })
            .map_err(|error| self.failure(&error))
    }

    async fn join<L>(local: L, stream: TcpStream, early: Bytes) -> io::Result<()>
    where
        L: AsyncRead + AsyncWrite + Send + Unpin,
    {
        <Client as Dialer>::join(local, stream, early).await
    }
}
