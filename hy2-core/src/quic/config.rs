//! Transport settings an embedder may change, and how they become quinn's.

use std::{sync::Arc, time::Duration};

use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::congestion::{self, CongestionHandle};

/// QUIC settings; the defaults are the reference's (`quic` section of its configuration files).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct QuicConfig {
    /// Flow-control window of one stream in bytes, at least 16,384. Default 8 MiB.
    pub stream_receive_window: u64,
    /// Flow-control window of a connection in bytes, at least 16,384. Default 20 MiB. A server
    /// starts at 512 KiB and raises it once the client is authenticated.
    pub receive_window: u64,
    /// A connection without traffic ends after this time, 4 s to 120 s. Default 30 s.
    pub max_idle_timeout: Duration,
    /// A client sends a keep-alive after this much silence, 2 s to 60 s. Default 10 s; servers send
    /// none.
    pub keep_alive: Duration,
    /// Relay streams a client may hold open at once, at least 8. Default 1024.
    pub max_incoming_streams: u32,
    /// Whether to look for a larger packet size than the path's minimum. Default true.
    pub path_mtu_discovery: bool,
}

impl Default for QuicConfig {
    fn default() -> Self {
        Self {
            stream_receive_window: 8 << 20,
            receive_window: 20 << 20,
            max_idle_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(10),
            max_incoming_streams: 1024,
            path_mtu_discovery: true,
        }
    }
}

/// The part of a memory budget that one stream may leave unread in quinn; a connection may leave
/// twice as much, so that a stream that is not read leaves another one as much as itself.
const UNREAD_PART: u64 = 4;

/// What a stream may leave unread however lossy the path: the 3,600 smallest packets that carry it
/// have at most 900 gaps (at a loss of one half), and quinn suffers 1,024.
const UNREAD_SAFE: u64 = 4 << 20;

/// The smallest budget whose shares have room to wind reading down (see `relay::recv`), and for
/// which a stream may leave more unread.
const WIND_DOWN: u64 = 64 << 20;

impl QuicConfig {
    /// Makes the receive windows fit into a budget of `memory` bytes. In a small one reading must be
    /// able to stop at once.
    pub(crate) fn within(&self, memory: usize) -> Self {
        let memory = memory as u64;
        let mut most = (memory / UNREAD_PART).max(16_384);
        if memory < WIND_DOWN {
            most = most.min(UNREAD_SAFE);
        }
        Self {
            stream_receive_window: self.stream_receive_window.min(most),
            receive_window: self.receive_window.min(2 * most),
            ..self.clone()
        }
    }
}

/// Which end of a connection a transport is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Server {
        /// How many other connections are not authenticated yet.
        unauthenticated: usize,
    },
    Client,
}

/// Connection window before authentication; what an unknown peer may make us hold.
const PREAUTH_RECEIVE_WINDOW: usize = 512 << 10;

/// What unknown peers share when there are many: the n-th gets this over n, which adds up to less
/// than 256 MiB for 4,096 of them.
const PREAUTH_SHARED: usize = 48 << 20;

/// Size of a server's first packets, as Caddy and the reference have it. Where a path takes no more
/// than 1,200 bytes the first is lost: probes for what was lost are of that size, and when several
/// are lost quinn goes back to it for good.
const SERVER_INITIAL_MTU: u16 = 1280;

/// The largest send window, whatever the rate.
pub(crate) const SEND_WINDOW_MAX: u64 = congestion::MAX_SEND_WINDOW;

/// Bidirectional streams advertised until the first relay stream (quinn keeps state per
/// advertised stream).
pub(crate) const INITIAL_BIDI_STREAMS: u32 = 100;

/// The round trip that is taken for granted until one is measured. RFC 9002 advises 333 ms, which makes the first repetition
/// of a lost packet wait a second, and the fourth fifteen; the reference and browsers take 100.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Send window until the bandwidth is known.
pub(crate) const INITIAL_SEND_WINDOW: u64 = 4 << 20;

/// Received datagrams held until the application takes them. The advertised frame size is set
/// apart from this (see `quic::parameters`).
const DATAGRAM_RECEIVE_BUFFER: usize = 1 << 20;

/// A flow-control window of `bytes`, or of what is the least or the most there can be.
pub(crate) fn window(bytes: u64) -> VarInt {
    VarInt::from_u64(bytes.max(16_384)).unwrap_or(VarInt::MAX)
}

/// Builds quinn's transport settings for one connection. `overhead` is what obfuscation adds to
/// each datagram in bytes.
pub(crate) fn transport(
    config: &QuicConfig,
    role: Role,
    congestion: &CongestionHandle,
    overhead: u16,
    gso: bool,
) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(window(config.stream_receive_window))
        .send_window(INITIAL_SEND_WINDOW)
        .max_idle_timeout(IdleTimeout::try_from(config.max_idle_timeout).ok())
        .max_concurrent_uni_streams(VarInt::from_u32(100))
        .initial_rtt(INITIAL_RTT)
        .datagram_receive_buffer_size(Some(DATAGRAM_RECEIVE_BUFFER))
        .datagram_send_buffer_size(1 << 20)
        .congestion_controller_factory(congestion.factory())
        .enable_segmentation_offload(gso)
        .allow_spin(false);
    match role {
        Role::Server { unauthenticated } => {
            let share = PREAUTH_RECEIVE_WINDOW.min(PREAUTH_SHARED / (unauthenticated + 1));
            transport
                .initial_mtu(SERVER_INITIAL_MTU)
                .receive_window(window(share as u64))
                .max_concurrent_bidi_streams(VarInt::from_u32(
                    INITIAL_BIDI_STREAMS.min(config.max_incoming_streams.max(8)),
                ));
        }
        Role::Client => {
            transport
                .receive_window(window(config.receive_window))
                // A server never opens bidirectional streams to us.
                .max_concurrent_bidi_streams(VarInt::from_u32(0))
                .keep_alive_interval(Some(config.keep_alive));
        }
    }
    let mtu = config.path_mtu_discovery.then(|| {
        let mut mtu = MtuDiscoveryConfig::default();
        mtu.upper_bound(1452 - overhead);
        mtu
    });
    transport.mtu_discovery_config(mtu);
    congestion::tune(&mut transport);
    Arc::new(transport)
}
