//! Relay streams with holes, which a server must keep until they are filled.
//!
//! The first byte of the relayed data (or of the stream itself) never leaves the attacker; see
//! [`crate::forge`]. Everything after it arrives and is acknowledged.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use hy2_core::Client;
use quinn::{RecvStream, SendStream};
use tokio::task::JoinSet;

use crate::{
    attacker::{Attacker, transport},
    forge::{MAX_RAW, inject},
    full,
    honest::{Honest, origin_echo, origin_stalled},
    relay::connected,
    say,
    server::{Figures, HONEST, ServerProcess, alone, mib},
    wire,
};

/// The budget of these servers, in MiB. Small, so that it is reached soon.
const MEMORY: u64 = 64;

/// The part of it that one connection may take: three quarters.
const SHARE: u64 = (MEMORY << 20) / 4 * 3;

/// What the honest user's download counts for at most: twelve round trips of twice its rate, which
/// may take 25 ms where the machine is busy.
const HONEST_WINDOW: u64 = 4 << 20;

/// What is not counted: QUIC's own state of a connection with 1,024 streams, their tasks and
/// sockets, QUIC's receive window, and the packets that the counted bytes came in.
const UNCOUNTED: u64 = 64 << 20;

/// A stream that was refused memory is given up after 30 s; a little more for those that look at
/// the clock late.
const STARVED: Duration = Duration::from_secs(40);

async fn streams(attacker: &Attacker, target: &str, count: usize) -> Vec<(SendStream, RecvStream)> {
    let mut streams = Vec::new();
    for _ in 0..count {
        streams.push(connected(attacker, target).await);
    }
    streams
}

/// Writes into all streams for as long as the server gives credit to any of them; returns what
/// was written.
async fn fill(streams: &mut [(SendStream, RecvStream)], chunk: &Bytes) -> u64 {
    let mut total = 0;
    loop {
        let mut moved = 0;
        for (send, _) in &mut *streams {
            let mut bytes = [chunk.clone()];
            let written =
                tokio::time::timeout(Duration::from_millis(1), send.write_chunks(&mut bytes));
            if let Ok(Ok(written)) = written.await {
                moved += written.bytes as u64;
            }
        }
        total += moved;
        if moved == 0 || total > 4 << 30 {
            return total;
        }
    }
}

/// The most that was seen while something went on.
#[derive(Debug, Default)]
struct Peak {
    /// What the budget counted.
    budget: u64,
    /// What was allocated beyond what was before.
    held: u64,
}

/// Does `work` and looks at the server all the while.
async fn watched<T>(
    server: &mut ServerProcess,
    before: &Figures,
    work: impl Future<Output = T>,
) -> (T, Peak) {
    let mut peak = Peak::default();
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    let mut work = pin!(work);
    loop {
        let done = tokio::select! {
            done = &mut work => Some(done),
            _ = tick.tick() => None,
        };
        let now = server.figures().await;
        peak.budget = peak.budget.max(now.get("budget"));
        peak.held = peak.held.max(now.since(before).held);
        if let Some(done) = done {
            return (done, peak);
        }
    }
}

/// Waits for the streams that the server gives up, until none has been for as long as one may
/// starve, or for twice that time; returns how many there were.
async fn given_up(streams: &[(SendStream, RecvStream)]) -> usize {
    let mut stopped: FuturesUnordered<_> = streams.iter().map(|(send, _)| send.stopped()).collect();
    let mut count = 0;
    // Streams that got the memory of those given up have a time of their own.
    let all = async {
        while let Ok(Some(code)) = tokio::time::timeout(STARVED, stopped.next()).await {
            assert_eq!(code.expect("connected"), Some(0x107u32.into()));
            count += 1;
        }
    };
    let _ = tokio::time::timeout(2 * STARVED, all).await;
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_byte_withheld_on_1024_streams_pins_no_more_than_the_budget() {
    let _alone = alone().await;
    let mut server = ServerProcess::start(&format!("memory={MEMORY}")).await;
    let before = server.warmed_up().await;
    let mut honest = Honest::start(&server).await;
    let mut tasks = JoinSet::new();
    let echo = origin_echo(&mut tasks).await;
    let attacker = Attacker::let_in(&server).await;
    let mut streams = streams(&attacker, &echo, 1024).await;
    let idle = server.figures().await;
    let header = wire::relay(&echo, 0).len() as u64;
    for (send, _) in &streams {
        attacker.forge.withhold(send.id(), header);
    }
    let chunk = Bytes::from(vec![0x5a; 64 << 10]);
    let (written, peak) = watched(&mut server, &before, fill(&mut streams, &chunk)).await;
    say(format_args!(
        "1,024 streams: {} idle, at most {:.1} MiB held with {:.1} MiB of written bytes held back; {:.1} MiB counted of {:.1}",
        idle.since(&before),
        mib(peak.held),
        mib(written),
        mib(peak.budget),
        mib(MEMORY << 20),
    ));
    assert!(written > 8 << 20, "the attack did not happen: {written}");
    let within = |peak: &Peak| {
        assert!(peak.budget <= SHARE + HONEST_WINDOW, "{peak:?}");
        assert!(peak.held < SHARE + UNCOUNTED, "{peak:?}");
    };
    within(&peak);
    let ((), peak) = watched(&mut server, &before, honest.goes_on(0.3)).await;
    within(&peak);
    // The share of one connection does not keep others out.
    server.is_well().await;
    if full() {
        // Streams that were refused memory for 30 s are given up, with 0x107. Which ones were is a
        // matter of who came first. The connection stays, and so does the honest user.
        let (count, peak) = watched(&mut server, &before, given_up(&streams)).await;
        say(format_args!("{count} streams given up, {peak:?} meanwhile"));
        assert!(count > 0, "none was given up");
        assert!(attacker.conn.close_reason().is_none());
        within(&peak);
        server.is_well().await;
    }
    honest.survived("byte 0 withheld on 1,024 streams").await;
    drop((attacker, streams));
    server.recovers(&before).await;
}

/// The same before the server can tell what kind of streams they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_byte_of_the_streams_themselves_withheld_pins_the_quic_window() {
    let _alone = alone().await;
    let mut server = ServerProcess::start(&format!("memory={MEMORY}")).await;
    let before = server.warmed_up().await;
    let mut tasks = JoinSet::new();
    let echo = origin_echo(&mut tasks).await;
    let attacker = Attacker::let_in(&server).await;
    let mut first = streams(&attacker, &echo, 1).await;
    for _ in 1..1024 {
        let (send, recv) = attacker.conn.open_bi().await.expect("a stream");
        attacker.forge.withhold(send.id(), 0);
        first.push((send, recv));
    }
    let written = fill(&mut first[1..], &Bytes::from(vec![0x44; 64 << 10])).await;
    let now = server.is_well().await;
    let grown = now.since(&before);
    say(format_args!(
        "byte 0 of streams withheld: {grown} for {:.1} MiB written",
        mib(written)
    ));
    // The connection's window and as much again for packets half used.
    assert!(grown.held < 64 << 20, "{grown}");
    drop((attacker, first));
    server.recovers(&before).await;
}

/// Single bytes in large packets, to a target that takes nothing: each byte must not keep its
/// packet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_bytes_that_nobody_takes_do_not_pin_packets() {
    let _alone = alone().await;
    let mut server = ServerProcess::start(&format!("memory={MEMORY}")).await;
    let before = server.warmed_up().await;
    let mut tasks = JoinSet::new();
    let target = origin_stalled(&mut tasks).await;
    let attacker = Attacker::let_in(&server).await;
    let (mut send, recv) = connected(&attacker, &target).await;
    let header = wire::relay(&target, 0).len() as u64;
    // Enough to fill the sockets between server and target, so that the rest waits.
    let filled = fill_one(&mut send).await;
    let idle = server.figures().await;
    let id = quinn::VarInt::from(send.id()).into_inner();
    let count = if full() { 200_000 } else { 30_000 };
    for index in 0..count {
        let mut frame = wire::varints(&[0x0e, id, header + filled + index, 1]);
        frame.push(0x5a);
        frame.resize(MAX_RAW, 0);
        inject(&attacker.conn, &frame).await;
    }
    attacker.page_is_served().await;
    let now = server.is_well().await;
    let grown = now.since(&idle);
    say(format_args!(
        "{count} single bytes to a stalled target after {:.1} MiB: {grown}, connection {:?}",
        mib(filled),
        attacker.conn.close_reason()
    ));
    // Not a packet of 1,200 for each byte: quinn lets unread frames take one and a half times what
    // is buffered, at most the stream's window, and then packs them.
    assert!(grown.held < 32 << 20, "{grown}");
    drop((attacker, send, recv));
    server.recovers(&before).await;
}

/// Writes until the server gives no more credit.
async fn fill_one(send: &mut SendStream) -> u64 {
    let chunk = Bytes::from(vec![0x5a; 16 << 10]);
    let mut total = 0;
    while let Ok(Ok(written)) = tokio::time::timeout(
        Duration::from_millis(500),
        send.write_chunks(&mut [chunk.clone()]),
    )
    .await
    {
        total += written.bytes as u64;
        if total >= 7 << 20 {
            // Room is left in the stream's window for what follows.
            break;
        }
    }
    total
}

/// Several connections of one user try to take the whole budget.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_the_whole_budget_is_put_out() {
    let _alone = alone().await;
    let mut server = ServerProcess::start(&format!("memory={MEMORY}")).await;
    let before = server.warmed_up().await;
    let mut tasks = JoinSet::new();
    let echo = origin_echo(&mut tasks).await;
    let header = wire::relay(&echo, 0).len() as u64;
    let chunk = Bytes::from(vec![0x5a; 64 << 10]);
    let mut attackers = Vec::new();
    // All of them first: there is no getting in later.
    for _ in 0..3 {
        let mut transport = transport();
        transport.send_window(128 << 20);
        let attacker = Attacker::let_in_with(&server, transport).await;
        let streams = streams(&attacker, &echo, 64).await;
        for (send, _) in &streams {
            attacker.forge.withhold(send.id(), header);
        }
        attackers.push((attacker, streams));
    }
    for (_, streams) in &mut attackers {
        fill(streams, &chunk).await;
    }
    let now = server.figures().await;
    say(format_args!(
        "{:.1} MiB counted by three connections",
        mib(now.get("budget"))
    ));
    assert!(now.get("budget") <= MEMORY << 20);
    // Somebody new gets in, at the cost of an attacker.
    server
        .until("room for users", |now| {
            now.get("budget") < (MEMORY << 20) / 100 * 90
        })
        .await;
    // What the others had on its way may fill the room again at once, so the first try may be
    // turned away.
    let start = Instant::now();
    while let Err(error) = Client::connect(server.client_config(HONEST)).await {
        assert!(start.elapsed() < Duration::from_secs(60), "{error:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let put_out = attackers
        .iter()
        .filter(|(attacker, _)| attacker.conn.close_reason().is_some());
    assert!(put_out.count() >= 1);
    drop(attackers);
    server.recovers(&before).await;
    server.is_well().await;
}
