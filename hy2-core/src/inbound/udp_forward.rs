//! A local UDP port whose datagrams all go to one target, one session per local source.

use std::{
    collections::{HashMap, hash_map::Entry::Occupied},
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use hy2_proto::address::Address;
use tokio::{
    net::UdpSocket,
    sync::mpsc,
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Dialer, DialerUdp, listener};
use crate::relay::{activity::Activity, udp::BATCH};

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
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends everything at once, as `stop` does.
    pub async fn run<D: Dialer>(self, dialer: D, stop: CancellationToken) {
        let mut forward = Running {
            dialer,
            socket: self.socket,
            config: Arc::new(self.config),
            sessions: HashMap::default(),
            tasks: JoinSet::new(),
        };
        let socket = Arc::clone(&forward.socket);
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            // Every arm is cancel safe: datagrams stay in the socket.
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = forward.tasks.join_next() => forward.remove(ended),
                ready = socket.readable() => {
                    if let Err(error) = ready {
                        debug!(%error, "local UDP socket");
                        break;
                    }
                    forward.take(&mut buffer);
                    // Sessions and the tunnel get their turn.
                    tokio::task::yield_now().await;
                }
            }
        }
        forward.tasks.shutdown().await;
    }
}

/// A forward at work.
struct Running<D: Dialer> {
    dialer: D,
    socket: Arc<UdpSocket>,
    config: Arc<UdpForwardConfig>,
    sessions: HashMap<SocketAddr, Local<D::Udp>, ahash::RandomState>,
    tasks: JoinSet<SocketAddr>,
}

struct Local<U> {
    /// What comes before the tunnel is open, or while it does not take anything at once.
    queue: mpsc::Sender<Bytes>,
    shared: Arc<Shared<U>>,
}

struct Shared<U> {
    tunnel: OnceLock<U>,
    /// Datagrams of either direction.
    activity: Activity,
}

impl<D: Dialer> Running<D> {
    /// Sends what the socket has, up to a batch.
    fn take(&mut self, buffer: &mut [u8]) {
        for _ in 0..BATCH {
            match self.socket.try_recv_from(buffer) {
                Ok((len, source)) => self.forward(source, buffer.get(..len).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // An ICMP error of an earlier send; the socket stays usable.
                Err(error) => debug!(%error, "local UDP socket"),
            }
        }
    }

    fn forward(&mut self, source: SocketAddr, data: &[u8]) {
        let entry = self.sessions.get(&source);
        if let Some(Local { queue, shared }) = entry.filter(|entry| !entry.queue.is_closed()) {
            shared.activity.touch();
            // What waits goes first.
            let waits = queue.capacity() < queue.max_capacity();
            if let Some(tunnel) = shared.tunnel.get().filter(|_| !waits)
                && let Some(sent) = tunnel.send(data, &self.config.remote).now_or_never()
            {
                if let Err(failure) = sent {
                    debug!(%failure, "UDP session ended");
                    self.sessions.remove(&source);
                }
                return;
            }
            let _ = queue.try_send(Bytes::copy_from_slice(data));
            return;
        }
        if self.sessions.len() >= self.config.max_sessions {
            warn!(limit = self.config.max_sessions, "too many UDP sources");
            return;
        }
        let (queue, waiting) = mpsc::channel(QUEUE);
        let _ = queue.try_send(Bytes::copy_from_slice(data));
        let shared = Arc::new(Shared {
            tunnel: OnceLock::new(),
            activity: Activity::begin(),
        });
        let session = Session {
            socket: Arc::clone(&self.socket),
            source,
            config: Arc::clone(&self.config),
            shared: Arc::clone(&shared),
        };
        self.sessions.insert(source, Local { queue, shared });
        let dialer = self.dialer.clone();
        self.tasks.spawn(async move {
            session.run(dialer, waiting).await;
            source
        });
    }

    fn remove(&mut self, ended: Result<SocketAddr, JoinError>) {
        match ended {
            // Another session may have taken its place.
            Ok(source) => {
                if let Occupied(entry) = self.sessions.entry(source)
                    && entry.get().queue.is_closed()
                {
                    entry.remove();
                }
            }
            // Whose task it was is not known; closed queues tell.
            Err(error) => {
                listener::report_panic::<()>(Err(error));
                self.sessions.retain(|_, entry| !entry.queue.is_closed());
            }
        }
    }
}

struct Session<U> {
    socket: Arc<UdpSocket>,
    source: SocketAddr,
    config: Arc<UdpForwardConfig>,
    shared: Arc<Shared<U>>,
}

impl<U: DialerUdp> Session<U> {
    async fn run<D: Dialer<Udp = U>>(self, dialer: D, mut waiting: mpsc::Receiver<Bytes>) {
        let tunnel = match dialer.udp().await {
            Ok(tunnel) => self.shared.tunnel.get_or_init(|| tunnel),
            Err(failure) => {
                debug!(%failure, "UDP session not opened");
                return;
            }
        };
        let timeout = self.config.timeout;
        self.shared.activity.touch();
        let mut expiry = pin!(sleep_until(Instant::now() + timeout));
        loop {
            // Every arm is cancel safe: both queues keep what was not returned.
            tokio::select! {
                data = waiting.recv() => {
                    let Some(data) = data else { return };
                    if let Err(failure) = tunnel.send(&data, &self.config.remote).await {
                        debug!(%failure, "UDP session ended");
                        return;
                    }
                }
                answer = tunnel.recv_data() => {
                    let Some(data) = answer else { return };
                    self.answer(&data).await;
                    for _ in 1..BATCH {
                        match tunnel.recv_data().now_or_never() {
                            Some(Some(data)) => self.answer(&data).await,
                            Some(None) => return,
                            None => break,
                        }
                    }
                    self.shared.activity.touch();
                }
                () = &mut expiry => {
                    let at = self.shared.activity.idle_at(timeout);
                    if at <= Instant::now() {
                        return;
                    }
                    expiry.as_mut().reset(at);
                }
            }
        }
    }

    async fn answer(&self, data: &[u8]) {
        if self.socket.try_send_to(data, self.source).is_err() {
            let _ = self.socket.send_to(data, self.source).await;
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
