//! The built `hy2-orchestrator` on a host of its own.

#![allow(dead_code, reason = "each test program uses a part")]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};

/// A directory with a configuration.
pub(crate) struct Host {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) config: PathBuf,
}

/// A running orchestrator.
pub(crate) struct Running {
    child: Child,
    /// What it printed before it was ready.
    pub(crate) printed: Vec<String>,
    pub(crate) api: String,
    pub(crate) public: String,
    _log: std::thread::JoinHandle<()>,
}

impl Host {
    /// Makes a host whose store is here; absent: an SQLite file in the host's directory.
    pub(crate) fn new(database: Option<&str>, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let database = database.map_or_else(|| format!("sqlite:{at}/master.db"), str::to_owned);
        let config = folder.path().join("orchestrator.yaml");
        let text = format!(
            "database: {database}\nkeyFile: {at}/master.key\nagents: {{listen: '127.0.0.1:0'}}\n{}",
            if more.is_empty() {
                "api: {listen: '127.0.0.1:0'}\npublic: {url: 'http://127.0.0.1/', listen: '127.0.0.1:0'}\n"
            } else {
                more
            },
        );
        fs::write(&config, text).unwrap();
        Self { folder, config }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hy2-orchestrator"));
        command
            .args(arguments)
            .arg("--config")
            .arg(&self.config)
            .args(["--log-format", "json"])
            .env("HY2_BACKUP_PASSPHRASE", "a passphrase for backups")
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that works, and returns what it printed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that fails, and returns why.
    pub(crate) fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Starts it and waits until it is ready.
    pub(crate) fn start(&self) -> Running {
        let mut command = self.command(&["run"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut seen = String::new();
        let fields = loop {
            let Some(line) = log.next() else {
                panic!("it ended: {seen}");
            };
            let line = line.unwrap();
            let entry: Value = serde_json::from_str(&line).unwrap_or_default();
            if entry["message"] == "running" {
                break entry;
            }
            seen += &line;
        };
        // Read on, or it would stop at a full pipe.
        let log = std::thread::spawn(move || log.for_each(drop));
        let address = |key: &str| {
            let text = fields[key].as_str().unwrap();
            text.trim_start_matches("Some(")
                .trim_end_matches(')')
                .to_owned()
        };
        let mut running = Running {
            api: address("api"),
            public: address("public"),
            child,
            printed: Vec::new(),
            _log: log,
        };
        // What is printed once is printed before it is ready.
        if !self.path("started").exists() {
            let out = running.child.stdout.take().unwrap();
            running.printed = BufReader::new(out)
                .lines()
                .take(3)
                .map(Result::unwrap)
                .collect();
            fs::write(self.path("started"), "").unwrap();
        }
        running
    }

    /// Says that the store has an administrator already.
    pub(crate) fn is_restored(&self) {
        fs::write(self.path("started"), "").unwrap();
    }
}

impl Running {
    /// Returns the first administrator's password.
    pub(crate) fn password(&self) -> String {
        let line = self
            .printed
            .iter()
            .find(|line| line.starts_with("password"));
        line.unwrap().split_whitespace().nth(1).unwrap().to_owned()
    }

    pub(crate) fn hang_up(&self) {
        self.signal("-HUP");
    }

    fn signal(&self, which: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([which, &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Ends it in order.
    pub(crate) fn stop(mut self) {
        self.signal("-TERM");
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks the API of an orchestrator; the answer has to have this status.
pub(crate) async fn ask(
    running: &Running,
    token: &str,
    method: &str,
    path: &str,
    body: Option<Value>,
    status: u16,
) -> Value {
    let http: Client<HttpConnector, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let request = http::Request::builder()
        .method(method)
        .uri(format!("http://{}/api/v1{path}", running.api))
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {token}"))
        .body(Full::from(body))
        .unwrap();
    let response = http.request(request).await.unwrap();
    let found = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(found, status, "{}", String::from_utf8_lossy(&bytes));
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// Returns an access token.
pub(crate) async fn log_in(running: &Running, password: &str) -> String {
    let login = json!({"username": "admin", "password": password});
    let answer = ask(running, "x", "POST", "/auth/login", Some(login), 200).await;
    answer["access_token"].as_str().unwrap().to_owned()
}

/// Starts a throw-away PostgreSQL that ends with this process, and returns its address.
pub(crate) fn postgres() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let owner = std::process::id().to_string();
    let folder = std::env::temp_dir().join(format!("hy2-orchestrator-{owner}"));
    let started = Command::new(root.join("scripts/test-postgres.sh"))
        .arg("start")
        .arg(&folder)
        .arg(&owner)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&started.stderr);
    assert!(started.status.success(), "{error}");
    String::from_utf8(started.stdout).unwrap().trim().to_owned()
}
