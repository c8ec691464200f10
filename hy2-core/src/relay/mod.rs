//! Joins a relay stream or UDP session on one side with a target on the other.

pub(crate) mod copy;
pub(crate) mod limiter;
pub(crate) mod recv;
mod reassembler;
mod stream;
pub(crate) mod udp;

pub use stream::TcpStream;
