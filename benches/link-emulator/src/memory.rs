//! Sockets for quinn inside one process, joined by links, on tokio's clock.
//!
//! A [`Network`] holds endpoints (addresses) and paths (a link in each direction). A datagram leaves
//! through the upward link of its sender's path and enters through the downward link of its receiver's;
//! an endpoint without a path sits directly at the other side. So one server and any number of clients
//! are one endpoint without a path, and one with a path (own or shared) per client.
//!
//! Time is `tokio::time`, whose resolution is a millisecond: what arrives within the same millisecond is
//! received together. The links themselves compute in nanoseconds.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    fmt,
    future::Future,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{EcnCodepoint, RecvMeta, Transmit},
};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::model::{Counters, Link, LinkConfig};

/// Endpoints and the paths between them.
#[derive(Debug, Clone)]
pub struct Network(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    start: Instant,
    seed: u64,
    paths: Vec<[Link; 2]>,
    inboxes: Vec<Inbox>,
    /// Which inbox an address leads to, and through which path.
    routes: HashMap<SocketAddr, Route>,
    sequence: u64,
}

#[derive(Debug, Clone, Copy)]
struct Route {
    inbox: usize,
    path: Option<usize>,
}

#[derive(Debug, Default)]
struct Inbox {
    /// Earliest first; the sequence number keeps datagrams of the same time in order.
    waiting: BinaryHeap<Reverse<Datagram>>,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Datagram {
    at: u64,
    sequence: u64,
    from: SocketAddr,
    to: SocketAddr,
    ecn: Option<EcnCodepoint>,
    contents: Bytes,
}

impl PartialEq for Datagram {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}
impl Eq for Datagram {}
impl PartialOrd for Datagram {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Datagram {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// A pair of links between an endpoint and the rest of the network.
#[derive(Debug, Clone)]
pub struct Path {
    network: Network,
    index: usize,
}

/// The direction of a [`Path`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the endpoint that owns the path into the network.
    Up,
    /// From the network to that endpoint.
    Down,
}

impl Network {
    /// An empty network whose links draw from `seed`. Time zero is the moment of the call.
    ///
    /// # Panics
    /// Outside a tokio runtime with a paused or running clock, as `tokio::time::Instant` does.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            start: Instant::now(),
            seed,
            paths: Vec::new(),
            inboxes: Vec::new(),
            routes: HashMap::new(),
            sequence: 0,
        })))
    }

    /// Adds a path with the given properties in each direction.
    pub fn path(&self, up: LinkConfig, down: LinkConfig) -> Path {
        let mut state = self.0.lock();
        let index = state.paths.len();
        // Any fixed mixing will do: the links of one network must not share a sequence.
        let seed = state.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ (index as u64 * 2);
        state
            .paths
            .push([Link::new(up, seed), Link::new(down, seed.wrapping_add(1))]);
        Path {
            network: self.clone(),
            index,
        }
    }

    /// Adds an endpoint at `address`, behind `path` if there is one.
    pub fn socket(&self, address: SocketAddr, path: Option<&Path>) -> Arc<MemorySocket> {
        let mut state = self.0.lock();
        let inbox = state.inboxes.len();
        state.inboxes.push(Inbox::default());
        let path = path.map(|p| p.index);
        state.routes.insert(address, Route { inbox, path });
        Arc::new(MemorySocket {
            network: self.clone(),
            inbox,
            path,
            address: Mutex::new(address),
            sleep: Mutex::new(Box::pin(sleep_until(state.start))),
        })
    }

    /// Time since the network was made.
    pub fn elapsed(&self) -> Duration {
        self.0.lock().start.elapsed()
    }
}

impl Path {
    /// The counters of one direction.
    pub fn counters(&self, direction: Direction) -> Counters {
        self.with(direction, |link| link.counters())
    }

    /// Bytes offered at the entry of one direction per millisecond since the network was made.
    pub fn offered_per_ms(&self, direction: Direction) -> Vec<u32> {
        self.with(direction, |link| link.offered_per_ms().to_vec())
    }

    /// Replaces the properties of one direction from now on.
    pub fn reconfigure(&self, direction: Direction, config: LinkConfig) {
        self.with(direction, |link| link.reconfigure(config));
    }

    fn with<T>(&self, direction: Direction, f: impl FnOnce(&mut Link) -> T) -> T {
        f(&mut self.network.0.lock().paths[self.index][direction as usize])
    }
}

impl State {
    fn send(&mut self, from: SocketAddr, up: Option<usize>, transmit: &Transmit<'_>) {
        let now = (Instant::now() - self.start).as_nanos() as u64;
        let contents = Bytes::copy_from_slice(transmit.contents);
        let segment = transmit.segment_size.unwrap_or(contents.len()).max(1);
        let mut offset = 0;
        while offset < contents.len() {
            let end = (offset + segment).min(contents.len());
            let one = contents.slice(offset..end);
            offset = end;
            self.send_one(now, from, transmit.destination, up, transmit.ecn, one);
        }
    }

    fn send_one(
        &mut self,
        now: u64,
        from: SocketAddr,
        to: SocketAddr,
        up: Option<usize>,
        ecn: Option<EcnCodepoint>,
        contents: Bytes,
    ) {
        let first = match up {
            Some(path) => self.paths[path][Direction::Up as usize].offer(now, contents.len()),
            None => [Some(now), None],
        };
        for at in first.into_iter().flatten() {
            // An address that nobody has is a black hole, as on a real network.
            let Some(&route) = self.routes.get(&to) else {
                continue;
            };
            let second = match route.path {
                Some(path) => self.paths[path][Direction::Down as usize].offer(at, contents.len()),
                None => [Some(at), None],
            };
            for at in second.into_iter().flatten() {
                self.sequence += 1;
                let inbox = &mut self.inboxes[route.inbox];
                let is_next = inbox.waiting.peek().is_none_or(|next| at < next.0.at);
                inbox.waiting.push(Reverse(Datagram {
                    at,
                    sequence: self.sequence,
                    from,
                    to,
                    ecn,
                    contents: contents.clone(),
                }));
                if is_next && let Some(waker) = inbox.waker.take() {
                    waker.wake();
                }
            }
        }
    }
}

/// One endpoint of a [`Network`], as quinn wants its sockets.
///
/// It advertises several segments in both directions, like a kernel with GSO and GRO.
pub struct MemorySocket {
    network: Network,
    inbox: usize,
    path: Option<usize>,
    address: Mutex<SocketAddr>,
    sleep: Mutex<Pin<Box<Sleep>>>,
}

impl MemorySocket {
    /// Sends from `address` from now on, as after a new lease, a NAT rebinding or a change of network.
    ///
    /// Datagrams to the former address still arrive: nothing is lost by the change itself.
    pub fn set_address(&self, address: SocketAddr) {
        *self.address.lock() = address;
        let route = Route {
            inbox: self.inbox,
            path: self.path,
        };
        self.network.0.lock().routes.insert(address, route);
    }

    /// Makes a former address unreachable.
    pub fn forget_address(&self, address: SocketAddr) {
        self.network.0.lock().routes.remove(&address);
    }
}

impl fmt::Debug for MemorySocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemorySocket")
            .field("address", &*self.address.lock())
            .finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for MemorySocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let from = *self.address.lock();
        self.network.0.lock().send(from, self.path, transmit);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.network.0.lock();
        let start = state.start;
        let now = (Instant::now() - start).as_nanos() as u64;
        let inbox = &mut state.inboxes[self.inbox];
        let mut filled = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta.iter_mut()) {
            if !receive_train(&mut inbox.waiting, now, buf, meta) {
                break;
            }
            filled += 1;
        }
        if filled > 0 {
            return Poll::Ready(Ok(filled));
        }
        inbox.waker = Some(cx.waker().clone());
        if let Some(next) = inbox.waiting.peek() {
            let at = start + Duration::from_nanos(next.0.at);
            let mut sleep = self.sleep.lock();
            sleep.as_mut().reset(at);
            if sleep.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(*self.address.lock())
    }

    fn may_fragment(&self) -> bool {
        false
    }

    fn max_transmit_segments(&self) -> usize {
        SEGMENTS
    }

    fn max_receive_segments(&self) -> usize {
        SEGMENTS
    }
}

/// Moves the datagrams that are due, of one sender and size, into one buffer, as a kernel with GRO does.
fn receive_train(
    waiting: &mut BinaryHeap<Reverse<Datagram>>,
    now: u64,
    buf: &mut [u8],
    meta: &mut RecvMeta,
) -> bool {
    let due = |next: &Reverse<Datagram>| next.0.at <= now;
    if !waiting.peek().is_some_and(due) {
        return false;
    }
    let Some(Reverse(first)) = waiting.pop() else {
        return false;
    };
    // A datagram longer than the buffer is cut, like the kernel does with one that the application
    // did not make room for.
    let stride = first.contents.len().min(buf.len());
    buf[..stride].copy_from_slice(&first.contents[..stride]);
    let mut len = stride;
    let mut segments = 1;
    while segments < SEGMENTS
        && let Some(next) = waiting.peek().filter(|next| due(next))
        && (next.0.from, next.0.to, next.0.ecn) == (first.from, first.to, first.ecn)
        && next.0.contents.len() <= stride
        && len + next.0.contents.len() <= buf.len()
    {
        let Some(Reverse(next)) = waiting.pop() else {
            break;
        };
        buf[len..len + next.contents.len()].copy_from_slice(&next.contents);
        len += next.contents.len();
        segments += 1;
        if next.contents.len() < stride {
            break;
        }
    }
    *meta = RecvMeta {
        addr: first.from,
        len,
        stride,
        ecn: first.ecn,
        dst_ip: Some(first.to.ip()),
    };
    true
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What Linux offers is 64; more than quinn asks for (10) is enough.
const SEGMENTS: usize = 32;
