//! HTTP proxy: CONNECT and plain requests in absolute form (RFC 9110 §7.6, RFC 9112 §3.2).

use std::{io, net::SocketAddr, sync::Arc};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{Credentials, Dialer, InboundLimits, listener};

mod exchange;
mod request;

pub(super) use exchange::serve_connection;

/// Settings of an [`HttpProxy`].
#[derive(Debug, Clone)]
pub struct HttpProxyConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// What programs must show (Basic); `None` serves everyone who can connect.
    pub credentials: Option<Credentials>,
    /// Named when credentials are asked for.
    pub realm: String,
    /// What local programs may take.
    pub limits: InboundLimits,
}

impl HttpProxyConfig {
    /// Serves everyone at `listen`; the realm is the reference's, "Hysteria".
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            credentials: None,
            realm: "Hysteria".into(),
            limits: InboundLimits::default(),
        }
    }
}

/// An HTTP proxy whose connections go through the tunnel.
#[derive(Debug)]
pub struct HttpProxy {
    listener: TcpListener,
    config: Arc<HttpProxyConfig>,
}

impl HttpProxy {
    /// Binds the listener. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// The system's error, such as an address in use.
    pub fn bind(config: HttpProxyConfig) -> io::Result<Self> {
        Ok(Self {
            listener: listener::bind_tcp(config.listen)?,
            config: Arc::new(config),
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
        let slots = self.config.limits.max_connections;
        listener::serve(&self.listener, slots, &stop, |stream: TcpStream, _| {
            serve_connection(Arc::clone(&self.config), dialer.clone(), stream)
        })
        .await;
    }
}

#[cfg(test)]
mod tests;
