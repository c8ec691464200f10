//! A network link that loses, delays, reorders, duplicates and queues datagrams, the same way on every run.
//!
//! [`model::Link`] is the only place that decides what happens to a datagram: it is a pure function of a
//! seed, a clock value and a length. Two drivers feed it:
//!
//! - [`memory`]: sockets for quinn inside one process, on tokio's clock. Under
//!   `#[tokio::test(start_paused = true)]` minutes of traffic take as long as the CPU needs for the bytes.
//! - [`relay`]: a UDP relay between real sockets for two processes, also as the `link-emulator` command.
//!
//! Both split segmented sends before the model sees them, so loss hits single datagrams as on a wire and
//! never a whole batch. [`lateness`] adds late timers to a virtual run.

pub mod lateness;
pub mod memory;
pub mod model;
pub mod relay;
mod rng;
pub mod spec;
