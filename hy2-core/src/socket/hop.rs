//! Port hopping: a new local socket and a new destination port every so often.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::{SocketAddr, SocketAddrV6},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::task::AtomicWaker;
use hy2_proto::ports::PortUnion;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use rand::RngExt;
use thiserror::Error;
use tokio::{runtime::Handle, sync::Notify, task::AbortHandle};

use super::{
    factory::SocketFactory,
    obfs::Obfuscation,
    options::{GrantedBuffers, SocketOptions},
    poller::{Writable, WritablePoller},
    stats::SocketStats,
    udp::UdpSocket,
};

/// Shortest time between two hops a user may ask for (reference: 5 s).
pub const MIN_HOP_INTERVAL: Duration = Duration::from_secs(5);
/// Time between two hops when nothing is said (reference: 30 s).
pub const DEFAULT_HOP_INTERVAL: Duration = Duration::from_secs(30);

/// Where and how often a client hops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HopConfig {
    ports: PortUnion,
    interval: HopInterval,
}

/// Time between two hops: fixed, or drawn anew from a range each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HopInterval {
    min: Duration,
    max: Duration,
}

/// Why a [`HopConfig`] cannot be made.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HopConfigError {
    /// There is no port to hop to.
    #[error("no port to hop to")]
    NoPorts,
    /// An interval is below [`MIN_HOP_INTERVAL`].
    #[error("hop interval of {0:?} is below {MIN_HOP_INTERVAL:?}")]
    TooShort(Duration),
    /// The smaller bound of the interval is above the larger one.
    #[error("hop interval {min:?}..{max:?} is not in order")]
    OutOfOrder {
        /// The smaller bound given.
        min: Duration,
        /// The larger bound given.
        max: Duration,
    },
}

impl HopConfig {
    /// Hops among `ports`, each as likely as any other but port 0, to which nothing can be
    /// sent.
    ///
    /// # Errors
    ///
    /// [`HopConfigError::NoPorts`] if port 0 is the only one.
    pub fn new(ports: PortUnion, interval: HopInterval) -> Result<Self, HopConfigError> {
        if ports.single() == Some(0) {
            return Err(HopConfigError::NoPorts);
        }
        Ok(Self { ports, interval })
    }

    /// Draws a port, another than `current` unless there is no other.
    fn pick(&self, current: Option<u16>) -> Option<u16> {
        let count = self.ports.count();
        let start = rand::rng().random_range(0..count);
        (start..count)
            .chain(0..start)
            .filter_map(|index| self.ports.get(index))
            .find(|port| *port != 0 && Some(*port) != current)
            .or(current)
    }
}

impl HopInterval {
    /// Hops every `interval`.
    ///
    /// # Errors
    ///
    /// [`HopConfigError::TooShort`].
    pub fn fixed(interval: Duration) -> Result<Self, HopConfigError> {
        Self::random(interval, interval)
    }

    /// Hops after a time drawn from `min..=max`.
    ///
    /// # Errors
    ///
    /// [`HopConfigError::TooShort`] or [`HopConfigError::OutOfOrder`].
    pub fn random(min: Duration, max: Duration) -> Result<Self, HopConfigError> {
        if min > max {
            return Err(HopConfigError::OutOfOrder { min, max });
        }
        if min < MIN_HOP_INTERVAL {
            return Err(HopConfigError::TooShort(min));
        }
        Ok(Self { min, max })
    }

    /// Any interval, for tests that cannot wait for five seconds.
    #[doc(hidden)]
    #[must_use]
    pub fn unchecked(min: Duration, max: Duration) -> Self {
        Self { min, max }
    }

    fn pick(self) -> Duration {
        rand::rng().random_range(self.min..=self.max)
    }
}

impl Default for HopInterval {
    fn default() -> Self {
        Self {
            min: DEFAULT_HOP_INTERVAL,
            max: DEFAULT_HOP_INTERVAL,
        }
    }
}

/// A client socket that hops.
///
/// quinn sees one constant remote address; the real one is put in on the way out and taken
/// out on the way in. The socket before the current one is read until the next hop, because
/// the server answers to it until it hears from the new one. There is no queue: both are
/// read directly.
pub(super) struct HopSocket {
    shared: Arc<Shared>,
    timer: AbortHandle,
}

pub(super) struct Shared {
    /// The server as configured; the port changes with each hop.
    server: SocketAddr,
    /// The remote address quinn was given.
    remote: SocketAddr,
    factory: Arc<dyn SocketFactory>,
    obfs: Obfuscation,
    options: SocketOptions,
    config: HopConfig,
    stats: Arc<SocketStats>,
    links: ArcSwap<Links>,
    /// Tells pollers that wait on a socket of the past.
    hopped: Notify,
    /// Whoever reads, to begin reading the new socket.
    reader: AtomicWaker,
    /// Which of the two sockets is read first; it alternates, so that a busy one does not
    /// silence the other.
    previous_first: AtomicBool,
    /// quinn sizes its buffers once, from the first socket.
    receive_segments: usize,
}

struct Links {
    current: Arc<UdpSocket>,
    destination: SocketAddr,
    previous: Option<Arc<UdpSocket>>,
}

impl HopSocket {
    /// Opens the first socket and starts to hop.
    ///
    /// # Errors
    ///
    /// Outside a tokio runtime, or when the first socket cannot be opened.
    pub(super) fn new(
        server: SocketAddr,
        config: HopConfig,
        factory: Arc<dyn SocketFactory>,
        obfs: &Obfuscation,
        options: &SocketOptions,
        stats: Arc<SocketStats>,
    ) -> io::Result<Arc<Self>> {
        let runtime = Handle::try_current().map_err(io::Error::other)?;
        let current = open(&*factory, server, obfs, options, &stats)?;
        let destination = config.destination(server, &current, None)?;
        let shared = Arc::new(Shared {
            server,
            remote: as_seen_by(&current, server)?,
            factory,
            obfs: obfs.clone(),
            options: options.clone(),
            config,
            stats,
            receive_segments: current.max_receive_segments(),
            links: ArcSwap::from_pointee(Links {
                current,
                destination,
                previous: None,
            }),
            hopped: Notify::new(),
            reader: AtomicWaker::new(),
            previous_first: AtomicBool::new(false),
        });
        // Owned by the socket that is returned, which ends it when dropped.
        let timer = runtime.spawn(hop_forever(shared.clone())).abort_handle();
        Ok(Arc::new(Self { shared, timer }))
    }

    /// Returns the kernel buffers of the current socket.
    pub(super) fn buffers(&self) -> GrantedBuffers {
        self.shared.links.load().current.buffers()
    }
}

impl HopConfig {
    fn destination(
        &self,
        server: SocketAddr,
        socket: &UdpSocket,
        current: Option<u16>,
    ) -> io::Result<SocketAddr> {
        let mut destination = as_seen_by(socket, server)?;
        destination.set_port(self.pick(current).unwrap_or_else(|| server.port()));
        Ok(destination)
    }
}

impl Drop for HopSocket {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

impl fmt::Debug for HopSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let links = self.shared.links.load();
        f.debug_struct("HopSocket")
            .field("current", &links.current)
            .field("destination", &links.destination)
            .finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for HopSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(WritablePoller::new(self.shared.clone()))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let links = self.shared.links.load();
        links.current.try_send(&Transmit {
            destination: links.destination,
            // Each socket has an address of its own.
            src_ip: None,
            ..transmit.clone()
        })
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
        self.shared.links.load().current.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.shared.links.load().current.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.shared.receive_segments
    }

    fn may_fragment(&self) -> bool {
        self.shared.links.load().current.may_fragment()
    }
}

impl Shared {
    /// Replaces the current socket and destination; on failure both stay.
    fn hop(&self) -> io::Result<()> {
        let old = self.links.load_full();
        let current = open(
            &*self.factory,
            self.server,
            &self.obfs,
            &self.options,
            &self.stats,
        )?;
        let port = old.destination.port();
        let destination = self.config.destination(self.server, &current, Some(port))?;
        tracing::debug!(port = destination.port(), "hop");
        self.links.store(Arc::new(Links {
            current,
            destination,
            previous: Some(old.current.clone()),
        }));
        old.current.flush();
        self.stats.hopped();
        self.hopped.notify_waiters();
        self.reader.wake();
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        // Before the sockets are looked up, so that no hop goes unnoticed.
        self.reader.register(cx.waker());
        let links = self.links.load();
        let (mut first, mut second) = (Some(&links.current), links.previous.as_ref());
        if second.is_some() && self.previous_first.fetch_xor(true, Relaxed) {
            std::mem::swap(&mut first, &mut second);
        }
        for socket in [first, second].into_iter().flatten() {
            match socket.poll_recv(cx, bufs, meta) {
                Poll::Ready(Ok(count)) => {
                    for meta in &mut meta[..count] {
                        meta.addr = self.remote;
                    }
                    return Poll::Ready(Ok(count));
                }
                // quinn would give the endpoint up, while the next hop brings a new socket.
                Poll::Ready(Err(err)) => {
                    tracing::debug!(error = %err, "a socket cannot be read; waiting for a hop");
                }
                Poll::Pending => {}
            }
        }
        Poll::Pending
    }
}

impl Writable for Shared {
    fn is_writable(&self) -> bool {
        self.links.load().current.is_writable()
    }

    async fn writable(self: Arc<Self>) -> io::Result<()> {
        loop {
            // Before the socket is looked up, so that no hop goes unnoticed.
            let hopped = self.hopped.notified();
            let current = self.links.load().current.clone();
            tokio::select! {
                // Both arms only wait, so either may be dropped.
                result = current.writable() => return result,
                () = hopped => {}
            }
        }
    }
}

async fn hop_forever(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(shared.config.interval.pick()).await;
        if let Err(err) = shared.hop() {
            shared.stats.hop_failed();
            tracing::debug!(error = %err, "cannot hop; keeping the socket");
        }
    }
}

fn open(
    factory: &dyn SocketFactory,
    server: SocketAddr,
    obfs: &Obfuscation,
    options: &SocketOptions,
    stats: &Arc<SocketStats>,
) -> io::Result<Arc<UdpSocket>> {
    UdpSocket::new(factory.open(server)?, obfs, options, stats.clone(), 1)
}

/// Returns `addr` in the form that `socket` sends to: an IPv6 socket reaches IPv4 by mapped
/// addresses, and quinn maps what it is given in the same way.
fn as_seen_by(socket: &UdpSocket, addr: SocketAddr) -> io::Result<SocketAddr> {
    Ok(match addr {
        SocketAddr::V4(v4) if socket.local_addr()?.is_ipv6() => {
            SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
        }
        addr => addr,
    })
}

#[cfg(test)]
mod tests;
