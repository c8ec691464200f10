//! hy2 against the reference library, both ways.
//!
//! The reference runs in Go processes that `interop/build.sh` builds; `peer` drives them and
//! `driver` checks that driver against the reference alone. `our_server` has the reference's
//! clients, `our_client` its servers on the other end. Without Go these tests fail.
#![allow(clippy::print_stdout, reason = "figures for a reader of --nocapture")]

mod cover;
mod driver;
mod our_client;
mod our_server;
mod ours;
mod peer;
