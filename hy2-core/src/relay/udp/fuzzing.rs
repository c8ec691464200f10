//! The UDP side of a connection without the connection, for the fuzz targets.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use quinn::{ConnectionError, SendDatagramError};
use tokio::sync::mpsc;

use super::{Datagrams, NodeSessions, UdpContext, serve};
use crate::{
    congestion::{Algorithm, CongestionHandle},
    event::{ConnectionId, EventSink, Peer},
    memory::MemoryBudget,
    meter::UserCounters,
    outbound::Outbound,
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
    let unlimited = || Arc::new(RateLimiter::unlimited());
    let node = NodeSessions::new(around.node_sessions);
    let queues = Queues {
        incoming: Arc::new(Mutex::new(incoming)),
        sent: Arc::clone(&around.sent),
        max_datagram: around.max_datagram,
    };
    let share = UdpShare::new(&CongestionHandle::new(Algorithm::Reno));
    let sessions = Arc::clone(&node);
    let connection = queues.clone();
    let context = move || UdpContext {
        connection: connection.clone(),
        outbound: Arc::clone(&around.outbound),
        events: Arc::clone(&around.events),
        peer: Peer {
            connection: ConnectionId(0),
            user: "user".into(),
            remote: ([192, 0, 2, 1], 1).into(),
        },
        counters: Arc::clone(&around.counters),
        tx_limit: unlimited(),
        rx_limit: unlimited(),
        share: Arc::clone(&share),
        idle_timeout: around.idle_timeout,
        _owner: Arc::new(()),
        memory: Arc::clone(&around.memory),
        node_sessions: Arc::clone(&sessions),
    };
    let serving = async move {
        // As a connection does: the task ends with its last session and begins with a datagram.
        while let Ok(first) = queues.read_datagram().await {
            serve(context(), first).await;
        }
    };
    (sender, Node(node), serving)
}
