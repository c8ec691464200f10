//! Everything behind the command `hy2`, as a library so that fuzz targets reach the readers of
//! configuration files. It promises no interface: embed `hy2-core` instead.
#![forbid(unsafe_code)]

mod cert;
mod cli;
mod client;
mod config;
mod failure;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod prepare;
mod process;
mod server;
mod share;

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::Context;
use clap::Parser;

use crate::cli::{Cli, Command};

/// Runs the command with the arguments of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The configuration's mistakes are lines of their own and need nothing in front.
            let _ = match error.downcast_ref::<config::ConfigError>() {
                Some(wrong) => writeln!(io::stderr(), "{wrong}"),
                None => writeln!(io::stderr(), "hy2: {}", one_line(&error)),
            };
            if let Some(hint) = failure::hint(&error) {
                let _ = writeln!(io::stderr(), "     {hint}");
            }
            ExitCode::from(failure::exit_code(&error))
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let global = &cli.global;
    let path = || config::locate(global.config.as_deref());
    let client = || client::prepare(config::client(&path()?, false)?);
    let official = Command::Client(cli::Run::default());
    match cli.command.as_ref().unwrap_or(&official) {
        Command::Server(flags) => {
            let path = path()?;
            let settings = config::server(&path)?;
            if flags.run.check {
                server::prepare(settings)?;
                return fine(&path);
            }
            process::run(global, || async {
                server::run(server::prepare(settings)?, flags).await
            })
        }
        Command::Client(flags) => {
            let path = path()?;
            let prepared = client::prepare(config::client(&path, true)?)?;
            if flags.check {
                return fine(&path);
            }
            process::run(global, || client::run(prepared, flags))
        }
        Command::Ping(flags) => {
            let prepared = client()?;
            process::run(global, || client::ping(prepared, flags))
        }
        Command::Speedtest(flags) => {
            let prepared = client()?;
            process::run(global, || client::speedtest(prepared, flags))
        }
        Command::Share(flags) => share::run(&config::client(&path()?, false)?, flags),
        Command::Cert(flags) => cert::run(flags),
        Command::Version => {
            writeln!(io::stdout(), "hy2 {}", env!("CARGO_PKG_VERSION")).context("stdout")
        }
    }
}

/// Says that a file was checked.
fn fine(path: &Path) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{}: ok", path.display()).context("stdout")
}

/// Writes an error and its causes, without saying twice what a cause's own text already has.
fn one_line(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| {
        let cause = cause.to_string();
        match (text.is_empty(), text.ends_with(&cause)) {
            (true, _) => cause,
            (false, true) => text,
            (false, false) => format!("{text}: {cause}"),
        }
    })
}
