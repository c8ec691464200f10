//! A UDP relay between real sockets.
//!
//! Clients send to one address; each client address gets an upstream socket of its own, so the server
//! sees one address per client address, as behind a NAT, and a client that moves is seen to move.
//!
//! One thread per socket reads and stamps the time; one thread decides by the model and sends when a
//! datagram is due. Waiting is the channel's, whose timeout is as fine as the kernel's timers (tens of
//! microseconds). Real sockets hand over single datagrams here (no GRO is asked for), so nothing has to be
//! split.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde::Serialize;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{
    memory::Direction,
    model::{Counters, Link, LinkConfig},
};

/// Socket buffers asked for; what the kernel grants is in [`Relay::granted_buffers`].
const SOCKET_BUFFER: usize = 4 << 20;

/// Client addresses served at once. The one that was silent for longest makes room.
const MAX_CLIENTS: usize = 1024;

/// How soon a reader notices that the relay stops.
const STOP_CHECK: Duration = Duration::from_millis(50);

/// What to relay, and how badly.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// Where clients send to; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Where the server is.
    pub target: SocketAddr,
    /// From clients to the server.
    pub up: LinkConfig,
    /// From the server to clients.
    pub down: LinkConfig,
    /// What all random decisions follow from. The times come from the real clock, so two runs with
    /// one seed lose the same datagrams only if they are offered the same ones.
    pub seed: u64,
}

/// What happened in both directions, and how well the relay kept its time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RelayReport {
    /// From clients to the server.
    pub up: Counters,
    /// From the server to clients.
    pub down: Counters,
    /// Datagrams that the kernel did not take when they were due.
    pub send_errors: u64,
    /// Datagrams sent more than a millisecond after they were due: the machine was too busy.
    pub late_packets: u64,
}

/// A running relay; stops when dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    granted: [usize; 2],
    shared: Arc<Shared>,
    scheduler: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    start: Instant,
    stopped: AtomicBool,
    links: Mutex<[Link; 2]>,
    /// Without the counters, which are the links'.
    report: Mutex<RelayReport>,
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A datagram between its reader and the scheduler.
struct Received {
    at: u64,
    /// The client whose it is: sender upwards, receiver downwards.
    client: SocketAddr,
    direction: Direction,
    contents: Vec<u8>,
}

impl Relay {
    /// Binds and starts.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound or a thread cannot be started.
    pub fn start(config: &RelayConfig) -> io::Result<Self> {
        let socket = bind(config.listen)?;
        let address = socket.local_addr()?;
        let granted = [
            SockRef::from(&socket).recv_buffer_size()?,
            SockRef::from(&socket).send_buffer_size()?,
        ];
        let shared = Arc::new(Shared {
            start: Instant::now(),
            stopped: AtomicBool::new(false),
            links: Mutex::new([
                Link::new(config.up, config.seed),
                Link::new(config.down, config.seed.wrapping_add(1)),
            ]),
            report: Mutex::default(),
        });
        let (sender, receiver) = mpsc::channel();
        let socket = Arc::new(socket);
        let reader = spawn_reader(&shared, &socket, None, sender.clone())?;
        let mut scheduler = Scheduler {
            shared: Arc::clone(&shared),
            socket,
            target: config.target,
            clients: HashMap::new(),
            waiting: BinaryHeap::new(),
            sequence: 0,
            sender,
            readers: vec![reader],
        };
        let scheduler = std::thread::Builder::new()
            .name("link".into())
            .spawn(move || {
                scheduler.run(&receiver);
                for reader in scheduler.readers {
                    // A reader that panicked has printed why.
                    let _ = reader.join();
                }
            })?;
        Ok(Self {
            address,
            granted,
            shared,
            scheduler: Some(scheduler),
        })
    }

    /// The address that clients send to.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Receive and send buffer of the client-facing socket as the kernel reports them, in bytes.
    pub fn granted_buffers(&self) -> [usize; 2] {
        self.granted
    }

    /// What happened so far.
    pub fn report(&self) -> RelayReport {
        let [up, down] = self.shared.links.lock().each_ref().map(Link::counters);
        RelayReport {
            up,
            down,
            ..*self.shared.report.lock()
        }
    }

    /// Bytes offered at the entry of one direction per millisecond since the start.
    pub fn offered_per_ms(&self, direction: Direction) -> Vec<u32> {
        self.shared.links.lock()[direction as usize]
            .offered_per_ms()
            .to_vec()
    }

    /// Replaces the properties of one direction from now on.
    pub fn reconfigure(&self, direction: Direction, config: LinkConfig) {
        self.shared.links.lock()[direction as usize].reconfigure(config);
    }

    /// Stops and returns what happened. Datagrams under way are dropped.
    pub fn stop(mut self) -> RelayReport {
        self.halt();
        self.report()
    }

    fn halt(&mut self) {
        self.shared.stopped.store(true, Relaxed);
        if let Some(scheduler) = self.scheduler.take() {
            // A thread that panicked has printed why.
            let _ = scheduler.join();
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.halt();
    }
}

struct Scheduler {
    shared: Arc<Shared>,
    socket: Arc<UdpSocket>,
    target: SocketAddr,
    clients: HashMap<SocketAddr, Upstream>,
    waiting: BinaryHeap<Reverse<Due>>,
    sequence: u64,
    sender: Sender<Received>,
    readers: Vec<JoinHandle<()>>,
}

struct Upstream {
    socket: Arc<UdpSocket>,
    active: u64,
}

/// Ordered by time; the sequence number keeps datagrams of the same time in order.
struct Due {
    at: u64,
    sequence: u64,
    datagram: Arc<Received>,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

impl Scheduler {
    fn run(&mut self, receiver: &Receiver<Received>) {
        while !self.shared.stopped.load(Relaxed) {
            self.send_due();
            let now = self.shared.now();
            let wait = self.waiting.peek().map_or(STOP_CHECK, |Reverse(next)| {
                Duration::from_nanos(next.at.saturating_sub(now)).min(STOP_CHECK)
            });
            match receiver.recv_timeout(wait) {
                Ok(received) => {
                    self.accept(received);
                    // What came meanwhile costs no further wait, but must not delay what is due.
                    for received in receiver.try_iter().take(64) {
                        self.accept(received);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn accept(&mut self, received: Received) {
        let arrivals = {
            let mut links = self.shared.links.lock();
            links[received.direction as usize].offer(received.at, received.contents.len())
        };
        let datagram = Arc::new(received);
        for at in arrivals.into_iter().flatten() {
            self.sequence += 1;
            self.waiting.push(Reverse(Due {
                at,
                sequence: self.sequence,
                datagram: Arc::clone(&datagram),
            }));
        }
    }

    fn send_due(&mut self) {
        loop {
            let now = self.shared.now();
            let Some(Reverse(next)) = self.waiting.peek() else {
                return;
            };
            if next.at > now {
                return;
            }
            let late = now - next.at > 1_000_000;
            let datagram = Arc::clone(&next.datagram);
            self.waiting.pop();
            let sent = match datagram.direction {
                Direction::Up => self
                    .upstream(datagram.client, now)
                    .and_then(|socket| socket.send(&datagram.contents)),
                Direction::Down => self.socket.send_to(&datagram.contents, datagram.client),
            };
            let mut report = self.shared.report.lock();
            report.late_packets += u64::from(late);
            report.send_errors += u64::from(sent.is_err());
        }
    }

    /// The socket towards the server for one client, made when the client is new.
    fn upstream(&mut self, client: SocketAddr, now: u64) -> io::Result<Arc<UdpSocket>> {
        if let Some(upstream) = self.clients.get_mut(&client) {
            upstream.active = now;
            return Ok(Arc::clone(&upstream.socket));
        }
        if self.clients.len() >= MAX_CLIENTS {
            let silent = self.clients.iter().min_by_key(|(_, one)| one.active);
            if let Some((&silent, _)) = silent {
                // Its reader sees that it holds the last reference, and ends.
                self.clients.remove(&silent);
            }
        }
        let any = if self.target.is_ipv4() {
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
        } else {
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
        };
        let socket = bind(any)?;
        socket.connect(self.target)?;
        let socket = Arc::new(socket);
        self.readers.retain(|reader| !reader.is_finished());
        self.readers.push(spawn_reader(
            &self.shared,
            &socket,
            Some(client),
            self.sender.clone(),
        )?);
        let upstream = Upstream {
            socket: Arc::clone(&socket),
            active: now,
        };
        self.clients.insert(client, upstream);
        Ok(socket)
    }
}

/// Reads one socket; `client` is whose upstream socket it is, or none for the client-facing one.
fn spawn_reader(
    shared: &Arc<Shared>,
    socket: &Arc<UdpSocket>,
    client: Option<SocketAddr>,
    sender: Sender<Received>,
) -> io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    let socket = Arc::clone(socket);
    socket.set_read_timeout(Some(STOP_CHECK))?;
    std::thread::Builder::new()
        .name("link-reader".into())
        .spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !shared.stopped.load(Relaxed) {
                // An error is the time limit, or an ICMP answer to an earlier datagram.
                if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    let received = Received {
                        at: shared.now(),
                        client: client.unwrap_or(from),
                        direction: match client {
                            None => Direction::Up,
                            Some(_) => Direction::Down,
                        },
                        contents: buffer[..len].to_vec(),
                    };
                    if sender.send(received).is_err() {
                        return;
                    }
                } else if Arc::strong_count(&socket) == 1 {
                    return;
                }
            }
        })
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    // The kernel caps what is not allowed; the granted size is reported.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.bind(&address.into())?;
    Ok(socket.into())
}
