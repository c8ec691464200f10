//! The UDP side of a connection without the connection, for the fuzz targets and benches.

use std::{
    collections::HashMap,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::Mutex;
use quinn::{ConnectionError, SendDatagramError};
use tokio::{sync::mpsc, task::JoinSet};

use super::{Datagrams, NodeSessions, Sessions, UdpContext, WayBack, serve};
use crate::{
    congestion::{Algorithm, CongestionHandle},
    event::{ConnectionId, EventSink, Peer},
    memory::MemoryBudget,
    meter::UserCounters,
    outbound::{Outbound, UdpAssociation},
    relay::{limiter::RateLimiter, share::UdpShare},
};

/// Most sessions of a connection.
pub const MAX_SESSIONS: usize = super::MAX_SESSIONS;

/// Most memory for what waits, in bytes.
pub const MEMORY: usize = super::MEMORY;

/// Where the sent datagrams go.
pub type Sent = Arc<Mutex<Vec<Bytes>>>;

/// A connection made of two queues.
#[derive(Clone)]
struct Queues {
    incoming: Arc<Mutex<mpsc::UnboundedReceiver<Bytes>>>,
    sent: Sent,
    max_datagram: Option<usize>,
}

impl Datagrams for Queues {
    async fn read_datagram(&self) -> Result<Bytes, ConnectionError> {
        poll_fn(|cx| self.incoming.lock().poll_recv(cx))
            .await
            .ok_or(ConnectionError::LocallyClosed)
    }

    fn max_datagram_size(&self) -> Option<usize> {
        self.max_datagram
    }

    fn send_datagram(&self, data: Bytes) -> Result<(), SendDatagramError> {
        match self.max_datagram {
            None => Err(SendDatagramError::Disabled),
            Some(max) if data.len() > max => Err(SendDatagramError::TooLarge),
            Some(_) => {
                self.sent.lock().push(data);
                Ok(())
            }
        }
    }
}

/// What surrounds the UDP side.
#[derive(Clone)]
pub struct Surroundings {
    /// Reaches targets.
    pub outbound: Arc<dyn Outbound>,
    /// Is told of sessions.
    pub events: Arc<dyn EventSink>,
    /// Counts bytes and sessions.
    pub counters: Arc<UserCounters>,
    /// Pays for what waits.
    pub memory: Arc<MemoryBudget>,
    /// Receives what goes to the client.
    pub sent: Sent,
    /// Largest datagram to the client.
    pub max_datagram: Option<usize>,
    /// When an idle session ends.
    pub idle_timeout: Duration,
    /// Most sessions of the server.
    pub node_sessions: usize,
}

impl std::fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Surroundings").finish_non_exhaustive()
    }
}

/// Counts the sessions of the server.
#[derive(Debug)]
pub struct Node(Arc<NodeSessions>);

impl Node {
    /// Returns how many are open.
    pub fn open(&self) -> usize {
        self.0.open.load(Relaxed)
    }
}

/// Prepares to serve what is put into the returned queue, until it is dropped.
pub fn serve_queue(
    around: Surroundings,
) -> (
    mpsc::UnboundedSender<Bytes>,
    Node,
    impl Future<Output = ()> + Send,
) {
    let (sender, incoming) = mpsc::unbounded_channel();
    let node = NodeSessions::new(around.node_sessions);
    let queues = around.queues(incoming);
    let sessions = Arc::clone(&node);
    let connection = queues.clone();
    let share = UdpShare::new(&CongestionHandle::new(Algorithm::Reno));
    let context = move || around.context(&connection, &share, &sessions);
    let serving = async move {
        // As a connection does: the task ends with its last session and begins with a datagram.
        while let Ok(first) = queues.read_datagram().await {
            serve(context(), first).await;
        }
    };
    (sender, Node(node), serving)
}

impl Surroundings {
    fn queues(&self, incoming: mpsc::UnboundedReceiver<Bytes>) -> Queues {
        Queues {
            incoming: Arc::new(Mutex::new(incoming)),
            sent: Arc::clone(&self.sent),
            max_datagram: self.max_datagram,
        }
    }

    fn context(
        &self,
        queues: &Queues,
        share: &Arc<UdpShare>,
        node: &Arc<NodeSessions>,
    ) -> UdpContext<Queues> {
        let unlimited = || Arc::new(RateLimiter::unlimited());
        UdpContext {
            connection: queues.clone(),
            outbound: Arc::clone(&self.outbound),
            events: Arc::clone(&self.events),
            peer: Peer {
                connection: ConnectionId(0),
                user: "user".into(),
                remote: ([192, 0, 2, 1], 1).into(),
            },
            counters: Arc::clone(&self.counters),
            tx_limit: unlimited(),
            rx_limit: unlimited(),
            lookups: Default::default(),
            share: Arc::clone(share),
            idle_timeout: self.idle_timeout,
            _owner: Arc::new(()),
            memory: Arc::clone(&self.memory),
            node_sessions: Arc::clone(node),
            refusal_said: AtomicBool::new(false),
        }
    }

    /// A context of its own, which receives nothing.
    fn alone(&self) -> UdpContext<Queues> {
        let (_, incoming) = mpsc::unbounded_channel();
        let share = UdpShare::new(&CongestionHandle::new(Algorithm::Reno));
        let node = NodeSessions::new(self.node_sessions);
        self.context(&self.queues(incoming), &share, &node)
    }
}

/// The sessions of one connection, handed one datagram after the other: for benches, which count
/// what a datagram costs without the queue that brings it.
pub struct Table(Sessions<Queues>);

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").finish_non_exhaustive()
    }
}

impl Table {
    /// An empty table. New sessions run as tasks of the runtime that is current then.
    pub fn new(around: &Surroundings) -> Self {
        Self(Sessions {
            context: Arc::new(around.alone()),
            open: HashMap::default(),
            tasks: JoinSet::new(),
            fragment_bytes: 0,
        })
    }

    /// Handles a datagram from the client.
    pub fn accept(&mut self, datagram: &Bytes) {
        self.0.accept(datagram);
    }

    /// Returns how many sessions have a socket.
    pub fn ready(&self) -> usize {
        let open = self.0.open.values();
        open.filter(|entry| entry.session.association.get().is_some())
            .count()
    }
}

/// The way back of one session, one datagram at a time.
pub struct Answers {
    context: UdpContext<Queues>,
    way_back: WayBack,
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answers").finish_non_exhaustive()
    }
}

impl Answers {
    /// A session that has answered nothing yet.
    pub fn new(around: &Surroundings) -> Self {
        Self {
            context: around.alone(),
            way_back: WayBack::new(7),
        }
    }

    /// Sends the next datagram of `association` to the client; false if there is none.
    pub fn pass(&mut self, association: &dyn UdpAssociation) -> bool {
        let received = self.way_back.receive(association).now_or_never();
        let Some(Ok((message, header_len))) = received else {
            return false;
        };
        let next = &mut self.way_back.next_packet;
        self.context.send_back(message, header_len, next);
        true
    }
}
