//! Hysteria 2 server, client and tools in one command; reads the official configuration files.
#![forbid(unsafe_code)]

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    hy2_daemon::main()
}
