//! Targets on loopback, all behaviours that a relay has to bear.

use std::net::SocketAddr;

use anyhow::Result;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
};

/// Where they are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origins {
    pub(crate) echo: SocketAddr,
    /// Sends for ever.
    pub(crate) source: SocketAddr,
    /// Answers the first byte with a reset.
    pub(crate) resetter: SocketAddr,
    /// Takes nothing and says nothing.
    pub(crate) silent: SocketAddr,
    /// Nobody listens there.
    pub(crate) refused: SocketAddr,
    pub(crate) udp: SocketAddr,
}

impl Origins {
    /// Starts them; they live as long as the process.
    pub(crate) async fn start() -> Result<Self> {
        // Bound for the whole life of the process: nobody else gets it, nor a connection to it from itself.
        let refused = TcpSocket::new_v4()?;
        refused.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let refused: &TcpSocket = Box::leak(Box::new(refused));
        Ok(Self {
            echo: listen(echo).await?,
            source: listen(source).await?,
            resetter: listen(reset).await?,
            silent: listen(silent).await?,
            refused: refused.local_addr()?,
            udp: udp().await?,
        })
    }
}

async fn listen<F>(serve: fn(TcpStream) -> F) -> Result<SocketAddr>
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    // For the whole life of the process, as is each connection for its own.
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                // Its peer ends it in every way there is.
                Ok((stream, _)) => drop(tokio::spawn(serve(stream))),
                // Out of descriptors, for a moment.
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
    });
    Ok(address)
}

async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let (mut reader, mut writer) = stream.split();
    tokio::io::copy(&mut reader, &mut writer).await?;
    writer.shutdown().await
}

async fn source(mut stream: TcpStream) -> std::io::Result<()> {
    let block = [7; 16 << 10];
    loop {
        stream.write_all(&block).await?;
    }
}

async fn reset(mut stream: TcpStream) -> std::io::Result<()> {
    stream.read_u8().await?;
    SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO))
}

async fn silent(mut stream: TcpStream) -> std::io::Result<()> {
    let mut byte = [0];
    // Waits for the end without taking what comes before it.
    stream.peek(&mut byte).await?;
    stream.readable().await?;
    while stream.read(&mut byte).await? > 0 {}
    Ok(())
}

async fn udp() -> Result<SocketAddr> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    let address = socket.local_addr()?;
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        loop {
            // Errors are answers from ports that closed.
            if let Ok((len, from)) = socket.recv_from(&mut buffer).await {
                let _ = socket.send_to(&buffer[..len], from).await;
            }
        }
    });
    Ok(address)
}
