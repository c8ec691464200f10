//! A controller without a connection, for the fuzz targets and benches.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::{
    Runtime,
    congestion::{Controller, ControllerFactory},
};

use super::{
    CongestionHandle,
    controller::{Factory, Paced},
    shared::NEVER,
};

/// The controller of one path.
#[derive(Debug)]
pub struct Driven {
    handle: CongestionHandle,
    paced: Box<Paced>,
}

impl Driven {
    /// Builds the controller as quinn does for a new path, but for what it draws by chance: that is
    /// the same in every run.
    pub fn new(handle: &CongestionHandle, now: Instant, mtu: u16) -> Self {
        let built = Arc::new(Factory::new(handle.0.clone())).build(now, mtu);
        let mut paced = paced(built);
        paced.draw_from(1);
        Self {
            handle: handle.clone(),
            paced,
        }
    }

    /// Lets the gate pace by the clock of `runtime`.
    pub fn attach(&self, runtime: &Arc<dyn Runtime>) {
        self.handle.0.set_attached(runtime);
    }

    /// Ends that.
    pub fn detach(&self) {
        self.handle.0.set_detached();
    }

    /// When the gate wants the connection woken.
    pub fn deadline(&self) -> Option<Instant> {
        let deadline = self.handle.0.deadline();
        if deadline == NEVER {
            return None;
        }
        self.handle.0.instant(deadline)
    }

    /// Clones the controller as quinn does when a peer's port changes.
    pub fn migrate(&mut self) {
        self.paced = paced(self.paced.clone_box());
    }

    /// Everything that quinn calls.
    pub fn controller(&mut self) -> &mut dyn Controller {
        &mut *self.paced
    }

    /// What quinn calls with an estimator that only quinn can make.
    pub fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        smoothed_rtt: Duration,
    ) {
        self.paced
            .acknowledged(now, sent, bytes, app_limited, smoothed_rtt);
    }
}

fn paced(controller: Box<dyn Controller>) -> Box<Paced> {
    controller
        .into_any()
        .downcast()
        .expect("the factory makes no other controller")
}
