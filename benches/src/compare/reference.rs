//! The reference implementation as processes for the comparison.

use std::{path::Path, process::Command};

use anyhow::Result;
use serde_json::{Value, json};

use super::process::Process;

pub(crate) fn server(peer: &Path, mut config: Value) -> Result<(Process, String)> {
    config["outbound"] = json!({"any": true});
    config["events"] = "none".into();
    if let Some(settings) = config.as_object_mut() {
        settings.remove("threads");
    }
    let mut command = Command::new(peer);
    command.arg("server");
    let (process, ready) = Process::start(command, &config)?;
    let address = ready["addr"].as_str().unwrap_or_default().to_owned();
    Ok((process, address))
}

/// Starts a client that forwards a local port to `target`; returns the local address.
pub(crate) fn client(peer: &Path, config: &Value) -> Result<(Process, String)> {
    let settings = json!({
        "server": config["server"],
        "auth": config["auth"],
        "obfs": config["obfs"],
        "tx": config["tx"],
        "rx": config["rx"],
        "tls": {"insecure": true, "sni": "localhost"},
    });
    let settings = without_nulls(settings);
    let mut command = Command::new(peer);
    command.arg("client");
    let (mut process, _) = Process::start(command, &settings)?;
    process.ask(json!({"cmd": "connect"}))?;
    let forward = process.ask(json!({"cmd": "forward_tcp", "target": config["target"]}))?;
    let address = forward["addr"].as_str().unwrap_or_default().to_owned();
    Ok((process, address))
}

fn without_nulls(mut value: Value) -> Value {
    if let Some(object) = value.as_object_mut() {
        object.retain(|_, value| !value.is_null());
    }
    value
}
