//! When an alert that a node raised is over. The node says what is wrong, not that it is right again: that is what it
//! would have said again by then and has not.

use std::time::Duration;

use crate::core::Core;
use crate::domain::{NodeId, Timestamp};
use crate::store::StoreError;
use crate::store::alerts::{self, AlertRow};

/// By what an alert is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// The node looks at the beginning of each Session and says so again and again while it lasts: one began and it did
    /// not say so, or it has not for [`QUIET`].
    WithSession,
    /// The node says so with each manifest that it takes: it took one, and did not.
    WithManifest,
    /// It is said again and again while it lasts: it was not for [`QUIET`].
    WithQuiet,
    /// Something happened, which nothing undoes: when somebody has looked.
    ByHand,
}

/// The alert of two agents with one identity, which only the master can see.
pub(super) const IDENTITY_TWICE: &str = "identity_twice";

fn ends(rule: &str) -> Ends {
    match rule {
        "clock_skew" => Ends::WithSession,
        "ledger_not_written" => Ends::WithManifest,
        "spool_not_written"
        | "spool_not_delivered"
        | "spool_nearly_full"
        | "identity_not_written"
        | IDENTITY_TWICE => Ends::WithQuiet,
        _ => Ends::ByHand,
    }
}

/// Looks after the alerts of a node while its Session lasts: a node that is away says nothing by its silence.
#[derive(Debug)]
pub(super) struct Watch {
    opened: Timestamp,
    /// When a manifest was taken, before the node may have said all about it.
    taken: Option<Timestamp>,
    /// When one was taken of which the node has said all.
    settled: Option<Timestamp>,
    /// When to look next; `None` while nothing is open that could be over.
    next: Option<Timestamp>,
}

impl Watch {
    pub(super) fn new(now: Timestamp) -> Self {
        Self {
            opened: now,
            taken: None,
            settled: None,
            next: Some(now.plus(SETTLE)),
        }
    }

    /// Notes that the node raised an alert.
    pub(super) fn raised(&mut self, now: Timestamp) {
        self.next.get_or_insert_with(|| now.plus(PAUSE));
    }

    /// Notes that the node took a manifest.
    pub(super) fn took_manifest(&mut self, now: Timestamp) {
        self.settle(now);
        self.taken.get_or_insert(now);
    }

    /// Closes what is over, if it is time to look.
    ///
    /// # Errors
    ///
    /// The store fails; the next look comes all the same.
    pub(super) async fn look(
        &mut self,
        core: &Core,
        node: NodeId,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        if self.next.is_none_or(|next| next > now) {
            return Ok(());
        }
        self.settle(now);
        self.next = Some(now.plus(PAUSE));
        let open = alerts::open_of(&core.store, node).await?;
        let (over, rest): (Vec<_>, Vec<_>) =
            open.into_iter().partition(|alert| self.is_over(alert, now));
        if !over.is_empty() {
            let mut tx = core.store.begin().await?;
            for alert in &over {
                alerts::over(&mut tx, alert.id, now).await?;
            }
            tx.commit().await?;
            for alert in over {
                tracing::info!(node = node.0, rule = alert.rule, "alert is over");
            }
        }
        if rest.iter().all(|alert| ends(&alert.rule) == Ends::ByHand) {
            self.next = None;
        }
        Ok(())
    }

    fn is_over(&self, alert: &AlertRow, now: Timestamp) -> bool {
        match ends(&alert.rule) {
            Ends::WithSession => {
                alert.updated_at < self.opened || alert.updated_at.plus(QUIET) <= now
            }
            // One said just before the manifest may be about it: they take ways of their own.
            Ends::WithManifest => self
                .settled
                .is_some_and(|taken| alert.updated_at.plus(SETTLE) < taken),
            Ends::WithQuiet => alert.updated_at.plus(QUIET) <= now,
            Ends::ByHand => false,
        }
    }

    fn settle(&mut self, now: Timestamp) {
        if let Some(taken) = self.taken.take_if(|taken| taken.plus(SETTLE) <= now) {
            self.settled = Some(taken);
        }
    }
}

/// In which time a node has said all that there is to say of a Session or a manifest.
const SETTLE: Duration = Duration::from_secs(60);

/// How long what lasts is not left unsaid. Nodes say it with every cut of their counters, seconds apart, or every ten minutes.
const QUIET: Duration = Duration::from_secs(3_600);

/// Between two looks at what is open.
const PAUSE: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn said(rule: &str, at: i64) -> AlertRow {
        AlertRow {
            id: Uuid::nil(),
            node_id: Some(NodeId(1)),
            rule: rule.to_owned(),
            severity: "warning".to_owned(),
            message: String::new(),
            opened_at: Timestamp(0),
            updated_at: Timestamp(at),
            closed_at: None,
        }
    }

    const HOUR: i64 = 3_600_000;

    #[test]
    fn what_a_session_shows_is_over_with_the_next_session_or_an_hour_of_silence() {
        let watch = Watch::new(Timestamp(1_000));
        assert!(watch.is_over(&said("clock_skew", 999), Timestamp(61_000)));
        let within = said("clock_skew", 1_000);
        assert!(!watch.is_over(&within, Timestamp(HOUR + 999)));
        assert!(watch.is_over(&within, Timestamp(HOUR + 1_000)));
    }

    #[test]
    fn what_is_said_with_every_cut_is_over_after_an_hour_of_silence() {
        let watch = Watch::new(Timestamp(0));
        for rule in [
            "spool_not_written",
            "spool_not_delivered",
            "spool_nearly_full",
            "identity_not_written",
            IDENTITY_TWICE,
        ] {
            assert!(!watch.is_over(&said(rule, 5), Timestamp(HOUR + 4)));
            assert!(watch.is_over(&said(rule, 5), Timestamp(HOUR + 5)));
        }
    }

    #[test]
    fn a_manifest_that_is_on_disk_ends_what_was_said_of_the_one_before() {
        let mut watch = Watch::new(Timestamp(0));
        let alert = said("ledger_not_written", 100_000);
        // Its own, whichever came first.
        watch.took_manifest(Timestamp(100_001));
        watch.settle(Timestamp(HOUR));
        assert!(!watch.is_over(&alert, Timestamp(HOUR)));
        watch.took_manifest(Timestamp(HOUR));
        // More of them, one after the other, put nothing off.
        for at in 1..70 {
            watch.took_manifest(Timestamp(HOUR + at * 1_000));
        }
        assert!(watch.is_over(&alert, Timestamp(HOUR + 70_000)));
        assert!(!watch.is_over(&said("ledger_not_written", HOUR), Timestamp(9 * HOUR)));
    }

    #[test]
    fn what_happened_is_over_when_somebody_says_so() {
        let mut watch = Watch::new(Timestamp(HOUR));
        watch.settled = Some(Timestamp(HOUR));
        for rule in ["traffic_gap", "traffic_quarantined", "of a newer agent"] {
            assert!(!watch.is_over(&said(rule, 0), Timestamp(9_999 * HOUR)));
        }
    }
}
