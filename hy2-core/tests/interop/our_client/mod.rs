//! Our client at the reference's server.

mod auth;
mod life;
mod paths;
mod tcp;
mod udp;
