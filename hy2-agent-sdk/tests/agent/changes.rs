//! Changes of every kind, at random, under live streams whose every byte is checked.

use std::{
    net::UdpSocket,
    time::{Duration, SystemTime},
};

use hy2_agent_sdk::{
    hy2_core::{
        Bandwidth, Client, ClientConfig,
        error::{ConnectError, OpenError},
    },
    hy2_proto::control::rpc::{self, masquerade::Site as Wanted},
};

use crate::{
    fleet::{Site, World, client_config, obfuscated, user, verifier},
    origin::{Echo, Traffic},
    refusals::salamander,
    soon,
};

const CHANGES: usize = 500;
const CLIENTS: usize = 10;
const STREAMS_EACH: usize = 50;
const KEY: &str = "an obfuscation key";
const PROBE: &str = "the probe's credential";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kind {
    UserAdded,
    UserRemoved,
    Credential,
    Limits,
    Bandwidth,
    Certificate,
    Obfuscation,
    Masquerade,
    ListenerAdded,
    ListenerRemoved,
    Udp,
    PrivateTargets,
    Invalid,
}

const KINDS: [Kind; 13] = [
    Kind::UserAdded,
    Kind::UserRemoved,
    Kind::Credential,
    Kind::Limits,
    Kind::Bandwidth,
    Kind::Certificate,
    Kind::Obfuscation,
    Kind::Masquerade,
    Kind::ListenerAdded,
    Kind::ListenerRemoved,
    Kind::Udp,
    Kind::PrivateTargets,
    Kind::Invalid,
];

/// What the test knows of the node.
struct Model {
    world: World,
    port: u16,
    extra: Option<u16>,
    covered: bool,
    status: u32,
    udp: bool,
    next_user: u64,
    probe: u64,
    probe_credential: String,
    random: u64,
    echo: String,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_changes_reset_none_of_five_hundred_streams() {
    let echo = Echo::start().await;
    let mut users: Vec<(u64, String)> = (1..=CLIENTS as u64)
        .map(|id| (id, format!("credential of user {id}")))
        .collect();
    users.push((1000, PROBE.to_owned()));
    let named: Vec<(u64, &str)> = users.iter().map(|(id, text)| (*id, &**text)).collect();
    let mut world = World::with_users(&named).await;
    let agent = world.start().await;
    let mut live = Vec::new();
    for (_, credential) in &users[..CLIENTS] {
        let client = world.client(credential).await;
        let traffic = Traffic::start_slow(
            &client,
            &echo.target(),
            STREAMS_EACH,
            300,
            Duration::from_millis(400),
        )
        .await;
        live.push((client, traffic));
    }
    let seed = env_seed();
    let mut model = Model {
        port: agent.listening()[0].port(),
        world,
        extra: None,
        covered: false,
        status: 404,
        udp: true,
        next_user: 2000,
        probe: 1000,
        probe_credential: PROBE.to_owned(),
        random: seed,
        echo: echo.target(),
    };
    // A status of its own, so that the site can be told.
    model.masquerade().await;
    // Every kind equally often, in an order that the seed decides.
    let mut order: Vec<Kind> = (0..CHANGES).map(|at| KINDS[at % KINDS.len()]).collect();
    for at in (1..order.len()).rev() {
        let other = model.below(at as u64 + 1) as usize;
        order.swap(at, other);
    }
    for (at, kind) in order.iter().enumerate() {
        let changed = tokio::time::timeout(crate::PATIENCE, model.change(*kind)).await;
        assert!(changed.is_ok(), "change {at}, {kind:?}, seed {seed}");
    }
    for kind in KINDS {
        let count = order.iter().filter(|one| **one == kind).count();
        assert!(count >= 20, "{kind:?}: {count}");
    }
    let mut moved = 0;
    for (client, traffic) in live {
        moved += traffic.finish().await;
        client.close().await;
    }
    model
        .world
        .master
        .until_stored("every byte", |store| {
            let live: u64 = (1..=CLIENTS as u64)
                .filter_map(|user| store.bytes.get(&user))
                .map(|(tx, rx)| {
                    assert!(tx.max(rx) <= &moved);
                    *tx
                })
                .sum();
            live == moved
        })
        .await;
}

/// Random, but for whoever wants a run again.
fn env_seed() -> u64 {
    let named = std::env::var("HY2_SEED").ok();
    named.map_or_else(rand::random, |seed| {
        seed.parse().expect("HY2_SEED is a number")
    })
}

impl Model {
    fn below(&mut self, end: u64) -> u64 {
        // SplitMix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn config(&self, port: u16, credential: &str) -> ClientConfig {
        let config = client_config(&self.world.site, port, credential);
        if self.covered {
            obfuscated(config, KEY)
        } else {
            config
        }
    }

    async fn probe(&self) -> Client {
        let config = self.config(self.port, &self.probe_credential);
        soon("connect", Client::connect(config))
            .await
            .expect("let in")
    }

    /// Waits until the node has seen the last probe go.
    async fn nobody_left(&self) {
        let agent = self.world.agent.as_ref().expect("runs").handle();
        soon("the last probe's end", async {
            while agent.sessions().iter().any(|one| one.user_id == self.probe) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    async fn is_refused(&self, credential: &str) -> u16 {
        let connected = soon(
            "refusal",
            Client::connect(self.config(self.port, credential)),
        )
        .await;
        match connected {
            Err(ConnectError::AuthRejected { status }) => status,
            other => panic!("{credential:?}: {other:?}"),
        }
    }

    async fn change(&mut self, kind: Kind) {
        match kind {
            Kind::UserAdded => {
                let id = self.next_user;
                self.next_user += 1;
                let credential = format!("added {id}");
                let entry = user(id, &credential);
                self.world
                    .master
                    .publish_acked(|desired| {
                        desired.users.insert(id, entry);
                    })
                    .await;
                let config = self.config(self.port, &credential);
                soon("connect", Client::connect(config))
                    .await
                    .expect("let in")
                    .close()
                    .await;
            }
            Kind::UserRemoved => {
                let id = self.next_user;
                self.next_user += 1;
                let credential = format!("removed {id}");
                let entry = user(id, &credential);
                self.world
                    .master
                    .publish_acked(|desired| {
                        desired.users.insert(id, entry);
                    })
                    .await;
                let config = self.config(self.port, &credential);
                let client = soon("connect", Client::connect(config))
                    .await
                    .expect("let in");
                self.world
                    .master
                    .publish_acked(|desired| {
                        desired.users.remove(&id);
                    })
                    .await;
                soon("the end", client.disconnected()).await;
                self.is_refused(&credential).await;
            }
            Kind::Credential => {
                let fresh = self.below(u64::MAX);
                let old =
                    std::mem::replace(&mut self.probe_credential, format!("credential {fresh}"));
                let new = verifier(&self.probe_credential);
                let id = self.probe;
                self.world
                    .master
                    .publish_acked(|desired| {
                        let entry = desired.users.get_mut(&id).expect("there");
                        entry.verifier = new.into();
                        entry.rev += 1;
                    })
                    .await;
                self.is_refused(&old).await;
                self.probe().await.close().await;
            }
            Kind::Limits => {
                let id = self.probe;
                self.nobody_left().await;
                let first = self.probe().await;
                self.world
                    .master
                    .publish_acked(|desired| {
                        desired.users.get_mut(&id).expect("there").max_connections = 1;
                    })
                    .await;
                self.is_refused(&self.probe_credential.clone()).await;
                self.world
                    .master
                    .publish_acked(|desired| {
                        desired.users.get_mut(&id).expect("there").max_connections = 0;
                    })
                    .await;
                self.probe().await.close().await;
                first.close().await;
            }
            Kind::Bandwidth => {
                let up = 1_000_000 + self.below(1_000_000);
                self.world
                    .master
                    .publish_acked(|desired| {
                        desired.config.bandwidth = Some(rpc::ServerBandwidth {
                            up_bytes_per_s: up,
                            ..Default::default()
                        });
                    })
                    .await;
                let mut config = self.config(self.port, &self.probe_credential);
                config.down = Some(Bandwidth::from_bytes_per_sec(50_000_000));
                let client = soon("connect", Client::connect(config))
                    .await
                    .expect("let in");
                let sessions = self.world.agent.as_ref().expect("runs").handle().sessions();
                let mine = sessions.iter().filter(|one| one.user_id == self.probe);
                let rates: Vec<_> = mine.map(|one| one.send_rate_bytes_per_s).collect();
                assert!(rates.contains(&up), "{rates:?} and {up}");
                client.close().await;
            }
            Kind::Certificate => {
                let site = Site::new();
                let tls = site.tls();
                self.world
                    .master
                    .publish_acked(|desired| desired.config.tls = Some(tls))
                    .await;
                let old = std::mem::replace(&mut self.world.site, site);
                self.probe().await.close().await;
                let new = std::mem::replace(&mut self.world.site, old);
                let config = self.config(self.port, &self.probe_credential);
                let distrusted = soon("refusal", Client::connect(config)).await;
                assert!(
                    matches!(distrusted, Err(ConnectError::Tls(_))),
                    "{distrusted:?}"
                );
                self.world.site = new;
            }
            Kind::Obfuscation => self.obfuscation().await,
            Kind::Masquerade => self.masquerade().await,
            Kind::ListenerAdded => {
                if self.extra.is_some() {
                    self.remove_listener().await;
                }
                self.add_listener().await;
            }
            Kind::ListenerRemoved => {
                if self.extra.is_none() {
                    self.add_listener().await;
                }
                self.remove_listener().await;
            }
            Kind::Udp => {
                self.udp = !self.udp;
                let disabled = !self.udp;
                self.world
                    .master
                    .publish_acked(|desired| {
                        desired.config.udp = Some(rpc::UdpRelay {
                            disabled,
                            idle_timeout: None,
                        });
                    })
                    .await;
                let client = self.probe().await;
                match client.udp().await {
                    Ok(_) => assert!(self.udp),
                    Err(OpenError::UdpDisabled) => assert!(!self.udp),
                    Err(error) => panic!("{error}"),
                }
                client.close().await;
            }
            Kind::PrivateTargets => {
                for allowed in [false, true] {
                    self.world
                        .master
                        .publish_acked(|desired| {
                            desired.config.allow_private_targets = allowed;
                        })
                        .await;
                    let client = self.probe().await;
                    let opened = client.tcp(&self.echo).await;
                    assert_eq!(opened.is_ok(), allowed);
                    client.close().await;
                }
            }
            Kind::Invalid => {
                let before = self.world.master.shared.desired.lock().config.clone();
                let rev = self
                    .world
                    .master
                    .publish(|desired| {
                        desired.config.udp = Some(rpc::UdpRelay {
                            disabled: false,
                            idle_timeout: prost_types::Duration::try_from(Duration::from_secs(
                                9999,
                            ))
                            .ok(),
                        });
                    })
                    .await;
                let nack = self.world.master.nacked(rev).await;
                assert_eq!(nack.errors[0].path, "udp.idle_timeout");
                self.world
                    .master
                    .publish_acked(|desired| desired.config = before)
                    .await;
                self.probe().await.close().await;
            }
        }
    }

    /// Between plain and a key, each accepted beside the other, so that live connections stay.
    async fn obfuscation(&mut self) {
        self.covered = !self.covered;
        let covered = self.covered;
        self.world
            .master
            .publish_acked(|desired| {
                let key = Some(salamander(KEY));
                let (current, previous) = if covered { (key, None) } else { (None, key) };
                desired.config.obfuscation = current;
                desired.config.previous_obfuscation = Some(rpc::PreviousObfuscation {
                    obfuscation: previous,
                    until: Some((SystemTime::now() + Duration::from_secs(3600)).into()),
                });
            })
            .await;
        self.probe().await.close().await;
        self.covered = !covered;
        self.probe().await.close().await;
        self.covered = covered;
    }

    async fn masquerade(&mut self) {
        self.status = 400 + self.below(100) as u32;
        let site = rpc::MasqueradeString {
            content: "no".into(),
            headers: std::collections::BTreeMap::new(),
            status: self.status,
        };
        self.world
            .master
            .publish_acked(|desired| {
                desired.config.masquerade = Some(rpc::Masquerade {
                    site: Some(Wanted::String(site)),
                });
            })
            .await;
        assert_eq!(u32::from(self.is_refused("nobody's").await), self.status);
    }

    async fn add_listener(&mut self) {
        let free = UdpSocket::bind(("127.0.0.1", 0)).expect("a port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        self.world
            .master
            .publish_acked(|desired| {
                desired.config.listen.truncate(1);
                desired.config.listen.push(format!("127.0.0.1:{port}"));
            })
            .await;
        self.extra = Some(port);
        let config = self.config(port, &self.probe_credential);
        soon("connect", Client::connect(config))
            .await
            .expect("let in")
            .close()
            .await;
    }

    async fn remove_listener(&mut self) {
        let port = self.extra.take().expect("added before");
        self.world
            .master
            .publish_acked(|desired| desired.config.listen.truncate(1))
            .await;
        let agent = self.world.agent.as_ref().expect("runs").handle();
        assert_eq!(agent.listening().len(), 1);
        // Nobody is on it: it closes at once, and the port is free again.
        soon("the old port's end", async {
            while UdpSocket::bind(("127.0.0.1", port)).is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn certificate_files_are_followed_from_the_moment_they_are_in_force() {
    let mut world = World::with_users(&[(1, PROBE)]).await;
    world.start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join(name).display().to_string();
    world.site = Site::new();
    world.site.write(folder.path());
    let files = rpc::Tls {
        source: Some(rpc::tls::Source::Files(rpc::TlsFiles {
            certificate: file("cert.pem"),
            key: file("key.pem"),
        })),
        sni_guard: 0,
    };
    world
        .master
        .publish_acked(|desired| desired.config.tls = Some(files))
        .await;
    let held = world.client(PROBE).await;
    // At once: before anybody looked at them a second time.
    for _ in 0..2 {
        world.site = Site::new();
        world.site.write(folder.path());
        soon("the new certificate", async {
            while Client::connect(world.client_config(PROBE)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
    }
    // Half of a pair: what is in use stays.
    std::fs::write(folder.path().join("key.pem"), "nonsense").expect("written");
    let echo = Echo::start().await;
    let traffic = Traffic::start(&held, &echo.target(), 1, 1000).await;
    world.client(PROBE).await.close().await;
    // What could not be read is read when it can, though it looks the same then.
    let next = Site::new();
    next.write(folder.path());
    let key = folder.path().join("key.pem");
    let (right, looks) = (
        std::fs::read(&key).expect("there"),
        std::fs::metadata(&key).expect("there").modified(),
    );
    let looks = looks.expect("a time");
    let same = |content: &[u8]| {
        std::fs::write(&key, content).expect("written");
        let file = std::fs::File::options().write(true).open(&key);
        file.and_then(|file| file.set_modified(looks)).expect("set");
    };
    same(&vec![b'?'; right.len()]);
    // Longer than it takes until it is tried.
    tokio::time::sleep(Duration::from_secs(6)).await;
    same(&right);
    world.site = next;
    soon("the new certificate", async {
        while Client::connect(world.client_config(PROBE)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    traffic.finish().await;
    held.close().await;
}
