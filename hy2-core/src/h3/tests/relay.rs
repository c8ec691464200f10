//! Relay streams beside HTTP/3.

use std::sync::atomic::Ordering;

use super::prober::*;

/// Sends `payload` on a relay stream opened with `head` and checks that exactly it comes back.
async fn relays(probe: &Probe, head: &[u8], payload: &[u8]) {
    let (mut send, mut recv) = probe.open(&[head, payload].concat()).await;
    send.finish().expect("open");
    assert_eq!(recv.read_to_end(1 << 20).await.expect("an echo"), payload);
}

#[tokio::test]
async fn every_width_of_the_type_opens_a_relay_stream() {
    let probe = probe().await;
    assert_eq!(probe.authenticate("right").await.status(), 233);
    for width in [2, 4, 8] {
        relays(&probe, &relay_type(width), b"exactly this").await;
        relays(&probe, &relay_type(width), b"").await;
    }
    assert_eq!(
        probe.site.handled.load(Ordering::SeqCst),
        1,
        "no relay stream reached the site"
    );
}

#[tokio::test]
async fn the_type_may_come_byte_by_byte() {
    let probe = probe().await;
    probe.authenticate("right").await;
    for width in [2, 4, 8] {
        let (mut send, mut recv) = probe.conn.open_bi().await.expect("a stream");
        for byte in relay_type(width) {
            send.write_all(&[byte]).await.expect("written");
            probe.page_is_served().await;
        }
        send.write_all(b"hello").await.expect("written");
        send.finish().expect("open");
        assert_eq!(recv.read_to_end(100).await.expect("an echo"), b"hello");
    }
}

#[tokio::test]
async fn the_site_is_served_before_and_after_authentication() {
    let probe = probe().await;
    probe.page_is_served().await;
    assert_eq!(probe.authenticate("wrong").await.status(), 404);
    assert_eq!(probe.authenticate("right").await.status(), 233);
    relays(&probe, &relay_type(2), b"x").await;
    probe.page_is_served().await;
    assert_eq!(probe.ask(&get("/missing")).await.status(), 404);
    assert_eq!(
        probe.authenticate("wrong").await.status(),
        233,
        "already authenticated"
    );
}

#[tokio::test]
async fn a_stream_opened_before_authentication_counts_when_its_type_is_complete() {
    let probe = probe().await;
    let (mut send, mut recv) = probe.open(&relay_type(2)[..1]).await;
    probe.is_silent(&mut recv).await;
    assert_eq!(probe.authenticate("right").await.status(), 233);
    send.write_all(&relay_type(2)[1..]).await.expect("written");
    send.write_all(b"late").await.expect("written");
    send.finish().expect("open");
    assert_eq!(recv.read_to_end(100).await.expect("an echo"), b"late");
}

#[tokio::test]
async fn a_whole_type_before_authentication_stays_an_unknown_frame() {
    let probe = probe().await;
    let (mut send, mut recv) = probe.open(&relay_type(2)).await;
    probe.is_silent(&mut recv).await;
    probe.authenticate("right").await;
    send.write_all(b"\x03abc").await.expect("written");
    probe.is_silent(&mut recv).await;
    send.write_all(&get("/")).await.expect("written");
    send.finish().expect("open");
    assert_eq!(answer(recv).await.body, PAGE);
}

#[tokio::test]
async fn the_answer_waits_for_neither_settings_nor_the_end_of_the_request() {
    let probe = probe().await;
    // No control stream was opened by this prober, and the request is not ended.
    let (_send, recv) = probe.open(&auth_request("right")).await;
    assert_eq!(answer(recv).await.status(), 233);
}

#[tokio::test]
async fn silent_streams_block_nothing() {
    let probe = probe().await;
    let mut streams = Vec::new();
    for n in 0..1000 {
        // Opening alone sends nothing, so every other one sends half a type.
        streams.push(probe.open(&relay_type(8)[..n % 8]).await);
    }
    probe.page_is_served().await;
    assert_eq!(probe.authenticate("right").await.status(), 233);
    relays(&probe, &relay_type(2), b"x").await;
    let (mut send, mut recv) = streams.swap_remove(15);
    send.write_all(&relay_type(8)[7..]).await.expect("written");
    send.finish().expect("open");
    assert_eq!(
        recv.read_to_end(100)
            .await
            .expect("a relay stream after all"),
        b""
    );
}

#[tokio::test]
async fn after_goaway_relay_streams_go_on_and_requests_do_not() {
    let probe = probe().await;
    let mut control = probe.conn.accept_uni().await.expect("the control stream");
    let mut settings = [0; 10];
    control.read_exact(&mut settings).await.expect("settings");
    probe.authenticate("right").await;
    let (mut send, mut recv) = probe.open(&relay_type(2)).await;
    let never = probe.open(&get("/never")).await;
    relays(&probe, &relay_type(2), b"x").await;

    probe.front.shutdown();
    let mut goaway = [0; 3];
    control.read_exact(&mut goaway).await.expect("GOAWAY");
    assert_eq!(
        goaway,
        [0x07, 0x01, 16],
        "four streams were opened: 0, 4, 8 and 12"
    );
    let (rejected, mut answer) = probe.open(&get("/")).await;
    assert_eq!(reset_code(&mut answer).await, 0x10b);
    assert_eq!(stop_code(&rejected).await, Some(0x10b));
    send.write_all(b"still here").await.expect("written");
    send.finish().expect("open");
    assert_eq!(recv.read_to_end(100).await.expect("an echo"), b"still here");
    relays(&probe, &relay_type(2), b"and new ones").await;
    drop(never);
}
