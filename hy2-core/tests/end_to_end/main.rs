//! Our client against our server on real sockets.

mod origin;
mod pair;
mod tcp;
mod udp;
