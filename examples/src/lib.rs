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
use hy2_proto::uri::ShareUri;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
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

/// Describes the client that a share link describes.
///
/// # Errors
///
/// When it is no link, or its pin is no fingerprint.
pub fn client_of(link: &str) -> anyhow::Result<ClientConfig> {
    let uri: ShareUri = link.parse()?;
    let port = uri.server_ports().iter().next().unwrap_or(443);
    let server = ServerAddress::new(uri.host.to_string(), port);
    let mut config = ClientConfig::new(server, uri.auth.unwrap_or_default());
    config.tls.sni = uri.sni;
    config.tls.insecure = uri.insecure;
    if let Some(pin) = uri.pin_sha256 {
        let mut hash = [0; 32];
        hex::decode_to_slice(hy2_proto::uri::normalise_pin(&pin), &mut hash)?;
        config.tls.pin_sha256 = Some(hash);
    }
    Ok(config)
}

/// Sends one HTTP request with a bearer token and returns status and body.
///
/// # Errors
///
/// When there is no connection, or no answer.
pub async fn http(
    address: SocketAddr,
    request: &str,
    bearer: &str,
    body: &Value,
) -> anyhow::Result<(u16, String)> {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let text = format!(
        "{request} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {bearer}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(text.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let status = answer.get(9..12).and_then(|status| status.parse().ok());
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    Ok((status.unwrap_or(0), body.to_owned()))
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

/// Returns a UDP port that nobody uses at this moment.
///
/// # Errors
///
/// When there is none.
pub fn free_udp_port() -> std::io::Result<u16> {
    Ok(std::net::UdpSocket::bind("127.0.0.1:0")?
        .local_addr()?
        .port())
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
