//! Remembers a server's events, in order.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use hy2_core::{
    Bandwidth,
    event::{ConnectionId, EventSink, Peer},
    quinn::ConnectionError,
};
use tokio::{sync::watch, time::timeout};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Connected(ConnectionId),
    Disconnected(ConnectionId),
    Requested(ConnectionId, String),
    /// Whether it was a clean end.
    Closed(ConnectionId, String, bool),
    UdpOpened(ConnectionId, u32),
    UdpClosed(ConnectionId, u32),
}

impl Event {
    pub(crate) fn is_connected(&self) -> bool {
        matches!(self, Self::Connected(_))
    }
    pub(crate) fn is_disconnected(&self) -> bool {
        matches!(self, Self::Disconnected(_))
    }
    pub(crate) fn is_requested(&self) -> bool {
        matches!(self, Self::Requested(..))
    }
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self, Self::Closed(..))
    }
    pub(crate) fn is_udp_opened(&self) -> bool {
        matches!(self, Self::UdpOpened(..))
    }
    pub(crate) fn is_udp_closed(&self) -> bool {
        matches!(self, Self::UdpClosed(..))
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Recorder(Arc<watch::Sender<Vec<Event>>>);

impl Recorder {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Vec::new())))
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.0.borrow().clone()
    }

    pub(crate) fn count(&self, which: impl Fn(&Event) -> bool) -> usize {
        self.0.borrow().iter().filter(|event| which(event)).count()
    }

    /// Waits until `count` events satisfy `which`.
    pub(crate) async fn until(&self, count: usize, which: impl Fn(&Event) -> bool) {
        let mut events = self.0.subscribe();
        let enough = events.wait_for(|events| events.iter().filter(|e| which(e)).count() >= count);
        let outcome = timeout(Duration::from_secs(20), enough).await.is_ok();
        assert!(outcome, "only these events: {:?}", self.events());
    }

    fn push(&self, event: Event) {
        self.0.send_modify(|events| events.push(event));
    }
}

impl EventSink for Recorder {
    fn connected(&self, peer: &Peer, _tx: Option<Bandwidth>) {
        self.push(Event::Connected(peer.connection));
    }
    fn disconnected(&self, peer: &Peer, _reason: &ConnectionError) {
        self.push(Event::Disconnected(peer.connection));
    }
    fn tcp_requested(&self, peer: &Peer, target: &str) {
        self.push(Event::Requested(peer.connection, target.to_owned()));
    }
    fn tcp_closed(&self, peer: &Peer, target: &str, error: Option<&(dyn Error + 'static)>) {
        self.push(Event::Closed(
            peer.connection,
            target.to_owned(),
            error.is_none(),
        ));
    }
    fn udp_opened(&self, peer: &Peer, session: u32, _target: &str) {
        self.push(Event::UdpOpened(peer.connection, session));
    }
    fn udp_closed(&self, peer: &Peer, session: u32) {
        self.push(Event::UdpClosed(peer.connection, session));
    }
}

/// Counts how many of its guards were made and dropped.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guards {
    made: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
}

impl Guards {
    pub(crate) fn guard(&self) -> impl Send + Sync + 'static {
        self.made.fetch_add(1, SeqCst);
        Guard(Arc::clone(&self.dropped))
    }

    pub(crate) fn made(&self) -> usize {
        self.made.load(SeqCst)
    }

    pub(crate) fn dropped(&self) -> usize {
        self.dropped.load(SeqCst)
    }
}

struct Guard(Arc<AtomicUsize>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}
