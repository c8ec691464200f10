//! A server and a client with real sockets and a modelled link between them, in real time.
//!
//! Virtual time has the exact bars (`congestion`, `simulation`); here are those that need the kernel's
//! sockets and timers, or the processor's time. With `HY2_FULL=1` they are judged at full length;
//! otherwise the cases are short and judge only what a busy machine cannot change.

mod brutal_rate;
mod setup;
mod small_writes;

/// Whether the bars on time are judged.
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

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
