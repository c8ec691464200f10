//! The accept loop that all TCP inbounds share.

use std::{
    future::Future,
    io::{self, Read},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use socket2::{Protocol, SockRef, TcpKeepalive, Type};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::socket::listen::bind;
pub(super) use crate::socket::listen::bind_tcp;

/// Local programs that vanish without a FIN are noticed after about this time.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Pause after an accept error that a retry at once would repeat (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What local UDP sockets ask for, in bytes; the kernel caps it. The default of many hosts, 208 KiB,
/// is full with 90 datagrams of full size, because each counts with its book-keeping.
const UDP_BUFFER: usize = 1 << 20;

/// Binds a UDP socket by the same rules as [`bind_tcp`].
pub(super) fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = bind(address, Type::DGRAM, Protocol::UDP, |_| Ok(()))?;
    let _ = socket.set_recv_buffer_size(UDP_BUFFER);
    let _ = socket.set_send_buffer_size(UDP_BUFFER);
    UdpSocket::from_std(socket.into())
}

/// Most that is read of a connection before its stream is open, in bytes.
const FIRST: usize = 4 << 10;

/// Takes what a program said right after it connected, without waiting. The runtime does not know
/// of it yet.
///
/// # Errors
///
/// The program reset the connection, which the system tells once.
pub(super) fn read_now(stream: &TcpStream) -> io::Result<Bytes> {
    let mut first = [0; FIRST];
    match (&*SockRef::from(stream)).read(&mut first) {
        Ok(read) => Ok(Bytes::copy_from_slice(
            first.get(..read).unwrap_or_default(),
        )),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Bytes::new()),
        Err(error) => Err(error),
    }
}

/// Accepts connections until `stop` is cancelled and runs `handle` for each, at most `slots` at
/// once. Returns after all handlers ended; cancelling ends them at once.
pub(super) async fn serve<F, Fut>(
    listener: &TcpListener,
    slots: usize,
    stop: &CancellationToken,
    handle: F,
) where
    F: Fn(TcpStream, SocketAddr) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(slots.clamp(1, Semaphore::MAX_PERMITS)));
    let mut tasks = JoinSet::new();
    if INHERITED {
        prepare(SockRef::from(listener));
    }
    loop {
        // Every arm is cancel safe: an accepted connection is returned or not accepted at all,
        // and a permit that was not returned goes back.
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = tasks.join_next() => {
                report_panic(ended);
                continue;
            }
            accepted = async {
                let slot = Arc::clone(&slots).acquire_owned().await;
                (slot, listener.accept().await)
            } => accepted,
        };
        match accepted {
            (Ok(slot), Ok((stream, peer))) => {
                if !INHERITED {
                    prepare(SockRef::from(&stream));
                }
                let work = handle(stream, peer);
                tasks.spawn(async move {
                    work.await;
                    drop(slot);
                });
            }
            (_, Err(error)) => {
                warn!(%error, "cannot accept a local connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            // The semaphore is never closed while this function holds it.
            (Err(_), _) => break,
        }
    }
    tasks.shutdown().await;
}

/// Logs the panic of a task that served one connection; the others go on.
pub(super) fn report_panic<T>(ended: Result<T, JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        metrics::counter!("hy2_panics_total").increment(1);
        error!(%error, "a local connection's task panicked");
    }
}

/// Whether accepted sockets have the options of their listener, which saves three calls for each.
const INHERITED: bool = cfg!(any(target_os = "linux", target_os = "android"));

/// Small writes go out at once; a peer that vanished is noticed. Neither is worth failing for.
fn prepare(socket: SockRef<'_>) {
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE));
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn unspecified_address_takes_both_families() {
        let listener = bind_tcp("[::]:0".parse().expect("address")).expect("bind");
        let port = listener.local_addr().expect("bound").port();
        let (connected, accepted) =
            tokio::join!(TcpStream::connect(("127.0.0.1", port)), listener.accept());
        connected.expect("connected");
        accepted.expect("accepted");
    }

    #[tokio::test]
    async fn an_address_in_use_is_an_error() {
        let first = bind_tcp("[::]:0".parse().expect("address")).expect("bind");
        let port = first.local_addr().expect("bound").port();
        let again = bind_tcp(SocketAddr::from(([0u16; 8], port)));
        assert_eq!(again.expect_err("taken").kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn small_writes_go_out_at_once_and_vanished_programs_are_noticed() {
        let listener = bind_tcp(([127, 0, 0, 1], 0).into()).expect("bind");
        let address = listener.local_addr().expect("bound");
        let stop = CancellationToken::new();
        let (found, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let look = |stream: TcpStream, _| {
            let socket = SockRef::from(&stream);
            let options = (
                socket.tcp_nodelay().expect("option"),
                socket.keepalive().expect("option"),
                socket.tcp_keepalive_time().expect("option"),
            );
            let _ = found.send(options);
            std::future::ready(())
        };
        let ask = async {
            let _program = TcpStream::connect(address).await.expect("connect");
            let options = seen.recv().await.expect("accepted");
            stop.cancel();
            options
        };
        let ((), options) = tokio::join!(serve(&listener, 1, &stop, look), ask);
        assert_eq!(options, (true, true, KEEPALIVE));
    }

    #[tokio::test]
    async fn a_connection_above_the_cap_waits_for_a_slot() {
        let listener = bind_tcp(([127, 0, 0, 1], 0).into()).expect("bind");
        let address = listener.local_addr().expect("bound");
        let stop = CancellationToken::new();
        let server = tokio::spawn({
            let stop = stop.clone();
            async move {
                // Greets, then stays until the peer closes.
                serve(&listener, 1, &stop, |mut stream, _| async move {
                    let _ = stream.write_all(b"hi").await;
                    let _ = stream.read(&mut [0; 1]).await;
                })
                .await;
            }
        });
        let mut greeting = [0; 2];
        let mut first = TcpStream::connect(address).await.expect("first");
        first.read_exact(&mut greeting).await.expect("greeting");
        let mut second = TcpStream::connect(address).await.expect("second");
        let early = tokio::time::timeout(Duration::from_millis(50), second.read(&mut greeting));
        assert!(early.await.is_err(), "served above the cap");
        drop(first);
        second.read_exact(&mut greeting).await.expect("greeting");
        stop.cancel();
        server.await.expect("server ends with its token");
        assert_eq!(second.read(&mut greeting).await.ok(), Some(0));
    }

    #[tokio::test]
    async fn what_a_program_says_at_once_is_taken_and_its_reset_is_seen() {
        let listener = bind_tcp(([127, 0, 0, 1], 0).into()).expect("bind");
        let address = listener.local_addr().expect("bound");
        let mut program = std::net::TcpStream::connect(address).expect("connect");
        let (stream, _) = listener.accept().await.expect("accept");
        assert!(read_now(&stream).expect("nothing yet").is_empty());
        io::Write::write_all(&mut program, b"first").expect("write");
        assert_eq!(read_now(&stream).expect("bytes"), b"first"[..]);
        SockRef::from(&program)
            .set_linger(Some(Duration::ZERO))
            .expect("linger");
        drop(program);
        let error = read_now(&stream).expect_err("a reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
