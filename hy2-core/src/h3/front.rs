//! Everything of one server connection that is not a datagram: requests are answered, relay streams are handed out.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use bytes::BytesMut;
use futures_util::FutureExt;
use hy2_proto::{tcp, varint};
use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream};
use tokio::{
    sync::{Notify, Semaphore},
    task::JoinSet,
};

use super::{RequestHandler, budget::Budget, codes, exchange, peek::Peek, uni};

/// A relay stream right behind its frame type: neither buffered nor over-read.
#[derive(Debug)]
pub(crate) struct RelayStream {
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
}

/// What the peer of one connection may make us hold.
#[derive(Debug, Clone)]
pub(crate) struct H3Limits {
    /// Requests served at a time; more wait in QUIC's receive window.
    pub(crate) requests: usize,
    /// Bytes of field sections, encoded and decoded, of all requests together. A request that does not fit is
    /// answered with status 431.
    pub(crate) header_bytes: usize,
}

impl Default for H3Limits {
    fn default() -> Self {
        Self {
            requests: 100,
            header_bytes: 512 * 1024,
        }
    }
}

/// The control stream of the server: its type and SETTINGS {MAX_FIELD_SECTION_SIZE 1 MiB, ENABLE_CONNECT_PROTOCOL 1},
/// byte for byte what the reference and Caddy send. The limit that we enforce is lower, as with most servers.
const CONTROL_STREAM: &[u8] = &[0x00, 0x04, 0x07, 0x06, 0x80, 0x10, 0x00, 0x00, 0x08, 0x01];

/// What the streams of a connection share.
pub(super) struct Shared {
    pub(super) conn: Connection,
    pub(super) handler: Arc<dyn RequestHandler>,
    pub(super) budget: Arc<Budget>,
    authenticated: Arc<AtomicBool>,
    requests: Semaphore,
    /// Whether no more requests are taken, and the wake-up that tells so.
    draining: AtomicBool,
    drained: Notify,
    seen: uni::Seen,
    /// Bytes that were taken from request streams.
    pub(super) taken: Arc<AtomicU64>,
    /// Streams that were looked at and streams that are over and done with.
    begun: AtomicU64,
    finished: AtomicU64,
}

/// What a STREAM frame carries in an ordinary upload, in bytes: a packet of the smallest size,
/// less some.
const FRAME_BYTES: u64 = 800;

/// Frames that an ordinary stream has and that carry little: the request, its end.
const FRAMES_PER_STREAM: u64 = 2;

/// The HTTP/3 side of one server connection.
///
/// A relay stream is recognised by its first varint, [`tcp::FRAME_TYPE`], if `authenticated` is set at the moment when
/// the varint is complete. Everything else is HTTP/3, before and after authentication; there 0x401 is an unknown
/// frame. Each stream is looked at on its own, so a stream that says nothing delays no other.
pub(crate) struct Front {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Front")
            .field("conn", &self.shared.conn)
            .finish_non_exhaustive()
    }
}

/// What became of a stream.
type Decision = Option<RelayStream>;

impl Front {
    /// Prepares to serve `conn`; nothing happens until [`run`](Self::run).
    ///
    /// `authenticated` must be set (`Release`) before `handler` returns status 233, because the client opens relay
    /// streams as soon as it sees that answer.
    pub(crate) fn new(
        conn: Connection,
        authenticated: Arc<AtomicBool>,
        handler: Arc<dyn RequestHandler>,
        limits: H3Limits,
    ) -> Self {
        let shared = Shared {
            conn,
            handler,
            budget: Budget::new(limits.header_bytes),
            authenticated,
            requests: Semaphore::new(limits.requests),
            draining: AtomicBool::new(false),
            drained: Notify::new(),
            seen: uni::Seen::default(),
            taken: Arc::default(),
            begun: AtomicU64::new(0),
            finished: AtomicU64::new(0),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Serves the connection until it is lost or closed, handing each relay stream to `relay`.
    ///
    /// `relay` is called on this future and must not block; spawning a task is what it is for.
    ///
    /// # Cancel safety
    /// Dropping the future ends all requests at once. Close the connection first: a control stream that ends before
    /// its connection is an error of ours.
    pub(crate) async fn run(&self, mut relay: impl FnMut(RelayStream)) {
        let conn = &self.shared.conn;
        let mut streams = JoinSet::<Decision>::new();
        let mut next_request = 0;
        // Opening it waits for the peer's credit, which must not hold up anything else.
        let mut control = Box::pin(open_control(conn)).fuse();
        let mut control_stream: Option<SendStream> = None;
        loop {
            // Every arm is cancel safe: quinn's accept futures take a stream only when they return it, and the others
            // hold nothing.
            tokio::select! {
                accepted = conn.accept_bi() => match accepted {
                    Ok((send, recv)) => {
                        next_request = (recv.id().index() + 1) * 4;
                        if let Some(stream) = self.accept(send, recv, &mut streams) {
                            relay(stream);
                        }
                    }
                    Err(error) => return lost(&error),
                },
                accepted = conn.accept_uni() => match accepted {
                    Ok(recv) => {
                        let shared = Arc::clone(&self.shared);
                        shared.begun.fetch_add(1, Ordering::Relaxed);
                        streams.spawn(async move {
                            uni::serve(&shared.conn, &shared.seen, recv).await;
                            None
                        });
                    }
                    Err(error) => return lost(&error),
                },
                Some(done) = streams.join_next() => {
                    self.shared.finished.fetch_add(1, Ordering::Relaxed);
                    match done {
                        Ok(Some(stream)) => relay(stream),
                        Ok(None) => {}
                        Err(error) => {
                            metrics::counter!("hy2_panics_total").increment(1);
                            tracing::error!(%error, "stream task failed");
                        }
                    }
                }
                opened = &mut control, if control_stream.is_none() => match opened {
                    Ok(stream) => control_stream = Some(stream),
                    Err(error) => return lost(&error),
                },
                () = self.shared.drained.notified(), if control_stream.is_some() => {
                    if let Some(stream) = &mut control_stream {
                        send_goaway(stream, next_request);
                    }
                }
            }
        }
    }

    /// Estimates how many STREAM frames arrived that nobody has read, beyond those of ordinary
    /// requests and uploads.
    ///
    /// QUIC's windows count bytes, but a frame of one byte may keep the whole packet it came in until
    /// it is read. Frames that were thrown away because their stream was stopped count too, so this
    /// says something only where many streams are open.
    pub(crate) fn unread_frames(&self) -> u64 {
        let arrived = self.shared.conn.stats().frame_rx.stream;
        let read = self.shared.taken.load(Ordering::Relaxed) / FRAME_BYTES
            + self.shared.finished.load(Ordering::Relaxed) * FRAMES_PER_STREAM;
        arrived.saturating_sub(read)
    }

    /// Returns how many streams are being served or have not said what they are.
    pub(crate) fn open_streams(&self) -> u64 {
        let finished = self.shared.finished.load(Ordering::Relaxed);
        let begun = self.shared.begun.load(Ordering::Relaxed);
        begun.saturating_sub(finished)
    }

    /// Takes no more requests: sends GOAWAY and rejects the streams that come after it.
    ///
    /// Requests being served go on, and relay streams are handed out as before.
    pub(crate) fn shutdown(&self) {
        self.shared.draining.store(true, Ordering::Release);
        self.shared.drained.notify_one();
    }

    /// Decides at once where the first bytes of a stream came with it, which is the rule, and in a task where not.
    fn accept(
        &self,
        send: SendStream,
        mut recv: RecvStream,
        streams: &mut JoinSet<Decision>,
    ) -> Decision {
        let mut peek = Peek::default();
        let value = peek.value(&mut recv).now_or_never();
        if value
            .as_ref()
            .is_some_and(|value| self.shared.is_for_relay(value))
        {
            return Some(RelayStream { send, recv });
        }
        let shared = Arc::clone(&self.shared);
        shared.begun.fetch_add(1, Ordering::Relaxed);
        if value.is_some() {
            streams.spawn(async move {
                shared.serve(peek, send, recv).await;
                None
            });
        } else {
            streams.spawn(shared.decide(peek, send, recv));
        }
        None
    }
}

impl Shared {
    /// Decides by the first varint, or by how it failed to come. A stream that a user resets before
    /// it says what it is counts as a relay stream given up.
    fn is_for_relay(&self, kind: &Result<Option<u64>, ReadError>) -> bool {
        matches!(kind, Ok(Some(tcp::FRAME_TYPE)) | Err(ReadError::Reset(_)))
            && self.authenticated.load(Ordering::Acquire)
    }

    async fn decide(
        self: Arc<Self>,
        mut peek: Peek,
        send: SendStream,
        mut recv: RecvStream,
    ) -> Decision {
        if self.is_for_relay(&peek.value(&mut recv).await) {
            return Some(RelayStream { send, recv });
        }
        // Boxed, so that a stream that says nothing costs the size of a peek.
        Box::pin(self.serve(peek, send, recv)).await;
        None
    }

    async fn serve(self: Arc<Self>, peek: Peek, mut send: SendStream, mut recv: RecvStream) {
        if self.draining.load(Ordering::Acquire) {
            // The only error is that the stream is closed already.
            let _ = recv.stop(codes::REQUEST_REJECTED);
            let _ = send.reset(codes::REQUEST_REJECTED);
            return;
        }
        // Never closed, so this is always a permit.
        let _permit = self.requests.acquire().await;
        exchange::serve(Arc::clone(&self), peek.into_bytes(), send, recv).await;
    }
}

async fn open_control(conn: &Connection) -> Result<SendStream, ConnectionError> {
    let mut stream = conn.open_uni().await?;
    // An error here is a lost connection, which the accepting side reports, or a peer that stopped our control stream,
    // which the reference's stack does not notice either.
    let _ = stream.write_all(CONTROL_STREAM).await;
    Ok(stream)
}

/// Writes GOAWAY naming the first stream that will not be served. A peer that gave no credit for these few bytes goes
/// without.
fn send_goaway(control: &mut SendStream, next_request: u64) {
    let mut frame = BytesMut::with_capacity(10);
    varint::encode(0x7, &mut frame);
    varint::encode(varint::len(next_request) as u64, &mut frame);
    varint::encode(next_request, &mut frame);
    let _ = control.write_all(&frame).now_or_never();
}

fn lost(error: &ConnectionError) {
    tracing::trace!(%error, "connection ended");
}
