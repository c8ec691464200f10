//! A local port whose connections all go to one target.

use std::{io, net::SocketAddr};

use hy2_proto::address::Address;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{Dialer, InboundLimits, listener, relay};

/// Settings of a [`TcpForward`].
#[derive(Debug, Clone)]
pub struct TcpForwardConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where every connection goes.
    pub remote: Address,
    /// What local programs may take.
    pub limits: InboundLimits,
}

/// Forwards each connection of a local port to a target behind the tunnel. What a program says goes
/// out with the request; a target that is not reached resets the program.
#[derive(Debug)]
pub struct TcpForward {
    listener: TcpListener,
    config: TcpForwardConfig,
}

impl TcpForward {
    /// Binds the local port. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// The system's error, such as an address in use.
    pub fn bind(config: TcpForwardConfig) -> io::Result<Self> {
        Ok(Self {
            listener: listener::bind_tcp(config.listen)?,
            config,
        })
    }

    /// Returns the bound address.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is cancelled; connections end with it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends everything at once, as `stop` does.
    pub async fn run<D: Dialer>(self, dialer: D, stop: CancellationToken) {
        let slots = self.config.limits.max_connections;
        listener::serve(&self.listener, slots, &stop, |stream, _| {
            let (dialer, remote) = (dialer.clone(), self.config.remote.clone());
            async move {
                let early = match listener::read_now(&stream) {
                    Ok(early) => early,
                    Err(error) => return debug!(%error, "program left at once"),
                };
                // The program is connected already: it waits for no answer.
                match dialer.tcp_early(&remote).await {
                    Ok(tunnel) => {
                        if let Err(error) = relay::join::<D, _>(stream, tunnel, early).await {
                            debug!(%error, "forwarded connection broke");
                        }
                    }
                    Err(failure) => debug!(%failure, "forwarded connection not opened"),
                }
            }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::inbound::{
        DialFailure,
        loopback::{CUT, Loopback, echo_server, ending_server, read_to_end_of},
    };

    fn forward(dialer: Loopback, remote: Address) -> SocketAddr {
        let forward = TcpForward::bind(TcpForwardConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            remote,
            limits: InboundLimits::default(),
        })
        .expect("bind");
        let address = forward.local_addr().expect("bound");
        tokio::spawn(forward.run(dialer, CancellationToken::new()));
        address
    }

    #[tokio::test]
    async fn bytes_and_half_close_reach_the_target() {
        let echo = echo_server().await;
        let address = forward(Loopback::default(), echo.into());
        let mut stream = TcpStream::connect(address).await.expect("connect");
        stream.write_all(b"ping").await.expect("write");
        stream.shutdown().await.expect("half-close");
        let mut seen = Vec::new();
        stream.read_to_end(&mut seen).await.expect("read");
        assert_eq!(seen, b"ping");
    }

    #[tokio::test]
    async fn what_a_program_said_before_it_was_accepted_arrives_first_and_once() {
        let forward = TcpForward::bind(TcpForwardConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            remote: echo_server().await.into(),
            limits: InboundLimits::default(),
        })
        .expect("bind");
        let address = forward.local_addr().expect("bound");
        let mut stream = TcpStream::connect(address).await.expect("connect");
        stream.write_all(b"first ").await.expect("write");
        tokio::spawn(forward.run(Loopback::default(), CancellationToken::new()));
        let mut seen = vec![0; 6];
        stream.read_exact(&mut seen).await.expect("read");
        stream.write_all(b"second").await.expect("write");
        stream.shutdown().await.expect("half-close");
        stream.read_to_end(&mut seen).await.expect("read");
        assert_eq!(seen, b"first second");
    }

    #[tokio::test]
    async fn a_cut_and_an_end_are_told_apart() {
        let address = forward(Loopback::default(), ending_server().await.into());
        let mut program = TcpStream::connect(address).await.expect("connect");
        let cut = read_to_end_of(&mut program, CUT).await.expect_err("a cut");
        assert_eq!(cut.kind(), io::ErrorKind::ConnectionReset);
        let mut program = TcpStream::connect(address).await.expect("connect");
        let end = read_to_end_of(&mut program, b'.').await;
        assert_eq!(end.expect("an end"), 0);
    }

    #[tokio::test]
    async fn programs_are_cut_when_the_inbound_stops() {
        let forward = TcpForward::bind(TcpForwardConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            remote: ending_server().await.into(),
            limits: InboundLimits::default(),
        })
        .expect("bind");
        let address = forward.local_addr().expect("bound");
        let stop = CancellationToken::new();
        let running = tokio::spawn(forward.run(Loopback::default(), stop.clone()));
        let mut program = TcpStream::connect(address).await.expect("connect");
        program.read_exact(&mut [0; 4]).await.expect("read");
        stop.cancel();
        let cut = program.read(&mut [0; 1]).await.expect_err("a cut");
        assert_eq!(cut.kind(), io::ErrorKind::ConnectionReset);
        running.await.expect("stopped");
    }

    #[tokio::test]
    async fn a_failed_dial_closes_the_connection() {
        let dialer = Loopback::failing(DialFailure::Refused);
        let address = forward(dialer, "example.com:1".parse().expect("address"));
        let mut stream = TcpStream::connect(address).await.expect("connect");
        assert_eq!(stream.read(&mut [0; 1]).await.ok(), Some(0));
    }
}
