//! A node's configuration as the master sends it: what is wrong is named with its place, what is
//! accepted keeps to its bounds.
//!
//! Planted bug: an address to listen on that is there twice was accepted.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use hy2_agent_sdk::{hy2_core::server::ServerConfig, settings::NodeSettings};
use hy2_proto::control::rpc::NodeConfig;
use prost::Message;

/// Decodes the input and checks the configuration that it is.
pub fn target(data: &[u8]) {
    let Ok(config) = NodeConfig::decode(data) else {
        return;
    };
    let config = Arc::new(config);
    match NodeSettings::parse(&config) {
        Ok(settings) => accepted(&config, &settings),
        Err(errors) => {
            assert!(!errors.is_empty(), "refused without a reason");
            for error in &errors {
                let path = error.path.split(['.', '[']).next().unwrap_or_default();
                assert!(FIELDS.contains(&path), "{error:?}");
                assert!(!error.message.is_empty());
            }
            let again = NodeSettings::parse(&config).map(|_| ());
            assert_eq!(again, Err(errors));
        }
    }
}

/// Fields of the message that have bounds.
const FIELDS: [&str; 13] = [
    "listen",
    "tls",
    "obfuscation",
    "previous_obfuscation",
    "masquerade",
    "drain_grace",
    "verifier_keys",
    "expiry_policy",
    "bandwidth",
    "congestion",
    "quic",
    "udp",
    "counters",
];

fn accepted(config: &NodeConfig, settings: &NodeSettings) {
    assert_eq!(settings.listen.len(), config.listen.len());
    let fixed = settings.listen.iter().filter(|it| it.port() != 0);
    let different: BTreeSet<_> = fixed.clone().collect();
    assert_eq!(different.len(), fixed.count(), "twice");
    assert!(settings.drain_grace <= Duration::from_secs(86_400));
    let mut server = ServerConfig::default();
    settings.fill(&mut server);
    assert!(server.quic.max_idle_timeout > Duration::ZERO);
    assert!(server.udp_idle_timeout > Duration::ZERO);
    assert!(server.quic.stream_receive_window > 0 && server.quic.receive_window > 0);
    let text = format!("{settings:?}");
    if let Some(keys) = &config.verifier_keys {
        assert!(!text.contains(&format!("{keys:?}")), "a secret");
    }
}
