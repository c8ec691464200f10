//! Two plain quinn endpoints on loopback, each on a socket of ours.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hy2_core::socket::{
    DirectSocketFactory, Obfuscation, QuicSocket, SocketOptions, bind, client_socket, server_socket,
};
use quinn::{Connection, Endpoint, EndpointConfig, TokioRuntime, TransportConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};

pub struct Side {
    pub endpoint: Endpoint,
    pub socket: QuicSocket,
}

pub struct Pair {
    pub server: Side,
    pub client: Side,
}

pub fn any_v4() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

pub fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(Duration::from_secs(10).try_into().unwrap()))
        .stream_receive_window((8u32 << 20).into())
        .receive_window((20u32 << 20).into());
    Arc::new(transport)
}

pub fn endpoint(socket: &QuicSocket, server: Option<quinn::ServerConfig>) -> Endpoint {
    let mut config = EndpointConfig::default();
    config
        .max_udp_payload_size(1472 - socket.overhead())
        .unwrap();
    Endpoint::new_with_abstract_socket(config, server, socket.socket(), Arc::new(TokioRuntime))
        .unwrap()
}

pub fn server_on(socket: std::net::UdpSocket, obfs: &Obfuscation, options: &SocketOptions) -> Side {
    let socket = server_socket(socket, obfs, options).unwrap();
    Side {
        endpoint: endpoint(&socket, Some(server_config())),
        socket,
    }
}

pub fn client_to(remote: SocketAddr, obfs: &Obfuscation, options: &SocketOptions) -> Side {
    let factory = Arc::new(DirectSocketFactory::new(options.clone()));
    let socket = client_socket(remote, None, factory, obfs, options).unwrap();
    client_on(socket)
}

pub fn client_on(socket: QuicSocket) -> Side {
    let mut endpoint = endpoint(&socket, None);
    endpoint.set_default_client_config(client_config());
    Side { endpoint, socket }
}

impl Pair {
    pub fn new(obfs: &Obfuscation, options: &SocketOptions) -> Self {
        let server = server_on(bind(any_v4(), options).unwrap(), obfs, options);
        let remote = server.endpoint.local_addr().unwrap();
        let client = client_to(remote, obfs, options);
        Self { server, client }
    }

    /// Returns the server's and the client's end of one connection.
    pub async fn connect(&self) -> (Connection, Connection) {
        let remote = self.server.endpoint.local_addr().unwrap();
        let accept = async { self.server.endpoint.accept().await.unwrap().await.unwrap() };
        let connect = async {
            self.client
                .endpoint
                .connect(remote, "localhost")
                .unwrap()
                .await
                .unwrap()
        };
        tokio::join!(accept, connect)
    }
}

/// Sends `len` bytes from one end to the other and compares what arrives.
pub async fn transfer(from: &Connection, to: &Connection, len: usize) {
    let send = async {
        let mut stream = from.open_uni().await.unwrap();
        let mut sum = Sha256::new();
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut left = len;
        while left > 0 {
            let size = left.min(64 << 10);
            let mut chunk = vec![0; size];
            for word in chunk.chunks_mut(8) {
                // xorshift64: any stream of bytes that does not repeat would do.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
            }
            sum.update(&chunk);
            stream.write_chunk(chunk.into()).await.unwrap();
            left -= size;
        }
        stream.finish().unwrap();
        let _ = stream.stopped().await;
        sum.finalize()
    };
    let receive = async {
        let mut stream = to.accept_uni().await.unwrap();
        let mut sum = Sha256::new();
        let mut got = 0;
        while let Some(chunk) = stream.read_chunk(usize::MAX, true).await.unwrap() {
            got += chunk.bytes.len();
            sum.update(&chunk.bytes);
        }
        (got, sum.finalize())
    };
    let (sent, (got, received)) = tokio::join!(send, receive);
    assert_eq!(got, len);
    assert_eq!(sent, received);
}

fn certificate() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    static PAIR: std::sync::OnceLock<(Vec<u8>, Vec<u8>)> = std::sync::OnceLock::new();
    let (cert, key) = PAIR.get_or_init(|| {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (made.cert.der().to_vec(), made.signing_key.serialize_der())
    });
    (
        CertificateDer::from(cert.clone()),
        PrivateKeyDer::Pkcs8(key.clone().into()),
    )
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

pub fn server_config() -> quinn::ServerConfig {
    let (cert, key) = certificate();
    let tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)
        .unwrap();
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport());
    config
}

pub fn client_config() -> quinn::ClientConfig {
    let (cert, _) = certificate();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert).unwrap();
    let tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport());
    config
}
