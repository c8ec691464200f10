//! Very many handshakes, streams and resets.

use std::{
    net::UdpSocket,
    sync::Arc,
    time::{Duration, Instant},
};

use quinn_proto::{ClientConfig, Endpoint, EndpointConfig};

use crate::{
    attacker::{Answer, Attacker, client_config, transport},
    forge::{Forge, MAX_RAW, inject},
    full,
    honest::{Honest, origin_echo},
    say,
    server::{ServerProcess, alone},
    wire,
};

/// What all peers together that are not let in may cost.
const ALL_PEERS: u64 = 256 << 20;

/// Sends the first flight of a client that never answers, from a port of its own.
fn half_open(config: &ClientConfig, server: &ServerProcess) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let mut endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None);
    let now = Instant::now();
    let (_, mut connection) = endpoint
        .connect(now, config.clone(), server.address, "localhost")
        .expect("valid");
    let mut packets = Vec::new();
    while let Some(transmit) = connection.poll_transmit(now, 1, &mut packets) {
        socket
            .send_to(&packets[..transmit.size], server.address)
            .expect("sent");
        packets.clear();
    }
    socket
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_connections_leave_room_for_users() {
    let _alone = alone().await;
    let mut server = ServerProcess::start("").await;
    let before = server.warmed_up().await;
    let mut honest = Honest::start(&server).await;
    let count: usize = if full() { 10_000 } else { 1_000 };
    say(format_args!("{count} half-open connections"));
    let config = client_config(&server, &Arc::new(Forge::default()), transport());
    // The sockets stay, so that their ports are all different and answers are not refused.
    let mut sockets = Vec::new();
    let mut most = before.clone();
    // 2,000 a second, which leaves this machine's cores to the others.
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    for index in 0..count {
        if index % 20 == 0 {
            tick.tick().await;
        }
        sockets.push(half_open(&config, &server));
        if index % 250 == 249 {
            let now = server.figures().await;
            if now.since(&before).held > most.since(&before).held {
                most = now;
            }
            honest.goes_on(0.01).await;
        }
    }
    let grown = most.since(&before);
    say(format_args!(
        "at most {grown} more than before, with {} connections",
        most.get("connections")
    ));
    // From 1,000 on, or 500 in a second, an address must be proven first, which these never do.
    assert!(most.get("connections") <= 1_001, "{most:?}");
    assert!(grown.held < ALL_PEERS, "{grown}");
    // A user gets in meanwhile, by proving the address.
    server.is_well().await;
    honest.survived("half-open connections").await;
    drop(sockets);
    // A thousand connections at once leave 0.5 to 1.4 MiB of tables and queues, and the next
    // thousand use them again: eight rounds left the same.
    server.recovers_but_for(2 << 20, &before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_resets_ends_its_connection_only() {
    let _alone = alone().await;
    let mut server = ServerProcess::start("").await;
    let before = server.warmed_up().await;
    let honest = Honest::start(&server).await;
    let mut tasks = tokio::task::JoinSet::new();
    let echo = origin_echo(&mut tasks).await;
    // Given up before the frame type, before the target, and with the target asked for.
    let request = wire::relay(&echo, 0);
    for (what, first) in [
        ("bare", &[][..]),
        ("partial", &request[..6]),
        ("whole", &request),
    ] {
        let attacker = Attacker::let_in(&server).await;
        let start = Instant::now();
        let mut streams = 0;
        while attacker.conn.close_reason().is_none() {
            let Ok((mut send, mut recv)) = attacker.conn.open_bi().await else {
                break;
            };
            if !first.is_empty() && send.write_all(first).await.is_err() {
                break;
            }
            let _ = send.reset(0u32.into());
            let _ = recv.stop(0u32.into());
            streams += 1;
            assert!(streams < 100_000, "{what}: never closed");
        }
        assert_eq!(attacker.closed().await, 0x107, "{what}");
        say(format_args!(
            "{what}: closed after {streams} resets in {:.2} s",
            start.elapsed().as_secs_f64()
        ));
    }
    honest.survived("reset flood").await;
    server.is_well().await;
    server.recovers(&before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_closes_its_streams_in_order_is_not_a_flood() {
    let mut server = ServerProcess::start("").await;
    let mut tasks = tokio::task::JoinSet::new();
    let echo = origin_echo(&mut tasks).await;
    let user = Attacker::let_in(&server).await;
    for _ in 0..600 {
        // As the reference's client closes a stream: STOP_SENDING and FIN.
        let (mut send, mut recv) = user.open(&wire::relay(&echo, 0)).await;
        let mut answer = [0];
        recv.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(answer, [0]);
        let _ = recv.stop(0u32.into());
        send.finish().expect("open");
    }
    assert_eq!(user.conn.close_reason(), None);
    server.is_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_beyond_the_limit_wait() {
    let mut server = ServerProcess::start("streams=120").await;
    let mut tasks = tokio::task::JoinSet::new();
    let echo = origin_echo(&mut tasks).await;
    let attacker = Attacker::let_in(&server).await;
    let request = wire::relay(&echo, 0);
    let mut streams = Vec::new();
    for _ in 0..120 {
        let (send, mut recv) = attacker.open(&request).await;
        let mut answer = [9];
        recv.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(answer, [0]);
        streams.push((send, recv));
    }
    let beyond = attacker.conn.open_bi();
    tokio::pin!(beyond);
    let figures = tokio::select! {
        biased;
        _ = &mut beyond => panic!("one more than allowed"),
        figures = server.figures() => figures,
    };
    assert_eq!(figures.get("streams"), 120);
    // And a client that does not wait is in the wrong.
    let mut frame = wire::varints(&[0x0e, 4 * 4000, 0, request.len() as u64]);
    frame.extend(&request);
    inject(&attacker.conn, &frame).await;
    // STREAM_LIMIT_ERROR.
    assert_eq!(attacker.closed().await, 0x04);
    server.is_well().await;
}

/// Frames that make other stacks keep state or panic (security advisories of the last years).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_control_frames_cost_little() {
    let _alone = alone().await;
    let mut server = ServerProcess::start("").await;
    let before = server.warmed_up().await;
    let honest = Honest::start(&server).await;
    let token = [7; 16];
    let cases: Vec<(&str, Vec<u8>)> = vec![
        (
            "PATH_CHALLENGE",
            [&[0x1a][..], &[1; 8]].concat().repeat(MAX_RAW / 9),
        ),
        (
            "unsolicited PATH_RESPONSE",
            [&[0x1b][..], &[1; 8]].concat().repeat(MAX_RAW / 9),
        ),
        ("PING", vec![0x01; MAX_RAW]),
        (
            "MAX_DATA",
            wire::varints(&[0x10, (1 << 62) - 1]).repeat(MAX_RAW / 9),
        ),
        (
            "CRYPTO far ahead",
            [wire::varints(&[0x06, 1 << 20, 4]), vec![0; 4]].concat(),
        ),
        (
            "NEW_CONNECTION_ID",
            (0..40u64)
                .flat_map(|n| {
                    [
                        wire::varints(&[0x18, 100 + n, 100 + n, 8]),
                        vec![n as u8; 8],
                        token.to_vec(),
                    ]
                    .concat()
                })
                .take(MAX_RAW / 30 * 30)
                .collect(),
        ),
        ("RETIRE_CONNECTION_ID", wire::varints(&[0x19, 4000])),
        (
            "STREAM at the end of all offsets",
            [wire::varints(&[0x0e, 0, (1 << 62) - 1, 1]), vec![0]].concat(),
        ),
        ("HANDSHAKE_DONE from a client", vec![0x1e]),
        ("an unknown frame", wire::varints(&[0x3f42])),
        (
            "an ACK of what was never sent",
            wire::varints(&[0x02, 1 << 40, 0, 0, 0]),
        ),
    ];
    for (what, frames) in cases {
        for logged_in in [false, true] {
            let attacker = match logged_in {
                true => Attacker::let_in(&server).await,
                false => Attacker::connect(&server).await,
            };
            let rounds = if full() { 20_000 } else { 500 };
            for _ in 0..rounds {
                if attacker.conn.close_reason().is_some() {
                    break;
                }
                inject(&attacker.conn, &frames).await;
            }
            // Answered or closed, but not silent for good.
            if let Answer::Bytes(page) = attacker.ask_or_lose(&wire::get("/")).await {
                assert!(!page.is_empty(), "{what}");
            }
        }
    }
    let now = server.is_well().await;
    let grown = now.since(&before);
    say(format_args!("control frames: {grown}"));
    assert!(grown.held < 48 << 20, "{grown}");
    honest.survived("control frames").await;
    server.recovers(&before).await;
}
