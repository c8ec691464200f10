//! What the fuzz targets and the benches drive and nobody else can reach (feature `fuzzing`).
//!
//! Every function here calls one function of the crate and adds nothing to it.

pub mod client {
    //! UDP sessions of a client.
    pub use crate::client::fuzzing::*;
}

pub mod congestion {
    //! Controllers.
    pub use crate::congestion::fuzzing::*;
}

pub mod h3 {
    //! Parsers of HTTP/3.
    pub use crate::h3::fuzzing::*;
}

#[cfg(feature = "inbound")]
pub mod inbound {
    //! Local proxies.
    pub use crate::inbound::fuzzing::*;
}

pub mod masquerade {
    //! The site.
    pub use crate::masquerade::fuzzing::*;
}

pub mod meter {
    //! Counters.
    use crate::meter::UserCounters;

    /// Counts bytes as a relay does.
    pub fn count(counters: &UserCounters, tx: u64, rx: u64) {
        counters.add_tx(tx);
        counters.add_rx(rx);
    }
}

pub mod relay {
    //! Relays.
    pub use crate::relay::{fuzzing::*, udp::fuzzing::*};
}

pub mod socket {
    //! Sockets.
    pub use crate::socket::fuzzing::*;
}
