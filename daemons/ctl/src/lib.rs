//! Everything behind the command `hy2ctl`, as a library so that fuzz targets reach the reader of
//! its file. It promises no interface.
#![forbid(unsafe_code)]

mod ask;
mod cli;
mod client;
mod commands;
mod failure;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod names;
mod output;
mod profile;
mod tls;
mod units;

use std::process::ExitCode;

use clap::{Parser, error::ErrorKind};

use crate::{cli::Cli, failure::Failure, output::Output};

/// Runs the command with the arguments of this process.
#[tokio::main(flavor = "current_thread")]
pub async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_understood(&error),
    };
    let output = Output::new(cli.common.json);
    match commands::run(cli, &output).await {
        Ok(code) => code,
        // Whoever read along has enough: `hy2ctl … | head`.
        Err(Failure::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(failure @ Failure::Said) => ExitCode::from(failure.exit_code()),
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Shows what was asked for (help, the version), or says what is wrong with the command line: in JSON to who wants JSON.
fn not_understood(error: &clap::Error) -> ExitCode {
    let wants_json = std::env::args_os()
        .take_while(|argument| argument != "--")
        .any(|argument| argument == "--json");
    if !error.use_stderr() || !wants_json {
        error.exit();
    }
    let detail = match error.kind() {
        // Which of them it is depends on what the environment says.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            "a command is missing: see --help".to_owned()
        }
        _ => failure::usage(&error.to_string()),
    };
    let failure = Failure::Usage(detail);
    Output::new(true).failure(&failure);
    ExitCode::from(failure.exit_code())
}
