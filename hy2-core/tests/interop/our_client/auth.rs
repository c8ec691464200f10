//! Getting in, or not, and on which terms.

use hy2_core::{Bandwidth, Client, congestion::Algorithm, error::ConnectError, tls::ClientTls};

use crate::{
    ours::{Checked, MIB, Through, config_for, plain, reference_and_client, soon},
    peer::{Origin, Server},
};

#[tokio::test]
async fn a_wrong_secret_a_wrong_pin_and_an_unknown_issuer_are_told_apart() -> Checked {
    let server = Server::start(&plain()).await.expect("a server");
    let mut wrong = config_for(&server);
    wrong.auth = "wrong".to_owned();
    let error = soon(Client::connect(wrong)).await.expect_err("rejected");
    assert!(
        matches!(error, ConnectError::AuthRejected { status: 404 }),
        "{error}"
    );

    let mut pinned = config_for(&server);
    pinned.tls.pin_sha256 = ClientTls::parse_pin(&"ab".repeat(32));
    let error = soon(Client::connect(pinned))
        .await
        .expect_err("another certificate");
    assert!(matches!(error, ConnectError::PinMismatch), "{error}");

    let mut untrusting = config_for(&server);
    untrusting.tls.insecure = false;
    let error = soon(Client::connect(untrusting))
        .await
        .expect_err("self-signed");
    assert!(matches!(error, ConnectError::Tls(_)), "{error}");

    soon(Client::connect(config_for(&server))).await?;
    Ok(())
}

#[tokio::test]
async fn the_agreed_rates_are_the_reference_s() -> Checked {
    // (server tx, server rx, our up, our down) -> (we send at, the server sends at).
    let cases = [
        ((0, 0, 1_000_000, 2_000_000), (Some(1_000_000), 2_000_000)),
        (
            (1_500_000, 600_000, 1_000_000, 2_000_000),
            (Some(600_000), 1_500_000),
        ),
        ((0, 0, 0, 0), (None, 0)),
        ((0, 600_000, 0, 2_000_000), (None, 2_000_000)),
    ];
    for ((tx, rx, up, down), (ours, theirs)) in cases {
        let mut config = plain();
        (config.tx, config.rx) = (tx, rx);
        let rate = |bytes| (bytes > 0).then_some(Bandwidth::from_bytes_per_sec(bytes));
        let (server, client) = reference_and_client(config, |c| {
            (c.up, c.down) = (rate(up), rate(down));
        })
        .await?;
        let agreed = client.info().await?.tx.map(Bandwidth::bytes_per_sec);
        let at_server = server.connected("user").await;
        println!("{tx}/{rx} and {up}/{down}: we send at {agreed:?}, the server at {at_server}");
        assert_eq!((agreed, at_server), (ours, theirs));
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_ignores_bandwidth_is_not_sent_to_by_brutal() -> Checked {
    let origin = Origin::start().await;
    let mut config = plain();
    config.ignore_client_bandwidth = true;
    let (server, client) = reference_and_client(config, |c| {
        c.up = Some(Bandwidth::from_bytes_per_sec(1_000_000));
        c.down = c.up;
    })
    .await?;
    let info = client.info().await?;
    assert_eq!(info.tx, None);
    assert!(
        matches!(info.congestion.algorithm, Algorithm::Bbr(_)),
        "{info:?}"
    );
    assert_eq!(server.connected("user").await, 0);
    Through(&client).upload(&origin.sink, 5 * MIB, 1).await?;
    Ok(())
}

#[tokio::test]
async fn brutal_carries_both_ways_at_the_agreed_rates() -> Checked {
    let origin = Origin::start().await;
    let rate = Bandwidth::from_bytes_per_sec(12_500_000);
    let (server, client) = reference_and_client(plain(), |c| {
        (c.up, c.down) = (Some(rate), Some(rate));
    })
    .await?;
    assert_eq!(client.info().await?.tx, Some(rate));
    assert_eq!(server.connected("user").await, rate.bytes_per_sec());
    let up = Through(&client).upload(&origin.sink, 10 * MIB, 1).await?;
    let down = Through(&client)
        .download(&origin.source, 10 * MIB, 1)
        .await?;
    println!("up in {:?}, down in {:?}, at 12.5 MB/s", up.took, down.took);
    let sending = client.info().await?.congestion;
    assert_eq!(sending.target_rate, rate.bytes_per_sec());
    assert_eq!(up.sha256, down.sha256);
    // A bucket's burst aside, no rate above the agreed one.
    assert!(up.took.as_secs_f64() >= 0.75, "{up:?}");
    Ok(())
}
