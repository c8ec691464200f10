//! Webhooks: every event that a webhook asks for is sent until its receiver takes it, or for a day.
//!
//! Plans deliveries from the numbered events (a row per event and webhook), sends what is due in fair
//! turns, tries again with growing pauses. A delivery may arrive twice; its id says so.
//! The connection goes to an address that was resolved and judged once; redirects are not followed.

mod send;
mod turns;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::send::{PATIENCE, SendError, send};
use self::turns::Turns;
use crate::domain::Timestamp;
use crate::events::EventHub;
use crate::service::Service;
use crate::store::webhooks::{self, DeliveryRow};
use crate::store::{StoreError, events};

/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(3_600);

/// How much later than its end a delivery is given up that nobody tries: it waits behind others, or its
/// webhook is disabled. A master that was away first tries once more what it finds.
const LAST_TRIES: Duration = Duration::from_secs(600);

/// How often the deliverer looks without being called.
const TICK: Duration = Duration::from_secs(2);

/// Plans and sends deliveries.
#[derive(Debug)]
pub struct Deliverer {
    service: Service,
    hub: EventHub,
    tls: Arc<rustls::ClientConfig>,
}

/// Deliveries under way: whether the receiver took it; none if it was not asked.
#[derive(Default)]
struct UnderWay {
    tries: JoinSet<Option<bool>>,
    hooks: HashMap<Id, uuid::Uuid>,
    turns: Turns,
}

impl UnderWay {
    fn begin(
        &mut self,
        hook: uuid::Uuid,
        one: impl Future<Output = Option<bool>> + Send + 'static,
    ) {
        self.turns.begin(hook);
        let id = self.tries.spawn(one).id();
        self.hooks.insert(id, hook);
    }

    /// Notes what is over. A try that panicked has failed; its delivery comes again.
    fn end(&mut self, done: Result<(Id, Option<bool>), JoinError>) {
        let (id, taken) = done.unwrap_or_else(|error| (error.id(), Some(false)));
        if let Some(hook) = self.hooks.remove(&id) {
            self.turns.end(hook, taken);
        }
    }
}

impl Deliverer {
    /// Puts the parts together.
    #[must_use]
    pub fn new(service: Service, hub: EventHub) -> Self {
        let roots = webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect();
        Self::with_roots(service, hub, roots)
    }

    /// The same with other authorities than the public ones.
    ///
    /// # Panics
    ///
    /// Never: the provider that is named knows the versions that are asked for.
    #[must_use]
    pub fn with_roots(service: Service, hub: EventHub, roots: rustls::RootCertStore) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider knows the default versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            service,
            hub,
            tls: Arc::new(tls),
        }
    }

    /// Works until `stop`.
    ///
    /// # Cancel safety
    ///
    /// A delivery whose try is cut off is sent again later.
    pub async fn run(self, stop: CancellationToken) {
        let this = Arc::new(self);
        let mut more = this.hub.listen();
        let mut timer = tokio::time::interval(TICK);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut under_way = UnderWay::default();
        let began = this.service.now();
        let mut look = true;
        loop {
            let step = this.service.store().in_time(1, async {
                let unread = look && this.look(&mut under_way.turns, began).await?;
                this.fill(&mut under_way).await?;
                Ok::<_, StoreError>(unread)
            });
            let step = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                step = step => step.flatten(),
            };
            let unread = step.unwrap_or_else(|error| {
                warn!(%error, "webhooks wait");
                false
            });
            // Cancel safe, all of them: what is not taken here is there the next time.
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(done) = under_way.tries.join_next_with_id() => {
                    under_way.end(done);
                    while let Some(done) = under_way.tries.try_join_next_with_id() {
                        under_way.end(done);
                    }
                    look = unread;
                }
                _ = more.changed() => look = true,
                _ = timer.tick() => look = true,
                () = std::future::ready(()), if unread => look = true,
            }
        }
    }

    /// Plans new deliveries and gives up those whose time is long over. Returns whether there is more.
    async fn look(&self, turns: &mut Turns, began: Timestamp) -> Result<bool, StoreError> {
        let store = self.service.store();
        let hooks = webhooks::list(store).await?;
        turns.keep(&hooks.iter().map(|hook| hook.id).collect::<HashSet<_>>());
        let mut more = false;
        for hook in hooks.iter().filter(|hook| hook.enabled) {
            more |= self.service.plan_webhook(hook).await?;
        }
        let now = self.service.now();
        if now.since(began) >= LAST_TRIES {
            let given_up = webhooks::give_up(store, now.minus(LAST_TRIES), now).await?;
            if given_up > 0 {
                warn!(
                    deliveries = given_up,
                    "webhooks: deliveries were given up after a day"
                );
                more = true;
            }
        }
        Ok(more)
    }

    /// Begins as many tries as there is room for.
    async fn fill(self: &Arc<Self>, under_way: &mut UnderWay) -> Result<(), StoreError> {
        let store = self.service.store();
        loop {
            let now = self.service.now();
            let due = webhooks::due(store, now).await?;
            let shares = under_way.turns.share(&due);
            if shares.is_empty() {
                return Ok(());
            }
            // Longer than a try may take: who is cut off loses its turn to the next.
            let until = now.plus(PATIENCE * 3);
            let taken = webhooks::take_due(store, &shares, now, until).await?;
            // Another master was faster.
            if taken.is_empty() {
                return Ok(());
            }
            for row in taken {
                let this = Arc::clone(self);
                under_way.begin(row.webhook_id, async move {
                    let tried = this.service.store().in_time(1, this.attempt(row)).await;
                    tried.flatten().unwrap_or_else(|error| {
                        warn!(%error, "a try of a webhook is not noted; it comes again");
                        None
                    })
                });
            }
        }
    }

    /// Tries a delivery once. Returns whether the receiver took it; none if it was not asked.
    async fn attempt(&self, mut row: DeliveryRow) -> Result<Option<bool>, StoreError> {
        let store = self.service.store();
        let found = async {
            let hook = webhooks::get(store, row.webhook_id).await?;
            Ok((hook, events::get(store, row.event_seq).await?))
        };
        let (hook, event) = match found.await {
            Ok(found) => found,
            // Webhook or event is gone; nobody waits for this any more.
            Err(StoreError::NotFound(_)) => {
                row.status = "failed".to_owned();
                row.error = Some("webhook or event is gone".to_owned());
                webhooks::finish(store, &row, None, self.service.now()).await?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if !hook.enabled {
            webhooks::put_back(store, &row, self.service.now()).await?;
            return Ok(None);
        }
        let body = json!({
            "id": row.id, "seq": event.seq, "topic": event.topic, "key": event.key,
            "at": event.at.to_string(), "payload": event.payload.0,
        });
        let outcome = send(&self.service, &self.tls, &hook, &row, body.to_string()).await;
        let now = self.service.now();
        settle(&mut row, outcome, now);
        metrics::counter!("hy2_master_webhook_attempts_total", "status" => row.status.clone())
            .increment(1);
        if row.status == "failed" {
            warn!(webhook = %hook.id, event = event.seq, "webhooks: a delivery was given up after a day");
        }
        webhooks::finish(store, &row, Some(&event.topic), now).await?;
        Ok(Some(row.status == "delivered"))
    }
}

/// Writes what became of a try into the row.
fn settle(row: &mut DeliveryRow, outcome: Result<u16, SendError>, now: Timestamp) {
    let (status, error) = match outcome {
        Ok(status @ 200..=299) => {
            row.status = "delivered".to_owned();
            row.response_status = Some(i64::from(status));
            row.error = None;
            return;
        }
        Ok(status) => (Some(i64::from(status)), format!("answered {status}")),
        Err(error) => (None, error.to_string()),
    };
    row.response_status = status;
    row.error = Some(error);
    if now >= row.give_up_at {
        row.status = "failed".to_owned();
    } else {
        // The last try is at the end, not before it.
        row.next_at = now.plus(pause(row.attempts)).min(row.give_up_at);
    }
}

/// 5 s, 10 s, 20 s … up to an hour.
fn pause(attempts: i64) -> Duration {
    let doublings = u32::try_from(attempts.clamp(1, 16) - 1).unwrap_or(0);
    Duration::from_secs(5 << doublings).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn row(attempts: i64) -> DeliveryRow {
        DeliveryRow {
            id: Uuid::nil(),
            webhook_id: Uuid::nil(),
            event_seq: 1,
            status: "pending".into(),
            attempts,
            next_at: Timestamp(0),
            give_up_at: Timestamp(0).plus(webhooks::TRIED_FOR),
            response_status: None,
            error: None,
            created_at: Timestamp(0),
            updated_at: Timestamp(0),
        }
    }

    #[test]
    fn a_failed_try_comes_again_later_each_time_and_for_a_whole_day() {
        let (mut now, mut attempts, mut total) = (Timestamp(0), 1, Duration::ZERO);
        loop {
            let mut row = row(attempts);
            settle(&mut row, Ok(500), now);
            if row.status != "pending" {
                assert_eq!(
                    (row.status.as_str(), row.error.as_deref()),
                    ("failed", Some("answered 500"))
                );
                break;
            }
            assert_eq!(row.next_at, now.plus(pause(attempts)).min(row.give_up_at));
            assert!(pause(attempts) <= LONGEST_PAUSE && pause(attempts) >= pause(attempts - 1));
            total += row.next_at.since(now);
            (now, attempts) = (row.next_at, attempts + 1);
        }
        assert!(total >= Duration::from_secs(24 * 3_600), "{total:?}");
        assert!((30..40).contains(&attempts), "{attempts}");
        let mut last = row(attempts);
        settle(&mut last, Err(SendError::Connect), now);
        assert_eq!(
            (last.status.as_str(), last.error.as_deref()),
            ("failed", Some("cannot connect"))
        );
    }

    #[test]
    fn a_redirect_is_no_success() {
        let mut row = row(1);
        settle(&mut row, Ok(302), Timestamp(0));
        assert_eq!(
            (row.status.as_str(), row.response_status),
            ("pending", Some(302))
        );
    }
}
