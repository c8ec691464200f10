//! Node of a fleet of Hysteria 2 servers: reads a file, composes hy2-agent-sdk, runs it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// musl's own allocator is slow. Elsewhere the system's takes less memory for many connections
/// (docs/benchmarks.md).
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    hy2_agent::main()
}
