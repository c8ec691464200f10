use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, UnixListener},
    task::JoinSet,
};

use super::*;
use crate::masquerade::full;

/// Answers with what it saw of the request: the request line, sorted headers and the body.
async fn reflect(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let mut lines: Vec<String> = head
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
        .collect();
    lines.sort();
    let body = body.collect().await.expect("a body").to_bytes();
    let seen = format!(
        "{} {}\n{}\n\n{}",
        head.method,
        head.uri,
        lines.join("\n"),
        String::from_utf8_lossy(&body)
    );
    let mut response = Response::new(full(seen));
    let headers = response.headers_mut();
    headers.insert("server", HeaderValue::from_static("upstream"));
    headers.insert("connection", HeaderValue::from_static("x-secret-hop"));
    headers.insert("x-secret-hop", HeaderValue::from_static("1"));
    Ok(response)
}

fn serve(tasks: &mut JoinSet<()>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    tasks.spawn(async move {
        let _ = http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service_fn(reflect))
            .await;
    });
}

/// An upstream on TCP that lives as long as the task set.
async fn upstream() -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            serve(&mut connections, stream);
        }
    });
    (address, tasks)
}

async fn ask(proxy: &ReverseProxy, request: Request<Body>) -> (u16, HeaderMap, String) {
    let (head, body) = proxy.serve(request).await.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    (
        head.status.as_u16(),
        head.headers,
        String::from_utf8_lossy(&body).into_owned(),
    )
}

fn request(method: &str, uri: &str) -> http::request::Builder {
    Request::builder().method(method).uri(uri)
}

#[tokio::test]
async fn requests_and_answers_pass_through() {
    let (address, _upstream) = upstream().await;
    let proxy = ReverseProxy::new(ProxyConfig::new(format!("http://{address}/base/?own=1")))
        .expect("valid");
    let request = request("POST", "https://site.example/path?a=b")
        .header("content-length", "4")
        .header("x-kept", "1")
        .header("x-forwarded-for", "198.51.100.1")
        .header("te", "trailers, deflate")
        .body(full("body"))
        .expect("a request");
    let (status, headers, seen) = ask(&proxy, request).await;
    assert_eq!(
        seen,
        "POST /base/path?own=1&a=b\ncontent-length: 4\nhost: site.example\nx-kept: 1\n\nbody"
    );
    assert_eq!(
        (status, headers["server"].as_bytes()),
        (200, &b"upstream"[..])
    );
    assert!(!headers.contains_key("connection") && !headers.contains_key("x-secret-hop"));
}

#[tokio::test]
async fn the_host_is_rewritten_and_the_client_named_on_demand() {
    let (address, _upstream) = upstream().await;
    let config = ProxyConfig {
        rewrite_host: true,
        x_forwarded: true,
        ..ProxyConfig::new(format!("http://{address}"))
    };
    let proxy = ReverseProxy::new(config).expect("valid");
    let peer = Peer {
        address: "[::ffff:192.0.2.7]:1234".parse().expect("an address"),
        encrypted: true,
    };
    let request = request("GET", "https://site.example/")
        .extension(peer)
        .body(empty())
        .expect("a request");
    let (_, _, seen) = ask(&proxy, request).await;
    let wanted = format!(
        "GET /\nhost: {address}\nx-forwarded-for: 192.0.2.7\nx-forwarded-host: site.example\nx-forwarded-proto: https\n\n"
    );
    assert_eq!(seen, wanted);
}

#[tokio::test]
async fn a_unix_socket_is_an_upstream() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("web.sock");
    let listener = UnixListener::bind(&path).expect("bound");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            serve(&mut connections, stream);
        }
    });
    let path = path.to_str().expect("text");
    for url in [path.to_owned(), format!("unix://{path}")] {
        let proxy = ReverseProxy::new(ProxyConfig::new(url)).expect("valid");
        let request = request("GET", "https://site.example/x")
            .body(empty())
            .expect("a request");
        assert_eq!(
            ask(&proxy, request).await.2,
            "GET /x\nhost: site.example\n\n"
        );
    }
}

#[tokio::test]
async fn an_upstream_certificate_is_checked_unless_told_not_to() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .expect("a pair");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let url = format!(
        "https://localhost:{}",
        listener.local_addr().expect("bound").port()
    );
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                serve(&mut connections, stream);
            }
        }
    });
    for (insecure, status) in [(false, 502), (true, 200)] {
        let config = ProxyConfig {
            insecure,
            ..ProxyConfig::new(url.clone())
        };
        let proxy = ReverseProxy::new(config).expect("valid");
        let request = request("GET", "https://site.example/")
            .body(empty())
            .expect("a request");
        assert_eq!(ask(&proxy, request).await.0, status);
    }
}

#[tokio::test]
async fn an_upstream_that_fails_is_a_bad_gateway() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let get = || {
        request("GET", "https://site.example/")
            .body(empty())
            .expect("a request")
    };
    let proxy = ReverseProxy::new(ProxyConfig::new(format!("http://{address}"))).expect("valid");
    let broken = async {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let _ = stream.write_all(b"nonsense\r\n\r\n").await;
        }
    };
    let answer = ask(&proxy, get());
    let (status, headers, body) = tokio::select! {
        answer = answer => answer,
        () = broken => unreachable!("it goes on"),
    };
    assert_eq!((status, headers.len(), body.len()), (502, 0, 0));
    drop(listener);
    assert_eq!(ask(&proxy, get()).await.0, 502, "nobody listens");
}

#[tokio::test]
async fn bodies_stream_in_both_directions() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let proxy = ReverseProxy::new(ProxyConfig::new(format!("http://{address}"))).expect("valid");
    let (chunks, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
    let body = http_body_util::StreamBody::new(futures_util::stream::unfold(
        receiver,
        |mut receiver| async {
            let chunk = receiver.recv().await?;
            Some((Ok(http_body::Frame::data(chunk)), receiver))
        },
    ));
    let request = request("POST", "https://site.example/")
        .body(body.boxed_unsync())
        .expect("a request");

    let talk = async {
        let (mut stream, _) = listener.accept().await.expect("accepted");
        let mut seen = Vec::new();
        chunks
            .send(Bytes::from_static(b"first"))
            .await
            .expect("wanted");
        while !seen.ends_with(b"5\r\nfirst\r\n") {
            assert_ne!(stream.read_buf(&mut seen).await.expect("read"), 0);
        }
        // The request goes on while the answer begins.
        let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n";
        stream.write_all(answer).await.expect("written");
        (stream, chunks)
    };
    let (response, (mut stream, chunks)) = tokio::join!(proxy.serve(request), talk);
    let mut body = response.into_body();
    let part = body
        .frame()
        .await
        .expect("a chunk")
        .expect("no error")
        .into_data()
        .expect("data");
    assert_eq!(part, "one");
    chunks
        .send(Bytes::from_static(b"second"))
        .await
        .expect("wanted");
    let mut seen = Vec::new();
    while !seen.ends_with(b"6\r\nsecond\r\n") {
        assert_ne!(stream.read_buf(&mut seen).await.expect("read"), 0);
    }
    drop(chunks);
    stream
        .write_all(b"3\r\ntwo\r\n0\r\n\r\n")
        .await
        .expect("written");
    assert_eq!(body.collect().await.expect("a body").to_bytes(), "two");
}

/// An upstream that says what it is told to, one text per request of a connection, and then closes it.
async fn scripted(answers: &'static [&'static str]) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut seen = Vec::new();
                for answer in answers {
                    while !seen.ends_with(b"\r\n\r\n") {
                        if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    seen.clear();
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
                // It closes in the moment of the next request.
                let _ = stream.read_buf(&mut seen).await;
            });
        }
    });
    (address, tasks)
}

#[tokio::test]
async fn a_request_that_met_the_end_of_its_connection_is_sent_once_more() {
    let (address, _upstream) =
        scripted(&["HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nsite"]).await;
    let proxy = ReverseProxy::new(ProxyConfig::new(format!("http://{address}"))).expect("valid");
    for method in ["GET", "OPTIONS", "GET", "GET", "TRACE", "GET"] {
        let request = request(method, "https://a.example/").body(empty());
        let (status, _, body) = ask(&proxy, request.expect("a request")).await;
        assert_eq!((status, body.as_str()), (200, "site"), "{method}");
    }
}

/// What may have been done is not done twice.
#[tokio::test]
async fn a_request_that_may_change_something_is_sent_once() {
    let (address, _upstream) =
        scripted(&["HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nsite"]).await;
    let proxy = ReverseProxy::new(ProxyConfig::new(format!("http://{address}"))).expect("valid");
    let post = || request("POST", "https://a.example/").header("content-length", "0");
    let mut seen = Vec::new();
    for _ in 0..2 {
        let request = post().body(empty()).expect("a request");
        seen.push(ask(&proxy, request).await.0);
    }
    assert_eq!(seen, [200, 502]);
}

#[tokio::test]
async fn what_upstreams_say_of_lengths_and_versions_is_put_in_order() {
    for (said, method, length) in [
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HEAD",
            None,
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n",
            "HEAD",
            Some("7"),
        ),
        (
            "HTTP/1.0 200 OK\r\ncontent-length: 4\r\n\r\nsite",
            "GET",
            Some("4"),
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 4\r\ncontent-length: 4\r\n\r\nsite",
            "GET",
            Some("4"),
        ),
    ] {
        let (address, _upstream) = scripted(Vec::leak(vec![said])).await;
        let proxy = ReverseProxy::new(ProxyConfig::new(format!("http://{address}")));
        let request = request(method, "https://a.example/").body(empty());
        let answer = proxy
            .expect("valid")
            .serve(request.expect("a request"))
            .await;
        assert_eq!(answer.version(), Version::HTTP_11, "{said}");
        let lengths: Vec<_> = answer.headers().get_all(CONTENT_LENGTH).iter().collect();
        assert_eq!(lengths, Vec::from_iter(length), "{said}");
        if method == "HEAD" {
            assert_eq!(answer.body().size_hint().exact(), None, "{said}");
        }
    }
}

#[tokio::test]
async fn a_name_and_password_in_the_url_are_told_nobody() {
    let (address, _upstream) = upstream().await;
    let config = ProxyConfig {
        rewrite_host: true,
        ..ProxyConfig::new(format!("http://name:secret@{address}/"))
    };
    let proxy = ReverseProxy::new(config).expect("valid");
    let request = request("GET", "https://a.example/").body(empty());
    let (_, _, seen) = ask(&proxy, request.expect("a request")).await;
    assert_eq!(seen, format!("GET /\nhost: {address}\n\n"));
}

#[test]
fn urls_that_are_no_upstream() {
    let error = |url: &str| {
        ReverseProxy::new(ProxyConfig::new(url))
            .map(|_| ())
            .expect_err(url)
            .to_string()
    };
    assert_eq!(
        error("ftp://host/"),
        "scheme ftp is not one of http, https and unix"
    );
    for url in [
        "",
        "host",
        "host:80",
        "http://",
        "http:///path",
        "http://a b/",
    ] {
        assert!(error(url).starts_with("not a URL of a web server"), "{url}");
    }
}

#[tokio::test]
async fn heads_that_go_would_take_are_taken_and_a_chunked_answer_has_no_length() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let many: String = (0..300)
        .map(|at| format!("x-{at}: {}\r\n", "v".repeat(300)))
        .collect();
    let answers = [
        "Transfer-Encoding: chunked\r\nContent-Length: 99\r\n\r\n2\r\nok\r\n0\r\n\r\n".to_owned(),
        format!("{many}Content-Length: 2\r\n\r\nok"),
        "x-folded: a\r\n b\r\nContent-Length: 2\r\n\r\nok".to_owned(),
    ];
    let mut tasks = JoinSet::new();
    let served = answers.clone();
    tasks.spawn(async move {
        for rest in served {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let _ = stream.read(&mut [0; 4096]).await;
            let answer = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{rest}");
            stream.write_all(answer.as_bytes()).await.expect("written");
        }
    });
    let proxy = ReverseProxy::new(ProxyConfig::new(format!("http://{address}"))).expect("valid");
    for (at, _) in answers.iter().enumerate() {
        let asked = request("GET", "https://site.example/")
            .body(empty())
            .expect("valid");
        let (status, headers, body) = ask(&proxy, asked).await;
        assert_eq!((status, body.as_str()), (200, "ok"), "{at}");
        assert_eq!(headers.contains_key("content-length"), at > 0, "{at}");
    }
}
