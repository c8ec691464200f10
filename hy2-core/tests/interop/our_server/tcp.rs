//! TCP of the reference client through our server.

use std::time::Duration;

use crate::{
    ours::{Checked, MIB, OurServer},
    peer::Origin,
};

#[tokio::test]
async fn a_hundred_mebibytes_arrive_unchanged_each_way() -> Checked {
    let origin = Origin::start().await;
    let server = OurServer::start();
    let client = server.client(|_| ()).await;
    let down = client.download(&origin.source, 100 * MIB, 7).await?;
    let up = client.upload(&origin.sink, 100 * MIB, 7).await?;
    assert_eq!((down.bytes, up.bytes), (100 * MIB, 100 * MIB));
    assert_eq!(down.sha256, up.sha256);
    server.left_nothing(&origin).await?;
    // Beside the data: a request line to each origin, and the sink's answer in one line.
    let traffic = server.traffic();
    let lines = 10..300;
    assert!(lines.contains(&(traffic.rx - 100 * MIB)), "{traffic:?}");
    assert!(lines.contains(&(traffic.tx - 100 * MIB)), "{traffic:?}");
    println!(
        "100 MiB down in {} ms, up in {} ms, sha256 {}, counted {traffic:?}",
        down.transfer_ms, up.transfer_ms, up.sha256
    );
    Ok(())
}

#[tokio::test]
async fn a_thousand_streams_are_open_at_once() -> Checked {
    let origin = Origin::start().await;
    let server = OurServer::start();
    let client = server.client(|_| ()).await;
    let run = client.many_streams(&origin.echo, 1000, 2000).await?;
    assert_eq!((run.opened, run.completed), (1000, 1000));
    assert!(run.errors.is_empty(), "{run:?}");
    server.left_nothing(&origin).await?;
    let accepted = origin.ports().await?["echo"].accepted;
    assert_eq!(accepted, 1001, "the warm-up stream and the thousand");
    assert_eq!(server.traffic().rx, 1 + 1000 * 2000);
    println!("{run:?}, origin accepted {accepted}");
    Ok(())
}

#[tokio::test]
async fn five_thousand_streams_follow_one_another() -> Checked {
    let origin = Origin::start().await;
    let server = OurServer::start();
    let mut client = server.client(|_| ()).await;
    client.limit = Duration::from_secs(300);
    let run = client.sequential(&origin.echo, 5000, 100).await?;
    assert_eq!(run.completed, 5000, "{:?}", run.errors);
    server.left_nothing(&origin).await?;
    let traffic = server.traffic();
    assert_eq!((traffic.tx, traffic.rx), (500_000, 500_000));
    assert_eq!(server.server.handle().connections().len(), 1);
    println!("{} streams on one connection, {traffic:?}", run.completed);
    Ok(())
}

#[tokio::test]
async fn a_target_that_speaks_first_is_heard() -> Checked {
    let origin = Origin::start().await;
    let server = OurServer::start();
    for fast_open in [false, true] {
        let client = server.client(|c| c.fast_open = fast_open).await;
        let spoken = client
            .server_speaks(&origin.banner, Origin::BANNER.len() as u64)
            .await?;
        assert_eq!(spoken.text, Origin::BANNER);
        println!("fast open {fast_open}: heard {:?}", spoken.text);
    }
    server.left_nothing(&origin).await
}

#[tokio::test]
async fn fast_open_carries_early_data() -> Checked {
    let origin = Origin::start().await;
    let server = OurServer::start();
    let client = server.client(|c| c.fast_open = true).await;
    client.connect().await?;
    for bytes in [1, 1_000, 500_000] {
        let early = client.early_data(&origin.echo, bytes).await?;
        assert_eq!(early.bytes, bytes);
        println!("{bytes} early bytes, opened in {} ms", early.open_ms);
    }
    let down = client.download(&origin.source, MIB, 3).await?;
    let up = client.upload(&origin.sink, MIB, 3).await?;
    assert_eq!(down.sha256, up.sha256);
    server.left_nothing(&origin).await
}

#[tokio::test]
async fn connections_without_a_byte_leave_nothing() -> Checked {
    let origin = Origin::start().await;
    let server = OurServer::start();
    let mut clients = Vec::new();
    for fast_open in [false, true] {
        let client = server.client(|c| c.fast_open = fast_open).await;
        for target in [&origin.closer, &origin.echo, &origin.silent] {
            client.zero_bytes(target, 20).await?;
        }
        server.left_nothing(&origin).await?;
        clients.push(client);
    }
    let traffic = server.traffic();
    assert_eq!((traffic.tx, traffic.rx), (0, 0));
    let ports = origin.ports().await?;
    println!(
        "accepted: closer {}, echo {}, silent {}; {traffic:?}",
        ports["closer"].accepted, ports["echo"].accepted, ports["silent"].accepted
    );
    assert_eq!(
        server.server.handle().connections().len(),
        2,
        "none was lost"
    );
    Ok(())
}
