//! Many more nodes on the same master: real agents with identities, sessions and ledgers of their
//! own over real mutual TLS, and an engine that relays nothing and remembers whom it had to cut.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use hy2_agent_sdk::{
    Agent, AgentConfig, BoxFuture,
    config::Enrolment,
    engine::{Engine, EngineSession},
    hy2_core::authenticator::UserLimits,
    hy2_proto::control::rpc::{ApplyEffect, FieldError},
    settings::NodeSettings,
};
use serde_json::json;
use tokio::sync::watch;

use crate::{fleet::Fleet, wire::Wire};

/// When each user was cut last.
type Cuts = HashMap<u64, Instant>;

struct Null {
    listening: parking_lot::Mutex<Vec<SocketAddr>>,
    cuts: watch::Sender<Cuts>,
}

impl Engine for Null {
    fn check<'a>(
        &'a self,
        _settings: &'a NodeSettings,
    ) -> BoxFuture<'a, Result<ApplyEffect, Vec<FieldError>>> {
        Box::pin(async { Ok(ApplyEffect::Hot) })
    }

    fn apply<'a>(
        &'a self,
        settings: &'a NodeSettings,
    ) -> BoxFuture<'a, Result<ApplyEffect, Vec<FieldError>>> {
        Box::pin(async {
            *self.listening.lock() = settings.listen.clone();
            Ok(ApplyEffect::Listeners)
        })
    }

    fn listening(&self) -> Vec<SocketAddr> {
        self.listening.lock().clone()
    }

    fn kick_user(&self, user: u64) -> usize {
        let now = Instant::now();
        self.cuts.send_modify(|cuts| {
            cuts.insert(user, now);
        });
        1
    }

    fn kick_connection(&self, _connection: u64) -> bool {
        false
    }

    fn set_limits(&self, _user: u64, _limits: UserLimits) {}

    fn sessions(&self) -> Vec<EngineSession> {
        Vec::new()
    }

    fn stop(&self, _grace: Duration) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

struct Stub {
    cuts: watch::Receiver<Cuts>,
    _agent: Agent,
    /// Each comes from an address of its own, as hosts do: how many enrol from one is limited.
    _wire: Wire,
}

/// Nodes without users' traffic.
pub(crate) struct Stubs {
    pub(crate) ids: Vec<i64>,
    all: Vec<Stub>,
    _folder: tempfile::TempDir,
}

impl Stubs {
    /// Enrols so many and waits until each runs what is desired.
    pub(crate) async fn join(fleet: &Fleet, number: u16) -> Self {
        // In memory where there is such a place: on one disk here, two hundred elsewhere.
        let shared = std::path::Path::new("/dev/shm");
        let folder = if shared.is_dir() {
            tempfile::tempdir_in(shared)
        } else {
            tempfile::tempdir()
        };
        let folder = folder.expect("a folder");
        let mut all = Vec::new();
        for at in 0..number {
            let [high, low] = at.to_be_bytes();
            let from = Ipv4Addr::new(127, 7, high, low + 1);
            let wire = Wire::start_from(fleet.agents, Some(from.into())).await;
            let name = format!("stub-{at:03}");
            let issued = fleet
                .rest
                .post("/enrolment-tokens", json!({"label": name}))
                .await;
            let text = |key: &str| issued[key].as_str().expect("text").to_owned();
            let masters = vec![wire.address.to_string()];
            let mut config = AgentConfig::new(folder.path().join(&name), masters);
            let pin = text("ca_pin").parse().expect("a pin");
            config.enrolment = Some(Enrolment::new(text("token"), pin));
            config.name = name;
            config.public_host = "192.0.2.1".to_owned();
            config.listen_port = 443;
            config.local_socket = None;
            let (told, cuts) = watch::channel(Cuts::new());
            let agent = Agent::builder(config)
                .engine(move |_| {
                    Arc::new(Null {
                        listening: parking_lot::Mutex::default(),
                        cuts: told,
                    })
                })
                .spawn();
            all.push(Stub {
                cuts,
                _agent: agent.await.expect("it starts"),
                _wire: wire,
            });
        }
        let wanted = usize::from(number);
        let ids = crate::until("every stub", || async {
            let nodes = fleet.all_nodes().await?;
            let good = nodes.iter().filter(|node| {
                let named = node["name"].as_str().unwrap_or_default();
                named.starts_with("stub-")
                    && node["observed_state"] == "online"
                    && node["applied_rev"] == node["desired_rev"]
            });
            let ids: Vec<i64> = good.filter_map(|node| node["id"].as_i64()).collect();
            match ids.len() == wanted {
                true => Ok(ids),
                false => Err(format!("{} of {wanted} serve", ids.len())),
            }
        })
        .await;
        Self {
            ids,
            all,
            _folder: folder,
        }
    }

    /// Waits until each has cut a user after `asked`; returns how long the slowest took.
    pub(crate) async fn cut(&mut self, user: i64, asked: Instant) -> Duration {
        let user = u64::try_from(user).expect("positive");
        let mut slowest = Duration::ZERO;
        for stub in &mut self.all {
            let cut = |cuts: &Cuts| cuts.get(&user).is_some_and(|at| *at >= asked);
            let cuts = crate::soon("the cut at a stub", stub.cuts.wait_for(cut)).await;
            let at = cuts.expect("it lives")[&user];
            slowest = slowest.max(at - asked);
        }
        slowest
    }
}
