//! A running `hy2`, watched through its JSON log.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use serde_json::Value;

/// How long an expected log line may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A folder with a certificate; files and processes of one test live in it.
pub(crate) struct Folder {
    folder: tempfile::TempDir,
    /// Fingerprint of the certificate.
    pub(crate) pin: String,
    flags: &'static [&'static str],
}

impl Folder {
    pub(crate) fn new() -> Self {
        Self::with(&[])
    }

    /// One whose servers and clients are started with these flags.
    pub(crate) fn with(flags: &'static [&'static str]) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let pin = make_certificate(folder.path());
        Self { folder, pin, flags }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Replaces the certificate.
    pub(crate) fn renew(&mut self) {
        self.pin = make_certificate(self.path());
    }

    /// Starts a server on a free port with settings added to the necessary ones.
    pub(crate) fn server(&self, settings: &str) -> Running {
        let fixed = "tls: {cert: cert.pem, key: key.pem}\n\
                     auth: {type: password, password: right}\n";
        let listen = match settings.contains("listen: 127") {
            true => "",
            false => "listen: 127.0.0.1:0\n",
        };
        let text = format!("{listen}{fixed}{settings}\n");
        self.start("server", "server.yaml", &text, &[])
    }

    /// Starts a client of the server at `address` with settings added to the necessary ones.
    pub(crate) fn client(&self, address: SocketAddr, settings: &str) -> Running {
        let text = format!("{}{settings}\n", self.trust(address));
        self.start("client", "client.yaml", &text, &[])
    }

    /// Runs a tool with a client's settings to its end.
    pub(crate) fn tool(&self, text: &str, arguments: &[&str]) -> Output {
        fs::write(self.path().join("tool.yaml"), text).expect("write");
        hy2(self.path())
            .args(arguments)
            .args(["-c", "tool.yaml"])
            .output()
            .expect("runs")
    }

    /// Settings of a client that trusts this certificate and knows the password.
    pub(crate) fn trust(&self, address: SocketAddr) -> String {
        let pin = &self.pin;
        format!(
            "server: {address}\nauth: right\ntls: {{sni: localhost, insecure: true, pinSHA256: {pin}}}\n"
        )
    }

    /// Starts a server whose log is on a disk without room; it listens where `settings` say.
    #[cfg(target_os = "linux")]
    pub(crate) fn server_without_log(&self, settings: &str) -> Running {
        let text = format!(
            "tls: {{cert: cert.pem, key: key.pem}}\n\
             auth: {{type: password, password: right}}\n{settings}\n"
        );
        fs::write(self.path().join("full.yaml"), text).expect("write");
        let full = fs::File::options().write(true).open("/dev/full");
        let child = hy2(self.path())
            .args(["server", "-c", "full.yaml", "--log-level", "debug"])
            .stdout(Stdio::null())
            .stderr(full.expect("every Linux has it"))
            .spawn()
            .expect("starts");
        let (_, lines) = channel();
        Running {
            child,
            lines,
            seen: Vec::new(),
        }
    }

    pub(crate) fn start(&self, command: &str, name: &str, text: &str, more: &[&str]) -> Running {
        fs::write(self.path().join(name), text).expect("write");
        let mut child = hy2(self.path())
            .args([
                command,
                "-c",
                name,
                "--log-format",
                "json",
                "--log-level",
                "debug",
            ])
            .args(self.flags)
            .args(more)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let log = BufReader::new(child.stderr.take().expect("piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Running {
            child,
            lines,
            seen: Vec::new(),
        }
    }
}

/// A process that is killed when the test ends.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Running {
    /// Waits for a log line with this message and returns its fields.
    pub(crate) fn expect(&mut self, message: &str) -> Value {
        self.expect_where(message, |_| true)
    }

    /// Waits for the line that says where something listens.
    pub(crate) fn address(&mut self, kind: &str) -> SocketAddr {
        let line = self.expect_where("listening", |line| line["kind"] == kind);
        line["address"]
            .as_str()
            .and_then(|text| text.parse().ok())
            .expect("an address")
    }

    pub(crate) fn expect_where(&mut self, message: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("no {message:?} in the log:\n{}", self.seen.join("\n"));
            };
            let fields: Value = serde_json::from_str(&line).unwrap_or(Value::Null);
            self.seen.push(line);
            if fields["message"] == message && wanted(&fields) {
                return fields;
            }
        }
    }

    /// Sends a signal by name, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        let sent = Command::new("sh")
            .args(["-c", &kill])
            .status()
            .expect("runs");
        assert!(sent.success(), "{kill}");
    }

    /// Waits for the end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        // The log ends with the process.
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.seen.push(line),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                Err(_) => panic!("does not end:\n{}", self.seen.join("\n")),
            }
        }
        self.child.wait().expect("ended")
    }

    /// Returns the log so far.
    pub(crate) fn log(&mut self) -> String {
        self.seen.extend(self.lines.try_iter());
        self.seen.join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn make_certificate(folder: &Path) -> String {
    let made = hy2(folder)
        .args(["cert", "--host", "localhost", "--overwrite"])
        .output()
        .expect("runs");
    let said = String::from_utf8(made.stdout).expect("text");
    let pin = said
        .lines()
        .find_map(|line| line.strip_prefix("pinSHA256: "));
    pin.expect("a pin").to_owned()
}

fn hy2(folder: &Path) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("hy2"));
    command.current_dir(folder).env("HOME", folder);
    command
}
