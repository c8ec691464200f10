//! TCP of our client through the reference server.

use crate::{
    ours::{Checked, PATIENCE, Through, plain, reference_and_client},
    peer::Origin,
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
