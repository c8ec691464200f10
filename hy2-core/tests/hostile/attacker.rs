//! An attacker: a QUIC client without any of ours.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hy2_core::rustls::{self, RootCertStore};
use quinn::{
    Connection, ConnectionError, Endpoint, ReadError, ReadToEndError, RecvStream, SendStream,
    TransportConfig, VarInt, crypto::rustls::QuicClientConfig,
};

use crate::{
    forge::{Forge, ForgedCrypto},
    server::{MALLORY, ServerProcess},
    wire,
};

/// One connection of an attacker.
#[derive(Debug)]
pub(crate) struct Attacker {
    pub(crate) conn: Connection,
    pub(crate) forge: Arc<Forge>,
    _endpoint: Endpoint,
}

/// What came back on a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// All of it, up to its end.
    Bytes(Vec<u8>),
    Reset(u64),
    /// The connection is gone.
    Lost,
}

/// Returns ordinary settings with windows large enough to receive anything.
pub(crate) fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(Duration::from_secs(60).try_into().expect("in range")))
        .keep_alive_interval(Some(Duration::from_secs(1)))
        .send_window(64 << 20)
        .datagram_receive_buffer_size(Some(1 << 20));
    transport
}

pub(crate) fn endpoint() -> Endpoint {
    Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a socket")
}

pub(crate) fn client_config(
    server: &ServerProcess,
    forge: &Arc<Forge>,
    transport: TransportConfig,
) -> quinn::ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(server.certificate.clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let crypto = QuicClientConfig::try_from(tls).expect("TLS 1.3");
    let crypto = ForgedCrypto(Arc::new(crypto), Arc::clone(forge));
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    config
}

impl Attacker {
    pub(crate) async fn connect(server: &ServerProcess) -> Self {
        Self::try_connect(server, transport())
            .await
            .expect("connected")
    }

    pub(crate) async fn try_connect(
        server: &ServerProcess,
        transport: TransportConfig,
    ) -> Result<Self, ConnectionError> {
        Self::try_connect_forged(server, transport, Forge::default()).await
    }

    async fn try_connect_forged(
        server: &ServerProcess,
        transport: TransportConfig,
        forge: Forge,
    ) -> Result<Self, ConnectionError> {
        let endpoint = endpoint();
        let forge = Arc::new(forge);
        let config = client_config(server, &forge, transport);
        let conn = endpoint
            .connect_with(config, server.address, "localhost")
            .expect("valid")
            .await?;
        Ok(Self {
            conn,
            forge,
            _endpoint: endpoint,
        })
    }

    /// Connects and logs in with a stolen password.
    pub(crate) async fn let_in(server: &ServerProcess) -> Self {
        Self::let_in_with(server, transport()).await
    }

    pub(crate) async fn let_in_with(server: &ServerProcess, transport: TransportConfig) -> Self {
        Self::let_in_forged(server, transport, Forge::default()).await
    }

    pub(crate) async fn let_in_forged(
        server: &ServerProcess,
        transport: TransportConfig,
        forge: Forge,
    ) -> Self {
        let attacker = Self::try_connect_forged(server, transport, forge)
            .await
            .expect("connected");
        let (mut send, recv) = attacker.open(&wire::auth(MALLORY)).await;
        let _ = send.finish();
        let Answer::Bytes(answer) = answer(recv).await else {
            panic!("no answer to a login");
        };
        assert!(is_welcome(&answer), "{answer:02x?}");
        attacker
    }

    /// Opens a stream and writes `bytes` to it.
    pub(crate) async fn open(&self, bytes: &[u8]) -> (SendStream, RecvStream) {
        let (mut send, recv) = self.conn.open_bi().await.expect("a stream");
        // Fails when the server stopped the stream, which its answer will show.
        let _ = send.write_all(bytes).await;
        (send, recv)
    }

    /// Writes a whole request and returns the answer.
    pub(crate) async fn ask(&self, bytes: &[u8]) -> Answer {
        let (mut send, recv) = self.open(bytes).await;
        let _ = send.finish();
        answer(recv).await
    }

    /// Asks for a page: once it is answered, the server has seen everything before.
    pub(crate) async fn page_is_served(&self) {
        for _ in 0..2 {
            let Answer::Bytes(page) = self.ask(&wire::get("/")).await else {
                panic!("no page");
            };
            assert!(
                page.windows(6)
                    .any(|part| part == b"<html " || part == b"<html>"),
                "{page:02x?}"
            );
        }
    }

    /// Asks where the server may have closed, or may close over it.
    pub(crate) async fn ask_or_lose(&self, bytes: &[u8]) -> Answer {
        let Ok((mut send, recv)) = self.conn.open_bi().await else {
            return Answer::Lost;
        };
        if send.write_all(bytes).await.is_err() || send.finish().is_err() {
            return Answer::Lost;
        }
        answer(recv).await
    }

    /// Asks for a page that may be refused for want of room.
    pub(crate) async fn page_may_be_served(&self) {
        assert!(matches!(self.ask(&wire::get("/")).await, Answer::Bytes(_)));
    }

    /// Asks for a page, or finds the connection closed for taking too much (0x107).
    pub(crate) async fn page_may_be_served_or_peer_put_out(&self) {
        if let Answer::Lost = self.ask_or_lose(&wire::get("/")).await {
            assert_eq!(self.closed().await, 0x107);
        }
    }

    /// Waits for the server to close the connection and returns its code.
    pub(crate) async fn closed(&self) -> u64 {
        match self.conn.closed().await {
            ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
            ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
            other => panic!("{other:?}"),
        }
    }
}

/// Tells whether an answer begins with status 233: a literal value behind the name of entry 24 of
/// the static table, Huffman coded as the reference does.
pub(crate) fn is_welcome(answer: &[u8]) -> bool {
    // "233" in the Huffman code of HPACK: 00010 011001 011001.
    answer
        .windows(4)
        .any(|part| part == [0x83, 0x13, 0x2c, 0xff])
}

pub(crate) async fn answer(mut recv: RecvStream) -> Answer {
    match recv.read_to_end(8 << 20).await {
        Ok(bytes) => Answer::Bytes(bytes),
        Err(ReadToEndError::Read(ReadError::Reset(code))) => Answer::Reset(code.into_inner()),
        Err(ReadToEndError::Read(ReadError::ConnectionLost(_))) => Answer::Lost,
        Err(other) => panic!("{other:?}"),
    }
}

/// Returns the code with which the server asked for no more.
pub(crate) async fn stop_code(send: &SendStream) -> Option<u64> {
    send.stopped().await.ok().flatten().map(VarInt::into_inner)
}
