//! How a UDP socket is made: buffers, offload, device, mark.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::Once,
};

use socket2::{Protocol, SockRef, Socket, Type};

use super::listen;

/// Default size in bytes of each kernel buffer.
///
/// Default-sized buffers cost a third of the throughput (data-plane.md §5.1), and the
/// reference asks for about as much.
pub const DEFAULT_BUFFER: usize = 8 << 20;

/// Options of the UDP sockets under QUIC.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SocketOptions {
    /// Kernel receive buffer in bytes; the kernel may grant less. Default 8 MiB.
    pub recv_buffer: usize,
    /// Kernel send buffer in bytes; the kernel may grant less. Default 8 MiB.
    pub send_buffer: usize,
    /// Let the kernel or the card cut one send into datagrams (UDP GSO). Default true; it
    /// is given up by itself where the kernel refuses it.
    pub gso: bool,
    /// Merge consecutive full batches of the QUIC layer into wider sends. Default true;
    /// without [`gso`](Self::gso) it has no effect.
    pub merge: bool,
    /// Network interface to bind to (`SO_BINDTODEVICE`, Linux only).
    pub bind_device: Option<String>,
    /// Firewall mark (`SO_MARK`, Linux only, needs `CAP_NET_ADMIN`).
    pub fwmark: Option<u32>,
    /// Let several sockets share the port (`SO_REUSEPORT`). Default false.
    pub reuse_port: bool,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            recv_buffer: DEFAULT_BUFFER,
            send_buffer: DEFAULT_BUFFER,
            gso: true,
            merge: true,
            bind_device: None,
            fwmark: None,
            reuse_port: false,
        }
    }
}

/// Bytes of kernel buffer a socket really has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantedBuffers {
    /// Receive buffer in bytes.
    pub recv: usize,
    /// Send buffer in bytes.
    pub send: usize,
}

/// Opens a non-blocking UDP socket bound to `addr` with `options` applied.
///
/// The unspecified IPv6 address gives a dual-stack socket that also serves IPv4, or one of IPv4 where
/// the system has no IPv6.
///
/// # Errors
///
/// The operating system's error of the step that failed; `Unsupported` when a device or a
/// mark is asked for on a system without them.
pub fn bind(addr: SocketAddr, options: &SocketOptions) -> io::Result<UdpSocket> {
    let socket = listen::bind(addr, Type::DGRAM, Protocol::UDP, |socket| {
        #[cfg(all(unix, not(any(target_os = "solaris", target_os = "illumos"))))]
        if options.reuse_port {
            socket.set_reuse_port(true)?;
        }
        mark(socket, options)
    })?;
    let socket = UdpSocket::from(socket);
    options.apply_buffers(&socket);
    Ok(socket)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn mark(socket: &Socket, options: &SocketOptions) -> io::Result<()> {
    if let Some(device) = &options.bind_device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    if let Some(fwmark) = options.fwmark {
        socket.set_mark(fwmark)?;
    }
    Ok(())
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn mark(_: &Socket, options: &SocketOptions) -> io::Result<()> {
    if options.bind_device.is_some() || options.fwmark.is_some() {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "binding to a device and marking need Linux",
        ));
    }
    Ok(())
}

impl SocketOptions {
    /// Grows the buffers of `socket` to what is asked for, as far as the system allows, and
    /// returns what was granted.
    ///
    /// Never shrinks a buffer that is larger already, unless the size asked for is smaller
    /// than the system's own default. Logs one warning per process when the system's limit
    /// is lower than the size asked for: the socket works, only not at full speed.
    pub fn apply_buffers(&self, socket: &UdpSocket) -> GrantedBuffers {
        let granted = GrantedBuffers {
            recv: grow_recv(socket, self.recv_buffer),
            send: grow_send(socket, self.send_buffer),
        };
        if granted.recv < self.recv_buffer || granted.send < self.send_buffer {
            static CAPPED: Once = Once::new();
            CAPPED.call_once(|| {
                tracing::warn!(
                    recv_wanted = self.recv_buffer,
                    recv_granted = granted.recv,
                    send_wanted = self.send_buffer,
                    send_granted = granted.send,
                    "UDP buffers are capped by the system; raise net.core.rmem_max and \
                     net.core.wmem_max for full speed"
                );
            });
        }
        granted
    }
}

fn grow_recv(socket: &UdpSocket, wanted: usize) -> usize {
    let sock = SockRef::from(socket);
    // A failure shows in the size read back.
    let _ = sock.set_recv_buffer_size(wanted);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if usable(sock.recv_buffer_size()) < wanted {
        // Needs a privilege; without it the capped size stays.
        let _ = super::sockopt::force_recv_buffer(socket, wanted);
    }
    usable(sock.recv_buffer_size())
}

fn grow_send(socket: &UdpSocket, wanted: usize) -> usize {
    let sock = SockRef::from(socket);
    let _ = sock.set_send_buffer_size(wanted);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if usable(sock.send_buffer_size()) < wanted {
        let _ = super::sockopt::force_send_buffer(socket, wanted);
    }
    usable(sock.send_buffer_size())
}

/// Turns the size the system reports into the size it was asked for: Linux doubles it to
/// make room for its bookkeeping (socket(7)).
fn usable(reported: io::Result<usize>) -> usize {
    let reported = reported.unwrap_or(0);
    if cfg!(any(target_os = "linux", target_os = "android")) {
        reported / 2
    } else {
        reported
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn wildcard_v6_socket_receives_v4() {
        let socket = bind((Ipv6Addr::UNSPECIFIED, 0).into(), &SocketOptions::default()).unwrap();
        let port = socket.local_addr().unwrap().port();
        socket.set_nonblocking(false).unwrap();
        let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        peer.send_to(b"over v4", (Ipv4Addr::LOCALHOST, port))
            .unwrap();
        let mut buf = [0; 16];
        let (len, from) = socket.recv_from(&mut buf).unwrap();
        assert_eq!(&buf[..len], b"over v4");
        assert_eq!(from.port(), peer.local_addr().unwrap().port());
    }

    #[test]
    fn granted_buffer_is_read_back_in_the_unit_it_was_asked_for() {
        let options = SocketOptions {
            recv_buffer: 96 << 10,
            send_buffer: 64 << 10,
            ..SocketOptions::default()
        };
        let socket = bind((Ipv4Addr::LOCALHOST, 0).into(), &options).unwrap();
        let granted = options.apply_buffers(&socket);
        assert_eq!(
            granted,
            GrantedBuffers {
                recv: 96 << 10,
                send: 64 << 10
            }
        );
    }

    #[test]
    fn bound_socket_does_not_block() {
        let socket = bind((Ipv4Addr::LOCALHOST, 0).into(), &SocketOptions::default()).unwrap();
        let err = socket.recv_from(&mut [0; 16]).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::WouldBlock);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn unknown_device_is_an_error() {
        let options = SocketOptions {
            bind_device: Some("no-such-dev0".into()),
            ..SocketOptions::default()
        };
        assert!(bind((Ipv4Addr::LOCALHOST, 0).into(), &options).is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn device_and_mark_are_those_of_the_socket() {
        let device = SocketOptions {
            bind_device: Some("lo".into()),
            ..SocketOptions::default()
        };
        let socket = bind((Ipv4Addr::LOCALHOST, 0).into(), &device).unwrap();
        let bound = SockRef::from(&socket).device().unwrap();
        assert_eq!(bound.as_deref(), Some(&b"lo"[..]));
        let marked = SocketOptions {
            fwmark: Some(0x2b),
            ..SocketOptions::default()
        };
        match bind((Ipv4Addr::LOCALHOST, 0).into(), &marked) {
            Ok(socket) => assert_eq!(SockRef::from(&socket).mark().unwrap(), 0x2b),
            // Marks need a capability, and a socket without the mark is never given instead.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}"),
        }
    }
}
