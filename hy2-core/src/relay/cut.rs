//! A cut is not an end: who is on the other side must be able to tell them apart.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::outbound::TcpConnection;

/// A connection beside the tunnel that is cut when it is dropped, unless the end of what comes
/// through the tunnel was passed on to it.
///
/// Whether the tunnel failed or the relay was given up makes no difference. After the end was passed
/// on nothing is missing, and a cut could take away what is still on its way.
#[derive(Debug)]
pub(crate) struct CutUnlessEnded<C: TcpConnection> {
    connection: C,
    ended: bool,
}

impl<C: TcpConnection> CutUnlessEnded<C> {
    pub(crate) fn new(connection: C) -> Self {
        Self {
            connection,
            ended: false,
        }
    }
}

impl<C: TcpConnection> Drop for CutUnlessEnded<C> {
    fn drop(&mut self) {
        if !self.ended {
            self.connection.cut();
        }
    }
}

impl<C: TcpConnection> AsyncRead for CutUnlessEnded<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_read(cx, buf)
    }
}

impl<C: TcpConnection> AsyncWrite for CutUnlessEnded<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    /// Only the end that came through the tunnel, once everything before it was written, comes here.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.connection).poll_shutdown(cx);
        self.ended |= shut.is_ready();
        shut
    }
}
