//! What sits under quinn: UDP sockets with batching, obfuscation, port hopping.
//!
//! [`server_socket`] and [`client_socket`] make what a quinn endpoint is built on; the rest
//! configures them. Nothing here knows of QUIC beyond the first bytes of a datagram.
//!
//! An endpoint on such a socket needs two things for an obfuscated server to stay silent
//! towards those who lack the key: quinn's default connection ID generator, or another one
//! that recognises its own, lest stateless resets answer noise; and a UDP payload lower by
//! [`QuicSocket::overhead`].
//!
//! ```no_run
//! use hy2_core::socket::{Obfuscation, SocketOptions, bind, server_socket};
//! use quinn::{Endpoint, EndpointConfig, TokioRuntime};
//!
//! # async fn serve(config: quinn::ServerConfig) -> Result<(), Box<dyn std::error::Error>> {
//! let options = SocketOptions::default();
//! let obfs = Obfuscation::salamander("a password of some length")?;
//! let socket = server_socket(bind("[::]:443".parse()?, &options)?, &obfs, &options)?;
//!
//! let mut endpoint = EndpointConfig::default();
//! endpoint.max_udp_payload_size(1472 - socket.overhead())?;
//! let endpoint = Endpoint::new_with_abstract_socket(
//!     endpoint,
//!     Some(config),
//!     socket.socket(),
//!     std::sync::Arc::new(TokioRuntime),
//! )?;
//! # Ok(())
//! # }
//! ```

mod changeover;
mod factory;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod hop;
mod inbox;
pub(crate) mod listen;
mod obfs;
mod options;
mod outbox;
mod poller;
mod sockopt;
mod stats;
mod udp;

use std::{
    collections::HashSet,
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Weak},
};

use quinn::AsyncUdpSocket;

use changeover::Spoken;

use crate::quic::Recogniser;

pub use factory::{DirectSocketFactory, SocketFactory};
pub use hop::{DEFAULT_HOP_INTERVAL, HopConfig, HopConfigError, HopInterval, MIN_HOP_INTERVAL};
pub use obfs::{Obfuscation, ObfuscationError};
pub use options::{DEFAULT_BUFFER, GrantedBuffers, SocketOptions, bind};
pub use stats::{SocketCounters, SocketStats};

/// Send queues of a server socket: enough that busy connections rarely share one, few
/// enough that their buffers (64 KiB each, once used) do not matter.
const SERVER_LANES: usize = 8;

/// A socket ready for `quinn::Endpoint::new_with_abstract_socket`, and its figures.
#[derive(Clone)]
pub struct QuicSocket {
    socket: Arc<dyn AsyncUdpSocket>,
    /// The same, when its obfuscation can change.
    changeable: Option<Arc<udp::UdpSocket>>,
    stats: Arc<SocketStats>,
    overhead: u16,
    buffers: GrantedBuffers,
}

impl QuicSocket {
    /// Returns the socket for quinn.
    #[must_use]
    pub fn socket(&self) -> Arc<dyn AsyncUdpSocket> {
        self.socket.clone()
    }

    /// Returns the live counters, which outlive the socket.
    #[must_use]
    pub fn stats(&self) -> &Arc<SocketStats> {
        &self.stats
    }

    /// Returns what a server changes the obfuscation with; keeps the socket open no longer.
    pub(crate) fn changer(&self) -> Option<ObfuscationChanger> {
        let socket = Arc::downgrade(self.changeable.as_ref()?);
        Some(ObfuscationChanger { socket })
    }

    /// Returns the kernel buffers that were granted when the socket was opened.
    #[must_use]
    pub fn buffers(&self) -> GrantedBuffers {
        self.buffers
    }

    /// Returns how many bytes each datagram grows by on the wire: lower
    /// `EndpointConfig::max_udp_payload_size` and the MTU bounds by as much.
    #[must_use]
    pub fn overhead(&self) -> u16 {
        self.overhead
    }
}

impl fmt::Debug for QuicSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicSocket")
            .field("socket", &self.socket)
            .field("overhead", &self.overhead)
            .field("buffers", &self.buffers)
            .finish_non_exhaustive()
    }
}

/// Changes the obfuscation of a server's socket while it is open.
#[derive(Debug, Clone)]
pub(crate) struct ObfuscationChanger {
    socket: Weak<udp::UdpSocket>,
}

impl ObfuscationChanger {
    /// Returns the obfuscation that `peer` is answered under.
    pub(crate) fn towards(&self, peer: &SocketAddr) -> Option<Obfuscation> {
        Some(self.socket.upgrade()?.towards(peer))
    }

    /// Speaks `current`, and with `previous` also that: with the peers that are named and whoever
    /// is heard under it.
    pub(crate) fn change(
        &self,
        current: &Obfuscation,
        previous: Option<(&Obfuscation, HashSet<SocketAddr>, Recogniser)>,
    ) {
        if let Some(socket) = self.socket.upgrade() {
            socket.speak(match previous {
                None => Spoken::new(current),
                Some((previous, peers, recognises)) => {
                    Spoken::changing(current, previous, peers, recognises)
                }
            });
        }
    }
}

/// Makes a server's socket out of a bound one, see [`bind`].
///
/// Must be called inside a tokio runtime: the socket owns a task there, which ends when the
/// socket is dropped.
///
/// # Errors
///
/// Outside a runtime, or when the system refuses an option that QUIC needs.
pub fn server_socket(
    socket: std::net::UdpSocket,
    obfs: &Obfuscation,
    options: &SocketOptions,
) -> io::Result<QuicSocket> {
    let stats = Arc::<SocketStats>::default();
    let socket = udp::UdpSocket::new(socket, obfs, options, stats.clone(), SERVER_LANES)?;
    Ok(QuicSocket {
        buffers: socket.buffers(),
        changeable: Some(Arc::clone(&socket)),
        socket,
        stats,
        overhead: obfs.overhead(),
    })
}

/// Opens a client's socket towards `remote`, with `hop` one that hops among the ports of
/// the server.
///
/// quinn must be told to connect to exactly `remote`: a hopping socket answers under that
/// address, whichever port it uses.
///
/// Must be called inside a tokio runtime: the socket owns tasks there, which end when the
/// socket is dropped.
///
/// # Errors
///
/// What `factory` failed with; else as [`server_socket`].
pub fn client_socket(
    remote: SocketAddr,
    hop: Option<HopConfig>,
    factory: Arc<dyn SocketFactory>,
    obfs: &Obfuscation,
    options: &SocketOptions,
) -> io::Result<QuicSocket> {
    let stats = Arc::<SocketStats>::default();
    let (socket, buffers): (Arc<dyn AsyncUdpSocket>, _) = match hop {
        Some(hop) => {
            let hop = hop::HopSocket::new(remote, hop, factory, obfs, options, stats.clone())?;
            let buffers = hop.buffers();
            (hop, buffers)
        }
        None => {
            let socket = factory.open(remote)?;
            let socket = udp::UdpSocket::new(socket, obfs, options, stats.clone(), 1)?;
            let buffers = socket.buffers();
            (socket, buffers)
        }
    };
    Ok(QuicSocket {
        socket,
        changeable: None,
        stats,
        overhead: obfs.overhead(),
        buffers,
    })
}
