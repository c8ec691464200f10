//! Targets that cannot be reached: the reference client is told, and nothing stays behind.

use crate::{
    ours::{Checked, OurServer, UNREACHABLE, UNRESOLVABLE},
    peer::Origin,
};

#[tokio::test]
async fn targets_out_of_reach_are_errors_and_leave_nothing() -> Checked {
    let origin = Origin::start().await;
    let server = OurServer::start();
    let cases = [
        (origin.refused.as_str(), "connection refused"),
        (UNREACHABLE, "target unreachable"),
        (UNRESOLVABLE, "name does not resolve"),
    ];
    let mut clients = Vec::new();
    for fast_open in [false, true] {
        let client = server.client(|c| c.fast_open = fast_open).await;
        for (target, words) in cases {
            // With fast open only a read learns of it.
            let fault = match fast_open {
                false => client.dial(target).await,
                true => client.dial_and_read(target).await,
            }
            .expect_err("nobody is there")
            .fault;
            assert_eq!(fault.kind, "dial", "{target}: {fault}");
            assert!(fault.text.contains(words), "{target}: {fault}");
            let reason = server.record.tcp_closed(target).await;
            assert!(reason.is_some(), "{target}: the server reports why");
            println!("fast open {fast_open}, {target}: {fault} (server: {reason:?})");
        }
        server.left_nothing(&origin).await?;
        // The connection goes on.
        client.tcp_echo(&origin.echo, 1000, 1).await?;
        clients.push(client);
    }
    server.left_nothing(&origin).await?;
    let traffic = server.traffic();
    assert_eq!((traffic.tx, traffic.rx), (2000, 2000), "the two echoes");
    assert_eq!(server.server.handle().connections().len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_target_that_resets_ends_the_stream_with_an_error() -> Checked {
    let origin = Origin::start().await;
    let server = OurServer::start();
    let client = server.client(|_| ()).await;
    let fault = client
        .tcp_echo(&origin.resetter, 10, 0)
        .await
        .expect_err("the target resets")
        .fault;
    let reason = server.record.tcp_closed(&origin.resetter).await;
    assert!(reason.is_some(), "the server reports why");
    server.left_nothing(&origin).await?;
    client.tcp_echo(&origin.echo, 1000, 1).await?;
    println!("reset target: {fault} (server: {reason:?})");
    Ok(())
}

#[tokio::test]
async fn a_client_that_leaves_while_its_target_is_dialled_leaves_nothing() -> Checked {
    let origin = Origin::start().await;
    let server = OurServer::start();
    let mut client = server.client(|_| ()).await;
    client.hold("h", &origin.silent, 20).await?;
    assert_eq!(server.traffic().streams, 20);
    client.limit = std::time::Duration::from_secs(5);
    client.close().await?;
    let reason = server.record.disconnected().await;
    server.left_nothing(&origin).await?;
    assert!(server.server.handle().connections().is_empty());
    println!("20 streams ended with the connection: {reason}");
    Ok(())
}
