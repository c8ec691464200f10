//! A user's own origin: it echoes, and counts what it took and gave.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    task::JoinSet,
};

#[derive(Debug)]
pub(crate) struct Counts {
    taken: AtomicU64,
    given: AtomicU64,
    datagrams: AtomicU64,
    open: AtomicU64,
    /// When each connection and each sender of datagrams gave its last byte.
    last: Mutex<HashMap<Source, Instant>>,
}

/// A connection, or a sender of datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    Tcp(SocketAddr),
    Udp(SocketAddr),
}

impl Counts {
    fn took(&self, bytes: usize, from: Source) {
        self.taken.fetch_add(bytes as u64, SeqCst);
        let mut last = self.last.lock().expect("no panic");
        last.insert(from, Instant::now());
    }
}

#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) tcp: SocketAddr,
    pub(crate) udp: SocketAddr,
    counts: Arc<Counts>,
    _tasks: JoinSet<()>,
}

impl Origin {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let socket = UdpSocket::bind(("127.0.0.1", 0)).await.expect("a port");
        let (tcp, udp) = (
            listener.local_addr().expect("bound"),
            socket.local_addr().expect("bound"),
        );
        let counts = Arc::new(Counts {
            taken: AtomicU64::new(0),
            given: AtomicU64::new(0),
            datagrams: AtomicU64::new(0),
            open: AtomicU64::new(0),
            last: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        let of_tcp = Arc::clone(&counts);
        tasks.spawn(async move {
            let mut streams = JoinSet::new();
            loop {
                let Ok((mut stream, from)) = listener.accept().await else {
                    continue;
                };
                let counts = Arc::clone(&of_tcp);
                counts.open.fetch_add(1, SeqCst);
                streams.spawn(async move {
                    let mut buf = vec![0; 16 << 10];
                    while let Ok(read @ 1..) = stream.read(&mut buf).await {
                        counts.took(read, Source::Tcp(from));
                        if stream.write_all(&buf[..read]).await.is_err() {
                            break;
                        }
                        counts.given.fetch_add(read as u64, SeqCst);
                    }
                    counts.open.fetch_sub(1, SeqCst);
                });
                while streams.try_join_next().is_some() {}
            }
        });
        let of_udp = Arc::clone(&counts);
        tasks.spawn(async move {
            let mut buf = vec![0; 65_536];
            loop {
                let Ok((read, from)) = socket.recv_from(&mut buf).await else {
                    continue;
                };
                of_udp.took(read, Source::Udp(from));
                of_udp.datagrams.fetch_add(1, SeqCst);
                if socket.send_to(&buf[..read], from).await.is_ok() {
                    of_udp.given.fetch_add(read as u64, SeqCst);
                }
            }
        });
        Self {
            tcp,
            udp,
            counts,
            _tasks: tasks,
        }
    }

    /// What came from clients and what went to them.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let counts = &self.counts;
        (counts.taken.load(SeqCst), counts.given.load(SeqCst))
    }

    pub(crate) fn datagrams(&self) -> u64 {
        self.counts.datagrams.load(SeqCst)
    }

    /// Streams that are open.
    pub(crate) fn open(&self) -> u64 {
        self.counts.open.load(SeqCst)
    }

    /// Who has sent something within the last second.
    pub(crate) fn talking(&self) -> Vec<Source> {
        const LATELY: Duration = Duration::from_secs(1);
        let last = self.counts.last.lock().expect("no panic");
        let talking = last.iter().filter(|(_, at)| at.elapsed() < LATELY);
        talking.map(|(source, _)| *source).collect()
    }

    /// When the last byte of any of these came.
    pub(crate) fn last_byte_of(&self, sources: &[Source]) -> Option<Instant> {
        let last = self.counts.last.lock().expect("no panic");
        sources
            .iter()
            .filter_map(|one| last.get(one))
            .max()
            .copied()
    }
}
