//! Requests that never end, from peers that nobody let in.

use bytes::Bytes;

use crate::{
    attacker::{Answer, Attacker, answer, stop_code},
    full,
    honest::Honest,
    say,
    server::{ServerProcess, alone},
    wire,
};

/// What one peer that is not let in may cost.
const PER_PEER: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_field_section_of_a_tebibyte_is_refused_by_its_length() {
    let _alone = alone().await;
    let mut server = ServerProcess::start("").await;
    let before = server.warmed_up().await;
    let honest = Honest::start(&server).await;
    let attacker = Attacker::connect(&server).await;
    let megabyte = Bytes::from(vec![0; 1 << 20]);
    let mut sent = 0;
    // As long as it takes to send 100 MiB; each stream is stopped after its first bytes.
    while sent < 100 << 20 {
        let (mut send, recv) = attacker
            .open(&wire::varints(&[wire::HEADERS, 1 << 40]))
            .await;
        while let Ok(()) = send.write_chunk(megabyte.clone()).await {
            sent += megabyte.len();
            if sent >= 100 << 20 {
                break;
            }
        }
        sent += 64 << 10;
        assert_eq!(stop_code(&send).await, Some(0x107));
        assert!(matches!(answer(recv).await, Answer::Bytes(bytes) if !bytes.is_empty()));
    }
    let now = server.is_well().await;
    let grown = now.since(&before);
    say(format_args!("HEADERS of 2^40: {grown}"));
    honest.survived("HEADERS of 2^40").await;
    // The honest user's connection has its own.
    assert!(grown.held < PER_PEER + (16 << 20), "{grown}");
    drop(attacker);
    server.recovers(&before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn never_ending_requests_cost_what_a_peer_may_cost() {
    let _alone = alone().await;
    let mut server = ServerProcess::start("").await;
    let before = server.warmed_up().await;
    let peers = if full() { 64 } else { 16 };
    let mut attackers = Vec::new();
    for _ in 0..peers {
        let attacker = Attacker::connect(&server).await;
        let mut streams = Vec::new();
        // The largest field sections that are accepted, each one byte short of its end, then
        // unknown frames that go on for ever.
        for index in 0..80 {
            let bytes = if index < 40 {
                [wire::varints(&[wire::HEADERS, 60_000]), vec![0; 59_999]].concat()
            } else {
                [
                    wire::varints(&[wire::RELAY, (1 << 62) - 1]),
                    vec![0x55; 100_000],
                ]
                .concat()
            };
            // With many such peers the part of each is small, and who takes more is put out.
            let Ok((mut send, recv)) = attacker.conn.open_bi().await else {
                assert_eq!(attacker.closed().await, 0x107);
                break;
            };
            let writing = async move {
                let _ = send.write_all(&bytes).await;
                send
            };
            // The connection's window may be full for good.
            streams.push((tokio::spawn(writing), recv));
        }
        attackers.push((attacker, streams));
    }
    for (attacker, streams) in &mut attackers {
        for (writing, _) in streams.iter_mut().skip(40) {
            writing.await.expect("unknown frames are swallowed");
        }
        attacker.page_may_be_served_or_peer_put_out().await;
    }
    let now = server.is_well().await;
    let each = now.since(&before).each(peers);
    say(format_args!("never-ending requests, per peer: {each}"));
    assert!(each.held < PER_PEER, "{each}");
    drop(attackers);
    server.recovers(&before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_silent_streams_stop_nothing() {
    let _alone = alone().await;
    let mut server = ServerProcess::start("").await;
    let before = server.warmed_up().await;
    let honest = Honest::start(&server).await;
    let mut attackers = Vec::new();
    // The server allows a stranger 100 at a time; these say a part of a first varint and no more.
    // (With all 100 open the page would have to wait too.)
    for _ in 0..12 {
        let attacker = Attacker::connect(&server).await;
        let mut streams = Vec::new();
        for index in 0..84 {
            let first: &[u8] = if index % 2 == 0 {
                &[0x44]
            } else {
                &[0xc0, 0, 0]
            };
            streams.push(attacker.open(first).await);
        }
        attacker.page_is_served().await;
        attackers.push((attacker, streams));
    }
    // And one who was let in.
    let insider = Attacker::let_in(&server).await;
    let mut tasks = tokio::task::JoinSet::new();
    let echo = crate::honest::origin_echo(&mut tasks).await;
    let mut streams = vec![insider.open(&wire::relay(&echo, 0)).await];
    for _ in 0..999 {
        streams.push(insider.open(&[0x44]).await);
    }
    insider.page_is_served().await;
    let now = server.is_well().await;
    let grown = now.since(&before);
    say(format_args!("2,000 silent streams: {grown}"));
    assert!(grown.held < 10 * PER_PEER + (24 << 20), "{grown}");
    honest.survived("silent streams").await;
    drop((attackers, insider, streams));
    server.recovers(&before).await;
}

/// Who takes no answers makes the server keep them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_takes_cost_what_a_peer_may_cost() {
    let _alone = alone().await;
    let mut server = ServerProcess::start("").await;
    let before = server.warmed_up().await;
    let mut attackers = Vec::new();
    for _ in 0..16 {
        let mut transport = crate::attacker::transport();
        transport.stream_receive_window(1u32.into());
        let attacker = Attacker::try_connect(&server, transport)
            .await
            .expect("connected");
        let mut streams = Vec::new();
        for _ in 0..99 {
            let (mut send, mut recv) = attacker.open(&wire::get("/style.css")).await;
            let _ = send.finish();
            let mut first = [0];
            recv.read_exact(&mut first)
                .await
                .expect("the first byte of an answer");
            streams.push((send, recv));
        }
        attackers.push((attacker, streams));
    }
    let now = server.is_well().await;
    let each = now.since(&before).each(16);
    say(format_args!("answers not taken, per peer: {each}"));
    assert!(each.held < PER_PEER, "{each}");
    drop(attackers);
    server.recovers(&before).await;
}
