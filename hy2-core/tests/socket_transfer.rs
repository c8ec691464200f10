//! Bulk transfers through quinn on our sockets, checked by checksum.
#![allow(missing_docs)]

mod quic_pair;

use hy2_core::socket::{Obfuscation, SocketOptions};
use quic_pair::{Pair, transfer};

const BULK: usize = 24 << 20;

fn options(gso: bool, merge: bool) -> SocketOptions {
    let mut options = SocketOptions::default();
    options.gso = gso;
    options.merge = merge;
    options
}

async fn both_ways(obfs: Obfuscation, options: SocketOptions, len: usize) -> Pair {
    let pair = Pair::new(&obfs, &options);
    let (server, client) = pair.connect().await;
    transfer(&server, &client, len).await;
    transfer(&client, &server, len).await;
    pair
}

#[tokio::test]
async fn plain_transfer_merges_full_transmits() {
    let pair = both_ways(Obfuscation::Plain, options(true, true), BULK).await;
    let sent = pair.server.socket.stats().snapshot();
    // quinn alone never puts more than ten datagrams into one send.
    assert!(sent.tx_widest > 10, "{sent:?}");
    assert_eq!(sent.errors, 0, "{sent:?}");
}

#[tokio::test]
async fn plain_transfer_without_merging() {
    let pair = both_ways(Obfuscation::Plain, options(true, false), BULK).await;
    let sent = pair.server.socket.stats().snapshot();
    assert_eq!(sent.tx_widest, 10, "{sent:?}");
}

#[tokio::test]
async fn plain_transfer_without_gso() {
    let pair = both_ways(Obfuscation::Plain, options(false, true), BULK).await;
    let sent = pair.server.socket.stats().snapshot();
    assert_eq!(sent.tx_datagrams, sent.tx_sends);
}

#[tokio::test]
async fn salamander_transfer_keeps_offload_both_ways() {
    let obfs = Obfuscation::salamander("a key of good length").unwrap();
    let pair = both_ways(obfs, options(true, true), BULK).await;
    let sent = pair.server.socket.stats().snapshot();
    assert!(sent.tx_widest > 10, "{sent:?}");
    let received = pair.client.socket.stats().snapshot();
    assert!(
        received.rx_datagrams > 2 * received.rx_reads,
        "{received:?}"
    );
    assert_eq!(received.rx_dropped, 0);
}

#[tokio::test]
async fn salamander_transfer_without_merging_and_without_gso() {
    let obfs = Obfuscation::salamander("a key of good length").unwrap();
    both_ways(obfs.clone(), options(true, false), BULK).await;
    both_ways(obfs, options(false, true), BULK).await;
}

/// Where a queue holds packets back, a send buffer this small is full most of the time.
#[tokio::test]
async fn transfer_through_a_tiny_send_buffer() {
    let mut options = options(true, true);
    options.send_buffer = 4 << 10;
    for obfs in [
        Obfuscation::Plain,
        Obfuscation::salamander("a key of good length").unwrap(),
        Obfuscation::gecko("a key of good length", 512, 1200).unwrap(),
    ] {
        let pair = both_ways(obfs, options.clone(), 4 << 20).await;
        let sent = pair.server.socket.stats().snapshot();
        assert_eq!(sent.errors, 0, "{sent:?}");
    }
}

#[tokio::test]
async fn gecko_transfer_splits_the_handshake_only() {
    let obfs = Obfuscation::gecko("a key of good length", 512, 1200).unwrap();
    let pair = both_ways(obfs, options(true, true), BULK).await;
    let sent = pair.server.socket.stats().snapshot();
    assert!(sent.tx_widest > 10, "{sent:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_on_two_workers() {
    for obfs in [
        Obfuscation::Plain,
        Obfuscation::salamander("a key of good length").unwrap(),
    ] {
        let pair = std::sync::Arc::new(Pair::new(&obfs, &options(true, true)));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..12 {
            let (server, client) = pair.connect().await;
            tasks.spawn(async move {
                transfer(&server, &client, 2 << 20).await;
                transfer(&client, &server, 2 << 20).await;
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    }
}
