//! What the fuzz targets drive and nobody else can reach (feature `fuzzing`).
//!
//! Every function here calls one function of the crate and adds nothing to it.

pub mod identity {
    //! Certificates of the node.
    pub use crate::identity::fuzzing::*;
}

pub mod leases {
    //! Slices of quotas, and places for devices.
    pub use crate::leases::fuzzing::*;
}

pub mod ledger {
    //! The last good state.
    pub use crate::ledger::fuzzing::*;
}

pub mod spool {
    //! What was counted, and what of it waits for the master.
    pub use crate::traffic::fuzzing::*;
}
