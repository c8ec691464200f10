//! Changes of every kind, at random, under live streams whose every byte is checked.

use std::{
    collections::BTreeMap,
    net::UdpSocket,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    client::{Ours, Ping, ping, tool},
    fleet::{Fleet, Store, User},
    load::{Load, OnCut, Plan},
    ports,
    process::binary,
    random::Random,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    UserAdded,
    UserRemoved,
    CredentialRotated,
    ConnectionLimit,
    Bandwidth,
    Certificate,
    /// The same files with another content.
    CertificateFiles,
    Obfuscation,
    Masquerade,
    ListenerAdded,
    ListenerRemoved,
    Udp,
    PrivateTargets,
    SpeedTest,
    /// Refused by the master.
    Invalid,
    /// Accepted by the master, refused by the node.
    Impossible,
}

const KINDS: [Kind; 16] = [
    Kind::UserAdded,
    Kind::UserRemoved,
    Kind::CredentialRotated,
    Kind::ConnectionLimit,
    Kind::Bandwidth,
    Kind::Certificate,
    Kind::CertificateFiles,
    Kind::Obfuscation,
    Kind::Masquerade,
    Kind::ListenerAdded,
    Kind::ListenerRemoved,
    Kind::Udp,
    Kind::PrivateTargets,
    Kind::SpeedTest,
    Kind::Invalid,
    Kind::Impossible,
];

const KEY: &str = "an obfuscation key of the test";

/// What the test knows of the node that it changes.
struct Model {
    fleet: Fleet,
    random: Random,
    probe: User,
    /// The probe's link, with the pin of the certificate in use.
    link: String,
    /// The node's own configuration.
    body: Value,
    covered: bool,
    extra: Option<u16>,
    /// Certificate files in use, if it is files.
    files: Option<PathBuf>,
    count: u64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_every_kind_reset_no_stream_and_each_has_its_effect() {
    // 512 changes, 500 streams.
    let (each, clients, streams) = if crate::full() {
        (32, 10, 50)
    } else {
        (2, 4, 10)
    };
    let mut random = Random::seeded("changes");
    let fleet = Fleet::start(Store::Sqlite, 1).await;
    let probe = fleet.user("probe", json!({})).await;
    let mut live = Vec::new();
    for at in 0..clients {
        let user = fleet.user(&format!("live-{at}"), json!({})).await;
        let client = Ours::start(fleet.path(), &fleet.links(&user).await[0]).await;
        let plan = Plan {
            streams,
            datagrams: 1,
            chunk: 500,
            pause: Duration::from_millis(if crate::full() { 500 } else { 100 }),
            on_cut: OnCut::Fail,
        };
        let targets = (user.origin.tcp, user.origin.udp);
        let load = Load::start(client.door, targets, plan, random.next()).await;
        live.push((user, client, load));
    }
    let link = fleet.links(&probe).await.remove(0);
    let mut model = Model {
        fleet,
        probe,
        link,
        body: json!({}),
        covered: false,
        extra: None,
        files: None,
        count: 0,
        random: random.clone(),
    };
    let mut done = BTreeMap::<Kind, usize>::new();
    for (at, kind) in random.order(&KINDS, each).into_iter().enumerate() {
        let changed = tokio::time::timeout(4 * crate::PATIENCE, model.change(kind)).await;
        assert!(changed.is_ok(), "change {at}, {kind:?} took too long");
        for (user, _, load) in &live {
            assert_eq!(
                load.cuts(),
                0,
                "a stream of {} after change {at}, {kind:?}",
                user.name
            );
        }
        *done.entry(kind).or_default() += 1;
    }
    let (mut moved, mut rounds) = (0, 0);
    for (user, _, load) in live {
        load.more(1).await;
        rounds += load.rounds();
        load.finish().await;
        model.fleet.counted_exactly(&user).await;
        moved += user.origin.bytes().0;
    }
    crate::say(&format!(
        "changes: {} of {} kinds, {each} of each, under {} streams and {clients} UDP sessions: none \
         was cut; {moved} bytes in {rounds} rounds, counted exactly",
        each * KINDS.len(),
        done.len(),
        clients * streams
    ));
}

impl Model {
    fn settings(&self, covered: bool) -> String {
        match covered {
            true => format!("obfs: {{type: salamander, salamander: {{password: {KEY}}}}}\n"),
            false => String::new(),
        }
    }

    async fn ping(&self, link: &str) -> Ping {
        self.ping_with(link, "").await
    }

    async fn ping_with(&self, link: &str, more: &str) -> Ping {
        let settings = self.settings(self.covered) + more;
        ping(self.fleet.path(), link, &settings, self.probe.origin.tcp).await
    }

    async fn arrives(&self, link: &str) {
        let found = self.ping(link).await;
        assert!(found.arrived(), "{link}: {found:?}");
    }

    /// A link of a subscription, with the pin in use: certificates from files have none there.
    async fn link_of(&self, user: &User) -> String {
        let fresh = self.fleet.links(user).await.remove(0);
        let (_, rest) = fresh.split_once("//").expect("a link");
        let (auth, _) = rest.split_once('@').expect("a credential");
        with_auth(&self.link, auth)
    }

    /// Puts the node's configuration in force and waits until it is.
    async fn put(&self) {
        let path = format!("/configs/node/{}", self.fleet.nodes[0].id);
        self.fleet.rest.put(&path, json!({"body": self.body})).await;
        self.fleet.applied(0).await;
    }

    async fn change(&mut self, kind: Kind) {
        self.count += 1;
        match kind {
            Kind::UserAdded => {
                let user = self
                    .fleet
                    .user(&format!("added-{}", self.count), json!({}))
                    .await;
                self.arrives(&self.link_of(&user).await).await;
            }
            Kind::UserRemoved => {
                let user = self
                    .fleet
                    .user(&format!("removed-{}", self.count), json!({}))
                    .await;
                let link = self.link_of(&user).await;
                self.arrives(&link).await;
                self.fleet.rest.delete(&format!("/users/{}", user.id)).await;
                self.fleet.applied(0).await;
                assert_eq!(self.ping(&link).await.code, Ping::REFUSED);
            }
            Kind::CredentialRotated => {
                let path = format!("/users/{}/credentials/rotate", self.probe.id);
                self.fleet.rest.post(&path, json!({})).await;
                self.fleet.applied(0).await;
                assert_eq!(self.ping(&self.link).await.code, Ping::REFUSED);
                self.link = self.link_of(&self.probe).await;
                self.arrives(&self.link).await;
            }
            Kind::ConnectionLimit => self.connection_limit().await,
            Kind::Bandwidth => {
                let mbps = 1 + self.random.below(99);
                self.body["down_bytes_per_s"] = json!(mbps * 125_000);
                self.put().await;
                let found = self
                    .ping_with(&self.link, "bandwidth: {up: 900 mbps, down: 900 mbps}\n")
                    .await;
                let wanted = format!("send rate: {mbps} mbps)");
                assert!(
                    found.said.to_lowercase().contains(&wanted),
                    "{wanted}: {found:?}"
                );
            }
            Kind::Certificate => self.certificate().await,
            Kind::CertificateFiles => {
                if self.files.is_none() {
                    self.use_files().await;
                }
                let old = self.link.clone();
                let file = self.files.clone().expect("in use");
                let pin = make_certificate(&file, &sni(&old));
                self.link = with_pin(&old, &pin);
                crate::until("the new certificate", || async {
                    let found = self.ping(&self.link).await;
                    found.arrived().then_some(()).ok_or(found.said)
                })
                .await;
                assert_eq!(self.ping(&old).await.code, Ping::CERTIFICATE);
            }
            Kind::Obfuscation => self.obfuscation().await,
            Kind::Masquerade => {
                let status = 400 + self.random.below(100);
                self.body["masquerade"] =
                    json!({"string": {"content": "nothing here", "status": status}});
                self.put().await;
                let found = self.ping(&with_auth(&self.link, "wrong")).await;
                assert_eq!(found.code, Ping::REFUSED);
                assert!(
                    found.said.contains(&status.to_string()),
                    "{status}: {found:?}"
                );
            }
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
                let disabled = self.body["udp_disabled"] != true;
                self.body["udp_disabled"] = json!(disabled);
                self.put().await;
                let wanted = if disabled { "UDP: no" } else { "UDP: yes" };
                let found = self.ping(&self.link).await;
                assert!(found.said.contains(wanted), "{wanted}: {found:?}");
            }
            Kind::PrivateTargets => {
                for allowed in [false, true] {
                    self.body["allow_private_targets"] = json!(allowed);
                    self.put().await;
                    let found = self.ping(&self.link).await;
                    assert_eq!(found.arrived(), allowed, "{found:?}");
                    assert!(allowed || found.said.contains("not reached"), "{found:?}");
                }
            }
            Kind::SpeedTest => {
                let offered = self.body["speed_test"] != true;
                self.body["speed_test"] = json!(offered);
                self.put().await;
                let arguments = ["speedtest", "--data-size", "1000"];
                let settings = self.settings(self.covered);
                let output = tool(self.fleet.path(), &self.link, &settings, &arguments).await;
                assert_eq!(output.status.success(), offered, "{output:?}");
            }
            Kind::Invalid => {
                let (field, value, path) = self.random.pick(&[
                    ("listen", "[\"nowhere\"]", "listen[0]"),
                    ("udp_idle_s", "\"long\"", "udp_idle_s"),
                    (
                        "masquerade",
                        "{\"string\": {\"content\": \"\", \"status\": 99}}",
                        "masquerade.string.status",
                    ),
                    (
                        "obfs",
                        "{\"salamander\": {\"password\": \"short\"}}",
                        "obfs.salamander.password",
                    ),
                ]);
                let mut body = self.body.clone();
                body[field] = serde_json::from_str(value).expect("JSON");
                let node = format!("/configs/node/{}", self.fleet.nodes[0].id);
                let asked = json!({"body": body});
                let put = self
                    .fleet
                    .rest
                    .try_call(Method::PUT, &node, Some(&asked))
                    .await;
                let (status, problem) = put.expect("an answer");
                assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
                let named = problem["errors"][0]["path"].as_str().unwrap_or_default();
                assert!(named.ends_with(path), "{path}: {problem}");
                self.arrives(&self.link).await;
            }
            Kind::Impossible => self.impossible().await,
        }
    }

    async fn connection_limit(&self) {
        let user = self
            .fleet
            .user(&format!("limited-{}", self.count), json!({}))
            .await;
        let link = self.link_of(&user).await;
        let settings = self.settings(self.covered);
        let holder = Ours::start_with(self.fleet.path(), &link, &settings).await;
        crate::until("a connection", || async {
            let opened = holder.door.tcp(user.origin.tcp).await;
            opened.map_err(|error| error.to_string())
        })
        .await;
        self.arrives(&link).await;
        let path = format!("/users/{}", user.id);
        for (limit, code) in [(json!(1), Ping::REFUSED), (json!(null), Some(0))] {
            self.fleet
                .rest
                .patch(&path, json!({"max_connections": limit}))
                .await;
            self.fleet.applied(0).await;
            // The node may not have seen yet that the ping before is gone.
            crate::until("the limit's effect", || async {
                let found = self.ping(&link).await;
                (found.code == code).then_some(()).ok_or(found.said)
            })
            .await;
        }
    }

    /// Between the issued certificate and files.
    async fn certificate(&mut self) {
        let old = self.link.clone();
        if self.files.take().is_some() {
            self.body.as_object_mut().expect("an object").remove("tls");
            self.put().await;
            // The subscription has the pin again.
            self.link = self.fleet.links(&self.probe).await.remove(0);
            self.link = plain(&self.link);
        } else {
            self.use_files().await;
        }
        self.arrives(&self.link).await;
        assert_eq!(self.ping(&old).await.code, Ping::CERTIFICATE);
    }

    async fn use_files(&mut self) {
        let file = self
            .fleet
            .path()
            .join(format!("certificate-{}.pem", self.count));
        let pin = make_certificate(&file, &sni(&self.link));
        self.body["tls"] = json!({"files": {
            "certificate": file.to_str().expect("text"),
            "key": file.with_extension("key").to_str().expect("text"),
        }});
        self.put().await;
        self.link = with_pin(&self.link, &pin);
        self.files = Some(file);
    }

    /// Between plain and a key, each accepted beside the other, so that live connections stay.
    async fn obfuscation(&mut self) {
        self.covered = !self.covered;
        let until = SystemTime::now() + Duration::from_secs(3600);
        let until = until.duration_since(UNIX_EPOCH).expect("after 1970");
        let until = json!(u64::try_from(until.as_millis()).expect("not yet"));
        let key = json!({"salamander": {"password": KEY}});
        if self.covered {
            self.body["obfs"] = key;
            self.body["previous_obfs"] = json!({"until": until});
        } else {
            self.body.as_object_mut().expect("an object").remove("obfs");
            self.body["previous_obfs"] = json!({"obfs": key, "until": until});
        }
        self.put().await;
        for covered in [false, true] {
            let settings = self.settings(covered);
            let target = self.probe.origin.tcp;
            let found = ping(self.fleet.path(), &self.link, &settings, target).await;
            assert!(found.arrived(), "{covered}: {found:?}");
        }
    }

    fn listen(&self, extra: Option<u16>) -> Value {
        let ports = std::iter::once(self.fleet.nodes[0].port).chain(extra);
        ports.map(|port| json!(format!(":{port}"))).collect()
    }

    async fn add_listener(&mut self) {
        let port = ports::free();
        self.body["listen"] = self.listen(Some(port));
        self.put().await;
        self.extra = Some(port);
        let own = format!(":{}", self.fleet.nodes[0].port);
        self.arrives(&self.link.replace(&own, &format!(":{port}")))
            .await;
    }

    /// An old listener closes after its drain; the connections on it are over by then.
    async fn remove_listener(&mut self) {
        let port = self.extra.take().expect("there is one");
        self.body["listen"] = self.listen(None);
        self.put().await;
        crate::until("the end of a listener", || async {
            UdpSocket::bind(("::", port))
                .map(drop)
                .map_err(|error| error.to_string())
        })
        .await;
    }

    async fn impossible(&mut self) {
        // An address that this host does not have.
        let mut body = self.body.clone();
        body["listen"] = json!([format!(":{}", self.fleet.nodes[0].port), "192.0.2.1:443"]);
        let node = self.fleet.nodes[0].id;
        let path = format!("/configs/node/{node}");
        self.fleet.rest.put(&path, json!({"body": body})).await;
        let wanted = self.fleet.rest.get(&format!("/nodes/{node}")).await["desired_rev"].as_i64();
        crate::until("the node's refusal", || async {
            let node = self.fleet.rest.look(&format!("/nodes/{node}")).await?;
            if node["refused_rev"].as_i64() != wanted {
                return Err(node.to_string());
            }
            let errors = node["refused_errors"].to_string();
            assert!(errors.contains("listen[1]"), "{errors}");
            Ok(())
        })
        .await;
        self.arrives(&self.link).await;
        self.put().await;
    }
}

fn sni(link: &str) -> String {
    let url = url::Url::parse(link).expect("a link");
    let found = url.query_pairs().find(|(key, _)| key == "sni");
    // Not named where it is the host.
    found.map_or_else(
        || url.host_str().expect("a host").to_owned(),
        |(_, name)| name.into_owned(),
    )
}

/// The link without what the test says of obfuscation itself.
fn plain(link: &str) -> String {
    let mut url = url::Url::parse(link).expect("a link");
    let kept: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(key, _)| !key.starts_with("obfs"))
        .map(|(key, value)| (key.into_owned(), value.into_owned()))
        .collect();
    url.query_pairs_mut().clear().extend_pairs(kept);
    url.to_string()
}

fn with_pin(link: &str, pin: &str) -> String {
    let mut url = url::Url::parse(link).expect("a link");
    let mut kept: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(key, _)| key != "pinSHA256")
        .map(|(key, value)| (key.into_owned(), value.into_owned()))
        .collect();
    kept.push(("pinSHA256".to_owned(), pin.to_owned()));
    url.query_pairs_mut().clear().extend_pairs(kept);
    url.to_string()
}

fn with_auth(link: &str, auth: &str) -> String {
    let (scheme, rest) = link.split_once("//").expect("a link");
    let (_, place) = rest.split_once('@').expect("a credential");
    format!("{scheme}//{auth}@{place}")
}

/// Makes a certificate for `host` in `file`, its key beside it, and returns its fingerprint.
fn make_certificate(file: &Path, host: &str) -> String {
    let made = std::process::Command::new(binary("hy2"))
        .args(["cert", "--overwrite", "--host", host, "--cert"])
        .arg(file)
        .arg("--key")
        .arg(file.with_extension("key"))
        .output()
        .expect("runs");
    let said = String::from_utf8(made.stdout).expect("text");
    let pin = said
        .lines()
        .find_map(|line| line.strip_prefix("pinSHA256: "));
    pin.unwrap_or_else(|| panic!("{said}{}", String::from_utf8_lossy(&made.stderr)))
        .to_owned()
}
