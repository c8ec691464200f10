//! A running orchestrator, and the program as people call it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hy2_master_sdk::Master;
use hy2_master_sdk::auth::password::Cost;
use hy2_master_sdk::backup::{envelope::BackupKey, restore};
use hy2_master_sdk::front::{Front, FrontConfig};
use hy2_master_sdk::store::nodes::{self, NewNode};
use hy2_master_sdk::store::{Store, StoreOptions};
use hy2_master_sdk::tls::ListenerTls;
use secrecy::ExposeSecret;
use serde_json::Value;

/// Name of the first account.
pub(crate) const OWNER: &str = "admin";

/// An orchestrator without nodes.
pub(crate) struct Fleet {
    pub(crate) master: Master,
    front: Front,
    folder: tempfile::TempDir,
    password: String,
}

impl Fleet {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut FrontConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let master = Master::sqlite(folder.path().join("master.db"))
            .key_file(folder.path().join("master.key"))
            .start()
            .await
            .unwrap();
        let mut config = FrontConfig::new("https://sub.example.org/".parse().unwrap());
        config.api = Some(([127, 0, 0, 1], 0).into());
        config.public = None;
        config.password_cost = Cost {
            memory_kib: 64,
            passes: 1,
        };
        change(&mut config);
        let front = Front::start(&master, config).await.unwrap();
        let first = front.first_admin().unwrap();
        let password = first.password.expose_secret().to_owned();
        Self {
            master,
            front,
            folder,
            password,
        }
    }

    pub(crate) fn password(&self) -> &str {
        &self.password
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.front.api_address().unwrap())
    }

    /// Returns the program of somebody who is not logged in.
    pub(crate) fn ctl(&self) -> Ctl {
        let profiles = self.folder.path().join("config/ctl.json");
        Ctl::new(env!("CARGO_BIN_EXE_hy2ctl").as_ref(), profiles)
    }

    /// Returns the program of the first owner.
    pub(crate) fn owner(&self) -> Ctl {
        let ctl = self.ctl();
        let login = ctl.with("HY2CTL_PASSWORD", self.password());
        login
            .run(&["login", "--url", &self.url(), "--username", OWNER])
            .ok();
        ctl
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Makes a node as an enrolment would.
    pub(crate) async fn node(&self, name: &str) -> i64 {
        let mut tx = self.master.store().begin().await.unwrap();
        let node = NewNode {
            uid: uuid::Uuid::new_v4(),
            name: name.to_owned(),
            public_host: format!("{name}.example.org"),
            listen_port: 8080,
            region_id: None,
            tags: Vec::new(),
        };
        let row = nodes::create(&mut tx, &node, self.master.now())
            .await
            .unwrap();
        tx.commit().await.unwrap();
        row.id.0
    }

    /// Stops it; its folder stays as long as what is returned.
    pub(crate) async fn stop(self) -> tempfile::TempDir {
        self.front.shutdown().await;
        self.master.shutdown().await;
        self.folder
    }
}

/// The program with an account's file and an environment of its own.
#[derive(Clone)]
pub(crate) struct Ctl {
    program: PathBuf,
    pub(crate) profiles: PathBuf,
    environment: Vec<(String, String)>,
}

/// What a run of it left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ctl {
    pub(crate) fn new(program: &Path, profiles: PathBuf) -> Self {
        Self {
            program: program.to_owned(),
            profiles,
            environment: Vec::new(),
        }
    }

    pub(crate) fn with(&self, name: &str, value: &str) -> Self {
        let mut other = self.clone();
        other.environment.push((name.to_owned(), value.to_owned()));
        other
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HY2CTL_PROFILES", &self.profiles)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().unwrap()
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.start(arguments))
    }

    pub(crate) fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Ran {
        let mut command = self.command(arguments);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        Ran::of(child)
    }

    /// Runs it with `--json` and returns what it says.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let ran = self.run(&[&["--json"], arguments].concat());
        serde_json::from_str(&ran.ok()).unwrap()
    }
}

impl Ran {
    fn of(child: Child) -> Self {
        let output = child.wait_with_output().unwrap();
        Self {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Returns what it printed, if all is well.
    pub(crate) fn ok(&self) -> String {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self.stdout.clone()
    }
}

/// Waits until there is an answer, asking again and again.
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(found) = ask() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("never: {what}");
}

/// Returns the code that an authenticator shows.
pub(crate) fn totp(uri: &str) -> String {
    totp_rs::Totp::from_url(uri)
        .unwrap()
        .generate_current()
        .to_string()
}

/// An authority.
pub(crate) type Authority = rcgen::CertifiedIssuer<'static, rcgen::KeyPair>;

pub(crate) fn authority() -> Authority {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap()
}

/// Makes the TLS of a listener with a name, the authority at the chain's end.
pub(crate) fn tls(authority: &Authority, name: &str) -> ListenerTls {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    let chain = certificate.pem() + &authority.pem();
    ListenerTls::from_pem(chain.as_bytes(), key.serialize_pem().as_bytes()).unwrap()
}

/// Returns the pin of an authority's key.
pub(crate) fn pin(authority: &Authority) -> String {
    use rcgen::PublicKeyData;
    use sha2::Digest;
    let spki = authority.key().subject_public_key_info();
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(spki)))
}

/// Checks that a backup restores.
pub(crate) async fn opens(backup: Vec<u8>, passphrase: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("restored.db");
    let store = Store::open_sqlite(&path, &StoreOptions::default())
        .await
        .unwrap();
    store.migrate().await.unwrap();
    let key = BackupKey::Passphrase(passphrase.into());
    let now = hy2_master_sdk::domain::Timestamp(1_800_000_000_000);
    let restored = restore::read(&store, &key, &backup[..], now).await.unwrap();
    assert!(restored.rows > 0);
    store.close().await;
}
