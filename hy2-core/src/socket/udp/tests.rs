use std::{
    net::{Ipv4Addr, UdpSocket as StdSocket},
    task::{Wake, Waker},
    time::Duration,
};

use super::*;
use crate::socket::{options::bind, poller::Writable};

const SIZE: usize = 1200;

struct Bench {
    socket: Arc<UdpSocket>,
    /// The same kernel socket, to look at and to poke from outside.
    kernel: StdSocket,
    peer: StdSocket,
    stats: Arc<SocketStats>,
}

impl Bench {
    fn new(obfs: &Obfuscation) -> Self {
        Self::with(obfs, &SocketOptions::default())
    }

    fn with(obfs: &Obfuscation, options: &SocketOptions) -> Self {
        let kernel = bind((Ipv4Addr::LOCALHOST, 0).into(), options).unwrap();
        let peer = bind((Ipv4Addr::LOCALHOST, 0).into(), &SocketOptions::default()).unwrap();
        peer.set_nonblocking(false).unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let stats = Arc::<SocketStats>::default();
        let socket =
            UdpSocket::new(kernel.try_clone().unwrap(), obfs, options, stats.clone(), 1).unwrap();
        Self {
            socket,
            kernel,
            peer,
            stats,
        }
    }

    fn send(&self, contents: &[u8], segment_size: Option<usize>) -> io::Result<()> {
        self.socket.try_send(&Transmit {
            destination: self.peer.local_addr().unwrap(),
            ecn: None,
            contents,
            segment_size,
            src_ip: None,
        })
    }

    /// Waits for the reactor's first word on the socket: until then nothing can be sent.
    async fn writable(&self) {
        self.socket.clone().writable().await.unwrap();
    }

    /// Receives one datagram, which must be there or on its way.
    fn receive(&self) -> Vec<u8> {
        let mut buf = [0; 2048];
        let len = self.peer.recv(&mut buf).expect("a datagram arrives");
        buf[..len].to_vec()
    }

    fn nothing_arrived(&self) -> bool {
        self.peer.set_nonblocking(true).unwrap();
        let result = self.peer.recv(&mut [0; 2048]);
        self.peer.set_nonblocking(false).unwrap();
        matches!(result, Err(err) if err.kind() == io::ErrorKind::WouldBlock)
    }

    /// Makes the kernel report room: it does whenever a sent datagram frees its memory.
    fn unblock(&self) {
        let aside = StdSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        self.kernel
            .send_to(b"room", aside.local_addr().unwrap())
            .unwrap();
    }
}

/// `count` datagrams of `size` bytes, each of its own content.
fn batch(first: u8, count: usize, size: usize) -> Vec<u8> {
    (0..count)
        .flat_map(|i| vec![first.wrapping_add(i as u8); size])
        .collect()
}

fn full(first: u8) -> Vec<u8> {
    batch(first, FULL_TRANSMIT, SIZE)
}

#[tokio::test]
async fn lone_datagram_leaves_at_once() {
    let bench = Bench::new(&Obfuscation::Plain);
    bench.writable().await;
    bench.send(b"lone", None).unwrap();
    assert_eq!(bench.receive(), b"lone");
    bench.send(&batch(1, 2, SIZE), Some(SIZE)).unwrap();
    assert_eq!(bench.receive(), [1; SIZE]);
    assert_eq!(bench.stats.snapshot().tx_sends, 2);
}

#[tokio::test]
async fn quinn_is_asked_for_more_at_a_time_while_the_socket_is_busy() {
    let bench = Bench::new(&Obfuscation::Plain);
    bench.writable().await;
    let offered = || bench.socket.max_transmit_segments();
    // Many handshakes: few long datagrams, then short ones.
    for _ in 0..100 {
        for _ in 0..7 {
            bench.send(&[1; SIZE], None).unwrap();
        }
        for _ in 0..5 {
            bench.send(&[2; 60], None).unwrap();
        }
    }
    assert_eq!(offered(), QUIET_TRANSMIT);
    for _ in 0..=BUSY_STREAK {
        bench.send(&[1; SIZE], None).unwrap();
    }
    assert_eq!(offered(), FULL_TRANSMIT);
    // It stays so while full transmits come, and for a while after the last.
    bench.send(&full(0), Some(SIZE)).unwrap();
    for _ in 0..BUSY_TRANSMITS {
        assert_eq!(offered(), FULL_TRANSMIT);
    }
    assert_eq!(offered(), QUIET_TRANSMIT);
}

#[tokio::test]
async fn full_transmit_is_held_and_flushed_by_the_task() {
    let bench = Bench::new(&Obfuscation::Plain);
    bench.writable().await;
    bench.send(&full(1), Some(SIZE)).unwrap();
    assert!(bench.nothing_arrived());
    while bench.stats.snapshot().tx_sends == 0 {
        tokio::task::yield_now().await;
    }
    for i in 1..=FULL_TRANSMIT as u8 {
        assert_eq!(bench.receive(), [i; SIZE]);
    }
}

#[tokio::test]
async fn full_transmits_share_a_send_and_a_short_one_ends_it() {
    let bench = Bench::new(&Obfuscation::Plain);
    bench.writable().await;
    for i in 0..3 {
        bench.send(&full(i * 3), Some(SIZE)).unwrap();
    }
    assert!(bench.nothing_arrived());
    let mut tail = batch(9, 1, SIZE);
    tail.extend([10; 7]);
    bench.send(&tail, Some(SIZE)).unwrap();
    for i in 0..10 {
        assert_eq!(bench.receive(), [i; SIZE]);
    }
    assert_eq!(bench.receive(), [10; 7]);
    let sent = bench.stats.snapshot();
    assert_eq!((sent.tx_sends, sent.tx_datagrams), (1, 11));
    assert_eq!(sent.tx_bytes as usize, 10 * SIZE + 7);
}

#[tokio::test]
async fn run_leaves_when_no_further_full_transmit_fits() {
    let bench = Bench::new(&Obfuscation::Plain);
    bench.writable().await;
    for i in 0..14 {
        bench.send(&full(i * 3), Some(SIZE)).unwrap();
    }
    // 44 datagrams are allowed, so a fifteenth full one would not fit.
    let sent = bench.stats.snapshot();
    assert_eq!((sent.tx_sends, sent.tx_datagrams), (1, 42));
    // And neither would a ninth of a size at which 65,000 bytes come first.
    for i in 0..8 {
        bench.send(&batch(i * 3, 3, 2500), Some(2500)).unwrap();
    }
    let sent = bench.stats.snapshot();
    assert_eq!((sent.tx_sends, sent.tx_datagrams), (2, 66));
}

#[tokio::test]
async fn another_size_destination_or_codepoint_does_not_join_and_does_not_overtake() {
    let bench = Bench::new(&Obfuscation::Plain);
    bench.writable().await;
    let destination = bench.peer.local_addr().unwrap();
    let held = full(1);
    let base = Transmit {
        destination,
        ecn: None,
        contents: &held,
        segment_size: Some(SIZE),
        src_ip: None,
    };
    let other = StdSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let larger = vec![99; SIZE + 1];
    let strangers = [
        Transmit {
            contents: &larger,
            segment_size: None,
            ..base.clone()
        },
        Transmit {
            destination: other.local_addr().unwrap(),
            ..base.clone()
        },
        Transmit {
            ecn: Some(quinn::udp::EcnCodepoint::Ect0),
            ..base.clone()
        },
        Transmit {
            src_ip: Some(Ipv4Addr::LOCALHOST.into()),
            ..base.clone()
        },
    ];
    for stranger in strangers {
        bench.socket.try_send(&base).unwrap();
        assert!(bench.nothing_arrived());
        bench.socket.try_send(&stranger).unwrap();
        for i in 1..=FULL_TRANSMIT as u8 {
            assert_eq!(bench.receive(), [i; SIZE]);
        }
        bench.socket.flush();
        if stranger.destination != destination {
            let mut buf = [0; 2048];
            assert_eq!(other.recv(&mut buf).unwrap(), SIZE);
        } else {
            for datagram in stranger
                .contents
                .chunks(stranger.segment_size.unwrap_or(SIZE + 1))
            {
                assert_eq!(bench.receive(), datagram);
            }
        }
    }
}

#[tokio::test]
async fn blocked_socket_refuses_and_wakes_when_there_is_room() {
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }
    let bench = Bench::new(&Obfuscation::Plain);
    bench.writable().await;
    bench.socket.block();
    let err = bench.send(b"lone", None).unwrap_err();
    assert_eq!(err.kind(), io::ErrorKind::WouldBlock);
    assert_eq!(bench.stats.snapshot().would_block, 1);

    // Every connection has a poller of its own, and all are told.
    let counts = [0, 1].map(|_| Arc::new(Count(AtomicUsize::new(0))));
    let mut pollers = [0, 1].map(|_| bench.socket.clone().create_io_poller());
    for (poller, count) in pollers.iter_mut().zip(&counts) {
        let waker = Waker::from(count.clone());
        let mut cx = Context::from_waker(&waker);
        assert!(poller.as_mut().poll_writable(&mut cx).is_pending());
    }
    bench.unblock();
    while counts.iter().any(|count| count.0.load(Relaxed) == 0) {
        tokio::task::yield_now().await;
    }
    for poller in &mut pollers {
        let mut cx = Context::from_waker(Waker::noop());
        assert!(poller.as_mut().poll_writable(&mut cx).is_ready());
    }
    bench.send(b"lone", None).unwrap();
    assert_eq!(bench.receive(), b"lone");
}

#[tokio::test]
async fn what_was_held_when_the_socket_blocked_is_sent_later_and_first() {
    let bench = Bench::new(&Obfuscation::Plain);
    bench.writable().await;
    bench.send(&full(1), Some(SIZE)).unwrap();
    bench.socket.block();
    // Joins what is held, so it is taken although nothing can be sent.
    bench.send(&[11; 5], None).unwrap();
    // Cannot join, so quinn has to keep it.
    let err = bench.send(&[12; SIZE + 5], None).unwrap_err();
    assert_eq!(err.kind(), io::ErrorKind::WouldBlock);
    assert!(bench.nothing_arrived());
    bench.unblock();
    while bench.stats.snapshot().tx_datagrams < 4 {
        tokio::task::yield_now().await;
    }
    bench.send(&[12; SIZE + 5], None).unwrap();
    for i in 1..=FULL_TRANSMIT as u8 {
        assert_eq!(bench.receive(), [i; SIZE]);
    }
    assert_eq!(bench.receive(), [11; 5]);
    assert_eq!(bench.receive(), [12; SIZE + 5]);
    assert_eq!(bench.stats.snapshot().errors, 0);
}

#[tokio::test]
async fn obfuscated_datagram_taken_while_blocked_is_not_lost() {
    let obfs = Obfuscation::salamander("a key of good length").unwrap();
    let bench = Bench::new(&obfs);
    bench.writable().await;
    bench.socket.block();
    bench.send(b"taken", None).unwrap();
    assert!(bench.nothing_arrived());
    bench.unblock();
    while bench.stats.snapshot().tx_sends == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(bench.receive().len(), b"taken".len() + 8);
}

/// The kernel segments only what it also checksums, so this socket refuses offload.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn refused_offload_falls_back_without_loss() {
    for obfs in [
        Obfuscation::Plain,
        Obfuscation::salamander("a key of good length").unwrap(),
    ] {
        let bench = Bench::new(&obfs);
        crate::socket::sockopt::disable_tx_checksum(&bench.kernel).unwrap();
        bench.writable().await;
        assert_eq!(bench.socket.max_transmit_segments(), QUIET_TRANSMIT);
        bench.send(&full(0), Some(SIZE)).unwrap();
        bench.send(&full(3), Some(SIZE)).unwrap();
        bench.send(&batch(6, 2, SIZE), Some(SIZE)).unwrap();
        assert_eq!(bench.socket.max_transmit_segments(), 1);
        let overhead = usize::from(obfs.overhead());
        for i in 0..8 {
            let datagram = bench.receive();
            assert_eq!(datagram.len(), SIZE + overhead);
            if overhead == 0 {
                assert_eq!(datagram, [i; SIZE]);
            }
        }
        // quinn may have one more batch in hand that it made before the change.
        bench.send(&full(8), Some(SIZE)).unwrap();
        for _ in 8..11 {
            assert_eq!(bench.receive().len(), SIZE + overhead);
        }
        let sent = bench.stats.snapshot();
        assert_eq!((sent.tx_datagrams, sent.tx_sends, sent.errors), (11, 11, 0));
    }
}

#[tokio::test]
async fn datagram_the_kernel_refuses_is_counted_and_does_not_reduce_offload() {
    let bench = Bench::new(&Obfuscation::Plain);
    bench.writable().await;
    // Nothing can be sent to port 0: EINVAL, also for a single datagram.
    let contents = full(1);
    let transmit = Transmit {
        destination: (Ipv4Addr::LOCALHOST, 0).into(),
        ecn: None,
        contents: &contents,
        segment_size: Some(SIZE),
        src_ip: None,
    };
    bench.socket.try_send(&transmit).unwrap();
    bench.socket.flush();
    assert_eq!(bench.stats.snapshot().errors, 3);
    assert_eq!(bench.socket.max_transmit_segments(), FULL_TRANSMIT);
    // Too long for the interface, as a probe of the path MTU may be.
    bench.send(&vec![0; 65_530], None).unwrap();
    assert_eq!(bench.stats.snapshot().errors, 4);
    bench.send(b"still works", None).unwrap();
    assert_eq!(bench.receive(), b"still works");
}

#[tokio::test]
async fn dropping_the_socket_sends_what_is_held() {
    let bench = Bench::new(&Obfuscation::Plain);
    bench.writable().await;
    bench.send(&full(1), Some(SIZE)).unwrap();
    let Bench { socket, peer, .. } = bench;
    drop(socket);
    let mut buf = [0; 2048];
    for i in 1..=FULL_TRANSMIT as u8 {
        assert_eq!(peer.recv(&mut buf).unwrap(), SIZE);
        assert_eq!(buf[..SIZE], [i; SIZE]);
    }
}

#[test]
fn outside_a_runtime_is_an_error() {
    let kernel = StdSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let options = SocketOptions::default();
    assert!(UdpSocket::new(kernel, &Obfuscation::Plain, &options, Arc::default(), 1).is_err());
}
