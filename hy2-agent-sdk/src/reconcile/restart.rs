//! Restarts of the engine, and the wait for connections to finish before.
//!
//! The wait is the running engine's, with its doors closed: users, settings and orders change as at
//! any time. Nothing but the stop and the start keep changes waiting.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::Reconciler;
use crate::agent::Node;

/// Why a node lets nobody in whose engine is about to be restarted.
pub(super) const RESTARTING: &str = "to be restarted";

/// How often it is looked whether connections have finished.
const LOOK: Duration = Duration::from_millis(500);

/// Why there was no restart.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum RestartError {
    #[error("the agent ends")]
    Ending,
    #[error("the restart failed")]
    Failed,
}

/// The restart of the moment. There is one at a time.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    stage: Stage,
    /// How many are over.
    over: u64,
    /// The last one panicked.
    failed: bool,
    /// There will be none any more.
    ending: bool,
}

#[derive(Debug, Clone, Copy, Default)]
enum Stage {
    #[default]
    None,
    /// Connections may finish.
    Waits { until: Instant },
    /// The engine has stopped.
    Starts,
}

impl Restarts {
    /// Whether connections may finish and nobody comes in.
    pub(super) fn waits(&self) -> bool {
        matches!(self.stage, Stage::Waits { .. })
    }

    /// There will be none any more, also not the one that waits.
    pub(super) fn end(&mut self) {
        self.ending = true;
    }

    /// Until when the present one waits; `None` when none does.
    fn until(&self) -> Option<Instant> {
        match self.stage {
            Stage::Waits { until } if !self.ending => Some(until),
            _ => None,
        }
    }

    fn ask(&mut self, asked: Instant) {
        if self.ending {
            return;
        }
        self.stage = match self.stage {
            Stage::None => Stage::Waits { until: asked },
            Stage::Waits { until } => Stage::Waits {
                until: until.min(asked),
            },
            Stage::Starts => Stage::Starts,
        };
    }
}

impl Reconciler {
    /// Stops the engine and starts it again. Connections may finish within `grace`, a day at most;
    /// nobody comes in meanwhile. Who asks while another restart waits shares it, and the shorter
    /// grace counts.
    ///
    /// # Errors
    ///
    /// [`RestartError`]. An engine that does not start again is none: its status says so, and it is
    /// tried again.
    ///
    /// # Cancel safety
    ///
    /// The restart goes on: half a restart is none.
    pub(crate) async fn restart(&self, grace: Duration) -> Result<(), RestartError> {
        let mut watched = self.restarts.subscribe();
        let until = Instant::now() + grace;
        let mut before = 0;
        self.restarts.send_modify(|restarts| {
            before = restarts.over;
            restarts.ask(until);
        });
        self.tick();
        let over = watched
            .wait_for(|restarts| restarts.over > before || restarts.ending)
            .await
            .map_err(|_| RestartError::Ending)?;
        match (over.over > before, over.failed) {
            (false, _) => Err(RestartError::Ending),
            (true, true) => Err(RestartError::Failed),
            (true, false) => Ok(()),
        }
    }

    /// Waits for connections to finish, then restarts; does nothing when there is none to do.
    async fn restart_now(&self) {
        let mut watched = self.restarts.subscribe();
        let mut idle = HashSet::new();
        let mut look = Instant::now();
        loop {
            let Some(until) = watched.borrow_and_update().until() else {
                return;
            };
            let (now, sessions) = (Instant::now(), self.engine.sessions());
            if until <= now || sessions.is_empty() {
                break;
            }
            if look <= now {
                // A client without a stream loses nothing and finds another node; at the second
                // look, because one that is between two streams has a use for its connection.
                let before = std::mem::take(&mut idle);
                for session in sessions {
                    if session.tcp_streams > 0 || session.udp_sessions > 0 {
                        continue;
                    }
                    idle.insert(session.connection);
                    if before.contains(&session.connection) {
                        self.engine.kick_connection(session.connection);
                    }
                }
                look = now + LOOK;
            }
            // Both arms are cancel safe.
            tokio::select! {
                () = sleep_until(until.min(look)) => {}
                _ = watched.changed() => {}
            }
        }
        let mut state = self.ledger.lock().await;
        if state.ended {
            return;
        }
        self.engine.stop(Duration::ZERO).await;
        state.applied = false;
        // Doors are open from the start on.
        self.restarts
            .send_modify(|restarts| restarts.stage = Stage::Starts);
        self.start_from(&mut state).await;
    }
}

/// Restarts the engine whenever that is asked for, forever.
pub(crate) async fn restarts(node: Arc<Node>) {
    let reconciler = &node.reconciler;
    let mut watched = reconciler.restarts.subscribe();
    while watched
        .wait_for(|restarts| restarts.until().is_some())
        .await
        .is_ok()
    {
        // In a task of its own: a panic of the engine's must not leave the doors closed.
        let mut task = JoinSet::new();
        let restarting = Arc::clone(&node);
        task.spawn(async move { restarting.reconciler.restart_now().await });
        let ended = task.join_next().await;
        let failed = !matches!(ended, Some(Ok(())));
        if let Some(Err(error)) = ended {
            tracing::error!(%error, "the restart failed");
        }
        reconciler.restarts.send_modify(|restarts| {
            restarts.stage = Stage::None;
            restarts.failed = failed;
            // One that gave up because the agent ends is not over.
            restarts.over += u64::from(!restarts.ending);
        });
        reconciler.tick();
    }
}
