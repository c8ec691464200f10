//! A whole server as a prober sees it: raw bytes over plain QUIC, compared and not decoded.

use std::{
    any::Any,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use futures_util::FutureExt;
use hy2_core::{
    BoxFuture, Server, ServerBuilder,
    authenticator::{AuthContext, AuthDecision, Authenticator, Password},
    masquerade::{Masquerade, NotFound, OrdinarySite, TcpSite, TcpSiteConfig},
    proto::varint,
    rustls::{
        self, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer},
    },
    server::ServerConfig,
    tls::ServerTls,
};
use quinn::{
    Connection, ConnectionError, Endpoint, RecvStream, SendStream, crypto::rustls::QuicClientConfig,
};
use quinn_proto::{
    ConnectError, ConnectionId, Side, TransportError,
    crypto::{self, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, Session},
    transport_parameters::TransportParameters,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};

const PASSWORD: &str = "a long enough password";

struct Target {
    server: Server,
    roots: RootCertStore,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

fn target(site: impl Masquerade + 'static) -> Target {
    target_with(|builder| builder.masquerade(site))
}

fn target_with(change: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Target {
    target_named(["localhost".to_owned()], change)
}

fn target_named(
    names: impl Into<Vec<String>>,
    change: impl FnOnce(ServerBuilder) -> ServerBuilder,
) -> Target {
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    let key = || PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let tls = ServerTls::from_der(vec![made.cert.der().clone()], key()).expect("a pair");
    let builder = Server::builder(tls)
        .listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        .authenticator(Password::new(PASSWORD))
        .config(ServerConfig::default());
    let certificate = made.cert.der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("our certificate");
    Target {
        server: change(builder).bind().expect("bound"),
        roots,
        certificate,
        key: key(),
    }
}

fn client_tls(roots: &RootCertStore, alpn: &[u8]) -> rustls::ClientConfig {
    client_tls_with(rustls::crypto::aws_lc_rs::default_provider(), roots, alpn)
}

fn client_tls_with(
    provider: rustls::crypto::CryptoProvider,
    roots: &RootCertStore,
    alpn: &[u8],
) -> rustls::ClientConfig {
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots.clone())
        .with_no_client_auth();
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls
}

struct Prober {
    conn: Connection,
    _endpoint: Endpoint,
}

impl Target {
    async fn connect(&self, alpn: &[u8]) -> Result<Prober, ConnectionError> {
        let tls = QuicClientConfig::try_from(client_tls(&self.roots, alpn)).expect("TLS 1.3");
        let mut endpoint =
            Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a socket");
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(tls)));
        let address = self.server.local_addrs()[0];
        let conn = endpoint
            .connect(address, "localhost")
            .expect("valid")
            .await?;
        Ok(Prober {
            conn,
            _endpoint: endpoint,
        })
    }

    async fn probe(&self) -> Prober {
        self.connect(b"h3").await.expect("connected")
    }
}

impl Prober {
    async fn open(&self, bytes: &[u8]) -> (SendStream, RecvStream) {
        let (mut send, recv) = self.conn.open_bi().await.expect("a stream");
        send.write_all(bytes).await.expect("written");
        (send, recv)
    }

    async fn ask(&self, request: &[u8]) -> Vec<u8> {
        let (mut send, mut recv) = self.open(request).await;
        send.finish().expect("open");
        recv.read_to_end(1 << 20).await.expect("an answer")
    }

    async fn authenticate(&self, password: &str) -> Vec<u8> {
        self.ask(&post("hysteria", "/auth", Some(password))).await
    }

    /// Checks that nothing came back on a stream, and that the server is well and has had its time.
    async fn is_silent(&self, recv: &mut RecvStream) {
        for _ in 0..2 {
            assert!(!self.ask(&get("/")).await.is_empty());
        }
        assert!(recv.read_chunk(usize::MAX, true).now_or_never().is_none());
    }
}

/// Compares two answers byte for byte. Both tell the time in seconds, so they are asked for again when a second may
/// have passed between them.
async fn same(first: impl AsyncFn() -> Vec<u8>, second: impl AsyncFn() -> Vec<u8>) {
    for _ in 0..4 {
        let (a, b) = (first().await, second().await);
        if a == b {
            assert!(!a.is_empty());
            return;
        }
    }
    assert_eq!(hex::encode(first().await), hex::encode(second().await));
}

/// Encodes a request without the Huffman code: :method, :scheme https, :authority, :path, and one more field.
fn request(method: u8, authority: &str, path: &str, extra: Option<(&str, &str)>) -> Vec<u8> {
    let short = |text: &str| {
        u8::try_from(text.len())
            .ok()
            .filter(|len| *len < 127)
            .expect("a short text")
    };
    let mut section = vec![0, 0, method, 0xc0 | 23, 0x50, short(authority)];
    section.extend_from_slice(authority.as_bytes());
    section.extend_from_slice(&[0x51, short(path)]);
    section.extend_from_slice(path.as_bytes());
    if let Some((name, value)) = extra {
        section.extend_from_slice(&[0x27, short(name) - 7]);
        section.extend_from_slice(name.as_bytes());
        section.push(short(value));
        section.extend_from_slice(value.as_bytes());
    }
    frame(1, &section)
}

fn get(path: &str) -> Vec<u8> {
    request(0xc0 | 17, "localhost", path, None)
}

fn post(authority: &str, path: &str, password: Option<&str>) -> Vec<u8> {
    request(
        0xc0 | 20,
        authority,
        path,
        password.map(|password| ("hysteria-auth", password)),
    )
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len()).expect("a short payload");
    [&[kind][..], &(0x4000 | len).to_be_bytes(), payload].concat()
}

/// 233 in the opening of an answer: literal with the name of entry 24, Huffman coded.
const STATUS_233: &[u8] = &[0x00, 0x00, 0x5f, 0x09, 0x83, 0x13, 0x2c, 0xff];

fn is_let_in(answer: &[u8]) -> bool {
    answer
        .windows(STATUS_233.len())
        .take(4)
        .any(|part| part == STATUS_233)
}

#[tokio::test]
async fn the_site_is_the_same_before_after_and_instead_of_authentication() {
    let target = target(OrdinarySite::new("site.example"));
    let (stranger, turned_away, user) = (
        target.probe().await,
        target.probe().await,
        target.probe().await,
    );
    assert!(!is_let_in(&turned_away.authenticate("wrong").await));
    assert!(is_let_in(&user.authenticate(PASSWORD).await));
    let requests = [
        get("/"),
        get("/about"),
        get("/missing"),
        get("/auth"),
        post("localhost", "/", None),
        post("localhost", "/auth", Some(PASSWORD)),
        post("Hysteria", "/auth", Some(PASSWORD)),
        post("hysteria", "/auth/", Some(PASSWORD)),
    ];
    for request in &requests {
        same(
            async || stranger.ask(request).await,
            async || turned_away.ask(request).await,
        )
        .await;
        same(
            async || stranger.ask(request).await,
            async || user.ask(request).await,
        )
        .await;
    }
    assert!(
        is_let_in(&user.authenticate("wrong").await),
        "whoever is in is in"
    );
    assert!(
        is_let_in(&turned_away.authenticate(PASSWORD).await),
        "and a second try may succeed"
    );
}

#[tokio::test]
async fn a_wrong_password_gets_what_any_post_gets() {
    let sites: [fn() -> Target; 2] = [
        || target(NotFound::new()),
        || target(OrdinarySite::new("site.example")),
    ];
    for site in sites {
        let target = site();
        let probe = target.probe().await;
        let wrong = post("hysteria", "/auth", Some("wrong"));
        for other in [
            post("hysteria", "/auth", None),
            post("localhost", "/auth", Some("wrong")),
            post("hysteria", "/elsewhere", Some("wrong")),
            post("localhost", "/", None),
        ] {
            same(
                async || probe.ask(&wrong).await,
                async || probe.ask(&other).await,
            )
            .await;
        }
    }
}

/// Denies, and counts what it is asked.
#[derive(Default)]
struct Counting {
    judged: AtomicU32,
    pretended: AtomicU32,
}

impl Counting {
    fn counts(&self) -> (u32, u32) {
        (self.judged.load(Relaxed), self.pretended.load(Relaxed))
    }
}

impl Authenticator for Counting {
    fn authenticate<'a>(&'a self, _request: AuthContext<'a>) -> BoxFuture<'a, AuthDecision> {
        self.judged.fetch_add(1, Relaxed);
        Box::pin(std::future::ready(AuthDecision::Deny))
    }

    fn pretend<'a>(&'a self, request: AuthContext<'a>) -> BoxFuture<'a, ()> {
        assert_eq!(request.auth, "wrong");
        self.pretended.fetch_add(1, Relaxed);
        Box::pin(std::future::ready(()))
    }
}

/// Both, or neither, do the work of judging a password, so that time tells nothing.
#[tokio::test]
async fn any_other_post_costs_what_a_wrong_password_costs() {
    let counting = Arc::new(Counting::default());
    let target = target_with(|builder| builder.authenticator(Arc::clone(&counting)));
    let probe = target.probe().await;
    let other = post("localhost", "/elsewhere", Some("wrong"));
    for round in 1..=5 {
        probe.ask(&other).await;
        probe.authenticate("wrong").await;
        probe.ask(&get("/")).await;
        assert_eq!(counting.counts(), (round, round));
    }
    // No more passwords are looked at on this connection, and the others cost no more either.
    probe.authenticate("wrong").await;
    probe.ask(&other).await;
    assert_eq!(counting.counts(), (5, 5));
}

#[tokio::test]
async fn the_404_site_answers_as_the_reference_does() {
    let target = target(NotFound::new());
    let answer = target.probe().await.ask(&get("/")).await;
    // As captured: status, content-type, x-content-type-options, date; its text follows, then the length.
    let opening = "0000db5f1d92497ca58ae819aafb50938ec415305a99567bfd56";
    assert_eq!(
        hex::encode(&answer[2..]).get(..opening.len()),
        Some(opening)
    );
    assert!(answer.ends_with(b"\x00\x13404 page not found\n"));
}

#[tokio::test]
async fn relay_streams_and_datagrams_of_strangers_meet_silence() {
    let target = target(OrdinarySite::default());
    let probe = target.probe().await;
    let tcp_request = b"\x44\x01\x0e127.0.0.1:8080\x00";
    let (_whole, mut recv) = probe.open(tcp_request).await;
    probe.is_silent(&mut recv).await;
    let (_partial, mut recv) = probe.open(&tcp_request[..6]).await;
    probe.is_silent(&mut recv).await;
    for len in [1, 20, 1100] {
        probe
            .conn
            .send_datagram(vec![0; len].into())
            .expect("datagrams are announced");
    }
    probe.is_silent(&mut recv).await;
    assert!(probe.conn.read_datagram().now_or_never().is_none());
    // The same bytes and then DATA are what any HTTP/3 server objects to.
    let _stream = probe
        .open(&[&b"\x44\x01\x03abc"[..], &frame(0, b"x")].concat())
        .await;
    match probe.conn.closed().await {
        ConnectionError::ApplicationClosed(close) => {
            assert_eq!(close.error_code.into_inner(), 0x105);
            assert_eq!(
                close.reason,
                &b"expected first frame to be a HEADERS frame"[..]
            );
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_unknown_application_protocol_is_refused_without_a_text() {
    let target = target(OrdinarySite::default());
    match target.connect(b"hq-interop").await.err() {
        Some(ConnectionError::ConnectionClosed(close)) => {
            assert_eq!(u64::from(close.error_code), 0x178);
            assert!(close.reason.is_empty(), "{close}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn settings_and_nothing_else_are_sent_unasked() {
    let target = target(OrdinarySite::default());
    let probe = target.probe().await;
    let mut control = probe.conn.accept_uni().await.expect("a stream");
    let mut settings = [0; 10];
    control.read_exact(&mut settings).await.expect("settings");
    assert_eq!(settings, *b"\x00\x04\x07\x06\x80\x10\x00\x00\x08\x01");
    probe.is_silent(&mut control).await;
    assert!(probe.conn.accept_uni().now_or_never().is_none());
    assert!(probe.conn.accept_bi().now_or_never().is_none());
}

/// Returns the DATA of an answer.
fn body(mut answer: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let [kind, rest @ ..] = answer {
        let (len, rest) = match rest {
            [first @ 0..=0x3f, rest @ ..] => (usize::from(*first), rest),
            [first @ 0x40..=0x7f, second, rest @ ..] => (
                usize::from(u16::from_be_bytes([*first & 0x3f, *second])),
                rest,
            ),
            other => panic!("{other:02x?}"),
        };
        if *kind == 0 {
            body.extend_from_slice(&rest[..len]);
        }
        answer = &rest[len..];
    }
    body
}

#[tokio::test]
async fn https_on_tcp_serves_the_same_pages() {
    let site = OrdinarySite::new("site.example");
    let target = target(site.clone());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![target.certificate.clone()], target.key.clone_key())
        .expect("a pair");
    let mut config = TcpSiteConfig::new(target.server.local_addrs()[0].port());
    config.https = Some((SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), Arc::new(tls)));
    let served = TcpSite::bind(config, Arc::new(site))
        .expect("bound")
        .spawn();

    let probe = target.probe().await;
    let connector =
        tokio_rustls::TlsConnector::from(Arc::new(client_tls(&target.roots, b"http/1.1")));
    for path in ["/", "/about", "/style.css", "/missing", "/auth"] {
        let stream = TcpStream::connect(served.https_addr().expect("a listener"))
            .await
            .expect("connected");
        let name = "localhost".try_into().expect("a name");
        let mut stream = connector.connect(name, stream).await.expect("a handshake");
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("an answer");
        let answer = String::from_utf8(answer).expect("text");
        let (head, over_tcp) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains("Alt-Svc: h3=\":"), "{head}");
        assert_eq!(
            over_tcp.as_bytes(),
            body(&probe.ask(&get(path)).await),
            "{path}"
        );
    }
}

/// A client's crypto configuration that keeps the handshake messages of the server as they came.
struct Listening {
    inner: Arc<QuicClientConfig>,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl crypto::ClientConfig for Listening {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        Ok(Box::new(ListeningSession {
            inner: Arc::clone(&self.inner).start_session(version, server_name, params)?,
            heard: Arc::clone(&self.heard),
        }))
    }
}

struct ListeningSession {
    inner: Box<dyn Session>,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Session for ListeningSession {
    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.heard.lock().expect("free").extend_from_slice(buf);
        self.inner.read_handshake(buf)
    }
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        self.inner.initial_keys(dst_cid, side)
    }
    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.inner.handshake_data()
    }
    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.inner.peer_identity()
    }
    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.inner.early_crypto()
    }
    fn early_data_accepted(&self) -> Option<bool> {
        self.inner.early_data_accepted()
    }
    fn is_handshaking(&self) -> bool {
        self.inner.is_handshaking()
    }
    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.inner.transport_parameters()
    }
    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        self.inner.write_handshake(buf)
    }
    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.inner.next_1rtt_keys()
    }
    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.inner.is_valid_retry(orig_dst_cid, header, payload)
    }
    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.inner.export_keying_material(output, label, context)
    }
}

/// Splits `len`-prefixed bytes off; the length has `width` bytes.
fn prefixed<'a>(from: &mut &'a [u8], width: usize) -> &'a [u8] {
    let (len, rest) = from.split_at(width);
    let len = len
        .iter()
        .fold(0, |len, byte| (len << 8) | usize::from(*byte));
    let (value, rest) = rest.split_at(len);
    *from = rest;
    value
}

/// Finds the transport parameters in a server's handshake messages (RFC 8446 §4.3.1, RFC 9001 §8.2).
fn parameters_in(mut handshake: &[u8]) -> Vec<(u64, Vec<u8>)> {
    const ENCRYPTED_EXTENSIONS: u8 = 8;
    const TRANSPORT_PARAMETERS: [u8; 2] = [0, 0x39];
    while let Some((kind, rest)) = handshake.split_first() {
        handshake = rest;
        let mut message = prefixed(&mut handshake, 3);
        if *kind != ENCRYPTED_EXTENSIONS {
            continue;
        }
        let mut extensions = prefixed(&mut message, 2);
        while !extensions.is_empty() {
            let (kind, rest) = extensions.split_at(2);
            extensions = rest;
            let mut parameters = prefixed(&mut extensions, 2);
            if kind == TRANSPORT_PARAMETERS {
                let mut found = Vec::new();
                while !parameters.is_empty() {
                    let id = number(&mut parameters);
                    let len = usize::try_from(number(&mut parameters)).expect("short");
                    let (value, rest) = parameters.split_at(len);
                    parameters = rest;
                    found.push((id, value.to_vec()));
                }
                return found;
            }
        }
    }
    panic!("no transport parameters");
}

fn number(from: &mut &[u8]) -> u64 {
    let (value, used) = varint::decode(from).expect("a number");
    *from = &from[used..];
    value
}

impl Target {
    /// Shakes hands with the server at `address` and returns what it said about itself, in its order.
    async fn parameters(
        &self,
        address: SocketAddr,
        tls: rustls::ClientConfig,
    ) -> Vec<(u64, Vec<u8>)> {
        let tls = QuicClientConfig::try_from(tls).expect("TLS 1.3");
        let heard = Arc::default();
        let listening = Listening {
            inner: Arc::new(tls),
            heard: Arc::clone(&heard),
        };
        let mut endpoint =
            Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a socket");
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(listening)));
        let _conn = endpoint
            .connect(address, "localhost")
            .expect("valid")
            .await
            .expect("connected");
        let heard = heard.lock().expect("free");
        parameters_in(&heard)
    }
}

/// As captured from Caddy 2.11.4 but for the rows that docs/deviations.md names: windows and the
/// datagram size.
#[tokio::test]
async fn transport_parameters_are_those_of_an_ordinary_web_server() {
    let target = target(OrdinarySite::default());
    let mut reserved = Vec::new();
    for _ in 0..8 {
        let tls = client_tls(&target.roots, b"h3");
        let address = target.server.local_addrs()[0];
        let mut said = target.parameters(address, tls).await;
        // The first means nothing and is another one each time.
        let first = said.remove(0);
        assert_eq!(first.0 % 31, 27, "{first:?}");
        assert!(first.0 <= 27 + 31 * 255 && first.1.len() < 16, "{first:?}");
        reserved.push(first);
        let order: Vec<_> = said.iter().map(|(id, _)| *id).collect();
        assert_eq!(
            order,
            [5, 6, 7, 4, 8, 9, 1, 3, 0xb, 2, 0, 0xe, 0xf, 0x20],
            "the order is always the same, and nothing else is said"
        );
        let value = |id: u64| {
            let (_, value) = said.iter().find(|(this, _)| *this == id).expect("said");
            number(&mut &value[..])
        };
        assert_eq!(value(1), 30_000);
        assert_eq!((value(8), value(9)), (100, 100));
        assert_eq!((value(3), value(0xb), value(0xe)), (1452, 26, 4));
        // The deviations.
        assert_eq!((value(5), value(6), value(7)), (8 << 20, 8 << 20, 8 << 20));
        assert_eq!((value(4), value(0x20)), (512 << 10, 1200));
    }
    reserved.dedup();
    assert!(reserved.len() > 1, "{reserved:?}");
}

/// Hands packets on in both directions and returns the sizes of those that the server sent first.
async fn first_of_server(target: &Target) -> Vec<usize> {
    let near = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("bound");
    let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("bound");
    far.connect(target.server.local_addrs()[0])
        .await
        .expect("connected");
    let mut sizes = Vec::new();
    let address = near.local_addr().expect("bound");
    let relay = async {
        let (mut up, mut down) = ([0; 2000], [0; 2000]);
        let mut client = None;
        loop {
            // Both are cancel safe.
            tokio::select! {
                received = near.recv_from(&mut up) => {
                    let (len, from) = received.expect("received");
                    client = Some(from);
                    far.send(&up[..len]).await.expect("sent");
                }
                received = far.recv(&mut down) => {
                    let len = received.expect("received");
                    sizes.push(len);
                    let client = client.expect("the client speaks first");
                    near.send_to(&down[..len], client).await.expect("sent");
                }
            }
        }
    };
    // As of the prober that the size was captured with; the answer to a hybrid key share is a packet
    // of 1,230 bytes, which quinn sends as it is.
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    tokio::select! {
        _ = target.parameters(address, client_tls_with(provider, &target.roots, b"h3")) => {}
        () = relay => {}
    }
    sizes
}

#[tokio::test]
async fn the_first_datagram_has_the_size_of_an_ordinary_web_server() {
    // The names make a certificate of the size of those that are issued for money or for none.
    let names: Vec<_> = (0..40)
        .map(|index| format!("a-name-of-usual-length-{index}.site.example"))
        .chain(["localhost".to_owned()])
        .collect();
    let target = target_named(names, |builder| builder);
    let sizes = first_of_server(&target).await;
    assert_eq!(sizes.first(), Some(&1280), "{sizes:?}");
}
