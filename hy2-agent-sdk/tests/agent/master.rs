//! A small real master on real sockets: TLS, both ALPNs, the gRPC service, and a store that takes
//! the next batch only.

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use hy2_agent_sdk::clock::{Clock, SystemClock};
use hy2_agent_sdk::hy2_proto::control::{
    ALPN_MASTER, ALPN_REVERSE, MASTER_NAME, MULTIPLIER_ONE, RENEW_SIGNATURE_CONTEXT, hash,
    rpc::{
        self, EnrollResponse, Manifest, NodeConfig, NodeDesiredState, ResourceAck, ResourceNack,
        ResourceRef, ResourceUpdate, SessionRequest, SessionResponse, SignedManifest, TrafficAck,
        TrafficBatch, UserEntry, Welcome,
        master_service_server::{MasterService, MasterServiceServer},
        node_manager_client::NodeManagerClient,
        session_request, session_response,
    },
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use parking_lot::Mutex;
use prost::Message;
use rustls::{RootCertStore, server::WebPkiClientVerifier};
use rustls_pki_types::CertificateDer;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::pki::Pki;

pub(crate) const NODE_UID: [u8; 16] = [7; 16];
pub(crate) const TOKEN: &str = "enrolment-token-canary-5d1f";

pub(crate) type NodeClient = NodeManagerClient<Channel>;

/// What a node should have.
#[derive(Clone)]
pub(crate) struct Desired {
    pub(crate) config: NodeConfig,
    pub(crate) users: BTreeMap<u64, UserEntry>,
    pub(crate) state: NodeDesiredState,
    pub(crate) drain_deadline: Option<SystemTime>,
    pub(crate) valid_until: SystemTime,
    pub(crate) epoch: u64,
    pub(crate) rev: u64,
    users_rev: u64,
    config_rev: u64,
}

/// Everything the master has committed.
#[derive(Default)]
pub(crate) struct Store {
    pub(crate) cursors: BTreeMap<Vec<u8>, u64>,
    pub(crate) bytes: BTreeMap<u64, (u64, u64)>,
    pub(crate) leases: BTreeMap<u64, u64>,
    pub(crate) batches: u64,
    pub(crate) duplicates: u64,
}

impl Store {
    pub(crate) fn total(&self) -> (u64, u64) {
        let sum = |all: (u64, u64), one: &(u64, u64)| (all.0 + one.0, all.1 + one.1);
        self.bytes.values().fold((0, 0), sum)
    }
}

/// What the master grants of quotas: bytes left per user, the size of a slice.
#[derive(Default)]
pub(crate) struct Quotas {
    pub(crate) left: BTreeMap<u64, u64>,
    pub(crate) slice: u64,
    pub(crate) places: BTreeMap<u64, u32>,
    pub(crate) granted: BTreeMap<u64, u64>,
    /// Places that the node holds.
    pub(crate) lent: BTreeMap<u64, u32>,
    next: u64,
}

pub(crate) struct Shared {
    pub(crate) pki: Pki,
    pub(crate) desired: Mutex<Desired>,
    published: Mutex<Option<Published>>,
    pub(crate) store: Mutex<Store>,
    pub(crate) quotas: Mutex<Quotas>,
    session: Mutex<Option<mpsc::Sender<Result<SessionResponse, Status>>>>,
    pub(crate) acks: watch::Sender<Vec<ResourceAck>>,
    pub(crate) nacks: watch::Sender<Vec<ResourceNack>>,
    pub(crate) seen: watch::Sender<Seen>,
    pub(crate) used_tokens: Mutex<BTreeMap<String, [u8; 32]>>,
    pub(crate) certificate_life: Mutex<Duration>,
    pub(crate) renewals: AtomicU64,
    /// Certificates are not taken until one is renewed by its key.
    pub(crate) refuses: AtomicBool,
    /// What it calls its time.
    pub(crate) clock: Mutex<Arc<dyn Clock>>,
    /// It tells the time during a session too; most tests move the agent's date alone.
    pub(crate) tells_time: AtomicBool,
    /// The node is deleted: who asks for a session is told so.
    pub(crate) retired: AtomicBool,
    /// Commit, but do not answer, this many batches.
    pub(crate) lose_answers: AtomicU64,
    /// How often each answer comes beyond the first time.
    pub(crate) extra_answers: AtomicUsize,
    /// How often it wants heartbeats, figures and traffic; what suits tests where it does not say.
    pub(crate) interval: Mutex<Option<prost_types::Duration>>,
    /// Keep a session from getting updates of its own accord.
    pub(crate) quiet: AtomicBool,
    /// Keep requests for leases waiting.
    pub(crate) hold_leases: watch::Sender<bool>,
    reversed: Mutex<Option<mpsc::Sender<Reversed>>>,
}

/// What the last published state was, for deltas.
struct Published {
    users: BTreeMap<u64, UserEntry>,
    users_rev: u64,
    config_rev: u64,
}

#[derive(Default, Clone)]
pub(crate) struct Seen {
    pub(crate) sessions: u64,
    pub(crate) heartbeats: u64,
    pub(crate) metrics: Vec<rpc::NodeMetrics>,
    pub(crate) statuses: Vec<rpc::StatusReport>,
    pub(crate) alerts: Vec<rpc::Alert>,
    pub(crate) live: BTreeMap<u64, rpc::LiveSession>,
    pub(crate) hello: Option<rpc::Hello>,
}

pub(crate) struct Master {
    pub(crate) shared: Arc<Shared>,
    pub(crate) address: SocketAddr,
    running: Option<JoinSet<()>>,
}

impl Master {
    pub(crate) async fn start(config: NodeConfig) -> Self {
        let shared = Arc::new(Shared {
            pki: Pki::new(),
            desired: Mutex::new(Desired {
                config,
                users: BTreeMap::new(),
                state: NodeDesiredState::Active,
                drain_deadline: None,
                valid_until: SystemTime::now() + Duration::from_secs(7 * 86_400),
                epoch: 1,
                rev: 1,
                users_rev: 1,
                config_rev: 1,
            }),
            published: Mutex::new(None),
            store: Mutex::default(),
            quotas: Mutex::default(),
            session: Mutex::default(),
            acks: watch::Sender::default(),
            nacks: watch::Sender::default(),
            seen: watch::Sender::default(),
            used_tokens: Mutex::default(),
            certificate_life: Mutex::new(Duration::from_secs(30 * 86_400)),
            renewals: AtomicU64::new(0),
            refuses: AtomicBool::new(false),
            clock: Mutex::new(Arc::new(SystemClock)),
            tells_time: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            lose_answers: AtomicU64::new(0),
            extra_answers: AtomicUsize::new(0),
            interval: Mutex::default(),
            quiet: AtomicBool::new(false),
            hold_leases: watch::Sender::new(false),
            reversed: Mutex::default(),
        });
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let mut master = Self {
            shared,
            address,
            running: None,
        };
        master.serve(listener);
        master
    }

    fn serve(&mut self, listener: TcpListener) {
        let shared = Arc::clone(&self.shared);
        let mut running = JoinSet::new();
        running.spawn(async move {
            let acceptor = acceptor(&shared.pki);
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("accepts");
                let (shared, acceptor) = (Arc::clone(&shared), acceptor.clone());
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    match stream.get_ref().1.alpn_protocol() {
                        Some(alpn) if alpn == ALPN_REVERSE => reversed(&shared, stream).await,
                        _ => forward(shared, stream).await,
                    }
                });
            }
        });
        self.running = Some(running);
    }

    /// Ends every connection and closes the port.
    pub(crate) async fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.shutdown().await;
        }
        *self.shared.session.lock() = None;
    }

    /// Serves again on the same port.
    pub(crate) async fn resume(&mut self) {
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        self.serve(listener);
    }

    /// Changes what the node should have and sends it; returns the new revision.
    pub(crate) async fn publish(&self, change: impl FnOnce(&mut Desired)) -> u64 {
        let rev = {
            let mut desired = self.shared.desired.lock();
            let before = desired.clone();
            change(&mut desired);
            desired.rev += 1;
            if desired.users != before.users {
                desired.users_rev += 1;
            }
            if desired.config != before.config {
                desired.config_rev += 1;
            }
            desired.rev
        };
        let session = self.shared.session.lock().clone();
        if let Some(session) = session {
            for part in self.shared.update(false) {
                let _ = session.send(Ok(part)).await;
            }
        }
        rev
    }

    /// [`Self::publish`], and waits until the node runs it.
    pub(crate) async fn publish_acked(&self, change: impl FnOnce(&mut Desired)) -> u64 {
        let rev = self.publish(change).await;
        self.acked(rev).await;
        rev
    }

    pub(crate) async fn acked(&self, rev: u64) {
        let nacks = self.shared.nacks.subscribe();
        let mut acks = self.shared.acks.subscribe();
        let has = |acks: &Vec<ResourceAck>| acks.iter().any(|ack| ack.manifest_rev >= rev);
        let waited = tokio::time::timeout(crate::PATIENCE, acks.wait_for(has)).await;
        assert!(
            waited.is_ok(),
            "revision {rev} not acknowledged: {:?}",
            nacks.borrow()
        );
    }

    pub(crate) async fn nacked(&self, rev: u64) -> ResourceNack {
        let mut nacks = self.shared.nacks.subscribe();
        let has = |nacks: &Vec<ResourceNack>| nacks.iter().any(|nack| nack.manifest_rev == rev);
        let found = tokio::time::timeout(crate::PATIENCE, nacks.wait_for(has))
            .await
            .expect("refused in time")
            .expect("alive");
        let nack = found.iter().find(|nack| nack.manifest_rev == rev);
        nack.expect("found").clone()
    }

    /// Sends anything on the session.
    pub(crate) async fn send(&self, event: session_response::Event) {
        let session = self.shared.session.lock().clone().expect("a session");
        let message = SessionResponse { event: Some(event) };
        session.send(Ok(message)).await.expect("a session");
    }

    /// Waits until the figures that nodes reported satisfy `enough`.
    pub(crate) async fn until_seen(&self, what: &str, enough: impl FnMut(&Seen) -> bool) -> Seen {
        let mut seen = self.shared.seen.subscribe();
        let waited = tokio::time::timeout(crate::PATIENCE, seen.wait_for(enough)).await;
        waited
            .unwrap_or_else(|_| panic!("never {what}"))
            .expect("alive")
            .clone()
    }

    /// Waits until the store has `enough`.
    pub(crate) async fn until_stored(&self, what: &str, enough: impl Fn(&Store) -> bool) {
        let until = tokio::time::Instant::now() + crate::PATIENCE;
        while !enough(&self.shared.store.lock()) {
            let total = self.shared.store.lock().total();
            assert!(
                tokio::time::Instant::now() < until,
                "never {what}: {total:?}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Asks for the reversed connection and returns a client on it.
    pub(crate) async fn reverse(&self) -> NodeClient {
        let (to, mut from) = mpsc::channel(1);
        *self.shared.reversed.lock() = Some(to);
        let open = rpc::OpenReverse {
            ticket: b"ticket-1".as_slice().into(),
        };
        self.send(session_response::Event::OpenReverse(open)).await;
        let opened = tokio::time::timeout(crate::PATIENCE, from.recv()).await;
        let (ticket, stream) = opened.expect("opened in time").expect("opened");
        assert_eq!(ticket, b"ticket-1");
        node_client(stream).await
    }
}

impl Shared {
    /// A manifest for the present desired state.
    pub(crate) fn manifest(&self) -> Manifest {
        let desired = self.desired.lock();
        let config = desired.config.encode_to_vec();
        let digests: Vec<_> = desired
            .users
            .values()
            .map(|entry| hash::blob(&entry.encode_to_vec()))
            .collect();
        Manifest {
            cluster_epoch: desired.epoch,
            node_uid: NODE_UID.to_vec().into(),
            rev: desired.rev,
            resources: vec![
                ResourceRef {
                    r#type: "config".into(),
                    rev: desired.config_rev,
                    sha256: hash::blob(&config).to_vec().into(),
                },
                ResourceRef {
                    r#type: "users".into(),
                    rev: desired.users_rev,
                    sha256: hash::user_set(&digests).to_vec().into(),
                },
            ],
            issued_at: Some(SystemTime::now().into()),
            valid_until: Some(desired.valid_until.into()),
            desired_state: desired.state.into(),
            drain_deadline: desired.drain_deadline.map(Into::into),
        }
    }

    pub(crate) fn signed(&self) -> SignedManifest {
        self.pki.sign(&self.manifest())
    }

    /// The parts that bring a node to the desired state: a delta where it is known what the node
    /// has, in parts of 50 users.
    pub(crate) fn update(&self, snapshot: bool) -> Vec<SessionResponse> {
        let desired = self.desired.lock().clone();
        let mut published = self.published.lock();
        let base = if snapshot { None } else { published.as_ref() };
        let upsert: Vec<_> = desired
            .users
            .iter()
            .filter(|(id, entry)| base.is_none_or(|base| base.users.get(id) != Some(entry)))
            .map(|(_, entry)| bytes::Bytes::from(entry.encode_to_vec()))
            .collect();
        let remove: Vec<u64> = base
            .into_iter()
            .flat_map(|base| base.users.keys())
            .filter(|id| !desired.users.contains_key(id))
            .copied()
            .collect();
        let has_config = base.is_none_or(|base| base.config_rev != desired.config_rev);
        let mut chunks: Vec<_> = upsert.chunks(50).map(<[_]>::to_vec).collect();
        if chunks.is_empty() {
            chunks.push(Vec::new());
        }
        let count = chunks.len();
        let users_base_rev = base.map_or(0, |base| base.users_rev);
        let parts = chunks.into_iter().enumerate().map(|(at, upsert_users)| {
            let (first, last) = (at == 0, at + 1 == count);
            SessionResponse {
                event: Some(session_response::Event::Update(ResourceUpdate {
                    manifest: last.then(|| self.signed()),
                    config: if first && has_config {
                        desired.config.encode_to_vec().into()
                    } else {
                        bytes::Bytes::new()
                    },
                    has_config: first && has_config,
                    users_snapshot: base.is_none(),
                    users_base_rev,
                    upsert_users,
                    remove_users: if first { remove.clone() } else { Vec::new() },
                    part: u32::try_from(at).expect("few parts"),
                    last,
                })),
            }
        });
        let parts = parts.collect();
        *published = Some(Published {
            users: desired.users,
            users_rev: desired.users_rev,
            config_rev: desired.config_rev,
        });
        parts
    }

    fn take(&self, batch: &TrafficBatch) -> TrafficAck {
        let mut store = self.store.lock();
        let cursor = store.cursors.get(&batch.spool_id[..]).copied().unwrap_or(0);
        let durable = if batch.first_seq == cursor + 1 {
            store
                .cursors
                .insert(batch.spool_id.to_vec(), batch.last_seq);
            store.batches += 1;
            for row in &batch.users {
                let bytes = store.bytes.entry(row.user_id).or_default();
                bytes.0 += row.tx;
                bytes.1 += row.rx;
                for used in &row.leases {
                    *store.leases.entry(used.lease_id).or_default() += used.billed_bytes;
                }
            }
            batch.last_seq
        } else {
            store.duplicates += 1;
            cursor
        };
        TrafficAck {
            spool_id: batch.spool_id.clone(),
            durable_seq: durable,
            quarantined: 0,
        }
    }
}

fn acceptor(pki: &Pki) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(pki.ca()).expect("a root");
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .expect("a verifier");
    let (chain, key) = pki.master();
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .expect("a certificate");
    config.alpn_protocols = vec![ALPN_MASTER.to_vec(), ALPN_REVERSE.to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

async fn forward(shared: Arc<Shared>, stream: TlsStream<TcpStream>) {
    let peer = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first().cloned())
        .map(CertificateDer::into_owned);
    let service = MasterServiceServer::new(Service { shared, peer });
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .await;
}

/// A reversed connection, and the ticket that it began with.
type Reversed = (Vec<u8>, TlsStream<TcpStream>);

async fn reversed(shared: &Shared, mut stream: TlsStream<TcpStream>) {
    if stream.get_ref().1.peer_certificates().is_none() {
        return;
    }
    let length = stream.read_u8().await.expect("a length");
    let mut ticket = vec![0; length.into()];
    stream.read_exact(&mut ticket).await.expect("a ticket");
    let waiting = shared.reversed.lock().take();
    if let Some(waiting) = waiting {
        let _ = waiting.send((ticket, stream)).await;
    }
}

/// HTTP/2 on one connection, for the client side of NodeManager.
#[derive(Clone)]
pub(crate) struct Channel(hyper::client::conn::http2::SendRequest<tonic::body::Body>);

impl tower_service::Service<http::Request<tonic::body::Body>> for Channel {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

pub(crate) async fn node_client<S>(stream: S) -> NodeClient
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
    // Ends with the test.
    tokio::spawn(connection);
    let origin = format!("http://{MASTER_NAME}").parse().expect("a URI");
    NodeManagerClient::with_origin(Channel(sender), origin)
}

struct Service {
    shared: Arc<Shared>,
    peer: Option<CertificateDer<'static>>,
}

impl Service {
    fn node(&self) -> Result<(), Status> {
        match self.peer {
            Some(_) => Ok(()),
            None => Err(Status::unauthenticated("a client certificate is needed")),
        }
    }
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl MasterService for Service {
    async fn enroll(
        &self,
        request: Request<rpc::EnrollRequest>,
    ) -> Result<Response<EnrollResponse>, Status> {
        let request = request.into_inner();
        if request.token != TOKEN {
            return Err(Status::permission_denied("token"));
        }
        let key = hash::blob(&spki_of_request(&request.csr));
        let mut used = self.shared.used_tokens.lock();
        if *used.entry(request.token).or_insert(key) != key {
            return Err(Status::permission_denied("token is used"));
        }
        let life = *self.shared.certificate_life.lock();
        let certificate = self.shared.pki.issue(&request.csr, "node-1", life);
        Ok(Response::new(EnrollResponse {
            node_uid: NODE_UID.to_vec().into(),
            name: "node-1".into(),
            certificate: Some(certificate),
            trusted_cas: vec![self.shared.pki.ca().to_vec().into()],
            signing_keys: vec![self.shared.pki.signing_key.clone()],
            cluster_epoch: 1,
        }))
    }

    async fn renew_certificate(
        &self,
        request: Request<rpc::RenewCertificateRequest>,
    ) -> Result<Response<rpc::RenewCertificateResponse>, Status> {
        let request = request.into_inner();
        if self.peer.is_none() {
            // The known key has to have signed.
            let (_, old) = x509_parser::parse_x509_certificate(&request.expired_certificate)
                .map_err(|_| Status::unauthenticated("no certificate"))?;
            let at = request
                .at
                .ok_or_else(|| Status::unauthenticated("no time"))?;
            let message = [
                RENEW_SIGNATURE_CONTEXT,
                &request.csr,
                at.seconds.to_string().as_bytes(),
            ]
            .concat();
            let key = &old.public_key().subject_public_key.data;
            aws_lc_rs::signature::UnparsedPublicKey::new(
                &aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1,
                key,
            )
            .verify(&message, &request.signature)
            .map_err(|_| Status::unauthenticated("signature"))?;
            self.shared.refuses.store(false, SeqCst);
        }
        self.shared.renewals.fetch_add(1, SeqCst);
        let life = *self.shared.certificate_life.lock();
        Ok(Response::new(rpc::RenewCertificateResponse {
            certificate: Some(self.shared.pki.issue(&request.csr, "node-1", life)),
            trusted_cas: Vec::new(),
            signing_keys: Vec::new(),
        }))
    }

    type SessionStream = Streamed<SessionResponse>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        self.node()?;
        if self.shared.refuses.load(SeqCst) {
            return Err(Status::unauthenticated("the certificate was replaced"));
        }
        let mut from = request.into_inner();
        let first = from.message().await?.and_then(|first| first.event);
        let Some(session_request::Event::Hello(hello)) = first else {
            return Err(Status::invalid_argument("hello first"));
        };
        let (to, queue) = mpsc::channel(1024);
        if self.shared.retired.load(SeqCst) {
            let event = Some(farewell());
            let _ = to.try_send(Ok(SessionResponse { event }));
            return Ok(Response::new(Box::pin(ReceiverStream::new(queue))));
        }
        let cursors = {
            let store = self.shared.store.lock();
            let ids = hello.spool_ids.iter();
            ids.filter_map(|id| {
                Some(rpc::Cursor {
                    moved_at: None,
                    spool_id: id.clone(),
                    durable_seq: *store.cursors.get(&id[..])?,
                })
            })
            .collect()
        };
        let interval = *self.shared.interval.lock();
        let millis = |ms: u64| {
            interval.or_else(|| prost_types::Duration::try_from(Duration::from_millis(ms)).ok())
        };
        let welcome = Welcome {
            cluster_epoch: self.shared.desired.lock().epoch,
            master_time: Some(self.shared.clock.lock().now().into()),
            heartbeat_interval: millis(200),
            metrics_interval: millis(200),
            traffic_interval: millis(50),
            cursors,
        };
        let say = |event| Ok(SessionResponse { event: Some(event) });
        let _ = to
            .send(say(session_response::Event::Welcome(welcome)))
            .await;
        let (epoch, rev) = {
            let desired = self.shared.desired.lock();
            (desired.epoch, desired.rev)
        };
        if !self.shared.quiet.load(SeqCst)
            && (hello.cluster_epoch, hello.manifest_rev) != (epoch, rev)
        {
            for part in self.shared.update(true) {
                let _ = to.send(Ok(part)).await;
            }
        }
        *self.shared.session.lock() = Some(to);
        self.shared.seen.send_modify(|seen| {
            seen.sessions += 1;
            seen.hello = Some(hello);
        });
        let shared = Arc::clone(&self.shared);
        // Ends with the connection.
        tokio::spawn(async move {
            while let Ok(Some(message)) = from.message().await {
                match message.event {
                    Some(session_request::Event::Ack(ack)) => {
                        shared.acks.send_modify(|acks| acks.push(ack));
                    }
                    Some(session_request::Event::Nack(nack)) => {
                        // It has what it had.
                        *shared.published.lock() = None;
                        shared.nacks.send_modify(|nacks| nacks.push(nack));
                    }
                    Some(session_request::Event::Heartbeat(_)) => {
                        shared.seen.send_modify(|seen| seen.heartbeats += 1);
                    }
                    Some(session_request::Event::Status(status)) => {
                        shared.seen.send_modify(|seen| seen.statuses.push(status));
                    }
                    Some(session_request::Event::Alert(alert)) => {
                        shared.seen.send_modify(|seen| seen.alerts.push(alert));
                    }
                    Some(session_request::Event::Sessions(report)) => {
                        shared.seen.send_modify(|seen| {
                            if report.complete {
                                seen.live.clear();
                            }
                            let begun = report.upsert.into_iter();
                            seen.live.extend(begun.map(|one| (one.connection_id, one)));
                            let ended: HashSet<_> = report.ended.into_iter().collect();
                            seen.live.retain(|id, _| !ended.contains(id));
                        });
                    }
                    _ => {}
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
    }

    type ReportTrafficStream = Streamed<rpc::ReportTrafficResponse>;

    async fn report_traffic(
        &self,
        request: Request<Streaming<rpc::ReportTrafficRequest>>,
    ) -> Result<Response<Self::ReportTrafficStream>, Status> {
        self.node()?;
        let shared = Arc::clone(&self.shared);
        let answers = request.into_inner().map(move |message| {
            let message = message?;
            if crc32c::crc32c(&message.batch) != message.crc32c {
                return Err(Status::data_loss("batch"));
            }
            let batch = TrafficBatch::decode(message.batch).expect("a batch");
            let ack = shared.take(&batch);
            let lose = shared
                .lose_answers
                .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
            if lose.is_ok() {
                return Err(Status::unavailable("the answer is lost"));
            }
            let times = 1 + shared.extra_answers.load(SeqCst);
            Ok((rpc::ReportTrafficResponse { ack: Some(ack) }, times))
        });
        let copies = futures_util::StreamExt::flat_map(answers, |answer| {
            tokio_stream::iter(match answer {
                Ok((answer, times)) => vec![Ok(answer); times],
                Err(status) => vec![Err(status)],
            })
        });
        Ok(Response::new(Box::pin(copies)))
    }

    async fn report_metrics(
        &self,
        request: Request<rpc::ReportMetricsRequest>,
    ) -> Result<Response<rpc::ReportMetricsResponse>, Status> {
        self.node()?;
        let samples = request.into_inner().samples;
        self.shared
            .seen
            .send_modify(|seen| seen.metrics.extend(samples));
        Ok(Response::new(rpc::ReportMetricsResponse {}))
    }

    async fn lease(
        &self,
        request: Request<rpc::LeaseRequest>,
    ) -> Result<Response<rpc::LeaseResponse>, Status> {
        self.node()?;
        let request = request.into_inner();
        let mut hold = self.shared.hold_leases.subscribe();
        let _ = hold.wait_for(|hold| !*hold).await;
        let mut quotas = self.shared.quotas.lock();
        let quotas = &mut *quotas;
        let mut response = rpc::LeaseResponse::default();
        for want in request.quotas {
            let left = quotas.left.entry(want.user_id).or_default();
            if want.release {
                *left += want.remaining_bytes;
                continue;
            }
            let granted = quotas.slice.min(*left);
            if granted == 0 {
                response.exhausted.push(want.user_id);
                continue;
            }
            *left -= granted;
            quotas.next += 1;
            quotas.granted.insert(quotas.next, granted);
            response.quotas.push(rpc::QuotaLease {
                lease_id: quotas.next,
                user_id: want.user_id,
                granted_bytes: granted,
                expires_at: Some((SystemTime::now() + Duration::from_secs(86_400)).into()),
                billing_multiplier: MULTIPLIER_ONE,
            });
        }
        for want in request.devices {
            let most = quotas.places.get(&want.user_id).copied().unwrap_or(0);
            quotas.lent.insert(want.user_id, want.wanted.min(most));
            response.devices.push(rpc::DeviceLease {
                user_id: want.user_id,
                slots: want.wanted.min(most),
                expires_at: Some((SystemTime::now() + Duration::from_secs(86_400)).into()),
            });
        }
        Ok(Response::new(response))
    }

    async fn heartbeat(
        &self,
        _request: Request<rpc::HeartbeatRequest>,
    ) -> Result<Response<rpc::HeartbeatResponse>, Status> {
        self.node()?;
        if !self.shared.tells_time.load(SeqCst) {
            return Err(Status::unimplemented("sessions only"));
        }
        Ok(Response::new(rpc::HeartbeatResponse {
            master_time: Some(self.shared.clock.lock().now().into()),
            open_session: false,
        }))
    }
}

fn spki_of_request(csr: &[u8]) -> Vec<u8> {
    use x509_parser::prelude::{FromDer, X509CertificationRequest};
    let (_, request) = X509CertificationRequest::from_der(csr).expect("a request");
    request.certification_request_info.subject_pki.raw.to_vec()
}

/// What a deleted node is told.
pub(crate) fn farewell() -> session_response::Event {
    session_response::Event::Goodbye(rpc::Goodbye {
        retry_after: None,
        reason: "deleted".to_owned(),
        retired: true,
    })
}
