//! Controllers: what an acknowledgement, a sent packet and the question "may I send?" cost.

use std::{
    fmt,
    hint::black_box,
    io,
    net::UdpSocket,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hy2_core::{
    congestion::{Algorithm, BbrProfile, CongestionHandle},
    fuzzing::congestion::Driven,
    quinn::{AsyncTimer, AsyncUdpSocket, Runtime},
};

use crate::Case;

const MTU: u16 = 1452;
const ROUND_TRIP: Duration = Duration::from_millis(50);
/// Packets at 100 Mbit/s.
const GAP: Duration = Duration::from_micros(116);
const BRUTAL: Algorithm = Algorithm::Brutal {
    rate: 12_500_000,
    loss_compensation: true,
    overclaim_guard: false,
};
const BBR: Algorithm = Algorithm::Bbr(BbrProfile::Standard);

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new("brutal/acknowledged packet", || acknowledge(BRUTAL)),
        Case::new("brutal/acknowledgement of 2", || frame(BRUTAL)),
        Case::new("brutal/may send, and sent", || send(BRUTAL)),
        Case::new("bbr/acknowledged packet", || acknowledge(BBR)),
        Case::new("bbr/acknowledgement of 2", || frame(BBR)),
        Case::new("bbr/may send, and sent", || send(BBR)),
    ]
}

/// A path in the middle of a transfer.
struct Path {
    clock: Arc<Clock>,
    driven: Driven,
    packet: u64,
}

impl Path {
    fn new(algorithm: Algorithm) -> Self {
        let clock = Arc::new(Clock {
            start: Instant::now(),
            nanos: AtomicU64::new(0),
        });
        let handle = CongestionHandle::new(algorithm);
        let driven = Driven::new(&handle, clock.now(), MTU);
        let runtime: Arc<dyn Runtime> = Arc::clone(&clock) as _;
        driven.attach(&runtime);
        let mut path = Self {
            clock,
            driven,
            packet: 0,
        };
        // Two seconds of a full path, so that estimates are settled.
        for _ in 0..17_000 {
            path.send();
            path.acknowledge();
            path.end_acks();
        }
        path
    }

    fn send(&mut self) {
        let now = self.clock.pass(GAP);
        self.packet += 1;
        let packet = self.packet;
        self.driven.controller().on_sent(now, MTU.into(), packet);
    }

    fn acknowledge(&mut self) {
        let now = self.clock.now();
        let sent = now.checked_sub(ROUND_TRIP).unwrap_or(now);
        self.driven.on_ack(now, sent, MTU.into(), false, ROUND_TRIP);
    }

    fn end_acks(&mut self) {
        let in_flight = 430 * u64::from(MTU);
        let (now, packet) = (self.clock.now(), self.packet);
        self.driven
            .controller()
            .on_end_acks(now, in_flight, false, Some(packet));
    }
}

/// One packet of an acknowledgement frame.
fn acknowledge(algorithm: Algorithm) -> Box<dyn FnMut()> {
    let mut path = Path::new(algorithm);
    Box::new(move || {
        path.clock.pass(GAP);
        path.acknowledge();
    })
}

/// A whole acknowledgement frame, as a peer sends them, with the sending that makes room for it.
fn frame(algorithm: Algorithm) -> Box<dyn FnMut()> {
    let mut path = Path::new(algorithm);
    Box::new(move || {
        path.acknowledge();
        path.acknowledge();
        path.end_acks();
        path.clock.pass(GAP);
    })
}

/// What quinn asks for each datagram, window and pacer, and tells at the end of a batch of one.
fn send(algorithm: Algorithm) -> Box<dyn FnMut()> {
    let mut path = Path::new(algorithm);
    let mut left = 0_u32;
    Box::new(move || {
        black_box(path.driven.controller().window());
        black_box(path.driven.controller().window());
        path.send();
        left += 1;
        if left == 64 {
            left = 0;
            // Nothing is really on its way: an acknowledgement empties it.
            path.end_acks();
        }
    })
}

struct Clock {
    start: Instant,
    nanos: AtomicU64,
}

impl Clock {
    fn pass(&self, time: Duration) -> Instant {
        self.nanos.fetch_add(time.as_nanos() as u64, Relaxed);
        self.now()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").finish_non_exhaustive()
    }
}

impl Runtime for Clock {
    fn new_timer(&self, _: Instant) -> Pin<Box<dyn AsyncTimer>> {
        unreachable!("a clock only")
    }

    fn spawn(&self, _: Pin<Box<dyn Future<Output = ()> + Send>>) {
        unreachable!("a clock only")
    }

    fn wrap_udp_socket(&self, _: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_nanos(self.nanos.load(Relaxed))
    }
}
