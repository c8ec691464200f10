//! What is known of connected nodes without asking the store: heartbeats, live sessions, and the way
//! to send them something.

use std::collections::HashMap;
use std::sync::Arc;

use hy2_proto::control::rpc;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::domain::{NodeId, Timestamp};
use crate::store::observed::Seen;

/// A connected node, as its last messages describe it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LiveNode {
    /// Which node.
    pub node: NodeId,
    /// When the last message arrived.
    pub seen_at: Timestamp,
    /// The last heartbeat.
    pub heartbeat: Option<rpc::Heartbeat>,
}

/// The nodes with a Session with this master.
#[derive(Debug, Default)]
pub(crate) struct LiveNodes {
    nodes: Mutex<HashMap<NodeId, Live>>,
    next: std::sync::atomic::AtomicU64,
    /// What the nodes' Sessions began with: the spool that each delivers from, the newest last.
    spools: Mutex<HashMap<NodeId, Vec<[u8; 16]>>>,
}

#[derive(Debug)]
struct Live {
    /// Tells one Session of a node from the next.
    number: u64,
    outbound: mpsc::Sender<rpc::SessionResponse>,
    cut: CancellationToken,
    /// "Look whether the node needs something."
    poke: Arc<Notify>,
    /// The revision at which it was poked last.
    desired: i64,
    seen_at: Timestamp,
    dirty: bool,
    heartbeat: Option<rpc::Heartbeat>,
    sessions: HashMap<u64, rpc::LiveSession>,
}

/// Keeps a Session in the registry.
#[derive(Debug)]
pub(crate) struct LiveGuard<'a> {
    nodes: &'a LiveNodes,
    node: NodeId,
    number: u64,
}

impl LiveNodes {
    /// Registers a Session; one that the node had before is cut.
    pub(crate) fn open(
        &self,
        node: NodeId,
        outbound: mpsc::Sender<rpc::SessionResponse>,
        cut: CancellationToken,
        poke: Arc<Notify>,
        now: Timestamp,
    ) -> LiveGuard<'_> {
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let live = Live {
            number,
            outbound,
            cut,
            poke,
            desired: 0,
            seen_at: now,
            dirty: false,
            heartbeat: None,
            sessions: HashMap::new(),
        };
        if let Some(before) = self.nodes.lock().insert(node, live) {
            before.cut.cancel();
        }
        LiveGuard {
            nodes: self,
            node,
            number,
        }
    }

    /// Notes which spool a node delivers from, at the beginning of a Session, and returns whether it had come to
    /// another one since: no agent goes back to one that it is done with, so two have the node's identity, or its
    /// folder was set back.
    pub(crate) fn went_back(&self, node: NodeId, spool: [u8; 16]) -> bool {
        let mut spools = self.spools.lock();
        let known = spools.entry(node).or_default();
        if known.last() == Some(&spool) {
            return false;
        }
        let before = known.iter().position(|known| *known == spool);
        if let Some(at) = before {
            known.remove(at);
        } else if known.len() == MAX_SPOOLS {
            known.remove(0);
        }
        known.push(spool);
        before.is_some()
    }

    /// Sends something to a node; false when it has no Session here or does not take it.
    pub(crate) async fn send(&self, node: NodeId, event: rpc::session_response::Event) -> bool {
        let Some(outbound) = self
            .nodes
            .lock()
            .get(&node)
            .map(|live| live.outbound.clone())
        else {
            return false;
        };
        let message = rpc::SessionResponse { event: Some(event) };
        let sent = outbound
            .send_timeout(message, std::time::Duration::from_secs(5))
            .await;
        sent.is_ok()
    }

    /// Notes a heartbeat.
    pub(crate) fn heartbeat(&self, node: NodeId, heartbeat: rpc::Heartbeat, now: Timestamp) {
        if let Some(live) = self.nodes.lock().get_mut(&node) {
            live.seen_at = now;
            live.dirty = true;
            live.heartbeat = Some(heartbeat);
        }
    }

    /// Notes which connections a node has.
    pub(crate) fn sessions(&self, node: NodeId, report: rpc::SessionsReport) {
        let mut nodes = self.nodes.lock();
        let Some(live) = nodes.get_mut(&node) else {
            return;
        };
        if report.complete {
            live.sessions.clear();
        }
        for session in report.upsert {
            if live.sessions.len() < MAX_SESSIONS
                || live.sessions.contains_key(&session.connection_id)
            {
                live.sessions.insert(session.connection_id, session);
            }
        }
        for ended in report.ended {
            live.sessions.remove(&ended);
        }
    }

    /// Returns whether no node is connected.
    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.lock().is_empty()
    }

    /// Returns whether a node is connected.
    pub(crate) fn contains(&self, node: NodeId) -> bool {
        self.nodes.lock().contains_key(&node)
    }

    /// Returns the connected nodes.
    pub(crate) fn list(&self) -> Vec<LiveNode> {
        let nodes = self.nodes.lock();
        let mut list = nodes
            .iter()
            .map(|(node, live)| LiveNode {
                node: *node,
                seen_at: live.seen_at,
                heartbeat: live.heartbeat,
            })
            .collect::<Vec<_>>();
        list.sort_unstable_by_key(|live| live.node);
        list
    }

    /// Returns the live sessions of a node, or of all, and of a user, or of all; at most `limit`.
    pub(crate) fn list_sessions(
        &self,
        node: Option<NodeId>,
        user: Option<u64>,
        limit: usize,
    ) -> Vec<(NodeId, rpc::LiveSession)> {
        let nodes = self.nodes.lock();
        nodes
            .iter()
            .filter(|(id, _)| node.is_none_or(|node| node == **id))
            .flat_map(|(id, live)| live.sessions.values().map(|session| (*id, session.clone())))
            .filter(|(_, session)| user.is_none_or(|user| user == session.user_id))
            .take(limit)
            .collect()
    }

    /// Takes what heartbeats said since the last call.
    pub(crate) fn take_seen(&self) -> Vec<Seen> {
        let mut nodes = self.nodes.lock();
        let mut seen = Vec::new();
        for (node, live) in nodes.iter_mut() {
            if std::mem::take(&mut live.dirty) {
                seen.push(Seen {
                    node: *node,
                    at: live.seen_at,
                    connections: live
                        .heartbeat
                        .map_or(0, |heartbeat| i64::from(heartbeat.connections)),
                    users_online: live
                        .heartbeat
                        .map_or(0, |heartbeat| i64::from(heartbeat.users_online)),
                });
            }
        }
        seen
    }

    /// Pokes the Sessions of nodes whose desired revision is not the one of the last poke.
    pub(crate) fn poke(&self, desired: &[(NodeId, i64)]) {
        let mut nodes = self.nodes.lock();
        for (node, rev) in desired {
            if let Some(live) = nodes.get_mut(node)
                && live.desired != *rev
            {
                live.desired = *rev;
                live.poke.notify_one();
            }
        }
    }

    /// Pokes every Session.
    pub(crate) fn poke_all(&self) {
        for live in self.nodes.lock().values() {
            live.poke.notify_one();
        }
    }

    /// Sends the same to everybody; who is not reading misses it.
    pub(crate) fn broadcast(&self, event: &rpc::session_response::Event) {
        for live in self.nodes.lock().values() {
            let _ = live.outbound.try_send(rpc::SessionResponse {
                event: Some(event.clone()),
            });
        }
    }

    /// Says goodbye to everybody.
    pub(crate) fn goodbye(&self, reason: &str) {
        self.broadcast(&rpc::session_response::Event::Goodbye(rpc::Goodbye {
            retry_after: prost_types::Duration::try_from(std::time::Duration::from_secs(1)).ok(),
            reason: reason.to_owned(),
            retired: false,
        }));
    }
}

impl Drop for LiveGuard<'_> {
    fn drop(&mut self) {
        let mut nodes = self.nodes.nodes.lock();
        if nodes
            .get(&self.node)
            .is_some_and(|live| live.number == self.number)
        {
            nodes.remove(&self.node);
        }
    }
}

/// Connections of one node that are kept in mind; far more than one server holds.
const MAX_SESSIONS: usize = 65_536;

/// Spools of one node that are kept in mind; an agent has one, and a new one after each start.
const MAX_SPOOLS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn session(connection_id: u64, user_id: u64) -> rpc::LiveSession {
        rpc::LiveSession {
            connection_id,
            user_id,
            ..Default::default()
        }
    }

    #[test]
    fn a_new_session_cuts_the_old_one_whose_end_does_not_remove_the_new() {
        let nodes = LiveNodes::default();
        let (sender, _receiver) = mpsc::channel(1);
        let (first, second) = (CancellationToken::new(), CancellationToken::new());
        let old = nodes.open(
            NodeId(1),
            sender.clone(),
            first.clone(),
            Arc::default(),
            Timestamp(0),
        );
        let new = nodes.open(
            NodeId(1),
            sender,
            second.clone(),
            Arc::default(),
            Timestamp(0),
        );
        assert!(first.is_cancelled() && !second.is_cancelled());
        drop(old);
        assert_eq!(nodes.list().len(), 1);
        drop(new);
        assert!(nodes.list().is_empty());
    }

    #[test]
    fn sessions_come_and_go_and_a_complete_report_replaces_them() {
        let nodes = LiveNodes::default();
        let (sender, _receiver) = mpsc::channel(1);
        let _guard = nodes.open(
            NodeId(1),
            sender,
            CancellationToken::new(),
            Arc::default(),
            Timestamp(0),
        );
        let report = |complete, upsert, ended| rpc::SessionsReport {
            complete,
            upsert,
            ended,
        };
        nodes.sessions(
            NodeId(1),
            report(false, vec![session(1, 7), session(2, 8)], vec![]),
        );
        nodes.sessions(NodeId(1), report(false, vec![], vec![1]));
        assert_eq!(nodes.list_sessions(None, None, 9).len(), 1);
        assert!(nodes.list_sessions(None, Some(7), 9).is_empty());
        nodes.sessions(NodeId(1), report(true, vec![session(3, 7)], vec![]));
        assert_eq!(
            nodes.list_sessions(Some(NodeId(1)), Some(7), 9)[0]
                .1
                .connection_id,
            3
        );
    }

    #[test]
    fn a_node_that_goes_back_to_an_earlier_spool_is_two() {
        let nodes = LiveNodes::default();
        let mut said = Vec::new();
        for spool in [1, 1, 2, 3, 3, 2, 3, 3] {
            said.push(nodes.went_back(NodeId(7), [spool; 16]));
            assert!(!nodes.went_back(NodeId(i64::from(spool) + 100), [1; 16]));
        }
        let expected = [false, false, false, false, false, true, true, false];
        assert_eq!(said, expected);
        for spool in 10..=255 {
            assert!(!nodes.went_back(NodeId(7), [spool; 16]), "{spool}");
        }
        assert_eq!(nodes.spools.lock()[&NodeId(7)].len(), MAX_SPOOLS);
    }

    #[test]
    fn heartbeats_are_taken_once() {
        let nodes = LiveNodes::default();
        let (sender, _receiver) = mpsc::channel(1);
        let _guard = nodes.open(
            NodeId(1),
            sender,
            CancellationToken::new(),
            Arc::default(),
            Timestamp(0),
        );
        assert!(nodes.take_seen().is_empty());
        let heartbeat = rpc::Heartbeat {
            connections: 3,
            ..Default::default()
        };
        nodes.heartbeat(NodeId(1), heartbeat, Timestamp(5));
        assert_eq!(nodes.take_seen()[0].connections, 3);
        assert!(nodes.take_seen().is_empty());
    }
}
