//! TCP of our client through the reference server.

use std::time::Duration;

use futures_util::{FutureExt, future::try_join_all};
use hy2_core::error::OpenError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    ours::{
        Checked, MIB, PATIENCE, Through, UNREACHABLE, UNRESOLVABLE, echo_on, plain,
        reference_and_client, soon,
    },
    peer::{CallError, Origin},
};

#[tokio::test]
async fn an_echo_comes_back_through_the_reference_server() -> Checked {
    let origin = Origin::start().await;
    let (server, client) = reference_and_client(plain(), |_| ()).await?;
    let info = client.info().await?;
    assert!(info.udp && info.tx.is_none());
    assert_eq!(server.connected("user").await, 0);
    Through(&client).echo(&origin.echo, 70_000, 5).await?;
    assert!(server.tcp_ended(&origin.echo).await.is_none());
    origin.all_closed(PATIENCE).await?;
    let traffic = server.stats().await?.traffic["user"];
    assert_eq!((traffic.tx, traffic.rx), (70_000, 70_000));
    println!("echo of 70000 bytes, counted {traffic:?}");
    Ok(())
}

#[tokio::test]
async fn a_hundred_mebibytes_arrive_unchanged_each_way() -> Checked {
    let origin = Origin::start().await;
    let (_server, client) = reference_and_client(plain(), |_| ()).await?;
    let down = Through(&client)
        .download(&origin.source, 100 * MIB, 7)
        .await?;
    let up = Through(&client).upload(&origin.sink, 100 * MIB, 7).await?;
    assert_eq!((down.bytes, &down.sha256), (up.bytes, &up.sha256));
    origin.all_closed(PATIENCE).await?;
    println!(
        "100 MiB down at {:.0} MiB/s, up at {:.0} MiB/s in {:?}",
        down.mebibytes_per_second(),
        up.mebibytes_per_second(),
        up.took
    );
    Ok(())
}

#[tokio::test]
async fn a_thousand_streams_are_open_at_once() -> Checked {
    let origin = Origin::start().await;
    let (server, client) = reference_and_client(plain(), |_| ()).await?;
    Through(&client).echo(&origin.echo, 10, 1).await?;
    origin.all_closed(PATIENCE).await?;
    let opening = (0..1000).map(|_| soon(client.tcp(&origin.echo)));
    let streams = try_join_all(opening).await?;
    // The origin may accept what is connected a moment later.
    soon(async {
        while origin.ports().await?["echo"].accepted < 1001 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok::<_, CallError>(())
    })
    .await?;
    assert_eq!(origin.ports().await?["echo"].open, 1000);
    let echoes = (0..).zip(streams);
    try_join_all(echoes.map(|(seed, stream)| echo_on(stream, 300, seed))).await?;
    origin.all_closed(PATIENCE).await?;
    let traffic = server.stats().await?.traffic["user"];
    assert_eq!((traffic.tx, traffic.rx), (300_010, 300_010));
    Ok(())
}

#[tokio::test]
async fn five_thousand_streams_follow_one_another() -> Checked {
    let origin = Origin::start().await;
    let (server, client) = reference_and_client(plain(), |_| ()).await?;
    for seed in 0..5000 {
        Through(&client).echo(&origin.echo, 100, seed).await?;
    }
    origin.all_closed(PATIENCE).await?;
    assert_eq!(origin.ports().await?["echo"].accepted, 5000);
    let traffic = server.stats().await?.traffic["user"];
    assert_eq!((traffic.tx, traffic.rx), (500_000, 500_000));
    server.connected("user").await;
    let others = server.events_so_far("connect");
    assert!(others.is_empty(), "one connection carries them: {others:?}");
    Ok(())
}

#[tokio::test]
async fn a_target_that_speaks_first_is_heard() -> Checked {
    let origin = Origin::start().await;
    for fast_open in [false, true] {
        let (_server, client) = reference_and_client(plain(), |c| c.fast_open = fast_open).await?;
        let mut stream = soon(client.tcp(&origin.banner)).await?;
        let mut banner = vec![0; Origin::BANNER.len()];
        soon(stream.read_exact(&mut banner)).await?;
        assert_eq!(banner, Origin::BANNER.as_bytes());
    }
    Ok(())
}

#[tokio::test]
async fn fast_open_carries_early_data() -> Checked {
    let origin = Origin::start().await;
    let (_server, client) = reference_and_client(plain(), |c| c.fast_open = true).await?;
    Through(&client).echo(&origin.echo, 50_000, 3).await?;
    let mut stream = soon(client.tcp(&origin.refused)).await?;
    soon(stream.write_all(b"early")).await?;
    let error = soon(stream.read(&mut [0; 8]))
        .await
        .expect_err("nobody is there");
    assert!(error.to_string().contains("refused"), "{error}");
    origin.all_closed(PATIENCE).await?;
    Ok(())
}

#[tokio::test]
async fn early_data_does_not_wait_for_the_answer() -> Checked {
    let origin = Origin::start().await;
    let mut config = plain();
    config.outbound.dial_delay_ms = 1000;
    let (_server, client) = reference_and_client(config, |c| c.fast_open = true).await?;
    let mut stream = soon(client.tcp(&origin.echo)).await?;
    soon(stream.write_all(b"early")).await?;
    let answered = stream.established().now_or_never();
    assert!(answered.is_none(), "the server still dials: {answered:?}");
    let mut back = [0; 5];
    soon(stream.read_exact(&mut back)).await?;
    assert_eq!(&back, b"early");
    Ok(())
}

#[tokio::test]
async fn connections_without_a_byte_leave_nothing() -> Checked {
    let origin = Origin::start().await;
    let (_server, client) = reference_and_client(plain(), |_| ()).await?;
    for target in [&origin.echo, &origin.silent, &origin.closer] {
        for _ in 0..20 {
            drop(soon(client.tcp(target)).await?);
        }
    }
    origin.all_closed(PATIENCE).await?;
    Through(&client).echo(&origin.echo, 10, 1).await
}

#[tokio::test]
async fn targets_out_of_reach_are_errors() -> Checked {
    let origin = Origin::start().await;
    let mut config = plain();
    config.outbound.any = true;
    let (_server, client) = reference_and_client(config, |_| ()).await?;
    for target in [&*origin.refused, UNREACHABLE, UNRESOLVABLE] {
        let error = soon(client.tcp(target)).await.expect_err("nobody is there");
        assert!(matches!(error, OpenError::Refused(_)), "{target}: {error}");
        println!("{target}: {error}");
    }
    Through(&client).echo(&origin.echo, 10, 1).await?;
    origin.all_closed(PATIENCE).await?;
    Ok(())
}
