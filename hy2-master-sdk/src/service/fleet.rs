//! What the operations ask of running nodes.

use std::fmt;

use futures_util::future::BoxFuture;
use hy2_proto::control::rpc::LiveSession;

use crate::domain::{NodeId, Timestamp, UserId};

/// What came of asking several nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach {
    /// Nodes that answered.
    pub reached: Vec<NodeId>,
    /// Nodes that did not.
    pub unreachable: Vec<NodeId>,
    /// Connections that were closed or changed.
    pub connections: u64,
}

/// A live connection and where it is.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeSession {
    /// The node.
    pub node: NodeId,
    /// The connection.
    pub session: LiveSession,
}

/// A line of a node's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLogLine {
    /// When it was written, by the node's clock.
    pub at: Timestamp,
    /// `error`, `warn`, `info` or `debug`.
    pub level: String,
    /// Where in the program.
    pub target: String,
    /// Text and fields.
    pub message: String,
}

/// Why a node's log was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeLogError {
    /// It has no session with this master, or did not answer in time.
    #[error("the node does not answer")]
    Unreachable,
    /// Its agent keeps no log for others.
    #[error("the node's agent keeps no log")]
    NoLog,
}

/// Reaches running nodes. Implementations have their own deadline and never fail as a whole: a
/// node that does not answer is listed as such.
pub trait Fleet: Send + Sync + fmt::Debug {
    /// Closes all connections of a user on those nodes.
    fn kick_user<'a>(&'a self, nodes: &'a [NodeId], user: UserId) -> BoxFuture<'a, Reach>;

    /// Sets a user's rate on those nodes for a while: bytes per second, 0 for the user's own
    /// limit; `for_s` 0: until the user's entry changes.
    fn set_user_rate<'a>(
        &'a self,
        nodes: &'a [NodeId],
        user: UserId,
        up_bytes_per_s: u64,
        down_bytes_per_s: u64,
        for_s: u32,
    ) -> BoxFuture<'a, Reach>;

    /// Lists live connections on those nodes, of one user or of all.
    fn sessions<'a>(
        &'a self,
        nodes: &'a [NodeId],
        user: Option<UserId>,
    ) -> BoxFuture<'a, (Vec<NodeSession>, Reach)>;

    /// Reads up to `lines` of the last lines of a node's log at `level` (`error`, `warn`, `info` or
    /// `debug`) or worse, the oldest first.
    fn logs<'a>(
        &'a self,
        node: NodeId,
        lines: u32,
        level: &'a str,
    ) -> BoxFuture<'a, Result<Vec<NodeLogLine>, NodeLogError>>;
}

/// No connection to any node: a process with the role `api`, or a test.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unconnected;

fn nobody(nodes: &[NodeId]) -> Reach {
    Reach {
        unreachable: nodes.to_vec(),
        ..Reach::default()
    }
}

impl Fleet for Unconnected {
    fn kick_user<'a>(&'a self, nodes: &'a [NodeId], _user: UserId) -> BoxFuture<'a, Reach> {
        Box::pin(std::future::ready(nobody(nodes)))
    }

    fn set_user_rate<'a>(
        &'a self,
        nodes: &'a [NodeId],
        _user: UserId,
        _up_bytes_per_s: u64,
        _down_bytes_per_s: u64,
        _for_s: u32,
    ) -> BoxFuture<'a, Reach> {
        Box::pin(std::future::ready(nobody(nodes)))
    }

    fn sessions<'a>(
        &'a self,
        nodes: &'a [NodeId],
        _user: Option<UserId>,
    ) -> BoxFuture<'a, (Vec<NodeSession>, Reach)> {
        Box::pin(std::future::ready((Vec::new(), nobody(nodes))))
    }

    fn logs<'a>(
        &'a self,
        _node: NodeId,
        _lines: u32,
        _level: &'a str,
    ) -> BoxFuture<'a, Result<Vec<NodeLogLine>, NodeLogError>> {
        Box::pin(std::future::ready(Err(NodeLogError::Unreachable)))
    }
}
