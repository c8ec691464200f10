//! NodeManager, served by agents over connections that they open when the master asks for one.

use std::collections::HashMap;
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
use crate::secrets::random;

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
    Random(#[from] crate::secrets::RandomError),
}

/// Connections by which nodes are commanded, and those that are awaited.
#[derive(Debug, Default)]
pub(crate) struct Reverse {
    open: Mutex<HashMap<NodeId, Open>>,
    awaited: Mutex<HashMap<Bytes, (NodeId, oneshot::Sender<Channel>)>>,
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
        let ticket = Bytes::copy_from_slice(&*random::<16>()?);
        let (opened, wait) = oneshot::channel();
        self.awaited.lock().insert(ticket.clone(), (node, opened));
        let result = async {
            let ask = rpc::session_response::Event::OpenReverse(rpc::OpenReverse {
                ticket: ticket.clone(),
            });
            if !live.send(node, ask).await {
                return Err(ReverseError::NotConnected);
            }
            match tokio::time::timeout(timeout, wait).await {
                Ok(Ok(channel)) => Ok(client(channel)),
                _ => Err(ReverseError::TimedOut),
            }
        }
        .await;
        self.awaited.lock().remove(&ticket);
        result
    }

    /// Takes a connection that a node opened: its first bytes are the ticket of who waits for it.
    pub(super) async fn accept(&self, node: NodeId, mut stream: PeerStream) -> Result<(), String> {
        let length = usize::from(stream.read_u8().await.map_err(|error| error.to_string())?);
        let mut ticket = vec![0; length];
        stream
            .read_exact(&mut ticket)
            .await
            .map_err(|error| error.to_string())?;
        let waiting = {
            let mut awaited = self.awaited.lock();
            match awaited.get(ticket.as_slice()) {
                // Only the node that was asked may answer.
                Some((asked, _)) if *asked == node => awaited.remove(ticket.as_slice()),
                _ => None,
            }
        };
        let (_, opened) = waiting.ok_or("nobody waits for this connection")?;
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
        opened
            .send(channel)
            .map_err(|_| "nobody waits any longer".to_owned())
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
