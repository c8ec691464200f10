//! UDP of the reference client through our server.

use std::{collections::BTreeMap, time::Duration};

use hy2_core::proto::udp::max_payload;

use crate::{
    ours::{Checked, OurServer, PATIENCE, SECRET, udp_message, until},
    peer::{Client, Origin, Raw, Version, pattern},
};

/// Largest QUIC datagram to a client that omits `max_datagram_frame_size`, which counts as 1,200 bytes.
const OMITTED_MAX: usize = 1191;

/// Around every boundary: one datagram, two fragments, three, four, the most.
fn sizes(target: &str) -> Vec<usize> {
    let most = max_payload(target.len());
    vec![
        1,
        2,
        3,
        100,
        1000,
        1160,
        1170,
        1180,
        1200,
        1250,
        1400,
        1500,
        2300,
        2400,
        3000,
        3600,
        most - 1,
        most,
    ]
}

#[tokio::test]
async fn datagrams_of_every_size_come_back_to_every_kind_of_client() -> Checked {
    let origin = Origin::start().await;
    let target = &origin.udp_echo[0];
    let sizes = sizes(target);
    for (kind, version, no_parrot) in [
        ("parrot", Version::Current, false),
        ("no parrot", Version::Current, true),
        ("core 2.10", Version::Core210, true),
    ] {
        let server = OurServer::start();
        let mut config = server.client_config();
        // Core 2.10 has none to switch off.
        config.no_parrot = no_parrot && version == Version::Current;
        let client = Client::start_version(version, &config)
            .await
            .expect("a right configuration");
        let echoes = client.udp_echo(target, &sizes, 2).await?;
        assert_eq!(echoes.received, 2 * sizes.len() as u64, "{echoes:?}");
        assert_eq!(echoes.from, BTreeMap::from([(target.clone(), echoes.sent)]));
        client.tcp_echo(&origin.echo, 100_000, 1).await?;
        let traffic = server.traffic();
        let payload = 2 * sizes.iter().sum::<usize>() as u64;
        assert_eq!(
            (traffic.tx, traffic.rx),
            (payload + 100_000, payload + 100_000)
        );
        // Who says nothing of datagrams takes them: 1,200 bytes with their frame's type and length.
        let omits = kind != "parrot";
        let largest = || server.server.handle().connections()[0].max_datagram;
        until("the path's size is known", || match largest() {
            Some(largest) if omits => largest == OMITTED_MAX,
            largest => largest > Some(OMITTED_MAX),
        })
        .await;
        println!(
            "{kind}: {} datagrams of 1 to {} bytes, largest QUIC datagram to it {:?}, {traffic:?}",
            echoes.received,
            sizes.last().expect("there are sizes"),
            largest()
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_datagram_beyond_the_format_is_lost_alone() -> Checked {
    let origin = Origin::start().await;
    let target = &origin.udp_echo[0];
    let most = max_payload(target.len());
    let server = OurServer::start();
    let client = server.client(|_| ()).await;
    let failed = client
        .udp_echo(target, &[most + 1, most, 10], 1)
        .await
        .expect_err("one is too large");
    assert_eq!(failed.fault.kind, "partial", "{failed}");
    assert_eq!(
        failed.result["lost"],
        serde_json::json!([most + 1]),
        "{failed}"
    );
    assert_eq!(failed.result["received"], 2);
    println!("{failed}");
    Ok(())
}

#[tokio::test]
async fn fragments_in_reverse_order_are_put_together() -> Checked {
    let origin = Origin::start().await;
    let target = &origin.udp_echo[1];
    let server = OurServer::start();
    let client = server.client(|c| c.tamper = true).await;
    client.connect().await?;
    client.tamper(4, 0).await?;
    let sizes = [1300, 2500, 3700, max_payload(target.len())];
    let echoes = client.udp_echo(target, &sizes, 10).await?;
    assert_eq!(echoes.received, 40, "{echoes:?}");
    println!(
        "{} fragmented datagrams, packets reversed within 4 ms",
        echoes.received
    );
    Ok(())
}

#[tokio::test]
async fn fragments_of_a_tests_choice_are_put_together() -> Checked {
    let origin = Origin::start().await;
    let target = &origin.udp_echo[0];
    let server = OurServer::start();
    let raw = Raw::start(&server.client_config())
        .await
        .expect("a right configuration");
    raw.connect().await?;
    assert_eq!(raw.auth(SECRET, 0).await?.status, 233);
    let text = pattern(9, 3000);
    // (session, packet, fragment, fragments, bytes)
    let message = |(session, packet, id, count, data): (u32, u16, u8, u8, &[u8])| {
        udp_message(session, packet, (id, count), target, data)
    };
    let wait = Duration::from_secs(5);
    let (a, b, c) = (&text[..1000], &text[1000..2000], &text[2000..]);
    for (what, sent, wanted) in [
        (
            "last to first",
            vec![(7, 1, 2, 3, c), (7, 1, 1, 3, b), (7, 1, 0, 3, a)],
            vec![(7, &text[..])],
        ),
        (
            "middle first",
            vec![(7, 2, 1, 3, b), (7, 2, 2, 3, c), (7, 2, 0, 3, a)],
            vec![(7, &text[..])],
        ),
        (
            "two sessions in turn",
            vec![
                (8, 3, 1, 2, b),
                (9, 3, 1, 2, c),
                (8, 3, 0, 2, a),
                (9, 3, 0, 2, b),
            ],
            vec![(8, &text[..2000]), (9, &text[1000..])],
        ),
        (
            "one twice",
            vec![(7, 4, 1, 2, b), (7, 4, 1, 2, b), (7, 4, 0, 2, a)],
            vec![(7, &text[..2000])],
        ),
        (
            "an unfinished one, then a whole one",
            vec![(7, 5, 0, 2, a), (7, 6, 0, 2, b), (7, 6, 1, 2, c)],
            vec![(7, &text[1000..])],
        ),
        (
            "a packet number for a whole one",
            vec![(7, 700, 0, 1, b"whole")],
            vec![(7, b"whole")],
        ),
        ("session 0", vec![(0, 0, 0, 1, b"zero")], vec![(0, b"zero")]),
    ] {
        let sent: Vec<_> = sent.into_iter().map(message).collect();
        let mut back = BTreeMap::<u32, Vec<u8>>::new();
        let mut missing: usize = wanted.iter().map(|(_, data)| data.len()).sum();
        let mut batch = sent;
        while missing > 0 {
            let got = raw.datagrams(&batch, 1, wait).await?;
            batch.clear();
            let got = got
                .first()
                .unwrap_or_else(|| panic!("{what}: {missing} bytes missing"));
            let message = hy2_core::proto::udp::UdpMessage::decode(got)?;
            assert_eq!(message.address, target);
            back.entry(message.session_id)
                .or_default()
                .extend(message.data);
            missing = missing.saturating_sub(message.data.len());
        }
        assert_eq!(
            back,
            wanted
                .into_iter()
                .map(|(id, data)| (id, data.to_vec()))
                .collect(),
            "{what}"
        );
        println!(
            "{what}: {:?} bytes by session",
            back.iter()
                .map(|(id, data)| (id, data.len()))
                .collect::<Vec<_>>()
        );
    }
    Ok(())
}

#[tokio::test]
async fn one_session_reaches_several_targets_and_is_full_cone() -> Checked {
    let origin = Origin::start().await;
    let server = OurServer::start();
    let client = server.client(|_| ()).await;
    client.udp_multi_target(&origin.udp_echo, 500, 10).await?;
    assert!(origin.udp_echo.len() >= 4);
    client.udp_open("cone").await?;
    client
        .udp_send("cone", &origin.udp_cone, b"from elsewhere")
        .await?;
    let got = client.udp_recv("cone").await?;
    assert_eq!(
        (got.from.as_str(), &got.data[..]),
        (&*origin.udp_cone_reply, &b"from elsewhere"[..])
    );
    // A name is answered with the address behind it.
    let port = origin.udp_echo[0].rsplit(':').next().expect("a port");
    client
        .udp_send("cone", format!("localhost:{port}"), b"by name")
        .await?;
    let named = client.udp_recv("cone").await?;
    assert_eq!(
        (named.from.as_str(), &named.data[..]),
        (&*origin.udp_echo[0], &b"by name"[..])
    );
    println!(
        "{} targets in one session; {} answered for {}",
        origin.udp_echo.len(),
        got.from,
        origin.udp_cone
    );
    Ok(())
}

#[tokio::test]
async fn two_hundred_sessions_live_together_and_expire() -> Checked {
    let origin = Origin::start().await;
    // Longer than a busy machine needs to open them all.
    let server = OurServer::with(|c| c.udp_idle_timeout = Duration::from_secs(15));
    let client = server.client(|_| ()).await;
    let run = client.udp_sessions(&origin.udp_echo[0], 200, 300).await?;
    assert_eq!((run.opened, run.completed), (200, 200), "{run:?}");
    assert_eq!(server.traffic().udp_sessions, 200);
    until("no UDP session is left", || {
        server.traffic().udp_sessions == 0
    })
    .await;
    println!("{run:?}, then all idle ones ended");
    Ok(())
}

#[tokio::test]
async fn an_idle_session_ends_and_a_used_one_stays() -> Checked {
    let origin = Origin::start().await;
    let server = OurServer::with(|c| c.udp_idle_timeout = Duration::from_secs(2));
    let client = server.client(|_| ()).await;
    client.udp_open("idle").await?;
    client
        .udp_send("idle", &origin.udp_echo[0], b"once")
        .await?;
    let idle = server.record.udp_opened(&origin.udp_echo[0]).await;
    let start = std::time::Instant::now();
    client.udp_open("used").await?;
    let used = async {
        loop {
            client
                .udp_send("used", &origin.udp_echo[1], b"again")
                .await?;
            client.udp_recv("used").await?;
        }
    };
    let used: Result<(), crate::peer::CallError> = tokio::select! {
        failed = used => failed,
        () = server.record.udp_closed(idle) => Ok(()),
    };
    used?;
    let lived = start.elapsed();
    assert!(
        lived > Duration::from_millis(1900) && lived < PATIENCE / 3,
        "{lived:?}"
    );
    assert_eq!(server.traffic().udp_sessions, 1);
    // The next datagram opens it anew.
    client.udp_recv("idle").await?;
    client
        .udp_send("idle", &origin.udp_echo[2], b"back")
        .await?;
    assert_eq!(server.record.udp_opened(&origin.udp_echo[2]).await, idle);
    assert_eq!(client.udp_recv("idle").await?.data, b"back");
    println!("idle session {idle} ended after {lived:?}, one in use stayed");
    Ok(())
}

#[tokio::test]
async fn without_udp_the_reference_client_knows() -> Checked {
    let origin = Origin::start().await;
    let server = OurServer::with(|c| c.disable_udp = true);
    let client = server.client(|_| ()).await;
    assert!(!client.connect().await?.udp);
    let fault = client.udp_open("a").await.expect_err("UDP is off").fault;
    assert_eq!(fault.kind, "dial", "{fault}");
    client.tcp_echo(&origin.echo, 1000, 1).await?;
    println!("{fault}");
    Ok(())
}
