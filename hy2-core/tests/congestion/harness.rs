//! One bulk transfer between two plain quinn endpoints over a modelled link.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hy2_core::{
    congestion::{Algorithm, CongestionHandle, CongestionSnapshot, tune},
    quinn::{
        self, ClientConfig, Connection, Endpoint, EndpointConfig, IdleTimeout, Runtime,
        ServerConfig, TokioRuntime, TransportConfig, VarInt, crypto::rustls::QuicClientConfig,
    },
    rustls::{self, RootCertStore, pki_types::PrivateKeyDer},
};
use hy2_link_emulator::{
    lateness::LateRuntime,
    memory::{Direction, MemorySocket, Network, Path},
    model::{Counters, LinkConfig},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

pub(crate) const CLIENT: &str = "10.0.0.2:40000";
const SERVER: &str = "10.0.0.1:443";

pub(crate) fn full_matrix() -> bool {
    std::env::var_os("HY2_FULL_MATRIX").is_some()
}

/// What to simulate. The link's properties hold in the direction of the data.
#[derive(Clone)]
pub(crate) struct Setup {
    /// Whether the server sends; otherwise the client does.
    pub(crate) download: bool,
    pub(crate) algorithm: Algorithm,
    pub(crate) link: LinkConfig,
    pub(crate) late: Duration,
    pub(crate) seed: u64,
    /// For how long the other side sends before; the link is the same both ways then.
    pub(crate) other_first: Duration,
}

impl Setup {
    /// A clean link of `mbps` with a buffer of `buffer`; the round trip is `rtt`.
    pub(crate) fn new(algorithm: Algorithm, mbps: f64, rtt: Duration, buffer: Duration) -> Self {
        Self {
            download: false,
            algorithm,
            link: LinkConfig::clean(mbps, rtt / 2, buffer),
            late: Duration::ZERO,
            seed: 7,
            other_first: Duration::ZERO,
        }
    }

    pub(crate) fn loss(mut self, share: f64) -> Self {
        self.link = self.link.with_loss(share);
        self
    }
}

pub(crate) const fn brutal_mbps(mbps: f64) -> Algorithm {
    Algorithm::Brutal {
        rate: (mbps * 1e6 / 8.0) as u64,
        loss_compensation: true,
        overclaim_guard: false,
    }
}

/// A transfer under way.
pub(crate) struct Transfer {
    pub(crate) handle: CongestionHandle,
    pub(crate) path: Path,
    pub(crate) socket: Arc<MemorySocket>,
    /// The sender's.
    pub(crate) connection: Connection,
    data: Direction,
    received: watch::Receiver<u64>,
    start: Instant,
    _pacing: hy2_core::congestion::Pacing,
    _endpoints: [Endpoint; 2],
    _tasks: JoinSet<()>,
}

/// Figures at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    pub(crate) received: u64,
    pub(crate) counters: Counters,
    pub(crate) snapshot: CongestionSnapshot,
}

impl Transfer {
    pub(crate) async fn start(setup: &Setup) -> Self {
        let network = Network::new(setup.seed);
        let back = if setup.other_first.is_zero() {
            LinkConfig {
                delay: setup.link.delay,
                ..LinkConfig::default()
            }
        } else {
            setup.link
        };
        let (data, path) = if setup.download {
            (Direction::Down, network.path(back, setup.link))
        } else {
            (Direction::Up, network.path(setup.link, back))
        };
        let runtime: Arc<dyn Runtime> = if setup.late.is_zero() {
            Arc::new(TokioRuntime)
        } else {
            Arc::new(LateRuntime::new(setup.late, setup.seed))
        };
        let (mut server_config, client_crypto) = crypto();
        let handle = CongestionHandle::new(setup.algorithm);
        let transport = || transport(!setup.other_first.is_zero());
        let mut sending = transport();
        sending.congestion_controller_factory(handle.factory());
        let (client_transport, server_transport) = if setup.download {
            (transport(), sending)
        } else {
            (sending, transport())
        };
        server_config.transport_config(Arc::new(server_transport));
        let server = Endpoint::new_with_abstract_socket(
            EndpointConfig::default(),
            Some(server_config),
            network.socket(address(SERVER), None),
            Arc::clone(&runtime),
        )
        .expect("server");
        let socket = network.socket(address(CLIENT), Some(&path));
        let client = Endpoint::new_with_abstract_socket(
            EndpointConfig::default(),
            None,
            Arc::clone(&socket) as _,
            Arc::clone(&runtime),
        )
        .expect("client");
        let mut config = ClientConfig::new(Arc::new(client_crypto));
        config.transport_config(Arc::new(client_transport));
        let connecting = client
            .connect_with(config, address(SERVER), "localhost")
            .expect("connect");
        let accepting = async {
            let incoming = server.accept().await.expect("incoming");
            incoming.await.expect("accepted")
        };
        let (connected, accepted) = tokio::join!(connecting, accepting);
        let connected = connected.expect("connected");
        let (sender, receiver) = if setup.download {
            (accepted, connected)
        } else {
            (connected, accepted)
        };
        let (report, received) = watch::channel(0);
        let mut tasks = JoinSet::new();
        let pacing = handle.attach(&sender, runtime);
        if !setup.other_first.is_zero() {
            let (report, _) = watch::channel(0);
            tasks.spawn(receive(sender.clone(), report));
            // Ends by being dropped, which resets the stream.
            let _ = timeout(setup.other_first, send(receiver.clone())).await;
        }
        tasks.spawn(receive(receiver, report));
        tasks.spawn(send(sender.clone()));
        Self {
            handle,
            path,
            socket,
            connection: sender,
            data,
            received,
            start: Instant::now(),
            _pacing: pacing,
            _endpoints: [server, client],
            _tasks: tasks,
        }
    }

    /// Replaces the properties of the link in the direction of the data.
    pub(crate) fn reconfigure(&self, link: LinkConfig) {
        self.path.reconfigure(self.data, link);
    }

    /// Waits until `at` after the start.
    pub(crate) async fn until(&self, at: Duration) -> Reading {
        sleep_until(self.start + at).await;
        assert!(
            self.connection.close_reason().is_none(),
            "the connection died: {:?}",
            self.connection.close_reason()
        );
        Reading {
            received: *self.received.borrow(),
            counters: self.path.counters(self.data),
            snapshot: self.handle.snapshot(),
        }
    }

    /// Bytes offered to the link per millisecond, from `from` to `to` after the start of the network.
    pub(crate) fn offered(&self, from: Duration, to: Duration) -> Vec<u32> {
        let bins = self.path.offered_per_ms(self.data);
        let index = |at: Duration| usize::try_from(at.as_millis()).expect("short");
        bins[index(from)..index(to).min(bins.len())].to_vec()
    }
}

async fn send(connection: Connection) {
    let Ok(mut stream) = connection.open_uni().await else {
        return;
    };
    let chunk = bytes::Bytes::from(vec![0x5a; 64 << 10]);
    while stream.write_chunk(chunk.clone()).await.is_ok() {}
}

async fn receive(connection: Connection, report: watch::Sender<u64>) {
    let Ok(mut stream) = connection.accept_uni().await else {
        return;
    };
    let mut total = 0;
    // Unordered: in order, quinn would give up the connection for its gaps.
    while let Ok(Some(chunk)) = stream.read_chunk(usize::MAX, false).await {
        total += chunk.bytes.len() as u64;
        report.send_replace(total);
    }
}

/// Windows that no transfer fills; or ours, which must be renewed again and again.
fn transport(renewed: bool) -> TransportConfig {
    let (stream, connection) = match renewed {
        true => (8 << 20, 20 << 20),
        false => (256 << 20, 256 << 20),
    };
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(stream))
        .receive_window(VarInt::from_u32(connection))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(30_000))));
    tune(&mut transport);
    transport
}

fn crypto() -> (ServerConfig, QuicClientConfig) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("certificate");
    let certificate = made.cert.der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("root");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("key");
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("version")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("server tls");
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("version")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = quinn::crypto::rustls::QuicServerConfig::try_from(server).expect("quic");
    let server = ServerConfig::with_crypto(Arc::new(server));
    (server, QuicClientConfig::try_from(client).expect("quic"))
}

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

pub(crate) fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

pub(crate) fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}
