//! The port for agents: own accept loop, TLS with an optional client certificate, ALPN decides.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hy2_proto::control::rpc::master_service_server::MasterServiceServer;
use hy2_proto::control::{ALPN_MASTER, ALPN_REVERSE, MAX_MESSAGE};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::PrivatePkcs8KeyDer;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

use super::error::chain;
use super::peers::{Identity, Peer, PeerStream};
use super::service::Service;
use crate::auth::ca::{CaError, NODE_VALIDITY, read_node};
use crate::core::{Core, Trust};
use crate::secrets::sha256;
use crate::store::certificates::{self, IdentityRow};
use crate::store::{Store, StoreError};

/// The listener cannot start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsError {
    /// No certificate for the master.
    #[error("cannot make the master's certificate")]
    Certificate(#[from] CaError),
    /// The TLS library refuses it.
    #[error("cannot set up TLS for agents")]
    Tls(#[from] rustls::Error),
    /// The TLS library refuses the trusted authorities.
    #[error("cannot set up the check of client certificates")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Answers the calls of agents. HTTP/2 by hand and not by tonic's server, whose layers take 60 KiB for each connection,
/// which counts with a thousand of them.
#[derive(Clone)]
struct Calls {
    service: MasterServiceServer<Service>,
    store: Store,
    shutdown: CancellationToken,
    /// Cancelled when connections had their time to end.
    abandoned: CancellationToken,
}

impl Calls {
    async fn answer(self, stream: PeerStream) {
        let (service, store, peer) = (self.service, self.store, stream.peer().clone());
        let call = service_fn(move |mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            let (answer, store) = (service.clone().call(request), store.clone());
            async move {
                // A stream counts until it begins.
                match store.in_time(1, answer).await {
                    Ok(answered) => answered,
                    Err(late) => Ok(super::error::store(&late).into_http()),
                }
            }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(64)
            .keep_alive_interval(Some(Duration::from_secs(15)))
            .keep_alive_timeout(Duration::from_secs(5))
            .max_pending_accept_reset_streams(Some(20))
            .max_header_list_size(16 << 10)
            .serve_connection(TokioIo::new(stream), call);
        let mut connection = std::pin::pin!(connection);
        let mut ending = false;
        loop {
            tokio::select! {
                biased;
                () = self.abandoned.cancelled() => return,
                () = self.shutdown.cancelled(), if !ending => {
                    ending = true;
                    connection.as_mut().graceful_shutdown();
                }
                // How it ends is the agent's to say.
                _ = connection.as_mut() => return,
            }
        }
    }
}

/// Accepts agents.
pub(crate) struct Listener {
    core: Arc<Core>,
    tls: Arc<ArcSwap<ServerConfig>>,
    /// Certificates that are refused, and since when that is said.
    said: Mutex<HashMap<[u8; 32], Instant>>,
}

impl Listener {
    pub(crate) fn new(core: Arc<Core>, tls: Arc<ArcSwap<ServerConfig>>) -> Self {
        Self {
            core,
            tls,
            said: Mutex::default(),
        }
    }

    /// Serves until the core shuts down; then lets what runs finish for a moment.
    pub(crate) async fn serve(self, listener: TcpListener) {
        let service = MasterServiceServer::new(Service::new(Arc::clone(&self.core)))
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let shutdown = self.core.shutdown.clone();
        let calls = Calls {
            service,
            store: self.core.store.clone(),
            shutdown: shutdown.clone(),
            abandoned: CancellationToken::new(),
        };
        let mut tasks = JoinSet::new();
        let connected = TaskTracker::new();
        let handshakes = Arc::new(Semaphore::new(self.core.config.max_pending_handshakes));
        let connections = Arc::new(Semaphore::new(self.core.config.max_connections));
        let me = Arc::new(self);
        loop {
            let (stream, address) = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                // Cancel safe: a connection is accepted or stays in the backlog.
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of files, or a connection that is gone already.
                        tracing::warn!(%error, "cannot accept an agent");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
                // Finished ones are let go.
                Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            };
            let (Ok(pending), Ok(connection)) = (
                Arc::clone(&handshakes).try_acquire_owned(),
                Arc::clone(&connections).try_acquire_owned(),
            ) else {
                metrics::counter!("hy2_master_agent_connections_refused_total").increment(1);
                continue;
            };
            let (me, calls, connected) = (Arc::clone(&me), calls.clone(), connected.clone());
            tasks.spawn(async move {
                let timeout = me.core.config.handshake_timeout;
                let work = me.greet(stream, address, connection);
                match tokio::time::timeout(timeout, work).await {
                    Ok(Ok(Some(stream))) => {
                        connected.spawn(calls.answer(stream));
                    }
                    Ok(Ok(None)) => {}
                    Ok(Err(reason)) => tracing::debug!(%address, reason, "agent refused"),
                    Err(_) => {
                        metrics::counter!("hy2_master_agent_handshakes_timed_out_total")
                            .increment(1);
                        tracing::debug!(%address, "agent's handshake took too long");
                    }
                }
                drop(pending);
            });
        }
        let finish = async {
            while tasks.join_next().await.is_some() {}
            connected.close();
            connected.wait().await;
        };
        if tokio::time::timeout(SHUTDOWN_GRACE, finish).await.is_err() {
            tracing::debug!("agents' connections are dropped");
        }
        calls.abandoned.cancel();
    }

    /// Shakes hands and finds out who it is. Returns the connection of an agent that calls; one on which the master
    /// calls goes to who waits for it.
    async fn greet(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        permit: OwnedSemaphorePermit,
    ) -> Result<Option<PeerStream>, String> {
        let _ = stream.set_nodelay(true);
        let stream = TlsAcceptor::from(self.tls.load_full())
            .accept(stream)
            .await
            .map_err(|error| error.to_string())?;
        let (_, session) = stream.get_ref();
        let reverse = match session.alpn_protocol() {
            Some(ALPN_REVERSE) => true,
            Some(ALPN_MASTER) => false,
            _ => return Err("no protocol in common".to_owned()),
        };
        let leaf = session.peer_certificates().and_then(|chain| chain.first());
        let (cut, retired) = (CancellationToken::new(), CancellationToken::new());
        let mut refusal = None;
        let identity = match leaf {
            None => None,
            Some(leaf) => match self.identify(leaf).await? {
                Known::Node(identity) => Some(identity),
                // Whoever it was is nobody now, but is told so.
                Known::Retired => {
                    retired.cancel();
                    None
                }
                // May do what is open to those without a certificate, and is told why nothing else.
                Known::Not(reason) => {
                    self.say(sha256(leaf), address, reason);
                    refusal = Some(reason);
                    None
                }
            },
        };
        let open = identity.map(|identity| {
            let peers = &self.core.peers;
            peers.register(identity, cut.clone(), retired.clone())
        });
        let peer = Peer {
            address,
            identity,
            refusal,
            cut,
            retired,
        };
        let stream = PeerStream::new(stream, peer, open, permit);
        if reverse {
            let identity = identity.ok_or_else(|| refusal.unwrap_or("no client certificate"))?;
            self.core.reverse.accept(identity.node, stream).await?;
            return Ok(None);
        }
        Ok(Some(stream))
    }

    /// Looks up whose certificate it is: its chain was verified, its name counts for nothing.
    async fn identify(&self, leaf: &[u8]) -> Result<Known, String> {
        let fingerprint = sha256(leaf);
        let store = &self.core.store;
        let found = store.identity(&fingerprint).await;
        let found = found.map_err(|error| chain(&error))?;
        let good = |row: &IdentityRow| row.is_good(self.core.now());
        if let Some(row) = found.as_ref().filter(|row| good(row)) {
            return Ok(Known::Node(Identity {
                node: row.node_id,
                uid: row.node_uid,
                fingerprint,
            }));
        }
        let retired = store.is_retired(&fingerprint).await;
        if retired.map_err(|error| chain(&error))? {
            return Ok(Known::Retired);
        }
        if found.is_some() {
            return Ok(Known::Not("the certificate was replaced by a later one"));
        }
        self.adopt(leaf).await.map_err(|error| chain(&error))
    }

    /// Takes in a certificate that this store has never heard of, though the authority signed it: it was issued after the
    /// backup that the store is restored from. Whose it is, its name and its key say, which both have to be those of a
    /// node that is not revoked.
    async fn adopt(&self, leaf: &[u8]) -> Result<Known, StoreError> {
        const UNKNOWN: Known =
            Known::Not("the certificate is that of no node which this master knows");
        let Some((uid, issued)) = read_node(leaf) else {
            return Ok(UNKNOWN);
        };
        let store = &self.core.store;
        let Some(row) = store.identity_of_key(uid, &issued.spki_sha256).await? else {
            return Ok(UNKNOWN);
        };
        if row.revoked_at.is_some() {
            return Ok(Known::Retired);
        }
        let issued_at = issued.not_after.minus(NODE_VALIDITY).min(self.core.now());
        let mut tx = store.begin().await?;
        if !certificates::adopt(&mut tx, row.node_id, &issued, issued_at).await? {
            return Ok(Known::Retired);
        }
        tx.commit().await?;
        tracing::info!(
            node = row.node_id.0,
            "a certificate from after the backup is taken in"
        );
        Ok(Known::Node(Identity {
            node: row.node_id,
            uid,
            fingerprint: issued.fingerprint,
        }))
    }

    /// Says why a certificate is refused, once in a while for each.
    fn say(&self, fingerprint: [u8; 32], address: SocketAddr, reason: &str) {
        let now = Instant::now();
        let mut said = self.said.lock();
        said.retain(|_, since| now.duration_since(*since) < SAID_FOR);
        if said.len() < MAX_SAID && said.insert(fingerprint, now).is_none() {
            tracing::warn!(
                %address,
                certificate = hex::encode(fingerprint),
                reason,
                "agent refused"
            );
        }
    }
}

/// Whose certificate it is.
enum Known {
    Node(Identity),
    /// That of a node that was deleted or revoked.
    Retired,
    /// That of nobody, and why.
    Not(&'static str),
}

/// Makes the TLS configuration for the authorities in force: the master's certificate with the
/// authority at the chain's end, client certificates optional and checked when shown.
pub(crate) fn refresh_tls(core: &Core, trust: &Trust) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for authority in &trust.trusted {
        roots.add(authority.clone())?;
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()?;
    let made = trust
        .authority
        .issue_master(&core.config.names, core.now())?;
    let chain = vec![
        made.issued.certificate,
        trust.authority.certificate().clone(),
    ];
    let key = PrivatePkcs8KeyDer::from(made.key.to_vec());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key.into())?;
    config.alpn_protocols = vec![ALPN_MASTER.to_vec(), ALPN_REVERSE.to_vec()];
    Ok(Arc::new(config))
}

/// For how long it is not said again that a certificate is refused.
const SAID_FOR: Duration = Duration::from_secs(600);
/// Of how many it is said meanwhile.
const MAX_SAID: usize = 1_024;
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);
