//! The reference implementation as processes for the comparison.

use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};

use super::process::Process;

/// Starts a server; returns its address. `program` is the peer's, perhaps behind another command.
pub(crate) fn server(mut program: Command, config: &Value) -> Result<(Process, String)> {
    let settings = without_nulls(json!({
        "tls_cert": config["tls_cert"],
        "tls_key": config["tls_key"],
        "password": config["password"],
        "obfs": config["obfs"],
        "quic": config["quic"],
        "outbound": {"any": true},
        "events": "none",
    }));
    program.arg("server");
    let (process, ready) = Process::start(program, &settings)?;
    let address = ready["addr"].as_str().unwrap_or_default().to_owned();
    Ok((process, address))
}

/// Starts a client that forwards local ports; returns the process, the addresses for TCP and UDP,
/// and how many milliseconds connecting took.
pub(crate) fn client(
    mut program: Command,
    config: &Value,
) -> Result<(Process, String, String, f64)> {
    let settings = without_nulls(json!({
        "server": config["server"],
        "auth": config["auth"],
        "obfs": config["obfs"],
        "tx": config["tx"],
        "rx": config["rx"],
        "fast_open": config["fast_open"],
        "no_parrot": config["no_parrot"],
        "quic": config["quic"],
        "tls": {"insecure": true, "sni": "localhost"},
    }));
    program.arg("client");
    let (mut process, _) = Process::start(program, &settings)?;
    let (_, connect_ms) = process.ask_timed(json!({"cmd": "connect"}))?;
    let mut forward = |command: &str, target: &Value| -> Result<String> {
        let answer = process.ask(json!({"cmd": command, "target": target}))?;
        Ok(answer["addr"].as_str().unwrap_or_default().to_owned())
    };
    let tcp = forward("forward_tcp", &config["target"])?;
    let udp = forward("forward_udp", &config["udp_target"])?;
    Ok((process, tcp, udp, connect_ms))
}

/// What the reference's own QUIC stack sees of a server: cipher, offload and granted buffers.
pub(crate) fn look_at(mut program: Command, server: &str, obfs: &Value) -> Result<Value> {
    let settings = without_nulls(json!({
        "server": server, "auth": "nobody", "obfs": obfs,
        "tls": {"insecure": true, "sni": "localhost"},
    }));
    program.arg("raw");
    let (mut process, _) = Process::start(program, &settings)?;
    process.ask(json!({"cmd": "connect"}))
}

fn without_nulls(mut value: Value) -> Value {
    if let Some(object) = value.as_object_mut() {
        object.retain(|_, value| !value.is_null());
    }
    value
}
