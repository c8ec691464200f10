//! What the port for agents bears.

use std::sync::Arc;
use std::time::Duration;

use hy2_master_sdk::domain::{SystemClock, Timestamp};
use hy2_proto::control::{ALPN_REVERSE, rpc};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tonic::Code;

use crate::agent::{DEADLINE, TestMaster, eventually};

#[tokio::test]
async fn a_stalled_handshake_is_closed_and_others_are_served_meanwhile() {
    let master = TestMaster::with(Arc::new(SystemClock), |config| {
        config.handshake_timeout = Duration::from_millis(1_500);
        config.max_pending_handshakes = 8;
    })
    .await;
    let agent = master.agent("node").await;
    let mut stalled = Vec::new();
    for _ in 0..6 {
        stalled.push(TcpStream::connect(master.address).await.unwrap());
    }
    agent
        .client()
        .await
        .lease(rpc::LeaseRequest::default())
        .await
        .unwrap();
    for stream in &mut stalled {
        let read = tokio::time::timeout(DEADLINE, stream.read_u8())
            .await
            .expect("it is closed");
        assert!(read.is_err());
    }
}

#[tokio::test]
async fn beyond_the_limit_of_pending_handshakes_connections_are_closed_at_once() {
    let master = TestMaster::with(Arc::new(SystemClock), |config| {
        config.handshake_timeout = Duration::from_secs(3_600);
        config.max_pending_handshakes = 4;
    })
    .await;
    let mut stalled = Vec::new();
    for _ in 0..4 {
        stalled.push(TcpStream::connect(master.address).await.unwrap());
    }
    // The accept loop is sequential: the fifth is seen after the four.
    let mut fifth = TcpStream::connect(master.address).await.unwrap();
    let read = tokio::time::timeout(DEADLINE, fifth.read_u8())
        .await
        .expect("it is closed");
    assert!(read.is_err());
    // One gives up: there is room again.
    stalled.pop();
    let agent = crate::agent::Agent::new(&master);
    eventually("a handshake goes through", async || {
        agent
            .enroll("x", "n")
            .await
            .is_err_and(|status| status.code() == Code::PermissionDenied)
    })
    .await;
}

#[tokio::test]
async fn an_oversized_message_is_refused_and_the_next_connection_is_served() {
    let master = TestMaster::start().await;
    let agent = master.agent("node").await;
    let mut client = agent.client().await;
    let sample = rpc::NodeMetrics {
        cpu_permille: 1,
        memory_used_bytes: u64::MAX,
        tx_bytes: u64::MAX,
        ..Default::default()
    };
    let big = rpc::ReportMetricsRequest {
        samples: vec![sample; 400_000],
    };
    // The stream is reset while the client still sends: it sees the refusal or the reset first.
    assert!(client.report_metrics(big).await.is_err());
    let range = (Timestamp(0), Timestamp(i64::MAX));
    let kept = master
        .master
        .store()
        .metrics(agent.node().await, 15, range.0, range.1, 9)
        .await
        .unwrap();
    assert!(kept.is_empty());
    let mut client = agent.client().await;
    let many = rpc::ReportMetricsRequest {
        samples: vec![sample; 1_001],
    };
    assert_eq!(
        client.report_metrics(many).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    client.lease(rpc::LeaseRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_reversed_connection_needs_a_certificate_and_a_ticket() {
    let master = TestMaster::start().await;
    let agent = master.agent("node").await;
    for with_certificate in [false, true] {
        let Ok(mut stream) = agent.tls(ALPN_REVERSE, with_certificate).await else {
            continue;
        };
        let written =
            tokio::io::AsyncWriteExt::write_all(&mut stream, &[3, b'a', b'b', b'c']).await;
        let read = tokio::time::timeout(DEADLINE, stream.read_u8())
            .await
            .expect("it is closed");
        assert!(written.is_err() || read.is_err());
    }
}

#[tokio::test]
async fn a_protocol_that_is_not_spoken_is_refused() {
    let master = TestMaster::start().await;
    let agent = master.agent("node").await;
    assert!(agent.tls(b"http/1.1", true).await.is_err());
}

#[tokio::test]
async fn a_shut_down_master_closes_its_port_and_its_sessions() {
    let master = TestMaster::start().await;
    let agent = master.agent("node").await;
    let mut session = agent.session().await;
    master.master.shutdown().await;
    while session.next().await.is_some() {}
    assert!(agent.channel(true).await.is_err());
}
