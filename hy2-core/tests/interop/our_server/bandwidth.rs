//! Negotiated rates between the reference client and our server, and its speed test.

use hy2_core::Bandwidth;

use crate::{
    ours::{Checked, MIB, OurServer},
    peer::Origin,
};

/// What both ends say, in bytes per second, and what has to come of it; 0 for nothing.
struct Case {
    client: (u64, u64),
    server: (u64, u64),
    ignore: bool,
    /// The client's rate, then the server's.
    agreed: (u64, u64),
}

#[tokio::test]
async fn the_agreed_rates_are_the_reference_s() -> Checked {
    const M: u64 = 1_000_000;
    let case = |client, server, ignore, agreed| Case {
        client,
        server,
        ignore,
        agreed,
    };
    for Case {
        client,
        server,
        ignore,
        agreed,
    } in [
        case((12_500_000, 25 * M), (0, 0), false, (12_500_000, 25 * M)),
        case((50 * M, 60 * M), (10 * M, 20 * M), false, (20 * M, 10 * M)),
        case((5 * M, 6 * M), (10 * M, 20 * M), false, (5 * M, 6 * M)),
        case((5 * M, 0), (10 * M, 20 * M), false, (5 * M, 0)),
        case((0, 6 * M), (10 * M, 20 * M), false, (0, 6 * M)),
        case((0, 0), (10 * M, 20 * M), false, (0, 0)),
        case((5 * M, 6 * M), (0, 0), true, (0, 0)),
        case((5 * M, 6 * M), (10 * M, 20 * M), true, (0, 0)),
    ] {
        let rate = |rate: u64| (rate > 0).then(|| Bandwidth::from_bytes_per_sec(rate));
        let ours = OurServer::with(|c| {
            (c.max_tx, c.max_rx) = (rate(server.0), rate(server.1));
            c.ignore_client_bandwidth = ignore;
        });
        let theirs = ours.client(|c| (c.tx, c.rx) = client).await;
        let handshake = theirs.connect().await?;
        let (connection, reported) = ours.record.connected().await;
        let rate = ours.server.handle().rate(connection);
        let in_force = rate.map(Bandwidth::bytes_per_sec);
        let what = format!("client {client:?}, server {server:?}, ignore {ignore}");
        assert_eq!(reported, in_force, "{what}");
        assert_eq!((handshake.tx, in_force.unwrap_or(0)), agreed, "{what}");
        println!("{what}: client sends {}, server {in_force:?}", handshake.tx);
    }
    Ok(())
}

#[tokio::test]
async fn brutal_keeps_to_the_agreed_rates_both_ways() -> Checked {
    const RATE: u64 = 8_000_000;
    let origin = Origin::start().await;
    let server = OurServer::with(|c| {
        let rate = Some(Bandwidth::from_bytes_per_sec(RATE));
        (c.max_tx, c.max_rx) = (rate, rate);
    });
    let client = server.client(|c| (c.tx, c.rx) = (2 * RATE, 2 * RATE)).await;
    assert_eq!(client.connect().await?.tx, RATE);
    let down = client.download(&origin.source, 16 * MIB, 5).await?;
    let up = client.upload(&origin.sink, 16 * MIB, 5).await?;
    assert_eq!(down.sha256, up.sha256);
    for (way, transfer) in [("down", down), ("up", up)] {
        let rate = 16.0 * MIB as f64 / transfer.transfer_ms * 1000.0;
        // Loss, which a busy machine may cause, raises Brutal's rate by at most a quarter.
        assert!(rate < 1.3 * RATE as f64, "{way}: {rate} of {RATE}");
        assert!(rate > 0.3 * RATE as f64, "{way}: {rate} of {RATE}");
        println!("{way}: {rate:.0} bytes/s of {RATE}");
    }
    let figures = server.server.handle().connections()[0].congestion;
    println!("{figures:?}");
    Ok(())
}

#[tokio::test]
async fn the_speed_test_counts_the_same_bytes() -> Checked {
    let server = OurServer::with(|c| c.speed_test = true);
    let client = server.client(|_| ()).await;
    let down = client.speedtest_download(30_000_001).await?;
    let up = client.speedtest_upload(20_000_003).await?;
    assert_eq!((down.bytes, up.bytes), (30_000_001, 20_000_003));
    println!("speed test: down {down:?}, up {up:?}");

    let server = OurServer::start();
    let client = server.client(|_| ()).await;
    let fault = client
        .speedtest_download(1000)
        .await
        .expect_err("it is off")
        .fault;
    assert_eq!(fault.kind, "dial", "{fault}");
    println!("switched off: {fault}");
    Ok(())
}
