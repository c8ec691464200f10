//! Our client side against our server side.

use hy2_proto::{auth::CcRx, bandwidth::Bandwidth};

use super::prober::*;
use crate::h3::client::{AuthError, authenticate};

#[tokio::test]
async fn the_right_password_is_let_in() {
    let probe = probe().await;
    let rx = Bandwidth::from_bytes_per_sec(1_000_000);
    let (granted, front) = authenticate(&probe.conn, "right", rx)
        .await
        .expect("let in");
    assert!(granted.udp);
    assert_eq!(granted.cc_rx, CcRx::UNLIMITED);
    let (mut send, mut recv) = probe.open(&relay_type(2)).await;
    send.write_all(b"hello").await.expect("written");
    send.finish().expect("open");
    assert_eq!(recv.read_to_end(100).await.expect("an echo"), b"hello");
    drop(front);
}

#[tokio::test]
async fn a_wrong_password_is_told_by_the_status() {
    let probe = probe().await;
    let error = authenticate(&probe.conn, "wrong", Bandwidth::ZERO)
        .await
        .expect_err("turned away");
    assert!(
        matches!(error, AuthError::Rejected { status: 404 }),
        "{error}"
    );
}

#[tokio::test]
async fn a_lost_connection_is_told_apart() {
    let probe = probe().await;
    probe.conn.close(0u32.into(), b"");
    let error = authenticate(&probe.conn, "right", Bandwidth::ZERO)
        .await
        .expect_err("closed");
    assert!(matches!(error, AuthError::Connection(_)), "{error}");
}
