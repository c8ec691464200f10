//! Our server and our client as the tests of this binary run them, beside the reference of `peer`.

mod record;
mod through;

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use hy2_core::{
    Client, ClientConfig, Server, ServerBuilder,
    authenticator::{Password, UserId},
    client::ServerAddress,
    meter::Traffic,
    outbound::{AddressPolicy, Direct},
    proto::udp::UdpMessage,
    rustls::pki_types::{CertificateDer, PrivateKeyDer},
    server::ServerConfig,
    tls::{ClientTls, ServerTls},
};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep, timeout};

use crate::peer;

pub(crate) use record::{Event, Record};
pub(crate) use through::{Through, bytes, echo_on, udp_echo};

pub(crate) const SECRET: &str = "a secret of the interop tests";

/// Whatever a test meets; the reference's faults and ours print what is needed to find the cause.
pub(crate) type Checked = Result<(), Box<dyn std::error::Error>>;

/// The longest that anything here may take which does not move a lot of data.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A target to which no system opens a TCP connection, whatever its routes: the broadcast address.
pub(crate) const UNREACHABLE: &str = "255.255.255.255:80";

/// A name that never exists (RFC 6761 §6.4).
pub(crate) const UNRESOLVABLE: &str = "name.invalid:80";

/// One MiB.
pub(crate) const MIB: u64 = 1 << 20;

/// An ECDSA P-256 certificate for `localhost`: clients with the Chrome parrot take no Ed25519.
pub(crate) struct Identity {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Identity {
    pub(crate) fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
        Self {
            certificate: made.cert.der().clone(),
            key: made.signing_key.serialize_der(),
        }
    }

    fn tls(&self) -> ServerTls {
        let key = PrivateKeyDer::try_from(self.key.clone()).expect("a key");
        ServerTls::from_der(vec![self.certificate.clone()], key).expect("a pair")
    }

    /// What a reference client needs to trust it: the name, for our SNI guard, and the pin.
    pub(crate) fn trust(&self) -> peer::ClientTls {
        peer::ClientTls {
            sni: "localhost".to_owned(),
            insecure: true,
            pin: hex::encode(Sha256::digest(&self.certificate)),
            ..peer::ClientTls::default()
        }
    }
}

/// Our server on loopback, with a record of its events.
pub(crate) struct OurServer {
    pub(crate) server: Server,
    pub(crate) record: Record,
    pub(crate) addr: SocketAddr,
    trust: peer::ClientTls,
}

impl OurServer {
    pub(crate) fn start() -> Self {
        Self::with(|_| ())
    }

    pub(crate) fn with(adjust: impl FnOnce(&mut ServerConfig)) -> Self {
        let address = (Ipv4Addr::LOCALHOST, 0).into();
        Self::bind(&Identity::new(), address, adjust, |builder| builder)
    }

    /// Any target may be dialled: those of the tests are on loopback.
    pub(crate) fn bind(
        identity: &Identity,
        address: SocketAddr,
        adjust: impl FnOnce(&mut ServerConfig),
        build: impl FnOnce(ServerBuilder) -> ServerBuilder,
    ) -> Self {
        let record = Record::default();
        let mut config = ServerConfig::default();
        adjust(&mut config);
        let builder = Server::builder(identity.tls())
            .listen(address)
            .authenticator(Password::new(SECRET))
            .outbound(Direct::new(AddressPolicy::allow_all()))
            .events(record.clone())
            .config(config);
        let server = build(builder).bind().expect("bound");
        Self {
            addr: server.local_addrs()[0],
            server,
            record,
            trust: identity.trust(),
        }
    }

    /// The configuration of a reference client of this server.
    pub(crate) fn client_config(&self) -> peer::ClientConfig {
        peer::ClientConfig::new(self.addr, SECRET, self.trust.clone())
    }

    /// Starts a reference client of this server.
    pub(crate) async fn client(
        &self,
        adjust: impl FnOnce(&mut peer::ClientConfig),
    ) -> peer::Client {
        let mut config = self.client_config();
        adjust(&mut config);
        peer::Client::start(&config)
            .await
            .expect("a right configuration")
    }

    pub(crate) fn traffic(&self) -> Traffic {
        let user = UserId::from("user");
        self.server.handle().traffic(&user).unwrap_or_default()
    }

    /// Waits until no TCP stream and no connection of a target is left.
    pub(crate) async fn left_nothing(&self, origin: &peer::Origin) -> Checked {
        origin.all_closed(PATIENCE).await?;
        until("the server counts no stream", || {
            self.traffic().streams == 0
        })
        .await;
        Ok(())
    }
}

/// The configuration of our client for a reference server.
pub(crate) fn config_for(server: &peer::Server) -> ClientConfig {
    config_towards(server, ServerAddress::new("127.0.0.1", server.addr.port()))
}

/// The same by another way, such as a fan of ports.
pub(crate) fn config_towards(server: &peer::Server, address: ServerAddress) -> ClientConfig {
    let mut config = ClientConfig::new(address, SECRET);
    config.tls.sni = Some(server.sni.clone());
    config.tls.insecure = true;
    config.tls.pin_sha256 = ClientTls::parse_pin(&server.pin);
    config
}

/// A reference server and our client of it.
pub(crate) async fn reference_and_client(
    server: peer::ServerConfig,
    adjust: impl FnOnce(&mut ClientConfig),
) -> Result<(peer::Server, Client), Box<dyn std::error::Error>> {
    let server = peer::Server::start(&server)
        .await
        .expect("a right configuration");
    let mut config = config_for(&server);
    adjust(&mut config);
    let client = soon(Client::connect(config)).await?;
    Ok((server, client))
}

/// The reference server's plainest configuration.
pub(crate) fn plain() -> peer::ServerConfig {
    peer::ServerConfig::with_password(SECRET)
}

/// Waits for `step`, which must not take long.
#[track_caller]
pub(crate) fn soon<F: Future>(step: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    async move {
        match timeout(PATIENCE, step).await {
            Ok(output) => output,
            Err(_) => panic!("{caller}: nothing came within {PATIENCE:?}"),
        }
    }
}

/// Waits for a figure that no event announces.
pub(crate) async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(
            start.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        sleep(Duration::from_millis(5)).await;
    }
}

/// Encodes one UDP message or fragment.
pub(crate) fn udp_message(
    session_id: u32,
    packet_id: u16,
    (frag_id, frag_count): (u8, u8),
    address: &str,
    data: &[u8],
) -> Vec<u8> {
    let message = UdpMessage {
        session_id,
        packet_id,
        frag_id,
        frag_count,
        address,
        data,
    };
    let mut encoded = Vec::new();
    message.encode(&mut encoded);
    encoded
}
