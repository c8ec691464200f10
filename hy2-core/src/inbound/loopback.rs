//! A dialer for tests: the "tunnel" is the loopback interface.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use hy2_proto::address::Address;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

use super::{DialFailure, Dialer, DialerUdp};

/// Connects to loopback addresses itself; names are reached as `127.0.0.1`.
#[derive(Debug, Clone, Default)]
pub(super) struct Loopback {
    failure: Option<DialFailure>,
    /// Every target that was asked for, in order.
    pub(super) asked: Arc<Mutex<Vec<String>>>,
    /// UDP sessions alive.
    pub(super) sessions: Arc<AtomicUsize>,
}

impl Loopback {
    pub(super) fn failing(failure: DialFailure) -> Self {
        Self {
            failure: Some(failure),
            ..Self::default()
        }
    }

    fn note(&self, target: &Address) -> Result<SocketAddr, DialFailure> {
        self.asked.lock().push(target.to_string());
        match self.failure {
            Some(failure) => Err(failure),
            None => Ok(reach(target)),
        }
    }
}

fn reach(target: &Address) -> SocketAddr {
    target
        .socket_addr()
        .unwrap_or_else(|| ([127, 0, 0, 1], target.port).into())
}

impl Dialer for Loopback {
    type Stream = TcpStream;
    type Udp = LoopbackUdp;

    async fn tcp(&self, target: &Address) -> Result<TcpStream, DialFailure> {
        let address = self.note(target)?;
        TcpStream::connect(address)
            .await
            .map_err(|_| DialFailure::Refused)
    }

    async fn udp(&self) -> Result<LoopbackUdp, DialFailure> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        self.sessions.fetch_add(1, SeqCst);
        Ok(LoopbackUdp {
            socket,
            dialer: self.clone(),
        })
    }
}

#[derive(Debug)]
pub(super) struct LoopbackUdp {
    socket: UdpSocket,
    dialer: Loopback,
}

impl Drop for LoopbackUdp {
    fn drop(&mut self) {
        self.dialer.sessions.fetch_sub(1, SeqCst);
    }
}

impl DialerUdp for LoopbackUdp {
    async fn send(&self, data: &[u8], target: &Address) -> Result<(), DialFailure> {
        let address = self.dialer.note(target)?;
        let _ = self.socket.send_to(data, address).await;
        Ok(())
    }

    async fn recv(&self) -> Option<(Bytes, Address)> {
        let mut buffer = vec![0; 65_536];
        let (len, from) = self.socket.recv_from(&mut buffer).await.ok()?;
        buffer.truncate(len);
        Some((buffer.into(), from.into()))
    }
}

/// Starts a TCP server that sends back what it gets.
pub(super) async fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    address
}

/// Starts a TCP server that says "part" and ends each connection once it gets a byte: a cut for
/// [`CUT`], the end for any other.
pub(super) async fn ending_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(b"part").await.expect("write");
                if stream.read_u8().await.expect("a byte") == CUT {
                    stream.set_zero_linger().expect("linger");
                }
            });
        }
    });
    address
}

/// Asks [`ending_server`] for a cut.
pub(super) const CUT: u8 = b'!';

/// Reads "part" from an [`ending_server`] that is asked for a cut or for the end, and then for what
/// comes.
pub(super) async fn read_to_end_of(program: &mut TcpStream, ask: u8) -> io::Result<usize> {
    let mut seen = [0; 4];
    program.read_exact(&mut seen).await.expect("read");
    assert_eq!(&seen, b"part");
    program.write_all(&[ask]).await.expect("write");
    program.read(&mut seen).await
}

/// Starts a UDP server that sends back what it gets.
pub(super) async fn udp_echo_server() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    let address = socket.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..len], from).await;
        }
    });
    address
}
