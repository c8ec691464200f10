//! UDP sessions of a user who means harm.

use std::time::Duration;

use hy2_core::proto::udp::UdpMessage;
use tokio::{net::UdpSocket, time::timeout};

use crate::{
    attacker::{Attacker, transport},
    forge::Forge,
    full,
    honest::Honest,
    relay::PRIVATE,
    say,
    server::{ServerProcess, alone},
    wire,
};

/// UDP sessions that one connection may hold.
const SESSIONS: u32 = 1024;

/// A target; `seen` waits for the next datagram that reaches it.
struct Target {
    socket: UdpSocket,
    port: u16,
}

impl Target {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let port = socket.local_addr().expect("bound").port();
        Self { socket, port }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    async fn seen(&self) -> Vec<u8> {
        let mut buffer = vec![0; 65_536];
        let (count, from) = timeout(Duration::from_secs(10), self.socket.recv_from(&mut buffer))
            .await
            .expect("in time")
            .expect("readable");
        buffer.truncate(count);
        // Echoed, for those who look at the way back.
        let _ = self.socket.send_to(&buffer, from).await;
        buffer
    }

    fn is_untouched(&self) {
        assert!(self.socket.try_recv(&mut [0; 65_536]).is_err());
    }
}

async fn send(attacker: &Attacker, message: Vec<u8>) {
    attacker
        .conn
        .send_datagram_wait(message.into())
        .await
        .expect("connected");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn udp_acl_second_destination() {
    // One range is allowed, as an administrator may; the session opens with it.
    let mut server = ServerProcess::start("private=127.0.0.1/32").await;
    let attacker = Attacker::let_in(&server).await;
    let allowed = Target::start().await;
    let forbidden = UdpSocket::bind(("127.0.0.2", 0)).await.expect("bind");
    let port = forbidden.local_addr().expect("bound").port();
    send(
        &attacker,
        wire::udp(7, 0, (0, 1), &allowed.address(), b"first"),
    )
    .await;
    assert_eq!(allowed.seen().await, b"first");
    let ways = [
        format!("127.0.0.2:{port}"),
        format!("[::ffff:127.0.0.2]:{port}"),
        format!("[::ffff:7f00:2]:{port}"),
    ];
    for round in 0..3 {
        for way in &ways {
            send(&attacker, wire::udp(7, 0, (0, 1), way, b"second")).await;
            // As a fragmented message too, with the allowed address in front.
            send(
                &attacker,
                wire::udp(7, 900 + round, (0, 2), &allowed.address(), b"sec"),
            )
            .await;
            send(&attacker, wire::udp(7, 900 + round, (1, 2), way, b"ond")).await;
        }
        send(
            &attacker,
            wire::udp(7, 0, (0, 1), &allowed.address(), b"third"),
        )
        .await;
        // In order behind the others: they have been judged.
        assert_eq!(allowed.seen().await, b"third");
    }
    assert!(forbidden.try_recv(&mut [0; 100]).is_err());
    server.is_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_destinations_are_refused_for_every_datagram() {
    let mut server = ServerProcess::start("private=127.0.0.1/32").await;
    let attacker = Attacker::let_in(&server).await;
    let allowed = Target::start().await;
    let other = UdpSocket::bind(("127.0.0.2", allowed.port))
        .await
        .expect("bind");
    for (session, host) in PRIVATE.into_iter().enumerate() {
        if [
            "127.0.0.1",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "localhost",
        ]
        .contains(&host)
        {
            continue;
        }
        let address = format!("{host}:{}", allowed.port);
        send(
            &attacker,
            wire::udp(session as u32, 0, (0, 1), &address, b"refused"),
        )
        .await;
        send(&attacker, wire::udp(1000, 0, (0, 1), &address, b"refused")).await;
    }
    send(
        &attacker,
        wire::udp(1000, 0, (0, 1), &allowed.address(), b"last"),
    )
    .await;
    assert_eq!(allowed.seen().await, b"last");
    allowed.is_untouched();
    assert!(other.try_recv(&mut [0; 100]).is_err());
    server.is_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_messages_are_ignored() {
    let mut server = ServerProcess::start("").await;
    let attacker = Attacker::let_in(&server).await;
    let target = Target::start().await;
    let good = target.address();
    for len in [
        0,
        63,
        2049,
        1 << 14,
        1 << 30,
        1 << 32,
        1 << 61,
        (1 << 62) - 1,
    ] {
        send(
            &attacker,
            wire::udp_claiming(1, 0, (0, 1), len, &good, b"x"),
        )
        .await;
    }
    let whole = wire::udp(1, 0, (0, 1), &good, b"x");
    for cut in 0..whole.len() {
        send(&attacker, whole[..cut].to_vec()).await;
    }
    for port in [
        u64::from(target.port) + 65_536,
        u64::from(target.port) + (1 << 32),
        99_999,
    ] {
        send(
            &attacker,
            wire::udp(1, 0, (0, 1), &format!("127.0.0.1:{port}"), b"x"),
        )
        .await;
    }
    for (index, count) in [(0, 0), (1, 1), (255, 255), (5, 3), (255, 2)] {
        send(
            &attacker,
            wire::udp(2, 9, (index, count), "127.0.0.1:99999", b"x"),
        )
        .await;
    }
    send(&attacker, wire::udp(3, 0, (0, 1), &good, b"good")).await;
    assert_eq!(target.seen().await, b"good");
    target.is_untouched();
    server.is_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_beyond_the_limit_are_not_opened() {
    let _alone = alone().await;
    let mut server = ServerProcess::start("").await;
    let before = server.warmed_up().await;
    let attacker = Attacker::let_in(&server).await;
    let target = Target::start().await;
    for session in 0..SESSIONS {
        send(
            &attacker,
            wire::udp(session, 0, (0, 1), &target.address(), b"hello"),
        )
        .await;
        target.seen().await;
    }
    for session in SESSIONS..SESSIONS + 100 {
        send(
            &attacker,
            wire::udp(session, 0, (0, 1), &target.address(), b"too many"),
        )
        .await;
    }
    send(
        &attacker,
        wire::udp(0, 0, (0, 1), &target.address(), b"known"),
    )
    .await;
    assert_eq!(target.seen().await, b"known");
    let now = server.is_well().await;
    assert_eq!(now.get("sessions"), u64::from(SESSIONS));
    assert_eq!(now.get("hy2_udp_sessions_refused_total"), 100);
    let grown = now.since(&before);
    say(format_args!("1,024 UDP sessions: {grown}"));
    assert!(grown.held < 64 << 20, "{grown}");
    attacker.conn.close(0x100u32.into(), b"");
    server.until("over", |now| now.get("sessions") == 0).await;
    server.recovers(&before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fragments_that_never_become_a_message_are_not_piled_up() {
    let _alone = alone().await;
    let mut server = ServerProcess::start("").await;
    let before = server.warmed_up().await;
    let honest = Honest::start(&server).await;
    let attacker = Attacker::let_in(&server).await;
    let target = Target::start().await;
    let rounds = if full() { 100 } else { 4 };
    let mut most = before.clone();
    for round in 0..rounds {
        for session in 0..SESSIONS {
            // The largest that fits, of the largest count, never complete.
            let index = (round % 200) as u8;
            send(
                &attacker,
                wire::udp(session, 1, (index, 255), &target.address(), &[1; 1100]),
            )
            .await;
        }
        attacker.page_is_served().await;
        let now = server.figures().await;
        if now.since(&before).held > most.since(&before).held {
            most = now;
        }
    }
    let grown = most.since(&before);
    say(format_args!("fragments in 1,024 sessions: {grown}"));
    // One MiB of fragments, and the sessions themselves.
    assert!(grown.held < 32 << 20, "{grown}");
    target.is_untouched();
    honest.survived("fragment bombs").await;
    server.is_well().await;
    attacker.conn.close(0x100u32.into(), b"");
    server.recovers(&before).await;
}

/// Datagrams to names that do not resolve at once wait; what waits is bounded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_names_is_bounded() {
    let _alone = alone().await;
    let mut server = ServerProcess::start("").await;
    let before = server.warmed_up().await;
    let attacker = Attacker::let_in(&server).await;
    for session in 0..SESSIONS {
        for packet in 0..if full() { 32 } else { 8 } {
            // 40,000 bytes each, put together from fragments.
            for index in 0..40 {
                let message = wire::udp(session, packet, (index, 40), "slow.invalid:9", &[2; 1000]);
                send(&attacker, message).await;
            }
        }
        if session == 200 && !full() {
            break;
        }
    }
    attacker.page_is_served().await;
    let now = server.is_well().await;
    let grown = now.since(&before);
    say(format_args!("datagrams that wait for names: {grown}"));
    assert!(grown.held < 32 << 20, "{grown}");
    attacker.conn.close(0x100u32.into(), b"");
    server.recovers(&before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tiny_datagram_size_costs_the_peer_its_answers_only() {
    let mut server = ServerProcess::start("").await;
    let target = Target::start().await;
    let address = target.address();
    let header = wire::udp(1, 0, (0, 1), &address, b"").len() as u64;
    for limit in (0..=100).chain([150, 300]) {
        let forge = Forge::with_datagram_limit(limit);
        let attacker = Attacker::let_in_forged(&server, transport(), forge).await;
        for size in [1, 30, 400, 1000] {
            send(&attacker, wire::udp(1, 0, (0, 1), &address, &vec![3; size])).await;
            assert_eq!(target.seen().await.len(), size, "limit {limit}");
        }
        // Answers come whole, in parts or not at all; the server goes on with this connection.
        attacker.page_is_served().await;
        assert_eq!(attacker.conn.close_reason(), None, "limit {limit}");
        // Those of one byte have room, or would need more fragments than can be numbered.
        if limit >= header + 20 {
            let answer = timeout(Duration::from_secs(5), attacker.conn.read_datagram()).await;
            let answer = answer.expect("in time").expect("connected");
            assert!(UdpMessage::decode(&answer).is_ok());
            assert!(answer.len() as u64 <= limit);
        }
    }
    server.is_well().await;
}
