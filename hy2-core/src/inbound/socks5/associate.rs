//! The UDP relay of one association. It lives as long as the TCP connection that asked for it
//! (RFC 1928 §7).

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use futures_util::FutureExt;
use hy2_proto::address::Address;
use tokio::{
    io::AsyncReadExt,
    net::{TcpStream, UdpSocket},
};
use tracing::debug;

use super::wire;
use crate::{
    inbound::{DialFailure, DialerUdp},
    relay::udp::BATCH,
};

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
    let mut association = Association {
        socket,
        tunnel,
        program,
        source: None,
        outgoing: Vec::with_capacity(2048),
    };
    let mut buffer = vec![0; MAX_DATAGRAM];
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
            ready = socket.readable() => {
                if ready.is_err() || association.take(&mut buffer).await.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
            answer = tunnel.recv() => {
                let Some((data, from)) = answer else { return };
                association.answer(&data, &from).await;
                for _ in 1..BATCH {
                    match tunnel.recv().now_or_never() {
                        Some(Some((data, from))) => association.answer(&data, &from).await,
                        Some(None) => return,
                        None => break,
                    }
                }
            }
        }
    }
}

struct Association<'a, U> {
    socket: &'a UdpSocket,
    tunnel: &'a U,
    /// Whose datagrams count.
    program: IpAddr,
    /// Where the first of them came from.
    source: Option<SocketAddr>,
    outgoing: Vec<u8>,
}

impl<U: DialerUdp> Association<'_, U> {
    /// Sends what the socket has, up to a batch.
    async fn take(&mut self, buffer: &mut [u8]) -> Result<(), DialFailure> {
        for _ in 0..BATCH {
            match self.socket.try_recv_from(buffer) {
                Ok((len, from)) => {
                    let packet = buffer.get(..len).unwrap_or_default();
                    self.forward(packet, from).await?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP error of an earlier send; the socket stays usable.
                Err(error) => debug!(%error, "SOCKS5 UDP socket"),
            }
        }
        Ok(())
    }

    async fn forward(&mut self, packet: &[u8], from: SocketAddr) -> Result<(), DialFailure> {
        let known = self.source.is_none_or(|source| source == from);
        if from.ip().to_canonical() != self.program.to_canonical() || !known {
            return Ok(());
        }
        let packet = match wire::parse_packet(packet) {
            Ok(packet) => packet,
            Err(error) => {
                debug!(%error, "SOCKS5 datagram dropped");
                return Ok(());
            }
        };
        self.source = Some(from);
        // The format of the tunnel cannot carry an empty payload.
        if packet.data.is_empty() {
            return Ok(());
        }
        let sent = self.tunnel.send(packet.data, &packet.address).await;
        sent.inspect_err(|failure| debug!(%failure, "UDP association ended"))
    }

    async fn answer(&mut self, data: &[u8], from: &Address) {
        // Before the program spoke nobody can have been asked for an answer.
        let Some(source) = self.source else { return };
        self.outgoing.clear();
        wire::encode_packet_header(from, &mut self.outgoing);
        self.outgoing.extend_from_slice(data);
        if self.socket.try_send_to(&self.outgoing, source).is_err() {
            let _ = self.socket.send_to(&self.outgoing, source).await;
        }
    }
}
