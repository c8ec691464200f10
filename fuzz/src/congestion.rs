//! Congestion controllers under any sequence of what quinn calls: rates and windows stay finite,
//! positive and within what was agreed, and a connection that is held back is woken in time.
//!
//! Planted bug: what the pacer saves up had eight times its limit.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    io,
    net::UdpSocket,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arbitrary::Unstructured;
use hy2_core::{
    congestion::{Algorithm, BbrProfile, CongestionHandle},
    fuzzing::congestion::Driven,
    quinn::{AsyncTimer, AsyncUdpSocket, Runtime},
};

use crate::read;

/// Runs a program of sending, acknowledging, losing, waiting, switching and migrating.
pub fn target(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut path = Path::new(&mut input);
    for _ in 0..400 {
        if input.is_empty() {
            break;
        }
        path.step(&mut input);
        path.check();
    }
}

fn algorithm(input: &mut Unstructured<'_>) -> Algorithm {
    let choice = read::<u8>(input);
    match choice % 6 {
        0 | 1 => {
            // From one byte per second, which nobody asks for, to 16 GiB per second.
            let (mantissa, exponent) = (read::<u8>(input), read::<u8>(input) % 27);
            Algorithm::Brutal {
                rate: (u64::from(mantissa) + 1) << exponent,
                loss_compensation: choice % 6 == 0,
                overclaim_guard: choice % 4 == 0,
            }
        }
        2 => Algorithm::Bbr(BbrProfile::Conservative),
        3 => Algorithm::Bbr(BbrProfile::Standard),
        4 => Algorithm::Bbr(BbrProfile::Aggressive),
        _ => Algorithm::Reno,
    }
}

/// A connection's one path, and what quinn remembers of it.
struct Path {
    clock: Arc<Clock>,
    handle: CongestionHandle,
    driven: Driven,
    attached: bool,
    mtu: u64,
    /// When sent, and the size.
    flight: VecDeque<(Instant, u64)>,
    acked: u64,
    next_packet: u64,
    max_rtt: Duration,
    /// What Brutal may have sent since the last change: when that was, and how much it was.
    since: (Instant, u64),
}

impl Path {
    fn new(input: &mut Unstructured<'_>) -> Self {
        let clock = Arc::new(Clock {
            start: Instant::now(),
            nanos: AtomicU64::new(0),
        });
        let handle = CongestionHandle::new(algorithm(input));
        let mtu = 1200 + u16::from(read::<u8>(input));
        let driven = Driven::new(&handle, clock.now(), mtu);
        let since = (clock.now(), 0);
        Self {
            clock,
            handle,
            driven,
            attached: false,
            mtu: mtu.into(),
            flight: VecDeque::new(),
            acked: 0,
            next_packet: 0,
            max_rtt: Duration::ZERO,
            since,
        }
    }

    fn step(&mut self, input: &mut Unstructured<'_>) {
        let step = read::<u8>(input);
        match step % 16 {
            0..=3 => {
                let (mantissa, exponent) = (read::<u8>(input), read::<u8>(input) % 28);
                self.clock
                    .nanos
                    .fetch_add(u64::from(mantissa) << exponent, Relaxed);
            }
            4..=7 => {
                let wanted = u64::from(read::<u8>(input) % 40);
                self.send(wanted);
            }
            8..=10 => {
                let (first, count) = (read::<u8>(input), read::<u8>(input) % 40);
                self.acknowledge(first, count, step & 0x80 != 0);
            }
            11 => {
                let (first, count) = (read::<u8>(input), read::<u8>(input) % 20);
                self.lose(first, count, step & 0x80 != 0);
            }
            12 => {
                self.handle.set(algorithm(input));
                // In force from the next packet or acknowledgement on.
                self.acknowledge(0, 0, false);
                self.changed();
            }
            13 => {
                self.mtu = 1200 + u64::from(read::<u8>(input));
                let mtu = u16::try_from(self.mtu).expect("small");
                self.driven.controller().on_mtu_update(mtu);
                self.changed();
            }
            14 => {
                if step & 0x80 == 0 {
                    self.driven.migrate();
                } else {
                    let mtu = u16::try_from(self.mtu).expect("small");
                    self.driven = Driven::new(&self.handle, self.clock.now(), mtu);
                }
                self.flight.clear();
                self.changed();
            }
            _ => {
                self.attached = step & 0x80 == 0;
                if self.attached {
                    let runtime: Arc<dyn Runtime> = Arc::clone(&self.clock) as _;
                    self.driven.attach(&runtime);
                } else {
                    self.driven.detach();
                }
                self.changed();
            }
        }
    }

    fn changed(&mut self) {
        self.since = (self.clock.now(), 0);
    }

    fn in_flight(&self) -> u64 {
        self.flight.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Sends up to `wanted` datagrams in one batch, asking as quinn does: twice per datagram, and
    /// telling only at the end.
    fn send(&mut self, wanted: u64) {
        let (now, in_flight) = (self.clock.now(), self.in_flight());
        let mut batch = 0;
        while batch < wanted * self.mtu {
            let window = self.driven.controller().window();
            if in_flight + batch + self.mtu >= window {
                if batch == 0 {
                    self.held_back(window);
                }
                break;
            }
            // Of its pacer, which our window switches off where the gate paces.
            let _ = self.driven.controller().window();
            batch += self.mtu;
        }
        if batch > 0 {
            self.next_packet += 1;
            let packet = self.next_packet;
            self.driven.controller().on_sent(now, batch, packet);
            for _ in 0..batch / self.mtu {
                self.flight.push_back((now, self.mtu));
            }
            self.since.1 += batch;
        }
    }

    /// Checks that a connection which may send nothing is woken by something.
    fn held_back(&mut self, window: u64) {
        let (own, mtu) = (self.handle.snapshot().window, self.mtu);
        let in_flight = self.in_flight();
        assert!(window >= 1);
        if in_flight + 2 * mtu >= own || in_flight > 0 && !self.attached {
            assert!(in_flight > 0, "nothing on its way and no room: {own}");
            return;
        }
        assert!(self.attached, "held back by nothing");
        // The gate; rounding may cost it a second try.
        let mut opens = self.driven.deadline().expect("a time to be woken");
        for _ in 0..4 {
            let nanos = opens.saturating_duration_since(self.clock.start).as_nanos();
            let Ok(nanos) = u64::try_from(nanos) else {
                return;
            };
            self.clock.nanos.fetch_max(nanos, Relaxed);
            if self.driven.controller().window() > u64::from(u32::MAX) {
                let _ = self.driven.controller().window();
                return;
            }
            opens = self.driven.deadline().expect("a time to be woken");
        }
        panic!("held back though its time has come");
    }

    fn acknowledge(&mut self, first: u8, count: u8, app_limited: bool) {
        let now = self.clock.now();
        for _ in 0..count {
            let at = usize::from(first).min(self.flight.len().saturating_sub(1));
            let Some((sent, bytes)) = self.flight.remove(at) else {
                break;
            };
            let rtt = now - sent;
            self.max_rtt = self.max_rtt.max(rtt);
            self.acked += bytes;
            self.driven.on_ack(now, sent, bytes, app_limited, rtt);
        }
        let in_flight = self.in_flight();
        let newest = Some(self.next_packet);
        let controller = self.driven.controller();
        controller.on_end_acks(now, in_flight, app_limited, newest);
    }

    fn lose(&mut self, first: u8, count: u8, persistent: bool) {
        let now = self.clock.now();
        let at = usize::from(first).min(self.flight.len());
        let end = (at + usize::from(count)).min(self.flight.len());
        let lost: Vec<_> = self.flight.drain(at..end).collect();
        // Without lost bytes it is a mark of congestion (ECN).
        let sent = lost.last().map_or(now, |(sent, _)| *sent);
        let bytes = lost.iter().map(|(_, bytes)| bytes).sum();
        let controller = self.driven.controller();
        controller.on_congestion_event(now, sent, persistent, bytes);
    }

    fn check(&mut self) {
        let figures = self.handle.snapshot();
        let metrics = self.driven.controller().metrics();
        assert!((0.8..=1.0).contains(&figures.ack_rate));
        assert!(metrics.congestion_window >= 2 * 1200);
        let initial = 32 * (1200 + 255);
        match figures.algorithm {
            Algorithm::Brutal {
                rate,
                overclaim_guard,
                ..
            } => {
                assert_eq!(figures.target_rate, rate);
                // The guard goes below, on a path that does not carry the rate, but never to nothing.
                let least = if overclaim_guard { 65_536 } else { rate };
                assert!(figures.pacing_rate >= rate.min(least));
                assert!(figures.pacing_rate <= rate + rate / 4);
                let rtt = self.max_rtt.max(Duration::from_millis(25)).as_secs_f64();
                let most = 2.5 * rate as f64 * rtt + (10 * self.mtu) as f64 + 1.0;
                assert!(metrics.congestion_window as f64 <= most);
                if self.attached {
                    let time = self.clock.now() - self.since.0;
                    let fastest = (rate + rate / 4) as f64;
                    let burst = (fastest * 0.016).max(10.0 * 1455.0) + 12.0 * 1455.0;
                    let most = fastest * time.as_secs_f64() + burst;
                    assert!(self.since.1 as f64 <= most, "{} of {most}", self.since.1);
                }
            }
            Algorithm::Bbr(_) => {
                let rate = figures.pacing_rate;
                // No faster than all that arrived within the shortest round trip that counts.
                let fastest = self.acked as f64 / 45e-6;
                assert!(figures.target_rate as f64 <= fastest);
                // Start-up keeps the rate of its beginning, however small the window has become.
                let start = metrics.congestion_window.max(initial) as f64 * 1000.0;
                let most = (3.0 * fastest.max(start)).max(65_536.0);
                assert!(
                    rate == 0 || (rate >= 65_536 && rate as f64 <= most),
                    "{rate}"
                );
                assert!(metrics.congestion_window <= initial + self.acked + 4 * 1455);
            }
            Algorithm::Reno => {
                assert_eq!(figures.pacing_rate, 0);
                assert!(metrics.congestion_window <= initial + self.acked + 4 * 1455);
            }
            _ => {}
        }
        let window = self.handle.send_window_target();
        // At most what nobody has limited yet.
        assert!((1 << 20..=96_000_000).contains(&window));
    }
}

/// Time that the program moves.
struct Clock {
    start: Instant,
    nanos: AtomicU64,
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
