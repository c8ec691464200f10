//! The same bytes from a stranger to the reference server and to ours, and the same reaction.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use futures_util::FutureExt;
use hy2_core::{
    Server,
    authenticator::Password,
    masquerade::NotFound,
    rustls::{self, RootCertStore, pki_types::PrivateKeyDer},
    tls::ServerTls,
};
use quinn::{
    Connection, ConnectionError, Endpoint, ReadError, ReadToEndError, RecvStream, SendStream,
    crypto::rustls::QuicClientConfig,
};

use super::peer;

/// Streams sent to both servers.
const CASES: usize = 400;
/// Requests answered on the same connection before a stream counts as ignored; more on each new try.
const PATIENCE: [usize; 4] = [2, 10, 50, 200];

/// What a server did with a stream.
#[derive(Debug, PartialEq, Eq)]
enum Reaction {
    Closed {
        code: u64,
        text: String,
    },
    Reset {
        code: u64,
    },
    /// The first field, which is the status, and the body.
    Answered {
        status: Vec<u8>,
        body: Vec<u8>,
    },
    Ignored,
}

/// A stream: its direction, its bytes, and whether it ends.
#[derive(Debug, Clone)]
struct Case {
    one_way: bool,
    bytes: Vec<u8>,
    ends: bool,
}

#[tokio::test]
async fn strangers_cannot_tell_our_server_from_the_reference() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let dir = tempfile::tempdir().expect("a directory");
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).expect("written");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("written");
    let text = |path: &std::path::Path| path.to_str().expect("text").to_owned();
    let config = peer::ServerConfig {
        tls_cert: text(&cert),
        tls_key: text(&key),
        events: "none",
        ..peer::ServerConfig::with_password("right")
    };
    let reference = peer::Server::start(&config).await.expect("a server");

    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let tls = ServerTls::from_der(vec![made.cert.der().clone()], key).expect("a pair");
    let ours = Server::builder(tls)
        .listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        .authenticator(Password::new("right"))
        .masquerade(NotFound::new())
        .bind()
        .expect("bound");
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("our certificate");
    let endpoint = endpoint(roots);

    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for number in 0..CASES {
        let case = random.case();
        let mut seen = Vec::new();
        // A server that is slow to react looks like one that does not, so a difference has to last.
        let agreed = async {
            for patience in PATIENCE {
                let theirs = react(&endpoint, reference.addr, &case, patience).await;
                let ours = react(&endpoint, ours.local_addrs()[0], &case, patience).await;
                if ours == theirs {
                    return true;
                }
                seen.push((theirs, ours));
            }
            false
        };
        assert!(
            agreed.await,
            "case {number} {case:02x?}: (reference, ours) = {seen:#?}"
        );
    }
}

fn endpoint(roots: RootCertStore) -> Endpoint {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let mut endpoint =
        Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a socket");
    let tls = QuicClientConfig::try_from(tls).expect("TLS 1.3");
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(tls)));
    endpoint
}

/// Sends a stream on a connection of its own; returns the reaction, and the code with which the server stopped it.
async fn react(
    endpoint: &Endpoint,
    server: SocketAddr,
    case: &Case,
    patience: usize,
) -> (Reaction, Option<u64>) {
    let conn = endpoint
        .connect(server, "localhost")
        .expect("valid")
        .await
        .expect("connected");
    let (mut send, recv) = if case.one_way {
        (conn.open_uni().await.expect("a stream"), None)
    } else {
        let (send, recv) = conn.open_bi().await.expect("a stream");
        (send, Some(recv))
    };
    // A server may have had enough before it has everything.
    let _ = send.write_all(&case.bytes).await;
    if case.ends {
        let _ = send.finish();
    }
    let reaction = tokio::select! {
        biased;
        reaction = answer(&conn, recv) => reaction,
        () = served(&conn, patience) => Reaction::Ignored,
    };
    let stop = stop_code(&send);
    let stop = if case.ends || matches!(reaction, Reaction::Closed { .. }) {
        None
    } else {
        stop
    };
    conn.close(0x100u32.into(), b"");
    (reaction, stop)
}

/// Waits for the end of the other direction, or of the connection.
async fn answer(conn: &Connection, recv: Option<RecvStream>) -> Reaction {
    let closed = |error: ConnectionError| match error {
        ConnectionError::ApplicationClosed(close) => Reaction::Closed {
            code: close.error_code.into_inner(),
            text: String::from_utf8_lossy(&close.reason).into_owned(),
        },
        other => panic!("{other}"),
    };
    let Some(mut recv) = recv else {
        return closed(conn.closed().await);
    };
    match recv.read_to_end(1 << 20).await {
        Ok(bytes) => {
            let (status, body) = take_apart(&bytes);
            Reaction::Answered { status, body }
        }
        Err(ReadToEndError::Read(ReadError::Reset(code))) => Reaction::Reset {
            code: code.into_inner(),
        },
        Err(ReadToEndError::Read(ReadError::ConnectionLost(error))) => closed(error),
        Err(other) => panic!("{other}"),
    }
}

/// Asks for the site again and again, each time waiting for the answer; does not return on a closed connection.
async fn served(conn: &Connection, times: usize) {
    for _ in 0..times {
        let asked = async {
            let (mut send, mut recv) = conn.open_bi().await.ok()?;
            send.write_all(&request("GET", "localhost", "/", &[]))
                .await
                .ok()?;
            send.finish().ok()?;
            recv.read_to_end(1 << 16).await.ok()
        };
        if asked.await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

fn stop_code(send: &SendStream) -> Option<u64> {
    send.stopped()
        .now_or_never()?
        .ok()?
        .map(quinn::VarInt::into_inner)
}

/// Returns the first field of an answer and its DATA.
fn take_apart(mut bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut status, mut body) = (Vec::new(), Vec::new());
    while let [kind, rest @ ..] = bytes {
        let (length, rest) = match rest {
            [first @ 0..=0x3f, rest @ ..] => (usize::from(*first), rest),
            [first @ 0x40..=0x7f, second, rest @ ..] => (
                usize::from(u16::from_be_bytes([first & 0x3f, *second])),
                rest,
            ),
            other => panic!("{other:02x?}"),
        };
        match kind {
            0 => body.extend_from_slice(&rest[..length]),
            // Behind the prefix of the section: an index, or a name's index and three digits.
            _ if rest[2] & 0x80 != 0 => status = rest[2..3].to_vec(),
            _ => status = rest[2..length.min(8)].to_vec(),
        }
        bytes = &rest[length..];
    }
    (status, body)
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a short payload");
    [&[kind][..], &(0x4000 | length).to_be_bytes(), payload].concat()
}

/// Encodes fields as literals, without table and Huffman code.
fn headers(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut section = vec![0, 0];
    for (name, value) in fields {
        let length = |text: &str| u8::try_from(text.len()).expect("a short text");
        match length(name) {
            length @ 0..7 => section.push(0x20 | length),
            length => section.extend_from_slice(&[0x27, length - 7]),
        }
        section.extend_from_slice(name.as_bytes());
        section.push(length(value));
        section.extend_from_slice(value.as_bytes());
    }
    frame(1, &section)
}

fn request(method: &str, authority: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut fields = vec![
        (":method", method),
        (":scheme", "https"),
        (":authority", authority),
        (":path", path),
    ];
    fields.extend_from_slice(more);
    headers(&fields)
}

/// Xorshift: the cases are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).expect("53 bits") % limit
    }

    fn pick<T: Copy>(&mut self, options: &[T]) -> T {
        options[self.below(options.len())]
    }

    fn bytes(&mut self) -> Vec<u8> {
        (0..self.below(12))
            .map(|_| self.pick(&[0, 1, 4, 6, 0x21, 0x3f, 0x40, 0x7f, 0x80, 0xc0, 0xd1, 0xff]))
            .collect()
    }

    fn case(&mut self) -> Case {
        let one_way = self.below(4) == 0;
        let mut bytes = Vec::new();
        if one_way {
            bytes.push(self.pick(&[0, 0, 0, 1, 2, 3, 0x21, 0x40]));
        }
        for _ in 0..=self.below(4) {
            bytes.extend(self.piece());
        }
        if self.below(5) == 0 {
            bytes.truncate(1 + self.below(bytes.len()));
        }
        Case {
            one_way,
            bytes,
            ends: self.below(2) == 0,
        }
    }

    fn piece(&mut self) -> Vec<u8> {
        let random = self.bytes();
        match self.below(20) {
            0 => frame(0, &random),
            1 => frame(1, &random),
            2 => frame(1, &[&[0, 0][..], &random].concat()),
            3 => frame(self.pick(&[2, 6, 8, 9]), b""),
            4 => frame(self.pick(&[3, 5, 0x0d, 0x21]), &random),
            5 => frame(4, &random),
            6 => frame(4, &[6, 1]),
            7 => frame(4, &[8, self.pick(&[0, 1, 2])]),
            8 => frame(7, &[0]),
            9 => frame(7, &random),
            // A relay stream's type, in each of its encodings, with and without a request behind it.
            10 => [
                self.pick(&[
                    &[0x44, 0x01][..],
                    &[0x80, 0, 4, 1],
                    &[0xc0, 0, 0, 0, 0, 0, 4, 1],
                ]),
                &random,
            ]
            .concat(),
            11 => b"\x44\x01\x0e127.0.0.1:8080\x00".to_vec(),
            12 => random,
            13 => request("GET", "localhost", "/", &[]),
            14 => request("POST", "hysteria", "/auth", &[("hysteria-auth", "wrong")]),
            15 => request(
                "GET",
                "localhost",
                "/",
                &[(
                    self.pick(&[":path", ":method", ":status", "Upper", "te"]),
                    "x",
                )],
            ),
            16 => {
                let path = self.pick(&[
                    "/",
                    "",
                    "x",
                    "*",
                    "/%zz",
                    "/a b",
                    "http://b/x",
                    "//x",
                    "/?%zz",
                    "?a",
                    "/a#b",
                ]);
                request(
                    self.pick(&["GET", "get", "G T", "CONNECT", ""]),
                    self.pick(&["a", "", "a b", "a:80"]),
                    path,
                    &[],
                )
            }
            17 => {
                let name = self.pick(&[
                    "x",
                    "connection",
                    "content-length",
                    "",
                    " ",
                    "cookie",
                    ":protocol",
                    "host",
                ]);
                let value = self.pick(&["", "0", "-1", "5", "a\tb", "a\nb", " x "]);
                request("GET", "localhost", "/", &[(name, value)])
            }
            18 => headers(&[("x", "y")]),
            _ => request("HEAD", "localhost", "/missing", &[]),
        }
    }
}
