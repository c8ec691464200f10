//! Our own code allocates nothing per packet on the hot path, and the whole stack no more per packet
//! than it does at present.
#![allow(clippy::print_stdout, reason = "the figures, with --nocapture")]

use hy2_microbenches::{
    cases,
    counting::{Counting, allocations},
    stack::{Stack, runtime},
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Most allocations by all that is in the process: client, server, origin, application, and the model
/// of the link between them. Per datagram sent or received where much is moved.
const PER_DATAGRAM_DOWN: f64 = 0.57;
const PER_DATAGRAM_UP: f64 = 0.58;
/// Opening a stream, 200 bytes there and back, closing it.
const PER_REQUEST: f64 = 75.0;
/// A UDP datagram of 1,200 bytes to a target and back.
const PER_ECHO: f64 = 20.2;

#[test]
fn no_case_allocates_more_than_it_says() {
    let mut wrong = Vec::new();
    for case in cases() {
        let mut run = (case.make)();
        // Buffers grow to their size.
        for _ in 0..200 {
            run();
        }
        let before = allocations();
        let rounds = 200;
        for _ in 0..rounds {
            run();
        }
        let each = (allocations() - before) as f64 / f64::from(rounds);
        println!("{each:9.3} {}", case.name);
        if each > case.allocations {
            let (name, most) = (case.name, case.allocations);
            wrong.push(format!("{name}: {each} per call, {most} at most"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("; "));
}

#[test]
fn the_packet_path_is_among_the_cases_that_allocate_nothing() {
    let cases = cases();
    for path in [
        "udp/message decode 1200",
        "udp/message encode 1200",
        "fragments/split 4000 into 4",
        "salamander/packet out 1452",
        "salamander/packet in 1452",
        "batch/salamander out",
        "batch/salamander in, compacted",
        "brutal/acknowledgement of 2",
        "brutal/may send, and sent",
        "bbr/acknowledgement of 2",
        "bbr/may send, and sent",
        "reassembler/in order",
        "copy/hand 64 chunks to a socket",
        "counters/one user",
        "sessions/out, 1,024 sessions",
    ] {
        let case = cases.iter().find(|case| case.name == path);
        let allowed = case.map(|case| case.allocations);
        assert_eq!(allowed, Some(0.0), "{path}");
    }
}

#[test]
fn a_download_allocates_little_per_datagram() {
    let (count, packets) = through_stack(async |stack| stack.download(8 << 20).await);
    assert!(packets > 5_000, "{packets} datagrams for 8 MiB");
    judge("datagram of a download", count, packets, PER_DATAGRAM_DOWN);
}

#[test]
fn an_upload_allocates_little_per_datagram() {
    let (count, packets) = through_stack(async |stack| stack.upload(8 << 20).await);
    assert!(packets > 5_000, "{packets} datagrams for 8 MiB");
    judge("datagram of an upload", count, packets, PER_DATAGRAM_UP);
}

#[test]
fn a_request_allocates_no_more_than_it_did() {
    const REQUESTS: u64 = 500;
    let (count, _) = through_stack(async |stack| {
        for _ in 0..REQUESTS {
            stack.request().await;
        }
    });
    judge("request", count, REQUESTS, PER_REQUEST);
}

#[test]
fn a_relayed_datagram_and_its_answer_allocate_no_more_than_they_did() {
    const DATAGRAMS: u64 = 2_000;
    let (count, _) = through_stack(async |stack| stack.datagrams(DATAGRAMS).await);
    judge("datagram and its answer", count, DATAGRAMS, PER_ECHO);
}

/// Does `work` twice, and returns the allocations and datagrams of the second time: buffers have
/// their size.
fn through_stack(work: impl AsyncFn(&Stack)) -> (u64, u64) {
    runtime().block_on(async {
        let stack = Stack::start().await;
        work(&stack).await;
        let before = (allocations(), stack.packets());
        work(&stack).await;
        (allocations() - before.0, stack.packets() - before.1)
    })
}

fn judge(what: &str, count: u64, items: u64, most: f64) {
    let each = count as f64 / items as f64;
    println!("{each:.3} allocations per {what}");
    assert!(
        each <= most,
        "{each:.3} allocations per {what}, {most} at most"
    );
}
