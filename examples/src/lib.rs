//! What the examples need around them: a throw-away certificate and targets on loopback.
//!
//! Nothing here belongs into a real deployment; the examples do.

use std::{net::SocketAddr, sync::Arc};

use hy2_core::{
    ClientConfig,
    client::ServerAddress,
    rustls::{RootCertStore, pki_types::PrivateKeyDer},
    tls::ServerTls,
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, UdpSocket},
};

/// Makes a certificate for `localhost` and the roots that trust it.
///
/// # Errors
///
/// When the certificate cannot be made.
pub fn certificate() -> anyhow::Result<(ServerTls, Arc<RootCertStore>)> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key =
        PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone())?;
    let tls = ServerTls::from_der(vec![made.cert.der().clone()], key)?;
    Ok((tls, Arc::new(roots)))
}

/// Describes a client of a server on loopback that serves such a certificate.
pub fn client_config(server: SocketAddr, auth: &str, roots: Arc<RootCertStore>) -> ClientConfig {
    let server = ServerAddress::new(server.ip().to_string(), server.port());
    let mut config = ClientConfig::new(server, auth);
    config.tls.sni = Some("localhost".to_owned());
    config.tls.roots = Some(roots);
    config
}

/// Starts a TCP target that sends back what it gets, for as long as the process runs.
///
/// # Errors
///
/// When no port is free.
pub async fn tcp_echo() -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    Ok(address)
}

/// Starts a TCP target that sends zeros for as long as somebody takes them.
///
/// # Errors
///
/// When no port is free.
pub async fn tcp_zeros() -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move { while stream.write_all(&[0; 16 << 10]).await.is_ok() {} });
        }
    });
    Ok(address)
}

/// Starts a UDP target that sends each datagram back to where it came from.
///
/// # Errors
///
/// When no port is free.
pub async fn udp_echo() -> std::io::Result<SocketAddr> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    let address = socket.local_addr()?;
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..len], from).await;
        }
    });
    Ok(address)
}
