//! TCP relay streams of a user who means harm.

use std::{io, time::Duration};

use hy2_core::proto::{codec::DecodeError, tcp::TcpResponse};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

use crate::{
    attacker::{Answer, Attacker, answer},
    honest::origin_echo,
    server::ServerProcess,
    wire,
};

/// Opens a relay stream and returns what the server says to it.
async fn response(attacker: &Attacker, request: &[u8]) -> (bool, String) {
    let (_send, recv) = attacker.open(request).await;
    let Answer::Bytes(bytes) = answer(recv).await else {
        panic!("no answer");
    };
    let (response, _) = TcpResponse::decode(&bytes).expect("an answer");
    (response.ok, response.message.to_owned())
}

/// Waits for the answer to a request that is accepted.
async fn accepted(recv: &mut RecvStream) {
    let mut bytes = Vec::new();
    loop {
        match TcpResponse::decode(&bytes) {
            Ok((response, _)) => return assert!(response.ok, "{}", response.message),
            Err(DecodeError::Incomplete) => {}
            Err(error) => panic!("{error}"),
        }
        let chunk = recv
            .read_chunk(1, true)
            .await
            .expect("readable")
            .expect("an answer");
        bytes.extend_from_slice(&chunk.bytes);
    }
}

/// Opens a relay stream to a target that takes connections.
pub(crate) async fn connected(attacker: &Attacker, target: &str) -> (SendStream, RecvStream) {
    let (send, mut recv) = attacker.open(&wire::relay(target, 0)).await;
    accepted(&mut recv).await;
    (send, recv)
}

/// Reads to the end of `target` and tells how it came.
async fn end_of(target: &mut TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let end = async {
        loop {
            match target.read(&mut buffer).await {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
    };
    timeout(Duration::from_secs(20), end)
        .await
        .expect("the target sees an end")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_reaches_the_target_as_a_reset_and_an_end_as_an_end() {
    let server = ServerProcess::start("").await;
    let attacker = Attacker::let_in(&server).await;
    let origin = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let target = origin.local_addr().expect("an address").to_string();
    // What the client says at last, and whether that is an end. The official client ends a stream
    // by STOP_SENDING with code 0 and the end of its own direction.
    for (code, stop) in [
        (Some(0), false),
        (Some(7), true),
        (None, true),
        (None, false),
    ] {
        let (mut send, mut recv) = connected(&attacker, &target).await;
        let (mut stream, _) = origin.accept().await.expect("a connection");
        send.write_all(b"before").await.expect("written");
        stream.read_exact(&mut [0; 6]).await.expect("it arrives");
        if stop {
            recv.stop(0_u32.into()).expect("stopped");
        }
        match code {
            Some(code) => send.reset(VarInt::from_u32(code)).expect("reset"),
            None => send.finish().expect("finished"),
        }
        let end = end_of(&mut stream).await;
        let is_reset = end.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset);
        assert_eq!(is_reset, code.is_some(), "code {code:?}, stop {stop}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_behind_a_target_that_took_nothing_is_still_a_reset() {
    let server = ServerProcess::start("").await;
    let attacker = Attacker::let_in(&server).await;
    let origin = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let target = origin.local_addr().expect("an address").to_string();
    let (mut send, _recv) = connected(&attacker, &target).await;
    let (mut stream, _) = origin.accept().await.expect("a connection");
    // More than the sockets hold and the server reads ahead: the reader is held back.
    let block = vec![7; 64 << 10];
    let mut written = 0_u64;
    while written < 64 << 20
        && let Ok(block) = timeout(Duration::from_secs(2), send.write(&block)).await
    {
        written += block.expect("the tunnel stands") as u64;
    }
    assert!(written < 64 << 20, "nothing held it back");
    send.reset(VarInt::from_u32(1)).expect("reset");
    // What was read ahead arrives, and then not an end.
    let end = end_of(&mut stream).await;
    assert!(
        end.as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset),
        "{end:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lengths_beyond_the_limits_end_the_stream_without_a_byte() {
    let mut server = ServerProcess::start("").await;
    let attacker = Attacker::let_in(&server).await;
    let giants = [0, 2049, 1 << 14, 1 << 30, 1 << 32, 1 << 61, (1 << 62) - 1];
    for giant in giants {
        let address = wire::varints(&[wire::RELAY, giant]);
        let address = [address, vec![b'a'; 3000]].concat();
        let target = "127.0.0.1:1";
        let padding = wire::varints(&[wire::RELAY, target.len() as u64]);
        let padding = [
            padding,
            target.into(),
            wire::varints(&[giant.max(4097)]),
            vec![b'p'; 5000],
        ]
        .concat();
        for request in [address, padding] {
            let (_send, recv) = attacker.open(&request).await;
            assert_eq!(answer(recv).await, Answer::Bytes(Vec::new()), "{giant}");
        }
    }
    // Not UTF-8.
    let (_send, recv) = attacker
        .open(&[&wire::varints(&[wire::RELAY, 4])[..], b"\xff\xfe:1\x00"].concat())
        .await;
    assert_eq!(answer(recv).await, Answer::Bytes(Vec::new()));
    attacker.page_is_served().await;
    server.is_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_beyond_65535_reach_nobody() {
    let mut server = ServerProcess::start("").await;
    let attacker = Attacker::let_in(&server).await;
    let target = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = u64::from(target.local_addr().expect("bound").port());
    let same = [port + 65_536, port + (1 << 32), port + (1 << 48)];
    let texts = same.map(|port| port.to_string());
    let strange = [
        "", "-1", "+80", "0x50", "99999", "00000080", " 80", "８０", "http",
    ];
    for port in texts.iter().map(String::as_str).chain(strange) {
        for host in ["127.0.0.1", "[::1]", "localhost"] {
            let refused = response(&attacker, &wire::relay(&format!("{host}:{port}"), 0)).await;
            assert_eq!(
                refused,
                (false, "invalid address".to_owned()),
                "{host}:{port}"
            );
        }
    }
    assert!(timeout(Duration::ZERO, target.accept()).await.is_err());
    server.is_well().await;
}

/// Addresses of this host and its networks, in every way of writing them.
pub(crate) const PRIVATE: [&str; 23] = [
    "127.0.0.1",
    "127.1.2.3",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "169.254.169.254",
    "100.100.100.200",
    "168.63.129.16",
    "224.0.0.1",
    "255.255.255.255",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[fe80::1]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[2002:7f00:1::]",
    "[ff02::1]",
    "localhost",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_targets_are_refused_by_default() {
    let mut server = ServerProcess::start("private=deny").await;
    let attacker = Attacker::let_in(&server).await;
    let target = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = target.local_addr().expect("bound").port();
    for host in PRIVATE {
        let refused = response(&attacker, &wire::relay(&format!("{host}:{port}"), 0)).await;
        assert_eq!(refused, (false, "not allowed".to_owned()), "{host}");
    }
    // Numbers that a resolver of the operating system would take for addresses.
    for host in ["2130706433", "0x7f000001", "0177.0.0.1", "127.1"] {
        let (ok, message) = response(&attacker, &wire::relay(&format!("{host}:{port}"), 0)).await;
        assert!(
            !ok && ["not allowed", "name does not resolve"].contains(&&*message),
            "{host}: {message}"
        );
    }
    assert!(timeout(Duration::ZERO, target.accept()).await.is_err());
    server.is_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_does_not_come_is_given_up_after_ten_seconds() {
    let mut server = ServerProcess::start("").await;
    let attacker = Attacker::let_in(&server).await;
    let mut tasks = JoinSet::new();
    let echo = origin_echo(&mut tasks).await;
    let request = wire::relay(&echo, 20);
    let start = std::time::Instant::now();
    let (silent, silent_recv) = attacker.open(&request[..2]).await;
    // Another one comes byte by byte, which buys no time.
    let (mut slow, slow_recv) = attacker.open(&request[..3]).await;
    let dripping = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        for byte in &request[3..] {
            tick.tick().await;
            if slow.write_all(&[*byte]).await.is_err() {
                return true;
            }
        }
        false
    });
    assert_eq!(answer(silent_recv).await, Answer::Bytes(Vec::new()));
    assert_eq!(answer(slow_recv).await, Answer::Bytes(Vec::new()));
    assert!(
        start.elapsed() >= Duration::from_secs(9),
        "{:?}",
        start.elapsed()
    );
    assert!(dripping.await.expect("no panic"), "stopped");
    drop(silent);
    // Other streams of the connection go on.
    connected(&attacker, &echo).await;
    server.is_well().await;
}
