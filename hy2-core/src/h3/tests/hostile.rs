//! Peers that want memory, time or a crash.

use std::sync::atomic::Ordering;

use futures_util::{StreamExt, stream::FuturesUnordered};
use proptest::{prelude::*, test_runner::TestRunner};

use super::prober::*;
use crate::h3::H3Limits;

#[tokio::test]
async fn an_enormous_field_section_is_refused_by_its_length() {
    let probe = probe().await;
    for length in [1 << 40, (1 << 62) - 1, 64 * 1024 + 1] {
        let (send, recv) = probe.open(&frame_head(1, length)).await;
        let answer = answer(recv).await;
        assert_eq!(
            (answer.status(), answer.names()),
            (431, vec![":status", "date"])
        );
        assert_eq!(stop_code(&send).await, Some(0x107));
    }
    probe.page_is_served().await;
}

#[tokio::test]
async fn a_field_section_that_unpacks_too_large_is_refused() {
    let probe = probe().await;
    // Entry 83 of the table is 61 bytes long and takes two on the wire.
    let bomb = [&b"\x00\x00"[..], &b"\xff\x14".repeat(2000)].concat();
    let (send, recv) = probe.open(&frame(1, &bomb)).await;
    assert_eq!(answer(recv).await.status(), 431);
    assert_eq!(stop_code(&send).await, Some(0x107));
}

#[tokio::test]
async fn many_unfinished_field_sections_share_one_budget() {
    let limits = H3Limits {
        header_bytes: 200_000,
        ..H3Limits::default()
    };
    let probe = probe_with(limits, 2000).await;
    let part = [frame_head(1, 60_000), vec![0; 50_000]].concat();
    let (mut streams, mut answers) = (Vec::new(), FuturesUnordered::new());
    for _ in 0..20 {
        let (send, recv) = probe.open(&part).await;
        streams.push(send);
        answers.push(answer(recv));
    }
    // Four fit. The others are answered although their sections are not complete.
    for _ in 0..16 {
        let answer = answers.next().await.expect("twenty streams");
        assert_eq!(answer.status(), 431);
    }
    drop(answers);
    drop(streams);
    // The budget comes back.
    loop {
        if probe.ask(&get("/")).await.status() == 200 {
            break;
        }
    }
}

#[tokio::test]
async fn a_never_ending_unknown_frame_is_swallowed() {
    let probe = probe().await;
    let (mut send, mut recv) = probe.open(&frame_head(0x401, (1 << 62) - 1)).await;
    for _ in 0..64 {
        send.write_all(&[0x55; 64 * 1024])
            .await
            .expect("credit keeps coming");
    }
    probe.is_silent(&mut recv).await;
}

#[tokio::test]
async fn a_body_that_nobody_reads_is_held_back_by_flow_control() {
    let probe = probe().await;
    let head = request("POST", "localhost", "/never", &[]);
    let (mut send, _recv) = probe.open(&[head, frame_head(0, 1 << 40)].concat()).await;
    let sent = std::sync::atomic::AtomicUsize::new(0);
    tokio::select! {
        biased;
        () = async {
            loop {
                let Ok(n) = send.write(&[0; 64 * 1024]).await else { return };
                sent.fetch_add(n, Ordering::SeqCst);
                tokio::task::yield_now().await;
            }
        } => panic!("stopped"),
        () = async {
            loop {
                let before = sent.load(Ordering::SeqCst);
                probe.page_is_served().await;
                if before > 0 && sent.load(Ordering::SeqCst) == before {
                    return;
                }
            }
        } => {}
    }
    // quinn's default windows, of which the stream's is 1.25 MB, and what the prober itself buffers.
    assert!(sent.load(Ordering::SeqCst) < 16 << 20);
}

#[tokio::test]
async fn a_request_byte_by_byte_is_a_request() {
    let probe = probe().await;
    let (mut send, recv) = probe.conn.open_bi().await.expect("a stream");
    for byte in [frame(0x401, b"grease"), get("/")].concat() {
        send.write_all(&[byte]).await.expect("written");
        tokio::task::yield_now().await;
    }
    send.finish().expect("open");
    assert_eq!(answer(recv).await.body, PAGE);
}

#[tokio::test]
async fn a_peer_that_gives_up_ends_its_request() {
    let limits = H3Limits {
        requests: 1,
        ..H3Limits::default()
    };
    let probe = probe_with(limits, 2000).await;
    let (_send, mut recv) = probe.open(&get("/never")).await;
    let page = get("/");
    let next = probe.ask(&page);
    tokio::pin!(next);
    let early = tokio::select! {
        biased;
        _ = &mut next => true,
        () = async { while probe.site.handled.load(Ordering::SeqCst) < 1 { tokio::task::yield_now().await } } => false,
    };
    assert!(!early, "one request at a time");
    recv.stop(0u32.into()).expect("open");
    assert_eq!(next.await.status(), 200);
}

#[test]
fn garbage_never_breaks_the_server() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let input = (
        prop_oneof![
            Just(Vec::new()),
            Just(relay_type(2)),
            Just(get("/read")),
            Just(frame_head(1, 30))
        ],
        proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8),
        any::<bool>(),
    );
    let config = ProptestConfig {
        cases: 128,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    TestRunner::new(config)
        .run(&input, |(head, chunks, uni)| {
            runtime.block_on(async {
                let probe = probe().await;
                let mut send = match uni {
                    true => probe.conn.open_uni().await.expect("a stream"),
                    false => probe.conn.open_bi().await.expect("a stream").0,
                };
                for chunk in [vec![head], chunks].concat() {
                    // The server may have closed the connection over the chunk before.
                    if send.write_all(&chunk).await.is_err() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                let _ = send.finish();
                tokio::select! {
                    reason = probe.conn.closed() => {
                        assert!(matches!(reason, quinn::ConnectionError::ApplicationClosed(_)), "{reason:?}");
                    }
                    _ = async { probe.ask_or_lose(&get("/")).await } => {}
                }
                probe.conn.close(0x100u32.into(), b"");
                probe.server.await.expect("no panic");
            });
            Ok(())
        })
        .expect("every case");
}
