//! Everything behind the command `hy2-orchestrator`, as a library so that fuzz targets reach the readers of
//! its files. It promises no interface: embed `hy2-master-sdk` instead.
#![forbid(unsafe_code)]

mod authority;
mod certificates;
mod cli;
mod config;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod host;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Context;
use clap::Parser;
use hy2_daemon_runtime::{
    Recorder, Signal, Signals, give_memory_back, logging, raise_descriptor_limit, service,
};
use hy2_master_sdk::{
    cache::Cache, front::Front, ratelimit::RateLimiter, ratelimit::SharedLimiter, redis::Redis,
    service::admins::Credentials,
};
use secrecy::ExposeSecret;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::{
    certificates::Certificates,
    cli::{Cli, Command, Run},
    config::Config,
};

/// Runs the command with the arguments of this process.
pub fn main() -> ExitCode {
    give_memory_back();
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "hy2-orchestrator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let mut config = Config::read(&cli.config)?;
    if let Command::Run(flags) = &cli.command {
        config.take_roles(&flags.roles);
    }
    if let Command::Run(_) | Command::Check = cli.command {
        let path = || cli.config.display().to_string();
        config.check_listeners().with_context(path)?;
    }
    if let Command::Check = cli.command {
        Certificates::read(config.tls())?;
        return say(&format!("{}: ok", cli.config.display()));
    }
    logging::init(cli.log_level, cli.log_format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match &cli.command {
            Command::Run(flags) => serve(&config, flags).await,
            Command::Migrate => {
                config.master().start().await?.shutdown().await;
                say("the database is up to date")
            }
            Command::Backup(flags) => host::backup(&config, flags).await,
            Command::Restore(flags) => host::restore(&config, flags).await,
            Command::RotateTokens => host::rotate_tokens(&config).await,
            Command::Ca(step) => authority::exchange(&config, step).await,
            Command::RecoverAdmin { username } => host::recover(&config, username).await,
            Command::Check => Ok(()),
        }
    })
}

async fn serve(config: &Config, flags: &Run) -> anyhow::Result<()> {
    raise_descriptor_limit();
    let mut signals = Signals::install()?;
    let recorder = Recorder::install()?;
    let exposition = flags.metrics.map(|address| recorder.serve(address));
    let exposition = exposition.transpose().context("--metrics")?;
    let mut builder = config.master();
    if let Some(address) = config.agents() {
        builder = builder.agents(address);
    }
    let master = builder.start().await?;
    if config.hides_addresses() {
        warn!(
            "public.listen is on loopback and api.trustedProxies names no proxy: all users count as one address"
        );
    }
    if config.lacks_public_url() {
        warn!("public.url is not set: addresses of subscriptions are given as paths");
    }
    let mut front = config.front();
    front.metrics = std::sync::Arc::new(move || recorder.render());
    if let Some(url) = config.redis() {
        let redis = Redis::new(url, "hy2:").context("redis")?;
        front.cache = Cache::shared(redis.clone());
        front.limiter = RateLimiter::shared(SharedLimiter::new(redis));
    }
    let certificates = Certificates::read(config.tls())?;
    [front.api_tls, front.public_tls] = certificates.listeners();
    let front = Front::start(&master, front).await?;
    if let Some(first) = front.first_admin() {
        show(first)?;
    }
    info!(
        agents = ?master.agents_address(),
        api = ?front.api_address(),
        public = ?front.public_address(),
        metrics = ?exposition.as_ref().and_then(|figures| figures.local_addr().ok()),
        ca_pin = master.ca_pin(),
        "running"
    );
    let stop = master.shutdown_token();
    let service = front.service().clone();
    let exposition = exposition.map(|figures| {
        figures.ready_when(move || {
            let service = service.clone();
            async move { service.is_ready().await.then_some(()).ok_or("store") }
        })
    });
    let exposing =
        exposition.map(|figures| AbortOnDropHandle::new(tokio::spawn(figures.run(stop))));
    service::ready();
    let watchdog = service::watchdog();
    // Of the file nothing can change while it runs; certificates can.
    let mut changed = certificates.watch();
    loop {
        tokio::select! {
            // Both are cancel safe.
            signal = signals.next() => if signal == Signal::Terminate { break },
            () = changed.changed() => {}
        }
        certificates.reload();
    }
    info!("ending");
    service::stopping();
    drop(watchdog);
    front.shutdown().await;
    master.shutdown().await;
    if let Some(exposing) = exposing {
        exposing.await?;
    }
    Ok(())
}

/// Prints a password to standard output, and nowhere else.
pub(crate) fn show(credentials: &Credentials) -> anyhow::Result<()> {
    say(&format!(
        "administrator {}\npassword      {}\nThis is shown once.",
        credentials.username,
        credentials.password.expose_secret()
    ))
}

pub(crate) fn say(text: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{text}").context("stdout")
}
