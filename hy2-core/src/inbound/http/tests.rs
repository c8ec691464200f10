//! The proxy on real sockets, byte by byte.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use super::{HttpProxy, HttpProxyConfig};
use crate::inbound::{
    Credentials, DialFailure,
    loopback::{CUT, Loopback, echo_server, ending_server, read_to_end_of},
};

#[tokio::test]
async fn connect_relays_with_early_bytes_and_half_close() {
    let echo = echo_server().await;
    let dialer = Loopback::default();
    let mut program = proxy(&dialer, |_| ()).await;
    let request = format!("CONNECT {echo} HTTP/1.1\r\nHost: {echo}\r\n\r\nearly ");
    program
        .write_all(request.as_bytes())
        .await
        .expect("request");
    let head = read_head(&mut program).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    program.write_all(b"late").await.expect("write");
    program.shutdown().await.expect("half-close");
    let mut seen = String::new();
    program.read_to_string(&mut seen).await.expect("read");
    assert_eq!(seen, "early late");
    assert_eq!(*dialer.asked.lock(), [echo.to_string()]);
}

#[tokio::test]
async fn a_cut_and_an_end_of_a_tunnel_are_told_apart() {
    let target = ending_server().await;
    let dialer = Loopback::default();
    for ask in [CUT, b'.'] {
        let mut program = proxy(&dialer, |_| ()).await;
        let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
        program
            .write_all(request.as_bytes())
            .await
            .expect("request");
        let head = read_head(&mut program).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        match read_to_end_of(&mut program, ask).await {
            Ok(0) => assert_ne!(ask, CUT),
            Ok(_) => panic!("nothing follows"),
            Err(error) => {
                assert_eq!(ask, CUT, "{error}");
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            }
        }
    }
}

#[tokio::test]
async fn failures_have_their_status() {
    for (failure, status) in [
        (DialFailure::Refused, "502"),
        (DialFailure::Unresolvable, "502"),
        (DialFailure::Denied, "403"),
        (DialFailure::TimedOut, "504"),
        (DialFailure::TunnelDown, "503"),
    ] {
        for request in [
            "CONNECT name:443 HTTP/1.1\r\nHost: name\r\n\r\n",
            "GET http://name/ HTTP/1.1\r\nHost: name\r\n\r\n",
        ] {
            let mut program = proxy(&Loopback::failing(failure), |_| ()).await;
            program
                .write_all(request.as_bytes())
                .await
                .expect("request");
            let head = read_head(&mut program).await;
            assert!(
                head.starts_with(&format!("HTTP/1.1 {status} ")),
                "{failure:?}: {head}"
            );
        }
    }
}

#[tokio::test]
async fn plain_requests_keep_the_connection_and_lose_hop_by_hop_headers() {
    let (origin, requests) = origin().await;
    let dialer = Loopback::default();
    let mut program = proxy(&dialer, |_| ()).await;
    for round in 0..3 {
        let request = format!(
            "POST http://{origin}/p?q={round} HTTP/1.1\r\nHost: wrong\r\nConnection: X-Gone\r\n\
             X-Gone: 1\r\nProxy-Connection: keep-alive\r\nX-Kept: 1\r\nContent-Length: 4\r\n\r\nbody"
        );
        program
            .write_all(request.as_bytes())
            .await
            .expect("request");
        let head = read_head(&mut program).await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(!head.to_lowercase().contains("keep-alive"), "{head}");
        let mut body = [0; 2];
        program.read_exact(&mut body).await.expect("body");
        assert_eq!(&body, b"ok");

        let seen = requests.recv_async().await;
        assert_eq!(
            seen,
            format!(
                "POST /p?q={round} HTTP/1.1\r\nHost: {origin}\r\nX-Kept: 1\r\nContent-Length: 4\r\n\r\n"
            )
        );
    }
    assert_eq!(
        dialer.asked.lock().len(),
        1,
        "one connection serves them all"
    );
}

#[tokio::test]
async fn a_chunked_answer_has_no_length_and_large_heads_pass() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let origin = listener.local_addr().expect("bound");
    let many: String = (0..300)
        .map(|at| format!("x-{at}: {}\r\n", "v".repeat(400)))
        .collect();
    let answers = [
        "Transfer-Encoding: chunked\r\nContent-Length: 99\r\n\r\n2\r\nok\r\n0\r\n\r\n".to_owned(),
        format!("{many}Content-Length: 2\r\n\r\nok"),
        "x-folded: a\r\n b\r\nContent-Length: 2\r\n\r\nok".to_owned(),
    ];
    let served = answers.clone();
    let task = tokio::spawn(async move {
        for rest in served {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let _ = stream.read(&mut [0; 4096]).await;
            let answer = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{rest}");
            stream.write_all(answer.as_bytes()).await.expect("written");
        }
    });
    for (at, _) in answers.iter().enumerate() {
        let mut program = proxy(&Loopback::default(), |_| ()).await;
        let request = format!("GET http://{origin}/ HTTP/1.1\r\nHost: {origin}\r\n\r\n");
        program
            .write_all(request.as_bytes())
            .await
            .expect("request");
        let head = read_head(&mut program).await.to_lowercase();
        assert!(head.starts_with("http/1.1 200 ok\r\n"), "{at}: {head}");
        assert_eq!(head.contains("content-length"), at > 0, "{at}: {head}");
        assert_eq!(
            head.contains("transfer-encoding: chunked"),
            at == 0,
            "{at}: {head}"
        );
    }
    task.await.expect("served");
}

#[tokio::test]
async fn a_request_that_is_not_for_a_proxy_is_a_mistake() {
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT a:99999 HTTP/1.1\r\nHost: a\r\n\r\n",
        "nonsense\r\n\r\n",
    ] {
        let dialer = Loopback::default();
        let mut program = proxy(&dialer, |_| ()).await;
        program
            .write_all(request.as_bytes())
            .await
            .expect("request");
        let head = read_head(&mut program).await;
        assert!(head.starts_with("HTTP/1.1 400 "), "{request}: {head}");
        assert!(dialer.asked.lock().is_empty());
    }
}

#[tokio::test]
async fn credentials_are_asked_for_and_accepted() {
    let echo = echo_server().await;
    let dialer = Loopback::default();
    let mut program = proxy(&dialer, |config| {
        config.credentials = Some(Credentials::new("john", "wick"));
        config.realm = "home".into();
    })
    .await;
    let connect = |authorization: &str| {
        format!("CONNECT {echo} HTTP/1.1\r\nHost: {echo}\r\n{authorization}\r\n")
    };
    for wrong in ["", "Proxy-Authorization: Basic am9objp3cm9uZw==\r\n"] {
        program
            .write_all(connect(wrong).as_bytes())
            .await
            .expect("request");
        let head = read_head(&mut program).await;
        assert!(head.starts_with("HTTP/1.1 407 "), "{head}");
        assert!(
            head.to_lowercase()
                .contains("proxy-authenticate: basic realm=\"home\"\r\n")
        );
        let mut body = [0; "user name and password are required".len()];
        program.read_exact(&mut body).await.expect("body");
    }
    assert!(dialer.asked.lock().is_empty());
    // On the same connection, as browsers do.
    let right = connect("Proxy-Authorization: Basic am9objp3aWNr\r\n");
    program.write_all(right.as_bytes()).await.expect("request");
    let head = read_head(&mut program).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
}

#[tokio::test]
async fn a_head_delivered_byte_by_byte_is_served() {
    let echo = echo_server().await;
    let mut program = proxy(&Loopback::default(), |_| ()).await;
    program.set_nodelay(true).expect("nodelay");
    for byte in format!("CONNECT {echo} HTTP/1.1\r\nHost: {echo}\r\n\r\n").bytes() {
        program.write_all(&[byte]).await.expect("write");
        tokio::task::yield_now().await;
    }
    assert!(read_head(&mut program).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_giant_head_is_refused() {
    let dialer = Loopback::default();
    let mut program = proxy(&dialer, |_| ()).await;
    let (mut read, mut write) = program.split();
    let feed = async {
        let _ = write.write_all(b"GET http://a/ HTTP/1.1\r\nX: ").await;
        // The proxy stops reading long before this has been written.
        for _ in 0..64 {
            if write.write_all(&[b'a'; 64 << 10]).await.is_err() {
                break;
            }
        }
    };
    let answer = async {
        let mut bytes = Vec::new();
        // A reset may follow the answer, because bytes of ours were left unread.
        let _ = read.read_to_end(&mut bytes).await;
        bytes
    };
    let ((), answer) = tokio::join!(feed, answer);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431 "));
    assert!(dialer.asked.lock().is_empty());
}

#[tokio::test]
async fn a_silent_program_is_let_go() {
    let mut program = proxy(&Loopback::default(), |config| {
        config.limits.request_timeout = Duration::from_millis(20);
    })
    .await;
    program.write_all(b"GET http://a/ HT").await.expect("write");
    let mut answer = Vec::new();
    program.read_to_end(&mut answer).await.expect("closed");
}

/// Starts a proxy and connects to it.
async fn proxy(dialer: &Loopback, change: impl FnOnce(&mut HttpProxyConfig)) -> TcpStream {
    let mut config = HttpProxyConfig::new(([127, 0, 0, 1], 0).into());
    change(&mut config);
    let proxy = HttpProxy::bind(config).expect("bind");
    let address = proxy.local_addr().expect("bound");
    tokio::spawn(proxy.run(dialer.clone(), CancellationToken::new()));
    TcpStream::connect(address).await.expect("connect")
}

/// Reads a response head and nothing behind it.
async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await;
        head.push(byte.unwrap_or_else(|_| panic!("{:?}", String::from_utf8_lossy(&head))));
    }
    String::from_utf8(head).expect("ASCII head")
}

struct Heads(tokio::sync::Mutex<tokio::sync::mpsc::UnboundedReceiver<String>>);

impl Heads {
    async fn recv_async(&self) -> String {
        self.0.lock().await.recv().await.expect("origin runs")
    }
}

/// An origin that answers every 4-byte POST and reports the request heads it saw.
async fn origin() -> (SocketAddr, Heads) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("bound");
    let (seen, heads) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut head = String::new();
                while let Ok(1..) = stream.read_line(&mut head).await {
                    if head.ends_with("\r\n\r\n") {
                        let mut body = [0; 4];
                        stream.read_exact(&mut body).await.expect("body");
                        let _ = seen.send(std::mem::take(&mut head));
                        let answer = b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\
                            Keep-Alive: timeout=5\r\nContent-Length: 2\r\n\r\nok";
                        stream.get_mut().write_all(answer).await.expect("answer");
                    }
                }
            });
        }
    });
    (address, Heads(tokio::sync::Mutex::new(heads)))
}
