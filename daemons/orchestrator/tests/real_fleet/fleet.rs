//! A whole fleet: a database, an orchestrator, agents, and the wires between them.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::{
    origin::Origin,
    ports,
    postgres::Postgres,
    process::{Process, binary, logs},
    rest::{Rest, fetch},
    small_disk::SmallDisk,
    wire::Wire,
};

/// Where the master keeps its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    Sqlite,
    Postgres,
}

/// How often agents report traffic here.
pub(crate) const TRAFFIC_INTERVAL: &str = "500ms";

/// What is special about a fleet.
#[derive(Debug, Default)]
pub(crate) struct Shape {
    /// Master and agents have disks that can be full, where this process may mount.
    pub(crate) small_disks: bool,
    /// Everything that there is to log is logged.
    pub(crate) trace: bool,
    /// Password in the address of PostgreSQL, which takes any.
    pub(crate) database_password: String,
    /// Options of PostgreSQL.
    pub(crate) database_options: String,
    /// More lines of the orchestrator's configuration.
    pub(crate) settings: String,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: i64,
    pub(crate) name: String,
    /// Hysteria port.
    pub(crate) port: u16,
    pub(crate) wire: Wire,
    pub(crate) disk: Option<SmallDisk>,
    process: Option<Process>,
    config: PathBuf,
}

#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) postgres: Option<Postgres>,
    pub(crate) rest: Rest,
    pub(crate) nodes: Vec<Node>,
    /// Tokens with which the nodes enrolled.
    pub(crate) enrolment_tokens: Vec<String>,
    /// Under the master's database.
    pub(crate) disk: Option<SmallDisk>,
    orchestrator: Option<Process>,
    /// Where agents find the master.
    pub(crate) agents: SocketAddr,
    public: u16,
    trace: bool,
    // Last: the disks in it go first.
    folder: tempfile::TempDir,
}

/// A user with an origin of its own.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) origin: Origin,
}

impl Fleet {
    /// Starts a fleet of `nodes` nodes that are enrolled and serve.
    pub(crate) async fn start(store: Store, nodes: usize) -> Self {
        Self::start_with(store, nodes, Shape::default()).await
    }

    /// As [`Self::start`], of another shape.
    pub(crate) async fn start_with(store: Store, nodes: usize, shape: Shape) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("hy2-fleet-")
            .tempdir()
            .expect("a folder");
        let path = folder.path().to_owned();
        let small = |name: &str, mebibytes| {
            shape
                .small_disks
                .then(|| SmallDisk::mount(&path.join(name), mebibytes).ok())
                .flatten()
        };
        let postgres = (store == Store::Postgres)
            .then(|| Postgres::start(&shape.database_options, shape.small_disks));
        let disk = (store == Store::Sqlite)
            .then(|| small("master", 64))
            .flatten();
        let (grpc, api, public) = (ports::free(), ports::free(), ports::free());
        let shown = path.display();
        std::fs::create_dir_all(path.join("master")).expect("a folder");
        let database = match &postgres {
            Some(postgres) if shape.database_password.is_empty() => postgres.url.clone(),
            Some(postgres) => {
                let named = format!("postgres:{}@", shape.database_password);
                postgres.url.replacen("postgres@", &named, 1)
            }
            None => format!("sqlite:{shown}/master/fleet.db"),
        };
        let text = format!(
            "database: {database}\n\
             keyFile: {shown}/master.key\n\
             agents:\n  listen: 127.0.0.1:{grpc}\n  names: [localhost, 127.0.0.1]\n  \
             trafficInterval: {TRAFFIC_INTERVAL}\n\
             api:\n  listen: 127.0.0.1:{api}\n\
             public:\n  listen: 127.0.0.1:{public}\n  url: http://127.0.0.1:{public}/\n{}",
            shape.settings
        );
        std::fs::write(path.join("orchestrator.yaml"), text).expect("written");
        let mut fleet = Self {
            postgres,
            rest: Rest::new(api, String::new(), String::new()),
            nodes: Vec::new(),
            enrolment_tokens: Vec::new(),
            disk,
            orchestrator: None,
            agents: ([127, 0, 0, 1], grpc).into(),
            public,
            trace: shape.trace,
            folder,
        };
        fleet.start_master();
        let (admin, password) = fleet.first_admin().await;
        fleet.rest = Rest::new(api, admin, password);
        fleet
            .put_config(json!({"allow_private_targets": true, "drain_grace_s": 1}))
            .await;
        for at in 0..nodes {
            let name = format!("node-{at}");
            let disk = small(&name, 24);
            fleet.enrol(&name, disk).await;
        }
        fleet.serving().await;
        fleet
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn start_master(&mut self) {
        let config = self.path().join("orchestrator.yaml");
        let process = Process::start(
            &binary("hy2-orchestrator"),
            &[
                "run",
                "-c",
                config.to_str().expect("text"),
                "-l",
                self.level(),
            ],
            &self.path().join("orchestrator.log"),
        );
        self.orchestrator = Some(process);
    }

    /// Starts one more orchestrator on the same settings that does only what `roles` say.
    pub(crate) fn start_roles(&self, roles: &[&str], metrics: u16) -> Process {
        let config = self.path().join("orchestrator.yaml");
        let metrics = format!("127.0.0.1:{metrics}");
        let mut arguments = vec![
            "run",
            "-c",
            config.to_str().expect("text"),
            "--metrics",
            &metrics,
        ];
        arguments.extend(roles.iter().flat_map(|role| ["--role", role]));
        let log = self
            .path()
            .join(format!("orchestrator-{}.log", roles.join("-")));
        Process::start(&binary("hy2-orchestrator"), &arguments, &log)
    }

    /// The port of REST.
    pub(crate) fn api(&self) -> u16 {
        let (_, port) = self.rest.base().rsplit_once(':').expect("a port");
        port.parse().expect("a number")
    }

    /// The port of subscriptions.
    pub(crate) fn public(&self) -> u16 {
        self.public
    }

    fn level(&self) -> &'static str {
        if self.trace { "trace" } else { "info" }
    }

    pub(crate) async fn kill_master(&mut self) {
        self.orchestrator.take().expect("it runs").kill().await;
    }

    /// Has the master use an empty database, as on a host where there was none; its key file is
    /// kept apart and is there.
    pub(crate) async fn empty_database(&self) {
        let config = self.path().join("orchestrator.yaml");
        let text = std::fs::read_to_string(&config).expect("a configuration");
        let rest = text.split_once('\n').expect("the database comes first").1;
        let database = match &self.postgres {
            Some(postgres) => postgres.another().await,
            None => {
                let folder = self.path().join("another");
                std::fs::create_dir(&folder).expect("a folder");
                format!("sqlite:{}/fleet.db", folder.display())
            }
        };
        std::fs::write(&config, format!("database: {database}\n{rest}")).expect("written");
    }

    /// Ends the master in order.
    pub(crate) async fn stop_master(&mut self) {
        let process = self.orchestrator.take().expect("it runs");
        assert!(process.terminate().await.success());
    }

    /// Waits until the master answers.
    pub(crate) async fn master_ready(&mut self) {
        if let Some(status) = self.orchestrator.as_mut().and_then(Process::ended) {
            panic!("the orchestrator ended: {status}");
        }
        crate::until("the orchestrator", || self.rest.look("/nodes")).await;
    }

    async fn first_admin(&mut self) -> (String, String) {
        let out = self.path().join("orchestrator.out");
        crate::until("the first administrator", || async {
            let text = std::fs::read_to_string(&out).unwrap_or_default();
            let word = |name: &str| {
                text.lines()
                    .find_map(|line| line.strip_prefix(name))
                    .map(|word| word.trim().to_owned())
            };
            match (word("administrator "), word("password ")) {
                (Some(admin), Some(password)) => Ok((admin, password)),
                _ => Err(text),
            }
        })
        .await
    }

    async fn enrol(&mut self, name: &str, disk: Option<SmallDisk>) {
        let wire = Wire::start(self.agents).await;
        let port = ports::free();
        let folder = self.path().join(name);
        let config = self.path().join(format!("{name}.yaml"));
        let text = format!(
            "dataDir: {}/data\nmasters: [\"{}\"]\nname: {name}\npublicHost: 127.0.0.1\nlistenPort: {port}\nreconnectMax: 2s\n",
            folder.display(),
            wire.address
        );
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(&config, text).expect("written");
        let issued = self
            .rest
            .post("/enrolment-tokens", json!({"label": name}))
            .await;
        let mut enrolling = Command::new(binary("hy2-agent"))
            .args(["enrol", "-c"])
            .arg(&config)
            .args(["--ca-pin", issued["ca_pin"].as_str().expect("a pin")])
            .args(["-l", self.level()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("starts");
        let mut input = enrolling.stdin.take().expect("piped");
        let token = issued["token"].as_str().expect("a token").to_owned();
        input.write_all(token.as_bytes()).await.expect("it reads");
        drop(input);
        let ended = crate::soon("enrolment", enrolling.wait_with_output())
            .await
            .expect("ends");
        let log = self.path().join(format!("{name}.enrol.log"));
        std::fs::write(log, &ended.stderr).expect("written");
        self.enrolment_tokens.push(token);
        assert!(
            ended.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&ended.stderr)
        );
        // No token is used on a folder that is enrolled; any text will do for one.
        let again = Command::new(binary("hy2-agent"))
            .args(["enrol", "-c"])
            .arg(&config)
            .args(["--ca-pin", issued["ca_pin"].as_str().expect("a pin")])
            .arg("--token-file")
            .arg(&config)
            .kill_on_drop(true)
            .output();
        let again = crate::soon("a second enrolment", again)
            .await
            .expect("ends");
        let said = String::from_utf8_lossy(&again.stderr);
        assert!(
            !again.status.success() && said.contains("is enrolled already"),
            "{name}: {said}"
        );
        let nodes = self.rest.get("/nodes").await;
        let all = nodes["items"].as_array().expect("a list");
        let found = all.iter().find(|node| node["name"] == name);
        let id = found.expect("enrolled")["id"].as_i64().expect("a number");
        self.nodes.push(Node {
            id,
            name: name.to_owned(),
            port,
            wire,
            disk,
            process: None,
            config,
        });
        self.start_agent(self.nodes.len() - 1);
    }

    /// Where a node's agent keeps what it has.
    pub(crate) fn agent_folder(&self, at: usize) -> PathBuf {
        self.path().join(&self.nodes[at].name).join("data")
    }

    pub(crate) fn start_agent(&mut self, at: usize) {
        let log = self.path().join(format!("{}.log", self.nodes[at].name));
        let level = self.level();
        let node = &mut self.nodes[at];
        let config = node.config.to_str().expect("text");
        node.process = Some(Process::start(
            &binary("hy2-agent"),
            &["run", "-c", config, "-l", level],
            &log,
        ));
    }

    pub(crate) async fn kill_agent(&mut self, at: usize) {
        let process = self.nodes[at].process.take().expect("it runs");
        process.kill().await;
    }

    /// Ends an agent in order.
    pub(crate) async fn stop_agent(&mut self, at: usize) {
        let process = self.nodes[at].process.take().expect("it runs");
        assert!(process.terminate().await.success());
    }

    /// Waits until every node runs what is desired.
    pub(crate) async fn serving(&self) {
        crate::until("every node to run what is desired", || async {
            let nodes = self.rest.look("/nodes").await?;
            let all = nodes["items"].as_array().ok_or("no list")?;
            let good = all.iter().filter(|node| {
                node["observed_state"] == "online" && node["applied_rev"] == node["desired_rev"]
            });
            if good.count() == self.nodes.len() {
                Ok(())
            } else {
                Err(nodes.to_string())
            }
        })
        .await;
    }

    /// Every node that the master knows.
    pub(crate) async fn all_nodes(&self) -> Result<Vec<Value>, String> {
        let page = self.rest.look("/nodes?size=500").await?;
        match page["next"].is_null() {
            true => Ok(page["items"].as_array().ok_or("no list")?.clone()),
            false => Err("more than a page of nodes".to_owned()),
        }
    }

    /// Waits until every node that the master knows runs what is desired.
    pub(crate) async fn everybody_runs_what_is_desired(&self) {
        crate::until("every node to run what is desired", || async {
            let nodes = self.all_nodes().await?;
            let behind = nodes
                .iter()
                .filter(|node| node["applied_rev"] != node["desired_rev"]);
            match behind.count() {
                0 => Ok(()),
                behind => Err(format!("{behind} of {} do not", nodes.len())),
            }
        })
        .await;
    }

    /// Waits until a node runs what was desired at this moment.
    pub(crate) async fn applied(&self, at: usize) {
        let path = format!("/nodes/{}", self.nodes[at].id);
        let wanted = self.rest.get(&path).await["desired_rev"].as_i64();
        crate::until("a node to run what is desired", || async {
            let node = self.rest.look(&path).await?;
            assert_ne!(node["refused_rev"].as_i64(), wanted, "refused: {node}");
            match node["applied_rev"].as_i64() >= wanted {
                true => Ok(()),
                false => Err(node.to_string()),
            }
        })
        .await;
    }

    /// Puts the configuration of the whole fleet in force.
    pub(crate) async fn put_config(&self, body: Value) {
        self.rest
            .put("/configs/fleet/0", json!({"body": body, "message": "test"}))
            .await;
    }

    /// Makes a user whom every node serves, with `settings` added.
    pub(crate) async fn user(&self, name: &str, settings: Value) -> User {
        let nodes: Vec<i64> = self.nodes.iter().map(|node| node.id).collect();
        let mut body = json!({"username": name, "node_ids": nodes});
        for (key, value) in settings.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        let made = self.rest.post("/users", body).await;
        let user = User {
            id: made["id"].as_i64().expect("a number"),
            name: name.to_owned(),
            origin: Origin::start().await,
        };
        for at in 0..self.nodes.len() {
            self.applied(at).await;
        }
        user
    }

    /// Fetches a user's subscription and returns the share link of each node.
    pub(crate) async fn links(&self, user: &User) -> Vec<String> {
        let path = format!("/users/{}/subscription", user.id);
        let subscription = self.rest.get(&path).await;
        let url = subscription["url"].as_str().expect("an address");
        assert!(
            url.starts_with(&format!("http://127.0.0.1:{}/", self.public)),
            "{url}"
        );
        let text = crate::until("the subscription", || async {
            fetch(&format!("{url}/plain")).await
        })
        .await;
        self.nodes
            .iter()
            .map(|node| {
                let place = format!(":{}", node.port);
                let found = text
                    .lines()
                    .find(|line| line.starts_with("hy") && line.contains(&place));
                found
                    .unwrap_or_else(|| panic!("{} is not in {text}", node.name))
                    .to_owned()
            })
            .collect()
    }

    /// Returns what the subscription of a user who may not connect says.
    pub(crate) async fn links_of_disabled(&self, user: &User) -> String {
        let path = format!("/users/{}/subscription", user.id);
        let subscription = self.rest.get(&path).await;
        let url = subscription["url"].as_str().expect("an address");
        let text = fetch(&format!("{url}/plain")).await.expect("an answer");
        text.lines().filter(|line| line.starts_with("hy")).collect()
    }

    /// What REST counted for a user.
    pub(crate) async fn counted(&self, user: &User) -> Result<(u64, u64), String> {
        sums(
            &self
                .rest
                .look(&format!("/users/{}/traffic", user.id))
                .await?,
        )
    }

    /// What REST counted for a node.
    pub(crate) async fn counted_of_node(&self, at: usize) -> Result<(u64, u64), String> {
        let path = format!("/traffic/summary?node_id={}", self.nodes[at].id);
        sums(&self.rest.look(&path).await?)
    }

    /// Waits until REST says exactly what the origin says.
    pub(crate) async fn counted_exactly(&self, user: &User) {
        crate::until("REST to say what the origin says", || async {
            let (origin, rest) = (user.origin.bytes(), self.counted(user).await?);
            if origin == rest {
                Ok(())
            } else {
                Err(format!("{}: origin {origin:?}, REST {rest:?}", user.name))
            }
        })
        .await;
    }

    /// What an agent itself counted, and how many batches wait with it.
    pub(crate) async fn agent_says(&self, at: usize) -> Result<((u64, u64), u64), String> {
        let asked = Command::new(binary("hy2-agent"))
            .args(["status", "-c"])
            .arg(&self.nodes[at].config)
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&asked.stdout).into_owned();
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name))
                .ok_or_else(|| format!("{name}: {text}{}", String::from_utf8_lossy(&asked.stderr)))
        };
        let numbers = |text: &str| -> Vec<u64> {
            text.split(|c: char| !c.is_ascii_digit())
                .filter_map(|word| word.parse().ok())
                .collect()
        };
        let (moved, spool) = (numbers(field("moved")?), numbers(field("spool")?));
        match (&moved[..], &spool[..]) {
            ([up, down], [batches, ..]) => Ok(((*up, *down), *batches)),
            _ => Err(text.clone()),
        }
    }

    /// Waits until the store has exactly what every agent counted.
    pub(crate) async fn spool_is_store(&self) {
        for at in 0..self.nodes.len() {
            crate::until("the store to have what an agent counted", || async {
                let (cells, batches) = self.agent_says(at).await?;
                let stored = self.counted_of_node(at).await?;
                if cells == stored && batches == 0 {
                    Ok(())
                } else {
                    Err(format!(
                        "{}: cells {cells:?}, store {stored:?}, {batches} batches wait",
                        self.nodes[at].name
                    ))
                }
            })
            .await;
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            crate::say(&logs(self.path()));
        }
    }
}

fn sums(traffic: &Value) -> Result<(u64, u64), String> {
    let field = |name: &str| traffic[name].as_u64().ok_or_else(|| traffic.to_string());
    Ok((field("tx_bytes")?, field("rx_bytes")?))
}
