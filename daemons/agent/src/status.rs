//! What the agent on this host says of itself.

use anyhow::Context;
use hy2_agent_sdk::{
    AgentConfig,
    hy2_proto::control::rpc::{
        GetInfoRequest, GetStatsRequest, NodeInfo, node_manager_client::NodeManagerClient,
    },
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::Endpoint;

/// Asks over the local socket and prints the answer.
pub(crate) async fn show(config: &AgentConfig) -> anyhow::Result<()> {
    let path = config
        .local_socket
        .clone()
        .context("localSocket is off: there is nobody to ask")?;
    let shown = path.display().to_string();
    // The name is not looked up: the connector goes to the socket.
    let channel = Endpoint::from_static("http://agent.invalid")
        .connect_with_connector(tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .with_context(|| format!("no agent answers on {shown}"))?;
    let mut node = NodeManagerClient::new(channel);
    let info = node.get_info(GetInfoRequest {}).await?.into_inner();
    let info = info.info.context("an empty answer")?;
    let stats = node.get_stats(GetStatsRequest {}).await?.into_inner();
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

/// The state of the engine, and why it does not serve.
fn engine(info: &NodeInfo) -> String {
    let state = info.engine().as_str_name();
    let state = state.trim_start_matches("ENGINE_STATE_").to_lowercase();
    match &*info.reason {
        "" => state,
        reason => format!("{state} ({reason})"),
    }
}
