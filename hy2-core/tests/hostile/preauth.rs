//! What belongs to users only, from peers that nobody let in.

use std::time::Duration;

use tokio::task::JoinSet;

use crate::{
    attacker::{Answer, Attacker, answer},
    forge::{MAX_RAW, inject},
    full,
    honest::{Honest, origin_echo},
    say,
    server::{Figures, ServerProcess, alone, mib},
    wire,
};

/// Type of a STREAM frame with offset and length.
const STREAM_AT: u64 = 0x0e;

/// What one peer that is not let in may cost.
const PER_PEER: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relay_streams_before_authentication_meet_an_ordinary_web_server() {
    let mut server = ServerProcess::start("").await;
    let mut tasks = JoinSet::new();
    let echo = origin_echo(&mut tasks).await;
    let whole = wire::relay(&echo, 64);

    // As HTTP/3 it is an unknown frame that never ends here: silence.
    let attacker = Attacker::connect(&server).await;
    let (_send, mut recv) = attacker.open(&whole).await;
    attacker.page_is_served().await;
    let early = tokio::select! {
        biased;
        read = recv.read_chunk(1, true) => Some(read),
        () = attacker.page_is_served() => None,
    };
    assert!(early.is_none(), "{early:?}");

    // Cut short at every place: the end of the stream ends a request that was none.
    for cut in 0..whole.len().min(40) {
        let (mut send, recv) = attacker.open(&whole[..cut]).await;
        send.finish().expect("open");
        assert_eq!(answer(recv).await, Answer::Reset(0x10d), "cut at {cut}");
    }

    // Complete as an unknown frame, and followed by DATA: the connection ends as any web server
    // of this kind ends it.
    let skipped = wire::frame(wire::RELAY, b"127.0.0.1:1");
    let (_send, _recv) = attacker
        .open(&[skipped, wire::frame(wire::DATA, b"x")].concat())
        .await;
    assert_eq!(attacker.closed().await, 0x105);

    // Nothing was dialled.
    let figures = server.is_well().await;
    assert_eq!(figures.get("streams"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_before_authentication_are_dropped_and_not_kept() {
    let _alone = alone().await;
    let mut server = ServerProcess::start("").await;
    let before = server.warmed_up().await;
    let honest = Honest::start(&server).await;
    let peers = if full() { 64 } else { 24 };
    let target = tokio::net::UdpSocket::bind("127.0.0.1:0")
        .await
        .expect("bind");
    let address = target.local_addr().expect("bound").to_string();
    let mut attackers = Vec::new();
    for peer in 0..peers {
        let attacker = Attacker::connect(&server).await;
        for index in 0..2000u32 {
            let payload = wire::udp(index, 0, (0, 1), &address, &[peer as u8; 1000]);
            attacker
                .conn
                .send_datagram_wait(payload.into())
                .await
                .expect("connected");
        }
        attacker.page_is_served().await;
        attackers.push(attacker);
    }
    let now = server.is_well().await;
    let each = now.since(&before).each(peers);
    say(format_args!(
        "datagrams before authentication, per peer: {each}"
    ));
    assert_eq!(now.get("sessions"), 0);
    // None went out.
    assert!(target.try_recv(&mut [0; 2000]).is_err());
    assert!(each.held < PER_PEER, "{each}");
    honest.survived("datagrams before authentication").await;
    drop(attackers);
    server.recovers(&before).await;
}

/// Bytes of a stream come one by one, each in a packet of its own, so that a byte pins a packet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_bytes_in_large_packets_cost_what_a_peer_may_cost() {
    let _alone = alone().await;
    let mut server = ServerProcess::start("").await;
    let before = server.warmed_up().await;
    let (peers, bytes) = if full() { (16, 300) } else { (4, 20) };
    let mut attackers = Vec::new();
    let mut most = 0;
    for _ in 0..peers {
        let idle = server.figures().await;
        let attacker = Attacker::connect(&server).await;
        // Byte 0 of all streams is missing, so nothing is ever read; of the rest, every other byte.
        for stream in (0..100u64).flat_map(|index| [index * 4, index * 4 + 2]) {
            if stream % 40 == 2 {
                most = most.max(held(&mut server, &idle).await);
            }
            for index in 0..bytes {
                let mut frame = wire::varints(&[STREAM_AT, stream, 1 + 2 * index, 1]);
                frame.push(0x55);
                frame.resize(MAX_RAW, 0);
                inject(&attacker.conn, &frame).await;
            }
        }
        attackers.push(attacker);
    }
    // Whoever goes on like this is put out.
    for attacker in &attackers {
        assert_eq!(attacker.closed().await, 0x107);
    }
    say(format_args!(
        "single bytes in large packets: at most {:.2} MiB of one peer",
        mib(most)
    ));
    assert!(most < PER_PEER, "{most}");
    server.is_well().await;
    drop(attackers);
    server.recovers(&before).await;
}

/// What one peer has the server hold, without what only waits for its turn while the machine is busy.
async fn held(server: &mut ServerProcess, idle: &Figures) -> u64 {
    let mut least = u64::MAX;
    for _ in 0..20 {
        least = least.min(server.figures().await.since(idle).held);
        if least < PER_PEER {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    least
}

/// A visitor of the site who stays is no attacker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_may_ask_often() {
    let mut server = ServerProcess::start("").await;
    let stranger = Attacker::connect(&server).await;
    for _ in 0..1500 {
        let page = stranger.ask(&wire::get("/robots.txt")).await;
        assert!(matches!(page, Answer::Bytes(bytes) if !bytes.is_empty()));
    }
    assert_eq!(stranger.conn.close_reason(), None);
    server.is_well().await;
}

/// What an attack leaves behind, an allocator uses for the next one; so memory rises once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_does_not_rise_attack_by_attack() {
    let _alone = alone().await;
    let mut server = ServerProcess::start("").await;
    let before = server.warmed_up().await;
    let mut after = Vec::new();
    let waves = if full() { 12 } else { 4 };
    for _ in 0..waves {
        let mut attackers = Vec::new();
        for peer in 0..40u8 {
            let attacker = match peer % 4 {
                0 => Attacker::let_in(&server).await,
                _ => Attacker::connect(&server).await,
            };
            let section = [wire::varints(&[wire::HEADERS, 60_000]), vec![0; 9_000]].concat();
            for index in 0..20u32 {
                let _ = attacker.open(&section).await;
                let message = wire::udp(index, 1, (0, 9), "192.0.2.1:9", &[peer; 1000]);
                attacker
                    .conn
                    .send_datagram_wait(message.into())
                    .await
                    .expect("connected");
            }
            attacker.page_may_be_served().await;
            attackers.push(attacker);
        }
        drop(attackers);
        server.recovers(&before).await;
        after.push(server.warmed_up().await.rss());
    }
    let shown: Vec<_> = after
        .iter()
        .map(|rss| format!("{:.1}", mib(*rss)))
        .collect();
    say(format_args!(
        "MiB resident after each wave: {}",
        shown.join(", ")
    ));
    // Resident size goes up and down by what the allocator keeps; what rises wave by wave leaves
    // the range of the first half behind.
    let (early, late) = after.split_at(waves / 2);
    let highest = early.iter().max().expect("waves");
    assert!(
        late.iter().any(|rss| *rss < highest + highest / 10),
        "{after:?}"
    );
    server.is_well().await;
}
