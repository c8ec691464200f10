//! Identifiers: row numbers of the store, each its own type.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, sqlx::Type, serde::Serialize, serde::Deserialize)]
        #[sqlx(transparent)]
        #[serde(transparent)]
        pub struct $name(pub i64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl $name {
            /// Returns the identifier as the contracts carry it.
            pub fn to_wire(self) -> u64 {
                self.0.unsigned_abs()
            }

            /// Takes an identifier from the wire; none that the store could hold is `None`.
            pub fn from_wire(value: u64) -> Option<Self> {
                i64::try_from(value).ok().filter(|id| *id > 0).map(Self)
            }
        }
    };
}

id!(
    /// A node.
    NodeId
);
id!(
    /// A user.
    UserId
);
id!(
    /// A plan.
    PlanId
);
id!(
    /// A region.
    RegionId
);
id!(
    /// A pool of nodes.
    PoolId
);
id!(
    /// An administrator.
    AdminId
);
id!(
    /// A row that says who serves whom.
    AssignmentId
);
id!(
    /// A slice of a quota.
    LeaseId
);
id!(
    /// A stored configuration body.
    ConfigRevisionId
);
