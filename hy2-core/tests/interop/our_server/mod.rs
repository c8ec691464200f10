//! The reference's clients at our server.

mod auth;
mod bandwidth;
mod http;
mod life;
mod paths;
mod restart;
mod targets;
mod tcp;
mod udp;
