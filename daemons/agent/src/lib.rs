//! Everything behind the command `hy2-agent`, as a library so that fuzz targets reach the readers of
//! its files. It promises no interface: embed `hy2-agent-sdk` instead.
#![forbid(unsafe_code)]

mod cli;
mod config;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod status;

use std::{
    io::{self, Read, Write},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Parser;
use hy2_agent_sdk::{
    Agent, AgentConfig, config::Enrolment, identity::Identity, link::LinkState, logs::LogRing,
    report::PanicCount,
};
use hy2_daemon_runtime::{
    Exposition, Signal, Signals, logging, on_panic, raise_descriptor_limit, service, start_runtime,
};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::{
    cli::{Cli, Command, Enrol, Run},
    config::Config,
};

/// Runs the command with the arguments of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "hy2-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let config = Config::read(&cli.config)?.agent();
    let logs = LogRing::new();
    logging::init_with(cli.log_level, cli.log_format, Some(logs.layer()))?;
    let runtime = start_runtime(cli.threads)?;
    runtime.block_on(async {
        match &cli.command {
            Command::Check => say(&format!("{}: ok", cli.config.display())),
            Command::Status => status::show(&config).await,
            Command::Enrol(flags) => enrol(config, flags).await,
            Command::Run(flags) => serve(config, logs, flags).await,
        }
    })
}

async fn serve(config: AgentConfig, logs: LogRing, flags: &Run) -> anyhow::Result<()> {
    raise_descriptor_limit();
    let mut signals = Signals::install()?;
    let metrics = flags.metrics.map(Exposition::install).transpose()?;
    let panics = PanicCount::default();
    let counted = panics.clone();
    on_panic(move || counted.note());
    let agent = Agent::builder(config).logs(logs).panics(panics);
    let agent = agent.spawn().await?;
    let stop = tokio_util::sync::CancellationToken::new();
    let handle = agent.handle();
    let exposing = metrics.map(|metrics| {
        let metrics = metrics.ready_when(move || {
            let serves = status::serves(&handle.status().borrow());
            async move { serves }
        });
        tokio::spawn(metrics.run(stop.clone()))
    });
    service::ready();
    let watchdog = service::watchdog();
    // What can change comes from the master: SIGHUP is ignored.
    while signals.next().await != Signal::Terminate {}
    service::stopping();
    drop(watchdog);
    agent.shutdown().await;
    stop.cancel();
    if let Some(exposing) = exposing {
        exposing.await?;
    }
    Ok(())
}

/// How long an enrolment may take.
const ENROLMENT_MAX: Duration = Duration::from_secs(60);

async fn enrol(mut config: AgentConfig, flags: &Enrol) -> anyhow::Result<()> {
    config.enrolment = Some(Enrolment::new(
        read_token(&flags.token_file)?.as_str(),
        flags.ca_pin.parse().context("--ca-pin")?,
    ));
    let folder = config.data_dir.clone();
    if folder.exists() && Identity::open(&folder)?.credentials().is_some() {
        bail!(
            "{} is enrolled already, and the token was not used: `run` goes on with what is there; another node, or one \
             that was deleted or revoked, needs an empty dataDir",
            folder.display()
        );
    }
    let agent = Agent::spawn(config).await?;
    let mut link = agent.handle().link();
    let up = timeout(
        ENROLMENT_MAX,
        link.wait_for(|state| state.connected_since().is_some()),
    );
    let connected = up.await.is_ok_and(|state| state.is_ok());
    let last = agent.handle().link().borrow().clone();
    agent.shutdown().await;
    match last {
        _ if connected => say("enrolled"),
        LinkState::Down { error } => bail!("not enrolled: {error}"),
        _ => bail!("not enrolled within {} s", ENROLMENT_MAX.as_secs()),
    }
}

fn read_token(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    if path == Path::new("-") {
        io::stdin().read_to_string(&mut text).context("token")?;
    } else {
        *text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
    }
    let token = Zeroizing::new(text.trim().to_owned());
    if token.is_empty() {
        bail!("the token is empty");
    }
    Ok(token)
}

pub(crate) fn say(text: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{text}").context("stdout")
}
