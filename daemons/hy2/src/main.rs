//! Hysteria 2 server, client and tools in one command; reads the official configuration files.
#![forbid(unsafe_code)]

mod cert;
mod cli;
mod config;
mod share;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Context;
use clap::Parser;

use crate::cli::{Cli, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The configuration's mistakes are lines of their own and need nothing in front.
            let _ = match error.downcast_ref::<config::ConfigError>() {
                Some(wrong) => writeln!(io::stderr(), "{wrong}"),
                None => writeln!(io::stderr(), "hy2: {error:#}"),
            };
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let path = || config::locate(cli.global.config.as_deref());
    match &cli.command {
        Command::Server(flags) => {
            let path = path()?;
            let server = config::server(&path)?;
            let _ = (flags, server);
            Ok(())
        }
        Command::Client(flags) => {
            let path = path()?;
            let client = config::client(&path, true)?;
            let _ = (flags, client);
            Ok(())
        }
        Command::Ping(flags) => {
            let _ = (&flags.target,);
            Ok(())
        }
        Command::Speedtest(flags) => {
            let _ = (flags,);
            Ok(())
        }
        Command::Share(flags) => share::run(&config::client(&path()?, false)?, flags),
        Command::Cert(flags) => cert::run(flags),
        Command::Version => {
            writeln!(io::stdout(), "hy2 {}", env!("CARGO_PKG_VERSION")).context("stdout")
        }
    }
}
