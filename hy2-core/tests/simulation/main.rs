//! Our client, our server and a bad link between them, in virtual time: the whole stack, with origins and
//! applications in memory.
//!
//! A quick subset runs always, shorter and slower. `HY2_FULL_MATRIX=1` runs the bars at their full length
//! and rate (`make bars`).
#![allow(
    dead_code,
    reason = "the world has handles that no case pulls yet: moving clients, datagrams"
)]
#![allow(clippy::print_stdout, reason = "the figures are the point")]

mod flow;
mod forgotten;
mod origin;
mod pattern;
mod stall;
mod survival;
mod world;
