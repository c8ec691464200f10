//! Targets in memory: the server's outbound dials into this process, on tokio's clock.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use hy2_core::{
    Address, BoxFuture,
    outbound::{DialError, Outbound, TcpConnection, UdpAssociation},
};
use parking_lot::Mutex;
use tokio::{
    io::{DuplexStream, ReadBuf, duplex},
    sync::mpsc,
};

/// Bytes that a connection to an origin holds in each direction, like a small socket buffer.
pub(crate) const PIPE: usize = 256 << 10;

/// Datagrams that wait in an association, like a socket's receive buffer.
const DATAGRAMS: usize = 256;

/// All targets of one world.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origins(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    tcp: Mutex<HashMap<u16, mpsc::UnboundedSender<DuplexStream>>>,
    /// Where to feed datagrams for the client into, per association.
    udp: Mutex<Vec<mpsc::Sender<Vec<u8>>>>,
    udp_bytes: AtomicU64,
}

impl Origins {
    /// Listens for TCP on `port`; connections come out of the returned queue.
    pub(crate) fn listen(&self, port: u16) -> mpsc::UnboundedReceiver<DuplexStream> {
        let (sender, accepted) = mpsc::unbounded_channel();
        self.0.tcp.lock().insert(port, sender);
        accepted
    }

    /// Payload bytes of the datagrams that reached a target.
    pub(crate) fn udp_bytes(&self) -> u64 {
        self.0.udp_bytes.load(Relaxed)
    }

    /// Sends a datagram to the client through every association; what does not fit is lost.
    pub(crate) fn send_udp(&self, data: &[u8]) {
        for association in self.0.udp.lock().iter() {
            let _ = association.try_send(data.to_vec());
        }
    }
}

impl Outbound for Origins {
    fn tcp<'a>(
        &'a self,
        target: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn TcpConnection>, DialError>> {
        Box::pin(async move {
            let refused = || DialError::Refused(io::ErrorKind::ConnectionRefused.into());
            let listener = self.0.tcp.lock().get(&target.port).cloned();
            let (near, far) = duplex(PIPE);
            listener
                .and_then(|listener| listener.send(far).ok())
                .ok_or_else(refused)?;
            Ok(Box::new(near) as Box<dyn TcpConnection>)
        })
    }

    fn udp<'a>(
        &'a self,
        _first: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn UdpAssociation>, DialError>> {
        Box::pin(async move {
            let (feed, queue) = mpsc::channel(DATAGRAMS);
            self.0.udp.lock().push(feed);
            Ok(Box::new(Association {
                inner: Arc::clone(&self.0),
                queue: Mutex::new(queue),
            }) as Box<dyn UdpAssociation>)
        })
    }
}

struct Association {
    inner: Arc<Inner>,
    queue: Mutex<mpsc::Receiver<Vec<u8>>>,
}

impl UdpAssociation for Association {
    fn try_send_to(&self, data: &[u8], _destination: SocketAddr) -> io::Result<()> {
        self.inner.udp_bytes.fetch_add(data.len() as u64, Relaxed);
        Ok(())
    }

    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<SocketAddr>> {
        let Some(data) = ready!(self.queue.lock().poll_recv(cx)) else {
            return Poll::Pending;
        };
        buf.put_slice(&data[..data.len().min(buf.remaining())]);
        Poll::Ready(Ok(SocketAddr::from(([192, 0, 2, 1], 53))))
    }

    fn resolve<'a>(&'a self, target: &'a Address) -> BoxFuture<'a, Result<SocketAddr, DialError>> {
        Box::pin(async move { target.socket_addr().ok_or(DialError::Unresolvable(None)) })
    }

    fn resolve_now(&self, target: &Address) -> Option<Result<SocketAddr, DialError>> {
        target.socket_addr().map(Ok)
    }
}
