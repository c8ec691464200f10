use hy2_core::{
    Client,
    error::{ConnectError, OpenError},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{origin::Origin, pair::Pair};

#[tokio::test]
async fn bytes_come_back_from_an_echo() {
    let origin = Origin::echo().await;
    let pair = Pair::start();
    let client = pair.client().await;
    let mut stream = client.tcp(&origin.target()).await.expect("stream");
    stream.write_all(b"hello").await.expect("write");
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await.expect("read");
    assert_eq!(&answer, b"hello");
}

#[tokio::test]
async fn the_end_of_one_direction_leaves_the_other_open() {
    let origin = Origin::count().await;
    let pair = Pair::start();
    let client = pair.client().await;
    let mut stream = client.tcp(&origin.target()).await.expect("stream");
    let megabyte = vec![7; 1 << 20];
    for _ in 0..20 {
        stream.write_all(&megabyte).await.expect("write");
    }
    stream.shutdown().await.expect("shutdown");
    assert_eq!(stream.read_u64().await.expect("answer"), 20 << 20);
}

#[tokio::test]
async fn a_refused_target_is_told_by_class() {
    let pair = Pair::start();
    let client = pair.client().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let target = free.local_addr().expect("address").to_string();
    drop(free);
    let error = client.tcp(&target).await.expect_err("refused");
    assert!(
        matches!(&error, OpenError::Refused(text) if text == "connection refused"),
        "{error}"
    );
    let error = client
        .tcp("name.invalid:80")
        .await
        .expect_err("unresolvable");
    assert!(
        matches!(&error, OpenError::Refused(text) if text == "name does not resolve"),
        "{error}"
    );
}

#[tokio::test]
async fn a_wrong_password_is_told_apart() {
    let pair = Pair::start();
    let mut config = pair.config.clone();
    config.auth = "wrong".to_owned();
    let error = Client::connect(config).await.expect_err("rejected");
    assert!(
        matches!(error, ConnectError::AuthRejected { status: 400..500 }),
        "{error}"
    );
}
