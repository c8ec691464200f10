//! What the agent on this host says of itself.

use std::{path::Path, time::Duration};

use anyhow::Context;
use hy2_agent_sdk::{
    AgentConfig,
    hy2_proto::control::rpc::{
        EngineState, GetInfoRequest, GetStatsRequest, GetStatsResponse, NodeInfo,
        node_manager_client::NodeManagerClient,
    },
    reconcile::Status,
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};
use tonic::transport::Endpoint;

/// How long the agent may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Asks over the local socket and prints the answer.
pub(crate) async fn show(config: &AgentConfig) -> anyhow::Result<()> {
    let path = config
        .local_socket
        .as_deref()
        .context("localSocket is off: there is nobody to ask")?;
    let asked = timeout(ANSWER_MAX, ask(path)).await;
    let (info, stats) = asked.with_context(|| {
        let (path, limit) = (path.display(), ANSWER_MAX.as_secs());
        format!("the agent on {path} did not answer within {limit} s: it hangs, or is stopped")
    })??;
    let metrics = stats.metrics.unwrap_or_default();
    let lines = [
        ("name", info.name.clone()),
        ("engine", engine(&info)),
        ("listening", info.listening.join(", ")),
        (
            "manifest",
            format!("{} (epoch {})", info.manifest_rev, info.cluster_epoch),
        ),
        (
            "master",
            match &*stats.link_error {
                _ if stats.connected_since.is_some() => "connected".to_owned(),
                "" => "not connected".to_owned(),
                error => format!("not connected ({error})"),
            },
        ),
        ("connections", metrics.connections.to_string()),
        ("users online", metrics.users_online.to_string()),
        (
            "moved",
            format!("{} B up, {} B down", metrics.tx_bytes, metrics.rx_bytes),
        ),
        (
            "spool",
            format!("{} batches, {} B", stats.spool_batches, stats.spool_bytes),
        ),
    ];
    for (name, value) in lines {
        crate::say(&format!("{name:<13} {value}"))?;
    }
    Ok(())
}

async fn ask(path: &Path) -> anyhow::Result<(NodeInfo, GetStatsResponse)> {
    let socket = path.to_owned();
    // The name is not looked up: the connector goes to the socket.
    let channel = Endpoint::from_static("http://agent.invalid")
        .connect_with_connector(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await
        .with_context(|| format!("no agent answers on {}", path.display()))?;
    let mut node = NodeManagerClient::new(channel);
    let info = node.get_info(GetInfoRequest {}).await?.into_inner();
    let info = info.info.context("an empty answer")?;
    let stats = node.get_stats(GetStatsRequest {}).await?.into_inner();
    Ok((info, stats))
}

/// The state of the engine, and why it does not serve.
fn engine(info: &NodeInfo) -> String {
    let state = info.engine().as_str_name();
    let state = state.trim_start_matches("ENGINE_STATE_").to_lowercase();
    match &*info.reason {
        "" => state,
        reason => format!("{state} ({reason})"),
    }
}

/// Whether the agent lets users in; otherwise in a word what does not.
pub(crate) fn serves(status: &Status) -> Result<(), &'static str> {
    match status.engine {
        EngineState::Serving => Ok(()),
        EngineState::Draining => Err("closed"),
        _ => Err("engine"),
    }
}
