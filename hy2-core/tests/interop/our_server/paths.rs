//! Obfuscation under the reference client, and its port hopping.

use hy2_core::{Bandwidth, socket::Obfuscation};

use crate::{
    ours::{Checked, MIB, OurServer, until},
    peer::{Fan, Obfs, Origin},
};

const KEY: &str = "cry_me_a_r1ver";

fn obfs(kind: &'static str, password: &'static str) -> Obfs {
    Obfs {
        kind,
        password,
        ..Obfs::default()
    }
}

#[tokio::test]
async fn traffic_passes_under_salamander_and_gecko() -> Checked {
    let origin = Origin::start().await;
    for (kind, ours) in [
        ("salamander", Obfuscation::salamander(KEY)?),
        ("gecko", Obfuscation::gecko(KEY, 512, 1200)?),
    ] {
        let server = OurServer::with(|c| c.obfuscation = ours);
        for no_parrot in [false, true] {
            let client = server
                .client(|c| {
                    c.obfs = obfs(kind, KEY);
                    c.no_parrot = no_parrot;
                })
                .await;
            let down = client.download(&origin.source, 20 * MIB, 2).await?;
            let up = client.upload(&origin.sink, 20 * MIB, 2).await?;
            assert_eq!(down.sha256, up.sha256);
            let sizes = [1, 1000, 1200, 2000, 4000];
            let echoes = client.udp_echo(&origin.udp_echo[0], &sizes, 3).await?;
            assert_eq!(echoes.received, 15, "{echoes:?}");
            println!(
                "{kind}, no parrot {no_parrot}: 20 MiB down in {} ms, up in {} ms, {} datagrams",
                down.transfer_ms, up.transfer_ms, echoes.received
            );
        }
        server.left_nothing(&origin).await?;
    }
    Ok(())
}

#[tokio::test]
async fn another_obfuscation_meets_silence() -> Checked {
    let attempt = async |ours: Obfuscation, theirs: Obfs| -> Checked {
        let server = OurServer::with(|c| c.obfuscation = ours);
        let name = format!("{}/{}", theirs.kind, theirs.password);
        let client = server.client(|c| c.obfs = theirs).await;
        let fault = client.connect().await.expect_err("the keys differ").fault;
        assert_eq!(fault.kind, "connect", "{name}: {fault}");
        assert!(
            fault.cause.ends_with("timeout"),
            "{name}: {} {fault}",
            fault.cause
        );
        assert_eq!(server.server.handle().connection_count(), 0);
        println!("{name}: {fault}");
        Ok(())
    };
    let (a, b, c, d) = tokio::join!(
        attempt(
            Obfuscation::salamander(KEY)?,
            obfs("salamander", "another one")
        ),
        attempt(Obfuscation::salamander(KEY)?, Obfs::default()),
        attempt(Obfuscation::gecko(KEY, 512, 1200)?, obfs("salamander", KEY)),
        attempt(Obfuscation::Plain, obfs("salamander", KEY)),
    );
    a.and(b).and(c).and(d)
}

#[tokio::test]
async fn a_hopping_reference_client_keeps_its_transfers() -> Checked {
    let origin = Origin::start().await;
    let hopping = async |server: OurServer, obfuscated: bool| -> Checked {
        let fan = Fan::start(server.addr, 8).await;
        let mut config = server.client_config();
        config.server = fan.addr();
        // The library's shortest interval; some twelve seconds of transfer see two hops.
        config.hop_interval_ms = 5000;
        if obfuscated {
            config.obfs = obfs("salamander", KEY);
        }
        (config.tx, config.rx) = (5_000_000, 5_000_000);
        let client = crate::peer::Client::start(&config)
            .await
            .expect("a right configuration");
        client.connect().await?;
        let first = server.server.handle().connections()[0].remote;
        let transfers = async {
            tokio::try_join!(
                client.download(&origin.source, 60_000_000, 4),
                client.upload(&origin.sink, 60_000_000, 4),
            )
        };
        let (down, up) = transfers.await?;
        assert_eq!(down.sha256, up.sha256);
        let flows = fan.flows_opened().await?;
        assert!(flows >= 3, "only {flows} flows in {} ms", down.transfer_ms);
        let connections = server.server.handle().connections();
        assert_eq!(connections.len(), 1, "the connection survived");
        assert_ne!(connections[0].remote, first, "the server saw it move");
        let rate = server.server.handle().rate(connections[0].peer.connection);
        assert_eq!(
            rate,
            Some(Bandwidth::from_bytes_per_sec(5_000_000)),
            "the rate is kept"
        );
        println!(
            "obfuscated {obfuscated}: {} + {} bytes in {} ms over {flows} flows, {} packets lost of {}",
            down.bytes,
            up.bytes,
            down.transfer_ms.max(up.transfer_ms),
            connections[0].lost_packets,
            connections[0].sent_packets
        );
        Ok(())
    };
    let obfuscation = Obfuscation::salamander(KEY)?;
    let (plain, obfuscated) = tokio::join!(
        hopping(OurServer::start(), false),
        hopping(OurServer::with(|c| c.obfuscation = obfuscation), true),
    );
    plain.and(obfuscated)
}

/// The client speaks all the time, so that the server learns the new address at once. One that
/// only listens is silent until its keep-alive when the NAT forgets in a moment where everything
/// that came is acknowledged; no server can find it meanwhile.
#[tokio::test]
async fn a_nat_that_forgets_does_not_end_a_transfer() -> Checked {
    const PART: u64 = 10_000_000;
    let origin = Origin::start().await;
    let server = OurServer::start();
    let fan = Fan::start(server.addr, 1).await;
    let mut config = server.client_config();
    config.server = fan.addr();
    (config.tx, config.rx) = (10_000_000, 10_000_000);
    // A client that has acknowledged everything when its mapping goes has nothing to say until its next
    // keep-alive, and only what it says makes a new mapping. Ten seconds each would be too many.
    config.quic.keep_alive_ms = 2000;
    let client = crate::peer::Client::start(&config)
        .await
        .expect("a right configuration");
    client.connect().await?;
    let address = || server.server.handle().connections()[0].remote;
    for part in 0..4 {
        let (moved, known) = (server.traffic(), address());
        let transfers = async {
            Ok(tokio::try_join!(
                client.download(&origin.source, PART, part),
                client.upload(&origin.sink, PART, part),
            )?)
        };
        let forgetting = async {
            until("the transfers run", || {
                let now = server.traffic();
                (now.tx - moved.tx).min(now.rx - moved.rx) > PART / 4
            })
            .await;
            fan.rebind().await?;
            until("the server sees the client move", || address() != known).await;
            Checked::Ok(())
        };
        let ((down, up), ()) = tokio::try_join!(transfers, forgetting)?;
        assert_eq!(down.sha256, up.sha256);
        println!(
            "{PART} bytes down in {} ms, up in {} ms",
            down.transfer_ms, up.transfer_ms
        );
    }
    let connections = server.server.handle().connections();
    assert_eq!(connections.len(), 1, "the connection survived");
    let rate = server.server.handle().rate(connections[0].peer.connection);
    assert_eq!(
        rate,
        Some(Bandwidth::from_bytes_per_sec(10_000_000)),
        "the rate is kept"
    );
    let flows = fan.flows_opened().await?;
    assert!(flows >= 5, "{flows}");
    Ok(())
}
