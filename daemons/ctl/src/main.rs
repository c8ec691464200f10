//! `hy2ctl`: an orchestrator's REST API on a command line.
//!
//! REST and not AdminService: both stand on the same services and the same table of rights, but REST
//! is described by a committed OpenAPI document that only grows, needs no generated code here, passes
//! any HTTP proxy, and what `--json` prints is what the document says.
#![forbid(unsafe_code)]

mod ask;
mod cli;
mod client;
mod commands;
mod failure;
mod names;
mod output;
mod profile;
mod tls;
mod units;

use std::process::ExitCode;

use clap::Parser;

use crate::{cli::Cli, failure::Failure, output::Output};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.common.json);
    match commands::run(cli, &output).await {
        Ok(code) => code,
        // Whoever read along has enough: `hy2ctl … | head`.
        Err(Failure::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}
