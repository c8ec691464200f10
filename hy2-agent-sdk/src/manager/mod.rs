//! Commands of the master and of this host: NodeManager, without any desired state.

mod service;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hy2_proto::control::{
    MAX_MESSAGE, NODE_NAME_SUFFIX, rpc::node_manager_server::NodeManagerServer,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::{RootCertStore, server::WebPkiClientVerifier};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::{agent::Node, link};
use service::Service;

/// Streams of one connection at once.
const STREAMS_MAX: u32 = 64;
/// Connections on one local listener at once.
const CONNECTIONS_MAX: usize = 32;
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
const HEADERS_MAX: u32 = 16 << 10;

/// Serves NodeManager on one connection until it ends.
pub(crate) async fn serve<S>(node: Arc<Node>, stream: S)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = NodeManagerServer::new(Service(node)).max_decoding_message_size(MAX_MESSAGE);
    let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_MAX)
        .keep_alive_interval(link::PING_INTERVAL)
        .keep_alive_timeout(link::PING_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "control connection ended");
    }
}

/// The local socket; its file goes with it.
pub(crate) struct LocalSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl LocalSocket {
    /// Binds `path`, for the owner only. The folder's lock tells that no other agent has it.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Made beside and moved, so that it is never open to others.
        let beside = path.with_extension("new");
        let _ = std::fs::remove_file(&beside);
        let listener = UnixListener::bind(&beside)?;
        std::fs::set_permissions(&beside, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        std::fs::rename(&beside, path)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    /// Serves until dropped.
    pub(crate) async fn run(self, node: Arc<Node>) {
        let mut connections = JoinSet::new();
        loop {
            // Both arms are cancel safe.
            tokio::select! {
                accepted = self.listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                    match accepted {
                        Ok((stream, _)) => {
                            connections.spawn(serve(Arc::clone(&node), stream));
                        }
                        Err(error) => {
                            tracing::warn!(%error, "local socket");
                            tokio::time::sleep(Duration::from_secs(1)).await;
                        }
                    }
                }
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

/// Serves on a loopback address with mutual TLS until dropped.
pub(crate) async fn serve_loopback(node: Arc<Node>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        // Both arms are cancel safe.
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                match accepted {
                    Ok((stream, _)) => {
                        let node = Arc::clone(&node);
                        connections.spawn(async move {
                            let Some(acceptor) = acceptor(&node) else {
                                return;
                            };
                            if let Ok(Ok(stream)) = timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await
                                && is_operator(&stream)
                            {
                                serve(node, stream).await;
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "loopback listener");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// The node's certificate towards peers with a certificate of a trusted CA; `None` until the node
/// is enrolled.
fn acceptor(node: &Node) -> Option<TlsAcceptor> {
    let credentials = node.identity.credentials()?;
    let mut roots = RootCertStore::empty();
    for ca in &credentials.trusted_cas {
        roots.add(ca.clone()).ok()?;
    }
    let provider = link::provider();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .ok()?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .ok()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(credentials.chain.clone(), node.identity.key().private_key())
        .ok()?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Some(TlsAcceptor::from(Arc::new(config)))
}

/// Other nodes have certificates of the same CA and no business here.
fn is_operator<S>(stream: &tokio_rustls::server::TlsStream<S>) -> bool {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let certificates = stream.get_ref().1.peer_certificates();
    let Some(leaf) = certificates.and_then(|chain| chain.first()) else {
        return false;
    };
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else {
        return false;
    };
    let names = certificate.subject_alternative_name().ok().flatten();
    !names.is_some_and(|names| {
        names.value.general_names.iter().any(
            |name| matches!(name, GeneralName::DNSName(name) if name.ends_with(NODE_NAME_SUFFIX)),
        )
    })
}
