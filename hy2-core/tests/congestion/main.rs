//! Congestion control on a modelled link in virtual time: what goes onto the wire, to the packet.
//!
//! The quick cells run always. `HY2_FULL_MATRIX=1` runs the whole matrix of the bars (`make bars`).
#![allow(clippy::print_stdout, reason = "the figures are the point")]

mod bbr;
mod brutal;
mod guard;
mod harness;
mod paths;
