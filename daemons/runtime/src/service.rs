//! What a daemon tells the service manager that started it: ready, alive, stopping
//! (systemd's `Type=notify` and `WatchdogSec=`). Without one, nothing happens.

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

/// Says that the service is up.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Says that the service is ending.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Says that the process is alive, as often as the service manager asked for, until the handle is
/// dropped. Runs on the runtime, so a runtime that is stuck is seen.
pub fn watchdog() -> Option<AbortOnDropHandle<()>> {
    let limit = sd_notify::watchdog_enabled()?;
    Some(AbortOnDropHandle::new(tokio::spawn(async move {
        let mut tick = interval(limit / 2);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            notify(&[NotifyState::Watchdog]);
        }
    })))
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "service manager");
    }
}
