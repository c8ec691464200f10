//! Datagrams that mean nothing, of every length.

use std::time::Duration;

use tokio::{net::UdpSocket, time::timeout};

use crate::{
    attacker::Attacker,
    honest::Honest,
    server::{OBFUSCATION_KEY, ServerProcess, alone},
};

/// Longest datagram tried.
const LONGEST: usize = 1500;

/// An answer to the shortest packet that an unknown version may be negotiated for (RFC 9000,
/// section 6.1) is ordinary behaviour.
const NEGOTIATED_FROM: usize = 1200;

/// Sends garbage of every length, with each of some first bytes, and returns what came back.
async fn answers_to_garbage(server: &ServerProcess, first: Option<u8>) -> Vec<(usize, Vec<u8>)> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    socket.connect(server.address).await.expect("connected");
    let mut answers = Vec::new();
    let mut buffer = [0; 2048];
    for len in 0..=LONGEST {
        let mut garbage: Vec<u8> = (0..len).map(|_| rand::random()).collect();
        if let (Some(first), Some(byte)) = (first, garbage.first_mut()) {
            *byte = first;
        }
        socket.send(&garbage).await.expect("sent");
        while let Ok(count) = socket.try_recv(&mut buffer) {
            answers.push((len, buffer[..count].to_vec()));
        }
        if len % 50 == 49 {
            // Not to overrun the server's socket, so that every length is looked at.
            tokio::task::yield_now().await;
        }
    }
    // The server has seen it all when it has served somebody else; what it says comes before.
    drop(
        hy2_core::Client::connect(server.client_config(crate::server::HONEST))
            .await
            .expect("let in"),
    );
    while let Ok(Ok(count)) = timeout(Duration::from_millis(50), socket.recv(&mut buffer)).await {
        answers.push((LONGEST, buffer[..count].to_vec()));
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_without_obfuscation_is_met_with_silence() {
    let _alone = alone().await;
    let mut server = ServerProcess::start("").await;
    let honest = Honest::start(&server).await;
    // A short header with an unknown connection identifier.
    for first in [0x40, 0x00, 0x7f] {
        let answers = answers_to_garbage(&server, Some(first)).await;
        assert!(answers.is_empty(), "{first:#x}: {answers:02x?}");
    }
    // Anything, and long headers of versions that do not exist.
    for first in [None, Some(0xc0), Some(0xff)] {
        for (len, answer) in answers_to_garbage(&server, first).await {
            // Version Negotiation: a long header with version 0.
            assert!(
                len >= NEGOTIATED_FROM,
                "{len} bytes answered by {answer:02x?}"
            );
            assert!(
                answer[0] & 0x80 != 0 && answer[1..5] == [0; 4],
                "{answer:02x?}"
            );
        }
    }
    honest.survived("garbage").await;
    let figures = server.is_well().await;
    assert!(figures.get("connections") <= 3, "{figures:?}");
}

/// Long headers of the version that is spoken: Initial, 0-RTT, Handshake and Retry packets that
/// nobody can decrypt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_that_cannot_be_decrypted_are_met_with_silence() {
    let mut server = ServerProcess::start("").await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    socket.connect(server.address).await.expect("connected");
    let mut sent = 0;
    for kind in [0xc0, 0xd0, 0xe0, 0xf0] {
        for len in (0..=LONGEST).step_by(7).chain(1190..1210) {
            let mut packet: Vec<u8> = (0..len).map(|_| rand::random()).collect();
            // Type, version 1, identifiers of 8 and 0 bytes, no token, a length of two bytes.
            let head = [
                kind, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0x44, 0x00,
            ];
            let fits = head.len().min(len);
            packet[..fits].copy_from_slice(&head[..fits]);
            socket.send(&packet).await.expect("sent");
            sent += 1;
            if sent % 50 == 0 {
                server.figures().await;
            }
        }
    }
    server.is_well().await;
    let mut buffer = [0; 2048];
    let answer = timeout(Duration::from_millis(50), socket.recv(&mut buffer)).await;
    assert!(answer.is_err(), "{answer:?}");
    server
        .until("quiet", |figures| figures.get("connections") == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_under_obfuscation_is_met_with_silence() {
    for name in ["salamander", "gecko"] {
        let mut server = ServerProcess::start(&format!("obfs={name}")).await;
        let honest = Honest::start(&server).await;
        for first in [None, Some(0xc0), Some(0x40)] {
            let answers = answers_to_garbage(&server, first).await;
            assert!(answers.is_empty(), "{name}: {answers:02x?}");
        }
        honest.survived(name).await;
        server.is_well().await;
    }
}

/// Garbage that is obfuscated with the right key reaches QUIC, of every length.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_behind_the_right_key_is_harmless() {
    use hy2_core::proto::salamander::Salamander;
    let mut server = ServerProcess::start("obfs=salamander").await;
    let key = Salamander::new(OBFUSCATION_KEY.as_bytes()).expect("a key");
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    socket.connect(server.address).await.expect("connected");
    for len in 0..=LONGEST - 8 {
        let garbage: Vec<u8> = (0..len).map(|_| rand::random()).collect();
        let mut packet = vec![0; len + 8];
        key.obfuscate(rand::random(), &garbage, &mut packet)
            .expect("room");
        socket.send(&packet).await.expect("sent");
        if len % 50 == 49 {
            server.figures().await;
        }
    }
    server.is_well().await;
}

/// Who does not know the key cannot even shake hands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_without_the_key_times_out() {
    let mut server = ServerProcess::start("obfs=salamander").await;
    let mut transport = crate::attacker::transport();
    transport.max_idle_timeout(Some(Duration::from_secs(2).try_into().expect("in range")));
    let refused = Attacker::try_connect(&server, transport)
        .await
        .expect_err("silence");
    assert!(
        matches!(refused, quinn::ConnectionError::TimedOut),
        "{refused:?}"
    );
    server.is_well().await;
}
