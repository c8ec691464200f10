//! Kicks and restarts of the reference server, and the speed test.

use hy2_core::client::{Amount, Direction};

use crate::{
    ours::{Checked, MIB, Through, plain, reference_and_client, soon},
    peer::Origin,
};

#[tokio::test]
async fn a_kicked_client_comes_back() -> Checked {
    let origin = Origin::start().await;
    let (server, client) = reference_and_client(plain(), |_| ()).await?;
    server.connected("user").await;
    Through(&client).echo(&origin.echo, 100, 1).await?;
    server.kick("user").await?;
    // The reference kicks at the next byte.
    let kicked = Through(&client).echo(&origin.echo, 100, 2).await;
    assert!(kicked.is_err(), "the kick hits this stream");
    soon(client.disconnected()).await;
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
