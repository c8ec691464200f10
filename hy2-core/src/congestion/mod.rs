//! temporary overlay
#![allow(missing_docs, dead_code)]
mod figures;
mod tuning;
pub use figures::CongestionSnapshot;
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering::Relaxed},
};
pub use tuning::tune;
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Algorithm {
    Brutal { rate: u64, loss_compensation: bool },
    Bbr(BbrProfile),
    Reno,
}
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BbrProfile {
    Conservative,
    #[default]
    Standard,
    Aggressive,
}
#[derive(Debug, Clone)]
pub struct CongestionHandle(Arc<(Mutex<Algorithm>, figures::Figures, AtomicU64)>);
#[derive(Debug)]
pub struct Pacing;
impl CongestionHandle {
    pub fn new(a: Algorithm) -> Self {
        Self(Arc::new((
            Mutex::new(a),
            Default::default(),
            AtomicU64::new(64_000_000),
        )))
    }
    pub fn factory(&self) -> Arc<dyn quinn::congestion::ControllerFactory + Send + Sync> {
        Arc::new(Fixed(8 << 20))
    }
    pub fn attach(&self, c: &quinn::Connection, _r: Arc<dyn quinn::Runtime>) -> Pacing {
        c.set_send_window(32 << 20);
        Pacing
    }
    pub fn set(&self, a: Algorithm) {
        *self.0.0.lock().unwrap() = a;
    }
    pub fn algorithm(&self) -> Algorithm {
        *self.0.0.lock().unwrap()
    }
    pub fn snapshot(&self) -> CongestionSnapshot {
        self.0.1.snapshot(self.algorithm())
    }
    pub fn send_window_target(&self) -> u64 {
        32 << 20
    }
    pub fn set_send_window_limit(&self, l: u64) {
        self.0.2.store(l, Relaxed);
    }
}
#[derive(Clone)]
struct Fixed(u64);
impl quinn::congestion::ControllerFactory for Fixed {
    fn build(
        self: Arc<Self>,
        _n: std::time::Instant,
        _m: u16,
    ) -> Box<dyn quinn::congestion::Controller> {
        Box::new((*self).clone())
    }
}
impl quinn::congestion::Controller for Fixed {
    fn on_congestion_event(
        &mut self,
        _: std::time::Instant,
        _: std::time::Instant,
        _: bool,
        _: u64,
    ) {
    }
    fn on_mtu_update(&mut self, _: u16) {}
    fn window(&self) -> u64 {
        self.0
    }
    fn clone_box(&self) -> Box<dyn quinn::congestion::Controller> {
        Box::new(self.clone())
    }
    fn initial_window(&self) -> u64 {
        self.0
    }
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any> {
        self
    }
}
