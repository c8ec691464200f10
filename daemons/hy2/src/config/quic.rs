//! `quic` of servers and clients.

use std::time::Duration;

use super::section::Section;

/// QUIC settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Quic {
    /// Flow-control window of a stream in bytes.
    pub(crate) stream_window: u64,
    /// Flow-control window of a connection in bytes.
    pub(crate) connection_window: u64,
    pub(crate) max_idle_timeout: Duration,
    /// Clients only.
    pub(crate) keep_alive: Duration,
    /// Servers only.
    pub(crate) max_incoming_streams: u32,
    pub(crate) path_mtu_discovery: bool,
    /// Clients only.
    pub(crate) socket: SocketSettings,
}

/// How a client's UDP sockets are opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct SocketSettings {
    pub(crate) interface: Option<String>,
    pub(crate) mark: Option<u32>,
}

/// Smallest flow-control window (`core/client/config.go` of the reference).
const MIN_WINDOW: u64 = 16_384;

/// Largest window that QUIC can announce (RFC 9000 §16).
const MAX_WINDOW: u64 = (1 << 62) - 1;

const SECOND: Duration = Duration::from_secs(1);

pub(super) fn read_server(section: &Section<'_>) -> Quic {
    let off = "stateless resets are always sent, so that clients notice a restart";
    section.refuse("disableStatelessReset", |_| false, off);
    let streams = section.number("maxIncomingStreams", 1024, 8..=u64::from(u16::MAX));
    Quic {
        max_incoming_streams: u32::try_from(streams).unwrap_or(1024),
        ..read_common(section)
    }
}

pub(super) fn read_client(section: &Section<'_>) -> Quic {
    // Our handshake does not imitate a browser, whichever way this is set.
    section.flag("disableChromeParrot");
    Quic {
        keep_alive: section.duration("keepAlivePeriod", 10 * SECOND, 2 * SECOND..=60 * SECOND),
        socket: section.section("sockopts", read_socket),
        ..read_common(section)
    }
}

fn read_common(section: &Section<'_>) -> Quic {
    // quinn's windows do not grow: the larger one counts from the start.
    let window = |initial, largest, default| {
        let range = MIN_WINDOW..=MAX_WINDOW;
        let initial = section.number(initial, default, range.clone());
        section.number(largest, default, range).max(initial)
    };
    Quic {
        stream_window: window(
            "initStreamReceiveWindow",
            "maxStreamReceiveWindow",
            8_388_608,
        ),
        connection_window: window("initConnReceiveWindow", "maxConnReceiveWindow", 20_971_520),
        max_idle_timeout: section.duration(
            "maxIdleTimeout",
            30 * SECOND,
            4 * SECOND..=120 * SECOND,
        ),
        keep_alive: 10 * SECOND,
        max_incoming_streams: 1024,
        path_mtu_discovery: !section.flag("disablePathMTUDiscovery"),
        socket: SocketSettings::default(),
    }
}

fn read_socket(section: &Section<'_>) -> SocketSettings {
    let control = "handing sockets to another process";
    section.refuse("fdControlUnixSocket", |_| false, control);
    let mark = section.number("fwmark", 0, 0..=u64::from(u32::MAX));
    SocketSettings {
        interface: section.text("bindInterface"),
        mark: u32::try_from(mark).ok().filter(|mark| *mark != 0),
    }
}
