//! Local inbounds in front of a client: SOCKS5, HTTP proxy, TCP and UDP forwards.
//!
//! Each inbound is bound first ([`Socks5::bind`], …), so that its address can be read, and then
//! run until a token is cancelled. They know the tunnel only through [`Dialer`], which a client
//! implements and a test replaces. What a local program sends is bounded everywhere: connections,
//! header bytes, the time a handshake may take, UDP sessions.
//!
//! This is not a general proxy server: it resolves no names and applies no rules; the far end of
//! the tunnel does both.

use std::{fmt, future::Future, io, time::Duration};

use bytes::Bytes;
use hy2_proto::address::Address;
use tokio::io::{AsyncRead, AsyncWrite};

mod credentials;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod http;
mod listener;
mod mixed;
mod relay;
pub mod socks5;
mod tcp_forward;
mod tunnel;
mod udp_forward;

#[cfg(test)]
mod loopback;

pub use self::{
    credentials::Credentials,
    http::{HttpProxy, HttpProxyConfig},
    mixed::Mixed,
    socks5::{Socks5, Socks5Config},
    tcp_forward::{TcpForward, TcpForwardConfig},
    udp_forward::{UdpForward, UdpForwardConfig},
};

/// Opens what the inbounds carry: TCP streams and UDP sessions through the tunnel.
///
/// A clone is a second handle to the same tunnel.
pub trait Dialer: Clone + Send + Sync + 'static {
    /// A stream to a target. `shutdown` ends our direction and leaves the other one open.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;
    /// A UDP session.
    type Udp: DialerUdp;

    /// Opens a stream to `target`. Dropping the future gives the attempt up.
    fn tcp(
        &self,
        target: &Address,
    ) -> impl Future<Output = Result<Self::Stream, DialFailure>> + Send;

    /// As [`Self::tcp`], for a program that cannot be told whether the target is reached: a tunnel
    /// that can returns before it knows, so that what the program says goes out at once.
    fn tcp_early(
        &self,
        target: &Address,
    ) -> impl Future<Output = Result<Self::Stream, DialFailure>> + Send {
        self.tcp(target)
    }

    /// Opens a UDP session; it ends when it is dropped.
    fn udp(&self) -> impl Future<Output = Result<Self::Udp, DialFailure>> + Send;

    /// Joins a local connection and a stream until both directions are over; the end of one is
    /// passed on and leaves the other open. `early` is what the local program sent together with
    /// its request, and goes first.
    ///
    /// The provided one copies through buffers; a tunnel that can do better does. `local` is shut down
    /// when the stream ended in order and only then: when it is dropped before, the inbounds reset the
    /// program, which can so tell that something is missing.
    ///
    /// # Errors
    ///
    /// When a side failed before its clean end.
    fn join<L>(
        local: L,
        stream: Self::Stream,
        early: Bytes,
    ) -> impl Future<Output = io::Result<()>> + Send
    where
        L: AsyncRead + AsyncWrite + Send + Unpin,
    {
        relay::relay(local, stream, early)
    }
}

/// One UDP session through the tunnel: any number of targets, one local program.
pub trait DialerUdp: Send + Sync + 'static {
    /// Sends one datagram. A datagram that cannot be carried is lost, as UDP allows; an error
    /// means that the session is over.
    fn send(
        &self,
        data: &[u8],
        target: &Address,
    ) -> impl Future<Output = Result<(), DialFailure>> + Send;

    /// Waits for the next datagram and the address it came from; `None` when the session is over.
    ///
    /// # Cancel safety
    ///
    /// Must be cancel safe: a dropped future loses no datagram.
    fn recv(&self) -> impl Future<Output = Option<(Bytes, Address)>> + Send;

    /// As [`Self::recv`], for who does not ask where it came from.
    ///
    /// # Cancel safety
    ///
    /// As that of [`Self::recv`].
    fn recv_data(&self) -> impl Future<Output = Option<Bytes>> + Send {
        async { self.recv().await.map(|(data, _)| data) }
    }
}

/// Why the tunnel did not open what was asked for, in the classes that proxy protocols tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DialFailure {
    /// The target refused the connection.
    Refused,
    /// No route to the target.
    Unreachable,
    /// The target's name has no address.
    Unresolvable,
    /// A rule of the server forbids the target.
    Denied,
    /// The target did not answer in time.
    TimedOut,
    /// The server carries no UDP.
    UdpDisabled,
    /// There is no connection to the server.
    TunnelDown,
    /// The server reported something else.
    Other,
}

impl fmt::Display for DialFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "target refused the connection",
            Self::Unreachable => "target is unreachable",
            Self::Unresolvable => "target name cannot be resolved",
            Self::Denied => "target is not allowed",
            Self::TimedOut => "target did not answer in time",
            Self::UdpDisabled => "server carries no UDP",
            Self::TunnelDown => "no connection to the server",
            Self::Other => "server could not reach the target",
        })
    }
}

impl std::error::Error for DialFailure {}

/// What local programs may take of an inbound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct InboundLimits {
    /// Connections served at once; further ones wait in the listen queue. Default 4,096.
    pub max_connections: usize,
    /// Time from accepting a connection to its complete request, and between two requests of a
    /// kept-alive HTTP connection. Default 30 s.
    pub request_timeout: Duration,
}

impl Default for InboundLimits {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            request_timeout: Duration::from_secs(30),
        }
    }
}
