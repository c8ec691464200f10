//! Tells quinn when a socket has room to send.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use quinn::UdpPoller;
use tokio_util::sync::ReusableBoxFuture;

/// What a [`WritablePoller`] waits for.
pub(super) trait Writable: Send + Sync + 'static {
    /// Returns whether there is room as far as known, at no cost.
    fn is_writable(&self) -> bool;

    /// Waits until there is room.
    fn writable(self: Arc<Self>) -> impl Future<Output = io::Result<()>> + Send;
}

/// Waits for room on behalf of one quinn connection.
///
/// Nothing is allocated while there is room, and one future that is used again when there
/// is not: tokio's own `poll_send_ready` remembers a single waker per socket, which does
/// not do for many connections.
pub(super) struct WritablePoller<S> {
    socket: Arc<S>,
    wait: Option<ReusableBoxFuture<'static, io::Result<()>>>,
    waiting: bool,
}

impl<S: Writable> WritablePoller<S> {
    pub(super) fn new(socket: Arc<S>) -> Self {
        Self {
            socket,
            wait: None,
            waiting: false,
        }
    }
}

impl<S: Writable> UdpPoller for WritablePoller<S> {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.socket.is_writable() {
            return Poll::Ready(Ok(()));
        }
        if !this.waiting {
            let future = this.socket.clone().writable();
            match &mut this.wait {
                Some(wait) => wait.set(future),
                None => this.wait = Some(ReusableBoxFuture::new(future)),
            }
            this.waiting = true;
        }
        let Some(wait) = &mut this.wait else {
            return Poll::Ready(Ok(()));
        };
        let result = wait.poll(cx);
        if result.is_ready() {
            this.waiting = false;
        }
        result
    }
}

impl<S> fmt::Debug for WritablePoller<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WritablePoller").finish_non_exhaustive()
    }
}
