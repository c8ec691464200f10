//! NodeManager, served by agents over connections that they open when the master asks for one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hy2_proto::control::rpc::node_manager_client::NodeManagerClient;
use hy2_proto::control::{MAX_MESSAGE, rpc};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint, Uri};

use super::live::LiveNodes;
use super::peers::PeerStream;
use crate::domain::NodeId;
use crate::secrets::{RandomError, random};

/// A client of one node's NodeManager.
pub type NodeClient = NodeManagerClient<Channel>;

/// A node cannot be commanded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReverseError {
    /// It has no Session with this master.
    #[error("the node is not connected to this master")]
    NotConnected,
    /// It did not open a connection in time.
    #[error("the node did not open a connection for commands in time")]
    TimedOut,
    /// No randomness.
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// Connections by which nodes are commanded, and those that are awaited.
#[derive(Debug, Default)]
pub(crate) struct Reverse {
    open: Mutex<HashMap<NodeId, Open>>,
    /// Locked before `open` where both are.
    awaited: Mutex<HashMap<NodeId, Awaited>>,
}

/// A connection that a node is asked for, and all who wait for it: an agent opens few at once.
#[derive(Debug)]
struct Awaited {
    ticket: Bytes,
    /// When to ask with the same ticket once more: the question may have gone with a Session, or the connection failed.
    ask_at: Instant,
    waiting: Vec<oneshot::Sender<Channel>>,
}

#[derive(Debug)]
struct Open {
    channel: Channel,
    used: Instant,
    closed: tokio_util::sync::CancellationToken,
}

impl Reverse {
    /// Returns a client of a node; asks for a connection when there is none.
    pub(crate) async fn client(
        &self,
        live: &LiveNodes,
        node: NodeId,
        timeout: Duration,
    ) -> Result<NodeClient, ReverseError> {
        if let Some(channel) = self.reuse(node) {
            return Ok(client(channel));
        }
        let (opened, mut wait) = oneshot::channel();
        let ticket = self.join(node, opened)?;
        let result = async {
            loop {
                if self.is_to_ask(node, &ticket) {
                    let ask = rpc::session_response::Event::OpenReverse(rpc::OpenReverse {
                        ticket: ticket.clone(),
                    });
                    if !live.send(node, ask).await {
                        // It is so for all who wait.
                        self.awaited.lock().remove(&node);
                        return Err(ReverseError::NotConnected);
                    }
                }
                match tokio::time::timeout(ASK_AGAIN, &mut wait).await {
                    Ok(Ok(channel)) => return Ok(client(channel)),
                    Ok(Err(_)) => return Err(ReverseError::NotConnected),
                    Err(_) => {}
                }
            }
        };
        let result = tokio::time::timeout(timeout, result).await;
        drop(wait);
        self.forget_who_left(node);
        result.unwrap_or(Err(ReverseError::TimedOut))
    }

    /// Adds somebody who waits for a node's connection, and returns the ticket that it comes with.
    fn join(&self, node: NodeId, opened: oneshot::Sender<Channel>) -> Result<Bytes, RandomError> {
        let mut awaited = self.awaited.lock();
        // It may have come since the caller looked.
        if let Some(channel) = self.reuse(node) {
            let _ = opened.send(channel);
            return Ok(Bytes::new());
        }
        if let Some(awaited) = awaited.get_mut(&node)
            && awaited.is_wanted()
        {
            awaited.waiting.push(opened);
            return Ok(awaited.ticket.clone());
        }
        let ticket = Bytes::copy_from_slice(&*random::<16>()?);
        let asked = Awaited {
            ticket: ticket.clone(),
            ask_at: Instant::now(),
            waiting: vec![opened],
        };
        awaited.insert(node, asked);
        Ok(ticket)
    }

    /// Whether the caller is to ask the node for the connection with this ticket: one of those who wait does.
    fn is_to_ask(&self, node: NodeId, ticket: &Bytes) -> bool {
        let mut awaited = self.awaited.lock();
        let Some(awaited) = awaited.get_mut(&node) else {
            return false;
        };
        let now = Instant::now();
        if awaited.ticket != *ticket || now < awaited.ask_at {
            return false;
        }
        awaited.ask_at = now + ASK_AGAIN;
        true
    }

    fn forget_who_left(&self, node: NodeId) {
        let mut awaited = self.awaited.lock();
        if awaited.get_mut(&node).is_some_and(|one| !one.is_wanted()) {
            awaited.remove(&node);
        }
    }

    /// Takes a connection that a node opened: its first bytes are the ticket of who waits for it.
    pub(super) async fn accept(&self, node: NodeId, mut stream: PeerStream) -> Result<(), String> {
        let length = usize::from(stream.read_u8().await.map_err(|error| error.to_string())?);
        let mut ticket = vec![0; length];
        stream
            .read_exact(&mut ticket)
            .await
            .map_err(|error| error.to_string())?;
        let mut awaited = self.awaited.lock();
        // Only the node that was asked may answer.
        let waiting = match awaited.entry(node) {
            Entry::Occupied(asked) if asked.get().ticket == ticket => asked.remove().waiting,
            _ => return Err("nobody waits for this connection".to_owned()),
        };
        let closed = tokio_util::sync::CancellationToken::new();
        let stream = Watched {
            stream,
            _guard: closed.clone().drop_guard(),
        };
        let mut once = Some(stream);
        // The address is never resolved: the connector has the connection already.
        let channel = Endpoint::from_static("http://node.invalid")
            .timeout(Duration::from_secs(600))
            .connect_with_connector_lazy(Connector(Arc::new(Mutex::new(once.take()))));
        self.open.lock().insert(
            node,
            Open {
                channel: channel.clone(),
                used: Instant::now(),
                closed,
            },
        );
        for opened in waiting {
            // Who waits no longer needs none.
            let _ = opened.send(channel.clone());
        }
        Ok(())
    }

    /// Closes connections that nobody has used for `idle`.
    pub(crate) fn close_idle(&self, idle: Duration) {
        self.open
            .lock()
            .retain(|_, open| !open.closed.is_cancelled() && open.used.elapsed() < idle);
    }

    fn reuse(&self, node: NodeId) -> Option<Channel> {
        let mut all = self.open.lock();
        let open = all.get_mut(&node)?;
        if open.closed.is_cancelled() {
            all.remove(&node);
            return None;
        }
        open.used = Instant::now();
        Some(open.channel.clone())
    }
}

impl Awaited {
    /// Whether somebody still waits.
    fn is_wanted(&mut self) -> bool {
        self.waiting.retain(|opened| !opened.is_closed());
        !self.waiting.is_empty()
    }
}

/// A node that does not open the connection it was asked for is asked again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(3);

fn client(channel: Channel) -> NodeClient {
    NodeManagerClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

/// Gives its one connection to the first who asks.
struct Connector(Arc<Mutex<Option<Watched>>>);

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Watched>;
    type Error = io::Error;
    type Future = std::future::Ready<Result<Self::Response, io::Error>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), io::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let stream = self.0.lock().take();
        std::future::ready(stream.map(TokioIo::new).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotConnected,
                "the node closed the connection",
            )
        }))
    }
}

/// A connection whose end is seen.
struct Watched {
    stream: PeerStream,
    _guard: tokio_util::sync::DropGuard,
}

impl tokio::io::AsyncRead for Watched {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for Watched {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
