//! Commands of the master and of this host: NodeManager, without any desired state.

mod connection;
mod service;

use std::{
    collections::HashMap,
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hy2_proto::control::{
    MAX_MESSAGE, NODE_NAME_SUFFIX, rpc::node_manager_server::NodeManagerServer,
};
use rustls::{RootCertStore, server::WebPkiClientVerifier};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::{AbortHandle, Id, JoinSet},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::{agent::Node, link};
use connection::Calls;
use service::Service;

/// Connections on one local listener at once; more make one without a call go.
const CONNECTIONS_MAX: usize = 32;
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// Serves NodeManager on one connection until the peer ends it.
pub(crate) async fn serve<S>(node: Arc<Node>, stream: S)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    connection::serve(service(node), stream).await;
}

fn service(node: Arc<Node>) -> NodeManagerServer<Service> {
    NodeManagerServer::new(Service(node)).max_decoding_message_size(MAX_MESSAGE)
}

/// The connections of a local listener, and what each is used for.
#[derive(Default)]
struct Places {
    tasks: JoinSet<()>,
    taken: HashMap<Id, (AbortHandle, Arc<Calls>)>,
}

impl Places {
    /// Serves a newcomer. Where every place is taken, the connection goes that has been without a
    /// call for longest, those that never made one first; the newcomer where there is none.
    fn take<F>(&mut self, serve: impl FnOnce(Arc<Calls>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if self.taken.len() >= CONNECTIONS_MAX {
            let idle = self
                .taken
                .iter()
                .filter_map(|(id, (_, calls))| Some((calls.idle()?, *id)));
            let Some((_, id)) = idle.min_by_key(|(idle, _)| *idle) else {
                tracing::warn!("every control connection is in use, a newcomer is turned away");
                return;
            };
            if let Some((connection, _)) = self.taken.remove(&id) {
                connection.abort();
            }
        }
        let calls = Arc::<Calls>::default();
        let connection = self.tasks.spawn(serve(Arc::clone(&calls)));
        self.taken.insert(connection.id(), (connection, calls));
    }

    /// Waits until a connection has ended; at once when there is none. Cancel safe.
    async fn left(&mut self) {
        if let Some(ended) = self.tasks.join_next_with_id().await {
            let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
            self.taken.remove(&id);
        }
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
        let mut places = Places::default();
        loop {
            // Both arms are cancel safe.
            tokio::select! {
                accepted = self.listener.accept() => {
                    match accepted {
                        Ok((stream, _)) => {
                            let service = service(Arc::clone(&node));
                            places.take(|calls| {
                                connection::serve_while_used(service, stream, calls)
                            });
                        }
                        Err(error) => {
                            tracing::warn!(%error, "local socket");
                            tokio::time::sleep(Duration::from_secs(1)).await;
                        }
                    }
                }
                () = places.left(), if !places.tasks.is_empty() => {}
            }
        }
    }
}

/// Serves on a loopback address with mutual TLS until dropped.
pub(crate) async fn serve_loopback(node: Arc<Node>, listener: TcpListener) {
    let mut places = Places::default();
    loop {
        // Both arms are cancel safe.
        tokio::select! {
            accepted = listener.accept() => {
                match accepted {
                    Ok((stream, _)) => {
                        let node = Arc::clone(&node);
                        places.take(|calls| async move {
                            let Some(acceptor) = acceptor(&node) else {
                                return;
                            };
                            if let Ok(Ok(stream)) = timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await
                                && is_operator(&stream)
                            {
                                connection::serve_while_used(service(node), stream, calls).await;
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "loopback listener");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            }
            () = places.left(), if !places.tasks.is_empty() => {}
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
