//! Configuration files of `hy2-agent` and `hy2-orchestrator`, and the profiles of `hy2ctl`: a mistake is one line that names
//! a key or a line, what is accepted keeps to its bounds and says the same when it is written down and read again, and no
//! secret is printed. Without state.
//!
//! Planted bug: an agent offered its NodeManager on any address.

use std::{net::IpAddr, time::Duration};

use hy2_agent_sdk::AgentConfig;
use serde_json::{Value, json};

/// Takes a byte that chooses the file, and its text.
pub fn target(data: &[u8]) {
    let [choice, text @ ..] = data else { return };
    if choice % 3 == 2 {
        return profiles(text);
    }
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    match choice % 3 {
        0 => agent(text),
        _ => orchestrator(text),
    }
}

fn agent(text: &str) {
    let settings = match hy2_agent::fuzzing::settings(text) {
        Ok(settings) => settings,
        Err(wrong) => return refused(&wrong, &AGENT_KEYS),
    };
    assert_eq!(settings.mistakes(), Vec::<String>::new());
    assert!(!settings.data_dir.as_os_str().is_empty() && !settings.masters.is_empty());
    assert!(settings.loopback.is_none_or(|at| at.ip().is_loopback()));
    let (least, most) = settings.reconnect;
    assert!(least <= most && (INTERVAL_MIN..=INTERVAL_MAX).contains(&most));
    let host = &settings.public_host;
    assert!(!host.contains(|c: char| c.is_control() || c == '/' || c == '@'));
    let again = hy2_agent::fuzzing::settings(&yaml(&agent_file(&settings)));
    let again = again.expect("what it says itself");
    assert_eq!(format!("{again:?}"), format!("{settings:?}"));
}

const INTERVAL_MIN: Duration = Duration::from_millis(100);
const INTERVAL_MAX: Duration = Duration::from_secs(3600);

/// The keys of the file; a mistake names one of them.
const AGENT_KEYS: [&str; 9] = [
    "dataDir",
    "masters",
    "name",
    "publicHost",
    "listenPort",
    "localSocket",
    "loopback",
    "spoolMebibytes",
    "reconnectMax",
];

fn agent_file(settings: &AgentConfig) -> Value {
    json!({
        "dataDir": settings.data_dir,
        "masters": settings.masters,
        "name": settings.name,
        "publicHost": settings.public_host,
        "listenPort": settings.listen_port,
        "localSocket": settings.local_socket,
        "loopback": settings.loopback,
        // As large as there is.
        "spoolMebibytes": match settings.spool_cap {
            u64::MAX => u64::MAX,
            bytes => bytes >> 20,
        },
        "reconnectMax": format!("{}ms", settings.reconnect.1.as_millis()),
    })
}

fn orchestrator(text: &str) {
    let settings = match hy2_orchestrator::fuzzing::settings(text) {
        Ok(settings) => settings,
        Err(wrong) => return refused(&wrong, &ORCHESTRATOR_KEYS),
    };
    let front = &settings.front;
    if let Some(api) = front.api {
        let guarded = settings.tls[0] || !front.trusted_proxies.is_empty();
        assert!(api.ip().is_loopback() || guarded, "in clear");
    }
    if let Some(url) = &front.public_url {
        assert!(matches!(url.scheme(), "http" | "https") && url.has_host());
        assert!(url.query().is_none() && url.fragment().is_none());
    }
    match &settings.listeners {
        Ok(()) => {
            assert!(front.public.is_none() || front.public_url.is_some());
            let agents = settings.agents.as_ref().and_then(|at| at.parse().ok());
            let fixed = [agents, front.api, front.public].into_iter().flatten();
            let fixed: Vec<std::net::SocketAddr> = fixed.filter(|at| at.port() != 0).collect();
            for (at, one) in fixed.iter().enumerate() {
                let mut others = fixed[at + 1..].iter();
                assert!(!others.any(|other| other == one), "{one} twice");
            }
        }
        Err(wrong) => refused(wrong, &ORCHESTRATOR_KEYS),
    }
    for key in ["trafficInterval", "heartbeatInterval"] {
        let Some(interval) = settings.json["agents"][key].as_str() else {
            continue;
        };
        let ms = interval.strip_suffix("ms").and_then(|ms| ms.parse().ok());
        let span = Duration::from_millis(ms.expect("milliseconds"));
        assert!((INTERVAL_MIN..=INTERVAL_MAX).contains(&span), "{interval}");
    }
    for name in settings.json["agents"]["names"].as_array().into_iter().flatten() {
        let name = name.as_str().expect("a name");
        let is_host = name.parse::<IpAddr>().is_ok() || url::Host::parse(name).is_ok();
        assert!(is_host, "{name}");
    }
    let read = |file: &Value| hy2_orchestrator::fuzzing::settings(&yaml(file));
    let again = read(&settings.json).expect("what it says itself");
    assert_eq!(again.json, settings.json);
    // Other secrets are printed as these are.
    let mut others = settings.json.clone();
    if !others["redis"].is_null() {
        others["redis"] = "redis://:other@host".into();
    }
    if others["database"].as_str().is_some_and(|url| url.starts_with("postgres")) {
        others["database"] = "postgres://u:other@host/name".into();
    }
    let others = read(&others).expect("as good");
    assert_eq!(others.printed, settings.printed, "a secret");
}

/// The keys of the file; a mistake names one of them.
const ORCHESTRATOR_KEYS: [&str; 8] = [
    "database",
    "keyFile",
    "agents",
    "api",
    "public",
    "roles",
    "redis",
    "allowPrivateWebhooks",
];

/// Writes what JSON says in YAML: of the escapes that both have, and of others where YAML has none of JSON's.
fn yaml(file: &Value) -> String {
    let mut text = String::new();
    for c in file.to_string().chars() {
        match c {
            ' '..='~' => text.push(c),
            other => text.push_str(&format!("\\U{:08X}", u32::from(other))),
        }
    }
    text
}

/// What was refused is refused in one line, which names a key or a line.
fn refused(wrong: &str, keys: &[&str]) {
    assert!(!wrong.contains(char::is_control), "{wrong:?}");
    let mut named = keys.iter().chain(&["line ", "no settings"]);
    assert!(named.any(|key| wrong.contains(key)), "{wrong:?}");
}

fn profiles(text: &[u8]) {
    let written = match hy2ctl::fuzzing::profiles(text) {
        Ok(written) => written,
        Err(wrong) => return assert!(wrong.contains("line "), "{wrong:?}"),
    };
    let again = hy2ctl::fuzzing::profiles(&written);
    assert_eq!(again.as_ref(), Ok(&written));
    let printed = hy2ctl::fuzzing::printed(&written);
    let mut others: Value = serde_json::from_slice(&written).expect("JSON");
    for profile in others.as_object_mut().into_iter().flat_map(|all| all.values_mut()) {
        if let Some(token) = profile.get_mut("api_token") {
            *token = "other".into();
        }
        for token in ["access_token", "refresh_token"] {
            let session = profile.get_mut("session");
            if let Some(token) = session.and_then(|session| session.get_mut(token)) {
                *token = "other".into();
            }
        }
    }
    let others = hy2ctl::fuzzing::printed(others.to_string().as_bytes());
    assert_eq!(others, printed, "a secret");
}
