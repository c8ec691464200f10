use hyper::client::conn::http2;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::*;
use crate::masquerade::OrdinarySite;

struct Served {
    handle: TcpSiteHandle,
    tls: rustls::ClientConfig,
}

fn served(change: impl FnOnce(&mut TcpSiteConfig)) -> Served {
    served_by(Arc::new(OrdinarySite::new("site.example")), change)
}

fn served_by(masquerade: Arc<dyn Masquerade>, change: impl FnOnce(&mut TcpSiteConfig)) -> Served {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .expect("a pair");
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = TcpSiteConfig::new(8443);
    config.http = Some(loopback);
    config.https = Some((loopback, Arc::new(tls)));
    change(&mut config);
    let site = TcpSite::bind(config, masquerade).expect("bound");

    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("our certificate");
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Served {
        handle: site.spawn(),
        tls,
    }
}

impl Served {
    async fn plain(&self) -> TcpStream {
        TcpStream::connect(self.handle.http_addr().expect("a listener"))
            .await
            .expect("connected")
    }

    async fn encrypted(&self, protocol: &[u8]) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.handle.https_addr().expect("a listener"))
            .await
            .expect("connected");
        let mut tls = self.tls.clone();
        tls.alpn_protocols = vec![protocol.to_vec()];
        let name = "localhost".try_into().expect("a name");
        TlsConnector::from(Arc::new(tls))
            .connect(name, stream)
            .await
            .expect("a handshake")
    }
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = String::new();
    // An abrupt end of TLS is how HTTP/1 connections end.
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

const GET: &str = "GET /about HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn http_and_https_serve_the_same_site_and_announce_http3() {
    let served = served(|_| ());
    let plain = exchange(served.plain().await, GET).await;
    let encrypted = exchange(served.encrypted(b"http/1.1").await, GET).await;
    let without_date = |answer: &str| {
        answer
            .lines()
            .filter(|line| !line.starts_with("Date: "))
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert_eq!(without_date(&plain), without_date(&encrypted));
    assert!(plain.starts_with("HTTP/1.1 200 OK\r\n"), "{plain}");
    for line in [
        "Server: Caddy\r\n",
        "Alt-Svc: h3=\":8443\"; ma=2592000\r\n",
        "\r\nDate: ",
        "\r\nEtag: ",
    ] {
        assert!(plain.contains(line), "{line:?} in {plain}");
    }
    assert!(plain.ends_with("</html>\n"));
}

#[tokio::test]
async fn a_head_request_gets_the_length_and_no_body() {
    let served = served(|_| ());
    let answer = exchange(served.plain().await, &GET.replace("GET", "HEAD")).await;
    assert!(answer.contains("\r\nContent-Length: "), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
}

/// Answers as a reverse proxy does when its upstream does not say how long a page is.
#[derive(Debug)]
struct Unsized(StatusCode);

impl Masquerade for Unsized {
    fn serve(&self, _: Request<Body>) -> crate::BoxFuture<'_, Response<Body>> {
        let mut response = Response::new(crate::masquerade::unsized_empty());
        *response.status_mut() = self.0;
        Box::pin(std::future::ready(response))
    }
}

#[tokio::test]
async fn a_length_that_nobody_knows_is_not_told() {
    for status in [StatusCode::OK, StatusCode::NO_CONTENT] {
        let served = served_by(Arc::new(Unsized(status)), |_| ());
        let answer = exchange(served.plain().await, &GET.replace("GET", "HEAD")).await;
        let answer = answer.to_ascii_lowercase();
        assert!(!answer.contains("content-length"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn http2_is_spoken() {
    let served = served(|_| ());
    let stream = served.encrypted(b"h2").await;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .expect("HTTP/2");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let _ = connection.await;
    });
    let request = Request::builder()
        .uri("https://site.example/missing")
        .body(empty())
        .expect("a request");
    let response = sender.send_request(request).await.expect("an answer");
    assert_eq!(response.status(), 404);
    assert_eq!(response.headers()["alt-svc"], "h3=\":8443\"; ma=2592000");
}

#[tokio::test]
async fn a_connection_that_asks_nothing_is_closed_though_it_lives() {
    let served = served(|config| config.idle_timeout = Duration::from_millis(20));
    let stream = served.encrypted(b"h2").await;
    let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_millis(5))
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await
        .expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .uri("https://site.example/")
        .body(empty())
        .expect("a request");
    // It may be over before the request is sent.
    let _ = sender.send_request(request).await;
    // The client holds on to it and sends PINGs.
    let ended = timeout(Duration::from_secs(60), connection).await;
    let _ = ended.expect("closed").expect("no panic");
    drop(sender);
}

#[tokio::test]
async fn an_answer_that_takes_long_is_not_idleness() {
    let requests = Requests::new();
    let under_way = requests.begin();
    let body = Counted::new(full("abc"), under_way);
    let mut idle = pin!(requests.idle(Duration::ZERO));
    // Both end at once if they end at all.
    let (mut rounds, mut body) = (0, Some(body));
    let ended_after = loop {
        let poll = |cx: &mut std::task::Context<'_>| std::task::Poll::Ready(idle.as_mut().poll(cx));
        if std::future::poll_fn(poll).await.is_ready() {
            break rounds;
        }
        rounds += 1;
        if rounds == 5 {
            body = None;
        }
        assert!(rounds < 1000, "idle at last");
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    assert!(body.is_none() && ended_after >= 5, "{ended_after}");
}

#[tokio::test]
async fn http2_is_not_spoken_without_tls() {
    let served = served(|_| ());
    let mut plain = served.plain().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    plain.write_all(preface).await.expect("written");
    let mut answer = Vec::new();
    // An end before everything was read may be a reset.
    let _ = plain.read_to_end(&mut answer).await;
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 "),
        "{answer:?}"
    );
}

#[tokio::test]
async fn plain_http_redirects_if_told_to() {
    let served = served(|config| config.force_https = true);
    let port = served.handle.https_addr().expect("a listener").port();
    let request = "GET /a?b=<c> HTTP/1.1\r\nHost: site.example:80\r\nConnection: close\r\n\r\n";
    let answer = exchange(served.plain().await, &request.replace("<c>", "c&d")).await;
    assert!(
        answer.starts_with("HTTP/1.1 301 Moved Permanently\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains(&format!(
            "\r\nLocation: https://site.example:{port}/a?b=c&d\r\n"
        )),
        "{answer}"
    );
    assert!(answer.ends_with(&format!(
        "<a href=\"https://site.example:{port}/a?b=c&amp;d\">Moved Permanently</a>.\n\n"
    )));
    assert!(!answer.contains("Alt-Svc"), "{answer}");
    let answer = exchange(served.plain().await, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 400 "), "{answer}");
    let answer = exchange(served.encrypted(b"http/1.1").await, GET).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_does_not_come_is_given_up() {
    let served = served(|_| ());
    let mut stream = TcpStream::connect(served.handle.https_addr().expect("a listener"))
        .await
        .expect("connected");
    assert_eq!(stream.read(&mut [0; 16]).await.expect("closed in order"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_does_not_come_is_given_up() {
    let served = served(|_| ());
    let mut stream = served.plain().await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost:")
        .await
        .expect("written");
    let mut rest = Vec::new();
    stream
        .read_to_end(&mut rest)
        .await
        .expect("closed in order");
    assert!(!rest.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_says_nothing_is_given_up() {
    let served = served(|_| ());
    let mut plain = served.plain().await;
    let read = plain.read(&mut [0; 16]).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    for begun in ["", "P", "PRI * HTTP/2.0\r\n\r\nSM\r\n"] {
        for protocol in ["h2", "http/1.1"] {
            let mut encrypted = served.encrypted(protocol.as_bytes()).await;
            let sent = encrypted.write_all(begun.as_bytes()).await;
            sent.expect("written");
            let mut rest = Vec::new();
            // An abrupt end of TLS is how connections end. A server of HTTP/2 says its settings first.
            let _ = encrypted.read_to_end(&mut rest).await;
            let is_nonsense = begun.starts_with("PRI") && rest.starts_with(b"HTTP/1.1 400");
            let silent = rest.is_empty() || is_nonsense;
            assert!(protocol == "h2" || silent, "{begun}: {rest:?}");
        }
    }
}

#[tokio::test]
async fn connections_above_the_limit_wait() {
    let served = served(|config| config.max_connections = 1);
    let mut first = served.plain().await;
    first
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .expect("written");
    first.read_exact(&mut [0; 12]).await.expect("served");
    let second = exchange(served.plain().await, GET);
    tokio::pin!(second);
    let early = tokio::select! {
        biased;
        _ = &mut second => true,
        // The first connection gets another answer meanwhile.
        () = async {
            first.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("written");
            let mut seen = Vec::new();
            while seen.windows(7).filter(|part| *part == b"</html>").count() < 2 {
                assert_ne!(first.read_buf(&mut seen).await.expect("served"), 0);
            }
        } => false,
    };
    assert!(!early);
    drop(first);
    assert!(second.await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn shutdown_ends_idle_connections_and_listeners() {
    let served = served(|_| ());
    let address = served.handle.http_addr().expect("a listener");
    let mut idle = served.plain().await;
    idle.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .expect("written");
    idle.read_exact(&mut [0; 12]).await.expect("served");
    served.handle.shutdown(Duration::from_secs(30)).await;
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.expect("closed in order");
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn plain_http_alone_is_refused() {
    let mut config = TcpSiteConfig::new(443);
    config.http = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let error = TcpSite::bind(config, Arc::new(OrdinarySite::default())).expect_err("refused");
    assert!(matches!(error, TcpSiteError::HttpWithoutHttps));
}

#[tokio::test]
async fn a_head_request_over_http2_gets_the_length_and_no_body() {
    let served = served(|_| ());
    let stream = served.encrypted(b"h2").await;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .expect("HTTP/2");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let _ = connection.await;
    });
    let mut lengths = Vec::new();
    for method in [Method::GET, Method::HEAD] {
        let request = Request::builder()
            .method(&method)
            .uri("https://site.example/about")
            .body(empty())
            .expect("a request");
        let response = sender.send_request(request).await.expect("an answer");
        lengths.push(response.headers()["content-length"].clone());
        let body = response.into_body().collect().await.expect("a whole body");
        assert_eq!(body.to_bytes().is_empty(), method == Method::HEAD);
    }
    assert_eq!(lengths[0], lengths[1]);
}

/// Answers before it has heard what is asked.
#[derive(Debug)]
struct Hasty;

impl Masquerade for Hasty {
    fn serve(&self, _: Request<Body>) -> crate::BoxFuture<'_, Response<Body>> {
        Box::pin(async { Response::new(full("no")) })
    }
}

#[tokio::test]
async fn what_a_client_still_sends_after_its_answer_is_read() {
    let served = served_by(Arc::new(Hasty), |_| ());
    let stream = served.encrypted(b"h2").await;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .expect("HTTP/2");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let _ = connection.await;
    });
    let (chunks, mut sent) = tokio::sync::mpsc::channel::<bytes::Bytes>(1);
    let body = futures_util::stream::poll_fn(move |cx| sent.poll_recv(cx));
    let body = futures_util::StreamExt::map(body, |chunk| {
        Ok::<_, std::convert::Infallible>(http_body::Frame::data(chunk))
    });
    let request = Request::post("https://site.example/")
        .body(http_body_util::StreamBody::new(body))
        .expect("a request");
    let response = sender.send_request(request).await.expect("an answer");
    let answer = response.into_body().collect().await.expect("a whole body");
    assert_eq!(answer.to_bytes(), "no");
    // Sixteen times the window of a stream: who does not read resets it, or holds it up for good.
    for _ in 0..64 {
        let chunk = chunks.send(vec![b'a'; 16 << 10].into());
        let sent = timeout(Duration::from_secs(60), chunk).await;
        sent.expect("goes on").expect("not reset");
    }
}

#[tokio::test]
async fn requests_without_one_usable_host_are_answered_as_by_gos_server() {
    let site = served(|_| {});
    let cases = [
        (
            "GET / HTTP/1.1\r\n\r\n",
            "400 Bad Request: missing required Host header",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "400 Bad Request: too many Host headers",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "400 Bad Request: malformed Host header",
        ),
    ];
    for (request, body) in cases {
        let answer = exchange(site.plain().await, request).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
            "{answer}"
        );
        assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
    }
    let close = "Connection: close\r\n\r\n";
    let old = exchange(site.plain().await, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200"), "{old}");
    let asterisk = format!("OPTIONS * HTTP/1.1\r\nHost: a\r\n{close}");
    let asterisk = exchange(site.plain().await, &asterisk).await;
    assert!(
        asterisk.starts_with("HTTP/1.1 200") && asterisk.ends_with("\r\n\r\n"),
        "{asterisk}"
    );
    let many: String = (0..500).map(|at| format!("x-{at}: 1\r\n")).collect();
    let many = exchange(
        site.plain().await,
        &format!("GET / HTTP/1.1\r\nHost: a\r\n{many}{close}"),
    )
    .await;
    assert!(many.starts_with("HTTP/1.1 200"), "{many}");
}

/// Changes to a protocol in which everything is sent back, whether or not it was asked to.
async fn switching() -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.expect("a head"));
                }
                let head = String::from_utf8(head).expect("text").to_lowercase();
                let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
                stream.write_all(answer.as_bytes()).await.expect("written");
                let asked = head.contains("\r\nupgrade: echo\r\n") && head.contains("connection: upgrade");
                stream.write_all(if asked { b"asked;" } else { b"silly;" }).await.expect("written");
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    (address, tasks)
}

#[tokio::test]
async fn a_connection_is_upgraded_through_the_proxy_and_only_where_it_was_asked_for() {
    use crate::masquerade::{ProxyConfig, ReverseProxy};
    let (upstream, _tasks) = switching().await;
    let proxy = ReverseProxy::new(ProxyConfig::new(format!("http://{upstream}"))).expect("valid");
    let site = served_by(Arc::new(proxy), |_| {});
    let ask = "GET /chat HTTP/1.1\r\nHost: site.example\r\nConnection: keep-alive, Upgrade\r\nUpgrade: echo\r\n\r\n";
    async fn talk(mut stream: impl AsyncRead + AsyncWrite + Unpin, ask: &str) {
        stream.write_all(ask.as_bytes()).await.expect("written");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("a head"));
        }
        let head = String::from_utf8(head).expect("text").to_lowercase();
        assert!(head.starts_with("http/1.1 101"), "{head}");
        assert!(
            head.contains("upgrade: echo\r\n") && head.contains("connection: upgrade"),
            "{head}"
        );
        let mut greeting = [0; 6];
        stream.read_exact(&mut greeting).await.expect("read");
        assert_eq!(&greeting, b"asked;");
        for word in [b"ping".as_slice(), &[7; 100_000]] {
            stream.write_all(word).await.expect("written");
            let mut back = vec![0; word.len()];
            stream.read_exact(&mut back).await.expect("read");
            assert!(back == word);
        }
        stream.shutdown().await.expect("ended");
        assert_eq!(stream.read(&mut [0]).await.expect("the end"), 0);
    }
    talk(site.plain().await, ask).await;
    talk(site.encrypted(b"http/1.1").await, ask).await;
    // An upstream that switches unasked is no web server.
    let answer = exchange(site.plain().await, GET).await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
}
