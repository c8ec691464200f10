//! Wake-up calls: "something of this kind has changed, look". They carry no content, because who
//! listens reads the whole state anyway, and they may be lost, because a timer looks too.

use tokio::sync::broadcast;

/// What has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Desired state of some node: a revision was bumped.
    Nodes,
    /// A user, a plan, or who serves whom.
    Users,
    /// A certificate was revoked.
    Revocations,
    /// The outbox or the audit log has rows to seal.
    Events,
    /// A setting, key or certificate authority.
    Settings,
}

impl Topic {
    /// Every topic.
    pub const ALL: &[Self] = &[
        Self::Nodes,
        Self::Users,
        Self::Revocations,
        Self::Events,
        Self::Settings,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Users => "users",
            Self::Revocations => "revocations",
            Self::Events => "events",
            Self::Settings => "settings",
        }
    }

    pub(super) fn parse(word: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|topic| topic.as_str() == word)
    }

    pub(super) fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Carries the calls within a process.
#[derive(Debug, Clone)]
pub struct Bus {
    calls: broadcast::Sender<Topic>,
}

impl Bus {
    pub(super) fn new() -> Self {
        Self {
            calls: broadcast::channel(256).0,
        }
    }

    /// Calls everybody who listens.
    pub fn call(&self, topic: Topic) {
        // Nobody listening is fine.
        let _ = self.calls.send(topic);
    }

    /// Starts to listen. A receiver that has lagged has been called.
    pub fn listen(&self) -> broadcast::Receiver<Topic> {
        self.calls.subscribe()
    }
}
