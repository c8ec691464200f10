//! SOCKS5 and HTTP on one port: the first byte tells them apart.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Dialer, HttpProxyConfig, Socks5Config, http, listener,
    socks5::{self, wire},
};

/// A SOCKS5 server and an HTTP proxy behind the same address.
///
/// SOCKS5 begins with the byte 5, which no HTTP method does.
#[derive(Debug)]
pub struct Mixed {
    listener: TcpListener,
    socks5: Arc<Socks5Config>,
    http: Arc<HttpProxyConfig>,
}

impl Mixed {
    /// Binds the address of `socks5`, whose limit of connections counts for both; the address in
    /// `http` is not used. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// The system's error, such as an address in use.
    pub fn bind(socks5: Socks5Config, http: HttpProxyConfig) -> io::Result<Self> {
        Ok(Self {
            listener: listener::bind_tcp(socks5.listen)?,
            socks5: Arc::new(socks5),
            http: Arc::new(http),
        })
    }

    /// Returns the bound address.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is cancelled; connections end with it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends everything at once, as `stop` does.
    pub async fn run<D: Dialer>(self, dialer: D, stop: CancellationToken) {
        let limits = self.socks5.limits;
        listener::serve(
            &self.listener,
            limits.max_connections,
            &stop,
            |stream, peer| {
                let (socks5, http) = (Arc::clone(&self.socks5), Arc::clone(&self.http));
                let dialer = dialer.clone();
                async move {
                    let mut first = [0; 1];
                    match timeout(limits.request_timeout, stream.peek(&mut first)).await {
                        Ok(Ok(1)) if first == [wire::VERSION] => {
                            socks5::serve_connection(socks5, dialer, stream, peer).await;
                        }
                        Ok(Ok(1)) => http::serve_connection(http, dialer, stream).await,
                        // Closed, broken or silent: nothing to serve.
                        _ => {}
                    }
                }
            },
        )
        .await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::inbound::loopback::Loopback;

    #[tokio::test]
    async fn the_first_byte_decides() {
        let listen = ([127, 0, 0, 1], 0).into();
        let mixed = Mixed::bind(Socks5Config::new(listen), HttpProxyConfig::new(listen));
        let mixed = mixed.expect("bind");
        let address = mixed.local_addr().expect("bound");
        tokio::spawn(mixed.run(Loopback::default(), CancellationToken::new()));

        let mut socks = TcpStream::connect(address).await.expect("connect");
        socks.write_all(&[5, 1, 0]).await.expect("greeting");
        let mut answer = [0; 2];
        socks.read_exact(&mut answer).await.expect("answer");
        assert_eq!(answer, [5, 0]);

        let mut http = TcpStream::connect(address).await.expect("connect");
        http.write_all(b"GET / HTTP/1.0\r\n\r\n")
            .await
            .expect("request");
        let mut answer = String::new();
        http.read_to_string(&mut answer).await.expect("answer");
        assert!(answer.starts_with("HTTP/1.0 400 "), "{answer}");
    }
}
