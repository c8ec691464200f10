//! Where a client's sockets come from.

use std::{
    fmt::Debug,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use super::options::{SocketOptions, bind};

/// Opens the UDP sockets of a client.
///
/// A phone's VPN service protects the socket here, a router marks it or binds it to a
/// device. Port hopping calls it once per hop, on the runtime: it must not block for long.
pub trait SocketFactory: Send + Sync + Debug {
    /// Opens a bound UDP socket that can reach `remote`.
    ///
    /// The socket layer makes it non-blocking and grows its buffers.
    ///
    /// # Errors
    ///
    /// Whatever kept the socket from being opened. A hop that fails keeps the old socket.
    fn open(&self, remote: SocketAddr) -> io::Result<UdpSocket>;
}

/// The default [`SocketFactory`]: an ephemeral port of the remote's family, with
/// [`SocketOptions`] applied.
#[derive(Debug, Clone, Default)]
pub struct DirectSocketFactory {
    options: SocketOptions,
    local: Option<IpAddr>,
}

impl DirectSocketFactory {
    /// Creates a factory that applies `options` to each socket.
    #[must_use]
    pub fn new(options: SocketOptions) -> Self {
        Self {
            options,
            local: None,
        }
    }

    /// Binds each socket to `local` in place of the wildcard address.
    #[must_use]
    pub fn with_local_ip(mut self, local: IpAddr) -> Self {
        self.local = Some(local);
        self
    }
}

impl SocketFactory for DirectSocketFactory {
    fn open(&self, remote: SocketAddr) -> io::Result<UdpSocket> {
        let wildcard = match remote {
            SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        bind((self.local.unwrap_or(wildcard), 0).into(), &self.options)
    }
}
