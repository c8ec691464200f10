//! Targets, and streams whose every byte is checked.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use hy2_agent_sdk::hy2_core::Client;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    task::JoinSet,
};

/// Echoes, and counts what it took and what it gave.
pub(crate) struct Echo {
    pub(crate) address: SocketAddr,
    pub(crate) taken: Arc<AtomicU64>,
    pub(crate) given: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Echo {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (taken, given) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let mut tasks = JoinSet::new();
        let (took, gave) = (Arc::clone(&taken), Arc::clone(&given));
        tasks.spawn(async move {
            let mut streams = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.expect("accepts");
                let (took, gave) = (Arc::clone(&took), Arc::clone(&gave));
                streams.spawn(async move {
                    let mut buf = vec![0; 16 << 10];
                    while let Ok(read @ 1..) = stream.read(&mut buf).await {
                        took.fetch_add(read as u64, Relaxed);
                        if stream.write_all(&buf[..read]).await.is_err() {
                            break;
                        }
                        gave.fetch_add(read as u64, Relaxed);
                    }
                });
            }
        });
        Self {
            address,
            taken,
            given,
            _tasks: tasks,
        }
    }

    pub(crate) fn target(&self) -> String {
        self.address.to_string()
    }
}

/// Echoes datagrams.
pub(crate) async fn udp_echo() -> (SocketAddr, JoinSet<()>) {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).await.expect("a port");
    let address = socket.local_addr().expect("bound");
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut buf = [0; 2048];
        loop {
            let Ok((length, from)) = socket.recv_from(&mut buf).await else {
                continue;
            };
            let _ = socket.send_to(&buf[..length], from).await;
        }
    });
    (address, tasks)
}

/// Streams that echo numbered bytes round and round until they are told to stop.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    pub(crate) rounds: Arc<AtomicU64>,
    streams: JoinSet<Result<u64, String>>,
}

impl Traffic {
    /// Opens `count` streams of `client` to the echo.
    pub(crate) async fn start(client: &Client, target: &str, count: usize, chunk: usize) -> Self {
        Self::start_slow(client, target, count, chunk, Duration::from_millis(5)).await
    }

    /// As [`Self::start`], with a pause between two rounds of a stream.
    pub(crate) async fn start_slow(
        client: &Client,
        target: &str,
        count: usize,
        chunk: usize,
        pause: Duration,
    ) -> Self {
        let mut traffic = Self {
            stop: Arc::default(),
            rounds: Arc::default(),
            streams: JoinSet::new(),
        };
        for number in 0..count {
            let mut stream = client.tcp(target).await.expect("a stream");
            let stop = Arc::clone(&traffic.stop);
            let rounds = Arc::clone(&traffic.rounds);
            traffic.streams.spawn(async move {
                let mut moved = 0_u64;
                let mut buf = vec![0; chunk];
                let mut round = 0_u64;
                while !stop.load(Relaxed) {
                    // Every chunk differs, so one that is lost, doubled or moved shows.
                    let seed = (number as u64) << 32 | round;
                    let sent: Vec<u8> = (0..chunk as u64)
                        .map(|at| (seed.wrapping_mul(0x9e37_79b9) ^ at.wrapping_mul(0x85eb)) as u8)
                        .collect();
                    stream
                        .write_all(&sent)
                        .await
                        .map_err(|e| format!("write: {e}"))?;
                    stream
                        .read_exact(&mut buf)
                        .await
                        .map_err(|e| format!("read: {e}"))?;
                    if buf != sent {
                        return Err(format!("stream {number} round {round}: other bytes"));
                    }
                    moved += chunk as u64;
                    round += 1;
                    rounds.fetch_add(1, Relaxed);
                    tokio::time::sleep(pause).await;
                }
                stream.shutdown().await.map_err(|e| format!("end: {e}"))?;
                let rest = stream
                    .read(&mut buf)
                    .await
                    .map_err(|e| format!("end: {e}"))?;
                if rest == 0 {
                    Ok(moved)
                } else {
                    Err("bytes after the end".to_owned())
                }
            });
        }
        traffic
    }

    /// Ends every stream in order and returns the bytes moved one way; fails when one was reset.
    pub(crate) async fn finish(mut self) -> u64 {
        self.stop.store(true, Relaxed);
        let mut moved = 0;
        while let Some(ended) = self.streams.join_next().await {
            moved += ended.expect("no panic").expect("no stream is reset");
        }
        moved
    }

    /// Waits until every stream has ended in an error.
    pub(crate) async fn until_cut(mut self) {
        while let Some(ended) = self.streams.join_next().await {
            ended.expect("no panic").expect_err("cut");
        }
    }
}
