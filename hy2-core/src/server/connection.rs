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

use http::{Request, Response};
use hy2_proto::{
    auth::{AuthResponse, CcRx},
    bandwidth::Bandwidth,
};
use quinn::{Connection, VarInt};
use tokio::{
    sync::{Mutex, mpsc, watch},
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
    quic::{SendWindow, close},
    relay::{limiter::RateLimiter, recv::RoundTrip, udp},
};

/// Share of a fixed rate that UDP may take while TCP streams are open, in percent: quinn sends
/// datagrams before stream data.
const UDP_SHARE_PERCENT: u64 = 70;

/// What relay streams need of their connection.
pub(crate) struct Relays {
    pub(crate) shared: Arc<Shared>,
    pub(crate) member: Member,
    pub(crate) memory: Arc<MemoryBudget>,
    pub(crate) round_trip: RoundTrip,
    active: AtomicU32,
    udp_share: Arc<RateLimiter>,
    _presence: PresenceGuard,
    _guard: Option<SessionGuard>,
}

impl Relays {
    pub(crate) fn draining(&self) -> bool {
        *self.shared.draining.borrow()
    }

    /// Counts a TCP stream for as long as the guard lives.
    pub(crate) fn enter_stream(self: &Arc<Self>) -> ActiveStream {
        if self.active.fetch_add(1, Relaxed) == 0 {
            let rate = self.member.congestion.snapshot();
            if let crate::congestion::Algorithm::Brutal { .. } = rate.algorithm {
                self.udp_share
                    .set(Some(rate.target_rate / 100 * UDP_SHARE_PERCENT));
            }
        }
        ActiveStream(Arc::clone(self))
    }
}

pub(crate) struct ActiveStream(Arc<Relays>);

impl Drop for ActiveStream {
    fn drop(&mut self) {
        if self.0.active.fetch_sub(1, Relaxed) == 1 {
            self.0.udp_share.set(None);
        }
    }
}

/// Serves one connection until it ends. `unauthenticated` is given back on authentication.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    connection: Connection,
    congestion: CongestionHandle,
    id: ConnectionId,
    unauthenticated: super::accept::Slot,
) {
    let pacing = congestion.attach(&connection, Arc::clone(&shared.runtime));
    let authenticated = Arc::new(AtomicBool::new(false));
    let (admitted, mut admission) = watch::channel(None);
    let gate = Arc::new(Gate {
        shared: Arc::clone(&shared),
        connection: connection.clone(),
        congestion: congestion.clone(),
        id,
        authenticated: Arc::clone(&authenticated),
        state: Mutex::new(GateState::default()),
        admitted,
    });
    let front = Front::new(connection.clone(), authenticated, gate, H3Limits::default());
    let mut draining = shared.draining.subscribe();
    if *draining.borrow_and_update() {
        front.shutdown();
    }
    // Bounded by the stream limit of the connection.
    let (relay_in, mut relay_streams) = mpsc::unbounded_channel::<RelayStream>();
    let mut relays: Option<Arc<Relays>> = None;
    let mut unauthenticated = Some(unauthenticated);
    let mut tasks = JoinSet::new();
    let mut aborts = AbortRate::new(shared.config.limits.aborted_streams_per_second);
    let mut waiting = Vec::new();
    {
        let run = front.run(|stream| {
            // The receiver lives as long as this future.
            let _ = relay_in.send(stream);
        });
        tokio::pin!(run);
        loop {
            // Every arm is cancel safe: `run` is one pinned future, the others take an item only
            // when they return it.
            tokio::select! {
                () = &mut run => break,
                Ok(()) = admission.changed(), if relays.is_none() => {
                    let Some(admitted): Option<Admitted> = admission.borrow_and_update().clone() else {
                        continue;
                    };
                    unauthenticated.take();
                    relays = Some(start(&shared, admitted, &mut tasks));
                    for stream in waiting.drain(..) {
                        spawn(&mut tasks, &relays, stream);
                    }
                }
                Some(stream) = relay_streams.recv() => {
                    if relays.is_none() {
                        waiting.push(stream);
                        continue;
                    }
                    if let Some(relays) = &relays {
                        relays.raise_stream_limit();
                    }
                    spawn(&mut tasks, &relays, stream);
                }
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                    match ended {
                        Ok(StreamEnd::Served) => {}
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
                Ok(()) = draining.changed() => {
                    front.shutdown();
                    close_if_drained(&draining, &relays, &connection);
                }
            }
        }
    }
    tasks.shutdown().await;
    let reason = connection.closed().await;
    if let Some(relays) = relays {
        shared.registry.leave(id);
        shared.events.disconnected(&relays.member.peer, &reason);
    }
    drop(pacing);
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
        let limit = self.shared.config.quic.max_incoming_streams.max(8);
        self.member
            .connection
            .set_max_concurrent_bi_streams(VarInt::from_u32(limit));
    }
}

/// Opens the connection up after authentication.
fn start(shared: &Arc<Shared>, admitted: Admitted, tasks: &mut JoinSet<StreamEnd>) -> Arc<Relays> {
    let Admitted { member, guard } = admitted;
    let window = VarInt::from_u64(shared.config.quic.receive_window).unwrap_or(VarInt::MAX);
    member.connection.set_receive_window(window);
    let presence = member.user.counters.enter(Presence::Connection);
    let relays = Arc::new(Relays {
        memory: Arc::clone(&member.memory),
        round_trip: RoundTrip::of(&member.congestion),
        shared: Arc::clone(shared),
        active: AtomicU32::new(0),
        udp_share: Arc::new(RateLimiter::unlimited()),
        _presence: presence,
        _guard: guard.and_then(|guard| guard.lock().take()),
        member,
    });
    if !shared.config.disable_udp {
        let member = &relays.member;
        let context = udp::UdpContext {
            connection: member.connection.clone(),
            outbound: Arc::clone(&shared.outbound),
            events: Arc::clone(&shared.events),
            peer: member.peer.clone(),
            counters: Arc::clone(&member.user.counters),
            tx_limit: Arc::clone(&member.user.tx),
            rx_limit: Arc::clone(&member.user.rx),
            share: Arc::clone(&relays.udp_share),
            idle_timeout: shared.config.udp_idle_timeout,
        };
        tasks.spawn(async move {
            udp::serve(context).await;
            StreamEnd::Served
        });
    }
    relays
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

#[derive(Clone)]
struct Admitted {
    member: Member,
    guard: Option<Arc<parking_lot::Mutex<Option<SessionGuard>>>>,
}

/// Answers the requests of a connection and lets it in.
struct Gate {
    shared: Arc<Shared>,
    connection: Connection,
    congestion: CongestionHandle,
    id: ConnectionId,
    authenticated: Arc<AtomicBool>,
    state: Mutex<GateState>,
    admitted: watch::Sender<Option<Admitted>>,
}

#[derive(Default)]
struct GateState {
    attempts: u32,
    granted: Option<AuthResponse>,
}

impl RequestHandler for Gate {
    fn handle(&self, request: Request<Body>) -> BoxFuture<'_, Response<Body>> {
        Box::pin(async move {
            // The body is not looked at: clients may send its end later, or never.
            let (parts, body) = request.into_parts();
            let head = Request::from_parts(parts, ());
            if auth::is_auth_request(&head)
                && let Some(granted) = self.authenticate(&head).await
            {
                return auth::accepted(granted);
            }
            let request = head.map(|()| body);
            self.shared.masquerade.serve(request).await
        })
    }
}

impl Gate {
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
        let client_rx = (!said.rx.is_zero()).then_some(said.rx);
        let server_name = self.connection.handshake_data().and_then(|data| {
            data.downcast::<quinn::crypto::rustls::HandshakeData>()
                .ok()?
                .server_name
        });
        let context = AuthContext {
            remote: self.connection.remote_address(),
            auth: said.auth,
            client_rx,
            server_name: server_name.as_deref(),
        };
        let mut grant = match self.shared.authenticator.authenticate(context).await {
            AuthDecision::Accept(grant) => grant,
            AuthDecision::Deny => return None,
        };
        let config = &self.shared.config;
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
            send_window: Arc::new(parking_lot::Mutex::new(SendWindow::new(
                &memory,
                &self.congestion,
            ))),
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
        let guard = grant.guard.take();
        // Before the answer: the client opens relay streams as soon as it sees it.
        self.authenticated.store(true, Release);
        self.admitted.send_replace(Some(Admitted {
            member,
            guard: guard.map(|guard| Arc::new(parking_lot::Mutex::new(Some(guard)))),
        }));
        Some(granted)
    }
}
