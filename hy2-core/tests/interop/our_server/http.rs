//! HTTP/3 of the reference's stack at our server, before and after authentication.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    ours::{Checked, Event, OurServer, SECRET},
    peer::{Origin, Raw, Response},
};

/// The headers that may differ between two answers of the same site.
fn without_date(response: Response) -> (u16, BTreeMap<String, Vec<String>>, String) {
    let mut headers = response.headers;
    headers.remove("Date");
    (response.status, headers, response.body)
}

#[tokio::test]
async fn the_web_site_is_the_same_before_and_after_authentication() -> Checked {
    let server = OurServer::start();
    let raw = Raw::start(&server.client_config())
        .await
        .expect("a right configuration");
    raw.connect().await?;
    let requests = [
        ("GET", "localhost", "/"),
        ("HEAD", "localhost", "/"),
        ("GET", "localhost", "/none"),
        ("POST", "localhost", "/auth"),
        ("GET", "hysteria", "/auth"),
    ];
    let mut before = Vec::new();
    for (method, authority, path) in requests {
        before.push(without_date(raw.request(method, authority, path).await?));
    }
    assert_eq!(before[0].0, 200);
    assert!(!before[0].2.is_empty());

    let wrong = without_date(raw.auth("wrong", 0).await?);
    assert_eq!(
        wrong,
        without_date(raw.request("POST", "hysteria", "/other").await?)
    );
    assert!(
        wrong.1.keys().all(|name| !name.starts_with("Hysteria")),
        "{wrong:?}"
    );

    let granted = raw.auth(SECRET, 1_000_000).await?;
    assert_eq!(granted.status, 233);
    assert_eq!(granted.headers["Hysteria-Udp"], ["true"]);
    assert_eq!(granted.headers["Hysteria-Cc-Rx"], ["0"]);
    let padding = granted.headers["Hysteria-Padding"][0].len();
    assert!((256..2048).contains(&padding), "{padding}");
    assert_eq!(server.record.connected().await.1, Some(1_000_000));

    for ((method, authority, path), before) in requests.into_iter().zip(before) {
        let after = without_date(raw.request(method, authority, path).await?);
        assert_eq!(after, before, "{method} {authority}{path}");
        println!(
            "{method} {authority}{path}: {} with {} bytes, before and after",
            after.0,
            after.2.len()
        );
    }
    println!(
        "wrong secret: {}, right one: {} with {padding} bytes of padding",
        wrong.0, granted.status
    );
    Ok(())
}

#[tokio::test]
async fn a_second_authentication_is_granted_unseen() -> Checked {
    let server = OurServer::with(|c| c.ignore_client_bandwidth = true);
    let raw = Raw::start(&server.client_config())
        .await
        .expect("a right configuration");
    raw.connect().await?;
    assert_eq!(raw.auth(SECRET, 500_000).await?.status, 233);
    server.record.connected().await;
    for secret in [SECRET, "wrong"] {
        let again = raw.auth(secret, 9_000_000).await?;
        assert_eq!(again.status, 233);
        assert_eq!(again.headers["Hysteria-Cc-Rx"], ["auto"]);
        println!("again with {secret:?}: {}", again.status);
    }
    let again = server.record.take_now(|event| match event {
        Event::Connected { .. } => Some(()),
        _ => None,
    });
    assert!(again.is_none(), "one connection is reported once");
    assert_eq!(server.traffic().connections, 1);
    Ok(())
}

#[tokio::test]
async fn a_relay_stream_is_ignored_before_and_served_after_authentication() -> Checked {
    let origin = Origin::start().await;
    let server = OurServer::start();
    let raw = Raw::start(&server.client_config())
        .await
        .expect("a right configuration");
    raw.connect().await?;
    let mut request = vec![0x44, 0x01, u8::try_from(origin.echo.len())?];
    request.extend_from_slice(origin.echo.as_bytes());
    request.push(0);
    let silent = raw
        .stream(&[&request], false, 0, Duration::from_millis(300))
        .await?;
    assert_eq!((silent.end.as_str(), silent.data.len()), ("silence", 0));
    assert_eq!(raw.auth(SECRET, 0).await?.status, 233);
    // In one packet, in two, byte by byte; the application's bytes right behind.
    let whole = [&request[..], b"hello"].concat();
    let single: Vec<&[u8]> = whole.chunks(1).collect();
    for parts in [vec![&whole[..]], vec![&request[..], b"hello"], single] {
        let answer = raw.stream(&parts, true, 0, Duration::from_secs(5)).await?;
        assert!(answer.data.starts_with(b"\0\x09Connected"), "{answer:?}");
        assert!(answer.data.ends_with(b"hello"), "{answer:?}");
        assert_eq!(answer.end, "fin");
        println!(
            "request in {} writes: {} bytes, {}",
            parts.len(),
            answer.data.len(),
            answer.end
        );
    }
    server.left_nothing(&origin).await
}
