//! A server under attack: nothing panics, memory stays within its limits and comes back, and an
//! honest user goes on working meanwhile.
//!
//! The server runs in a process of its own (see [`server`]), so that its memory is its alone. The
//! attackers are plain quinn clients with a hand on their packets' plaintext (see [`forge`]) and
//! bare UDP sockets.
//!
//! Correctness does not depend on time here. With `HY2_FULL=1` the cases run at full size and the
//! bars on time and on returned memory are asserted too; otherwise those figures are printed.

mod attacker;
mod auth;
mod flood;
mod forge;
mod garbage;
mod honest;
mod http3;
mod preauth;
mod reassembly;
mod recorder;
mod relay;
mod server;
mod timing;
mod udp;
mod wire;

// The daemon's allocator, counted: what is held is known to the byte, where resident size also has
// what the allocator keeps for the next time.
#[global_allocator]
static ALLOCATOR: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, usize::MAX);

/// Whether cases run at full size.
fn full() -> bool {
    std::env::var_os("HY2_FULL").is_some_and(|value| value == "1")
}

/// Writes a figure where whoever runs the tests can read it.
#[expect(
    clippy::print_stdout,
    reason = "figures are for whoever runs the tests"
)]
fn say(text: impl std::fmt::Display) {
    println!("    {text}");
}
