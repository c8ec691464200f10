//! What a prober compares: the rows measured on a real site behind the same HTTP/3 stack.

use super::prober::*;

#[tokio::test]
async fn one_control_stream_with_two_settings_and_nothing_else() {
    let probe = probe().await;
    let mut control = probe.conn.accept_uni().await.expect("a stream");
    let mut bytes = [0; 10];
    control.read_exact(&mut bytes).await.expect("settings");
    assert_eq!(bytes, *b"\x00\x04\x07\x06\x80\x10\x00\x00\x08\x01");
    probe.is_silent(&mut control).await;
    let another = tokio::select! {
        biased;
        stream = probe.conn.accept_uni() => Some(stream),
        () = probe.page_is_served() => None,
    };
    assert!(another.is_none());
}

#[tokio::test]
async fn an_answer_has_a_date_and_its_length() {
    let probe = probe().await;
    let answer = probe.ask(&get("/")).await;
    assert_eq!(answer.names(), [":status", "date", "content-length"]);
    assert_eq!(answer.get("content-length"), Some("18"));
    assert!(httpdate::parse_http_date(answer.get("date").expect("a date")).is_ok());
    let answer = probe.ask(&request("HEAD", "localhost", "/", &[])).await;
    assert_eq!(
        (answer.get("content-length"), &answer.body[..]),
        (Some("18"), &b""[..])
    );
}

#[tokio::test]
async fn the_answer_to_authentication_is_ordered_as_the_reference_orders_it() {
    let probe = probe().await;
    let answer = probe.authenticate("right").await;
    assert_eq!(
        answer.names(),
        [
            ":status",
            "hysteria-udp",
            "hysteria-cc-rx",
            "hysteria-padding",
            "date",
            "content-length"
        ]
    );
    assert_eq!(
        (answer.get("content-length"), answer.get("hysteria-udp")),
        (Some("0"), Some("true"))
    );
}

#[tokio::test]
async fn a_wrong_password_is_any_other_request() {
    let probe = probe().await;
    let without_date = |mut answer: Answer| {
        answer.fields.retain(|field| field.0 != "date");
        answer
    };
    let wrong = without_date(probe.authenticate("wrong").await);
    assert_eq!(wrong.status(), 404);
    for other in [
        request("POST", "hysteria", "/auth", &[]),
        request("POST", "hysteria", "/other", &[]),
        request("POST", "Hysteria", "/auth", &[("hysteria-auth", "right")]),
        request("POST", "localhost", "/auth", &[("hysteria-auth", "right")]),
        request("GET", "hysteria", "/auth", &[("hysteria-auth", "right")]),
    ] {
        assert_eq!(without_date(probe.ask(&other).await), wrong);
    }
}

#[tokio::test]
async fn data_before_headers_closes_with_a_text() {
    for first in [
        frame(0, b"x"),
        frame_head(0, 1 << 60),
        frame(4, b""),
        frame(7, &[0]),
    ] {
        let probe = probe().await;
        let _stream = probe.open(&first).await;
        assert_eq!(
            probe.closed().await,
            (0x105, "expected first frame to be a HEADERS frame".into())
        );
        probe.server.await.expect("the server side ends");
    }
}

#[tokio::test]
async fn frames_of_http2_close_without_a_text() {
    for kind in [2, 6, 8, 9] {
        let probe = probe().await;
        let _stream = probe.open(&frame(kind, b"")).await;
        assert_eq!(probe.closed().await, (0x105, String::new()));
    }
}

#[tokio::test]
async fn malformed_requests_reset_their_stream_alone() {
    let probe = probe().await;
    for (bytes, code) in [
        (request("GET", "localhost", "/", &[(":path", "/")]), 0x10e),
        (
            request("GET", "localhost", "/", &[(":method", "GET")]),
            0x10e,
        ),
        (
            request("GET", "localhost", "/", &[("connection", "close")]),
            0x10e,
        ),
        (request("GET", "", "/", &[]), 0x10e),
        (request("GET", "localhost", "nowhere", &[]), 0x10e),
        (frame(1, b"\x00\x00\x80"), 0x200),
        (frame(1, b"\x02\x00\xd1"), 0x200),
        (frame(1, b""), 0x200),
        (frame(4, &[6]), 0x10d),
    ] {
        let (send, mut recv) = probe.open(&bytes).await;
        assert_eq!(reset_code(&mut recv).await, code, "{bytes:02x?}");
        assert_eq!(stop_code(&send).await, Some(code), "{bytes:02x?}");
    }
    probe.page_is_served().await;
}

#[tokio::test]
async fn a_request_that_breaks_off_is_incomplete() {
    let probe = probe().await;
    let whole = get("/");
    for bytes in [
        &whole[..0],
        &whole[..1],
        &whole[..2],
        &whole[..whole.len() - 1],
        &frame(0x21, b"grease"),
    ] {
        let (mut send, mut recv) = probe.open(bytes).await;
        send.finish().expect("open");
        assert_eq!(reset_code(&mut recv).await, 0x10d, "{bytes:02x?}");
    }
    let (mut send, mut recv) = probe.open(&whole[..5]).await;
    send.reset(7u32.into()).expect("open");
    assert_eq!(reset_code(&mut recv).await, 0x10d);
    probe.page_is_served().await;
}

#[tokio::test]
async fn a_relay_type_without_authentication_is_an_unknown_frame() {
    for width in [2, 4, 8] {
        let probe = probe().await;
        let whole = [relay_type(width), b"\x05abcde".to_vec()].concat();
        // Partial or whole: silence.
        for len in 0..=whole.len() {
            let (_send, mut recv) = probe.open(&whole[..len]).await;
            probe.is_silent(&mut recv).await;
        }
        // Then the end of the stream: an incomplete request, whether the frame was whole or not.
        for len in 1..=whole.len() {
            let (mut send, mut recv) = probe.open(&whole[..len]).await;
            send.finish().expect("open");
            assert_eq!(reset_code(&mut recv).await, 0x10d);
        }
        // A request may follow it.
        assert_eq!(
            probe.ask(&[&whole[..], &get("/")].concat()).await.body,
            PAGE
        );
        // And then DATA.
        let _stream = probe.open(&[whole, frame(0, b"x")].concat()).await;
        assert_eq!(
            probe.closed().await,
            (0x105, "expected first frame to be a HEADERS frame".into())
        );
    }
}

#[tokio::test]
async fn a_tcp_request_without_authentication_is_silent() {
    let probe = probe().await;
    let mut bytes = Vec::new();
    hy2_proto::tcp::TcpRequest {
        address: "127.0.0.1:80",
        padding: b"",
    }
    .encode(&mut bytes);
    let (_send, mut recv) = probe.open(&bytes).await;
    probe.is_silent(&mut recv).await;
}

/// Opens a stream in one direction and writes `bytes` to it.
async fn open_uni(probe: &Probe, bytes: &[u8]) -> quinn::SendStream {
    let mut send = probe.conn.open_uni().await.expect("a stream");
    send.write_all(bytes).await.expect("written");
    send
}

fn client_control() -> Vec<u8> {
    b"\x00\x04\x05\x06\x80\xa0\x00\x00".to_vec()
}

#[tokio::test]
async fn what_follows_the_settings_on_the_control_stream_is_not_looked_at() {
    for more in [
        frame(0, b"x"),
        get("/"),
        frame(4, b""),
        frame(2, b""),
        frame(7, &[0, 0]),
        vec![0xff; 300],
    ] {
        let probe = probe().await;
        let mut control = open_uni(&probe, &client_control()).await;
        control.write_all(&more).await.expect("written");
        probe.page_is_served().await;
        control.finish().expect("open");
        probe.page_is_served().await;
    }
}

#[tokio::test]
async fn the_control_stream_begins_with_settings() {
    for (bytes, code) in [
        (frame(0, b"x"), 0x10a),
        (get("/"), 0x10a),
        (frame(7, &[0]), 0x10a),
        (frame(4, &[6]), 0x104),
        (frame(4, &[6, 1, 6, 1]), 0x106),
        (frame(4, &[8, 2]), 0x106),
        (frame(9, b""), 0x105),
    ] {
        let probe = probe().await;
        let _control = open_uni(&probe, &[b"\x00", &bytes[..]].concat()).await;
        assert_eq!(probe.closed().await, (code, String::new()), "{bytes:02x?}");
    }
    let probe = probe().await;
    let mut control = open_uni(&probe, &client_control()[..4]).await;
    control.finish().expect("open");
    assert_eq!(probe.closed().await, (0x104, String::new()));
}

#[tokio::test]
async fn an_unknown_frame_may_come_before_the_settings() {
    let probe = probe().await;
    let _control = open_uni(
        &probe,
        &[b"\x00", &frame(0x21, b"grease")[..], &client_control()[1..]].concat(),
    )
    .await;
    probe.page_is_served().await;
}

#[tokio::test]
async fn nonsense_on_qpack_streams_is_not_looked_at() {
    let probe = probe().await;
    let mut streams = Vec::new();
    for kind in [2, 3] {
        let mut stream = open_uni(&probe, &[kind]).await;
        stream.write_all(&[0xff; 1000]).await.expect("written");
        streams.push(stream);
    }
    probe.page_is_served().await;
    for stream in &mut streams {
        stream.finish().expect("open");
    }
    probe.page_is_served().await;
}

#[tokio::test]
async fn critical_streams_may_be_opened_once() {
    for (bytes, text) in [
        (client_control(), "duplicate control stream"),
        (vec![2], "duplicate QPACK encoder stream"),
        (vec![3], "duplicate QPACK decoder stream"),
    ] {
        let probe = probe().await;
        let _first = open_uni(&probe, &bytes).await;
        let _second = open_uni(&probe, &bytes).await;
        assert_eq!(probe.closed().await, (0x103, text.into()));
    }
    let probe = probe().await;
    let _push = open_uni(&probe, &[1]).await;
    assert_eq!(probe.closed().await, (0x103, String::new()));
}

#[tokio::test]
async fn unknown_streams_are_stopped() {
    let probe = probe().await;
    for kind in [&[0x21][..], &[0x44, 0x01], &[0x40, 0x54]] {
        let stream = open_uni(&probe, kind).await;
        assert_eq!(stop_code(&stream).await, Some(0x103));
    }
    probe.page_is_served().await;
}

#[tokio::test]
async fn a_body_that_nobody_reads_is_stopped_after_the_answer() {
    let probe = probe().await;
    let (send, recv) = probe
        .open(&[request("POST", "localhost", "/", &[]), frame(0, b"unread")].concat())
        .await;
    assert_eq!(answer(recv).await.status(), 404);
    assert_eq!(stop_code(&send).await, Some(0x100));
}

#[tokio::test]
async fn bodies_and_their_declared_length() {
    let probe = probe().await;
    let post = |length| request("POST", "localhost", "/read", &[("content-length", length)]);
    let body = [
        frame(0, b"hel"),
        frame(0x21, b"grease"),
        frame(0, b""),
        frame(0, b"lo"),
    ]
    .concat();
    for head in [post("5"), request("POST", "localhost", "/read", &[])] {
        let trailers = headers(&[("x-checksum", "1")]);
        assert_eq!(
            probe
                .ask(&[&head[..], &body, &trailers].concat())
                .await
                .body,
            b"hello"
        );
    }
    let (_send, mut recv) = probe.open(&[post("4"), body.clone()].concat()).await;
    assert_eq!(reset_code(&mut recv).await, 0x10e, "more than declared");
    // Frames behind the trailers, and trailers cut short: the handler sees a broken body.
    let trailers = headers(&[("a", "b")]);
    let after = [post("5"), body.clone(), trailers.clone(), frame(0, b"")].concat();
    assert_eq!(probe.ask(&after).await.status(), 400);
    let cut = &trailers[..trailers.len() - 1];
    assert_eq!(
        probe
            .ask(&[&post("5")[..], &body, cut].concat())
            .await
            .status(),
        400
    );
    // Anything else may be cut short.
    for end in [
        &[0x00][..],
        b"\x00\x09part",
        b"\x21\x09part",
        b"\x04\x01\x06",
        b"\x07",
        b"\x01\x09",
    ] {
        let whole = [&request("POST", "localhost", "/read", &[])[..], &body, end].concat();
        let answer = probe.ask(&whole).await;
        assert_eq!(answer.status(), 200, "{end:02x?}");
        assert!(answer.body.starts_with(b"hello"));
    }
    let bad_trailers = [post("5"), body.clone(), headers(&[(":path", "/")])].concat();
    assert_eq!(probe.ask(&bad_trailers).await.status(), 400);
    let _stream = probe.open(&[post("9"), frame(4, b"")].concat()).await;
    assert_eq!(probe.closed().await, (0x105, String::new()));
}

#[tokio::test]
async fn a_handler_that_panics_costs_its_stream() {
    let probe = probe().await;
    let (send, mut recv) = probe.open(&get("/panic")).await;
    assert_eq!(reset_code(&mut recv).await, 0x102);
    assert_eq!(stop_code(&send).await, Some(0x102));
    probe.page_is_served().await;
}
