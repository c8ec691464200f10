//! Our client, our server and a bad link between them, in virtual time: the whole stack, with origins and
//! applications in memory.
//!
//! A quick subset runs always, shorter and slower. `HY2_FULL_MATRIX=1` runs the bars at their full length
//! and rate (`make bars`).
#![allow(clippy::print_stdout, reason = "the figures are the point")]

mod connecting;
mod fairness;
mod flow;
mod forgotten;
mod migration;
mod opening;
mod origin;
mod pattern;
mod sleep;
mod stall;
mod survival;
mod world;
