//! Targets to relay to.

use std::{net::SocketAddr, sync::Arc};

use crate::payload::{self, Sum};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
};

/// A listener whose connections are served by a function; stops when dropped.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Origin {
    pub(crate) async fn tcp<F, Fut>(serve: F) -> Self
    where
        F: Fn(TcpStream) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let serve = Arc::new(serve);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let serve = Arc::clone(&serve);
                connections.spawn(async move { serve(stream).await });
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            address,
            _tasks: tasks,
        }
    }

    /// Sends back what it gets; ends when the peer ends.
    pub(crate) async fn echo() -> Self {
        Self::tcp(|mut stream| async move {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        })
        .await
    }

    /// Reads to the end, then answers with the number of bytes as eight bytes.
    pub(crate) async fn count() -> Self {
        Self::tcp(|mut stream| async move {
            let mut total = 0u64;
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                total += count as u64;
            }
            let _ = stream.write_all(&total.to_be_bytes()).await;
        })
        .await
    }

    /// Sends `len` bytes of payload and the end, then waits for the peer's end.
    pub(crate) async fn source(len: u64) -> Self {
        Self::tcp(move |mut stream| async move {
            let _ = payload::send(&mut stream, len).await;
            let _ = stream.shutdown().await;
            let _ = payload::receive(&mut stream).await;
        })
        .await
    }

    /// Sends without end.
    pub(crate) async fn endless() -> Self {
        Self::source(u64::MAX).await
    }

    /// Reads to the end, then answers with length and checksum, see [`read_sum`].
    pub(crate) async fn checksum() -> Self {
        Self::tcp(|mut stream| async move {
            if let Ok(sum) = payload::receive(&mut stream).await {
                let _ = stream.write_u64(sum.len).await;
                let _ = stream.write_all(&sum.sha256).await;
            }
        })
        .await
    }

    /// Sends back each datagram to where it came from.
    pub(crate) async fn udp_echo() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let address = socket.local_addr().expect("address");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut buffer = vec![0; 65_536];
            while let Ok((count, from)) = socket.recv_from(&mut buffer).await {
                let _ = socket.send_to(&buffer[..count], from).await;
            }
        });
        Self {
            address,
            _tasks: tasks,
        }
    }

    /// Sends the port of its sender back to each datagram's sender.
    pub(crate) async fn udp_mirror() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let address = socket.local_addr().expect("address");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((_, from)) = socket.recv_from(&mut buffer).await {
                let _ = socket.send_to(&from.port().to_be_bytes(), from).await;
            }
        });
        Self {
            address,
            _tasks: tasks,
        }
    }

    pub(crate) fn target(&self) -> String {
        self.address.to_string()
    }
}

/// Reads the answer of [`Origin::checksum`].
pub(crate) async fn read_sum(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Sum> {
    let len = from.read_u64().await?;
    let mut sha256 = [0; 32];
    from.read_exact(&mut sha256).await?;
    Ok(Sum { len, sha256 })
}
