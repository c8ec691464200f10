//! A server under churn.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use anyhow::{Context, Result};
use hy2_core::{
    BoxFuture, ClientConfig, Server, ServerHandle,
    authenticator::{AuthContext, AuthDecision, Authenticator, Password},
    client::ServerAddress,
    memory::MemoryBudget,
    outbound::{AddressPolicy, Direct},
    rustls::pki_types::{CertificateDer, PrivateKeyDer},
    server::ServerConfig,
    socket::HopInterval,
    tls::ServerTls,
};

use crate::{fan, origin::Origins};

pub(crate) const PASSWORD: &str = "a long enough password";

/// Ports that clients hop between.
const PORTS: usize = 4;

/// A killed peer is missed after this.
const IDLE: Duration = Duration::from_secs(4);

/// Asks for a password, and keeps what is leaked on purpose for as long as its server lives.
struct Keeping {
    password: Password,
    #[expect(dead_code, reason = "it is there to be held")]
    kept: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Authenticator for Keeping {
    fn authenticate<'a>(&'a self, request: AuthContext<'a>) -> BoxFuture<'a, AuthDecision> {
        self.password.authenticate(request)
    }

    fn pretend<'a>(&'a self, request: AuthContext<'a>) -> BoxFuture<'a, ()> {
        self.password.pretend(request)
    }
}

/// A server, and where everything is.
pub(crate) struct World {
    server: Option<Server>,
    /// What the server keeps.
    kept: Weak<Mutex<Vec<Vec<u8>>>>,
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
    pub(crate) address: SocketAddr,
    /// Lead to the same server.
    pub(crate) fan: Vec<SocketAddr>,
    pub(crate) origins: Origins,
    memory: [Arc<MemoryBudget>; 2],
    password: String,
}

impl World {
    pub(crate) async fn start(password: &str) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let mut world = Self {
            server: None,
            kept: Weak::new(),
            certificate: made.cert.der().clone(),
            key: made.signing_key.serialize_der(),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            fan: Vec::new(),
            origins: Origins::start().await?,
            memory: [MemoryBudget::new(256 << 20), MemoryBudget::new(256 << 20)],
            password: password.to_owned(),
        };
        let server = world.bind()?;
        world.address = *server.local_addrs().first().context("no address")?;
        world.fan = fan::open(PORTS, world.address).await?;
        world.server = Some(server);
        Ok(world)
    }

    fn bind(&mut self) -> Result<Server> {
        let kept = Arc::default();
        self.kept = Arc::downgrade(&kept);
        let authenticator = Keeping {
            password: Password::new(&self.password),
            kept,
        };
        let key = PrivateKeyDer::try_from(self.key.clone())
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        let tls = ServerTls::from_der(vec![self.certificate.clone()], key)?;
        let mut config = ServerConfig::default();
        config.quic.max_idle_timeout = IDLE;
        config.udp_idle_timeout = Duration::from_secs(2);
        config.memory = Arc::clone(&self.memory[0]);
        let builder = Server::builder(tls)
            .listen(self.address)
            .authenticator(authenticator)
            .outbound(Direct::new(AddressPolicy::allow_all()))
            .config(config);
        Ok(builder.bind()?)
    }

    /// Ends the server at once and puts another in its place.
    pub(crate) async fn restart(&mut self) -> Result<()> {
        if let Some(server) = self.server.take() {
            server.drain(Duration::ZERO).await;
        }
        self.server = Some(self.bind().context("the same port again")?);
        Ok(())
    }

    pub(crate) async fn end(&mut self) {
        if let Some(server) = self.server.take() {
            server.drain(Duration::ZERO).await;
        }
    }

    /// Lets the server keep something for good.
    pub(crate) fn leak(&self, bytes: Vec<u8>) {
        if let Some(kept) = self.kept.upgrade() {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.push(bytes);
        }
    }

    pub(crate) fn handle(&self) -> ServerHandle {
        let server = self.server.as_ref();
        server
            .map(Server::handle)
            .expect("there is one between start and end")
    }

    /// Bytes that both ends have reserved.
    pub(crate) fn reserved(&self) -> usize {
        self.memory.iter().map(|memory| memory.used()).sum()
    }

    /// How to connect at these ports.
    pub(crate) fn client(&self, ports: &[SocketAddr]) -> ClientConfig {
        let mut config = client_config(ports);
        config.memory = Arc::clone(&self.memory[1]);
        config
    }
}

/// A client of the server at these ports.
pub(crate) fn client_config(ports: &[SocketAddr]) -> ClientConfig {
    let list: Vec<String> = ports.iter().map(|at| at.port().to_string()).collect();
    let mut address = ServerAddress::new("127.0.0.1", 0);
    if let Ok(ports) = list.join(",").parse() {
        address.ports = ports;
    }
    let mut config = ClientConfig::new(address, PASSWORD);
    config.tls.insecure = true;
    config.tls.sni = Some("localhost".to_owned());
    config.quic.max_idle_timeout = IDLE;
    config.quic.keep_alive = IDLE / 2;
    config.connect_timeout = Duration::from_secs(8);
    config.socket.recv_buffer = 256 << 10;
    config.socket.send_buffer = 256 << 10;
    let (soonest, latest) = (Duration::from_millis(400), Duration::from_millis(900));
    config.hop = HopInterval::unchecked(soonest, latest);
    config
}
