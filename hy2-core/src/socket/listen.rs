//! Sockets bound by one rule: the unspecified IPv6 address takes IPv4 as well, whatever the system's
//! default, and falls back to IPv4 where the system has no IPv6.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections the kernel holds until they are accepted.
const BACKLOG: i32 = 1024;

/// Binds a TCP listener. Must be called within a tokio runtime.
pub(crate) fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = bind(address, Type::STREAM, Protocol::TCP, |socket| {
        #[cfg(not(windows))]
        socket.set_reuse_address(true)?;
        #[cfg(windows)]
        let _ = socket;
        Ok(())
    })?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Binds a non-blocking socket; `prepare` is called before that.
pub(crate) fn bind(
    address: SocketAddr,
    kind: Type,
    protocol: Protocol,
    prepare: impl Fn(&Socket) -> io::Result<()>,
) -> io::Result<Socket> {
    let any = address.is_ipv6() && address.ip().is_unspecified();
    let open = |address: SocketAddr| -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        if address.is_ipv6() {
            // The system's default for this option varies; only the wildcard serves both.
            socket.set_only_v6(!any)?;
        }
        socket.set_nonblocking(true)?;
        prepare(&socket)?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    match open(address) {
        Err(error) if any && error.kind() != io::ErrorKind::AddrInUse => {
            open((Ipv4Addr::UNSPECIFIED, address.port()).into()).map_err(|_| error)
        }
        result => result,
    }
}
