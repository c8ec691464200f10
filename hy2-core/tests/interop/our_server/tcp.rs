//! TCP of the reference client through our server.

use crate::{
    ours::{Checked, OurServer},
    peer::Origin,
};

#[tokio::test]
async fn an_echo_comes_back_to_the_reference_client() -> Checked {
    let origin = Origin::start().await;
    let server = OurServer::start();
    let client = server.client(|_| ()).await;
    let handshake = client.connect().await?;
    assert_eq!((handshake.udp, handshake.tx), (true, 0));
    assert_eq!(server.record.connected().await.1, None);
    let echo = client.tcp_echo(&origin.echo, 70_000, 5).await?;
    assert_eq!(server.record.tcp_closed(&origin.echo).await, None);
    server.left_nothing(&origin).await?;
    let traffic = server.traffic();
    assert_eq!((traffic.tx, traffic.rx), (70_000, 70_000));
    println!("echo of {} bytes, counted {traffic:?}", echo.bytes);
    Ok(())
}
