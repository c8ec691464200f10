//! States, as words in the store and in the API.

use thiserror::Error;

/// A word that names no state.
#[derive(Debug, Error)]
#[error("unknown {what} {word:?}")]
pub struct UnknownWord {
    what: &'static str,
    word: String,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$variant_doc])* #[serde(rename = $word)] $variant),+ }

        impl $name {
            /// Every one of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Returns the word in the store and in the API.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = UnknownWord;

            fn from_str(word: &str) -> Result<Self, UnknownWord> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    other => Err(UnknownWord { what: stringify!($name), word: other.to_owned() }),
                }
            }
        }

        impl<DB: sqlx::Database> sqlx::Type<DB> for $name where str: sqlx::Type<DB> {
            fn type_info() -> DB::TypeInfo {
                <str as sqlx::Type<DB>>::type_info()
            }

            fn compatible(ty: &DB::TypeInfo) -> bool {
                <str as sqlx::Type<DB>>::compatible(ty)
            }
        }

        impl<'q, DB: sqlx::Database> sqlx::Encode<'q, DB> for $name where &'q str: sqlx::Encode<'q, DB> {
            fn encode_by_ref(
                &self,
                buffer: &mut <DB as sqlx::Database>::ArgumentBuffer,
            ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
                <&'q str as sqlx::Encode<'q, DB>>::encode(self.as_str(), buffer)
            }
        }

        impl<'r, DB: sqlx::Database> sqlx::Decode<'r, DB> for $name where &'r str: sqlx::Decode<'r, DB> {
            fn decode(value: <DB as sqlx::Database>::ValueRef<'r>) -> Result<Self, sqlx::error::BoxDynError> {
                Ok(<&'r str as sqlx::Decode<'r, DB>>::decode(value)?.parse()?)
            }
        }
    };
}

words!(
    /// What an operator wants of a node.
    DesiredState {
        /// Serves.
        Active = "active",
        /// Serves whom it has, is given nobody new.
        Cordoned = "cordoned",
        /// Lets nobody in, lets connections finish until the deadline.
        Draining = "draining",
        /// Out of service for a while.
        Maintenance = "maintenance",
        /// Out of service.
        Disabled = "disabled",
    }
);

words!(
    /// What the master sees of a node.
    ObservedState {
        /// Known, never enrolled.
        Pending = "pending",
        /// Has a certificate, has not opened a Session yet.
        Enrolling = "enrolling",
        /// Heartbeats arrive.
        Online = "online",
        /// Heartbeats are late.
        Suspect = "suspect",
        /// No heartbeat for long. Says nothing about the data plane.
        Offline = "offline",
        /// It refuses what it should run.
        Error = "error",
        /// Its identity is revoked.
        Revoked = "revoked",
    }
);

impl ObservedState {
    /// Tells whether the node has a session, as far as is known: one that refuses what it should run has, and serves.
    pub fn is_connected(self) -> bool {
        matches!(self, Self::Online | Self::Suspect | Self::Error)
    }
}

words!(
    /// What a node says of its proxy server.
    EngineState {
        /// No valid configuration yet.
        Waiting = "waiting",
        /// Serves.
        Serving = "serving",
        /// Lets connections finish.
        Draining = "draining",
        /// Does not run.
        Stopped = "stopped",
        /// The configuration that should run does not.
        Failed = "failed",
    }
);

words!(
    /// Whether a user may connect, and why not.
    UserStatus {
        /// May connect; the clock of the validity starts with the first connection.
        OnHold = "on_hold",
        /// May connect.
        Active = "active",
        /// Switched off by an operator.
        Disabled = "disabled",
        /// The quota is used up.
        Limited = "limited",
        /// Past `expires_at`.
        Expired = "expired",
        /// Kept for the accounts only.
        Deleted = "deleted",
    }
);

impl UserStatus {
    /// Returns whether nodes let the user in.
    pub fn may_connect(self) -> bool {
        matches!(self, Self::Active | Self::OnHold)
    }
}

words!(
    /// Who decided an assignment.
    AssignmentSource {
        /// The assignment task.
        Auto = "auto",
        /// An operator; the task may move it.
        Manual = "manual",
        /// An operator; the task leaves it alone.
        Pinned = "pinned",
        /// In place of a node that is away.
        Failover = "failover",
    }
);

words!(
    /// When a quota starts anew.
    QuotaPeriod {
        /// Never.
        None = "none",
        /// Each day at 00:00 UTC.
        Day = "day",
        /// Each Monday at 00:00 UTC.
        Week = "week",
        /// On the first of each month at 00:00 UTC.
        Month = "month",
        /// Each 30 days from the start of the period before.
        MonthRolling = "month_rolling",
        /// On the first of January at 00:00 UTC.
        Year = "year",
    }
);

words!(
    /// What a configuration body is for; later ones win.
    ConfigScope {
        /// Every node.
        Fleet = "fleet",
        /// The nodes of one region.
        Region = "region",
        /// One node.
        Node = "node",
    }
);
