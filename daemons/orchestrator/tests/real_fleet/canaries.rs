//! Secrets of every kind are planted in a fleet that logs everything, and looked for in everything that the fleet
//! leaves behind: logs, database, write-ahead log, dump, backups, the nodes' disks, Redis, webhooks.
//!
//! What a place may hold is named ([`ALLOWED`]), and has to be found there: a search that finds nothing proves
//! nothing. Marks that are no secrets have to be found, too.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, Method, StatusCode};
use hy2_master_sdk::auth::totp::SecondFactor;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    task::JoinSet,
};
use url::Url;

use crate::{
    client::{Ours, ping},
    fleet::{Fleet, Shape, Store, User},
    load::{Load, OnCut, Plan},
    needles::{Needles, Searcher},
    ports,
    process::binary,
    rest::fetch,
};

/// What may be where, and is: name of the secret and end of the path.
const ALLOWED: &[(&str, &str)] = &[
    // Printed once, for the person who starts it.
    ("the first password", "orchestrator.out"),
    ("a recovered password", "recover.out"),
    ("the master key", "master.key"),
    ("the node's private key", "data/node.key"),
    ("a private key", "data/node.key"),
];

/// What is looked up by its name is asked of the database: PostgreSQL writes it down, because it is told here to write
/// down every parameter. As it is shipped it does not.
const LOOKED_UP: (&str, &str) = ("a password typed as a name", "data/log");

/// A word that nobody else uses.
fn word(of: &str) -> String {
    format!("{of}-{:032x}", rand::random::<u128>())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_secrets_are_found_nowhere_in_clear_on_sqlite() {
    Hunt::run(Store::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_secrets_are_found_nowhere_in_clear_on_postgresql() {
    Hunt::run(Store::Postgres).await;
}

struct Hunt {
    fleet: Fleet,
    redis: Redis,
    hooks: Receiver,
    /// What must not be found.
    secrets: Needles,
    /// What must be found.
    marks: Needles,
    /// What answers said that hold no secret.
    said: Vec<u8>,
    passphrase: String,
}

impl Hunt {
    async fn run(store: Store) {
        let mut hunt = Self::start(store).await;
        hunt.administrators().await;
        hunt.programs().await;
        hunt.refused().await;
        hunt.users().await;
        hunt.lists().await;
        hunt.host_commands().await;
        let places = hunt.places(store).await;
        hunt.keys();
        hunt.judge(&places);
    }

    async fn start(store: Store) -> Self {
        let (mut secrets, mut marks) = (Needles::default(), Needles::default());
        let (of_database, of_redis) = (word("database"), word("redis"));
        secrets.text("the database's password", &of_database);
        secrets.text("the password of Redis", &of_redis);
        let redis = Redis::start(&of_redis).await;
        let shape = Shape {
            trace: true,
            database_password: of_database,
            // The server's log holds each statement with its parameters, whether it fails or not.
            database_options: "-c log_statement=all -c log_parameter_max_length=-1 \
                               -c log_parameter_max_length_on_error=-1"
                .to_owned(),
            settings: format!("redis: {}\nallowPrivateWebhooks: true\n", redis.url()),
            ..Shape::default()
        };
        let fleet = Fleet::start_with(store, 2, shape).await;
        for token in &fleet.enrolment_tokens {
            secrets.token("an enrolment token", token);
        }
        secrets.text("the first password", fleet.rest.password());
        for node in &fleet.nodes {
            marks.text("a node's master", &node.wire.address.to_string());
        }
        for node in fleet.rest.get("/nodes").await["items"]
            .as_array()
            .expect("a list")
        {
            marks.text("a node's number", node["uid"].as_str().expect("text"));
        }
        Self {
            fleet,
            redis,
            hooks: Receiver::start().await,
            secrets,
            marks,
            said: Vec::new(),
            passphrase: word("passphrase"),
        }
    }

    /// Asks as nobody.
    async fn raw(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let path = format!("/api/v1{path}");
        let body = body.to_string();
        Answer::of(
            self.fleet
                .rest
                .raw(Method::POST, &path, headers, &body)
                .await,
        )
    }

    /// Remembers the tokens of a session.
    fn session(&mut self, answer: &Answer) -> (String, String) {
        let value = answer.good();
        let (access, refresh) = (text(&value["access_token"]), text(&value["refresh_token"]));
        self.secrets.text("an access token", &access);
        self.secrets.token("a refresh token", &refresh);
        (access, refresh)
    }

    /// Logs in in every way, and wrongly.
    async fn administrators(&mut self) {
        let (given, own) = (word("given"), word("own"));
        self.secrets.text("a given password", &given);
        self.secrets.text("an own password", &own);
        let mark = word("admin");
        self.marks.text("an administrator's name", &mark);
        let new = json!({"username": mark, "password": given, "role": "operator"});
        self.fleet.rest.post("/admins", new).await;
        let login = json!({"username": mark, "password": given});
        let (access, refresh) = {
            let answer = self.raw("/auth/login", &[], &login).await;
            self.session(&answer)
        };
        // Renewed, and renewed again with what is spent.
        let spent = json!({"refresh_token": refresh});
        let answer = self.raw("/auth/refresh", &[], &spent).await;
        self.session(&answer);
        assert_eq!(
            self.raw("/auth/refresh", &[], &spent).await.status,
            StatusCode::UNAUTHORIZED
        );
        let bearer = format!("Bearer {access}");
        let change = json!({"old": given, "new": own});
        let ended = self
            .raw("/auth/password", &[("authorization", &bearer)], &change)
            .await;
        assert_eq!(
            ended.status,
            StatusCode::UNAUTHORIZED,
            "the reuse ended the session"
        );
        let answer = self.raw("/auth/login", &[], &login).await;
        let (access, _) = self.session(&answer);
        let bearer = format!("Bearer {access}");
        self.raw("/auth/password", &[("authorization", &bearer)], &change)
            .await
            .good();
        // A second factor.
        let login = json!({"username": mark, "password": own});
        let answer = self.raw("/auth/login", &[], &login).await;
        let (access, _) = self.session(&answer);
        let token = format!("Bearer {access}");
        let bearer = [("authorization", token.as_str())];
        let begun = self.raw("/auth/totp", &bearer, &Value::Null).await.good();
        let seed = text(&begun["secret"]);
        let bytes = base32(&seed);
        self.secrets.text("a second factor's seed", &seed);
        self.secrets.bytes("a second factor's seed", &bytes);
        let factor = SecondFactor::new(&bytes, "hy2", "test").expect("a secret");
        let now = SystemTime::UNIX_EPOCH
            .elapsed()
            .expect("after 1970")
            .as_secs();
        let code = |ahead: i64| factor.code(i64::try_from(now).expect("not for ever") + ahead);
        let confirm = json!({"code": code(0)});
        self.raw("/auth/totp/confirm", &bearer, &confirm)
            .await
            .good();
        // As a browser does; the code of the step that follows is taken, too.
        let origin = self.fleet.rest.origin().to_owned();
        let login = json!({"username": mark, "password": own, "code": code(30), "cookies": true});
        let answer = self
            .raw("/auth/login", &[("origin", &origin)], &login)
            .await;
        let csrf = text(&answer.good()["csrf_token"]);
        self.secrets.text("a token against forged requests", &csrf);
        let cookies: Vec<String> = answer
            .headers
            .get_all("set-cookie")
            .iter()
            .map(|cookie| {
                cookie
                    .to_str()
                    .expect("text")
                    .split(';')
                    .next()
                    .expect("one")
                    .to_owned()
            })
            .collect();
        assert_eq!(cookies.len(), 2, "{cookies:?}");
        for cookie in &cookies {
            self.secrets.text("a cookie", cookie);
        }
        let jar = cookies.join("; ");
        let headers = [
            ("origin", origin.as_str()),
            ("cookie", &jar),
            ("x-csrf-token", &csrf),
        ];
        let plan = json!({"name": "by the panel"});
        self.raw("/plans", &headers, &plan).await.good();
    }

    /// Tokens and webhooks, with keys by which answers are kept.
    async fn programs(&mut self) {
        let rest = self.fleet.rest.clone();
        let bearer = format!("Bearer {}", rest.bearer().await);
        let keyed = [
            ("authorization", bearer.as_str()),
            ("idempotency-key", "canary"),
        ];
        let new = json!({"name": "program", "scopes": ["users:read"]});
        let made = self.raw("/api-tokens", &keyed, &new).await.good();
        let again = self.raw("/api-tokens", &keyed, &new).await.good();
        assert_eq!(made, again, "the answer was kept");
        let token = text(&made["token"]);
        self.secrets.token("an API token", &token);
        let of_program = format!("Bearer {token}");
        let headers = [("authorization", of_program.as_str())];
        let nothing = self
            .raw("/users", &headers, &json!({"username": "x"}))
            .await;
        assert_eq!(nothing.status, StatusCode::FORBIDDEN);
        let hook = json!({"url": format!("http://{}/hook", self.hooks.address)});
        let secret = text(&rest.post("/webhooks", hook).await["secret"]);
        self.secrets.text("a webhook's secret", &secret);
        let pin = rest.post("/enrolment-tokens", json!({})).await;
        self.marks
            .text("the authority's pin", &text(&pin["ca_pin"]));
        let unused = rest
            .post("/enrolment-tokens", json!({"label": "unused"}))
            .await;
        self.secrets
            .token("an enrolment token", &text(&unused["token"]));
    }

    /// Secrets in requests that are refused: mistyped, misplaced, wrong.
    async fn refused(&mut self) {
        let rest = self.fleet.rest.clone();
        let bearer = format!("Bearer {}", rest.bearer().await);
        let with = [("authorization", bearer.as_str())];
        let typed = word("mistyped");
        self.secrets.text("a mistyped password", &typed);
        let wrong = json!({"username": "admin", "password": typed});
        assert_eq!(
            self.raw("/auth/login", &[], &wrong).await.status,
            StatusCode::UNAUTHORIZED
        );
        // A password where the name belongs.
        let misplaced = word("misplaced");
        self.secrets.text(LOOKED_UP.0, &misplaced);
        let wrong = json!({"username": misplaced, "password": "admin"});
        let answer = self.raw("/auth/login", &[], &wrong).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        let bodies = [
            json!({"username": 7, "password": typed}),
            json!({"username": "x", "password": {"text": typed}}),
            json!({"username": "x", "password": [typed]}),
            json!({"username": "x", "passwort": typed}),
            json!({"username": "x", "quota_bytes": typed}),
            json!({"username": "x", "password": "short", "seed": typed}),
        ];
        for body in bodies {
            let answer = self.raw("/users", &with, &body).await;
            assert!(answer.status.is_client_error(), "{body}: {}", answer.status);
        }
        let broken = format!("{{\"username\": \"x\", \"password\": \"{typed}\" ");
        let path = "/api/v1/users";
        let answer = Answer::of(rest.raw(Method::POST, path, &with, &broken).await);
        assert!(answer.status.is_client_error(), "{}", answer.status);
        for scheme in ["Bearer", "Basic"] {
            let garbage = format!("{scheme} {typed}");
            let answer = self
                .raw("/users", &[("authorization", &garbage)], &json!({}))
                .await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        }
        for body in [
            json!({"body": {"obfs": {"salamander": {"password": [typed]}}}}),
            json!({"body": {"obfs": {"salamandar": {"password": typed}}}}),
            json!({"body": {"obfs": {"salamander": typed}}}),
        ] {
            let (status, _) = rest
                .try_call(Method::PUT, "/configs/fleet/0", Some(&body))
                .await
                .expect("an answer");
            assert!(status.is_client_error(), "{body}: {status}");
        }
        // Somebody else's export: credentials in it are not taken over.
        let export = json!({"users": [{"username": "imported", "status": "active", "data_limit": 5,
            "proxies": {"trojan": {"password": typed}}, "subscription_url": format!("/sub/{typed}")}]});
        rest.post(
            "/users:import",
            json!({"format": "marzban", "data": export}),
        )
        .await;
        let guess = format!("http://127.0.0.1:{}/sub/{typed}", self.fleet.public());
        assert!(fetch(&guess).await.is_err());
    }

    /// Users whose credentials are chosen, derived, exchanged and used.
    async fn users(&mut self) {
        let rest = self.fleet.rest.clone();
        let (first, second) = (word("obfs"), word("obfs"));
        self.secrets.text("an obfuscation key", &first);
        self.secrets.text("an obfuscation key", &second);
        let body = |key: &str| {
            json!({"allow_private_targets": true, "drain_grace_s": 1,
                   "obfs": {"salamander": {"password": key}}})
        };
        self.fleet.put_config(body(&first)).await;
        // Two obfuscations are accepted at once: plain, from before the first, is given up for it.
        let mut next = body(&second);
        next["previous_obfs"] = json!({
            "obfs": {"salamander": {"password": first}}, "until": 4_000_000_000_000_i64,
        });
        self.fleet.put_config(next).await;
        let chosen = word("chosen");
        self.secrets.text("a chosen credential", &chosen);
        let mark = word("note");
        self.marks.text("a user's note", &mark);
        let ann = self
            .fleet
            .user("ann", json!({"password": chosen, "note": mark}))
            .await;
        let bob = self.fleet.user("bob", json!({})).await;
        let outdated = self.links(&bob).await;
        rest.post(&format!("/users/{}/credentials/rotate", bob.id), json!({}))
            .await;
        rest.post(&format!("/users/{}/subscription/rotate", bob.id), json!({}))
            .await;
        self.fleet.serving().await;
        let plan = Plan {
            streams: 1,
            datagrams: 1,
            chunk: 5_000,
            pause: Duration::from_millis(5),
            on_cut: OnCut::Fail,
        };
        let mut loads = Vec::new();
        let mut clients = Vec::new();
        for user in [&ann, &bob] {
            let targets = (user.origin.tcp, user.origin.udp);
            for (seed, link) in self.links(user).await.iter().enumerate() {
                let client = Ours::start(self.fleet.path(), link).await;
                loads.push(Load::start(client.door, targets, plan, seed as u64).await);
                clients.push(client);
            }
        }
        let wrong = word("wrong");
        self.secrets.text("a wrong credential", &wrong);
        for link in [outdated[0].clone(), with_credential(&outdated[1], &wrong)] {
            let tried = ping(self.fleet.path(), &link, "", ann.origin.tcp).await;
            assert!(!tried.arrived(), "{}", tried.said);
        }
        for load in &loads {
            load.more(20).await;
        }
        for load in loads {
            load.finish().await;
        }
        self.fleet.counted_exactly(&ann).await;
        self.fleet.counted_exactly(&bob).await;
        // What is only written at an end or a start.
        for at in 0..self.fleet.nodes.len() {
            self.fleet.kill_agent(at).await;
            self.fleet.start_agent(at);
        }
        self.fleet.kill_master().await;
        self.fleet.start_master();
        self.fleet.master_ready().await;
        self.fleet.serving().await;
        rest.post(&format!("/users/{}/kick", ann.id), json!({}))
            .await;
    }

    /// Fetches a user's subscription in every form; remembers its token and the credentials in it.
    async fn links(&mut self, user: &User) -> Vec<String> {
        let rest = self.fleet.rest.clone();
        let subscription = rest.get(&format!("/users/{}/subscription", user.id)).await;
        let url = text(&subscription["url"]);
        let token = url.rsplit('/').next().expect("a token");
        self.secrets.token("a subscription's token", token);
        for format in [
            "plain", "base64", "sing-box", "clash", "hysteria", "qr", "info",
        ] {
            fetch(&format!("{url}/{format}")).await.expect(format);
        }
        let links = self.fleet.links(user).await;
        for link in &links {
            let credential = Url::parse(link).expect("a link").username().to_owned();
            if !credential.starts_with("chosen-") {
                self.secrets.token("a derived credential", &credential);
            }
        }
        links
    }

    /// Reads what people and programs are shown of all this.
    async fn lists(&mut self) {
        let rest = self.fleet.rest.clone();
        for path in [
            "/audit?size=500",
            "/admins",
            "/users?size=500",
            "/users:export",
            "/api-tokens",
            "/auth/sessions",
            "/webhooks",
            "/settings",
            "/enrolment-tokens",
            "/nodes",
            "/configs/fleet/0/revisions",
        ] {
            let path = format!("/api/v1{path}");
            let bearer = format!("Bearer {}", rest.bearer().await);
            let headers = [("authorization", bearer.as_str())];
            let (status, _, body) = rest.raw(Method::GET, &path, &headers, "").await;
            assert_eq!(status, StatusCode::OK, "{path}");
            self.said.extend_from_slice(&body);
        }
        // What the nodes' own logs show to an operator.
        for node in &self.fleet.nodes {
            let path = format!("/nodes/{}/logs?lines=1000&level=debug", node.id);
            // A node that has much to write answers when it can.
            let lines = crate::until("a node's log", || rest.look(&path)).await;
            let all = lines["items"].as_array().expect("a list");
            assert!(all.iter().any(|line| line["level"] == "info"), "{lines}");
            self.said.extend_from_slice(lines.to_string().as_bytes());
        }
        let bearer = format!("Bearer {}", rest.bearer().await);
        let headers = [("authorization", bearer.as_str())];
        let (_, _, metrics) = rest.raw(Method::GET, "/metrics", &headers, "").await;
        let metrics = String::from_utf8(metrics.to_vec()).expect("text");
        for (name, least, most) in [
            // Ten years, and thirty days.
            (
                "hy2_master_authority_expires_seconds{state=\"active\"} ",
                3.0e8,
                3.2e8,
            ),
            ("hy2_master_node_certificate_expires_seconds ", 2.5e6, 2.6e6),
            ("hy2_master_node_certificates_expiring ", 0.0, 0.0),
        ] {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name));
            let value: f64 = line
                .unwrap_or_else(|| panic!("{name} is not in {metrics}"))
                .parse()
                .expect("a number");
            assert!((least..=most).contains(&value), "{name}{value}");
        }
        self.said.extend_from_slice(metrics.as_bytes());
        // Until the events of all this have arrived.
        let hooks = Arc::clone(&self.hooks.taken);
        crate::until("the webhook to be told of the last user", || async {
            let text = String::from_utf8_lossy(&hooks.lock().expect("no panic")).into_owned();
            if text.contains("user.created") && text.contains("\"bob\"") {
                Ok(())
            } else {
                Err(format!("{} bytes", text.len()))
            }
        })
        .await;
    }

    /// What an operator does on the host.
    async fn host_commands(&mut self) {
        self.secrets.text("a passphrase", &self.passphrase.clone());
        let out = self.fleet.path().join("host.backup");
        let shown = out.to_str().expect("text").to_owned();
        self.command("backup", &["backup", "--out", &shown]).await;
        self.command("check", &["restore", "--check", "--in", &shown])
            .await;
        self.command("rotate", &["rotate-tokens"]).await;
        self.command("authority", &["ca", "show"]).await;
        let printed = self.command("recover", &["recover-admin", "admin"]).await;
        let password = printed
            .lines()
            .find_map(|line| line.strip_prefix("password"))
            .expect("a password");
        self.secrets.text("a recovered password", password.trim());
        // Over REST, too: by the new password.
        let rest = self.fleet.rest.with_password(password.trim());
        let own = word("own");
        self.secrets.text("an own password", &own);
        let change = json!({"old": password.trim(), "new": own});
        let bearer = format!("Bearer {}", rest.bearer().await);
        let headers = [("authorization", bearer.as_str())];
        self.raw("/auth/password", &headers, &change).await.good();
        let rest = rest.with_password(&own);
        let bearer = format!("Bearer {}", rest.bearer().await);
        let headers = [("authorization", bearer.as_str())];
        let body = json!({"passphrase": self.passphrase}).to_string();
        let path = "/api/v1/backups";
        let (status, _, backup) = rest.raw(Method::POST, path, &headers, &body).await;
        assert_eq!(status, StatusCode::OK);
        assert!(backup.len() > 5_000, "{}", backup.len());
        std::fs::write(self.fleet.path().join("rest.backup"), backup).expect("written");
        self.fleet.rest = rest;
    }

    async fn command(&self, name: &str, arguments: &[&str]) -> String {
        let folder = self.fleet.path();
        let running = Command::new(binary("hy2-orchestrator"))
            .args(arguments)
            .arg("-c")
            .arg(folder.join("orchestrator.yaml"))
            .args(["-l", "trace"])
            .env("HY2_BACKUP_PASSPHRASE", &self.passphrase)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = crate::soon(name, running).await.expect("it runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {error}");
        std::fs::write(folder.join(format!("{name}.log")), &output.stderr).expect("written");
        std::fs::write(folder.join(format!("{name}.out")), &output.stdout).expect("written");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Keys that were made meanwhile: every node's, the master's, and any at all.
    fn keys(&mut self) {
        // What stands before the secret number in PKCS #8: P-256, and Ed25519 with and without the public key.
        for before in [
            "06072a8648ce3d020106082a8648ce3d030107046d306b0201010420",
            "020100300506032b657004220420",
            "020101300506032b657004220420",
        ] {
            let bytes = hex::decode(before).expect("hexadecimal");
            self.secrets.bytes("a private key", &bytes);
        }
        self.secrets.text("a private key", "PRIVATE KEY-----");
        for node in &self.fleet.nodes {
            let path = self.fleet.path().join(&node.name).join("data/node.key");
            let key = std::fs::read(path).expect("a key");
            let mark = [0x02, 0x01, 0x01, 0x04, 0x20];
            let at = key
                .windows(5)
                .position(|part| part == mark)
                .expect("PKCS #8")
                + 5;
            self.secrets
                .bytes("the node's private key", &key[at..at + 32]);
        }
        let text = std::fs::read_to_string(self.fleet.path().join("master.key")).expect("a key");
        let key = text.split_whitespace().nth(1).expect("a version and a key");
        self.secrets.text("the master key", key);
        self.secrets.bytes(
            "the master key",
            &URL_SAFE_NO_PAD.decode(key).expect("a key"),
        );
    }

    /// Everything that is looked at, by kind.
    async fn places(&mut self, store: Store) -> Vec<(&'static str, Vec<PathBuf>)> {
        // The last thing written is in the write-ahead log.
        let mark = word("last");
        self.marks.text("the last note", &mark);
        let rest = &self.fleet.rest;
        let users = rest.get("/users?search=ann").await;
        let path = format!("/users/{}", users["items"][0]["id"]);
        rest.patch(&path, json!({"note": mark})).await;
        let folder = self.fleet.path().to_owned();
        let dump = folder.join("dump.sql");
        let mut database = Vec::new();
        match store {
            Store::Sqlite => {
                std::fs::write(&dump, sqlite_dump(&folder.join("master/fleet.db")).await)
                    .expect("written");
                database.push(folder.join("master"));
            }
            Store::Postgres => {
                let postgres = self.fleet.postgres.as_ref().expect("it runs");
                run(
                    "pg_dump",
                    &[
                        "--inserts",
                        "-f",
                        dump.to_str().expect("text"),
                        &postgres.url,
                    ],
                )
                .await;
                // What is in memory only is written down, too.
                run("psql", &["-qc", "checkpoint", &postgres.url]).await;
                database.push(postgres.folder());
            }
        }
        self.redis.save(&folder.join("redis.rdb")).await;
        let logs = |end: &str| -> Vec<PathBuf> {
            let entries = std::fs::read_dir(&folder).expect("a folder").flatten();
            let ours = entries.map(|entry| entry.path()).filter(|path| {
                let name = path
                    .file_name()
                    .and_then(|name| name.to_str())
                    .unwrap_or_default();
                name.ends_with(end) && !name.starts_with("client-")
            });
            ours.collect()
        };
        let said = folder.join("said");
        std::fs::write(&said, &self.said).expect("written");
        let hooked = folder.join("hooked");
        std::fs::write(&hooked, &*self.hooks.taken.lock().expect("no panic")).expect("written");
        vec![
            ("logs", [logs(".log"), logs(".out")].concat()),
            ("database", database),
            ("dump", vec![dump]),
            (
                "backups",
                vec![folder.join("host.backup"), folder.join("rest.backup")],
            ),
            (
                "nodes",
                self.fleet
                    .nodes
                    .iter()
                    .map(|node| folder.join(&node.name))
                    .collect(),
            ),
            ("key", vec![folder.join("master.key")]),
            ("Redis", vec![folder.join("redis.rdb")]),
            ("answers", vec![said]),
            ("webhooks", vec![hooked]),
        ]
    }

    fn judge(&self, places: &[(&'static str, Vec<PathBuf>)]) {
        let (secrets, marks) = (self.secrets.searcher(), self.marks.searcher());
        let (mut bad, mut excused) = (Vec::new(), BTreeSet::new());
        let mut marked = BTreeSet::new();
        let mut allowed = ALLOWED.to_vec();
        if self.fleet.postgres.is_some() {
            allowed.push(LOOKED_UP);
        }
        for (kind, paths) in places {
            let mut of_kind = 0;
            for path in paths {
                let (found, read) = secrets.search(path);
                of_kind += read;
                for (file, name) in found {
                    let allowed = allowed
                        .iter()
                        .find(|(what, end)| *what == name && file.ends_with(end));
                    match allowed {
                        Some(rule) => drop(excused.insert(*rule)),
                        None => bad.push(format!("{name} in {}", excerpt(&secrets, &file, &name))),
                    }
                }
                let (found, _) = marks.search(path);
                for (file, name) in found {
                    let wal = file
                        .to_str()
                        .is_some_and(|path| path.contains("pg_wal") || path.ends_with("-wal"));
                    marked.insert((if wal { "write-ahead log" } else { kind }, name));
                }
            }
            assert!(of_kind > 0, "there is nothing of {kind}");
        }
        assert!(
            bad.is_empty(),
            "{} secrets in clear:\n{}",
            bad.len(),
            bad.join("\n")
        );
        // The search finds what is there.
        let all: BTreeSet<_> = allowed.iter().copied().collect();
        assert_eq!(excused, all, "what may be in clear is");
        for (kind, name) in [
            ("logs", "the authority's pin"),
            ("logs", "a node's master"),
            ("database", "a user's note"),
            ("database", "an administrator's name"),
            ("write-ahead log", "the last note"),
            ("dump", "a user's note"),
            ("nodes", "a node's number"),
            ("answers", "a user's note"),
            ("webhooks", "a user's note"),
        ] {
            let found = marked.contains(&(kind, name.to_owned()));
            assert!(found, "{name} is not found in {kind}: {marked:?}");
        }
        for name in [
            "a user's note",
            "an administrator's name",
            "a node's number",
        ] {
            assert!(
                !marked.contains(&("backups", name.to_owned())),
                "{name} in a backup"
            );
        }
        for log in [
            "orchestrator.log",
            "node-0.log",
            "node-1.log",
            "node-0.enrol.log",
        ] {
            let text = std::fs::read_to_string(self.fleet.path().join(log)).expect("text");
            assert!(text.contains("TRACE"), "{log} has everything");
        }
        let out = std::fs::read(self.fleet.path().join("orchestrator.out")).expect("a file");
        assert_eq!(secrets.count("the first password", &out), 1, "printed once");
    }
}

/// Shows where a secret was found.
fn excerpt(searcher: &Searcher, path: &Path, name: &str) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let at = searcher.position(name, &bytes).unwrap_or(0);
    let around = &bytes[at.saturating_sub(160)..(at + 80).min(bytes.len())];
    format!("{} at {at}: {}", path.display(), around.escape_ascii())
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn of((status, headers, body): (StatusCode, HeaderMap, bytes::Bytes)) -> Self {
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Self {
            status,
            headers,
            body,
        }
    }

    fn good(&self) -> Value {
        assert!(self.status.is_success(), "{}: {}", self.status, self.body);
        self.body.clone()
    }
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no text"))
        .to_owned()
}

/// Puts another credential into a link.
fn with_credential(link: &str, credential: &str) -> String {
    let mut url = Url::parse(link).expect("a link");
    url.set_username(credential).expect("a name");
    url.into()
}

/// RFC 4648.
fn base32(text: &str) -> Vec<u8> {
    let (mut bits, mut count, mut bytes) = (0_u32, 0, Vec::new());
    for letter in text.bytes().filter(|letter| *letter != b'=') {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'2'..=b'7' => letter - b'2' + 26,
            other => panic!("{other} is not base32"),
        };
        bits = (bits << 5) | u32::from(value);
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from((bits >> count) & 0xff).expect("eight bits"));
        }
    }
    bytes
}

async fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .kill_on_drop(true)
        .output();
    let output = crate::soon(program, output).await.expect("it runs");
    assert!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Every value of every table, as SQL writes it: what a file holds in pieces is whole here.
async fn sqlite_dump(path: &Path) -> String {
    let url = format!("sqlite:{}", path.display());
    let mut database = SqliteConnection::connect(&url).await.expect("it opens");
    let columns: Vec<(String, String)> = sqlx::query_as(
        "select m.name, c.name from sqlite_master m join pragma_table_info(m.name) c where m.type = 'table'",
    )
    .fetch_all(&mut database)
    .await
    .expect("a schema");
    assert!(columns.len() > 100, "{}", columns.len());
    let mut dump = String::new();
    for (table, column) in columns {
        // Names come from the schema.
        let sql = AssertSqlSafe(format!("select quote(\"{column}\") from \"{table}\""));
        let values: Result<Vec<String>, _> = sqlx::query_scalar(sql).fetch_all(&mut database).await;
        // Tables of the index of names have columns that cannot be read alone.
        for value in values.unwrap_or_default() {
            dump.push_str(&format!("{table}.{column} {value}\n"));
        }
    }
    dump
}

/// A receiver of webhooks that keeps everything.
struct Receiver {
    address: SocketAddr,
    taken: Arc<Mutex<Vec<u8>>>,
    _tasks: JoinSet<()>,
}

impl Receiver {
    async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let taken = Arc::<Mutex<Vec<u8>>>::default();
        let keep = Arc::clone(&taken);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                if let Some(request) = request(stream).await {
                    keep.lock().expect("no panic").extend_from_slice(&request);
                }
            }
        });
        Self {
            address,
            taken,
            _tasks: tasks,
        }
    }
}

/// Takes one request and says yes.
async fn request(mut stream: TcpStream) -> Option<Vec<u8>> {
    let mut taken = Vec::new();
    loop {
        let head = taken.windows(4).position(|part| part == b"\r\n\r\n");
        if let Some(head) = head {
            let text = String::from_utf8_lossy(&taken[..head]).to_ascii_lowercase();
            let length = text
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"));
            let length: usize = length
                .and_then(|length| length.trim().parse().ok())
                .unwrap_or(0);
            if taken.len() >= head + 4 + length {
                break;
            }
        }
        if stream.read_buf(&mut taken).await.ok()? == 0 {
            return None;
        }
    }
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    stream.write_all(answer).await.ok()?;
    Some(taken)
}

/// A Redis with a password.
struct Redis {
    port: u16,
    password: String,
    folder: tempfile::TempDir,
    _server: Child,
    _watch: Child,
}

impl Redis {
    async fn start(password: &str) -> Self {
        let port = ports::free();
        let folder = tempfile::tempdir().expect("a folder");
        let server = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--rdbcompression", "no"])
            .args(["--requirepass", password])
            .arg("--dir")
            .arg(folder.path())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("redis-server: apt-get install redis-server");
        // Outlives nobody: not a test that is killed either.
        let (owner, id) = (std::process::id(), server.id().expect("it runs"));
        let watch =
            format!("while kill -0 {owner} && kill -0 {id}; do sleep 1; done; kill -9 {id}");
        let watch = Command::new("bash")
            .args(["-c", &watch])
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("a shell");
        crate::until("Redis", || async {
            let connected = TcpStream::connect(("127.0.0.1", port)).await;
            connected.map(drop).map_err(|error| error.to_string())
        })
        .await;
        Self {
            port,
            password: password.to_owned(),
            folder,
            _server: server,
            _watch: watch,
        }
    }

    fn url(&self) -> String {
        format!("redis://:{}@127.0.0.1:{}", self.password, self.port)
    }

    /// Writes down everything that it holds.
    async fn save(&self, to: &Path) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))
            .await
            .expect("it runs");
        let commands = format!("AUTH {}\r\nSAVE\r\nDBSIZE\r\nQUIT\r\n", self.password);
        stream
            .write_all(commands.as_bytes())
            .await
            .expect("it reads");
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        crate::soon("Redis to save", read)
            .await
            .expect("it answers");
        let said: Vec<&str> = answer.lines().collect();
        assert_eq!(said[..2], ["+OK"; 2], "{answer}");
        assert_ne!(said[2], ":0", "nothing was kept in Redis");
        std::fs::copy(self.folder.path().join("dump.rdb"), to).expect("copied");
    }
}
