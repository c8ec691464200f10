//! A master with its front on loopback, and a client without opinions.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hy2_master_sdk::Master;
use hy2_master_sdk::auth::password::Cost;
use hy2_master_sdk::domain::{ManualClock, NodeId, Timestamp};
use hy2_master_sdk::front::{Front, FrontConfig};
use hy2_master_sdk::secrets::MasterKeys;
use hy2_master_sdk::store::nodes::{self, NewNode};
use hy2_master_sdk::store::{Store, StoreOptions, published};
use hy2_master_sdk::targets::TargetPolicy;
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use uuid::Uuid;

/// Runs a test on both databases.
macro_rules! on_both {
    ($(async fn $name:ident($fleet:ident) $body:block)*) => {
        $(
            mod $name {
                use super::*;

                async fn run($fleet: $crate::harness::Fleet) $body

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn on_sqlite() {
                    run($crate::harness::Fleet::sqlite().await).await;
                }

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn on_postgres() {
                    run($crate::harness::Fleet::postgres().await).await;
                }
            }
        )*
    };
}
pub(crate) use on_both;

/// A running master with its front.
pub(crate) struct Fleet {
    pub(crate) master: Master,
    pub(crate) front: Front,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) api: SocketAddr,
    pub(crate) public: SocketAddr,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) keys: MasterKeys,
    owner: String,
}

/// Where a test's time begins.
pub(crate) const START: Timestamp = Timestamp(1_800_000_000_000);

impl Fleet {
    pub(crate) async fn sqlite() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("master.db");
        let store = Store::open_sqlite(&path, &StoreOptions::default())
            .await
            .unwrap();
        Self::start(store, directory).await
    }

    pub(crate) async fn postgres() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open_postgres(&database().await, &options())
            .await
            .unwrap();
        Self::start(store, directory).await
    }

    async fn start(store: Store, directory: tempfile::TempDir) -> Self {
        Self::start_with(store, directory, |_| {}).await
    }

    /// Starts with settings of its own.
    pub(crate) async fn start_with(
        store: Store,
        directory: tempfile::TempDir,
        shape: impl FnOnce(&mut FrontConfig),
    ) -> Self {
        store.migrate().await.unwrap();
        let clock = Arc::new(ManualClock::new(START));
        let keys = MasterKeys::generate().unwrap();
        let master = Master::with_store(store)
            .keys(keys.clone())
            .clock(Arc::clone(&clock) as _)
            .start()
            .await
            .unwrap();
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = FrontConfig::new("https://sub.example.org/".parse().unwrap());
        config.api = Some(loopback);
        config.public = Some(loopback);
        config.password_cost = Cost {
            memory_kib: 64,
            passes: 1,
        };
        // Tests come from loopback and say in X-Forwarded-For from where else.
        config.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
        config.targets = TargetPolicy::Any;
        shape(&mut config);
        let front = Front::start(&master, config).await.unwrap();
        let first = front.first_admin().unwrap();
        let owner = first.password.expose_secret().to_owned();
        let api = front.api_address().unwrap();
        let public = front.public_address().unwrap();
        Self {
            master,
            front,
            clock,
            api,
            public,
            directory,
            keys,
            owner,
        }
    }

    /// Returns a client logged in as the first owner.
    pub(crate) async fn owner(&self) -> Client {
        // Each from an address of its own: logins are counted by address.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let from = format!("2001:db8:0:{}::1", NEXT.fetch_add(1, Ordering::Relaxed));
        let client = self.client().with("x-forwarded-for", &from);
        client
            .log_in("admin", &self.owner)
            .await
            .without("x-forwarded-for")
    }

    /// Returns the first owner's password.
    pub(crate) fn owner_password(&self) -> &str {
        &self.owner
    }

    /// Returns a client that is nobody.
    pub(crate) fn client(&self) -> Client {
        Client::new(self.api)
    }

    /// Returns a client logged in as a new administrator of a role.
    pub(crate) async fn as_role(&self, name: &str, role: &str) -> Client {
        let owner = self.owner().await;
        let password = "given by somebody";
        let new = json!({"username": name, "password": password, "role": role});
        owner.post("/api/v1/admins", &new).await.expect(201);
        let client = self.client().log_in(name, password).await;
        let change = json!({"old": password, "new": OWN_PASSWORD});
        client
            .post("/api/v1/auth/password", &change)
            .await
            .expect(204);
        self.client().log_in(name, OWN_PASSWORD).await
    }

    /// Makes a node as an enrolment would, and returns it.
    pub(crate) async fn node(&self, name: &str) -> NodeId {
        let mut tx = self.master.store().begin().await.unwrap();
        let row = nodes::create(&mut tx, &new_node(name), START)
            .await
            .unwrap();
        // As publication would make it; nothing here opens the key.
        let tls = published::NodeTlsRow {
            node_id: row.id,
            certificate: b"a certificate".to_vec(),
            private_key_enc: b"a key".to_vec(),
            sha256: vec![7; 32],
            host: row.public_host,
            not_after: START.plus(Duration::from_secs(3_650 * 86_400)),
        };
        published::insert_node_tls(&mut tx, &tls, START)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        row.id
    }

    /// Waits until a condition holds, asking again and again.
    pub(crate) async fn until<T, F>(&self, what: &str, mut ask: impl FnMut() -> F) -> T
    where
        F: Future<Output = Option<T>>,
    {
        for _ in 0..600 {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("never: {what}");
    }

    pub(crate) async fn stop(self) {
        self.front.shutdown().await;
        self.master.shutdown().await;
    }
}

/// Password of administrators that [`Fleet::as_role`] makes.
pub(crate) const OWN_PASSWORD: &str = "chosen by oneself";

fn options() -> StoreOptions {
    let mut options = StoreOptions::default();
    options.max_connections = 6;
    options
}

/// Makes an empty database on the server of this process, which is started once.
pub(crate) async fn database() -> String {
    static SERVER: OnceLock<String> = OnceLock::new();
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let server = tokio::task::spawn_blocking(|| {
        SERVER
            .get_or_init(|| {
                let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
                let directory =
                    std::env::temp_dir().join(format!("hy2-api-{}", std::process::id()));
                let started = Command::new(root.join("scripts/test-postgres.sh"))
                    .args([
                        "start",
                        directory.to_str().unwrap(),
                        &std::process::id().to_string(),
                    ])
                    .output()
                    .unwrap();
                assert!(
                    started.status.success(),
                    "{}",
                    String::from_utf8_lossy(&started.stderr)
                );
                String::from_utf8(started.stdout).unwrap().trim().to_owned()
            })
            .clone()
    })
    .await
    .unwrap();
    let name = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let pool = sqlx::postgres::PgPool::connect(&server).await.unwrap();
    let create = sqlx::AssertSqlSafe(format!("create database {name}"));
    sqlx::query(create).execute(&pool).await.unwrap();
    pool.close().await;
    let (server, _) = server.rsplit_once('/').unwrap();
    format!("{server}/{name}")
}

/// An HTTP client with headers of its own.
#[derive(Clone)]
pub(crate) struct Client {
    http: HyperClient<HttpConnector, Full<Bytes>>,
    address: SocketAddr,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) refresh: String,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Bytes,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            http: HyperClient::builder(TokioExecutor::new()).build_http(),
            address,
            headers: HashMap::new(),
            refresh: String::new(),
        }
    }

    pub(crate) async fn log_in(mut self, name: &str, password: &str) -> Self {
        let login = json!({"username": name, "password": password});
        let answer = self.post("/api/v1/auth/login", &login).await.expect(200);
        let token = answer["access_token"].as_str().unwrap();
        self.headers
            .insert("authorization".into(), format!("Bearer {token}"));
        self.refresh = answer["refresh_token"].as_str().unwrap().to_owned();
        self
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(name.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.remove(name);
        self
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, Some(body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.send("PATCH", path, Some(body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send("PUT", path, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, None).await
    }

    /// Asks as a program that follows events would, and returns the status alone: streams never end.
    pub(crate) async fn status(&self, path: &str) -> u16 {
        let mut request = http::Request::get(format!("http://{}{path}", self.address))
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::default()).unwrap();
        self.http.request(request).await.unwrap().status().as_u16()
    }

    pub(crate) async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let body = body.map(Value::to_string).unwrap_or_default();
        self.send_raw(method, path, "application/json", body).await
    }

    pub(crate) async fn send_raw(
        &self,
        method: &str,
        path: &str,
        media: &str,
        body: String,
    ) -> Answer {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address));
        if !body.is_empty() {
            request = request.header("content-type", media);
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        let asked = async {
            let (parts, body) = self.http.request(request).await.unwrap().into_parts();
            (parts, body.collect().await.unwrap().to_bytes())
        };
        let answered = tokio::time::timeout(Duration::from_secs(120), asked).await;
        let (parts, body) = answered.unwrap_or_else(|_| panic!("no answer to {method} {path}"));
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        }
    }
}

impl Answer {
    /// Returns the body as JSON, if the status is this one.
    pub(crate) fn expect(self, status: u16) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{text}");
        if self.body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&self.body).unwrap()
        }
    }

    /// Returns the code of a problem document, if status and shape are right.
    pub(crate) fn problem(self, status: u16) -> String {
        assert_eq!(self.header("content-type"), "application/problem+json");
        let body = self.expect(status);
        assert_eq!(body["status"], status);
        let code = body["code"].as_str().unwrap().to_owned();
        assert_eq!(body["type"], format!("urn:hy2:problem:{code}"));
        code
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }
}

pub(crate) fn new_node(name: &str) -> NewNode {
    NewNode {
        uid: Uuid::new_v4(),
        name: name.to_owned(),
        public_host: format!("{name}.example.org"),
        listen_port: 8080,
        region_id: None,
        tags: Vec::new(),
    }
}

/// Opens an empty, migrated SQLite store.
pub(crate) async fn empty_sqlite(directory: &Path) -> Store {
    let path = directory.join("restored.db");
    let store = Store::open_sqlite(&path, &StoreOptions::default())
        .await
        .unwrap();
    store.migrate().await.unwrap();
    store
}

/// Opens an empty, migrated PostgreSQL store.
pub(crate) async fn empty_postgres() -> Store {
    let store = Store::open_postgres(&database().await, &options())
        .await
        .unwrap();
    store.migrate().await.unwrap();
    store
}
