use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use hy2_core::{
    Client, ClientConfig, Server, authenticator::Password, client::ServerAddress, quic::ResetKey,
    tls::ServerTls,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    origin::Origin,
    pair::{PASSWORD, anywhere, certificate},
};

/// A server on a thread of its own that can end like a killed process: without a word.
struct Process {
    runtime: tokio::runtime::Runtime,
    server: Server,
}

impl Process {
    fn start(tls: ServerTls, address: SocketAddr, key: ResetKey) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("runtime");
        let entered = runtime.enter();
        let server = Server::builder(tls)
            .listen(address)
            .authenticator(Password::new(PASSWORD))
            .outbound(anywhere())
            .reset_key(key)
            .bind()
            .expect("server");
        drop(entered);
        Self { runtime, server }
    }

    fn kill(self) {
        let Self { runtime, server } = self;
        // The driver goes first, so that nothing can be sent.
        runtime.shutdown_timeout(Duration::from_secs(5));
        drop(server);
    }
}

#[test]
fn clients_notice_a_restart_at_once_and_come_back() {
    let (tls, roots) = certificate();
    let key = ResetKey::new([7; 32]);
    let process = Process::start(tls.clone(), ([127, 0, 0, 1], 0).into(), key.clone());
    let address = process.server.local_addrs()[0];
    let mut config = ClientConfig::new(ServerAddress::new("127.0.0.1", address.port()), PASSWORD);
    config.tls.roots = Some(roots);
    config.tls.sni = Some("localhost".to_owned());

    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let (client, origin, mut old) = runtime.block_on(async {
        let origin = Origin::echo().await;
        let client = Client::connect(config).await.expect("connect");
        let stream = client.tcp(&origin.target()).await.expect("stream");
        (client, origin, stream)
    });
    process.kill();
    let process = Process::start(tls, address, key);

    runtime.block_on(async {
        let started = Instant::now();
        // One call, one packet to the server that forgot us, its reset, a new connection.
        let mut stream = client.tcp(&origin.target()).await.expect("stream");
        stream.write_all(b"x").await.expect("write");
        assert_eq!(stream.read_u8().await.expect("read"), b'x');
        let took = started.elapsed();
        println!("back after {took:?}");
        assert!(took < Duration::from_secs(1), "{took:?}");
        old.read_u8().await.expect_err("gone with the old process");
    });
    process.kill();
}

#[test]
fn without_the_key_a_restart_is_noticed_only_by_silence() {
    let (tls, roots) = certificate();
    let process = Process::start(tls.clone(), ([127, 0, 0, 1], 0).into(), ResetKey::random());
    let address = process.server.local_addrs()[0];
    let mut config = ClientConfig::new(ServerAddress::new("127.0.0.1", address.port()), PASSWORD);
    config.tls.roots = Some(roots);
    config.tls.sni = Some("localhost".to_owned());
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let (client, origin) = runtime.block_on(async {
        let client = Client::connect(config).await.expect("connect");
        (client, Origin::echo().await)
    });
    process.kill();
    let process = Process::start(tls, address, ResetKey::random());
    runtime.block_on(async {
        let target = origin.target();
        let call = tokio::time::timeout(Duration::from_millis(500), client.tcp(&target));
        call.await.expect_err("no reset came");
    });
    process.kill();
}
