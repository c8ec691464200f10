//! UDP datagrams of one connection on the server: sessions, destinations, the way back.

use std::{
    any::Any,
    cell::Cell,
    collections::{
        HashMap,
        hash_map::Entry::{Occupied, Vacant},
    },
    future::{poll_fn, ready},
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use hy2_proto::{
    address::{Address, AddressRef},
    frag::{Defragmenter, fragment},
    udp::{MAX_MESSAGE_LEN, UdpMessage},
};
use parking_lot::Mutex;
use quinn::{Connection, ConnectionError, SendDatagramError};
use tokio::{
    io::ReadBuf,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;

use super::{activity::Activity, limiter::RateLimiter, share::UdpShare};
use crate::{
    event::{EventSink, Peer},
    memory::{MemoryBudget, Reservation},
    meter::{Presence, UserCounters},
    outbound::{DialError, Lookups, Outbound, UdpAssociation},
};

/// UDP sessions of one connection.
pub(crate) const MAX_SESSIONS: usize = 1024;

/// Destinations remembered per session; also those that were refused.
const MAX_DESTINATIONS: usize = 256;

/// Datagrams of a session that wait for its socket or for a name to resolve; more are dropped.
const MAX_WAITING: usize = 32;

/// Memory for what waits and for remembered destinations, of all sessions of a connection, in
/// bytes. An honest client needs a few kilobytes of it.
pub(crate) const MEMORY: usize = 4 << 20;

/// What a datagram that waits, or a remembered destination, costs beside its bytes.
const ITEM_OVERHEAD: usize = 128;

/// Unfinished fragments of all sessions of a connection, in bytes.
const MAX_FRAGMENTS: usize = 1 << 20;

/// Datagrams handled before other tasks get a turn.
pub(crate) const BATCH: usize = 64;

/// The datagrams of a connection.
pub(crate) trait Datagrams: Send + Sync + 'static {
    /// Waits for the next one.
    ///
    /// # Cancel safety
    ///
    /// Must be cancel safe: a dropped future loses no datagram.
    fn read_datagram(&self) -> impl Future<Output = Result<Bytes, ConnectionError>> + Send;

    /// Returns the largest that can be sent, in bytes; `None` when none can.
    fn max_datagram_size(&self) -> Option<usize>;

    /// Sends one.
    fn send_datagram(&self, data: Bytes) -> Result<(), SendDatagramError>;
}

impl Datagrams for Connection {
    fn read_datagram(&self) -> impl Future<Output = Result<Bytes, ConnectionError>> + Send {
        self.read_datagram()
    }

    fn max_datagram_size(&self) -> Option<usize> {
        self.max_datagram_size()
    }

    fn send_datagram(&self, data: Bytes) -> Result<(), SendDatagramError> {
        self.send_datagram(data)
    }
}

/// What a connection's UDP side needs of its surroundings.
pub(crate) struct UdpContext<C = Connection> {
    pub(crate) connection: C,
    pub(crate) outbound: Arc<dyn Outbound>,
    pub(crate) events: Arc<dyn EventSink>,
    pub(crate) peer: Peer,
    pub(crate) counters: Arc<UserCounters>,
    pub(crate) tx_limit: Arc<RateLimiter>,
    pub(crate) rx_limit: Arc<RateLimiter>,
    pub(crate) lookups: Lookups,
    pub(crate) share: Arc<UdpShare>,
    pub(crate) idle_timeout: Duration,
    /// Must outlive the sessions.
    pub(crate) _owner: Arc<dyn Any + Send + Sync>,
    /// Counts what waits for an answer, at most [`MEMORY`].
    pub(crate) memory: Arc<MemoryBudget>,
    /// Sessions of all connections.
    pub(crate) node_sessions: Arc<NodeSessions>,
    /// The log has said that sessions are refused.
    pub(crate) refusal_said: AtomicBool,
}

impl<C> UdpContext<C> {
    /// Counts a session that finds no room, and says so once a connection.
    fn refuse_session(&self, limit_of: &'static str) {
        metrics::counter!("hy2_udp_sessions_refused_total").increment(1);
        if !self.refusal_said.swap(true, Relaxed) {
            tracing::warn!(
                conn = %self.peer.connection,
                user = %self.peer.user,
                limit_of,
                "too many UDP sessions, the next ones wait until some have been idle"
            );
        }
    }
}

/// Counts the UDP sessions of a server, each of which needs a socket.
#[derive(Debug)]
pub(crate) struct NodeSessions {
    open: AtomicUsize,
    limit: usize,
}

impl NodeSessions {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            open: AtomicUsize::new(0),
            limit,
        })
    }

    fn enter(self: &Arc<Self>) -> Option<NodeSession> {
        self.open
            .fetch_update(Relaxed, Relaxed, |open| {
                (open < self.limit).then_some(open + 1)
            })
            .ok()?;
        Some(NodeSession(Arc::clone(self)))
    }
}

/// One of [`NodeSessions`], for as long as it lives.
struct NodeSession(Arc<NodeSessions>);

impl Drop for NodeSession {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// How often unfinished fragments are looked at, while there are any.
const SWEEP: Duration = Duration::from_secs(1);

/// Serves the datagrams of one connection, beginning with `first`, until no session is open and no
/// datagram waits, or until the connection is lost.
pub(crate) async fn serve<C: Datagrams>(context: UdpContext<C>, first: Bytes) {
    let context = Arc::new(context);
    let mut sessions = Sessions {
        context: Arc::clone(&context),
        open: HashMap::default(),
        tasks: JoinSet::new(),
        fragment_bytes: 0,
    };
    sessions.accept(&first);
    let mut sweep = pin!(sleep_until(Instant::now()));
    let mut sweeping = false;
    let mut handled = 0;
    loop {
        if !std::mem::replace(&mut sweeping, sessions.fragment_bytes > 0) && sweeping {
            sweep.as_mut().reset(Instant::now() + SWEEP);
        }
        // Each arm is cancel safe: a datagram is only taken when returned, a finished task is
        // only removed when returned.
        tokio::select! {
            biased;
            datagram = context.connection.read_datagram() => match datagram {
                Ok(datagram) => sessions.accept(&datagram),
                Err(_) => return,
            },
            () = ready(()), if sessions.open.is_empty() => return,
            Some(ended) = sessions.tasks.join_next() => match ended {
                Ok(id) => sessions.remove(id),
                Err(error) => {
                    metrics::counter!("hy2_panics_total").increment(1);
                    tracing::error!(%error, "UDP session task failed");
                    sessions.remove_ended();
                }
            },
            () = &mut sweep, if sweeping => {
                sessions.expire_fragments(Instant::now());
                sweeping = false;
            }
        }
        handled += 1;
        if handled % BATCH == 0 {
            tokio::task::yield_now().await;
        }
    }
}

struct Sessions<C> {
    context: Arc<UdpContext<C>>,
    open: HashMap<u32, Entry, ahash::RandomState>,
    tasks: JoinSet<u32>,
    /// What the unfinished fragments of all sessions hold.
    fragment_bytes: usize,
}

struct Entry {
    session: Arc<Session>,
    waiting: mpsc::Sender<Waiting>,
    fragments: Defragmenter,
    /// The latest destination, so that a flow to one target costs one string comparison.
    latest: Option<(Box<str>, SocketAddr)>,
}

/// A datagram whose destination is not known yet.
struct Waiting {
    target: Address,
    text: Box<str>,
    data: Bytes,
    _memory: Reservation,
}

/// The part of a session that both directions use.
struct Session {
    id: u32,
    activity: Activity,
    association: OnceLock<Box<dyn UdpAssociation>>,
    destinations: Mutex<Destinations>,
    _place: NodeSession,
}

/// What destinations mean; `None` is refused.
struct Destinations {
    known: HashMap<Box<str>, Option<SocketAddr>>,
    memory: Reservation,
}

impl Session {
    /// Remembers what a destination means; `None` is refused.
    fn remember(&self, text: &str, destination: Option<SocketAddr>) {
        let mut destinations = self.destinations.lock();
        let Destinations { known, memory } = &mut *destinations;
        let cost = text.len() + ITEM_OVERHEAD;
        if known.len() >= MAX_DESTINATIONS || !memory.try_grow(cost) {
            known.clear();
            memory.shrink(usize::MAX);
            if !memory.try_grow(cost) {
                return;
            }
        }
        known.insert(text.into(), destination);
    }
}

impl<C: Datagrams> Sessions<C> {
    fn accept(&mut self, datagram: &Bytes) {
        // Whatever does not parse is ignored silently, as the reference does.
        let Ok(message) = UdpMessage::decode(datagram) else {
            return;
        };
        let entry = self.open.get(&message.session_id);
        // The usual case, at the price of one look-up: the destination of the datagram before.
        if let Some(Entry {
            session,
            latest: Some((text, destination)),
            ..
        }) = entry
            && **text == *message.address
            && !message.is_fragment()
            && let Some(association) = session.association.get()
        {
            session.activity.touch();
            self.context
                .send_out(&**association, message.data, *destination);
            return;
        }
        let known = entry.is_some();
        if !known && self.open.len() >= MAX_SESSIONS {
            self.context.refuse_session("connection");
            return;
        }
        if !message.is_fragment() {
            return self.forward(message.session_id, message.address, datagram, message.data);
        }
        if self.fragment_bytes > MAX_FRAGMENTS {
            return;
        }
        if !known && AddressRef::parse(message.address).is_err() {
            return;
        }
        // The socket opens with the first whole message only.
        let Some(entry) = self.entry(message.session_id) else {
            return;
        };
        let before = entry.fragments.held_bytes();
        let whole = entry.fragments.push(&message);
        let after = entry.fragments.held_bytes();
        self.fragment_bytes = (self.fragment_bytes + after).saturating_sub(before);
        if let Some(whole) = whole {
            self.forward(whole.session_id, &whole.address, &whole.data, &whole.data);
        }
    }

    /// Sends `data`, a part of `owner`, towards the destination named by the client.
    fn forward(&mut self, id: u32, text: &str, owner: &Bytes, data: &[u8]) {
        let Ok(address) = AddressRef::parse(text) else {
            return;
        };
        let context = Arc::clone(&self.context);
        let Some(entry) = self.entry(id) else {
            return;
        };
        let session = &entry.session;
        session.activity.touch();
        if let Some(association) = session.association.get() {
            let destination = match &entry.latest {
                Some((latest, destination)) if **latest == *text => Some(Some(*destination)),
                _ => session.destinations.lock().known.get(text).copied(),
            };
            let destination = destination.or_else(|| {
                let judged = association.resolve_now(&address.to_owned())?.ok();
                session.remember(text, judged);
                Some(judged)
            });
            match destination {
                Some(Some(destination)) => {
                    if entry
                        .latest
                        .as_ref()
                        .is_none_or(|(latest, _)| **latest != *text)
                    {
                        entry.latest = Some((text.into(), destination));
                    }
                    context.send_out(&**association, data, destination);
                    return;
                }
                Some(None) => return,
                None => {}
            }
        }
        // Dropped when too much waits: UDP.
        let mut memory = context.memory.reservation();
        if !memory.try_grow(owner.len() + text.len() + ITEM_OVERHEAD) {
            return;
        }
        let _ = entry.waiting.try_send(Waiting {
            target: address.to_owned(),
            text: text.into(),
            data: owner.slice_ref(data),
            _memory: memory,
        });
    }

    /// Finds or opens a session; `None` when the server has no room for one more.
    fn entry(&mut self, id: u32) -> Option<&mut Entry> {
        let Self {
            context,
            open,
            tasks,
            ..
        } = self;
        Some(match open.entry(id) {
            Occupied(entry) => entry.into_mut(),
            Vacant(vacant) => {
                let Some(place) = context.node_sessions.enter() else {
                    context.refuse_session("server");
                    return None;
                };
                let session = Arc::new(Session {
                    id,
                    activity: Activity::begin(),
                    association: OnceLock::new(),
                    destinations: Mutex::new(Destinations {
                        known: HashMap::new(),
                        memory: context.memory.reservation(),
                    }),
                    _place: place,
                });
                let (waiting, queue) = mpsc::channel(MAX_WAITING);
                tasks.spawn(run(Arc::clone(context), Arc::clone(&session), queue));
                vacant.insert(Entry {
                    session,
                    waiting,
                    fragments: Defragmenter::new(),
                    latest: None,
                })
            }
        })
    }

    fn remove(&mut self, id: u32) {
        if let Some(entry) = self.open.remove(&id) {
            let held = entry.fragments.held_bytes();
            self.fragment_bytes = self.fragment_bytes.saturating_sub(held);
        }
    }

    /// Removes the sessions whose tasks are no more.
    fn remove_ended(&mut self) {
        self.open.retain(|_, entry| !entry.waiting.is_closed());
    }

    fn expire_fragments(&mut self, now: Instant) {
        self.fragment_bytes = 0;
        for entry in self.open.values_mut() {
            entry.fragments.expire(now.into_std());
            self.fragment_bytes += entry.fragments.held_bytes();
        }
    }
}

impl<C: Datagrams> UdpContext<C> {
    fn send_out(&self, association: &dyn UdpAssociation, data: &[u8], destination: SocketAddr) {
        if !self.tx_limit.try_take(data.len()) {
            return;
        }
        // An error concerns this datagram only; UDP may lose it.
        if association.try_send_to(data, destination).is_ok() {
            self.counters.add_tx(data.len() as u64);
        }
    }

    /// Sends one datagram of `source` to the client; `message` is its encoding when whole.
    fn send_back(&self, message: Bytes, header_len: usize, next_packet: &mut u16) {
        let payload = message.len() - header_len;
        if !self.rx_limit.try_take(payload) || !self.share.try_take(message.len()) {
            return;
        }
        let max = self.connection.max_datagram_size().unwrap_or(0);
        let sent = if message.len() <= max {
            self.connection.send_datagram(message.clone())
        } else {
            Err(SendDatagramError::TooLarge)
        };
        let sent = match sent {
            Err(SendDatagramError::TooLarge) => self.send_fragments(&message, max, next_packet),
            other => other.is_ok(),
        };
        if sent {
            self.counters.add_rx(payload as u64);
        }
    }

    fn send_fragments(&self, message: &[u8], max: usize, next_packet: &mut u16) -> bool {
        let Ok(whole) = UdpMessage::decode(message) else {
            return false;
        };
        *next_packet = next_packet.checked_add(1).unwrap_or(1);
        let Ok(parts) = fragment(&whole, max, *next_packet) else {
            return false;
        };
        for part in parts {
            let mut encoded = BytesMut::with_capacity(part.encoded_len());
            part.encode(&mut encoded);
            if self.connection.send_datagram(encoded.freeze()).is_err() {
                return false;
            }
        }
        true
    }
}

/// Runs one session until it is idle for too long or its socket fails.
async fn run<C: Datagrams>(
    context: Arc<UdpContext<C>>,
    session: Arc<Session>,
    mut queue: mpsc::Receiver<Waiting>,
) -> u32 {
    let idle = context.idle_timeout;
    let first = tokio::select! {
        first = queue.recv() => first,
        // Fragments that never become a message.
        () = sleep_until(session.activity.opened() + idle.min(Duration::from_secs(10))) => None,
    };
    let Some(first) = first else {
        return session.id;
    };
    let association = match context.outbound.udp(&first.target).await {
        Ok(association) => session.association.get_or_init(|| association),
        Err(error) => {
            tracing::debug!(%error, "UDP session not opened");
            return session.id;
        }
    };
    // Dropped in reverse order: the presence ends before that is told.
    let _report = Report::open(&context, session.id, &first.text);
    let _presence = context.counters.enter(Presence::UdpSession);
    deliver(&context, &session, &**association, first).await;
    let mut way_back = WayBack::new(session.id);
    let mut timer = Box::pin(sleep_until(session.activity.idle_at(idle)));
    loop {
        // Each arm is cancel safe: the socket's datagram and the queue's item are taken only
        // when returned.
        tokio::select! {
            waiting = queue.recv() => match waiting {
                Some(waiting) => deliver(&context, &session, &**association, waiting).await,
                None => break,
            },
            result = way_back.receive(&**association) => match result {
                Ok((message, header_len)) => {
                    session.activity.touch();
                    context.send_back(message, header_len, &mut way_back.next_packet);
                }
                // A datagram that was too large, or an ICMP answer to an earlier one.
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    tracing::debug!(%error, "UDP socket failed");
                    break;
                }
            },
            () = &mut timer => {
                let due = session.activity.idle_at(idle);
                if due <= Instant::now() {
                    break;
                }
                timer.as_mut().reset(due);
            }
        }
    }
    session.id
}

/// Tells of a session's beginning and, once it is dropped, of its end.
struct Report<'a, C> {
    context: &'a UdpContext<C>,
    session: u32,
}

impl<'a, C> Report<'a, C> {
    fn open(context: &'a UdpContext<C>, session: u32, target: &str) -> Self {
        context.events.udp_opened(&context.peer, session, target);
        Self { context, session }
    }
}

impl<C> Drop for Report<'_, C> {
    fn drop(&mut self) {
        let UdpContext { events, peer, .. } = self.context;
        events.udp_closed(peer, self.session);
    }
}

async fn deliver<C: Datagrams>(
    context: &UdpContext<C>,
    session: &Session,
    association: &dyn UdpAssociation,
    waiting: Waiting,
) {
    let known = session
        .destinations
        .lock()
        .known
        .get(&waiting.text)
        .copied();
    let destination = match known {
        Some(destination) => destination,
        None => {
            let resolved = match association.resolve_now(&waiting.target) {
                Some(judged) => judged,
                None => {
                    context
                        .lookups
                        .of(association.resolve(&waiting.target))
                        .await
                }
            };
            // A failed look-up may work next time; a refused destination stays refused.
            if !matches!(resolved, Err(ref error) if !matches!(error, DialError::Denied)) {
                session.remember(&waiting.text, resolved.as_ref().ok().copied());
            }
            resolved.ok()
        }
    };
    if let Some(destination) = destination {
        context.send_out(association, &waiting.data, destination);
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::InvalidData
            | io::ErrorKind::WouldBlock
            | io::ErrorKind::Interrupted
    )
}

/// Most bytes that datagrams of one session share an allocation of.
const BLOCK: usize = 32 << 10;

thread_local! {
    /// Where a datagram lands until its length is known, initialised once: to clear room for the
    /// longest costs more than to copy the usual one. One byte more than can be carried shows what
    /// was cut off.
    static LANDING: Cell<Option<Box<[u8; MAX_MESSAGE_LEN + 1]>>> = const { Cell::new(None) };
}

/// Receives from the target and encodes what came.
struct WayBack {
    id: u32,
    source: Option<SocketAddr>,
    header: Vec<u8>,
    /// Room for messages to come.
    buffer: BytesMut,
    /// Bytes received since there last was nothing to receive.
    run: usize,
    next_packet: u16,
}

impl WayBack {
    fn new(id: u32) -> Self {
        Self {
            id,
            source: None,
            header: Vec::new(),
            buffer: BytesMut::new(),
            run: 0,
            next_packet: rand::random(),
        }
    }

    /// Waits for a datagram; returns it as an encoded message with the length of its header.
    ///
    /// # Cancel safety
    ///
    /// Safe.
    async fn receive(&mut self, association: &dyn UdpAssociation) -> io::Result<(Bytes, usize)> {
        poll_fn(|cx| {
            let mut landing = LANDING
                .take()
                .unwrap_or_else(|| Box::new([0; MAX_MESSAGE_LEN + 1]));
            let mut read = ReadBuf::new(&mut *landing);
            let polled = association.poll_recv_from(cx, &mut read);
            let result = polled.map(|source| self.encode(source?, read.filled()));
            LANDING.set(Some(landing));
            if result.is_pending() {
                // Nothing to come for a while: hold no memory for it.
                self.buffer = BytesMut::new();
                self.run = 0;
            }
            result
        })
        .await
    }

    fn encode(&mut self, source: SocketAddr, data: &[u8]) -> io::Result<(Bytes, usize)> {
        if self.source != Some(source) {
            self.source = Some(source);
            self.header.clear();
            // The reference answers with the address the datagram came from, never a name.
            let text = source.to_string();
            UdpMessage::whole(self.id, &text, &[]).encode(&mut self.header);
        }
        let len = self.header.len() + data.len();
        // Empty data cannot be encoded, and more than the format allows is dropped as the
        // reference does.
        if data.is_empty() || len > MAX_MESSAGE_LEN {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if self.buffer.capacity() < len {
            // As much again as came in a row, so that a lone datagram takes no more than it needs.
            self.buffer.reserve(len.max(self.run.min(BLOCK)));
        }
        self.run = self.run.saturating_add(len);
        self.buffer.extend_from_slice(&self.header);
        self.buffer.extend_from_slice(data);
        Ok((self.buffer.split().freeze(), self.header.len()))
    }
}
