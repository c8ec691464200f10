//! Who gets in, and what the others see.

use crate::{
    ours::{Checked, Event, OurServer, SECRET},
    peer::{Client, ClientConfig, ClientTls, Origin, Version},
};

#[tokio::test]
async fn the_right_secret_gets_in() -> Checked {
    let origin = Origin::start().await;
    let server = OurServer::start();
    let client = server.client(|_| ()).await;
    let handshake = client.connect().await?;
    assert_eq!((handshake.udp, handshake.tx), (true, 0));
    assert_eq!(server.record.connected().await.1, None);
    client.tcp_echo(&origin.echo, 70_000, 5).await?;
    assert_eq!(server.record.tcp_closed(&origin.echo).await, None);
    server.left_nothing(&origin).await?;
    let traffic = server.traffic();
    assert_eq!((traffic.tx, traffic.rx), (70_000, 70_000));
    client.close().await?;
    let reason = server.record.disconnected().await;
    assert!(reason.to_string().contains("256"), "0x100, not {reason}");
    println!("{handshake:?}, echo counted {traffic:?}, left with: {reason}");
    Ok(())
}

#[tokio::test]
async fn a_wrong_secret_sees_a_web_site() -> Checked {
    let server = OurServer::start();
    for version in [Version::Current, Version::Core210] {
        for secret in ["wrong", "", &SECRET[1..]] {
            let mut config = server.client_config();
            config.auth = secret.to_owned();
            let client = Client::start_version(version, &config)
                .await
                .expect("a right configuration");
            let fault = client.connect().await.expect_err("it is wrong").fault;
            assert_eq!(fault.kind, "auth", "{fault}");
            let status = fault.status.expect("the status of the web site");
            assert!((400..500).contains(&status), "{fault}");
            println!("{version:?}, {secret:?}: {fault}");
        }
    }
    let let_in = server.record.take_now(|event| match event {
        Event::Connected { .. } => Some(()),
        _ => None,
    });
    assert!(let_in.is_none() && server.server.handle().users().is_empty());
    Ok(())
}

#[tokio::test]
async fn the_certificate_is_checked_by_the_reference_client() -> Checked {
    let server = OurServer::start();
    let tls = ClientTls {
        pin: "00".repeat(32),
        ..server.client_config().tls
    };
    let client = Client::start(&ClientConfig::new(server.addr, SECRET, tls))
        .await
        .expect("a right configuration");
    let fault = client.connect().await.expect_err("the pin is wrong").fault;
    assert_eq!(fault.kind, "connect", "{fault}");
    println!("another pin: {fault}");
    Ok(())
}
