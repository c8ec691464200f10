//! Real clients: ours as a process, and the reference's.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Command as Blocking, Output, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hy2_agent_sdk::{
    hy2_core::{
        Client,
        client::{ClientConfig, ServerAddress},
    },
    hy2_proto::uri::{ShareUri, normalise_pin},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};
use url::Url;

use crate::{
    load::Door,
    ports,
    process::{Process, binary},
};

/// A number for file names.
fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Relaxed)
}

/// A running `hy2 client`.
#[derive(Debug)]
pub(crate) struct Ours {
    _process: Process,
    pub(crate) door: Door,
}

impl Ours {
    /// Starts a client with what a subscription said.
    pub(crate) async fn start(folder: &Path, uri: &str) -> Self {
        Self::start_with(folder, uri, "").await
    }

    pub(crate) async fn start_with(folder: &Path, uri: &str, settings: &str) -> Self {
        let socks: SocketAddr = ([127, 0, 0, 1], ports::free()).into();
        let name = format!("client-{}", number());
        let file = folder.join(format!("{name}.yaml"));
        let text = format!("server: \"{uri}\"\nsocks5:\n  listen: {socks}\n{settings}");
        std::fs::write(&file, text).expect("written");
        let process = Process::start(
            &binary("hy2"),
            &["client", "-c", file.to_str().expect("text")],
            &folder.join(format!("{name}.log")),
        );
        crate::until("the client's port", || async {
            let connected = tokio::net::TcpStream::connect(socks).await;
            connected.map(drop).map_err(|error| error.to_string())
        })
        .await;
        Self {
            _process: process,
            door: Door::Socks(socks),
        }
    }
}

/// Tries to come in until it is let in, and returns when a byte had come back from `target`.
pub(crate) async fn let_in(uri: &str, target: SocketAddr) -> Instant {
    let config = config_of(uri);
    let deadline = Instant::now() + crate::PATIENCE;
    loop {
        let tried = async {
            let client = Client::connect(config.clone()).await?;
            let mut stream = client.tcp(&target.to_string()).await?;
            stream.write_all(b"?").await?;
            stream.read_exact(&mut [0]).await?;
            let at = Instant::now();
            client.close().await;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(at)
        };
        match tokio::time::timeout(crate::PATIENCE, tried).await {
            Ok(Ok(at)) => return at,
            Ok(Err(error)) => assert!(Instant::now() < deadline, "not let in: {error}"),
            Err(_) => panic!("neither let in nor refused"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a share link says.
fn config_of(uri: &str) -> ClientConfig {
    let uri: ShareUri = uri.parse().expect("a link");
    let port = uri.server_ports().iter().next().expect("a port");
    let server = ServerAddress::new(uri.host.to_string(), port);
    let mut config = ClientConfig::new(server, uri.auth.expect("a credential"));
    config.tls.sni = uri.sni;
    config.tls.insecure = uri.insecure;
    config.tls.pin_sha256 = uri.pin_sha256.map(|pin| {
        let pin = hex::decode(normalise_pin(&pin)).expect("a pin");
        pin.try_into().expect("a hash")
    });
    config
}

/// What `hy2 ping` found.
#[derive(Debug)]
pub(crate) struct Ping {
    pub(crate) code: Option<i32>,
    pub(crate) said: String,
}

impl Ping {
    pub(crate) const REFUSED: Option<i32> = Some(3);
    pub(crate) const CERTIFICATE: Option<i32> = Some(4);

    pub(crate) fn arrived(&self) -> bool {
        self.code == Some(0)
    }
}

/// Connects once and reaches `target`.
pub(crate) async fn ping(folder: &Path, uri: &str, settings: &str, target: SocketAddr) -> Ping {
    let output = tool(folder, uri, settings, &["ping", &target.to_string()]).await;
    Ping {
        code: output.status.code(),
        said: format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
    }
}

/// Runs a tool of `hy2` to its end.
pub(crate) async fn tool(folder: &Path, uri: &str, settings: &str, arguments: &[&str]) -> Output {
    let file = folder.join(format!("tool-{}.yaml", number()));
    std::fs::write(&file, format!("server: \"{uri}\"\n{settings}")).expect("written");
    let run = Command::new(binary("hy2"))
        .args(arguments)
        .arg("-c")
        .arg(&file)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = crate::soon("a tool", run).await.expect("runs");
    let _ = std::fs::remove_file(file);
    output
}

/// A running reference client. It ends with its standard input.
#[derive(Debug)]
pub(crate) struct Reference {
    _child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    next: u64,
}

impl Reference {
    /// Starts a client with what a subscription said.
    pub(crate) async fn start(uri: &str) -> Self {
        let uri = Url::parse(uri).expect("a link");
        let value = |key: &str| {
            let found = uri.query_pairs().find(|(name, _)| name == key);
            found
                .map(|(_, value)| value.into_owned())
                .unwrap_or_default()
        };
        let config = json!({
            "server": format!("{}:{}", uri.host_str().expect("a host"), uri.port().expect("a port")),
            "auth": uri.username(),
            "tls": {"sni": value("sni"), "insecure": value("insecure") == "1", "pin": value("pinSHA256").replace(':', "")},
        });
        let mut child = Command::new(reference())
            .arg("client")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("starts");
        let mut peer = Self {
            input: child.stdin.take().expect("piped"),
            lines: BufReader::new(child.stdout.take().expect("piped")).lines(),
            _child: child,
            next: 0,
        };
        peer.say(&config).await;
        peer.event(|line| line["event"] == "ready").await;
        peer
    }

    async fn say(&mut self, line: &Value) {
        let text = format!("{line}\n");
        self.input
            .write_all(text.as_bytes())
            .await
            .expect("it lives");
    }

    async fn event(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let lines = &mut self.lines;
        crate::soon("the reference client's answer", async move {
            loop {
                let line = lines
                    .next_line()
                    .await
                    .expect("readable")
                    .expect("it lives");
                let line: Value = serde_json::from_str(&line).expect("JSON");
                assert_ne!(line["event"], "failed", "{line}");
                if wanted(&line) {
                    return line;
                }
            }
        })
        .await
    }

    /// Gives a command; `Err` is the fault.
    pub(crate) async fn call(&mut self, command: &str, arguments: Value) -> Result<Value, Value> {
        self.next += 1;
        let id = self.next;
        let mut line = arguments;
        line["id"] = json!(id);
        line["cmd"] = json!(command);
        self.say(&line).await;
        let answer = self
            .event(|line| line["event"] == "answer" && line["id"] == id)
            .await;
        if answer["ok"] == true {
            Ok(answer["result"].clone())
        } else {
            Err(answer["error"].clone())
        }
    }

    /// Opens local ports that lead to an origin.
    pub(crate) async fn forward(&mut self, tcp: SocketAddr, udp: SocketAddr) -> Door {
        let mut ports = Vec::new();
        for (command, target) in [("forward_tcp", tcp), ("forward_udp", udp)] {
            let arguments = json!({"target": target.to_string()});
            let made = self.call(command, arguments).await.expect("a port");
            ports.push(
                made["addr"]
                    .as_str()
                    .expect("an address")
                    .parse()
                    .expect("an address"),
            );
        }
        Door::Forward {
            tcp: ports[0],
            udp: ports[1],
        }
    }
}

/// Builds the reference client, once.
fn reference() -> &'static Path {
    static BUILT: OnceLock<std::path::PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("interop");
        std::fs::create_dir_all(&dir).expect("a folder");
        // Other tests build it too; the lock goes with the file.
        let lock = std::fs::File::create(dir.join("lock")).expect("a file");
        lock.lock().expect("locked");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../interop/build.sh");
        let run = Blocking::new("sh")
            .arg(script)
            .arg(&dir)
            .output()
            .expect("runs");
        assert!(
            run.status.success(),
            "the reference client needs Go: {}",
            String::from_utf8_lossy(&run.stderr)
        );
        dir.join("peer")
    })
}
