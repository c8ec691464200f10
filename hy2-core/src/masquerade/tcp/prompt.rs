//! A connection whose peer has to begin in time.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// What HTTP/2 begins with, in bytes (RFC 9113 §3.4); HTTP/1 is told from it by these.
const PREFACE: usize = 24;

/// Fails the read of a peer that says nothing.
///
/// hyper's own timeouts begin when it knows which HTTP is spoken. Until then a peer could keep its
/// place for good, and with as many as there are places keep everybody from the site.
#[derive(Debug)]
pub(super) struct Prompt<S> {
    stream: S,
    /// Runs until the peer has begun.
    silence: Option<Pin<Box<Sleep>>>,
    missing: usize,
    /// Whether a write means that the peer has begun; a server of HTTP/2 speaks first.
    is_answer: bool,
}

impl<S> Prompt<S> {
    pub(super) fn new(stream: S, is_http2: bool, limit: Duration) -> Self {
        Self {
            is_answer: !is_http2,
            stream,
            silence: Some(Box::pin(sleep(limit))),
            missing: PREFACE,
        }
    }

    fn answers(&mut self) {
        if self.is_answer {
            self.silence = None;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prompt<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, buf) {
            let bytes = buf.filled().len() - before;
            self.missing = self.missing.saturating_sub(bytes);
            if self.missing == 0 {
                self.silence = None;
            }
            return Poll::Ready(read);
        }
        let Some(silence) = &mut self.silence else {
            return Poll::Pending;
        };
        ready!(silence.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Whoever is answered has begun.
impl<S: AsyncWrite + Unpin> AsyncWrite for Prompt<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.answers();
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.answers();
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
