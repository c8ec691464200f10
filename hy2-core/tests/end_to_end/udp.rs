use std::time::Duration;

use tokio::time::timeout;

use crate::{origin::Origin, pair::Pair};

#[tokio::test]
async fn datagrams_of_every_size_come_back() {
    let origin = Origin::udp_echo().await;
    let pair = Pair::start();
    let client = pair.client().await;
    let session = client.udp().await.expect("session");
    let target = origin.target();
    for len in [
        1,
        2,
        100,
        1000,
        1180,
        1200,
        1500,
        3000,
        hy2_core::proto::udp::max_payload(target.len()),
    ] {
        let data: Vec<u8> = (0..len).map(|i| i as u8).collect();
        session.send(&data, &target).expect("send");
        let packet = timeout(Duration::from_secs(5), session.recv())
            .await
            .unwrap_or_else(|_| panic!("no answer to {len} bytes"))
            .expect("open");
        assert_eq!(packet.source(), target);
        assert_eq!(packet.data, data, "{len} bytes");
    }
}
