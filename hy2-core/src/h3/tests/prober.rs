//! A prober: a QUIC client that writes raw bytes to streams and looks at what comes back, and a small server for it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::{BufMut, Bytes};
use futures_util::FutureExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hy2_proto::{
    auth::{AuthResponse, CcRx},
    varint,
};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream, VarInt};
use tokio::task::{JoinHandle, JoinSet};

use crate::{
    BoxFuture,
    h3::{
        Front, H3Limits, RelayStream, RequestHandler, auth,
        frame::{Frame, FrameDecoder, Place},
        qpack::{Decoder, Encoder},
    },
    masquerade::{Body, full},
};

pub(super) const PAGE: &[u8] = b"<h1>It works</h1>\n";

/// A server and a raw connection to it.
#[derive(Debug)]
pub(super) struct Probe {
    pub(super) conn: Connection,
    pub(super) front: Arc<Front>,
    pub(super) site: Arc<Site>,
    /// Ends when the server side is done with the connection.
    pub(super) server: JoinHandle<()>,
    _endpoints: (Endpoint, Endpoint),
}

/// Serves one page, reads bodies at `/read`, never answers at `/never`, and lets in whoever says `right`.
#[derive(Debug, Default)]
pub(super) struct Site {
    authenticated: Arc<AtomicBool>,
    pub(super) handled: AtomicUsize,
}

impl RequestHandler for Site {
    fn handle(&self, request: Request<Body>) -> BoxFuture<'_, Response<Body>> {
        Box::pin(async move {
            self.handled.fetch_add(1, Ordering::SeqCst);
            if auth::is_auth_request(&request)
                && (self.authenticated.load(Ordering::Acquire)
                    || auth::read_request(&request).auth == "right")
            {
                self.authenticated.store(true, Ordering::Release);
                return auth::accepted(AuthResponse {
                    udp: true,
                    cc_rx: CcRx::UNLIMITED,
                });
            }
            match (request.method().clone(), request.uri().path()) {
                (Method::GET | Method::HEAD, "/") => Response::new(full(PAGE)),
                (_, "/read") => match request.into_body().collect().await {
                    Ok(body) => Response::new(full(body.to_bytes())),
                    Err(_) => status(StatusCode::BAD_REQUEST),
                },
                (_, "/large") => Response::new(full(vec![b'x'; 1 << 20])),
                (_, "/never") => std::future::pending().await,
                (_, "/panic") => panic!("a handler that panics"),
                _ => status(StatusCode::NOT_FOUND),
            }
        })
    }
}

fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(full("nothing here\n"));
    *response.status_mut() = status;
    response
}

/// Connects a prober to a server of its own.
pub(super) async fn probe() -> Probe {
    probe_with(H3Limits::default(), 2000).await
}

pub(super) async fn probe_with(limits: H3Limits, streams: u32) -> Probe {
    let (server, client) = endpoints(streams);
    let address = server.local_addr().expect("bound");
    let accepting = server.clone();
    let accepted = tokio::spawn(async move {
        let incoming = accepting.accept().await.expect("the endpoint is open");
        incoming.await.expect("a handshake")
    });
    let conn = client
        .connect(address, "localhost")
        .expect("valid")
        .await
        .expect("connected");
    let accepted = accepted.await.expect("accepted");

    let site = Arc::new(Site::default());
    let front = Arc::new(Front::new(
        accepted,
        Arc::clone(&site.authenticated),
        site.clone(),
        limits,
    ));
    let running = Arc::clone(&front);
    let server_task = tokio::spawn(async move {
        let mut echoes = JoinSet::new();
        running
            .run(|stream| {
                echoes.spawn(echo(stream));
            })
            .await;
    });
    Probe {
        conn,
        front,
        site,
        server: server_task,
        _endpoints: (server, client),
    }
}

async fn echo(mut stream: RelayStream) {
    while let Ok(Some(chunk)) = stream.recv.read_chunk(4096, true).await {
        if stream.send.write_chunk(chunk.bytes).await.is_err() {
            return;
        }
    }
    let _ = stream.send.finish();
}

fn endpoints(streams: u32) -> (Endpoint, Endpoint) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .expect("a pair");
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(
        QuicServerConfig::try_from(tls).expect("TLS 1.3"),
    ));
    let mut transport = quinn::TransportConfig::default();
    transport.max_concurrent_bidi_streams(streams.into());
    config.transport_config(Arc::new(transport));
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = Endpoint::server(config, loopback).expect("a socket");

    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("our certificate");
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let mut client = Endpoint::client(loopback).expect("a socket");
    client.set_default_client_config(quinn::ClientConfig::new(Arc::new(
        QuicClientConfig::try_from(tls).expect("TLS 1.3"),
    )));
    (server, client)
}

impl Probe {
    /// Opens a stream and writes `bytes` to it.
    pub(super) async fn open(&self, bytes: &[u8]) -> (SendStream, RecvStream) {
        let (mut send, recv) = self.conn.open_bi().await.expect("a stream");
        send.write_all(bytes).await.expect("written");
        (send, recv)
    }

    /// Writes a whole request, ends it and returns the answer.
    pub(super) async fn ask(&self, bytes: &[u8]) -> Answer {
        let (mut send, recv) = self.open(bytes).await;
        send.finish().expect("open");
        answer(recv).await
    }

    /// Asks for the page and checks the answer: the server is well and has seen everything that was sent before.
    pub(super) async fn page_is_served(&self) {
        for _ in 0..2 {
            let answer = self.ask(&get("/")).await;
            assert_eq!((answer.status(), &answer.body[..]), (200, PAGE));
        }
    }

    /// Asks, unless the connection is lost meanwhile.
    pub(super) async fn ask_or_lose(&self, bytes: &[u8]) {
        let Ok((mut send, mut recv)) = self.conn.open_bi().await else {
            return;
        };
        if send.write_all(bytes).await.is_ok() && send.finish().is_ok() {
            let _ = recv.read_to_end(1 << 20).await;
        }
    }

    /// Checks that nothing happened on a stream.
    pub(super) async fn is_silent(&self, recv: &mut RecvStream) {
        self.page_is_served().await;
        let read = recv.read_chunk(usize::MAX, true).now_or_never();
        assert!(read.is_none(), "{read:?}");
    }

    pub(super) async fn authenticate(&self, password: &str) -> Answer {
        self.ask(&auth_request(password)).await
    }

    /// Waits for the server to close the connection and returns its code and text.
    pub(super) async fn closed(&self) -> (u64, String) {
        match self.conn.closed().await {
            ConnectionError::ApplicationClosed(close) => (
                close.error_code.into_inner(),
                String::from_utf8_lossy(&close.reason).into_owned(),
            ),
            other => panic!("{other:?}"),
        }
    }
}

/// What came back on a stream up to its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) fields: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn status(&self) -> u16 {
        self.get(":status")
            .and_then(|status| status.parse().ok())
            .expect("a status")
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|field| field.0 == name)
            .map(|field| field.1.as_str())
    }

    pub(super) fn names(&self) -> Vec<&str> {
        self.fields.iter().map(|field| field.0.as_str()).collect()
    }
}

/// Reads an answer to its end.
pub(super) async fn answer(mut recv: RecvStream) -> Answer {
    let mut input = Bytes::from(recv.read_to_end(4 << 20).await.expect("an answer"));
    let mut decoder = FrameDecoder::new(Place::Request);
    let mut answer = Answer {
        fields: Vec::new(),
        body: Vec::new(),
    };
    while let Some(frame) = decoder.decode(&mut input).expect("valid frames") {
        match frame {
            Frame::Headers(section) => answer.fields = fields(&section),
            Frame::DataHead(_) => {}
            Frame::Data(data) => answer.body.extend_from_slice(&data),
            other => panic!("{other:?}"),
        }
    }
    assert!(decoder.is_between_frames());
    answer
}

fn fields(section: &[u8]) -> Vec<(String, String)> {
    let mut decoder = Decoder::new(section);
    let mut fields = Vec::new();
    while let Some(field) = decoder.next_field().expect("decodable") {
        let text = |octets| String::from_utf8(octets).expect("text");
        fields.push((text(field.name), text(field.value)));
    }
    fields
}

/// Returns the code with which the server reset a stream.
pub(super) async fn reset_code(recv: &mut RecvStream) -> u64 {
    match recv.read_to_end(1 << 20).await {
        Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(code))) => code.into_inner(),
        other => panic!("{other:?}"),
    }
}

/// Returns the code with which the server asked for no more.
pub(super) async fn stop_code(send: &SendStream) -> Option<u64> {
    send.stopped()
        .await
        .expect("connected")
        .map(VarInt::into_inner)
}

pub(super) fn frame(kind: u64, payload: &[u8]) -> Vec<u8> {
    [frame_head(kind, payload.len() as u64), payload.to_vec()].concat()
}

pub(super) fn frame_head(kind: u64, length: u64) -> Vec<u8> {
    let mut out = Vec::new();
    varint::encode(kind, &mut out);
    varint::encode(length, &mut out);
    out
}

pub(super) fn headers(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut section = Vec::new();
    let mut encoder = Encoder::new(&mut section);
    for (name, value) in fields {
        encoder.field(name, value.as_bytes());
    }
    frame(1, &section)
}

pub(super) fn get(path: &str) -> Vec<u8> {
    request("GET", "localhost", path, &[])
}

pub(super) fn request(
    method: &str,
    authority: &str,
    path: &str,
    extra: &[(&str, &str)],
) -> Vec<u8> {
    let mut fields = vec![
        (":method", method),
        (":scheme", "https"),
        (":authority", authority),
        (":path", path),
    ];
    fields.extend_from_slice(extra);
    headers(&fields)
}

pub(super) fn auth_request(password: &str) -> Vec<u8> {
    request(
        "POST",
        "hysteria",
        "/auth",
        &[("hysteria-auth", password), ("hysteria-cc-rx", "0")],
    )
}

/// Returns 0x401 in an encoding of `width` bytes.
pub(super) fn relay_type(width: usize) -> Vec<u8> {
    let mut out = Vec::new();
    match width {
        2 => out.put_u16(0x4401),
        4 => out.put_u32(0x8000_0401),
        8 => out.put_u64(0xc000_0000_0000_0401),
        _ => panic!("no such encoding"),
    }
    out
}
