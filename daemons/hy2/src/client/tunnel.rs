//! The client behind the inbounds; says now and then why there is no connection.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
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
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::{debug, warn};

use super::figures;
use crate::failure;

/// Programs retry; the log need not.
const QUIET: Duration = Duration::from_secs(5);

/// A client whose failures to connect are logged.
#[derive(Debug, Clone)]
pub(super) struct Tunnel {
    client: Client,
    last_warning: Arc<Mutex<Option<Instant>>>,
}

impl Tunnel {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            last_warning: Arc::default(),
        }
    }

    fn failure(&self, error: &OpenError) -> DialFailure {
        counter!(figures::FAILURES).increment(1);
        match error {
            OpenError::Connect(error) if self.may_warn() => {
                warn!(kind = failure::kind(error), %error, "cannot connect");
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
            .inspect(|_| counter!(figures::STREAMS).increment(1))
            .map_err(|error| self.failure(&error))
    }

    async fn udp(&self) -> Result<UdpSession, DialFailure> {
        let opened = self.client.udp().await;
        opened
            .inspect(|_| counter!(figures::SESSIONS).increment(1))
            .map_err(|error| self.failure(&error))
    }

    async fn join<L>(local: L, stream: TcpStream, early: Bytes) -> io::Result<()>
    where
        L: AsyncRead + AsyncWrite + Send + Unpin,
    {
        <Client as Dialer>::join(local, stream, early).await
    }
}
