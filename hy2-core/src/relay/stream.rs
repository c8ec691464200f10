//! A TCP stream through the tunnel, as a client's embedder sees it.

use std::{
    any::Any,
    fmt, io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use hy2_proto::{codec::DecodeError, tcp::TcpResponse};
use quinn::SendStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    copy::{NoTally, STREAM_DONE, relay},
    recv::RelayRecv,
};
use crate::error::{OpenError, RelayFailure};

/// A TCP connection to a target, carried by the tunnel.
///
/// Reads and writes like a socket. `shutdown` sends the end of the stream and reading goes on
/// (servers of the reference end both directions then). Dropping it ends both directions.
///
/// With fast open the server's answer is read by the first read; a refused target shows there as
/// an [`io::Error`] whose source is an [`OpenError`].
pub struct TcpStream {
    send: SendStream,
    recv: RelayRecv,
    opening: Opening,
    current: Bytes,
    /// Keeps the connection open.
    _owner: Option<Arc<dyn Any + Send + Sync>>,
}

/// Whether the target is reached.
#[derive(Debug)]
enum Opening {
    /// The answer is still to come (fast open).
    Waiting(Answer),
    Open,
    Failed(OpenError),
}

/// Collects the server's answer to a TCP request.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    bytes: BytesMut,
}

impl Answer {
    /// Waits for the answer and judges it; what follows it stays in `recv`.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        recv: &mut RelayRecv,
    ) -> Poll<Result<(), OpenError>> {
        loop {
            match TcpResponse::decode(&self.bytes) {
                Ok((response, consumed)) => {
                    let result = if response.ok {
                        Ok(())
                    } else {
                        Err(OpenError::Refused(response.message.to_owned()))
                    };
                    self.bytes.advance(consumed);
                    recv.put_back(self.bytes.split().freeze());
                    return Poll::Ready(result);
                }
                Err(DecodeError::Incomplete) => {}
                Err(error) => return Poll::Ready(Err(OpenError::Protocol(error))),
            }
            match ready!(recv.poll_chunk(cx, hy2_proto::tcp::MAX_RESPONSE_LEN)) {
                Ok(Some(bytes)) => self.bytes.extend_from_slice(&bytes),
                Ok(None) => return Poll::Ready(Err(OpenError::Ended)),
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl TcpStream {
    pub(crate) fn new(send: SendStream, recv: RelayRecv, answered: bool) -> Self {
        Self {
            send,
            recv,
            opening: if answered {
                Opening::Open
            } else {
                Opening::Waiting(Answer::default())
            },
            current: Bytes::new(),
            _owner: None,
        }
    }

    /// Keeps `owner` as long as the stream lives.
    pub(crate) fn keeping(self, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self {
            _owner: Some(owner),
            ..self
        }
    }

    /// Waits until the server said that the target is reached. Returns at once without fast open.
    ///
    /// # Errors
    ///
    /// [`OpenError::Refused`] with the server's words; others when the tunnel failed.
    ///
    /// # Cancel safety
    ///
    /// Safe: what came of the answer is kept.
    pub async fn established(&mut self) -> Result<(), OpenError> {
        std::future::poll_fn(|cx| self.poll_established(cx)).await
    }

    fn poll_established(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), OpenError>> {
        if let Opening::Waiting(answer) = &mut self.opening {
            self.opening = match ready!(answer.poll(cx, &mut self.recv)) {
                Ok(()) => Opening::Open,
                Err(error) => {
                    self.recv.stop(STREAM_DONE);
                    Opening::Failed(error)
                }
            };
        }
        // A failure stays one, also for whoever reads again.
        Poll::Ready(match &self.opening {
            Opening::Failed(error) => Err(error.clone()),
            _ => Ok(()),
        })
    }

    /// Takes the next bytes as they came, without copying; `None` at the end.
    ///
    /// # Errors
    ///
    /// As reading.
    ///
    /// # Cancel safety
    ///
    /// Safe: bytes are only taken when returned.
    pub async fn read_chunk(&mut self) -> io::Result<Option<Bytes>> {
        std::future::poll_fn(|cx| self.poll_read_chunk(cx)).await
    }

    fn poll_read_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        if !self.current.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.current))));
        }
        ready!(self.poll_established(cx)).map_err(io::Error::other)?;
        let chunk = ready!(self.recv.poll_chunk(cx, usize::MAX));
        Poll::Ready(chunk.map_err(|error| io::Error::other(OpenError::from(error))))
    }

    /// Sends `bytes` without copying them.
    ///
    /// # Errors
    ///
    /// As writing.
    ///
    /// # Cancel safety
    ///
    /// Not safe: part of the bytes may have been sent.
    pub async fn write_chunk(&mut self, bytes: Bytes) -> io::Result<()> {
        Ok(self.send.write_chunk(bytes).await?)
    }

    /// Waits until the peer has everything that was sent, or wants no more of it.
    pub(crate) async fn acknowledged(&self) {
        let _ = self.send.stopped().await;
    }

    /// Joins this stream with a local connection until both directions are over.
    ///
    /// The fastest way to carry a connection: no intermediate buffers, vectored writes,
    /// half-close in both directions.
    ///
    /// # Errors
    ///
    /// [`RelayFailure`] when a side failed before its clean end.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends both connections; the peer sees a reset.
    pub async fn relay<S>(mut self, mut local: S) -> Result<(), RelayFailure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if let Opening::Waiting(_) = self.opening {
            // What the local side says first must go out before the answer comes.
            self.carry_until_answer(&mut local).await?;
        }
        self.established().await.map_err(RelayFailure::Open)?;
        relay(&mut local, &mut self.send, &mut self.recv, NoTally)
            .await
            .map_err(RelayFailure::from)
    }

    /// Sends what `local` says until the server answers or `local` has said all.
    async fn carry_until_answer<S>(&mut self, local: &mut S) -> Result<(), RelayFailure>
    where
        S: AsyncRead + Unpin,
    {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(EARLY_READ);
            let step = std::future::poll_fn(|cx| {
                if self.poll_established(cx).is_ready() {
                    return Poll::Ready(Step::Answered);
                }
                let read = tokio_util::io::poll_read_buf(Pin::new(&mut *local), cx, &mut buffer);
                read.map(Step::Local)
            })
            .await;
            match step {
                Step::Answered => return Ok(()),
                Step::Local(Ok(0)) => {
                    // Fails only when the server stopped the stream; its answer says why.
                    let _ = self.send.finish();
                    return Ok(());
                }
                Step::Local(Ok(_)) => {
                    if let Err(error) = self.send.write_chunk(buffer.split().freeze()).await {
                        // A server that refuses the target takes no more and says why.
                        self.established().await.map_err(RelayFailure::Open)?;
                        return Err(RelayFailure::tunnel(error));
                    }
                }
                Step::Local(Err(error)) => return Err(RelayFailure::Local(error)),
            }
        }
    }
}

/// Read from the local side at a time, while the server has not answered.
const EARLY_READ: usize = 16 << 10;

enum Step {
    Answered,
    Local(io::Result<usize>),
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpStream")
            .field("id", &self.send.id())
            .finish_non_exhaustive()
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let this = &mut *self;
        if this.current.is_empty() {
            match ready!(this.poll_read_chunk(cx))? {
                Some(chunk) => this.current = chunk,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = this.current.len().min(buf.remaining());
        buf.put_slice(&this.current.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        pin!(self.send.write(buf)).poll(cx).map_err(Into::into)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Fails only when the stream is over already.
        let _ = self.send.finish();
        Poll::Ready(Ok(()))
    }
}
