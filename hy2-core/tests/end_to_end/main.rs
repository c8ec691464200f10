//! Our client against our server on real sockets, through the public interface only.
#![allow(
    clippy::print_stdout,
    reason = "figures, for whoever runs with --nocapture"
)]

mod accounting;
mod bulk;
mod client;
mod cut;
mod drain;
mod kick;
mod limits;
mod live;
mod opening;
mod origin;
mod pair;
mod payload;
mod port_range;
mod recorder;
mod restart;
mod speed_test;
mod streams;
mod tcp;
mod trust;
mod udp;
mod users;
