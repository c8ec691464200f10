//! The socket options that the safe wrappers in our dependencies lack.

#![cfg(any(target_os = "linux", target_os = "android"))]
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// Sets the receive buffer past `net.core.rmem_max`.
///
/// # Errors
///
/// `EPERM` without `CAP_NET_ADMIN`.
pub(super) fn force_recv_buffer(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    set(socket, libc::SO_RCVBUFFORCE, clamp(bytes))
}

/// Sets the send buffer past `net.core.wmem_max`.
///
/// # Errors
///
/// `EPERM` without `CAP_NET_ADMIN`.
pub(super) fn force_send_buffer(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    set(socket, libc::SO_SNDBUFFORCE, clamp(bytes))
}

/// Turns UDP checksums off for outgoing IPv4 packets, which makes the kernel refuse
/// segmentation offload on that socket: the fallback is tested against a real refusal.
#[cfg(test)]
pub(super) fn disable_tx_checksum(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::SO_NO_CHECK, 1)
}

fn clamp(bytes: usize) -> libc::c_int {
    libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX)
}

fn set(socket: &impl AsFd, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the whole call because `socket` is borrowed, and
    // the pointer and the length describe `value`, which lives until the call returns. The
    // kernel only reads it.
    let status = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw const value).cast(),
            len,
        )
    };
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
