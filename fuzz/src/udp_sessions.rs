//! The UDP side of a server connection, with any interleaving of what the client sends, what
//! targets answer, failures and time. Nothing reaches a target or the client that was not sent,
//! limits hold at every moment, and at the end nothing is left.
//!
//! Planted bug: datagrams that the socket refused were counted.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    time::Duration,
};

use arbitrary::Unstructured;
use bytes::Bytes;
use hy2_core::{
    Address, BoxFuture,
    event::{EventSink, Peer},
    fuzzing::relay::{MAX_SESSIONS, Node, Sent, Surroundings, serve_queue},
    memory::MemoryBudget,
    meter::UserCounters,
    outbound::{DialError, Outbound, TcpConnection, UdpAssociation},
};
use hy2_proto::{
    frag::{Defragmenter, fragment},
    udp::{MAX_MESSAGE_LEN, UdpMessage},
};
use tokio::{io::ReadBuf, sync::mpsc, task, time};

use crate::{pattern, read, take};

/// Runs a program in virtual time.
pub fn target(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without drivers");
    runtime.block_on(program(data));
}

/// Where datagrams may go. What their ports stand for is in [`judge`] and [`Targets`].
const PLACES: [&str; 8] = [
    "192.0.2.1:53",
    "192.0.2.1:443",
    "[2001:db8::1]:53",
    "192.0.2.7:13",
    "192.0.2.9:99",
    "name.example:53",
    "denied.example:53",
    "missing.example:53",
];

/// What policy says of a destination: port 13 is refused, and names by what they say.
fn judge(target: &Address) -> Result<SocketAddr, DialError> {
    if let Some(literal) = target.socket_addr() {
        return if literal.port() == 13 {
            Err(DialError::Denied)
        } else {
            Ok(literal)
        };
    }
    match target.host.to_string().as_str() {
        "name.example" => Ok(([198, 51, 100, 1], target.port).into()),
        "denied.example" => Err(DialError::Denied),
        _ => Err(DialError::Unresolvable(None)),
    }
}

async fn program(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut world = World::start(&mut input);
    for _ in 0..150 {
        if input.is_empty() {
            break;
        }
        world.step(&mut input).await;
        world.check();
    }
    world.end().await;
}

struct World {
    targets: Arc<Mutex<Targets>>,
    counters: Arc<UserCounters>,
    memory: Arc<MemoryBudget>,
    to_client: Sent,
    max_datagram: Option<usize>,
    limit: usize,
    /// Gone once the connection is lost.
    from_client: Option<mpsc::UnboundedSender<Bytes>>,
    node: Node,
    serving: task::JoinHandle<()>,
    /// Messages that the client has sent and no target has seen.
    submitted: HashMap<(SocketAddr, Vec<u8>), usize>,
    /// Whole messages that came back to the client are put together here.
    joining: HashMap<u32, Defragmenter>,
    bytes_back: u64,
    next_packet: u16,
}

impl World {
    fn start(input: &mut Unstructured<'_>) -> Self {
        let targets: Arc<Mutex<Targets>> = Arc::default();
        let counters = Arc::new(UserCounters::new());
        let memory = MemoryBudget::new(1 << 20);
        let to_client = Sent::default();
        let max_datagram = match read::<u8>(input) % 8 {
            0 => None,
            1 => Some(20),
            2 => Some(100),
            _ => Some(1200),
        };
        let limit = 1 + usize::from(read::<u8>(input) % 8);
        let (from_client, node, serve) = serve_queue(Surroundings {
            outbound: Arc::new(Reach(Arc::clone(&targets))),
            events: Arc::new(Reach(Arc::clone(&targets))),
            counters: Arc::clone(&counters),
            memory: Arc::clone(&memory),
            sent: Arc::clone(&to_client),
            max_datagram,
            idle_timeout: Duration::from_secs(2 + u64::from(read::<u8>(input) % 20)),
            node_sessions: limit,
        });
        Self {
            targets,
            counters,
            memory,
            to_client,
            max_datagram,
            limit,
            from_client: Some(from_client),
            node,
            serving: task::spawn(serve),
            submitted: HashMap::new(),
            joining: HashMap::new(),
            bytes_back: 0,
            next_packet: 0,
        }
    }

    async fn step(&mut self, input: &mut Unstructured<'_>) {
        match read::<u8>(input) % 16 {
            0..=4 => {
                let (session, place) = (read::<u8>(input) % 10, read::<u8>(input));
                let len = 1 + usize::from(read::<u16>(input) % 1300);
                self.whole(session.into(), PLACES[usize::from(place) % 8], len)
                    .await;
            }
            5..=7 => {
                let (session, place) = (read::<u8>(input) % 10, read::<u8>(input));
                let len = 1 + usize::from(read::<u16>(input) % 6000);
                let max_size = 30 + usize::from(read::<u16>(input) % 1200);
                let missing = usize::from(read::<u8>(input));
                let address = PLACES[usize::from(place) % 8];
                self.in_fragments(session.into(), address, len, max_size, missing);
            }
            // A fragment of nothing.
            8 => {
                let stray = UdpMessage {
                    session_id: u32::from(read::<u8>(input) % 10),
                    packet_id: 0xff00 | u16::from(read::<u8>(input)),
                    frag_id: read::<u8>(input),
                    frag_count: read::<u8>(input).max(2),
                    address: PLACES[usize::from(read::<u8>(input)) % 8],
                    data: b"stray",
                };
                self.client_sends(&stray);
            }
            // Any bytes; those that happen to be a whole message count as one.
            9 => {
                let len = usize::from(read::<u8>(input));
                let datagram = Bytes::copy_from_slice(take(input, len));
                let message = UdpMessage::decode(&datagram).ok();
                if message.is_some_and(|message| message.is_fragment()) {
                    return;
                }
                if let Some(message) = message {
                    self.submit(message.address, message.data);
                }
                self.send(datagram);
            }
            10 | 11 => {
                let (at, source) = (read::<u8>(input), read::<u8>(input));
                let len = usize::from(read::<u16>(input) % 5000);
                let source = SocketAddr::from(([203, 0, 113, source % 3], 7));
                self.targets().answer(at, Ok((source, pattern(8, len))));
            }
            12 => {
                let at = read::<u8>(input);
                let kinds = [
                    io::ErrorKind::ConnectionRefused,
                    io::ErrorKind::NetworkUnreachable,
                    io::ErrorKind::BrokenPipe,
                    io::ErrorKind::OutOfMemory,
                ];
                let kind = kinds[usize::from(at) % kinds.len()];
                self.targets().answer(at / 4, Err(kind));
            }
            13 => {
                // Many sessions at once.
                let first = u32::from(read::<u16>(input));
                for session in first..first + 40 {
                    self.submit(PLACES[0], b"many");
                    let message = UdpMessage::whole(session, PLACES[0], b"many");
                    self.client_sends(&message);
                }
            }
            14 if read::<u8>(input) == 0 => self.from_client = None,
            _ => {
                let millis = u64::from(read::<u8>(input)) * 30;
                time::advance(Duration::from_millis(millis)).await;
            }
        }
        settle().await;
    }

    fn targets(&self) -> MutexGuard<'_, Targets> {
        lock(&self.targets)
    }

    /// A message that fits one datagram. One to a place that needs no look-up must go out at once
    /// where the session is open.
    async fn whole(&mut self, session: u32, address: &str, len: usize) {
        settle().await;
        let body = pattern(session.into(), len);
        let message = UdpMessage::whole(session, address, &body);
        let literal = address.parse::<SocketAddr>().ok();
        let before = self.targets().taken;
        let goes = literal.is_some_and(|to| to.port() != 13 && to.port() != 99)
            && self.from_client.is_some()
            && self.targets().reported.contains(&session);
        self.submit(address, &body);
        self.client_sends(&message);
        settle().await;
        // A session whose socket failed in the meantime is gone.
        if goes && self.targets().reported.contains(&session) {
            assert_eq!(self.targets().taken, before + 1, "not forwarded");
        }
    }

    fn in_fragments(
        &mut self,
        session: u32,
        address: &str,
        len: usize,
        max_size: usize,
        missing: usize,
    ) {
        // Numbers of their own, so that no two messages mix.
        self.next_packet = (self.next_packet + 1) % 0xff00;
        let body = pattern(u64::from(self.next_packet) << 8, len);
        let message = UdpMessage::whole(session, address, &body);
        let Ok(parts) = fragment(&message, max_size, self.next_packet) else {
            return;
        };
        let parts: Vec<_> = parts.collect();
        if missing >= parts.len() {
            self.submit(address, &body);
        }
        for (at, part) in parts.iter().enumerate().rev() {
            if at != missing {
                self.client_sends(part);
            }
        }
    }

    fn submit(&mut self, address: &str, data: &[u8]) {
        if let Some(Ok(destination)) = address.parse().ok().map(|address| judge(&address)) {
            let key = (destination, data.to_vec());
            *self.submitted.entry(key).or_default() += 1;
        }
    }

    fn client_sends(&self, message: &UdpMessage<'_>) {
        let mut datagram = Vec::new();
        message.encode(&mut datagram);
        self.send(datagram.into());
    }

    fn send(&self, datagram: Bytes) {
        if let Some(from_client) = &self.from_client {
            // An error is a server that has nothing left to serve.
            let _ = from_client.send(datagram);
        }
    }

    fn check(&mut self) {
        let mut targets = lock(&self.targets);
        for (destination, data) in targets.arrived.drain(..) {
            if data.chunks(5).all(|part| part == b"stray") {
                continue;
            }
            let left = self.submitted.get_mut(&(destination, data));
            let left = left.expect("nobody sent that");
            *left = left.checked_sub(1).expect("sent once, arrived twice");
        }
        for datagram in self.to_client.lock().drain(..) {
            assert!(Some(datagram.len()) <= self.max_datagram);
            let message = UdpMessage::decode(&datagram).expect("a message");
            let joining = self.joining.entry(message.session_id).or_default();
            let Some(whole) = joining.push(&message) else {
                continue;
            };
            assert!(targets.opened.contains(&whole.session_id));
            assert!(whole.data.len() < MAX_MESSAGE_LEN);
            assert_eq!(whole.data, pattern(8, whole.data.len()));
            let answered = (whole.address.parse().expect("a source"), whole.data.len());
            assert!(targets.answered.contains(&answered), "{answered:?}");
            self.bytes_back += whole.data.len() as u64;
        }
        assert!(self.memory.used() <= self.memory.limit());
        assert!(self.node.open() <= self.limit.min(MAX_SESSIONS));
        assert!(targets.associations.iter().filter(|one| one.alive).count() <= self.limit);
        assert!(targets.reported.len() <= self.limit);
        let traffic = self.counters.snapshot();
        assert_eq!(traffic.tx, targets.bytes);
        assert!(traffic.rx >= self.bytes_back);
        assert_eq!(traffic.udp_sessions as usize, targets.reported.len());
    }

    async fn end(mut self) {
        self.from_client = None;
        settle().await;
        self.check();
        (&mut self.serving).await.expect("no panic");
        settle().await;
        let targets = lock(&self.targets);
        assert!(targets.associations.iter().all(|one| !one.alive));
        assert!(targets.reported.is_empty(), "opened and never closed");
        assert_eq!(self.node.open(), 0);
        assert_eq!(self.memory.used(), 0);
        assert_eq!(self.counters.snapshot().udp_sessions, 0);
    }
}

/// Lets every task go on until all of them wait.
async fn settle() {
    for _ in 0..12 {
        task::yield_now().await;
    }
}

fn lock(targets: &Mutex<Targets>) -> MutexGuard<'_, Targets> {
    targets.lock().expect("nobody panics holding it")
}

/// All targets there are, and what was told about sessions.
#[derive(Debug, Default)]
struct Targets {
    associations: Vec<Socket>,
    arrived: Vec<(SocketAddr, Vec<u8>)>,
    /// How many arrived, and their bytes.
    taken: usize,
    bytes: u64,
    answered: HashSet<(SocketAddr, usize)>,
    /// Sessions that are open by the events, and all that ever were.
    reported: HashSet<u32>,
    opened: HashSet<u32>,
}

#[derive(Debug, Default)]
struct Socket {
    alive: bool,
    incoming: VecDeque<Result<(SocketAddr, Vec<u8>), io::ErrorKind>>,
    waker: Option<Waker>,
}

impl Targets {
    /// Lets one of the open sockets receive something.
    fn answer(&mut self, at: u8, what: Result<(SocketAddr, Vec<u8>), io::ErrorKind>) {
        let mut alive: Vec<_> = self.associations.iter_mut().filter(|it| it.alive).collect();
        if alive.is_empty() {
            return;
        }
        let at = usize::from(at) % alive.len();
        if let Ok((source, data)) = &what {
            self.answered.insert((*source, data.len()));
        }
        alive[at].incoming.push_back(what);
        if let Some(waker) = alive[at].waker.take() {
            waker.wake();
        }
    }
}

/// The outbound of this world, and the one who is told of its events.
struct Reach(Arc<Mutex<Targets>>);

impl Outbound for Reach {
    fn tcp<'a>(
        &'a self,
        _: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn TcpConnection>, DialError>> {
        unreachable!("UDP only")
    }

    fn udp<'a>(
        &'a self,
        first: &'a Address,
    ) -> BoxFuture<'a, Result<Box<dyn UdpAssociation>, DialError>> {
        Box::pin(async move {
            match first.port {
                443 => time::sleep(Duration::from_millis(100)).await,
                13 => return Err(DialError::Denied),
                _ => {}
            }
            let mut targets = lock(&self.0);
            targets.associations.push(Socket {
                alive: true,
                ..Socket::default()
            });
            Ok(Box::new(Association {
                at: targets.associations.len() - 1,
                targets: Arc::clone(&self.0),
            }) as Box<dyn UdpAssociation>)
        })
    }
}

impl EventSink for Reach {
    fn udp_opened(&self, _: &Peer, session: u32, target: &str) {
        assert!(target.parse::<Address>().is_ok());
        let mut targets = lock(&self.0);
        targets.opened.insert(session);
        assert!(targets.reported.insert(session), "opened twice");
    }

    fn udp_closed(&self, _: &Peer, session: u32) {
        let was_open = lock(&self.0).reported.remove(&session);
        assert!(was_open, "closed what was not open");
    }
}

struct Association {
    at: usize,
    targets: Arc<Mutex<Targets>>,
}

impl Drop for Association {
    fn drop(&mut self) {
        lock(&self.targets).associations[self.at].alive = false;
    }
}

impl UdpAssociation for Association {
    fn try_send_to(&self, data: &[u8], destination: SocketAddr) -> io::Result<()> {
        assert_ne!(destination.port(), 13, "policy was not asked");
        if destination.port() == 99 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut targets = lock(&self.targets);
        targets.arrived.push((destination, data.to_vec()));
        targets.taken += 1;
        targets.bytes += data.len() as u64;
        Ok(())
    }

    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<SocketAddr>> {
        let mut targets = lock(&self.targets);
        let socket = &mut targets.associations[self.at];
        match socket.incoming.pop_front() {
            Some(Ok((source, data))) => {
                let len = data.len().min(buf.remaining());
                buf.put_slice(&data[..len]);
                Poll::Ready(Ok(source))
            }
            Some(Err(kind)) => Poll::Ready(Err(kind.into())),
            None => {
                socket.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn resolve<'a>(&'a self, target: &'a Address) -> BoxFuture<'a, Result<SocketAddr, DialError>> {
        Box::pin(async move {
            time::sleep(Duration::from_millis(20)).await;
            judge(target)
        })
    }

    fn resolve_now(&self, target: &Address) -> Option<Result<SocketAddr, DialError>> {
        target.socket_addr().map(|_| judge(target))
    }
}
