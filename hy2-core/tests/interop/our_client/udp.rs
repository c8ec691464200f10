//! UDP of our client through the reference server.

use std::collections::BTreeSet;

use hy2_core::{error::OpenError, proto::udp::max_payload};
use serde_json::Value;

use crate::{
    ours::{Checked, bytes, plain, reference_and_client, soon, udp_echo, until},
    peer::Origin,
};

#[tokio::test]
async fn datagrams_of_every_size_come_back() -> Checked {
    let origin = Origin::start().await;
    let (_server, client) = reference_and_client(plain(), |_| ()).await?;
    let session = soon(client.udp()).await?;
    let target = &origin.udp_echo[0];
    for len in [
        1,
        100,
        1100,
        1170,
        1197,
        1200,
        1500,
        2400,
        4000,
        max_payload(target.len()),
    ] {
        udp_echo(&session, target, &bytes(len, 0)).await?;
    }
    let over = vec![0; max_payload(target.len()) + 1];
    assert!(session.send(&over, target).is_err(), "beyond the format");
    Ok(())
}

#[tokio::test]
async fn fragments_out_of_order_are_put_together() -> Checked {
    let origin = Origin::start().await;
    let mut config = plain();
    config.tamper = true;
    let (server, client) = reference_and_client(config, |_| ()).await?;
    let session = soon(client.udp()).await?;
    udp_echo(&session, &origin.udp_echo[0], b"first").await?;
    server.tamper(30, 0).await?;
    for len in [1500, 3000, 4000] {
        udp_echo(&session, &origin.udp_echo[0], &bytes(len, len)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn one_session_reaches_several_targets_and_is_full_cone() -> Checked {
    let origin = Origin::start().await;
    let (_server, client) = reference_and_client(plain(), |_| ()).await?;
    let session = soon(client.udp()).await?;
    for round in 0..5u8 {
        for target in &origin.udp_echo {
            udp_echo(&session, target, &bytes(200, round.into())).await?;
        }
    }
    session.send(b"who answers?", &origin.udp_cone)?;
    let packet = soon(session.recv()).await.ok_or("the session is over")?;
    assert_eq!(packet.source(), origin.udp_cone_reply);
    Ok(())
}

#[tokio::test]
async fn two_hundred_sessions_live_together_and_expire() -> Checked {
    let origin = Origin::start().await;
    let mut config = plain();
    config.udp_idle_timeout_ms = 5000;
    let (server, client) = reference_and_client(config, |_| ()).await?;
    let mut sessions = Vec::new();
    for _ in 0..200 {
        sessions.push(soon(client.udp()).await?);
    }
    for (at, session) in sessions.iter().enumerate() {
        udp_echo(session, &origin.udp_echo[at % 4], &bytes(300, at)).await?;
    }
    let mut numbers = BTreeSet::new();
    let mut ended = Vec::new();
    until("all sessions have expired", || {
        let number = |event: &Value| event["session"].as_u64().expect("a number");
        numbers.extend(server.events_so_far("udp_request").iter().map(number));
        ended.extend(server.events_so_far("udp_end"));
        ended.len() == 200
    })
    .await;
    assert_eq!(numbers.len(), 200, "each had a number of its own");
    for event in &ended {
        assert!(event.get("error").is_none_or(Value::is_null), "{event}");
    }
    // The client keeps them, and each comes back as another.
    udp_echo(&sessions[0], &origin.udp_echo[0], b"back").await?;
    Ok(())
}

/// The protocol has no message for the end of a session: the client notices nothing and the next
/// datagram of its session opens another at the server.
#[tokio::test]
async fn an_idle_session_ends_and_its_next_datagram_opens_another() -> Checked {
    let origin = Origin::start().await;
    let mut config = plain();
    config.udp_idle_timeout_ms = 2000;
    let (server, client) = reference_and_client(config, |_| ()).await?;
    let session = soon(client.udp()).await?;
    udp_echo(&session, &origin.udp_echo[0], b"once").await?;
    let number = server.udp_requested(&origin.udp_echo[0]).await;
    let fault = soon(server.udp_ended(number)).await;
    assert!(fault.is_none(), "{fault:?}");
    udp_echo(&session, &origin.udp_echo[1], b"back").await?;
    let again = server.udp_requested(&origin.udp_echo[1]).await;
    assert_eq!(again, number, "the client's number of the session");
    Ok(())
}

#[tokio::test]
async fn without_udp_the_client_knows() -> Checked {
    let mut config = plain();
    config.disable_udp = true;
    let (_server, client) = reference_and_client(config, |_| ()).await?;
    assert!(!client.info().await?.udp);
    let error = soon(client.udp()).await.expect_err("disabled");
    assert!(matches!(error, OpenError::UdpDisabled), "{error}");
    Ok(())
}
