//! A client as the tunnel behind the inbounds.

use std::{cell::RefCell, fmt::Write, future::Future, io};

use bytes::Bytes;
use hy2_proto::address::Address;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::debug;

use super::{DialFailure, Dialer, DialerUdp};
use crate::{
    client::{Client, UdpSession},
    error::{OpenError, UdpSendError},
    relay::TcpStream,
};

impl Dialer for Client {
    type Stream = TcpStream;
    type Udp = UdpSession;

    async fn tcp(&self, target: &Address) -> Result<TcpStream, DialFailure> {
        let opened = Self::tcp(self, &target.to_string()).await;
        opened.map_err(|error| DialFailure::from(&error))
    }

    async fn tcp_early(&self, target: &Address) -> Result<TcpStream, DialFailure> {
        let opened = Self::tcp_early(self, &target.to_string()).await;
        opened.map_err(|error| DialFailure::from(&error))
    }

    async fn udp(&self) -> Result<UdpSession, DialFailure> {
        let opened = Self::udp(self).await;
        opened.map_err(|error| DialFailure::from(&error))
    }

    async fn join<L>(local: L, mut stream: TcpStream, early: Bytes) -> io::Result<()>
    where
        L: AsyncRead + AsyncWrite + Send + Unpin,
    {
        if !early.is_empty() {
            stream.write_chunk(early).await?;
        }
        stream.relay(local).await.map_err(io::Error::other)
    }
}

thread_local! {
    /// The target of the datagram that is being sent.
    static TEXT: RefCell<String> = const { RefCell::new(String::new()) };
}

impl DialerUdp for UdpSession {
    fn send(
        &self,
        data: &[u8],
        target: &Address,
    ) -> impl Future<Output = Result<(), DialFailure>> + Send {
        let sent = TEXT.with_borrow_mut(|text| {
            text.clear();
            // Writing to a string does not fail.
            let _ = write!(text, "{target}");
            Self::send(self, data, text)
        });
        let sent = match sent {
            Ok(()) => Ok(()),
            Err(UdpSendError::Lost(_)) => Err(DialFailure::TunnelDown),
            Err(error) => {
                debug!(%error, "datagram not sent");
                Ok(())
            }
        };
        std::future::ready(sent)
    }

    async fn recv_data(&self) -> Option<Bytes> {
        Self::recv(self).await.map(|packet| packet.data)
    }

    async fn recv(&self) -> Option<(Bytes, Address)> {
        loop {
            let packet = Self::recv(self).await?;
            match packet.source().parse() {
                Ok(source) => return Some((packet.data, source)),
                Err(error) => debug!(%error, "datagram from no usable address"),
            }
        }
    }
}

impl From<&OpenError> for DialFailure {
    fn from(error: &OpenError) -> Self {
        match error {
            OpenError::Connect(_) | OpenError::Lost(_) => Self::TunnelDown,
            OpenError::UdpDisabled => Self::UdpDisabled,
            OpenError::Refused(message) => Self::of_message(message),
            _ => Self::Other,
        }
    }
}

impl DialFailure {
    /// Classifies a server's words. Servers of ours have one fixed text per class; the
    /// reference sends the error text of Go's `net` package.
    fn of_message(message: &str) -> Self {
        const CLASSES: [(&str, DialFailure); 14] = [
            ("connection refused", DialFailure::Refused),
            ("connection reset", DialFailure::Refused),
            ("name does not resolve", DialFailure::Unresolvable),
            ("no such host", DialFailure::Unresolvable),
            ("no address associated", DialFailure::Unresolvable),
            ("server misbehaving", DialFailure::Unresolvable),
            ("unreachable", DialFailure::Unreachable),
            ("no route to host", DialFailure::Unreachable),
            ("cannot assign requested address", DialFailure::Unreachable),
            ("timed out", DialFailure::TimedOut),
            ("timeout", DialFailure::TimedOut),
            ("deadline exceeded", DialFailure::TimedOut),
            ("not allowed", DialFailure::Denied),
            ("rejected", DialFailure::Denied),
        ];
        CLASSES
            .iter()
            .find(|(text, _)| message.contains(text))
            .map_or(Self::Other, |(_, failure)| *failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbound::DialError;

    #[test]
    fn words_of_both_kinds_of_server_are_classified() {
        let io = || io::Error::other("details");
        for (error, failure) in [
            (DialError::Unresolvable(None), DialFailure::Unresolvable),
            (DialError::Refused(io()), DialFailure::Refused),
            (DialError::Unreachable(io()), DialFailure::Unreachable),
            (DialError::TimedOut, DialFailure::TimedOut),
            (DialError::Denied, DialFailure::Denied),
            (DialError::Local(io()), DialFailure::Other),
        ] {
            assert_eq!(DialFailure::of_message(error.class()), failure, "{error}");
        }
        for (text, failure) in [
            (
                "dial tcp 127.0.0.1:1: connect: connection refused",
                DialFailure::Refused,
            ),
            (
                "lookup name.invalid: no such host",
                DialFailure::Unresolvable,
            ),
            ("dial tcp 192.0.2.1:80: i/o timeout", DialFailure::TimedOut),
            (
                "dial tcp [::1]:80: connect: network is unreachable",
                DialFailure::Unreachable,
            ),
            (
                "dial tcp 10.0.0.1:80: connect: no route to host",
                DialFailure::Unreachable,
            ),
            ("something else", DialFailure::Other),
        ] {
            assert_eq!(DialFailure::of_message(text), failure, "{text}");
        }
    }
}
