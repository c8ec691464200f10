//! What every running command sets up first.

use std::net::SocketAddr;

use anyhow::Context;
use hy2_daemon_runtime::{Exposition, logging, raise_descriptor_limit, start_runtime};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::info;

use crate::cli::Global;

/// Installs logs, starts a runtime and runs `work` in it.
pub(crate) fn run<F: Future<Output = anyhow::Result<()>>>(
    global: &Global,
    work: impl FnOnce() -> F,
) -> anyhow::Result<()> {
    logging::init(global.log_level, global.log_format)?;
    raise_descriptor_limit();
    let runtime = start_runtime(global.threads).context("cannot start the runtime")?;
    let result = runtime.block_on(work());
    // Blocking work, such as a name lookup, is not waited for.
    runtime.shutdown_background();
    result
}

/// Serves metrics, if asked to, until the handle is dropped.
pub(crate) fn serve_metrics(
    address: Option<SocketAddr>,
) -> anyhow::Result<Option<AbortOnDropHandle<()>>> {
    let Some(address) = address else {
        return Ok(None);
    };
    let exposition = Exposition::install(address)
        .with_context(|| format!("cannot serve metrics on {address}"))?;
    info!(kind = "metrics", address = %exposition.local_addr()?, "listening");
    let running = tokio::spawn(exposition.run(CancellationToken::new()));
    Ok(Some(AbortOnDropHandle::new(running)))
}
