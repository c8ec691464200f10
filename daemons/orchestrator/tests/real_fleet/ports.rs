//! Ports for processes that have to come back on the same one.

use std::{
    net::{TcpListener, UdpSocket},
    sync::atomic::{AtomicU16, Ordering::Relaxed},
};

/// Returns a port that is free for TCP and UDP. Below the range from which the system gives ports
/// to those who do not care, so that nobody gets it while its owner is dead.
pub(crate) fn free() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let start = u16::try_from(std::process::id() % 1000).expect("small") * 17;
        let port = 12_000 + (start.wrapping_add(NEXT.fetch_add(1, Relaxed))) % 18_000;
        let tcp = TcpListener::bind(("127.0.0.1", port));
        let udp = UdpSocket::bind(("::", port));
        if tcp.is_ok() && udp.is_ok() {
            return port;
        }
    }
}
