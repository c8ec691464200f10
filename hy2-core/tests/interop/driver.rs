//! Checks the driver with the reference on both ends: each typed helper reads what the peer
//! writes. What the reference itself does is checked beside it (`interop/selftest.sh`).

use std::time::Duration;

use crate::peer::{
    CallError, Client, ClientConfig, ClientTls, Fan, Obfs, Origin, Raw, Server, ServerConfig,
    Version, pattern,
};

const SECRET: &str = "a secret of the driver tests";

type Checked = Result<(), CallError>;

async fn pair(server: ServerConfig, adjust: impl FnOnce(&mut ClientConfig)) -> (Server, Client) {
    let server = Server::start(&server)
        .await
        .expect("the server configuration is right");
    let mut config = ClientConfig::new(server.addr, SECRET, server.trust());
    adjust(&mut config);
    let client = Client::start(&config)
        .await
        .expect("the client configuration is right");
    (server, client)
}

fn plain() -> ServerConfig {
    ServerConfig::with_password(SECRET)
}

#[tokio::test]
async fn tcp_helpers_read_what_the_peer_writes() -> Checked {
    let origin = Origin::start().await;
    let (server, client) = pair(plain(), |_| ()).await;
    let handshake = client.connect().await?;
    assert!(handshake.udp);
    assert_eq!((handshake.tx, handshake.count), (0, 1));
    assert_eq!(server.auth().await["accepted"], true);
    assert_eq!(server.connected("user").await, 0);

    assert_eq!(
        client.tcp_echo(&origin.echo, 70_000, 5).await?.bytes,
        70_000
    );
    server.tcp_requested(&origin.echo).await;
    assert!(server.tcp_ended(&origin.echo).await.is_none());
    let down = client.download(&origin.source, 3_000_000, 9).await?;
    let up = client.upload(&origin.sink, 3_000_000, 9).await?;
    assert_eq!(down.sha256, up.sha256);
    assert!(down.transfer_ms > 0.0 && down.open_ms == 0.0);
    let pause = Duration::from_millis(30);
    assert!(
        client
            .download_with_pause(&origin.source, 100_000, 10, pause)
            .await?
            .transfer_ms
            >= 30.0
    );
    assert!(
        client
            .upload_to_stalled(&origin.stall, 100_000, 10, pause)
            .await?
            .transfer_ms
            >= 30.0
    );
    assert_eq!(client.many_streams(&origin.echo, 50, 100).await?.opened, 50);
    assert!(
        client
            .sequential(&origin.echo, 20, 10)
            .await?
            .errors
            .is_empty()
    );
    let spoken = client
        .server_speaks(&origin.banner, Origin::BANNER.len() as u64)
        .await?;
    assert_eq!(
        (spoken.text.as_str(), spoken.bytes as usize),
        (Origin::BANNER, Origin::BANNER.len())
    );
    client.zero_bytes(&origin.closer, 3).await?;
    client.dial(&origin.silent).await?;
    let reset = client
        .tcp_echo(&origin.resetter, 10, 0)
        .await
        .expect_err("the target resets");
    assert_eq!(reset.cmd, "tcp_echo");

    let refused = client
        .dial(&origin.refused)
        .await
        .expect_err("the port refuses");
    assert_eq!(refused.fault.kind, "dial");
    assert!(refused.fault.text.contains("refused"), "{refused}");
    let traffic = server.stats().await?.traffic["user"];
    assert!(traffic.tx > 3_000_000 && traffic.rx > 3_000_000);
    assert!(!server.events_so_far("tcp_request").is_empty());
    client.close().await?;
    origin.all_closed(Duration::from_secs(10)).await?;
    let ports = origin.ports().await?;
    assert!(ports["source"].accepted == 2 && ports["source"].bytes_out >= 3_000_000);
    assert!(ports["sink"].bytes_in == 3_000_000);
    Ok(())
}

#[tokio::test]
async fn udp_helpers_read_what_the_peer_writes() -> Checked {
    let origin = Origin::start().await;
    let (server, mut client) = pair(
        ServerConfig {
            tamper: true,
            ..plain()
        },
        |c| c.tamper = true,
    )
    .await;
    client.connect().await?;
    client.tamper(3, 0).await?;
    server.tamper(3, 0).await?;
    let echoes = client.udp_echo(&origin.udp_echo[0], &[1, 3000], 2).await?;
    assert_eq!((echoes.sent, echoes.received, echoes.lost.len()), (4, 4, 0));
    assert_eq!(echoes.from[&origin.udp_echo[0]], 4);
    assert_eq!(server.udp_requested(&origin.udp_echo[0]).await, 2); // the first was for connect
    assert!(client.stats().await?["wire"]["sent"]["packets"].as_u64() > Some(4));
    assert!(server.stats().await?.wire["sent"]["bytes"].as_u64() > Some(6000));
    server.tamper(0, 0).await?;
    client.tamper(0, 0).await?;
    let burst = client.udp_burst(&origin.udp_echo[0], 100, 20, 500).await?;
    assert!(
        burst.received > 15 && burst.duplicates == 0 && burst.reordered < 20,
        "{burst:?}"
    );
    assert_eq!(
        client
            .udp_sessions(&origin.udp_echo[0], 10, 20)
            .await?
            .completed,
        10
    );
    client.udp_multi_target(&origin.udp_echo, 30, 2).await?;

    client.udp_open("a").await?;
    client
        .udp_send("a", &origin.udp_cone, &pattern(3, 2_000_000)[1_999_990..])
        .await?;
    let got = client.udp_recv("a").await?;
    assert_eq!(
        (got.from, got.data),
        (
            origin.udp_cone_reply.clone(),
            pattern(3, 2_000_000)[1_999_990..].to_vec()
        )
    );
    client.limit = Duration::from_millis(50);
    assert_eq!(
        client
            .udp_recv("a")
            .await
            .expect_err("nothing was sent")
            .fault
            .kind,
        "timeout"
    );
    client.udp_send("a", &origin.udp_sink, b"x").await?;
    client.udp_close("a").await
}

#[tokio::test]
async fn idle_sessions_and_disabled_udp_are_seen() -> Checked {
    let origin = Origin::start().await;
    let (server, client) = pair(
        ServerConfig {
            udp_idle_timeout_ms: 2000,
            ..plain()
        },
        |_| (),
    )
    .await;
    client.udp_open("a").await?;
    client.udp_send("a", &origin.udp_echo[1], b"once").await?;
    let session = server.udp_requested(&origin.udp_echo[1]).await;
    assert!(server.udp_ended(session).await.is_none());

    let (_server, client) = pair(
        ServerConfig {
            disable_udp: true,
            ..plain()
        },
        |_| (),
    )
    .await;
    assert!(!client.connect().await?.udp);
    assert_eq!(
        client
            .udp_open("a")
            .await
            .expect_err("UDP is off")
            .fault
            .kind,
        "dial"
    );
    Ok(())
}

#[tokio::test]
async fn failed_authentication_and_wrong_pins_are_told_apart() -> Checked {
    let (server, client) = pair(plain(), |c| c.auth = "wrong".to_owned()).await;
    let fault = client
        .connect()
        .await
        .expect_err("the password is wrong")
        .fault;
    assert_eq!((fault.kind.as_str(), fault.status), ("auth", Some(404)));
    let tls = ClientTls {
        pin: "00".repeat(32),
        ..server.trust()
    };
    let client = Client::start(&ClientConfig::new(server.addr, SECRET, tls))
        .await
        .expect("a right configuration");
    let fault = client.connect().await.expect_err("the pin is wrong").fault;
    assert_eq!(
        (fault.kind.as_str(), fault.cause.as_str()),
        ("connect", "transport_close")
    );
    let tls = ClientTls {
        ca: server.cert.clone(),
        sni: server.sni.clone(),
        ..ClientTls::default()
    };
    let mutual = ServerConfig {
        tls_cert: server.cert.clone(),
        tls_key: server.key.clone(),
        ..plain()
    };
    let (_second, client) = pair(mutual, |c| c.tls = tls).await;
    client.connect().await.map(|_| ())
}

#[tokio::test]
async fn a_kick_is_seen_with_its_code_and_ends() -> Checked {
    let origin = Origin::start().await;
    let (server, client) = pair(plain(), |_| ()).await;
    client.hold("k", &origin.silent, 2).await?;
    assert_eq!(server.stats().await?.online["user"], 1);
    server.kick("user").await?;
    drop(client.poke("k", 1).await); // the kick may already have closed the second stream
    let fault = client
        .stream_ended("k", |f| f.cause == "application_close")
        .await;
    assert_eq!((fault.code, fault.remote), (Some(0x107), Some(true)));
    server.disconnected("user").await;
    client.release("k").await?;
    server.ban("user").await?;
    client
        .tcp_echo(&origin.echo, 10, 0)
        .await
        .expect_err("the user is banned");
    server.unban("user").await?;
    let back = client.reconnect(&origin.echo).await?;
    assert!(
        back.connections >= 2 && back.attempts >= 1 && back.errors.len() < 2,
        "{back:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_restarted_server_is_found_again_by_both_versions() -> Checked {
    for version in [Version::Current, Version::Core210] {
        let origin = Origin::start().await;
        // Without a fixed key, which core 2.10 has not, the idle timeout tells the client.
        let config = ServerConfig {
            fixed_reset_key: version == Version::Current,
            ..plain()
        };
        let server = Server::start_version(version, &config)
            .await
            .expect("a right configuration");
        let mut config = ClientConfig::new(server.addr, SECRET, server.trust());
        config.quic.max_idle_timeout_ms = 4000;
        let client = Client::start_version(version, &config)
            .await
            .expect("a right configuration");
        client.tcp_echo(&origin.echo, 10, 0).await?;
        server.stop().await?;
        assert!(!server.stats().await?.running);
        server.start_again().await?;
        assert_eq!(client.reconnect(&origin.echo).await?.connections, 2);
        assert!(server.stats().await?.process["pid"].is_u64());
    }
    Ok(())
}

#[tokio::test]
async fn obfuscation_fan_and_forwards_work_together() -> Checked {
    let origin = Origin::start().await;
    let obfs = Obfs {
        kind: "salamander",
        password: "cry_me_a_r1ver",
        ..Obfs::default()
    };
    let server = Server::start(&ServerConfig {
        obfs: obfs.clone(),
        speedtest: true,
        rx: 90_000_000,
        ..plain()
    })
    .await
    .expect("a right configuration");
    let fan = Fan::start(server.addr, 2).await;
    let mut config = ClientConfig::new(fan.addr(), SECRET, server.trust());
    config.obfs = obfs;
    config.hop_interval_ms = 5000;
    config.tx = 100_000_000;
    config.fast_open = true;
    let client = Client::start(&config).await.expect("a right configuration");
    assert_eq!(client.connect().await?.tx, 90_000_000);
    fan.rebind().await?;
    assert_eq!(client.early_data(&origin.echo, 5000).await?.bytes, 5000);
    assert!(fan.flows_opened().await? >= 2 && fan.ports.len() == 2);
    assert_eq!(
        client
            .dial_and_read(&origin.refused)
            .await
            .expect_err("it refuses")
            .fault
            .kind,
        "dial"
    );
    assert_eq!(client.speedtest_download(100_000).await?.bytes, 100_000);
    assert_eq!(client.speedtest_upload(100_000).await?.bytes, 100_000);

    let (_server, through) = pair(plain(), |_| ()).await;
    through
        .upload(client.forward_tcp(&origin.sink).await?, 200_000, 1)
        .await?;
    through
        .udp_echo(client.forward_udp(&origin.udp_echo[0]).await?, &[500], 1)
        .await?;
    Ok(())
}

#[tokio::test]
async fn raw_helpers_read_what_the_peer_writes() -> Checked {
    let origin = Origin::start().await;
    let server = Server::start(&plain())
        .await
        .expect("a right configuration");
    let raw = Raw::start(&ClientConfig::new(server.addr, SECRET, server.trust()))
        .await
        .expect("a right configuration");
    let connected = raw.connect().await?;
    assert_eq!(connected.leaf, server.pin);
    assert!(!connected.cipher.is_empty() && (connected.gso || cfg!(not(target_os = "linux"))));
    let page = raw.request("GET", "localhost", "/").await?;
    assert_eq!(
        (page.status, page.body.as_str()),
        (404, "404 page not found\n")
    );
    assert_eq!(page.headers["X-Content-Type-Options"], ["nosniff"]);

    let mut request = b"\x44\x01".to_vec();
    request.push(u8::try_from(origin.echo.len()).expect("a loopback address is short"));
    request.extend_from_slice(origin.echo.as_bytes());
    request.push(0);
    let silent = raw
        .stream(&[&request], false, 0, Duration::from_millis(200))
        .await?;
    assert_eq!((silent.end.as_str(), silent.data.len()), ("silence", 0));
    assert!(silent.error.is_none());
    assert_eq!(raw.auth(SECRET, 0).await?.status, 233);
    let answer = raw
        .stream(&[&request, b"hello"], false, 0, Duration::from_millis(300))
        .await?;
    assert!(
        answer.data.starts_with(b"\0\x09Connected") && answer.data.ends_with(b"hello"),
        "{answer:?}"
    );

    let udp = &origin.udp_echo[0];
    let fragment = |id: u8, data: &[u8]| {
        let mut message = vec![0, 0, 0, 7, 0, 1, id, 2, udp.len() as u8];
        message.extend_from_slice(udp.as_bytes());
        message.extend_from_slice(data);
        message
    };
    let echoed = raw
        .datagrams(
            &[fragment(1, b"lo"), fragment(0, b"hel")],
            1,
            Duration::from_secs(2),
        )
        .await?;
    assert!(
        echoed.len() == 1 && echoed[0].ends_with(b"hello"),
        "{echoed:?}"
    );
    raw.hang_up(0x100).await?;
    let end = raw.closed(Duration::from_secs(5)).await?;
    assert_eq!(
        (end.cause.as_str(), end.code, end.remote),
        ("application_close", Some(0x100), Some(false))
    );
    Ok(())
}

#[tokio::test]
async fn a_refused_configuration_is_a_fault() {
    let fault = Server::start(&ServerConfig::default())
        .await
        .expect_err("there is no password");
    assert_eq!(fault.kind, "usage");
    let fault = Server::start(&ServerConfig { tx: 1, ..plain() })
        .await
        .expect_err("the rate is too low");
    assert_eq!(fault.kind, "config");
}
