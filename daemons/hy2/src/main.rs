//! Hysteria 2 server, client and tools in one command; reads the official configuration files.
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// musl's own allocator is slow. Elsewhere the system's takes a fifth less memory per idle connection
/// and no measurable CPU more per GiB (docs/benchmarks.md).
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    hy2_daemon::main()
}
