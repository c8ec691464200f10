//! One authenticated connection of a client.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use hy2_proto::{
    address::AddressRef,
    bandwidth::Bandwidth,
    padding,
    tcp::{MAX_ADDRESS_LEN, TcpRequest},
};
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream, VarInt, WriteError};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    ConnectionInfo,
    stillness::{self, OpenStream, Streams},
    udp::{UdpSession, UdpSessions},
};
use crate::{
    congestion::{CongestionHandle, Pacing},
    error::OpenError,
    h3::client::ClientFront,
    memory::MemoryBudget,
    quic::{SendWindow, close},
    relay::{
        TcpStream,
        recv::{RelayRecv, RoundTrip},
        share::{StreamPresence, UdpShare},
    },
};

/// How long to wait for the server to allow one more stream.
const STREAM_LIMIT_WAIT: Duration = Duration::from_secs(5);

/// Why a stream did not open.
#[derive(Debug)]
pub(super) struct NotOpened {
    pub(super) error: OpenError,
    /// The connection was gone before the server saw the request: worth trying on a new one.
    pub(super) unseen: bool,
}

impl From<OpenError> for NotOpened {
    fn from(error: OpenError) -> Self {
        Self {
            // After a stateless reset: the server knows nothing of the connection, so it cannot
            // have acted on the request.
            unseen: matches!(error, OpenError::Lost(ConnectionError::Reset)),
            error,
        }
    }
}

/// An open connection; closes when dropped, which is when the client has let go of it and its
/// last stream and UDP session are gone.
#[derive(Debug)]
pub(super) struct Session {
    endpoint: Endpoint,
    connection: Connection,
    congestion: CongestionHandle,
    _pacing: Pacing,
    _front: ClientFront,
    udp: Option<UdpSessions>,
    udp_share: Arc<UdpShare>,
    tx: Option<Bandwidth>,
    memory: Arc<MemoryBudget>,
    next_udp: AtomicU32,
    streams: Arc<Streams>,
    _supervisor: JoinSet<()>,
}

impl Session {
    #[expect(clippy::too_many_arguments, reason = "called once, by the dialler")]
    pub(super) fn start(
        endpoint: Endpoint,
        connection: Connection,
        congestion: CongestionHandle,
        pacing: Pacing,
        front: ClientFront,
        udp: bool,
        tx: Option<Bandwidth>,
        memory: &Arc<MemoryBudget>,
        receive_window: VarInt,
    ) -> Self {
        let memory = memory.share();
        let udp_share = UdpShare::new(&congestion);
        let streams = Arc::<Streams>::default();
        let mut supervisor = JoinSet::new();
        supervisor.spawn(supervise(
            Arc::clone(&memory),
            congestion.clone(),
            Arc::clone(&udp_share),
        ));
        supervisor.spawn(stillness::watch(
            connection.clone(),
            Arc::clone(&streams),
            receive_window,
        ));
        Self {
            udp: udp.then(|| UdpSessions::start(connection.clone(), Arc::clone(&udp_share))),
            udp_share,
            endpoint,
            connection,
            congestion,
            _pacing: pacing,
            _front: front,
            tx,
            memory,
            _supervisor: supervisor,
            // The official client counts from 1.
            next_udp: AtomicU32::new(1),
            streams,
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    pub(super) async fn closed(&self) {
        self.connection.closed().await;
    }

    pub(super) async fn close(&self) {
        self.connection.close(close::OK, b"");
        let _ = timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }

    pub(super) fn info(&self) -> ConnectionInfo {
        ConnectionInfo {
            remote: self.connection.remote_address(),
            udp: self.udp.is_some(),
            tx: self.tx,
            rtt: self.connection.rtt(),
            congestion: self.congestion.snapshot(),
            max_datagram: self.connection.max_datagram_size(),
        }
    }

    /// Opens a relay stream. The stream keeps the connection open.
    pub(super) async fn tcp(
        self: &Arc<Self>,
        target: &str,
        fast_open: bool,
    ) -> Result<TcpStream, NotOpened> {
        check_target(target)?;
        let opened = timeout(STREAM_LIMIT_WAIT, self.connection.open_bi())
            .await
            .map_err(|_| OpenError::Limit)?
            .map_err(|error| NotOpened {
                error: OpenError::Lost(error),
                unseen: true,
            })?;
        Ok(self.request(target, opened, fast_open).await?)
    }

    async fn request(
        self: &Arc<Self>,
        target: &str,
        (send, recv): (SendStream, RecvStream),
        fast_open: bool,
    ) -> Result<TcpStream, OpenError> {
        let noise = padding::fill(padding::TCP_REQUEST, |bytes| rand::fill(bytes));
        let request = TcpRequest {
            address: target,
            padding: noise.as_bytes(),
        };
        let mut encoded = BytesMut::with_capacity(request.encoded_len());
        request.encode(&mut encoded);
        let send = write_request(send, encoded.freeze()).await?;
        let recv = RelayRecv::new(
            recv,
            0,
            Bytes::new(),
            &self.memory,
            RoundTrip::of(&self.congestion),
        );
        let owner = StreamOwner {
            _open: self.streams.enter(),
            _presence: self.udp_share.enter_stream(),
            _session: Arc::clone(self),
        };
        let mut stream = TcpStream::new(send, recv, false).keeping(Arc::new(owner));
        if !fast_open {
            stream.established().await?;
        }
        Ok(stream)
    }

    /// Opens a UDP session, which keeps the connection open.
    pub(super) fn udp(self: &Arc<Self>) -> Result<UdpSession, OpenError> {
        if let Some(error) = self.connection.close_reason() {
            return Err(OpenError::Lost(error));
        }
        let sessions = self.udp.as_ref().ok_or(OpenError::UdpDisabled)?;
        let id = self.next_udp.fetch_add(1, Relaxed);
        Ok(sessions.open(id, Arc::clone(self) as Arc<_>))
    }
}

/// Writes the request of a new stream.
///
/// Uploads may fill the connection's window. quinn then tells those first of new room who came last, and tasks have their
/// turn in this order: so a task of its own is in time, where the caller's may come too late again and again, as the
/// main task of a runtime with one thread does.
async fn write_request(mut send: SendStream, request: Bytes) -> Result<SendStream, OpenError> {
    let ended = |error| match error {
        WriteError::ConnectionLost(error) => OpenError::Lost(error),
        _ => OpenError::Ended,
    };
    let mut rest = [request];
    while let Some(written) = send.write_chunks(&mut rest).now_or_never() {
        written.map_err(ended)?;
        if rest[0].is_empty() {
            return Ok(send);
        }
    }
    // Ends with this future.
    let mut task = JoinSet::new();
    task.spawn(async move {
        while !rest[0].is_empty() {
            send.write_chunks(&mut rest).await?;
        }
        Ok(send)
    });
    match task.join_next().await {
        Some(Ok(written)) => written.map_err(ended),
        // It does not panic, and is not aborted while this waits for it.
        Some(Err(_)) | None => Err(OpenError::Ended),
    }
}

/// What a stream keeps.
struct StreamOwner {
    _open: OpenStream,
    _presence: StreamPresence,
    _session: Arc<Session>,
}

/// Keeps the send window within the memory budget; sleeps while there is nothing to send.
async fn supervise(
    memory: Arc<MemoryBudget>,
    congestion: CongestionHandle,
    streams: Arc<UdpShare>,
) {
    let mut window = SendWindow::new(&memory, &congestion);
    loop {
        streams.opened().await;
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while streams.has_streams() || window.reserved() > 0 {
            tick.tick().await;
            window.adjust(&congestion);
        }
    }
}

/// Refuses what the server could only refuse, before a stream is spent on it.
fn check_target(target: &str) -> Result<(), OpenError> {
    if target.len() > MAX_ADDRESS_LEN {
        return Err(OpenError::Address(format!(
            "longer than {MAX_ADDRESS_LEN} bytes"
        )));
    }
    if target == hy2_proto::speedtest::ADDRESS {
        return Ok(());
    }
    AddressRef::parse(target)
        .map(|_| ())
        .map_err(|error| OpenError::Address(error.to_string()))
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.close(close::OK, b"");
    }
}
