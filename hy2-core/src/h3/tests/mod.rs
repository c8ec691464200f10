//! The server as a peer sees it on the wire.

mod client;
mod cover;
mod hostile;
mod prober;
mod relay;
