//! A local UDP port whose datagrams all go to one target, one session per local source.

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use hy2_proto::address::Address;
use tokio::{
    net::UdpSocket,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Dialer, DialerUdp, listener};

/// Datagrams a source may have waiting; more are lost.
const QUEUE: usize = 128;

/// The largest UDP payload.
const MAX_DATAGRAM: usize = 65_535;

/// Settings of a [`UdpForward`].
#[derive(Debug, Clone)]
pub struct UdpForwardConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where every datagram goes.
    pub remote: Address,
    /// A session without traffic in either direction ends after this time.
    pub timeout: Duration,
    /// Sessions at once; datagrams of further sources are lost until one ends.
    pub max_sessions: usize,
}

impl UdpForwardConfig {
    /// Forwards `listen` to `remote` with the reference's timeout of 60 s and 1,024 sessions.
    pub fn new(listen: SocketAddr, remote: Address) -> Self {
        Self {
            listen,
            remote,
            timeout: Duration::from_secs(60),
            max_sessions: 1024,
        }
    }
}

/// Forwards the datagrams of a local port to a target behind the tunnel, and the answers back.
#[derive(Debug)]
pub struct UdpForward {
    socket: Arc<UdpSocket>,
    config: UdpForwardConfig,
}

impl UdpForward {
    /// Binds the local port. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// The system's error, such as an address in use.
    pub fn bind(config: UdpForwardConfig) -> io::Result<Self> {
        Ok(Self {
            socket: Arc::new(listener::bind_udp(config.listen)?),
            config,
        })
    }

    /// Returns the bound address.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until `stop` is cancelled; sessions end with it.
    pub async fn run<D: Dialer>(self, dialer: D, stop: CancellationToken) {
        let mut sessions: HashMap<SocketAddr, mpsc::Sender<Bytes>> = HashMap::new();
        let mut tasks = JoinSet::new();
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            // Every arm is cancel safe: a datagram is returned or stays in the socket.
            let (len, source) = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = tasks.join_next() => {
                    match ended {
                        Ok(source) => { sessions.remove(&source); }
                        // Whose task it was is not known; closed queues tell.
                        Err(error) => {
                            listener::report_panic::<()>(Err(error));
                            sessions.retain(|_, queue| !queue.is_closed());
                        }
                    }
                    continue;
                }
                received = self.socket.recv_from(&mut buffer) => match received {
                    Ok(received) => received,
                    Err(error) => {
                        // An ICMP error of an earlier send; the socket stays usable.
                        debug!(%error, "local UDP socket");
                        tokio::task::yield_now().await;
                        continue;
                    }
                },
            };
            let data = Bytes::copy_from_slice(buffer.get(..len).unwrap_or_default());
            if let Some(queue) = sessions.get(&source)
                && !queue.is_closed()
            {
                let _ = queue.try_send(data);
                continue;
            }
            if sessions.len() >= self.config.max_sessions {
                warn!(limit = self.config.max_sessions, "too many UDP sources");
                continue;
            }
            let (queue, waiting) = mpsc::channel(QUEUE);
            let _ = queue.try_send(data);
            sessions.insert(source, queue);
            let session = Session {
                socket: Arc::clone(&self.socket),
                source,
                remote: self.config.remote.clone(),
                timeout: self.config.timeout,
            };
            let dialer = dialer.clone();
            tasks.spawn(async move {
                session.run(dialer, waiting).await;
                source
            });
        }
        tasks.shutdown().await;
    }
}

struct Session {
    socket: Arc<UdpSocket>,
    source: SocketAddr,
    remote: Address,
    timeout: Duration,
}

impl Session {
    async fn run<D: Dialer>(self, dialer: D, mut waiting: mpsc::Receiver<Bytes>) {
        let tunnel = match dialer.udp().await {
            Ok(tunnel) => tunnel,
            Err(failure) => {
                debug!(%failure, "UDP session not opened");
                return;
            }
        };
        let mut expiry = Instant::now() + self.timeout;
        loop {
            // Every arm is cancel safe: both queues keep what was not returned.
            tokio::select! {
                data = waiting.recv() => {
                    let Some(data) = data else { return };
                    if let Err(failure) = tunnel.send(&data, &self.remote).await {
                        debug!(%failure, "UDP session ended");
                        return;
                    }
                }
                answer = tunnel.recv() => {
                    let Some((data, _)) = answer else { return };
                    let _ = self.socket.send_to(&data, self.source).await;
                }
                () = sleep_until(expiry) => return,
            }
            expiry = Instant::now() + self.timeout;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::SeqCst;

    use super::*;
    use crate::inbound::loopback::{Loopback, udp_echo_server};

    async fn forward(dialer: &Loopback, change: impl FnOnce(&mut UdpForwardConfig)) -> SocketAddr {
        let echo = udp_echo_server().await;
        let mut config = UdpForwardConfig::new(([127, 0, 0, 1], 0).into(), echo.into());
        change(&mut config);
        let forward = UdpForward::bind(config).expect("bind");
        let address = forward.local_addr().expect("bound");
        tokio::spawn(forward.run(dialer.clone(), CancellationToken::new()));
        address
    }

    async fn exchange(socket: &UdpSocket, to: SocketAddr, data: &[u8]) -> Vec<u8> {
        socket.send_to(data, to).await.expect("send");
        let mut buffer = vec![0; MAX_DATAGRAM];
        let (len, from) = socket.recv_from(&mut buffer).await.expect("receive");
        assert_eq!(from, to);
        buffer.truncate(len);
        buffer
    }

    async fn client() -> UdpSocket {
        UdpSocket::bind("127.0.0.1:0").await.expect("bind")
    }

    #[tokio::test]
    async fn each_source_has_its_session_and_gets_its_answers() {
        let dialer = Loopback::default();
        let address = forward(&dialer, |_| ()).await;
        let (first, second) = (client().await, client().await);
        assert_eq!(exchange(&first, address, b"one").await, b"one");
        assert_eq!(exchange(&second, address, b"two").await, b"two");
        assert_eq!(exchange(&first, address, b"three").await, b"three");
        assert_eq!(dialer.sessions.load(SeqCst), 2);
    }

    #[tokio::test]
    async fn an_idle_session_ends_and_the_source_can_come_back() {
        let dialer = Loopback::default();
        let address = forward(&dialer, |config| config.timeout = Duration::from_millis(20)).await;
        let source = client().await;
        assert_eq!(exchange(&source, address, b"one").await, b"one");
        while dialer.sessions.load(SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(exchange(&source, address, b"two").await, b"two");
    }

    #[tokio::test]
    async fn sources_above_the_cap_are_not_served_until_a_session_ends() {
        let dialer = Loopback::default();
        let address = forward(&dialer, |config| {
            config.max_sessions = 1;
            config.timeout = Duration::from_millis(200);
        })
        .await;
        let (first, second) = (client().await, client().await);
        assert_eq!(exchange(&first, address, b"one").await, b"one");
        second.send_to(b"lost", address).await.expect("send");
        // Served after the one above, so the verdict on it has been given.
        assert_eq!(exchange(&first, address, b"two").await, b"two");
        assert_eq!(dialer.sessions.load(SeqCst), 1);
        while dialer.sessions.load(SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
        // The forward may still be taking the ended session out of its table.
        let answered = async {
            loop {
                let attempt = exchange(&second, address, b"kept");
                if let Ok(answer) = tokio::time::timeout(Duration::from_millis(50), attempt).await {
                    return answer;
                }
            }
        };
        assert_eq!(answered.await, b"kept");
    }
}
