//! The socket quinn sends and receives on: batched, obfuscated, never losing what it took.

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit, UdpSocketState},
};
use tokio::{io::Interest, runtime::Handle, sync::Notify, task::AbortHandle};

use super::{
    changeover::Spoken,
    obfs::Obfuscation,
    options::{GrantedBuffers, SocketOptions},
    outbox::{self, FULL_TRANSMIT, MAX_RUN_BYTES, MAX_RUN_DATAGRAMS, Outbox},
    poller::{Writable, WritablePoller},
    stats::SocketStats,
};

/// Failed reads in a row after which the socket is taken for broken.
const MAX_READ_ERRORS: usize = 16;

/// A UDP socket for quinn.
///
/// A transmit that is as large as quinn was asked for is held, because more are about to
/// follow, and leaves together with those in one system call: at the first transmit that is
/// not full, when no further full one fits, or when the flush task gets its turn, which is
/// after the tasks that were ready have had theirs. Everything else leaves at once. Order
/// per destination is kept.
///
/// What the kernel has no room for stays here and is sent when there is: by the flush task,
/// or by the next `try_send`, whichever comes first.
pub(super) struct UdpSocket {
    shared: Arc<Shared>,
    flusher: AbortHandle,
    buffers: GrantedBuffers,
}

pub(super) struct Shared {
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
    obfs: ArcSwap<Spoken>,
    stats: Arc<SocketStats>,
    /// Most datagrams in one send; only shrinks.
    segments: AtomicUsize,
    /// Datagrams per transmit offered to quinn while the socket is busy.
    offer: usize,
    /// Questions for the segment count that are still answered in full.
    busy: AtomicUsize,
    /// Long datagrams sent lately, less the short ones; while the socket is quiet.
    streak: AtomicUsize,
    lanes: Box<[Lane]>,
    /// Wakes the flush task.
    held: Notify,
}

/// The most datagrams that quinn puts into a transmit (`MAX_TRANSMIT_SEGMENTS` in its connection.rs).
const QUINN_TRANSMIT: usize = 10;

/// Datagrams per transmit offered to quinn while the socket is quiet. Each connection keeps a buffer of
/// as many packets as it was offered when it first had two to send at once, which is in its
/// handshake; with one it never grows.
const QUIET_TRANSMIT: usize = 1;

/// A datagram at least this long is probably one of many, in bytes: half of QUIC's smallest full packet.
/// Relayed UDP datagrams make packets of any length, acknowledgements are an eighth of this.
const LONG_DATAGRAM: usize = 600;

/// Long datagrams that show that the socket is busy; each short one counts against
/// [`SHORT_WEIGHT`] of them. A handshake, with the probes of the path's MTU behind it, has about
/// seven long ones and nearly as many short ones.
const BUSY_STREAK: usize = 12;
const SHORT_WEIGHT: usize = 3;

/// For how many more transmits the socket counts as busy after the last full one.
const BUSY_TRANSMITS: usize = 1024;

/// What waits for the destinations that share a hash. Lanes keep connections that send in
/// turn from ending each other's runs, and workers from waiting for each other's sends.
struct Lane {
    outbox: Mutex<Outbox>,
    /// The outbox is not empty and the flush task has been told.
    pending: AtomicBool,
}

impl UdpSocket {
    /// Takes over `socket`, with `lanes` independent send queues.
    ///
    /// # Errors
    ///
    /// Outside a tokio runtime, or when the socket cannot be set up.
    pub(super) fn new(
        socket: std::net::UdpSocket,
        obfs: &Obfuscation,
        options: &SocketOptions,
        stats: Arc<SocketStats>,
        lanes: usize,
    ) -> io::Result<Arc<Self>> {
        let runtime = Handle::try_current().map_err(io::Error::other)?;
        socket.set_nonblocking(true)?;
        let buffers = options.apply_buffers(&socket);
        let state = UdpSocketState::new((&socket).into())?;
        let segments = if !options.gso || state.max_gso_segments() == 1 {
            1
        } else if options.merge {
            state.max_gso_segments().min(MAX_RUN_DATAGRAMS)
        } else {
            state.max_gso_segments().min(QUINN_TRANSMIT)
        };
        let offer = if options.merge {
            FULL_TRANSMIT
        } else {
            QUINN_TRANSMIT
        };
        let shared = Arc::new(Shared {
            io: tokio::net::UdpSocket::from_std(socket)?,
            state,
            obfs: ArcSwap::from_pointee(Spoken::new(obfs)),
            stats,
            segments: AtomicUsize::new(segments),
            offer,
            busy: AtomicUsize::new(0),
            streak: AtomicUsize::new(0),
            lanes: (0..lanes.max(1)).map(|_| Lane::new()).collect(),
            held: Notify::new(),
        });
        // Owned by the socket that is returned, which ends it when dropped.
        let flusher = runtime.spawn(flush_held(shared.clone())).abort_handle();
        Ok(Arc::new(Self {
            shared,
            flusher,
            buffers,
        }))
    }

    /// Speaks `spoken` from the next datagram on, which loses fragments that wait for the rest.
    pub(super) fn speak(&self, spoken: Spoken) {
        self.shared.obfs.store(Arc::new(spoken));
    }

    /// Returns the obfuscation that `peer` is answered under.
    pub(super) fn towards(&self, peer: &SocketAddr) -> Obfuscation {
        self.shared.obfs.load().towards(peer).clone()
    }

    /// Returns the kernel buffers the socket has.
    pub(super) fn buffers(&self) -> GrantedBuffers {
        self.buffers
    }

    /// Makes tokio believe that the kernel's buffer is full, as a send that found it so does.
    #[cfg(test)]
    pub(super) fn block(&self) {
        let full = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        let _ = self.shared.io.try_io(Interest::WRITABLE, full);
        assert!(!self.is_writable());
    }

    /// Sends what is held, as far as the kernel has room; the flush task sees to the rest.
    pub(super) fn flush(&self) {
        if self.shared.flush_all().is_err() {
            self.shared.held.notify_one();
        }
    }
}

impl Writable for UdpSocket {
    fn is_writable(&self) -> bool {
        self.shared.io.try_io(Interest::WRITABLE, || Ok(())).is_ok()
    }

    async fn writable(self: Arc<Self>) -> io::Result<()> {
        self.shared.io.writable().await
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.flusher.abort();
        // The last packets of a connection, if the kernel takes them.
        let _ = self.shared.flush_all();
    }
}

impl fmt::Debug for UdpSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpSocket")
            .field("io", &self.shared.io)
            .field("obfs", &self.shared.obfs.load())
            .finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for UdpSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(WritablePoller::new(self))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.shared.note_load(transmit);
        self.shared.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.shared.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.shared.io.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        let segments = self.shared.segments.load(Relaxed);
        let busy = self.shared.busy.load(Relaxed);
        if busy == 0 {
            return segments.min(QUIET_TRANSMIT);
        }
        // A lost update makes it one send longer or shorter.
        self.shared.busy.store(busy - 1, Relaxed);
        segments.min(self.shared.offer)
    }

    fn max_receive_segments(&self) -> usize {
        // quinn sizes each buffer to this many of its largest datagrams, once. Obfuscated ones
        // are larger on the wire, so one is never enough, and the obfuscation may change.
        self.shared.state.gro_segments().max(2)
    }

    fn may_fragment(&self) -> bool {
        self.shared.state.may_fragment()
    }
}

impl Lane {
    fn new() -> Self {
        Self {
            outbox: Mutex::new(Outbox::new()),
            pending: AtomicBool::new(false),
        }
    }
}

impl Shared {
    /// Notices whether the socket carries bulk. Lost updates of other threads do not matter.
    fn note_load(&self, transmit: &Transmit<'_>) {
        if outbox::is_full(transmit) {
            self.busy.store(BUSY_TRANSMITS, Relaxed);
        } else if self.busy.load(Relaxed) == 0 {
            let streak = self.streak.load(Relaxed);
            let streak = if transmit.contents.len() < LONG_DATAGRAM {
                streak.saturating_sub(SHORT_WEIGHT)
            } else if streak < BUSY_STREAK {
                streak + 1
            } else {
                self.busy.store(BUSY_TRANSMITS, Relaxed);
                0
            };
            self.streak.store(streak, Relaxed);
        }
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let lane = self.lane(&transmit.destination);
        let spoken = self.obfs.load();
        let obfs = spoken.towards(&transmit.destination);
        let mut outbox = lane.outbox.lock();
        let hold = outbox::is_full(transmit)
            && self.segments.load(Relaxed) > QUINN_TRANSMIT
            && !obfs.splits(transmit.contents);

        if !outbox.is_empty() && !outbox.accepts(transmit, obfs) {
            self.flush(lane, &mut outbox)?;
        }
        if outbox.is_empty() && !hold && matches!(obfs, Obfuscation::Plain) {
            return self.send_now(lane, &mut outbox, transmit);
        }
        outbox.push(transmit, obfs);
        if !(hold && outbox.has_room()) {
            match self.flush(lane, &mut outbox) {
                Ok(()) => return Ok(()),
                // It is in our hands, so it counts as sent.
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                Err(err) => return Err(err),
            }
        }
        self.wake_flusher(lane);
        Ok(())
    }

    /// Sends from quinn's own buffer, without a copy: plain.
    fn send_now(
        &self,
        lane: &Lane,
        outbox: &mut Outbox,
        transmit: &Transmit<'_>,
    ) -> io::Result<()> {
        let mut rest = transmit.clone();
        loop {
            match self.send_some(&rest) {
                Ok(sent) if sent >= rest.contents.len() => return Ok(()),
                Ok(sent) => rest.contents = &rest.contents[sent..],
                Err(err) if rest.contents.len() == transmit.contents.len() => return Err(err),
                Err(_) => {
                    // quinn knows all or nothing, and part of it has left.
                    outbox.push(&rest, &Obfuscation::Plain);
                    self.wake_flusher(lane);
                    return Ok(());
                }
            }
        }
    }

    /// Sends everything in `outbox`, or fails with `WouldBlock` and keeps the rest.
    fn flush(&self, lane: &Lane, outbox: &mut Outbox) -> io::Result<()> {
        while let Some(front) = outbox.front() {
            let sent = self.send_some(&front)?;
            outbox.advance(sent);
        }
        lane.pending.store(false, Relaxed);
        Ok(())
    }

    fn flush_all(&self) -> io::Result<()> {
        let mut result = Ok(());
        for lane in &self.lanes {
            if lane.pending.load(Relaxed) {
                let flushed = self.flush(lane, &mut lane.outbox.lock());
                result = result.and(flushed);
            }
        }
        result
    }

    /// Hands the beginning of `transmit`, at best all of it, to the kernel and returns how
    /// many bytes are done with. That includes what the kernel refuses for good: such
    /// datagrams are lost, as the network may lose any.
    ///
    /// Only ever fails with `WouldBlock`.
    fn send_some(&self, transmit: &Transmit<'_>) -> io::Result<usize> {
        let segment = outbox::segment_size(transmit).max(1);
        let before = self.segments.load(Relaxed);
        let mut limit = before;
        loop {
            let most = limit.min(MAX_RUN_BYTES / segment).max(1);
            let len = transmit.contents.len().min(most * segment);
            let part = Transmit {
                contents: &transmit.contents[..len],
                ..transmit.clone()
            };
            let datagrams = len.div_ceil(segment);
            let result = self.io.try_io(Interest::WRITABLE, || {
                self.state.try_send((&self.io).into(), &part)
            });
            match result {
                Ok(()) => {
                    self.stats.sent(datagrams, len);
                    if limit < before {
                        self.narrow(before, limit);
                    }
                    return Ok(len);
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    self.stats.blocked();
                    return Err(err);
                }
                // Devices and drivers that cannot segment say so only here. Whether that
                // is what they say shows when the same bytes go in smaller sends.
                Err(err) if datagrams > 1 && refuses_segmentation(&err) => {
                    limit = if datagrams > QUINN_TRANSMIT {
                        QUINN_TRANSMIT
                    } else {
                        1
                    };
                }
                Err(err) => {
                    self.stats.failed(datagrams);
                    // A probe of the path MTU is allowed to be too long.
                    if !is_too_long(&err) {
                        tracing::debug!(error = %err, datagrams, "UDP send failed");
                    }
                    return Ok(len);
                }
            }
        }
    }

    fn narrow(&self, before: usize, limit: usize) {
        if self.segments.fetch_min(limit, Relaxed) == before {
            tracing::info!(
                datagrams_per_send = limit,
                "the system refused a wider send; segmentation offload is reduced"
            );
        }
    }

    fn wake_flusher(&self, lane: &Lane) {
        if !lane.pending.swap(true, Relaxed) {
            self.held.notify_one();
        }
    }

    fn lane(&self, destination: &SocketAddr) -> &Lane {
        if let [lane] = &*self.lanes {
            return lane;
        }
        let mut hasher = DefaultHasher::new();
        destination.hash(&mut hasher);
        &self.lanes[hasher.finish() as usize % self.lanes.len()]
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let spoken = self.obfs.load();
        if let Some(count) = spoken.take_ready(bufs, meta) {
            return Poll::Ready(Ok(count));
        }
        let mut errors = 0;
        loop {
            ready!(self.io.poll_recv_ready(cx))?;
            let mut last = None;
            let received = self.io.try_io(Interest::READABLE, || {
                let count = self.state.recv((&self.io).into(), bufs, meta)?;
                if count == bufs.len() {
                    return Ok(count);
                }
                // There was no more: the next datagram is an event of its own, and asking for it
                // before that would be a system call for nothing.
                last = Some(count);
                Err(io::ErrorKind::WouldBlock.into())
            });
            match last.map_or(received, Ok) {
                Ok(count) => {
                    let (datagrams, bytes) = totals(&meta[..count]);
                    self.stats.received(datagrams, bytes);
                    let dropped = spoken.decode(bufs, &mut meta[..count]);
                    self.stats.dropped(dropped);
                    return Poll::Ready(Ok(count));
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                // An error that waits on the socket tells of an earlier send, not of this
                // read, and quinn would give the whole endpoint up for it.
                Err(err) => {
                    self.stats.failed(1);
                    errors += 1;
                    if errors == MAX_READ_ERRORS {
                        return Poll::Ready(Err(err));
                    }
                }
            }
        }
    }
}

fn totals(meta: &[RecvMeta]) -> (usize, usize) {
    meta.iter().fold((0, 0), |(datagrams, bytes), meta| {
        let here = meta.len.div_ceil(meta.stride.max(1)).max(1);
        (datagrams + here, bytes + meta.len)
    })
}

/// Sends what [`Shared::try_send`] held, once the tasks that were ready have run.
async fn flush_held(shared: Arc<Shared>) {
    loop {
        shared.held.notified().await;
        // The connection that is sending gets another turn first, and may fill the run.
        tokio::task::yield_now().await;
        while shared.flush_all().is_err() {
            if shared.io.writable().await.is_err() {
                // The runtime is going away, and the socket with it.
                return;
            }
        }
    }
}

/// EIO and EINVAL are what Linux answers for offload that a device cannot do
/// (quinn#1190, solana#33347).
fn refuses_segmentation(err: &io::Error) -> bool {
    #[cfg(unix)]
    {
        matches!(err.raw_os_error(), Some(libc::EIO | libc::EINVAL))
    }
    #[cfg(not(unix))]
    {
        let _ = err;
        false
    }
}

fn is_too_long(err: &io::Error) -> bool {
    #[cfg(unix)]
    {
        err.raw_os_error() == Some(libc::EMSGSIZE)
    }
    #[cfg(not(unix))]
    {
        let _ = err;
        false
    }
}

#[cfg(test)]
mod tests;
