//! A batch that arrives again although it was acknowledged: what a node's spool holds is sent once
//! more, byte for byte, with the node's own identity and beside its agent, which goes on.

use std::{io, net::SocketAddr, path::Path, sync::Arc};

use hy2_agent_sdk::hy2_proto::control::{
    ALPN_MASTER, MASTER_NAME,
    rpc::{self, master_service_client::MasterServiceClient},
};
use hyper_util::rt::TokioIo;
use prost::Message;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Uri};

/// Before an encoded batch: what it is, and its checksum.
const HEAD: usize = 8;

/// Sends the oldest batch in the spool of the node whose agent lives in `folder`, `copies` times.
/// Each is answered with a cursor that is past it, so every copy but the first is certainly one of
/// a batch that is committed and acknowledged.
pub(crate) async fn again(master: SocketAddr, folder: &Path, copies: usize) {
    crate::until("a batch to be delivered again", || async {
        send(master, folder, copies)
            .await
            .map_err(|error| format!("{error:#?}"))
    })
    .await;
}

async fn send(master: SocketAddr, folder: &Path, copies: usize) -> io::Result<()> {
    let (last, batch) = oldest(&folder.join("traffic/spool"))?;
    let request = rpc::ReportTrafficRequest {
        crc32c: crc32c::crc32c(&batch),
        batch: batch.into(),
    };
    let requests = tokio_stream::iter(vec![request; copies]);
    let mut client = MasterServiceClient::new(connect(master, folder).await?);
    let answered = async {
        let mut answers = client.report_traffic(requests).await?.into_inner();
        let mut cursors = Vec::new();
        while let Some(answer) = answers.message().await? {
            cursors.push(answer.ack.expect("an answer has it"));
        }
        Ok::<_, tonic::Status>(cursors)
    };
    let cursors = answered.await.map_err(io::Error::other)?;
    assert_eq!(cursors.len(), copies, "each copy is answered");
    for ack in cursors {
        assert!(ack.durable_seq >= last, "{ack:?} does not reach {last}");
        assert_eq!(ack.quarantined, 0, "{ack:?}");
    }
    Ok(())
}

/// The last number of the oldest batch that is there, and the batch as it goes over the wire. It is
/// the newest that was acknowledged, or the next that the master lacks.
fn oldest(spool: &Path) -> io::Result<(u64, Vec<u8>)> {
    let current = std::fs::read_to_string(spool.join("current"))?;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(spool.join(current.trim()))? {
        let path = entry?.path();
        let kind = path.extension().and_then(|kind| kind.to_str());
        if matches!(kind, Some("batch" | "sent")) {
            names.push(path);
        }
    }
    names.sort();
    let path = names.first().ok_or(io::ErrorKind::NotFound)?;
    let bytes = std::fs::read(path)?;
    let batch = bytes.get(HEAD..).ok_or(io::ErrorKind::InvalidData)?;
    let decoded = rpc::TrafficBatch::decode(batch).map_err(io::Error::other)?;
    Ok((decoded.last_seq, batch.to_vec()))
}

/// Connects as the node does.
async fn connect(master: SocketAddr, folder: &Path) -> io::Result<Channel> {
    let key = PrivatePkcs8KeyDer::from(std::fs::read(folder.join("node.key"))?);
    let issued = std::fs::read(folder.join("identity"))?;
    let issued = rpc::EnrollResponse::decode(&*issued).map_err(io::Error::other)?;
    let mut roots = RootCertStore::empty();
    for ca in &issued.trusted_cas {
        roots.add(ca.to_vec().into()).map_err(io::Error::other)?;
    }
    let chain = issued.certificate.unwrap_or_default().chain;
    let chain = chain.iter().map(|der| der.to_vec().into()).collect();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, PrivateKeyDer::from(key))
        .map_err(io::Error::other)?;
    config.alpn_protocols = vec![ALPN_MASTER.to_vec()];
    let name = ServerName::try_from(MASTER_NAME).map_err(io::Error::other)?;
    let tcp = TcpStream::connect(master).await?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await?;
    Endpoint::from_static("http://master.invalid")
        .connect_with_connector(Once(Some(stream)))
        .await
        .map_err(io::Error::other)
}

/// Gives its one connection to the first who asks.
pub(crate) struct Once(pub(crate) Option<TlsStream<TcpStream>>);

impl tower_service::Service<Uri> for Once {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let stream = self.0.take().map(TokioIo::new);
        std::future::ready(stream.ok_or_else(|| io::ErrorKind::NotConnected.into()))
    }
}
