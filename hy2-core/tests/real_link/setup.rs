//! The server on threads of its own, the link, the client, and an origin that writes at a rate.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hy2_core::{
    Bandwidth, Client, ClientConfig, Server,
    authenticator::Password,
    client::ServerAddress,
    outbound::{AddressPolicy, Direct},
    rustls::{RootCertStore, pki_types::PrivateKeyDer},
    server::ServerConfig,
    tls::ServerTls,
};
use hy2_link_emulator::{
    model::LinkConfig,
    relay::{Relay, RelayConfig},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::Instant,
};

const PASSWORD: &str = "a long enough password";

/// Name of the server's threads, by which their processor time is found.
const SERVER_THREAD: &str = "the-server";

/// Held while a case runs: they measure, so one at a time.
pub(crate) async fn alone() -> tokio::sync::MutexGuard<'static, ()> {
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    ALONE.lock().await
}

pub(crate) struct World {
    pub(crate) relay: Relay,
    pub(crate) client: Client,
    _server: Server,
    threads: Option<tokio::runtime::Runtime>,
}

impl World {
    /// Connects through `link`, the same both ways; the server sends at `down` Mbit/s.
    pub(crate) async fn start(link: LinkConfig, down: f64) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let tls = ServerTls::from_der(vec![made.cert.der().clone()], key).expect("a pair");
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).expect("a root");

        let threads = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(SERVER_THREAD)
            .enable_all()
            .build()
            .expect("a runtime");
        let server = {
            let _entered = threads.enter();
            Server::builder(tls)
                .listen(([127, 0, 0, 1], 0).into())
                .authenticator(Password::new(PASSWORD))
                .outbound(Direct::new(AddressPolicy::allow_all()))
                .config(ServerConfig::default())
                .bind()
                .expect("bound")
        };
        let relay = Relay::start(&RelayConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            target: server.local_addrs()[0],
            up: link,
            down: link,
            seed: 7,
        })
        .expect("a relay");
        let through = relay.local_addr();
        let address = ServerAddress::new(through.ip().to_string(), through.port());
        let mut config = ClientConfig::new(address, PASSWORD);
        config.tls.roots = Some(Arc::new(roots));
        config.tls.sni = Some("localhost".to_owned());
        config.down = Some(Bandwidth::from_bytes_per_sec((down * 1e6 / 8.0) as u64));
        // A lossy link may swallow a whole handshake.
        let mut tries = 0;
        let client = loop {
            match Client::connect(config.clone()).await {
                Ok(client) => break client,
                Err(error) => assert!(tries < 5, "{error:?}"),
            }
            tries += 1;
        };
        Self {
            relay,
            client,
            _server: server,
            threads: Some(threads),
        }
    }

    /// Processor time that the server's threads took so far.
    pub(crate) fn server_cpu() -> Duration {
        let mut total = 0;
        for task in std::fs::read_dir("/proc/self/task")
            .expect("procfs")
            .flatten()
        {
            let read = |file| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
            if read("comm").trim() == SERVER_THREAD {
                let stat = read("schedstat");
                let nanos = stat.split(' ').next().and_then(|text| text.parse().ok());
                total += nanos.unwrap_or(0u64);
            }
        }
        assert!(total > 0, "no processor time of the server's threads");
        Duration::from_nanos(total)
    }

    /// Downloads `bytes` from an origin that writes `chunk` bytes at a time, `rate` Mbit/s in all
    /// (as fast as it can for none), and checks every byte.
    pub(crate) async fn download(&self, bytes: u64, chunk: usize, rate: Option<f64>) {
        let mut tasks = JoinSet::new();
        let origin = origin(&mut tasks, bytes, chunk, rate).await;
        let mut stream = self
            .client
            .tcp(&origin.to_string())
            .await
            .expect("a stream");
        let mut buffer = vec![0; 64 << 10];
        let mut got = 0u64;
        loop {
            let count = stream
                .read(&mut buffer)
                .await
                .expect("no end before the end");
            if count == 0 {
                break;
            }
            let right = buffer[..count]
                .iter()
                .zip(got..)
                .all(|(byte, at)| *byte == pattern(at));
            assert!(right, "wrong bytes after {got}");
            got += count as u64;
        }
        assert_eq!(got, bytes);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(threads) = self.threads.take() {
            threads.shutdown_background();
        }
    }
}

fn pattern(at: u64) -> u8 {
    (at % 251) as u8
}

async fn origin(
    tasks: &mut JoinSet<()>,
    bytes: u64,
    chunk: usize,
    rate: Option<f64>,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("bound");
    tasks.spawn(async move {
        let (stream, _) = listener.accept().await.expect("a connection");
        write(stream, bytes, chunk, rate).await;
    });
    address
}

async fn write(mut stream: TcpStream, bytes: u64, chunk: usize, rate: Option<f64>) {
    stream.set_nodelay(true).expect("a socket");
    let start = Instant::now();
    let mut sent = 0;
    while sent < bytes {
        if let Some(rate) = rate {
            // Each write at its time, as far as the timer's milliseconds allow.
            let due = Duration::from_secs_f64(sent as f64 * 8.0 / (rate * 1e6));
            if start.elapsed() < due {
                tokio::time::sleep_until(start + due).await;
            }
        }
        let count = (bytes - sent).min(chunk as u64);
        let contents: Vec<u8> = (sent..sent + count).map(pattern).collect();
        stream.write_all(&contents).await.expect("taken");
        sent += count;
    }
}
