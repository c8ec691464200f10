use std::{
    net::{Ipv4Addr, Ipv6Addr, UdpSocket as StdSocket},
    sync::Mutex,
    task::{Wake, Waker},
};

use super::*;
use crate::socket::{factory::DirectSocketFactory, outbox::FULL_TRANSMIT};

const NEVER: Duration = Duration::from_secs(1 << 20);
const SIZE: usize = 1200;

/// Remembers the sockets it opened, and fails when told to.
#[derive(Debug, Default)]
struct Recorder {
    opened: Mutex<Vec<SocketAddr>>,
    broken: AtomicBool,
    dual_stack: bool,
}

impl SocketFactory for Recorder {
    fn open(&self, remote: SocketAddr) -> io::Result<StdSocket> {
        if self.broken.load(Relaxed) {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let socket = if self.dual_stack {
            let any = (Ipv6Addr::UNSPECIFIED, 0).into();
            crate::socket::options::bind(any, &SocketOptions::default())?
        } else {
            let local = match remote {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            };
            DirectSocketFactory::default()
                .with_local_ip(local)
                .open(remote)?
        };
        let mut opened = self.opened.lock().unwrap();
        opened.push(socket.local_addr()?);
        Ok(socket)
    }
}

fn ports(list: &str) -> PortUnion {
    list.parse().unwrap()
}

struct Bench {
    socket: Arc<HopSocket>,
    factory: Arc<Recorder>,
    /// The server's ports.
    peers: Vec<StdSocket>,
    server: SocketAddr,
    stats: Arc<SocketStats>,
}

impl Bench {
    fn new(factory: Recorder) -> Self {
        Self::towards(Ipv4Addr::LOCALHOST.into(), factory)
    }

    fn towards(ip: std::net::IpAddr, factory: Recorder) -> Self {
        let peers: Vec<_> = (0..2).map(|_| StdSocket::bind((ip, 0)).unwrap()).collect();
        for peer in &peers {
            peer.set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
        }
        let [one, other] = [0, 1].map(|i: usize| peers[i].local_addr().unwrap().port());
        let config = HopConfig::new(
            ports(&format!("{one},{other}")),
            HopInterval::unchecked(NEVER, NEVER),
        )
        .unwrap();
        let factory = Arc::new(factory);
        let stats = Arc::<SocketStats>::default();
        // The port of the address is only what quinn sees.
        let server = SocketAddr::new(ip, 9);
        let socket = HopSocket::new(
            server,
            config,
            factory.clone(),
            &Obfuscation::Plain,
            &SocketOptions::default(),
            stats.clone(),
        )
        .unwrap();
        Self {
            socket,
            factory,
            peers,
            server,
            stats,
        }
    }

    async fn send(&self, contents: &[u8], segment_size: Option<usize>) {
        self.socket.shared.clone().writable().await.unwrap();
        self.socket
            .try_send(&Transmit {
                destination: self.socket.shared.remote,
                ecn: None,
                contents,
                segment_size,
                src_ip: None,
            })
            .unwrap();
    }

    /// The peer that the socket sends to.
    fn peer(&self) -> &StdSocket {
        let port = self.socket.shared.links.load().destination.port();
        self.peers
            .iter()
            .find(|peer| peer.local_addr().unwrap().port() == port)
            .unwrap()
    }

    fn opened(&self, index: usize) -> SocketAddr {
        let mut addr = self.factory.opened.lock().unwrap()[index];
        addr.set_ip(self.server.ip());
        addr
    }

    /// Receives one datagram and the address quinn is told it came from.
    async fn receive(&self) -> (Vec<u8>, SocketAddr) {
        std::future::poll_fn(|cx| {
            let mut buf = [0; 2048];
            let mut meta = [RecvMeta::default()];
            let mut bufs = [IoSliceMut::new(&mut buf)];
            self.socket
                .poll_recv(cx, &mut bufs, &mut meta)
                .map(|count| {
                    assert_eq!(count.unwrap(), 1);
                    (buf[..meta[0].len].to_vec(), meta[0].addr)
                })
        })
        .await
    }
}

#[test]
fn configuration_is_checked() {
    let interval = HopInterval::default();
    assert_eq!(
        HopConfig::new(ports("0"), interval).unwrap_err(),
        HopConfigError::NoPorts
    );
    let short = Duration::from_millis(4999);
    assert_eq!(
        HopInterval::fixed(short).unwrap_err(),
        HopConfigError::TooShort(short)
    );
    let (min, max) = (Duration::from_secs(9), Duration::from_secs(8));
    assert_eq!(
        HopInterval::random(min, max).unwrap_err(),
        HopConfigError::OutOfOrder { min, max }
    );
    assert!(HopInterval::random(MIN_HOP_INTERVAL, max).is_ok());
}

#[test]
fn every_port_is_drawn_and_none_twice_in_a_row() {
    let config = HopConfig::new(ports("7-9,20,65535"), HopInterval::default()).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    let mut current = None;
    for _ in 0..1000 {
        let port = config.pick(current);
        assert_ne!(port, current);
        seen.extend(port);
        current = port;
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [7, 8, 9, 20, 65_535]);

    let low = HopConfig::new(ports("0-1"), HopInterval::default()).unwrap();
    assert!((0..100).all(|_| low.pick(None) == Some(1)));
    assert_eq!(low.pick(Some(1)), Some(1));
}

#[test]
fn random_interval_stays_within_its_bounds() {
    let (min, max) = (Duration::from_secs(5), Duration::from_secs(7));
    let interval = HopInterval::random(min, max).unwrap();
    let drawn: Vec<_> = (0..100).map(|_| interval.pick()).collect();
    assert!(drawn.iter().all(|d| (min..=max).contains(d)));
    assert!(drawn.iter().any(|d| *d != drawn[0]));
}

#[tokio::test]
async fn hop_changes_both_ports_and_quinn_sees_one_address() {
    for (ip, dual_stack) in [
        (Ipv4Addr::LOCALHOST.into(), false),
        (Ipv6Addr::LOCALHOST.into(), false),
        (Ipv4Addr::LOCALHOST.into(), true),
    ] {
        let bench = Bench::towards(
            ip,
            Recorder {
                dual_stack,
                ..Recorder::default()
            },
        );
        let mut buf = [0; 64];
        let mut used = Vec::new();
        for hop in 0..3 {
            bench.send(b"out", None).await;
            let peer = bench.peer();
            let (len, from) = peer.recv_from(&mut buf).unwrap();
            assert_eq!((&buf[..len], from), (&b"out"[..], bench.opened(hop)));
            used.push(peer.local_addr().unwrap().port());
            peer.send_to(b"back", from).unwrap();
            let (datagram, addr) = bench.receive().await;
            assert_eq!(datagram, b"back");
            assert_eq!(addr.port(), bench.server.port());
            assert_eq!(addr.ip().to_canonical(), bench.server.ip());
            assert_eq!(addr.is_ipv6(), ip.is_ipv6() || dual_stack);
            bench.socket.shared.hop().unwrap();
        }
        assert_ne!(used[0], used[1]);
        assert_ne!(used[1], used[2]);
        assert_eq!(bench.stats.snapshot().hops, 3);
    }
}

#[tokio::test]
async fn previous_socket_is_read_until_the_next_hop() {
    let bench = Bench::new(Recorder::default());
    let sender = StdSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    bench.socket.shared.hop().unwrap();
    sender.send_to(b"late", bench.opened(0)).unwrap();
    assert_eq!(bench.receive().await.0, b"late");

    bench.socket.shared.hop().unwrap();
    // Its flush task is told to end, and the descriptor goes with it.
    let first = StdSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    first.connect(bench.opened(0)).unwrap();
    while first.send(b"too late").is_ok() {
        tokio::task::yield_now().await;
    }
    sender.send_to(b"late", bench.opened(1)).unwrap();
    assert_eq!(bench.receive().await.0, b"late");
}

#[tokio::test]
async fn hop_wakes_the_reader_and_the_pollers() {
    #[derive(Default)]
    struct Woken(AtomicBool);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Relaxed);
        }
    }
    let bench = Bench::new(Recorder::default());
    bench.socket.shared.clone().writable().await.unwrap();
    let reader = Arc::<Woken>::default();
    let waker = Waker::from(reader.clone());
    let mut cx = Context::from_waker(&waker);
    let mut buf = [0; 64];
    let mut meta = [RecvMeta::default()];
    let pending = bench
        .socket
        .poll_recv(&mut cx, &mut [IoSliceMut::new(&mut buf)], &mut meta);
    assert!(pending.is_pending());

    bench.socket.shared.links.load().current.block();
    let writer = Arc::<Woken>::default();
    let waker = Waker::from(writer.clone());
    let mut cx = Context::from_waker(&waker);
    let mut poller = bench.socket.clone().create_io_poller();
    assert!(poller.as_mut().poll_writable(&mut cx).is_pending());

    bench.socket.shared.hop().unwrap();
    assert!(reader.0.load(Relaxed));
    assert!(writer.0.load(Relaxed));
    // The old socket stays blocked; the new one is ready as soon as the reactor says so.
    std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx))
        .await
        .unwrap();
    bench.send(b"after", None).await;
    let mut buf = [0; 64];
    let (len, from) = bench.peer().recv_from(&mut buf).unwrap();
    assert_eq!((&buf[..len], from), (&b"after"[..], bench.opened(1)));
}

#[tokio::test]
async fn held_transmit_leaves_by_the_old_way_when_the_socket_hops() {
    let bench = Bench::new(Recorder::default());
    let contents: Vec<u8> = (0..FULL_TRANSMIT)
        .flat_map(|i| vec![i as u8; SIZE])
        .collect();
    bench.send(&contents, Some(SIZE)).await;
    let peer = bench.peer();
    bench.socket.shared.hop().unwrap();
    let mut buf = [0; 2048];
    for i in 0..FULL_TRANSMIT {
        let (len, from) = peer.recv_from(&mut buf).unwrap();
        assert_eq!((&buf[..len], from), (&[i as u8; SIZE][..], bench.opened(0)));
    }
}

#[tokio::test]
async fn failed_hop_keeps_the_socket() {
    let bench = Bench::new(Recorder::default());
    bench.factory.broken.store(true, Relaxed);
    let before = bench.socket.local_addr().unwrap();
    bench.socket.shared.hop().unwrap_err();
    assert_eq!(bench.socket.local_addr().unwrap(), before);
    bench.send(b"still here", None).await;
    let mut buf = [0; 64];
    assert_eq!(bench.peer().recv(&mut buf).unwrap(), b"still here".len());
}

#[tokio::test(start_paused = true)]
async fn timer_hops_until_the_socket_is_dropped() {
    let factory = Arc::new(Recorder::default());
    let stats = Arc::<SocketStats>::default();
    let interval = HopInterval::fixed(Duration::from_secs(5)).unwrap();
    let socket = HopSocket::new(
        (Ipv4Addr::LOCALHOST, 9).into(),
        HopConfig::new(ports("9-10"), interval).unwrap(),
        factory.clone(),
        &Obfuscation::Plain,
        &SocketOptions::default(),
        stats.clone(),
    )
    .unwrap();
    tokio::time::sleep(Duration::from_millis(15_100)).await;
    assert_eq!(stats.snapshot().hops, 3);
    factory.broken.store(true, Relaxed);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let counters = stats.snapshot();
    assert_eq!((counters.hops, counters.hop_failures), (3, 2));
    factory.broken.store(false, Relaxed);
    drop(socket);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(stats.snapshot(), counters);
    assert_eq!(Arc::strong_count(&factory), 1);
}
