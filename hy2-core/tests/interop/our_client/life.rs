//! Kicks and restarts of the reference server, and the speed test.

use std::{
    io,
    time::{Duration, Instant},
};

use hy2_core::{
    client::{Amount, Direction},
    error::OpenError,
    quinn::{ConnectionError, VarInt},
};

use crate::{
    ours::{Checked, MIB, Through, plain, reference_and_client, soon},
    peer::Origin,
};

/// What a stream says about its end.
fn cause(error: &io::Error) -> Result<&OpenError, String> {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    inner.ok_or_else(|| format!("no cause in {error:?}"))
}

#[tokio::test]
async fn a_kicked_client_comes_back() -> Checked {
    let origin = Origin::start().await;
    let (server, client) = reference_and_client(plain(), |_| ()).await?;
    server.connected("user").await;
    let mut held = soon(client.tcp(&origin.silent)).await?;
    Through(&client).echo(&origin.echo, 100, 1).await?;
    server.kick("user").await?;
    // The reference kicks at the next byte.
    let kicked = Through(&client).echo(&origin.echo, 100, 2).await;
    assert!(kicked.is_err(), "the kick hits this stream");
    soon(client.disconnected()).await;
    let error = soon(held.read_chunk()).await.expect_err("kicked");
    let OpenError::Lost(ConnectionError::ApplicationClosed(close)) = cause(&error)? else {
        panic!("another end: {error:?}");
    };
    assert_eq!(close.error_code, VarInt::from_u32(0x107), "{close}");
    Through(&client).echo(&origin.echo, 100, 3).await?;
    server.connected("user").await;
    Ok(())
}

#[tokio::test]
async fn a_restarted_server_is_found_again() -> Checked {
    let origin = Origin::start().await;
    let mut config = plain();
    config.fixed_reset_key = true;
    let (server, client) = reference_and_client(config, |_| ()).await?;
    Through(&client).echo(&origin.echo, 100, 1).await?;
    server.stop().await?;
    server.start_again().await?;
    // The stateless reset ends the old connection; the call dials anew by itself.
    Through(&client).echo(&origin.echo, 100, 2).await?;
    Ok(())
}

/// As the official server restarts, whose key is another each time: nothing tells the client, so
/// its streams end with its own idle timeout.
#[tokio::test]
async fn a_server_that_forgot_everything_is_found_after_the_idle_timeout() -> Checked {
    const IDLE: Duration = Duration::from_secs(4);
    let origin = Origin::start().await;
    let (server, client) = reference_and_client(plain(), |config| {
        config.quic.max_idle_timeout = IDLE;
        config.quic.keep_alive = Duration::from_secs(2);
    })
    .await?;
    let mut held = soon(client.tcp(&origin.silent)).await?;
    Through(&client).echo(&origin.echo, 100, 1).await?;
    server.stop().await?;
    server.start_again().await?;
    let start = Instant::now();
    let error = soon(held.read_chunk()).await.expect_err("lost");
    let lost = cause(&error)?;
    assert!(
        matches!(lost, OpenError::Lost(ConnectionError::TimedOut)),
        "{lost:?}"
    );
    Through(&client).echo(&origin.echo, 100, 2).await?;
    println!("away {:?} of an idle timeout of {IDLE:?}", start.elapsed());
    Ok(())
}

#[tokio::test]
async fn the_speed_test_counts_its_bytes() -> Checked {
    let mut config = plain();
    config.speedtest = true;
    let (_server, client) = reference_and_client(config, |_| ()).await?;
    let bytes = u32::try_from(8 * MIB)?;
    for direction in [Direction::Download, Direction::Upload] {
        let result = soon(client.speed_test(direction, Amount::Bytes(bytes), |_| ())).await?;
        assert_eq!(result.bytes, 8 * MIB, "{direction:?}");
    }
    Ok(())
}
