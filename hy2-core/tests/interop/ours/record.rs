//! The events of our server, kept until a test takes them.

use std::{error::Error, net::SocketAddr, sync::Arc};

use hy2_core::{
    Bandwidth,
    event::{ConnectionId, EventSink, Peer},
    quinn::ConnectionError,
};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::timeout};

use super::PATIENCE;

#[derive(Debug, Clone)]
#[allow(dead_code, reason = "shown whole when a wait fails")]
pub(crate) enum Event {
    Connected {
        connection: ConnectionId,
        remote: SocketAddr,
        /// The Brutal rate in bytes per second.
        tx: Option<u64>,
    },
    Disconnected(ConnectionError),
    TcpRequested(String),
    /// The target, and why it ended when not cleanly.
    TcpClosed(String, Option<String>),
    UdpOpened(u32, String),
    UdpClosed(u32),
}

/// An event sink that remembers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Record(Arc<State>);

#[derive(Debug, Default)]
struct State {
    events: Mutex<Vec<Event>>,
    news: Notify,
}

impl Record {
    /// Takes the first event that `pick` makes something of, waiting for it if need be.
    pub(crate) async fn take<T>(&self, what: &str, pick: impl Fn(&Event) -> Option<T>) -> T {
        let search = async {
            loop {
                let news = self.0.news.notified();
                tokio::pin!(news);
                news.as_mut().enable(); // before the look, so that no event slips between
                if let Some(found) = self.take_now(&pick) {
                    return found;
                }
                news.await;
            }
        };
        match timeout(PATIENCE, search).await {
            Ok(found) => found,
            Err(_) => panic!(
                "the server did not report within {PATIENCE:?}: {what}; it did: {:?}",
                self.0.events.lock()
            ),
        }
    }

    /// Takes such an event if it has come.
    pub(crate) fn take_now<T>(&self, pick: impl Fn(&Event) -> Option<T>) -> Option<T> {
        let mut events = self.0.events.lock();
        let (at, found) = events
            .iter()
            .enumerate()
            .find_map(|(at, event)| Some((at, pick(event)?)))?;
        events.remove(at);
        Some(found)
    }

    /// Waits for the next connection and returns its number and its Brutal rate.
    pub(crate) async fn connected(&self) -> (ConnectionId, Option<u64>) {
        self.take("a connection", |event| match event {
            Event::Connected { connection, tx, .. } => Some((*connection, *tx)),
            _ => None,
        })
        .await
    }

    /// Waits for the end of a connection.
    pub(crate) async fn disconnected(&self) -> ConnectionError {
        self.take("the end of a connection", |event| match event {
            Event::Disconnected(reason) => Some(reason.clone()),
            _ => None,
        })
        .await
    }

    /// Waits for the end of a relay to `wanted` and returns what was wrong with it.
    pub(crate) async fn tcp_closed(&self, wanted: &str) -> Option<String> {
        self.take("the end of a relay", |event| match event {
            Event::TcpClosed(target, error) if target == wanted => Some(error.clone()),
            _ => None,
        })
        .await
    }

    /// Waits for a UDP session whose first datagram went to `wanted`.
    pub(crate) async fn udp_opened(&self, wanted: &str) -> u32 {
        self.take("a UDP session", |event| match event {
            Event::UdpOpened(session, target) if target == wanted => Some(*session),
            _ => None,
        })
        .await
    }

    /// Waits for the end of a UDP session.
    pub(crate) async fn udp_closed(&self, wanted: u32) {
        self.take("the end of a UDP session", |event| match event {
            Event::UdpClosed(session) if *session == wanted => Some(()),
            _ => None,
        })
        .await;
    }

    fn add(&self, event: Event) {
        self.0.events.lock().push(event);
        self.0.news.notify_waiters();
    }
}

impl EventSink for Record {
    fn connected(&self, peer: &Peer, tx: Option<Bandwidth>) {
        self.add(Event::Connected {
            connection: peer.connection,
            remote: peer.remote,
            tx: tx.map(Bandwidth::bytes_per_sec),
        });
    }

    fn disconnected(&self, _peer: &Peer, reason: &ConnectionError) {
        self.add(Event::Disconnected(reason.clone()));
    }

    fn tcp_requested(&self, _peer: &Peer, target: &str) {
        self.add(Event::TcpRequested(target.to_owned()));
    }

    fn tcp_closed(&self, _peer: &Peer, target: &str, error: Option<&(dyn Error + 'static)>) {
        let error = error.map(ToString::to_string);
        self.add(Event::TcpClosed(target.to_owned(), error));
    }

    fn udp_opened(&self, _peer: &Peer, session: u32, target: &str) {
        self.add(Event::UdpOpened(session, target.to_owned()));
    }

    fn udp_closed(&self, _peer: &Peer, session: u32) {
        self.add(Event::UdpClosed(session));
    }
}
