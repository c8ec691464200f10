//! Checks that an operator asks for when something is wrong.

use std::{net::Ipv4Addr, time::Duration};

use hy2_core::socket::{SocketOptions, bind};
use hy2_proto::control::rpc::RunDiagnosticsResponse;
use tokio::{
    net::{TcpStream, lookup_host},
    sync::mpsc,
    time::{Instant, timeout},
};

use crate::{agent::Node, files, report};

/// Names of all checks.
pub const CHECKS: [&str; 6] = [
    "dns",
    "clock",
    "disk",
    "udp_buffers",
    "listeners",
    "outbound",
];

/// How long one check may take.
const CHECK_MAX: Duration = Duration::from_secs(10);
/// Beyond this an operator should look at the clock.
const SKEW_MAX: Duration = Duration::from_secs(2);
/// Less room than this is a warning.
const DISK_MIN: u64 = 256 << 20;
/// Kernel buffers below this cost speed.
const BUFFER_MIN: usize = 2 << 20;

/// Runs `checks` (all when empty) and sends each result when it is there.
pub(crate) async fn run(node: &Node, checks: &[String], to: mpsc::Sender<RunDiagnosticsResponse>) {
    let wanted: Vec<&str> = if checks.is_empty() {
        CHECKS.to_vec()
    } else {
        checks.iter().map(String::as_str).collect()
    };
    for check in wanted {
        let begun = Instant::now();
        let result = match timeout(CHECK_MAX, one(node, check)).await {
            Ok(result) => result,
            Err(_) => Err("timed out".to_owned()),
        };
        let passed = result.is_ok();
        let result = RunDiagnosticsResponse {
            check: check.to_owned(),
            passed,
            detail: result.unwrap_or_else(|text| text),
            took: prost_types::Duration::try_from(begun.elapsed()).ok(),
        };
        if to.send(result).await.is_err() {
            return;
        }
    }
}

async fn one(node: &Node, check: &str) -> Result<String, String> {
    match check {
        "dns" => dns(node).await,
        "clock" => clock(node),
        "disk" => disk(node).await,
        "udp_buffers" => udp_buffers(),
        "listeners" => listeners(node),
        "outbound" => outbound(node).await,
        other => Err(format!("there is no check {other:?}")),
    }
}

async fn dns(node: &Node) -> Result<String, String> {
    for master in &node.config.masters {
        let found = lookup_host(master).await;
        let found = found.map_err(|error| format!("{master}: {error}"))?;
        if found.count() == 0 {
            return Err(format!("{master}: no address"));
        }
    }
    Ok("every master's name has an address".to_owned())
}

fn clock(node: &Node) -> Result<String, String> {
    let Some(skew) = node.masters_clock.skew() else {
        return Err("the master's time is not known".to_owned());
    };
    let text = format!("{} ms from the master's", skew.as_millis());
    if skew > SKEW_MAX { Err(text) } else { Ok(text) }
}

async fn disk(node: &Node) -> Result<String, String> {
    let folder = node.config.data_dir.clone();
    let checked = tokio::task::spawn_blocking(move || {
        let probe = folder.join("probe");
        let written = files::write_atomic(&probe, &[0; 4096]);
        let _ = std::fs::remove_file(probe);
        written.map(|()| report::disk_free(&folder))
    });
    match checked.await {
        Ok(Ok(free)) if free < DISK_MIN => Err(format!("{free} bytes free")),
        Ok(Ok(free)) => Ok(format!("{free} bytes free")),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn udp_buffers() -> Result<String, String> {
    let options = SocketOptions::default();
    let socket = bind((Ipv4Addr::UNSPECIFIED, 0).into(), &options).map_err(|e| e.to_string())?;
    let granted = options.apply_buffers(&socket);
    let text = format!(
        "receive {} bytes, send {} bytes",
        granted.recv, granted.send
    );
    if granted.recv.min(granted.send) < BUFFER_MIN {
        Err(format!(
            "{text}; raise net.core.rmem_max and net.core.wmem_max"
        ))
    } else {
        Ok(text)
    }
}

fn listeners(node: &Node) -> Result<String, String> {
    let listening = node.engine.listening();
    if listening.is_empty() {
        return Err("no listener".to_owned());
    }
    let listening: Vec<_> = listening.iter().map(ToString::to_string).collect();
    Ok(listening.join(", "))
}

async fn outbound(node: &Node) -> Result<String, String> {
    let mut last = "no master is configured".to_owned();
    for master in &node.config.masters {
        match TcpStream::connect(master).await {
            Ok(_) => return Ok(format!("connected to {master}")),
            Err(error) => last = format!("{master}: {error}"),
        }
    }
    Err(last)
}
