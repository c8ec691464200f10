//! One client connection and everything below it.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU32,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response};
use hy2_proto::{
    auth::{AuthRequest, AuthResponse, CcRx},
    bandwidth::Bandwidth,
};
use quinn::{Connection, ConnectionError, VarInt};
use tokio::{
    sync::{Mutex, Notify, oneshot, watch},
    task::JoinSet,
    time::Instant,
};

use super::{Shared, tcp, tcp::StreamEnd, users::Member};
use crate::{
    BoxFuture,
    authenticator::{AuthContext, AuthDecision, SessionGuard},
    congestion::CongestionHandle,
    event::{ConnectionId, Peer},
    h3::{Front, H3Limits, RelayStream, RequestHandler, auth},
    masquerade::Body,
    memory::MemoryBudget,
    meter::{Presence, PresenceGuard},
    quic::{SendWindow, Vigil, close},
    relay::{
        recv::RoundTrip,
        share::{StreamPresence, UdpShare},
        udp,
    },
};

/// Bytes of field sections that an unknown peer may make us hold; shared by all unknown peers like
/// the receive window (see `quic::transport`).
const PREAUTH_HEADERS: usize = 192 << 10;
const PREAUTH_HEADERS_SHARED: usize = 16 << 20;

/// Unacknowledged answers that an unknown peer may make us hold, in bytes.
const PREAUTH_SEND_WINDOW: u64 = 256 << 10;

/// STREAM frames that an unknown peer may leave unread on many streams. Each may keep its packet, so
/// this is what bounds a peer that sends single bytes; and what all of them share, and what each has
/// at least, to say what it has to say.
const PREAUTH_FRAMES: usize = 600;
const PREAUTH_FRAMES_SHARED: usize = 48 << 10;
const PREAUTH_FRAMES_MIN: usize = 32;

/// Streams up to which an unknown peer may leave unread what it likes: QUIC keeps no more than
/// 32 KiB beyond its window for each. And what all of them share, and what a browser has open
/// always.
const PREAUTH_STREAMS: usize = 16;
const PREAUTH_STREAMS_SHARED: usize = 8 << 10;
const PREAUTH_STREAMS_MIN: usize = 4;

/// What relay streams need of their connection.
pub(crate) struct Relays {
    pub(crate) shared: Arc<Shared>,
    pub(crate) memory: Arc<MemoryBudget>,
    pub(crate) round_trip: RoundTrip,
    active: AtomicU32,
    udp_share: Arc<UdpShare>,
    /// Whether UDP was on when the client was told so; a change is for connections to come.
    udp: bool,
    membership: Membership,
}

impl Relays {
    pub(crate) fn member(&self) -> &Member {
        &self.membership.member
    }

    pub(crate) fn draining(&self) -> bool {
        *self.shared.draining.borrow()
    }

    /// Counts a TCP stream for as long as the guard lives.
    pub(crate) fn enter_stream(self: &Arc<Self>) -> ActiveStream {
        self.active.fetch_add(1, Relaxed);
        ActiveStream {
            relays: Arc::clone(self),
            _presence: self.udp_share.enter_stream(),
        }
    }
}

pub(crate) struct ActiveStream {
    relays: Arc<Relays>,
    _presence: StreamPresence,
}

impl Drop for ActiveStream {
    fn drop(&mut self) {
        self.relays.active.fetch_sub(1, Relaxed);
    }
}

/// Serves one connection until it ends. `unauthenticated` is given back on authentication.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    connection: Connection,
    congestion: CongestionHandle,
    id: ConnectionId,
    unauthenticated: super::accept::Slot,
    vigil: Arc<Vigil>,
) {
    congestion.set_send_window_limit(PREAUTH_SEND_WINDOW);
    let _pacing = congestion.attach(&connection, Arc::clone(&shared.runtime));
    let authenticated = Arc::new(AtomicBool::new(false));
    let (admitted, mut admission) = oneshot::channel();
    let gate = Arc::new(Gate {
        shared: Arc::clone(&shared),
        connection: connection.clone(),
        congestion: congestion.clone(),
        id,
        authenticated: Arc::clone(&authenticated),
        state: Mutex::new(GateState {
            attempts: 0,
            granted: None,
            admitted: Some(admitted),
        }),
    });
    let limits = H3Limits {
        header_bytes: PREAUTH_HEADERS
            .min(PREAUTH_HEADERS_SHARED / shared.counts.unauthenticated().max(1)),
        ..H3Limits::default()
    };
    let front = Front::new(connection.clone(), Arc::clone(&authenticated), gate, limits);
    shared.counts.meet(id, &connection);
    let mut draining = shared.draining.subscribe();
    if *draining.borrow_and_update() {
        // Its handshake began before the drain did.
        connection.close(close::OK, b"");
    }
    let arrivals = Arrivals::default();
    let mut relays: Option<Arc<Relays>> = None;
    let mut unauthenticated = Some(unauthenticated);
    let mut tasks = JoinSet::new();
    let mut aborts = AbortRate::new(shared.config.limits.aborted_streams_per_second);
    let mut waiting = Vec::new();
    let mut raised = false;
    // At most one: the first that comes after authentication and before it is noticed here.
    let mut early_datagram = None;
    // Whether a task takes the datagrams, which one does while there are UDP sessions.
    let mut udp_served = false;
    {
        let run = front.run(|stream| arrivals.push(stream));
        tokio::pin!(run);
        loop {
            // Every arm is cancel safe: `run` is one pinned future, the others take an item only
            // when they return it.
            tokio::select! {
                () = &mut run => break,
                Ok(membership) = &mut admission, if relays.is_none() => {
                    unauthenticated.take();
                    vigil.end();
                    shared.counts.part(id);
                    let started = start(&shared, membership);
                    if let Some(datagram) = early_datagram.take() {
                        udp_served = serve_udp(&started, datagram, &mut tasks);
                    }
                    if !waiting.is_empty() {
                        started.raise_stream_limit();
                        raised = true;
                    }
                    relays = Some(started);
                    for stream in waiting.drain(..) {
                        spawn(&mut tasks, &relays, stream);
                    }
                }
                () = arrivals.wake.notified() => {
                    let arrived = arrivals.take();
                    if let Some(relays) = &relays
                        && !std::mem::replace(&mut raised, true)
                    {
                        relays.raise_stream_limit();
                    }
                    for stream in arrived {
                        match &relays {
                            Some(_) => spawn(&mut tasks, &relays, stream),
                            None => waiting.push(stream),
                        }
                    }
                }
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                    match ended {
                        Ok(StreamEnd::Served) => {}
                        Ok(StreamEnd::NoMoreUdp) => udp_served = false,
                        Ok(StreamEnd::Aborted) => if aborts.exceeded() {
                            connection.close(close::EXCESSIVE_LOAD, b"");
                        },
                        Err(error) if error.is_panic() => {
                            metrics::counter!("hy2_panics_total").increment(1);
                            tracing::error!(%error, "stream task failed");
                        }
                        Err(_) => {}
                    }
                    close_if_drained(&draining, &relays, &connection);
                }
                // Unknown peers have no use for datagrams: taken and dropped, as by a web server
                // that knows none of them, instead of kept.
                Ok(datagram) = connection.read_datagram(),
                    if !udp_served && early_datagram.is_none() =>
                {
                    if let Some(relays) = &relays {
                        udp_served = serve_udp(relays, datagram, &mut tasks);
                    } else if authenticated.load(Acquire) {
                        early_datagram = Some(datagram);
                    }
                }
                () = vigil.due(), if relays.is_none() => {
                    vigil.seen();
                    if takes_too_much(&front, shared.counts.unauthenticated().max(1)) {
                        metrics::counter!("hy2_connections_shed_total").increment(1);
                        connection.close(close::EXCESSIVE_LOAD, b"");
                    }
                }
                Ok(()) = draining.changed() => {
                    // The official client takes a GOAWAY for the end of the whole connection and
                    // drops its running streams, so only visitors of the site get one.
                    if relays.is_none() {
                        front.shutdown();
                    }
                    close_if_drained(&draining, &relays, &connection);
                }
            }
        }
    }
    shared.counts.part(id);
    // What a stream moved is counted when it moves, so nothing is lost with its task.
    tasks.shutdown().await;
}

/// Relay streams on their way from the front to the connection's task; bounded by the stream limit.
/// A channel would keep two kilobytes per connection.
#[derive(Default)]
struct Arrivals {
    queue: parking_lot::Mutex<Vec<RelayStream>>,
    wake: Notify,
}

impl Arrivals {
    fn push(&self, stream: RelayStream) {
        self.queue.lock().push(stream);
        self.wake.notify_one();
    }

    fn take(&self) -> Vec<RelayStream> {
        std::mem::take(&mut *self.queue.lock())
    }
}

/// A connection's place among those of its user. Its drop is the end of the authenticated
/// connection, wherever that happens: with the last stream, with the server, or before the
/// client saw that it was let in.
struct Membership {
    shared: Arc<Shared>,
    member: Member,
    presence: Option<PresenceGuard>,
    /// Last, so that the embedder's guard outlives the event.
    _guard: Option<SessionGuard>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.presence.take();
        let Member {
            peer, connection, ..
        } = &self.member;
        self.shared.registry.leave(peer.connection);
        let reason = connection
            .close_reason()
            .unwrap_or(ConnectionError::LocallyClosed);
        self.shared.events.disconnected(peer, &reason);
    }
}

/// Tells whether one of `unknown` peers that nobody let in makes us hold more than its part.
fn takes_too_much(front: &Front, unknown: usize) -> bool {
    let streams = (PREAUTH_STREAMS_SHARED / unknown).clamp(PREAUTH_STREAMS_MIN, PREAUTH_STREAMS);
    let frames = (PREAUTH_FRAMES_SHARED / unknown).clamp(PREAUTH_FRAMES_MIN, PREAUTH_FRAMES);
    front.open_streams() > streams as u64 && front.unread_frames() > frames as u64
}

/// While draining, a connection without streams is of no use to its client.
fn close_if_drained(
    draining: &watch::Receiver<bool>,
    relays: &Option<Arc<Relays>>,
    connection: &Connection,
) {
    let idle = relays
        .as_ref()
        .is_none_or(|relays| relays.active.load(Relaxed) == 0);
    if *draining.borrow() && idle {
        connection.close(close::OK, b"");
    }
}

fn spawn(tasks: &mut JoinSet<StreamEnd>, relays: &Option<Arc<Relays>>, stream: RelayStream) {
    if let Some(relays) = relays {
        tasks.spawn(tcp::serve(Arc::clone(relays), stream));
    }
}

impl Relays {
    /// The first relay stream shows a client that will want more at once.
    fn raise_stream_limit(&self) {
        let limit = self.shared.settings().quic.max_incoming_streams.max(8);
        self.member()
            .connection
            .set_max_concurrent_bi_streams(VarInt::from_u32(limit));
    }
}

/// Opens the connection up after authentication.
fn start(shared: &Arc<Shared>, membership: Membership) -> Arc<Relays> {
    let member = &membership.member;
    let settings = shared.settings();
    let window = VarInt::from_u64(settings.quic.receive_window).unwrap_or(VarInt::MAX);
    member.connection.set_receive_window(window);
    Arc::new(Relays {
        memory: Arc::clone(&member.memory),
        round_trip: RoundTrip::of(&member.congestion),
        shared: Arc::clone(shared),
        active: AtomicU32::new(0),
        udp_share: UdpShare::new(&member.congestion),
        udp: !settings.disable_udp,
        membership,
    })
}

/// Starts a task for the datagrams of a connection, of which `first` is one, for as long as it has
/// UDP sessions; `false` when UDP is off.
fn serve_udp(relays: &Arc<Relays>, first: Bytes, tasks: &mut JoinSet<StreamEnd>) -> bool {
    let shared = &relays.shared;
    if !relays.udp {
        return false;
    }
    let member = relays.member().clone();
    let context = udp::UdpContext {
        connection: member.connection,
        outbound: Arc::clone(&shared.outbound),
        events: Arc::clone(&shared.events),
        peer: member.peer,
        counters: member.counters,
        tx_limit: Arc::clone(&member.user.tx),
        rx_limit: Arc::clone(&member.user.rx),
        lookups: member.user.lookups.clone(),
        share: Arc::clone(&relays.udp_share),
        idle_timeout: shared.settings().udp_idle_timeout,
        _owner: Arc::clone(relays) as Arc<_>,
        memory: relays.memory.part(udp::MEMORY),
        node_sessions: Arc::clone(&shared.udp_sessions),
        refusal_said: AtomicBool::new(false),
    };
    tasks.spawn(async move {
        udp::serve(context, first).await;
        StreamEnd::NoMoreUdp
    });
    true
}

/// Counts streams that are given up, per second.
struct AbortRate {
    limit: u32,
    second: Instant,
    count: u32,
}

impl AbortRate {
    fn new(limit: u32) -> Self {
        Self {
            limit,
            second: Instant::now(),
            count: 0,
        }
    }

    fn exceeded(&mut self) -> bool {
        let now = Instant::now();
        if now.duration_since(self.second) >= Duration::from_secs(1) {
            self.second = now;
            self.count = 0;
        }
        self.count += 1;
        self.count > self.limit
    }
}

/// Answers the requests of a connection and lets it in.
struct Gate {
    shared: Arc<Shared>,
    connection: Connection,
    congestion: CongestionHandle,
    id: ConnectionId,
    authenticated: Arc<AtomicBool>,
    state: Mutex<GateState>,
}

struct GateState {
    attempts: u32,
    granted: Option<AuthResponse>,
    /// Taken by the first success.
    admitted: Option<oneshot::Sender<Membership>>,
}

impl RequestHandler for Gate {
    fn handle(&self, request: Request<Body>) -> BoxFuture<'_, Response<Body>> {
        Box::pin(async move {
            // The body is not looked at: clients may send its end later, or never.
            let (parts, body) = request.into_parts();
            let head = Request::from_parts(parts, ());
            if auth::is_auth_request(&head) {
                if let Some(granted) = self.authenticate(&head).await {
                    return auth::accepted(granted);
                }
            } else if head.method() == Method::POST {
                self.pretend(&head).await;
            }
            let request = head.map(|()| body);
            self.shared.masquerade.serve(request).await
        })
    }
}

impl Gate {
    /// Does for a request that does not ask for authentication what is done for one that is
    /// denied, so that the two take the same time.
    async fn pretend(&self, request: &Request<()>) {
        let state = self.state.lock().await;
        if self.authenticated.load(Acquire)
            || state.attempts >= self.shared.config.limits.auth_attempts
            || *self.shared.draining.borrow()
        {
            return;
        }
        let said = auth::read_request(request);
        let server_name = self.server_name();
        let context = self.context(&said, server_name.as_deref());
        self.shared.authenticator.pretend(context).await;
    }

    fn server_name(&self) -> Option<String> {
        let data = self.connection.handshake_data()?;
        data.downcast::<quinn::crypto::rustls::HandshakeData>()
            .ok()?
            .server_name
    }

    fn context<'a>(&self, said: &AuthRequest<'a>, server_name: Option<&'a str>) -> AuthContext<'a> {
        AuthContext {
            remote: self.connection.remote_address(),
            auth: said.auth,
            client_rx: (!said.rx.is_zero()).then_some(said.rx),
            server_name,
        }
    }

    async fn authenticate(&self, request: &Request<()>) -> Option<AuthResponse> {
        // One at a time; the reference holds a lock too.
        let mut state = self.state.lock().await;
        if self.authenticated.load(Acquire) {
            // Whoever is in is in: credentials are not looked at again (reference §1.2).
            return state.granted;
        }
        state.attempts += 1;
        if state.attempts > self.shared.config.limits.auth_attempts
            || *self.shared.draining.borrow()
        {
            return None;
        }
        let said = auth::read_request(request);
        let server_name = self.server_name();
        let context = self.context(&said, server_name.as_deref());
        let mut grant = match self.shared.authenticator.authenticate(context).await {
            AuthDecision::Accept(grant) => grant,
            AuthDecision::Deny => return None,
        };
        let config = self.shared.settings();
        let agreed = if config.ignore_client_bandwidth {
            None
        } else {
            said.server_rate(config.max_tx.unwrap_or(Bandwidth::ZERO))
        };
        let memory = config.memory.share();
        let member = self.shared.registry.admit(&grant, |user| Member {
            peer: Peer {
                connection: self.id,
                user: user.id.clone(),
                remote: self.connection.remote_address(),
            },
            connection: self.connection.clone(),
            congestion: self.congestion.clone(),
            agreed,
            loss_compensation: config.loss_compensation,
            overclaim_guard: config.overclaim_guard,
            counters: user.counters(),
            send_window: Arc::new(parking_lot::Mutex::new(SendWindow::new(
                &memory,
                &self.congestion,
            ))),
            at_rest: false,
            memory,
            user,
        });
        let Ok(member) = member else {
            tracing::info!(user = %grant.user, "connection limit of the user reached");
            return None;
        };
        let tx = member.apply_rate();
        let granted = AuthResponse {
            udp: !config.disable_udp,
            cc_rx: if config.ignore_client_bandwidth {
                CcRx::Auto
            } else {
                CcRx::Limit(config.max_rx.unwrap_or(Bandwidth::ZERO))
            },
        };
        state.granted = Some(granted);
        self.shared.events.connected(&member.peer, tx);
        let membership = Membership {
            shared: Arc::clone(&self.shared),
            presence: Some(member.counters.enter(Presence::Connection)),
            member,
            _guard: grant.guard.take(),
        };
        // Before the answer: the client opens relay streams as soon as it sees it.
        self.authenticated.store(true, Release);
        if let Some(admitted) = state.admitted.take() {
            // Fails when the connection is over; the membership ends right there.
            let _ = admitted.send(membership);
        }
        Some(granted)
    }
}
