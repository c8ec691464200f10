//! Timers that fire late, as on a busy machine.

use std::{
    future::Future,
    io,
    net::UdpSocket,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};

use crate::rng::SplitMix64;

/// Tokio as quinn's runtime, except that each timer fires up to `max` after its time.
///
/// The delay is drawn again whenever a timer is set, uniformly.
#[derive(Debug)]
pub struct LateRuntime {
    max: Duration,
    rng: Arc<Mutex<SplitMix64>>,
}

impl LateRuntime {
    /// Timers late by 0 to `max`, drawn from `seed`.
    pub fn new(max: Duration, seed: u64) -> Self {
        Self {
            max,
            rng: Arc::new(Mutex::new(SplitMix64::new(seed))),
        }
    }
}

impl Runtime for LateRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let mut timer = LateTimer {
            inner: TokioRuntime.new_timer(at),
            max: self.max,
            rng: self.rng.clone(),
        };
        Pin::new(&mut timer).reset(at);
        Box::pin(timer)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        TokioRuntime.spawn(future);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

#[derive(Debug)]
struct LateTimer {
    inner: Pin<Box<dyn AsyncTimer>>,
    max: Duration,
    rng: Arc<Mutex<SplitMix64>>,
}

impl AsyncTimer for LateTimer {
    fn reset(mut self: Pin<&mut Self>, at: Instant) {
        let late = self.max.mul_f64(self.rng.lock().unit());
        self.inner.as_mut().reset(at + late);
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.inner.as_mut().poll(cx)
    }
}
