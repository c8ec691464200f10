//! Joins a relay stream or UDP session on one side with a target on the other.

pub(crate) mod activity;
pub(crate) mod copy;
mod cut;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub(crate) mod limiter;
mod reassembler;
pub(crate) mod recv;
pub(crate) mod share;
mod stream;
pub(crate) mod udp;

pub(crate) use cut::CutUnlessEnded;
pub use stream::TcpStream;
