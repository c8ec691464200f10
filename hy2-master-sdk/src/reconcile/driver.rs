//! Runs one task: when called, when its timer says so, and alone in the cluster when it has to be.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::broadcast;
use tokio::time::{Instant, MissedTickBehavior};

use crate::core::{Core, KeysError};
use crate::rpc::TlsError;
use crate::rpc::error::chain;
use crate::store::cluster::{Fence, Held, Lease};
use crate::store::{StoreError, Topic};

/// A run failed; the next one tries again.
#[derive(Debug, Error)]
pub(super) enum TaskError {
    #[error("the store fails")]
    Store(#[from] StoreError),
    #[error("the cluster's keys fail")]
    Keys(#[from] KeysError),
    #[error("TLS for agents fails")]
    Tls(#[from] TlsError),
}

type Run = Pin<Box<dyn Future<Output = Result<(), TaskError>> + Send>>;

/// One task.
pub(super) struct Task {
    name: &'static str,
    every: Duration,
    pause: Duration,
    topics: &'static [Topic],
    traffic: bool,
    alone: bool,
    patience: u32,
    run: Box<dyn Fn(Arc<Core>, Option<Fence>) -> Run + Send + Sync>,
}

impl Task {
    pub(super) fn new(
        name: &'static str,
        every: Duration,
        run: impl Fn(Arc<Core>, Option<Fence>) -> Run + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            every,
            pause: BREATHER,
            topics: &[],
            traffic: false,
            alone: false,
            patience: 1,
            run: Box::new(run),
        }
    }

    /// Runs also when one of these is called.
    pub(super) fn on(mut self, topics: &'static [Topic]) -> Self {
        self.topics = topics;
        self
    }

    /// Runs at most once in this time.
    pub(super) fn pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// Runs also when counters grew.
    pub(super) fn on_traffic(mut self) -> Self {
        self.traffic = true;
        self
    }

    /// Runs on one master of the cluster.
    pub(super) fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Takes longer: a run may last so many times the patience with the store.
    pub(super) fn patience(mut self, times: u32) -> Self {
        self.patience = times;
        self
    }

    pub(super) async fn run(self, core: Arc<Core>) {
        let mut calls = core.store.bus().listen();
        let mut timer = tokio::time::interval(self.every);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_end = None::<Instant>;
        let mut seen = None;
        loop {
            tokio::select! {
                biased;
                () = core.shutdown.cancelled() => return,
                // Cancel safe: a call or a tick that is not taken stays; one call is as good as many.
                () = self.called(&core, &mut calls) => {}
                _ = timer.tick() => {}
            }
            // A burst of calls costs few runs, and the first of them runs at once.
            if let Some(rest) = last_end.and_then(|end| self.pause.checked_sub(end.elapsed())) {
                tokio::select! {
                    biased;
                    () = core.shutdown.cancelled() => return,
                    () = tokio::time::sleep(rest) => {}
                }
                while calls.try_recv().is_ok() {}
            }
            let fence = if self.alone {
                let lead = core.store.in_time(1, self.lead(&core, &mut seen));
                match lead.await.flatten() {
                    Ok(Some(fence)) => Some(fence),
                    Ok(None) => continue,
                    Err(error) => {
                        tracing::warn!(
                            task = self.name,
                            error = chain(&error),
                            "cannot take the task's lease"
                        );
                        continue;
                    }
                }
            } else {
                None
            };
            let run = (self.run)(Arc::clone(&core), fence);
            tokio::select! {
                biased;
                // Every run is a transaction or several: what is cut short has not happened, by the end or by the limit.
                () = core.shutdown.cancelled() => return,
                result = core.store.in_time(self.patience, run) => if let Err(error) = result.map_err(TaskError::from).flatten() {
                    metrics::counter!("hy2_master_task_failures_total", "task" => self.name).increment(1);
                    tracing::warn!(task = self.name, error = chain(&error), "task failed; it runs again");
                },
            }
            last_end = Some(Instant::now());
        }
    }

    /// Takes or keeps the task's lease; `None` while another master has it. `seen` is how another's was and since when.
    ///
    /// A lease ends by the clock of who took it. One that a master wrote whose clock was ahead would keep the task from
    /// running until then, so a lease is over also when nobody has kept it for as long as it is valid.
    async fn lead(
        &self,
        core: &Core,
        seen: &mut Option<(Held, Instant)>,
    ) -> Result<Option<Fence>, StoreError> {
        let valid = (self.every * 3).max(MIN_LEASE);
        let valid_ms = i64::try_from(valid.as_millis()).unwrap_or(i64::MAX);
        let unchanged = seen
            .filter(|(_, since)| since.elapsed() > valid)
            .map(|(held, _)| held);
        let store = &core.store;
        let asked = store.acquire_lease(self.name, core.id, core.now(), valid_ms, unchanged);
        let held = match asked.await? {
            Lease::Mine(fence) => {
                if unchanged.is_some() {
                    tracing::warn!(
                        task = self.name,
                        "nobody kept the task's lease, which is valid by its holder's clock: a clock was wrong"
                    );
                }
                *seen = None;
                return Ok(Some(fence));
            }
            Lease::Others(held) => held,
        };
        if seen.is_none_or(|(before, _)| before != held) {
            *seen = Some((held, Instant::now()));
        }
        Ok(None)
    }

    async fn called(&self, core: &Core, calls: &mut broadcast::Receiver<Topic>) {
        loop {
            tokio::select! {
                call = calls.recv() => match call {
                    Ok(topic) if self.topics.contains(&topic) => return,
                    Ok(_) => {}
                    Err(broadcast::error::RecvError::Lagged(_)) if !self.topics.is_empty() => return,
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                },
                () = core.grown.notify.notified(), if self.traffic => return,
            }
        }
    }
}

/// Passes on what other masters call, as long as the process runs.
pub(super) async fn relay(core: Arc<Core>) {
    loop {
        tokio::select! {
            biased;
            () = core.shutdown.cancelled() => return,
            result = core.store.relay_calls() => {
                if let Err(error) = result {
                    tracing::debug!(error = chain(&error), "calls of other masters are lost for a moment");
                }
            }
        }
        tokio::select! {
            biased;
            () = core.shutdown.cancelled() => return,
            () = tokio::time::sleep(RELAY_RETRY) => {}
        }
    }
}

const BREATHER: Duration = Duration::from_millis(20);
const MIN_LEASE: Duration = Duration::from_secs(15);
const RELAY_RETRY: Duration = Duration::from_millis(500);
