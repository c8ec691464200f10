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

/// Most allocations per datagram of a bulk download, sent or received, by all that is in the
/// process: client, server, origin, application, and the model of the link between them.
const PER_DATAGRAM: f64 = 0.57;

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
    let (count, packets) = runtime().block_on(async {
        let stack = Stack::start().await;
        stack.download(8 << 20).await;
        let before = (allocations(), stack.packets());
        stack.download(8 << 20).await;
        (allocations() - before.0, stack.packets() - before.1)
    });
    assert!(packets > 5_000, "{packets} datagrams for 8 MiB");
    let each = count as f64 / packets as f64;
    println!("{each:.3} allocations per datagram of a download");
    assert!(each <= PER_DATAGRAM, "{each:.2} allocations per datagram");
}
