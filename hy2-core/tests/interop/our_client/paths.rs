//! Obfuscation and port hopping of our client.

use std::time::Duration;

use hy2_core::{
    Client,
    client::ServerAddress,
    error::ConnectError,
    socket::{HopInterval, Obfuscation},
};

use crate::{
    ours::{
        Checked, MIB, Through, bytes, config_for, config_towards, plain, reference_and_client,
        soon, udp_echo,
    },
    peer::{Fan, Obfs, Origin, Server, ServerConfig},
};

const KEY: &str = "cry_me_a_r1ver";

fn obfuscated(kind: &'static str) -> ServerConfig {
    let mut config = plain();
    config.obfs = Obfs {
        kind,
        password: KEY,
        ..Obfs::default()
    };
    config
}

#[tokio::test]
async fn traffic_passes_under_salamander_and_gecko() -> Checked {
    let origin = Origin::start().await;
    for (kind, ours) in [
        ("salamander", Obfuscation::salamander(KEY)?),
        ("gecko", Obfuscation::gecko(KEY, 512, 1200)?),
    ] {
        let (_server, client) =
            reference_and_client(obfuscated(kind), |c| c.obfuscation = ours).await?;
        let down = Through(&client)
            .download(&origin.source, 20 * MIB, 2)
            .await?;
        let up = Through(&client).upload(&origin.sink, 20 * MIB, 2).await?;
        assert_eq!(down.sha256, up.sha256);
        let session = soon(client.udp()).await?;
        for len in [1, 1000, 1200, 4000] {
            udp_echo(&session, &origin.udp_echo[0], &bytes(len, 1)).await?;
        }
        println!(
            "{kind}: 20 MiB down in {:?}, up in {:?}",
            down.took, up.took
        );
    }
    Ok(())
}

#[tokio::test]
async fn another_obfuscation_is_silence() -> Checked {
    let server = Server::start(&obfuscated("salamander"))
        .await
        .expect("a server");
    let mut config = config_for(&server);
    config.connect_timeout = Duration::from_secs(3);
    let error = soon(Client::connect(config)).await.expect_err("silence");
    assert!(matches!(error, ConnectError::Silence), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_hopping_client_keeps_its_transfers() -> Checked {
    let origin = Origin::start().await;
    let server = Server::start(&plain()).await.expect("a server");
    let fan = Fan::start(server.addr, 6).await;
    let list: Vec<String> = fan.ports.iter().map(u16::to_string).collect();
    let mut config = config_towards(
        &server,
        ServerAddress {
            host: "127.0.0.1".to_owned(),
            ports: list.join(",").parse()?,
        },
    );
    config.hop = HopInterval::unchecked(Duration::from_millis(300), Duration::from_millis(300));
    // Slow enough for several hops.
    let rate = Some(hy2_core::Bandwidth::from_bytes_per_sec(8_000_000));
    (config.up, config.down) = (rate, rate);
    let client = soon(Client::connect(config)).await?;
    let down = Through(&client)
        .download(&origin.source, 12 * MIB, 3)
        .await?;
    let up = Through(&client).upload(&origin.sink, 12 * MIB, 3).await?;
    assert_eq!(down.sha256, up.sha256);
    let flows = fan.flows_opened().await?;
    println!(
        "{flows} flows, down in {:?}, up in {:?}",
        down.took, up.took
    );
    assert!(flows >= 5, "{flows}");
    Ok(())
}
