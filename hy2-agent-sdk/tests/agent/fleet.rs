//! What tests start from: configurations, users, agents, clients.

use std::{path::Path, sync::Arc, time::Duration};

use base64::Engine as _;
use hy2_agent_sdk::{
    Agent, AgentBuilder, AgentConfig, AgentHandle,
    config::Enrolment,
    hy2_core::{
        Client, ClientConfig,
        client::ServerAddress,
        error::ConnectError,
        rustls::{RootCertStore, pki_types::CertificateDer},
        socket::Obfuscation,
    },
    hy2_proto::control::rpc::{self, NodeConfig, UserEntry},
};

use crate::{
    master::{Master, TOKEN},
    soon,
};

pub(crate) const FLEET_KEY: [u8; 32] = [1; 32];
pub(crate) const NODE_KEY: [u8; 32] = [2; 32];

/// A certificate for `localhost`, as the master would issue it.
pub(crate) struct Site {
    pub(crate) certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Site {
    pub(crate) fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
        Self {
            certificate: made.cert.der().clone(),
            key: made.signing_key.serialize_der(),
        }
    }

    /// Writes it as `cert.pem` and `key.pem` into `folder`.
    pub(crate) fn write(&self, folder: &Path) {
        for (name, kind, der) in [
            ("cert.pem", "CERTIFICATE", &*self.certificate),
            ("key.pem", "PRIVATE KEY", &self.key),
        ] {
            let body = base64::engine::general_purpose::STANDARD.encode(der);
            let lines: Vec<_> = body
                .as_bytes()
                .chunks(64)
                .map(String::from_utf8_lossy)
                .collect();
            let body = lines.join("\n");
            let text = format!("-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n");
            std::fs::write(folder.join(name), text).expect("written");
        }
    }

    pub(crate) fn tls(&self) -> rpc::Tls {
        rpc::Tls {
            source: Some(rpc::tls::Source::Issued(rpc::TlsIssued {
                chain: vec![self.certificate.to_vec().into()],
                key: self.key.clone().into(),
            })),
            sni_guard: 0,
        }
    }
}

/// A configuration that works: one loopback listener, loopback targets allowed.
pub(crate) fn config(site: &Site, listen: &str) -> NodeConfig {
    NodeConfig {
        listen: vec![listen.to_owned()],
        tls: Some(site.tls()),
        allow_private_targets: true,
        verifier_keys: Some(rpc::VerifierKeys {
            fleet_key: FLEET_KEY.to_vec().into(),
            node_key: NODE_KEY.to_vec().into(),
        }),
        drain_grace: prost_types::Duration::try_from(Duration::from_secs(60)).ok(),
        ..Default::default()
    }
}

/// What a node knows of a credential.
pub(crate) fn verifier(credential: &str) -> Vec<u8> {
    let sign = |key: &[u8], of: &[u8]| {
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key);
        aws_lc_rs::hmac::sign(&key, of).as_ref().to_vec()
    };
    sign(&NODE_KEY, &sign(&FLEET_KEY, credential.as_bytes()))
}

pub(crate) fn user(user_id: u64, credential: &str) -> UserEntry {
    UserEntry {
        user_id,
        verifier: verifier(credential).into(),
        rev: 1,
        ..Default::default()
    }
}

/// A master, a node's folder and, while it runs, the agent.
pub(crate) struct World {
    pub(crate) master: Master,
    pub(crate) site: Site,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) agent: Option<Agent>,
}

impl World {
    /// A master that wants a node with the users named, credential and number.
    pub(crate) async fn with_users(users: &[(u64, &str)]) -> Self {
        let site = Site::new();
        let master = Master::start(config(&site, "127.0.0.1:0")).await;
        {
            let mut desired = master.shared.desired.lock();
            for (id, credential) in users {
                desired.users.insert(*id, user(*id, credential));
            }
        }
        Self {
            master,
            site,
            folder: tempfile::tempdir().expect("a folder"),
            agent: None,
        }
    }

    pub(crate) fn agent_config(&self) -> AgentConfig {
        agent_config(self.folder.path(), &self.master)
    }

    /// Starts the agent and waits until it runs what the master wants.
    pub(crate) async fn start(&mut self) -> AgentHandle {
        let handle = self.start_with(|builder| builder).await;
        let rev = self.master.shared.desired.lock().rev;
        self.master.acked(rev).await;
        handle
    }

    /// Starts the agent without waiting for anything.
    pub(crate) async fn start_with(
        &mut self,
        change: impl FnOnce(AgentBuilder) -> AgentBuilder,
    ) -> AgentHandle {
        let builder = change(Agent::builder(self.agent_config()));
        let agent = builder.spawn().await.expect("the agent starts");
        let handle = agent.handle();
        self.agent = Some(agent);
        handle
    }

    pub(crate) async fn shutdown(&mut self) {
        if let Some(agent) = self.agent.take() {
            soon("shutdown", agent.shutdown()).await;
        }
    }

    pub(crate) fn client_config(&self, credential: &str) -> ClientConfig {
        let agent = self.agent.as_ref().expect("it runs");
        let address = agent.handle().listening()[0];
        client_config(&self.site, address.port(), credential)
    }

    pub(crate) async fn client(&self, credential: &str) -> Client {
        soon("connect", Client::connect(self.client_config(credential)))
            .await
            .expect("let in")
    }

    pub(crate) async fn is_refused(&self, credential: &str) {
        let connected = soon("refusal", Client::connect(self.client_config(credential))).await;
        let error = connected.expect_err("not let in");
        assert!(
            matches!(error, ConnectError::AuthRejected { .. }),
            "{error}"
        );
    }
}

pub(crate) fn agent_config(folder: &Path, master: &Master) -> AgentConfig {
    let mut config = AgentConfig::new(folder, vec![master.address.to_string()]);
    let pin = master.shared.pki.pin().parse().expect("a pin");
    config.enrolment = Some(Enrolment::new(TOKEN, pin));
    config.reconnect = (Duration::from_millis(20), Duration::from_millis(200));
    config.traffic_interval = Duration::from_millis(50);
    config.stop_grace = Duration::from_millis(200);
    config
}

pub(crate) fn client_config(site: &Site, port: u16, credential: &str) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(site.certificate.clone()).expect("a root");
    let mut config = ClientConfig::new(ServerAddress::new("127.0.0.1", port), credential);
    config.tls.roots = Some(Arc::new(roots));
    config.tls.sni = Some("localhost".to_owned());
    config
}

pub(crate) fn obfuscated(mut config: ClientConfig, password: &str) -> ClientConfig {
    config.obfuscation = Obfuscation::salamander(password).expect("a key");
    config
}
