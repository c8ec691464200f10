//! The port for agents: own accept loop, TLS with an optional client certificate, ALPN decides.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hy2_proto::control::rpc::master_service_server::MasterServiceServer;
use hy2_proto::control::{ALPN_MASTER, ALPN_REVERSE, MAX_MESSAGE};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::PrivatePkcs8KeyDer;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::error::chain;
use super::peers::{Identity, Peer, PeerStream};
use super::service::Service;
use crate::auth::ca::CaError;
use crate::core::{Core, Trust};
use crate::secrets::sha256;

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

/// Accepts agents.
pub(crate) struct Listener {
    core: Arc<Core>,
    tls: Arc<ArcSwap<ServerConfig>>,
}

impl Listener {
    pub(crate) fn new(core: Arc<Core>, tls: Arc<ArcSwap<ServerConfig>>) -> Self {
        Self { core, tls }
    }

    /// Serves until the core shuts down; then lets what runs finish for a moment.
    pub(crate) async fn serve(self, listener: TcpListener) {
        let (accepted, incoming) = mpsc::channel::<PeerStream>(64);
        let service = MasterServiceServer::new(Service::new(Arc::clone(&self.core)))
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let shutdown = self.core.shutdown.clone();
        let grpc = tonic::transport::Server::builder()
            .max_concurrent_streams(64)
            .http2_keepalive_interval(Some(Duration::from_secs(15)))
            .http2_keepalive_timeout(Some(Duration::from_secs(5)))
            .http2_max_pending_accept_reset_streams(Some(20))
            .http2_max_header_list_size(16 << 10)
            .add_service(service)
            .serve_with_incoming_shutdown(
                ReceiverStream::new(incoming).map(Ok::<_, std::io::Error>),
                shutdown.clone().cancelled_owned(),
            );
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            if let Err(error) = grpc.await {
                tracing::error!(error = chain(&error), "gRPC for agents ended");
            }
        });
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
                Some(_) = tasks.join_next(), if tasks.len() > 1 => continue,
            };
            let (Ok(pending), Ok(connection)) = (
                Arc::clone(&handshakes).try_acquire_owned(),
                Arc::clone(&connections).try_acquire_owned(),
            ) else {
                metrics::counter!("hy2_master_agent_connections_refused_total").increment(1);
                continue;
            };
            let (me, accepted) = (Arc::clone(&me), accepted.clone());
            tasks.spawn(async move {
                let timeout = me.core.config.handshake_timeout;
                let work = me.greet(stream, address, connection, &accepted);
                match tokio::time::timeout(timeout, work).await {
                    Ok(Ok(())) => {}
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
        drop(accepted);
        let finish = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(SHUTDOWN_GRACE, finish).await.is_err() {
            tracing::debug!("agents' connections are dropped");
        }
    }

    /// Shakes hands, finds out who it is, and passes the connection on.
    async fn greet(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        permit: OwnedSemaphorePermit,
        accepted: &mpsc::Sender<PeerStream>,
    ) -> Result<(), String> {
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
        let identity = match leaf {
            None => None,
            Some(leaf) => match self.identify(leaf).await? {
                Known::Node(identity) => Some(identity),
                // Whoever it was is nobody now, but is told so.
                Known::Retired => {
                    retired.cancel();
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
            cut,
            retired,
        };
        let stream = PeerStream::new(stream, peer, open, permit);
        if reverse {
            let identity = identity.ok_or("no client certificate")?;
            return self.core.reverse.accept(identity.node, stream).await;
        }
        accepted
            .send(stream)
            .await
            .map_err(|_| "shutting down".to_owned())
    }

    /// Looks up whose certificate it is: its chain was verified, its name counts for nothing.
    async fn identify(&self, leaf: &[u8]) -> Result<Known, String> {
        let fingerprint = sha256(leaf);
        let store = &self.core.store;
        let found = store.identity(&fingerprint).await;
        let found = found.map_err(|error| chain(&error))?;
        if let Some(row) = found.filter(|row| row.is_good(self.core.now())) {
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
        Err("the certificate is no node's, or was replaced".to_owned())
    }
}

/// Whose certificate it is.
enum Known {
    Node(Identity),
    /// That of a node that was deleted or revoked.
    Retired,
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

const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);
