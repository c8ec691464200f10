//! Our client at the reference's server.

mod tcp;
