//! A server and a client with a modelled link between them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hy2_core::{
    Bandwidth, Client, ClientConfig, Server,
    authenticator::Password,
    client::ServerAddress,
    memory::MemoryBudget,
    rustls::{RootCertStore, pki_types::PrivateKeyDer},
    server::{ConnectionStatus, ServerConfig},
    tls::ServerTls,
};
use hy2_link_emulator::{
    memory::{MemorySocket, Network, Path},
    model::LinkConfig,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, interval, sleep_until},
};

use crate::origin::Origins;

pub(crate) const CLIENT: &str = "10.0.0.2:40000";
const SERVER: &str = "10.0.0.1:443";
const PASSWORD: &str = "a long enough password";

/// Tells whether the bars run in full; without it, a smaller form of them.
pub(crate) fn full_matrix() -> bool {
    std::env::var_os("HY2_FULL_MATRIX").is_some()
}

/// What to simulate.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) up: LinkConfig,
    pub(crate) down: LinkConfig,
    /// The client's `bandwidth.up` and `bandwidth.down` in Mbit/s; 0 is none.
    pub(crate) client_up: f64,
    pub(crate) client_down: f64,
    /// The most the server sends and receives per client, in Mbit/s.
    pub(crate) server_up: Option<f64>,
    pub(crate) server_down: Option<f64>,
    /// Memory of each end, in bytes; none is the default budget.
    pub(crate) memory: Option<usize>,
    pub(crate) seed: u64,
}

impl Setup {
    /// A link of `link_mbps` with 60 ms of buffer and a round trip of `rtt`; both ends send at
    /// `target_mbps`.
    pub(crate) fn new(target_mbps: f64, link_mbps: f64, rtt: Duration) -> Self {
        let link = LinkConfig::clean(link_mbps, rtt / 2, millis(60));
        Self {
            up: link,
            down: link,
            client_up: target_mbps,
            client_down: target_mbps,
            server_up: None,
            server_down: None,
            memory: None,
            seed: 7,
        }
    }

    /// Loses a share of the datagrams of the direction that carries the data.
    pub(crate) fn loss(mut self, download: bool, share: f64) -> Self {
        let link = if download {
            &mut self.down
        } else {
            &mut self.up
        };
        *link = link.with_loss(share);
        self
    }

    /// Loses a share of the datagrams in both directions.
    pub(crate) fn loss_both(mut self, share: f64) -> Self {
        self.up = self.up.with_loss(share);
        self.down = self.down.with_loss(share);
        self
    }

    pub(crate) fn memory(mut self, bytes: usize) -> Self {
        self.memory = Some(bytes);
        self
    }
}

/// Everything under way in one simulation.
pub(crate) struct World {
    pub(crate) path: Path,
    pub(crate) socket: Arc<MemorySocket>,
    pub(crate) server: Server,
    pub(crate) client: Client,
    pub(crate) origins: Origins,
    /// Of the client and of the server.
    pub(crate) memory: [Arc<MemoryBudget>; 2],
    network: Network,
    roots: Arc<RootCertStore>,
    start: Instant,
    peaks: watch::Receiver<[usize; 2]>,
    tasks: JoinSet<()>,
}

impl World {
    pub(crate) async fn start(setup: &Setup) -> Self {
        let network = Network::new(setup.seed);
        let path = network.path(setup.up, setup.down);
        let (tls, roots) = certificate();
        let origins = Origins::default();
        let budget = || match setup.memory {
            Some(bytes) => MemoryBudget::new(bytes),
            None => MemoryBudget::of_machine(),
        };
        let memory = [budget(), budget()];

        let mut config = ServerConfig::default();
        config.max_tx = setup.server_up.map(mbps);
        config.max_rx = setup.server_down.map(mbps);
        config.memory = Arc::clone(&memory[1]);
        let server = Server::builder(tls)
            .abstract_socket(network.socket(address(SERVER), None))
            .authenticator(Password::new(PASSWORD))
            .outbound(origins.clone())
            .config(config)
            .bind()
            .expect("server");

        let socket = network.socket(address(CLIENT), Some(&path));
        let config = client_config(setup, &roots, &socket, &memory[0]);
        let client = Client::connect(config).await.expect("client");

        let mut tasks = JoinSet::new();
        let (report, peaks) = watch::channel([0; 2]);
        tasks.spawn(watch_memory(memory.clone(), report));
        Self {
            path,
            socket,
            server,
            client,
            origins,
            memory,
            network,
            roots,
            start: Instant::now(),
            peaks,
            tasks,
        }
    }

    /// Ends the task that looks at the memory all the time.
    pub(crate) async fn stop_watching(&mut self) {
        self.tasks.shutdown().await;
    }

    /// Makes a client on a path of its own that has not connected yet.
    pub(crate) fn another_client(&self, setup: &Setup, at: &str) -> Client {
        let path = self.network.path(setup.up, setup.down);
        let socket = self.network.socket(address(at), Some(&path));
        let memory = MemoryBudget::of_machine();
        Client::lazy(client_config(setup, &self.roots, &socket, &memory))
    }

    /// Waits until `at` after the start.
    pub(crate) async fn sleep_until(&self, at: Duration) {
        sleep_until(self.start + at).await;
    }

    /// Waits until `at` after the start, and checks that the connection lives.
    pub(crate) async fn until(&self, at: Duration) {
        sleep_until(self.start + at).await;
        // A lost connection would be dialled anew, and then the server would know two.
        let connections = self.server.handle().connections();
        assert_eq!(
            connections.len(),
            1,
            "after {at:?} the connection is not there: {:?}",
            self.memory
        );
        let id = connections[0].peer.connection;
        assert_eq!(
            id.to_string(),
            "1",
            "the connection was lost and dialled anew"
        );
    }

    /// The connection as the server sees it.
    pub(crate) fn status(&self) -> ConnectionStatus {
        let mut connections = self.server.handle().connections();
        connections.pop().expect("a connection")
    }

    /// The most that the budgets of the client and the server had reserved, in bytes; checks that
    /// they never had more than their limit.
    pub(crate) fn memory_peaks(&self) -> [usize; 2] {
        let peaks = *self.peaks.borrow();
        for (peak, budget) in peaks.iter().zip(&self.memory) {
            assert!(*peak <= budget.limit(), "{peak} of {budget:?}");
        }
        peaks
    }

    /// Checks that nothing is reserved any more, within a few seconds.
    pub(crate) async fn memory_returns(&self) {
        self.memory_returns_within(seconds(5)).await;
    }

    /// Checks that nothing is reserved any more, within some time.
    pub(crate) async fn memory_returns_within(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.memory.iter().any(|budget| budget.used() > 0) {
            assert!(Instant::now() < deadline, "still held: {:?}", self.memory);
            tokio::time::sleep(millis(10)).await;
        }
    }
}

fn client_config(
    setup: &Setup,
    roots: &Arc<RootCertStore>,
    socket: &Arc<MemorySocket>,
    memory: &Arc<MemoryBudget>,
) -> ClientConfig {
    let mut config = ClientConfig::new(ServerAddress::new("10.0.0.1", 443), PASSWORD);
    config.tls.roots = Some(Arc::clone(roots));
    config.tls.sni = Some("localhost".to_owned());
    config.up = (setup.client_up > 0.0).then(|| mbps(setup.client_up));
    config.down = (setup.client_down > 0.0).then(|| mbps(setup.client_down));
    config.memory = Arc::clone(memory);
    // A handshake takes many attempts where a third of its packets is lost in both directions.
    config.connect_timeout = seconds(60);
    config.abstract_socket = Some(Arc::clone(socket) as _);
    config
}

async fn watch_memory(memory: [Arc<MemoryBudget>; 2], report: watch::Sender<[usize; 2]>) {
    let mut tick = interval(millis(5));
    loop {
        tick.tick().await;
        report.send_modify(|peaks| {
            for (peak, budget) in peaks.iter_mut().zip(&memory) {
                *peak = budget.used().max(*peak);
            }
        });
    }
}

fn certificate() -> (ServerTls, Arc<RootCertStore>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("certificate");
    let certificate = made.cert.der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("root");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("key");
    let tls = ServerTls::from_der(vec![certificate], key).expect("tls");
    (tls, Arc::new(roots))
}

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

pub(crate) fn mbps(rate: f64) -> Bandwidth {
    Bandwidth::from_bytes_per_sec((rate * 1e6 / 8.0) as u64)
}

pub(crate) const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

pub(crate) const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Bytes over a time, in Mbit/s.
pub(crate) fn rate(bytes: u64, span: Duration) -> f64 {
    bytes as f64 * 8.0 / span.as_secs_f64() / 1e6
}

pub(crate) fn mebibytes(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
