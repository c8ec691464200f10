//! The UDP relay of one association. It lives as long as the TCP connection that asked for it
//! (RFC 1928 §7).

use std::net::{IpAddr, SocketAddr};

use tokio::{
    io::AsyncReadExt,
    net::{TcpStream, UdpSocket},
};
use tracing::debug;

use super::wire;
use crate::inbound::DialerUdp;

/// The largest UDP payload.
const MAX_DATAGRAM: usize = 65_535;

/// Relays datagrams between the program and the tunnel until the TCP connection or the session
/// ends. Only datagrams from `program`'s address count, and of those only the ones from the port
/// that spoke first.
pub(super) async fn run<U: DialerUdp>(
    socket: &UdpSocket,
    tunnel: &U,
    control: &mut TcpStream,
    program: IpAddr,
) {
    let mut source: Option<SocketAddr> = None;
    let mut buffer = vec![0; MAX_DATAGRAM];
    let mut outgoing = Vec::with_capacity(2048);
    let mut ignored = [0; 256];
    loop {
        // Every arm is cancel safe: sockets and the session keep what was not returned.
        tokio::select! {
            read = control.read(&mut ignored) => {
                // Bytes mean nothing here; the end means the end.
                if !matches!(read, Ok(len) if len > 0) {
                    return;
                }
            }
            received = socket.recv_from(&mut buffer) => {
                let Ok((len, from)) = received else {
                    // An ICMP error of an earlier send; the socket stays usable.
                    tokio::task::yield_now().await;
                    continue;
                };
                let known = source.is_none_or(|source| source == from);
                if from.ip().to_canonical() != program.to_canonical() || !known {
                    continue;
                }
                let packet = match wire::parse_packet(buffer.get(..len).unwrap_or_default()) {
                    Ok(packet) => packet,
                    Err(error) => {
                        debug!(%error, "SOCKS5 datagram dropped");
                        continue;
                    }
                };
                source = Some(from);
                // The format of the tunnel cannot carry an empty payload.
                if !packet.data.is_empty()
                    && let Err(failure) = tunnel.send(packet.data, &packet.address).await
                {
                    debug!(%failure, "UDP association ended");
                    return;
                }
            }
            answer = tunnel.recv() => {
                let Some((data, from)) = answer else { return };
                // Before the program spoke nobody can have been asked for an answer.
                let Some(source) = source else { continue };
                outgoing.clear();
                wire::encode_packet_header(&from, &mut outgoing);
                outgoing.extend_from_slice(&data);
                let _ = socket.send_to(&outgoing, source).await;
            }
        }
    }
}
