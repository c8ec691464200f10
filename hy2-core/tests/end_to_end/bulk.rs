use std::time::{Duration, Instant};

use hy2_core::{
    Client,
    server::ServerConfig,
    socket::{HopInterval, Obfuscation},
};
use tokio::io::{AsyncWriteExt, split};

use crate::{
    origin::{Origin, read_sum},
    pair::Pair,
    payload::{self, Blocks, Summer},
    port_range::PortRange,
};

const BULK: u64 = 100 << 20;

#[tokio::test]
async fn a_hundred_mebibytes_each_way_plain() {
    both_ways(Obfuscation::Plain).await;
}

#[tokio::test]
async fn a_hundred_mebibytes_each_way_under_salamander() {
    both_ways(Obfuscation::salamander("a password for obfuscation").expect("password")).await;
}

#[tokio::test]
async fn a_hundred_mebibytes_each_way_under_gecko() {
    let obfuscation = Obfuscation::gecko("a password for obfuscation", 512, 1200);
    both_ways(obfuscation.expect("password")).await;
}

async fn both_ways(obfuscation: Obfuscation) {
    let mut config = ServerConfig::default();
    config.obfuscation = obfuscation;
    let pair = Pair::with(config, |builder| builder);
    let client = pair.client().await;

    let started = Instant::now();
    let sink = Origin::checksum().await;
    let mut stream = client.tcp(&sink.target()).await.expect("stream");
    let sent = payload::send(&mut stream, BULK).await.expect("send");
    stream.shutdown().await.expect("shutdown");
    assert_eq!(read_sum(&mut stream).await.expect("sum"), sent);
    let up = started.elapsed();

    let source = Origin::source(BULK).await;
    let mut stream = client.tcp(&source.target()).await.expect("stream");
    // The same blocks the other way.
    assert_eq!(payload::receive(&mut stream).await.expect("receive"), sent);
    println!("up {up:?}, down {:?}", started.elapsed() - up);
    assert_eq!(pair.server.handle().connection_count(), 1);
}

#[tokio::test]
async fn a_transfer_survives_port_hops() {
    const SOCKETS: usize = 7;
    let origin = Origin::echo().await;
    let mut server = ServerConfig::default();
    server.obfuscation = Obfuscation::salamander("a password for obfuscation").expect("password");
    let (pair, _, recorder) = Pair::recorded(server);
    let range = PortRange::towards(pair.server.local_addrs()[0], 6).await;
    let ports: Vec<String> = range.ports.iter().map(u16::to_string).collect();
    let mut config = pair.config_of("alice");
    config.server.ports = ports.join(",").parse().expect("ports");
    let every = Duration::from_millis(150);
    config.hop = HopInterval::unchecked(every, every);
    let client = Client::connect(config).await.expect("connect");

    let stream = client.tcp(&origin.target()).await.expect("stream");
    let (mut read, mut write) = split(stream);
    let sending = async {
        let mut blocks = Blocks::new();
        let mut sum = Summer::default();
        while range.clients_seen() < SOCKETS {
            let block = blocks.next();
            write.write_all(block).await.expect("write");
            sum.add(block);
        }
        write.shutdown().await.expect("shutdown");
        sum.finish()
    };
    let started = Instant::now();
    let (sent, received) = tokio::join!(sending, payload::receive(&mut read));
    assert_eq!(received.expect("receive"), sent);
    println!(
        "{} bytes each way over {} sockets and {} ports in {:?}",
        sent.len,
        range.clients_seen(),
        range.ports_seen(),
        started.elapsed()
    );
    assert!(range.ports_seen() > 2);
    assert_eq!(recorder.count(crate::recorder::Event::is_connected), 1);
}
