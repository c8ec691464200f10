//! `hy2ctl`: an orchestrator's REST API on a command line.
//!
//! REST and not AdminService: both stand on the same services and the same table of rights, but REST
//! is described by a committed OpenAPI document that only grows, needs no generated code here, passes
//! any HTTP proxy, and what `--json` prints is what the document says.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    hy2ctl::main()
}
