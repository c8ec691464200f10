//! Joins a local connection and a stream through the tunnel.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional_with_sizes};

use super::Dialer;
use crate::{outbound::TcpConnection, relay::CutUnlessEnded};

/// Bytes held per direction.
const BUFFER: usize = 32 << 10;

/// Joins a program with its tunnel. A program whose tunnel is cut (the stream reset, the connection
/// lost, the inbound stopped) is reset: what it received so far does not look whole.
///
/// # Errors
///
/// As [`Dialer::join`].
pub(super) async fn join<D: Dialer, L: TcpConnection>(
    local: L,
    tunnel: D::Stream,
    early: Bytes,
) -> io::Result<()> {
    D::join(CutUnlessEnded::new(local), tunnel, early).await
}

/// Copies both ways until both directions ended. `early` are bytes of the local program that
/// were read together with its request; they go first. The end of one direction is passed on and
/// leaves the other one open.
///
/// # Errors
///
/// The first read or write error of either side; both sides are to be dropped then.
pub(super) async fn relay<A, B>(mut local: A, mut tunnel: B, early: Bytes) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    if !early.is_empty() {
        tunnel.write_all(&early).await?;
    }
    copy_bidirectional_with_sizes(&mut local, &mut tunnel, BUFFER, BUFFER).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, duplex};

    use super::*;

    #[tokio::test]
    async fn early_bytes_go_first_and_half_close_passes_both_ways() {
        let (mut program, local) = duplex(64);
        let (mut target, tunnel) = duplex(64);
        let joined =
            tokio::spawn(async move { relay(local, tunnel, Bytes::from_static(b"early ")).await });

        program.write_all(b"late").await.expect("write");
        program.shutdown().await.expect("shutdown");
        let mut seen = String::new();
        target.read_to_string(&mut seen).await.expect("read");
        assert_eq!(seen, "early late");

        // The other direction still works after the first one ended.
        target.write_all(b"answer").await.expect("write");
        target.shutdown().await.expect("shutdown");
        seen.clear();
        program.read_to_string(&mut seen).await.expect("read");
        assert_eq!(seen, "answer");
        joined.await.expect("task").expect("relay");
    }
}
