//! Endpoint-wide settings: connection identifiers, versions, limits on unproven peers.

use std::{fmt, sync::Arc};

use aws_lc_rs::{digest, hmac};
use quinn::{EndpointConfig, TransportConfig};

use super::{
    identifiers::Identifiers,
    server_crypto::{ServerCrypto, Vigil},
};

/// Tells whether a connection identifier is one that the server gave out.
pub(crate) type Recogniser = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// Key of stateless resets and connection identifiers.
///
/// A server that keeps it across restarts can tell its clients at once that their connections are
/// gone; with a new key they wait for their idle timeout.
#[derive(Clone, PartialEq, Eq)]
pub struct ResetKey([u8; 32]);

impl ResetKey {
    /// Takes 32 secret bytes.
    pub const fn new(secret: [u8; 32]) -> Self {
        Self(secret)
    }

    /// Makes a key for this process only.
    pub fn random() -> Self {
        Self(rand::random())
    }

    fn hmac(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0)
    }

    /// Returns a check whether a connection identifier is one that an endpoint under this key
    /// gave out.
    pub(crate) fn recogniser(&self) -> Recogniser {
        let identifiers = self.identifiers();
        Arc::new(move |identifier| identifiers.recognise(identifier))
    }

    /// Identifiers carry a keyed check, so that a packet for another identifier is ignored
    /// silently and one of an earlier run is answered by a reset.
    fn identifiers(&self) -> Identifiers {
        let key = digest::digest(&digest::SHA256, &[b"hy2 cid".as_slice(), &self.0].concat());
        Identifiers::new(key.as_ref())
    }
}

impl fmt::Debug for ResetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetKey(***)")
    }
}

/// Builds the endpoint settings; `reset_key` is a server's.
pub(crate) fn endpoint_config(reset_key: Option<&ResetKey>) -> EndpointConfig {
    let process_key;
    let key = match reset_key {
        Some(key) => key,
        None => {
            process_key = ResetKey::random();
            &process_key
        }
    };
    let mut config = EndpointConfig::new(Arc::new(key.hmac()));
    let identifiers = key.identifiers();
    config
        .cid_generator(move || Box::new(identifiers.clone()))
        .supported_versions(vec![1])
        .grease_quic_bit(false);
    config
}

/// What all connections of a server start from.
#[derive(Clone)]
pub(crate) struct ServerBase {
    config: quinn::ServerConfig,
    crypto: ServerCrypto,
}

impl ServerBase {
    /// Builds it around `crypto`, with tight limits on peers that have not proven their address.
    pub(crate) fn new(crypto: ServerCrypto) -> Self {
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto.clone()));
        config
            .max_incoming(4096)
            .incoming_buffer_size(64 << 10)
            .incoming_buffer_size_total(16 << 20);
        Self { config, crypto }
    }

    /// What an endpoint listens with.
    pub(crate) fn listening(&self) -> quinn::ServerConfig {
        self.config.clone()
    }

    /// The settings of one connection.
    pub(crate) fn connection(
        &self,
        transport: Arc<TransportConfig>,
        vigil: &Arc<Vigil>,
    ) -> Arc<quinn::ServerConfig> {
        let mut config = self.config.clone();
        config.crypto = Arc::new(self.crypto.guarded(vigil));
        config.transport_config(transport);
        Arc::new(config)
    }
}
