//! Settings of a server.

use std::{sync::Arc, time::Duration};

use hy2_proto::bandwidth::Bandwidth;

use crate::{
    client::FallbackCongestion,
    error::BindError,
    memory::MemoryBudget,
    quic::QuicConfig,
    socket::{Obfuscation, SocketOptions},
};

/// Settings of a server; keys and defaults are the reference's unless said otherwise.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServerConfig {
    /// QUIC settings.
    pub quic: QuicConfig,
    /// The most we send to one client (`bandwidth.up`). `None`: as much as the client asks for.
    pub max_tx: Option<Bandwidth>,
    /// The most one client may send to us (`bandwidth.down`). `None`: no limit.
    pub max_rx: Option<Bandwidth>,
    /// Whether Brutal sends more to make up for measured loss. Default true.
    pub loss_compensation: bool,
    /// Whether Brutal sends a client whose path carries less than was asked for little more than it carries
    /// (`docs/adr/0005-overclaim-guard.md`). Default false, as the reference.
    pub overclaim_guard: bool,
    /// Never use Brutal, whatever clients say.
    pub ignore_client_bandwidth: bool,
    /// Congestion control where Brutal is not agreed on.
    pub congestion: FallbackCongestion,
    /// Relay no UDP.
    pub disable_udp: bool,
    /// A UDP session without datagrams ends after this time, 2 s to 600 s. Default 60 s.
    pub udp_idle_timeout: Duration,
    /// Serve the built-in speed test. Default false.
    pub speed_test: bool,
    /// Obfuscation of every datagram; both ends must agree.
    pub obfuscation: Obfuscation,
    /// Socket buffers and offloads.
    pub socket: SocketOptions,
    /// The memory that buffers may take.
    pub memory: Arc<MemoryBudget>,
    /// Limits on peers.
    pub limits: ServerLimits,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            quic: QuicConfig::default(),
            max_tx: None,
            max_rx: None,
            loss_compensation: true,
            overclaim_guard: false,
            ignore_client_bandwidth: false,
            congestion: FallbackCongestion::default(),
            disable_udp: false,
            udp_idle_timeout: Duration::from_secs(60),
            speed_test: false,
            obfuscation: Obfuscation::default(),
            socket: SocketOptions::default(),
            memory: MemoryBudget::of_machine(),
            limits: ServerLimits::default(),
        }
    }
}

impl ServerConfig {
    pub(super) fn validate(&self) -> Result<(), BindError> {
        let refuse = |text: &str| Err(BindError::Config(text.to_owned()));
        let quic = &self.quic;
        if quic.stream_receive_window < 16_384 || quic.receive_window < 16_384 {
            return refuse("receive windows must be at least 16384 bytes");
        }
        if !(Duration::from_secs(4)..=Duration::from_secs(120)).contains(&quic.max_idle_timeout) {
            return refuse("max_idle_timeout must be between 4 s and 120 s");
        }
        if quic.max_incoming_streams < 8 {
            return refuse("max_incoming_streams must be at least 8");
        }
        if !(Duration::from_secs(2)..=Duration::from_secs(600)).contains(&self.udp_idle_timeout) {
            return refuse("udp_idle_timeout must be between 2 s and 600 s");
        }
        for rate in [self.max_tx, self.max_rx].into_iter().flatten() {
            if rate.bytes_per_sec() < 65_536 {
                return refuse("bandwidth must be at least 65536 bytes per second");
            }
        }
        Ok(())
    }
}

/// Limits on what peers can create.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServerLimits {
    /// Connections at once, authenticated or not. Default 100,000.
    pub connections: usize,
    /// Connections at once that are not authenticated. Beyond that the oldest gives way to a
    /// newcomer. Default 4,096.
    pub unauthenticated: usize,
    /// Handshakes under way from which on peers must prove their address first. Default 1,000.
    pub handshakes_before_retry: usize,
    /// Handshakes under way from which on further ones are ignored. Default 4,096.
    pub handshakes: usize,
    /// A handshake must be over within this time. Default 10 s.
    pub handshake_timeout: Duration,
    /// Credentials tried per connection; later ones are answered like wrong ones. Default 5.
    pub auth_attempts: u32,
    /// A relay stream must tell its target within this time. Default 10 s.
    pub request_timeout: Duration,
    /// Relay streams per second that a connection may give up before they are established;
    /// more close it. Default 200.
    pub aborted_streams_per_second: u32,
    /// Handshakes per second from which on peers must prove their address first. Default 500.
    pub handshakes_per_second_before_retry: u32,
    /// UDP sessions at once, of all connections; each needs a socket. Default: half of the files
    /// that the process may open.
    pub udp_sessions: usize,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections: 100_000,
            unauthenticated: 4_096,
            handshakes_before_retry: 1_000,
            handshakes: 4_096,
            handshake_timeout: Duration::from_secs(10),
            auth_attempts: 5,
            request_timeout: Duration::from_secs(10),
            aborted_streams_per_second: 200,
            handshakes_per_second_before_retry: 500,
            udp_sessions: open_files() / 2,
        }
    }
}

/// Reads how many files this process may have open; the usual 1,024 where that cannot be told.
fn open_files() -> usize {
    std::fs::read_to_string("/proc/self/limits")
        .ok()
        .and_then(|text| soft_limit(&text))
        .unwrap_or(1_024)
}

fn soft_limit(limits: &str) -> Option<usize> {
    let rest = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    match rest.split_whitespace().next()? {
        "unlimited" => Some(1 << 20),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_on_open_files_is_read() {
        let text = "Limit           Soft Limit  Hard Limit  Units\n\
                    Max processes   95969       95969       processes\n\
                    Max open files  1024        524288      files\n";
        assert_eq!(soft_limit(text), Some(1024));
        assert_eq!(
            soft_limit("Max open files unlimited unlimited files"),
            Some(1 << 20)
        );
        assert_eq!(soft_limit(""), None);
        assert!(ServerLimits::default().udp_sessions > 0);
    }
}
