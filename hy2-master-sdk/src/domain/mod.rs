//! Types and rules of the fleet. No I/O.

pub mod config;
mod ids;
pub mod status;
pub mod time;

pub use ids::{
    AdminId, AssignmentId, ConfigRevisionId, LeaseId, NodeId, PlanId, PoolId, RegionId, UserId,
};
pub use status::{
    AssignmentSource, ConfigScope, DesiredState, EngineState, ObservedState, QuotaPeriod,
    UnknownWord, UserStatus,
};
pub use time::{Clock, ManualClock, SystemClock, Timestamp};
