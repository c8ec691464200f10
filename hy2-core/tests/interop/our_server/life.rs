//! How our server ends connections of reference clients: kick and drain.

use std::time::{Duration, Instant};

use hy2_core::{Bandwidth, authenticator::UserId, quinn::ConnectionError};

use crate::{
    ours::{Checked, MIB, OurServer, SECRET, until},
    peer::{Origin, Raw},
};

#[tokio::test]
async fn a_kick_ends_every_connection_of_the_user_with_its_code() -> Checked {
    let origin = Origin::start().await;
    let server = OurServer::start();
    let clients = [
        server.client(|_| ()).await,
        server.client(|c| c.no_parrot = true).await,
    ];
    for client in &clients {
        client.hold("k", &origin.silent, 2).await?;
        server.record.connected().await;
    }
    let kicked = server.server.handle().kick(&UserId::from("user"));
    assert_eq!(kicked, 2);
    for client in &clients {
        let fault = client.stream_ended("k", |_| true).await;
        assert_eq!(fault.cause, "application_close", "{fault}");
        assert_eq!((fault.code, fault.remote), (Some(0x107), Some(true)));
        let reason = server.record.disconnected().await;
        assert_eq!(reason, ConnectionError::LocallyClosed);
        println!("kicked: {fault}");
    }
    server.left_nothing(&origin).await?;
    for client in &clients {
        let back = client.reconnect(&origin.echo).await?;
        assert_eq!(back.connections, 2, "{back:?}");
        println!("back: {back:?}");
    }
    assert_eq!(server.server.handle().kick(&UserId::from("nobody")), 0);
    Ok(())
}

#[tokio::test]
async fn a_drained_server_finishes_what_runs_and_refuses_what_comes() -> Checked {
    let origin = Origin::start().await;
    let server = OurServer::with(|c| c.max_tx = Some(Bandwidth::from_bytes_per_sec(4_000_000)));
    // One with a transfer, one that is idle.
    let busy = server.client(|c| c.rx = 4_000_000).await;
    let idle = Raw::start(&server.client_config())
        .await
        .expect("a right configuration");
    idle.connect().await?;
    assert_eq!(idle.auth(SECRET, 0).await?.status, 233);
    busy.connect().await?;
    let late_config = server.client_config();

    let start = Instant::now();
    let OurServer { server, record, .. } = server;
    let handle = server.handle();
    let drain = async {
        until("the transfer runs", || {
            handle.users().iter().any(|user| user.traffic.rx > MIB)
        })
        .await;
        let draining = server.drain(Duration::from_secs(20));
        let meanwhile = async {
            let closed = idle.closed(Duration::from_secs(10)).await?;
            assert_eq!(closed.cause, "application_close", "{closed}");
            assert_eq!((closed.code, closed.remote), (Some(0x100), Some(true)));
            let refused = busy.dial(&origin.echo).await.expect_err("it drains").fault;
            assert_eq!(refused.kind, "dial", "{refused}");
            assert!(refused.text.contains("shutting down"), "{refused}");
            let late = crate::peer::Client::start(&late_config)
                .await
                .expect("right");
            let turned_away = late.connect().await.expect_err("it drains").fault;
            assert_eq!(turned_away.kind, "connect", "{turned_away}");
            println!("idle client: {closed}; new stream: {refused}; new client: {turned_away}");
            Ok::<_, crate::peer::CallError>(())
        };
        let ((), result) = tokio::join!(draining, meanwhile);
        result
    };
    let (down, ()) = tokio::try_join!(busy.download(&origin.source, 12_000_000, 8), drain)?;
    let took = start.elapsed();
    assert!(
        took < Duration::from_secs(15),
        "drained at the end of the transfer, not of the grace"
    );
    for _ in 0..2 {
        assert_eq!(record.disconnected().await, ConnectionError::LocallyClosed);
    }
    origin.all_closed(Duration::from_secs(5)).await?;
    println!(
        "{} bytes whole, sha256 {}, drained after {took:?}",
        down.bytes, down.sha256
    );
    Ok(())
}

#[tokio::test]
async fn what_outlives_the_grace_is_closed() -> Checked {
    let origin = Origin::start().await;
    let server = OurServer::start();
    let client = server.client(|_| ()).await;
    client.hold("h", &origin.silent, 3).await?;
    let start = Instant::now();
    server.server.drain(Duration::from_millis(700)).await;
    let took = start.elapsed();
    let fault = client.stream_ended("h", |_| true).await;
    assert!(took >= Duration::from_millis(700), "{took:?}: {fault}");
    assert_eq!(fault.cause, "application_close", "{fault}");
    assert_eq!((fault.code, fault.remote), (Some(0x100), Some(true)));
    origin.all_closed(Duration::from_secs(5)).await?;
    println!("drained after {took:?}: {fault}");
    Ok(())
}
