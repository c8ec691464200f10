//! What runs the proxy: the [`Engine`] trait, and [`CoreEngine`] on hy2-core.

mod core;
mod parts;

pub(crate) use self::parts::chain_of;

use std::{net::SocketAddr, time::Duration};

use hy2_core::authenticator::UserLimits;
use hy2_proto::control::rpc::{ApplyEffect, FieldError};

pub use self::core::CoreEngine;
use crate::{BoxFuture, settings::NodeSettings};

/// One authenticated connection, as an engine sees it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EngineSession {
    /// The engine's number of it.
    pub connection: u64,
    /// Whose it is.
    pub user: u64,
    /// Where it comes from at this moment.
    pub remote: SocketAddr,
    /// Payload bytes client → target.
    pub tx: u64,
    /// Payload bytes target → client.
    pub rx: u64,
    /// Open TCP streams.
    pub tcp_streams: u32,
    /// Open UDP sessions.
    pub udp_sessions: u32,
    /// Round trip time.
    pub rtt: Duration,
    /// Packets declared lost.
    pub lost_packets: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Brutal rate in force, in bytes per second; 0: none.
    pub send_rate: u64,
    /// Share of packets acknowledged, in thousandths.
    pub ack_rate_permille: u32,
    /// Largest UDP payload of the path.
    pub mtu: u16,
    /// Largest datagram that the peer takes.
    pub max_datagram: usize,
}

impl EngineSession {
    /// Returns a session without figures.
    pub fn new(connection: u64, user: u64, remote: SocketAddr) -> Self {
        Self {
            connection,
            user,
            remote,
            tx: 0,
            rx: 0,
            tcp_streams: 0,
            udp_sessions: 0,
            rtt: Duration::ZERO,
            lost_packets: 0,
            sent_packets: 0,
            send_rate: 0,
            ack_rate_permille: 0,
            mtu: 0,
            max_datagram: 0,
        }
    }
}

/// Runs a proxy server as settings have it.
///
/// An engine asks the authenticator that it was made with for every connection and reports
/// connections to the event sink that it was made with; user names are user numbers in decimal.
pub trait Engine: Send + Sync + 'static {
    /// Says what applying `settings` would touch; changes nothing.
    ///
    /// # Errors
    ///
    /// What of them cannot work on this host, each with its path.
    fn check<'a>(
        &'a self,
        settings: &'a NodeSettings,
    ) -> BoxFuture<'a, Result<ApplyEffect, Vec<FieldError>>>;

    /// Makes `settings` run, without ending a connection. On an error what ran before runs on.
    ///
    /// # Errors
    ///
    /// As [`Self::check`], and addresses that cannot be bound.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe; the caller finishes it.
    fn apply<'a>(
        &'a self,
        settings: &'a NodeSettings,
    ) -> BoxFuture<'a, Result<ApplyEffect, Vec<FieldError>>>;

    /// Returns the addresses that take new clients.
    fn listening(&self) -> Vec<SocketAddr>;

    /// Closes every connection of a user and returns how many there were. Called inline from the
    /// relay when a quota ends: must not wait.
    fn kick_user(&self, user: u64) -> usize;

    /// Holds back what is relayed for a user, or lets it go on, without ending anything; `false`
    /// when this engine cannot or the user is not there. Called inline from the relay while more of
    /// a quota is asked for: must not wait. Without it such a user's connections are closed.
    fn hold_user(&self, _user: u64, _held: bool) -> bool {
        false
    }

    /// Closes one connection; `false` when there is none of this number.
    fn kick_connection(&self, connection: u64) -> bool;

    /// Changes the limits of a connected user.
    fn set_limits(&self, user: u64, limits: UserLimits);

    /// Returns the authenticated connections.
    fn sessions(&self) -> Vec<EngineSession>;

    /// Returns how many handshakes came to nothing since the start.
    fn handshakes_failed(&self) -> u64 {
        0
    }

    /// Ends the server, waiting up to `grace` for streams; [`Self::apply`] starts it again.
    fn stop(&self, grace: Duration) -> BoxFuture<'_, ()>;
}
