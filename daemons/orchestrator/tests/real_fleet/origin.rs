//! A user's own origin: it echoes, and counts what it took and gave.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
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
    started: Instant,
    /// Microseconds after `started`.
    last: AtomicU64,
}

impl Counts {
    fn took(&self, bytes: usize) {
        self.taken.fetch_add(bytes as u64, SeqCst);
        let now = u64::try_from(self.started.elapsed().as_micros()).expect("not for ever");
        self.last.fetch_max(now, SeqCst);
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
            started: Instant::now(),
            last: AtomicU64::new(0),
        });
        let mut tasks = JoinSet::new();
        let of_tcp = Arc::clone(&counts);
        tasks.spawn(async move {
            let mut streams = JoinSet::new();
            loop {
                let Ok((mut stream, _)) = listener.accept().await else {
                    continue;
                };
                let counts = Arc::clone(&of_tcp);
                counts.open.fetch_add(1, SeqCst);
                streams.spawn(async move {
                    let mut buf = vec![0; 16 << 10];
                    while let Ok(read @ 1..) = stream.read(&mut buf).await {
                        counts.took(read);
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
                of_udp.took(read);
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

    /// When the last byte came.
    pub(crate) fn last_byte(&self) -> Instant {
        self.counts.started + Duration::from_micros(self.counts.last.load(SeqCst))
    }
}
