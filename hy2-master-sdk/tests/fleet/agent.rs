//! A master to test, and an agent small enough to misbehave.

#[path = "../support/postgres.rs"]
pub(crate) mod postgres;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use hy2_master_sdk::domain::{
    AssignmentSource, Clock, NodeId, PlanId, SystemClock, UserId, UserStatus,
};
use hy2_master_sdk::secrets::{MasterKeys, UserSecrets, sha256};
use hy2_master_sdk::store::Tx;
use hy2_master_sdk::store::assignments::{self, NewAssignment};
use hy2_master_sdk::store::users::{self, NewUser};
use hy2_master_sdk::{Master, MasterConfig};
use hy2_proto::control::rpc::master_service_client::MasterServiceClient;
use hy2_proto::control::rpc::session_request::Event as Up;
use hy2_proto::control::rpc::session_response::Event as Down;
use hy2_proto::control::{ALPN_MASTER, MASTER_NAME, RENEW_SIGNATURE_CONTEXT, rpc};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Status, Streaming};
use uuid::Uuid;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Waits for anything that has to happen: generous, because the machine may be slow.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct TestMaster {
    pub(crate) master: Master,
    pub(crate) address: SocketAddr,
    _dir: TempDir,
}

impl TestMaster {
    pub(crate) async fn start() -> Self {
        Self::with(Arc::new(SystemClock), |_| {}).await
    }

    /// The whole suite on PostgreSQL: `HY2_TEST_STORE=postgres`.
    pub(crate) async fn with(clock: Arc<dyn Clock>, shape: impl FnOnce(&mut MasterConfig)) -> Self {
        let backend = std::env::var("HY2_TEST_STORE").unwrap_or_else(|_| "sqlite".to_owned());
        Self::on(&backend, false, clock, shape).await
    }

    /// On `sqlite` or `postgres`; `durable`: with fsync also on PostgreSQL.
    pub(crate) async fn on(
        backend: &str,
        durable: bool,
        clock: Arc<dyn Clock>,
        shape: impl FnOnce(&mut MasterConfig),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let builder = match backend {
            "postgres" => Master::postgres(postgres::database(durable).await),
            _ => Master::sqlite(dir.path().join("master.db")),
        };
        let builder = builder.keys(MasterKeys::generate().unwrap()).clock(clock);
        Self::built(builder, dir, shape).await
    }

    /// Starts what was built, with settings for tests. Files live in `dir`.
    pub(crate) async fn built(
        builder: hy2_master_sdk::Builder,
        dir: TempDir,
        shape: impl FnOnce(&mut MasterConfig),
    ) -> Self {
        let mut config = MasterConfig::default();
        config.reconcile_interval = Duration::from_millis(200);
        config.max_anonymous_per_minute = 100_000;
        config.auto_assign = false;
        shape(&mut config);
        let master = builder
            .config(config)
            .agents("127.0.0.1:0")
            .start()
            .await
            .unwrap();
        Self {
            address: master.agents_address().unwrap(),
            master,
            _dir: dir,
        }
    }

    pub(crate) async fn token(&self) -> String {
        let token = self
            .master
            .create_enrolment_token("test", Duration::from_secs(900), |_| {})
            .await;
        token.unwrap().secret
    }

    /// Makes an agent and enrols it.
    pub(crate) async fn agent(&self, name: &str) -> Agent {
        let mut agent = Agent::new(self);
        let answer = agent.enroll(&self.token().await, name).await.unwrap();
        agent.accept(&answer);
        agent
    }

    pub(crate) async fn user(&self, name: &str, quota_bytes: Option<i64>) -> UserId {
        self.make_user(name, quota_bytes, None).await
    }

    pub(crate) async fn user_of_plan(&self, name: &str, plan: PlanId) -> UserId {
        self.make_user(name, None, Some(plan)).await
    }

    async fn make_user(
        &self,
        name: &str,
        quota_bytes: Option<i64>,
        plan_id: Option<PlanId>,
    ) -> UserId {
        let mut tx = self.master.store().begin().await.unwrap();
        let id = self.user_in(&mut tx, name, quota_bytes, plan_id).await;
        tx.commit().await.unwrap();
        id
    }

    /// Makes a user in a transaction that makes many.
    pub(crate) async fn user_in(
        &self,
        tx: &mut Tx,
        name: &str,
        quota_bytes: Option<i64>,
        plan_id: Option<PlanId>,
    ) -> UserId {
        let uid = Uuid::new_v4();
        let secrets = UserSecrets::generate(self.master.vault(), uid).unwrap();
        let new = NewUser {
            uid,
            username: name.to_owned(),
            admin_id: None,
            plan_id,
            status: UserStatus::Active,
            seed_enc: secrets.seed_enc,
            credential_enc: None,
            auth_hash: None,
            subscription_hash: secrets.subscription_hash,
            subscription_enc: secrets.subscription_enc,
            expires_at: None,
            hold_duration_ms: None,
            hold_deadline: None,
            quota_bytes,
            max_devices: None,
            max_connections: None,
            up_bytes_per_s: None,
            down_bytes_per_s: None,
            home_region_id: None,
            email: None,
            telegram_id: None,
            note: String::new(),
            tags: Vec::new(),
        };
        let row = users::create(tx, &new, self.master.now()).await.unwrap();
        row.id
    }

    pub(crate) async fn assign(&self, user: UserId, node: NodeId) {
        let new = NewAssignment {
            user_id: user,
            node_id: node,
            rank: 0,
            source: AssignmentSource::Pinned,
            score: None,
        };
        let mut tx = self.master.store().begin().await.unwrap();
        assignments::assign(&mut tx, &new, self.master.now())
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }

    pub(crate) async fn set_status(&self, user: UserId, status: UserStatus) {
        let change = users::UserChange {
            status: Some(status),
            ..users::UserChange::default()
        };
        let mut tx = self.master.store().begin().await.unwrap();
        users::update(&mut tx, user, None, &change, self.master.now())
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }
}

/// A stub of an agent.
pub(crate) struct Agent {
    pub(crate) address: SocketAddr,
    pub(crate) pin: String,
    pub(crate) key: rcgen::KeyPair,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) uid: Uuid,
    store: hy2_master_sdk::store::Store,
}

impl Agent {
    pub(crate) fn new(master: &TestMaster) -> Self {
        Self {
            address: master.address,
            pin: master.master.ca_pin(),
            key: rcgen::KeyPair::generate().unwrap(),
            chain: Vec::new(),
            uid: Uuid::nil(),
            store: master.master.store().clone(),
        }
    }

    pub(crate) fn csr(&self) -> Vec<u8> {
        let params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.serialize_request(&self.key).unwrap().der().to_vec()
    }

    pub(crate) async fn enroll(
        &self,
        token: &str,
        name: &str,
    ) -> Result<rpc::EnrollResponse, Status> {
        let request = rpc::EnrollRequest {
            token: token.to_owned(),
            csr: self.csr().into(),
            name: name.to_owned(),
            info: None,
            public_host: String::new(),
            listen_port: 0,
        };
        let mut client = MasterServiceClient::new(self.channel(false).await?);
        Ok(client.enroll(request).await?.into_inner())
    }

    /// Takes the identity of an answer.
    pub(crate) fn accept(&mut self, answer: &rpc::EnrollResponse) {
        self.uid = Uuid::from_slice(&answer.node_uid).unwrap();
        self.take(answer.certificate.as_ref().unwrap());
    }

    pub(crate) fn take(&mut self, certificate: &rpc::IssuedCertificate) {
        self.chain = certificate
            .chain
            .iter()
            .map(|der| der.to_vec().into())
            .collect();
    }

    pub(crate) async fn node(&self) -> NodeId {
        self.store.node_by_uid(self.uid).await.unwrap().id
    }

    /// Connects, with the certificate or without.
    pub(crate) async fn tls(
        &self,
        alpn: &[u8],
        with_certificate: bool,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let chain = if with_certificate {
            self.chain.clone()
        } else {
            Vec::new()
        };
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        connect(self.address, &self.pin, alpn, chain, key).await
    }

    pub(crate) async fn channel(&self, with_certificate: bool) -> Result<Channel, Status> {
        let stream = self
            .tls(ALPN_MASTER, with_certificate)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        channel(stream).await
    }

    pub(crate) async fn client(&self) -> MasterServiceClient<Channel> {
        MasterServiceClient::new(self.channel(true).await.unwrap())
    }

    /// Opens a Session and reads the greeting.
    pub(crate) async fn session(&self) -> Session {
        self.session_on(self.client().await).await
    }

    /// The same on a connection that there is.
    pub(crate) async fn session_on(&self, client: MasterServiceClient<Channel>) -> Session {
        let mut session = hello(client, rpc::Hello::default()).await.unwrap();
        assert!(matches!(session.next().await, Some(Down::Welcome(_))));
        assert!(matches!(session.next().await, Some(Down::Certificates(_))));
        session
    }

    pub(crate) async fn try_session(&self, greeting: rpc::Hello) -> Result<Session, Status> {
        hello(
            MasterServiceClient::new(self.channel(true).await?),
            greeting,
        )
        .await
    }
}

/// Begins a Session.
async fn hello(
    mut client: MasterServiceClient<Channel>,
    mut hello: rpc::Hello,
) -> Result<Session, Status> {
    hello.info.get_or_insert_with(rpc::NodeInfo::default);
    let (up, outbound) = tokio::sync::mpsc::channel(32);
    up.send(rpc::SessionRequest {
        event: Some(Up::Hello(hello)),
    })
    .await
    .unwrap();
    let down = client
        .session(ReceiverStream::new(outbound))
        .await?
        .into_inner();
    Ok(Session {
        up,
        down,
        users: Vec::new(),
    })
}

/// Proves with the key of an expired certificate who asks for another.
pub(crate) fn proof(key: &rcgen::KeyPair, csr: &[u8], at: &prost_types::Timestamp) -> Vec<u8> {
    let key =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.serialize_der()).unwrap();
    let signed = [
        RENEW_SIGNATURE_CONTEXT,
        csr,
        at.seconds.to_string().as_bytes(),
    ]
    .concat();
    key.sign(&SystemRandom::new(), &signed)
        .unwrap()
        .as_ref()
        .to_vec()
}

/// An open Session.
pub(crate) struct Session {
    pub(crate) up: tokio::sync::mpsc::Sender<rpc::SessionRequest>,
    pub(crate) down: Streaming<rpc::SessionResponse>,
    /// The set of users as the updates made it.
    pub(crate) users: Vec<rpc::UserEntry>,
}

/// A whole update, its parts put together.
#[derive(Debug)]
pub(crate) struct Update {
    pub(crate) manifest: rpc::Manifest,
    pub(crate) signed: rpc::SignedManifest,
    pub(crate) config: Option<Vec<u8>>,
    pub(crate) snapshot: bool,
    pub(crate) parts: usize,
}

impl Session {
    /// Returns the next event; `None` when the Session has ended.
    pub(crate) async fn next(&mut self) -> Option<Down> {
        let message = tokio::time::timeout(DEADLINE, self.down.message())
            .await
            .expect("an event in time");
        message.ok().flatten().and_then(|message| message.event)
    }

    pub(crate) async fn send(&self, event: Up) {
        self.up
            .send(rpc::SessionRequest { event: Some(event) })
            .await
            .unwrap();
    }

    /// Receives a whole update and puts it together as a node does.
    pub(crate) async fn update(&mut self) -> Update {
        use prost::Message;
        let (mut config, mut snapshot, mut parts) = (None, false, 0);
        loop {
            match self.next().await.expect("an update") {
                Down::Update(part) => {
                    assert_eq!(part.part as usize, parts);
                    if part.has_config {
                        config = Some(part.config.to_vec());
                    }
                    if part.users_snapshot {
                        snapshot = true;
                        self.users.clear();
                    }
                    for entry in &part.upsert_users {
                        let entry = rpc::UserEntry::decode(entry.clone()).unwrap();
                        self.users.retain(|user| user.user_id != entry.user_id);
                        self.users.push(entry);
                    }
                    self.users
                        .retain(|user| !part.remove_users.contains(&user.user_id));
                    self.users.sort_by_key(|user| user.user_id);
                    parts += 1;
                    if part.last {
                        let signed = part.manifest.unwrap();
                        return Update {
                            manifest: rpc::Manifest::decode(signed.manifest.clone()).unwrap(),
                            signed,
                            config,
                            snapshot,
                            parts,
                        };
                    }
                }
                Down::Recall(_) | Down::Certificates(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) async fn ack(&self, update: &Update) {
        self.send(Up::Ack(rpc::ResourceAck {
            manifest_rev: update.manifest.rev,
            cluster_epoch: update.manifest.cluster_epoch,
        }))
        .await;
    }

    /// Returns the names of the users that the node has.
    pub(crate) fn ids(&self) -> Vec<u64> {
        self.users.iter().map(|user| user.user_id).collect()
    }
}

/// Makes a channel of one connection.
pub(crate) async fn channel(stream: TlsStream<TcpStream>) -> Result<Channel, Status> {
    let stream = Arc::new(Mutex::new(Some(stream)));
    Endpoint::from_static("http://master.invalid")
        .connect_with_connector(Once(stream))
        .await
        .map_err(|error| Status::unavailable(error.to_string()))
}

struct Once(Arc<Mutex<Option<TlsStream<TcpStream>>>>);

impl tower_service::Service<Uri> for Once {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = std::io::Error;
    type Future = std::future::Ready<Result<Self::Response, std::io::Error>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), std::io::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let stream = self.0.lock().unwrap().take();
        std::future::ready(
            stream
                .map(TokioIo::new)
                .ok_or_else(|| std::io::Error::other("closed")),
        )
    }
}

/// Connects as an agent does that knows the authority's pin only.
pub(crate) async fn connect(
    address: SocketAddr,
    pin: &str,
    alpn: &[u8],
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned(pin.to_owned())));
    let mut config = if chain.is_empty() {
        builder.with_no_client_auth()
    } else {
        builder.with_client_auth_cert(chain, key).unwrap()
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(MASTER_NAME).unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

/// Follows the presented chain to the pinned authority. Does not look at validity: some tests move
/// the master's clock.
#[derive(Debug)]
struct Pinned(String);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let wrong = |why: &str| rustls::Error::General(why.to_owned());
        let root = intermediates
            .last()
            .ok_or_else(|| wrong("no authority in the chain"))?;
        let (_, root) = X509Certificate::from_der(root).map_err(|_| wrong("authority"))?;
        let pin = format!("sha256:{}", hex::encode(sha256(root.public_key().raw)));
        if pin != self.0 {
            return Err(wrong("the authority is not the pinned one"));
        }
        let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| wrong("leaf"))?;
        leaf.verify_signature(Some(root.public_key()))
            .map_err(|_| wrong("the authority did not sign the leaf"))?;
        let names = leaf
            .subject_alternative_name()
            .ok()
            .flatten()
            .ok_or_else(|| wrong("names"))?;
        let named = names.value.general_names.iter().any(
            |name| matches!(name, x509_parser::extensions::GeneralName::DNSName(name) if *name == MASTER_NAME),
        );
        if named {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(wrong("the leaf is not the master's"))
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms =
            rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Waits until something is true of the master.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
