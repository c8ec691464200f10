//! The Go peer process: one JSON object per line in both directions, as `interop/README.md` says.
//!
//! Faults that the peer reports are values ([`CallError`]); a peer that dies, answers nonsense or
//! does not answer panics with what it wrote to stderr, since no test can go on from there.

mod binary;
mod client;
mod client_udp;
mod fault;
mod origin;
mod pattern;
mod raw;
mod server;

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

pub(crate) use binary::Version;
pub(crate) use client::{Client, ClientConfig, ClientTls};
pub(crate) use fault::{CallError, Fault};
pub(crate) use origin::{Fan, Origin};
pub(crate) use pattern::pattern;
pub(crate) use raw::Raw;
pub(crate) use server::{Server, ServerConfig};

/// How long a peer may take to print its ready line.
const START: Duration = Duration::from_secs(20);
/// How long [`Peer::event`] waits. An idle connection of the reference dies after 30 s.
const EVENT: Duration = Duration::from_secs(40);
/// What the peer may need beyond a command's own timeout to say that it expired.
const GRACE: Duration = Duration::from_secs(10);
/// Lines of stderr kept for a panic message.
const STDERR_LINES: usize = 60;

/// The obfuscation under QUIC; the same for servers and clients.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Obfs {
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    pub(crate) password: &'static str,
    /// Gecko's smallest and largest datagram in bytes, 0 for the defaults.
    pub(crate) min_packet: u32,
    pub(crate) max_packet: u32,
}

/// The congestion control used where Brutal is not.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Congestion {
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    pub(crate) profile: &'static str,
}

/// A running peer process; dropping it kills the process.
#[derive(Debug)]
pub(crate) struct Peer {
    mode: &'static str,
    ready: Map<String, Value>,
    stdin: tokio::sync::Mutex<ChildStdin>,
    inbox: Arc<Inbox>,
    last_id: AtomicU64,
    /// Killed on drop; the readers end with its pipes.
    _child: Child,
    _readers: JoinSet<()>,
    /// The peer's directory for temporary files, since a killed peer cannot remove its own.
    _scratch: TempDir,
}

/// What the process has said so far.
#[derive(Debug, Default)]
struct Inbox {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    answers: HashMap<u64, oneshot::Sender<Value>>,
    events: Vec<Value>,
    stderr: Vec<String>,
    ended: bool,
}

impl Peer {
    /// Starts a peer and waits for its ready line.
    ///
    /// # Errors
    /// The fault of a peer that refused its configuration.
    async fn spawn(
        mode: &'static str,
        version: Version,
        config: &impl Serialize,
    ) -> Result<Self, Fault> {
        let binary = binary::path(version).await;
        let scratch = tempfile::tempdir().expect("a temporary directory can be made");
        let mut child = Command::new(&binary)
            .arg(mode)
            .env("TMPDIR", scratch.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {}: {e}", binary.display()));
        let stdin = child.stdin.take().expect("stdin is piped");
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");

        let inbox = Arc::new(Inbox::default());
        let mut readers = JoinSet::new();
        readers.spawn(read_lines(stdout, Arc::clone(&inbox), Inbox::accept, true));
        readers.spawn(read_lines(
            stderr,
            Arc::clone(&inbox),
            Inbox::complain,
            false,
        ));
        let mut peer = Self {
            mode,
            ready: Map::new(),
            stdin: tokio::sync::Mutex::new(stdin),
            inbox,
            last_id: AtomicU64::new(0),
            _child: child,
            _readers: readers,
            _scratch: scratch,
        };
        peer.send(&serde_json::to_value(config).expect("configurations are plain data"))
            .await;
        let first = peer
            .inbox
            .take_event(START, |e| e["event"] == "ready" || e["event"] == "failed")
            .await
            .unwrap_or_else(|| peer.panic("did not become ready"));
        if first["event"] == "failed" {
            return Err(fault::parse(&first["error"]));
        }
        let Value::Object(ready) = first else {
            peer.panic("said ready without an object")
        };
        peer.ready = ready;
        Ok(peer)
    }

    /// Runs a command and waits for its answer.
    ///
    /// # Errors
    /// The peer's fault, with the partial result if it gave one.
    async fn call<R: DeserializeOwned>(
        &self,
        cmd: &str,
        args: Value,
        limit: Duration,
    ) -> Result<R, CallError> {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let (reply, answer) = oneshot::channel();
        self.inbox.state.lock().answers.insert(id, reply);
        let mut line = json!({"id": id, "cmd": cmd, "timeout_ms": limit.as_millis() as u64});
        if let (Value::Object(line), Value::Object(args)) = (&mut line, args) {
            line.extend(args);
        }
        self.send(&line).await;
        let Ok(Ok(mut answer)) = timeout(limit + GRACE, answer).await else {
            self.panic(&format!("gave no answer to {cmd}"))
        };
        let result = answer["result"].take();
        if answer["ok"] != true {
            return Err(CallError {
                cmd: cmd.to_owned(),
                fault: Box::new(fault::parse(&answer["error"])),
                result,
            });
        }
        serde_json::from_value(result.clone())
            .map_err(|e| self.panic(&format!("answered {cmd} with {result}: {e}")))
    }

    /// Takes the first event of that name which satisfies `accept`, waiting for it if need be.
    async fn event(&self, name: &str, accept: impl Fn(&Value) -> bool) -> Value {
        self.inbox
            .take_event(EVENT, |e| e["event"] == name && accept(e))
            .await
            .unwrap_or_else(|| self.panic(&format!("sent no such {name} event")))
    }

    /// Takes all events of a name that have arrived.
    fn events_so_far(&self, name: &str) -> Vec<Value> {
        let mut state = self.inbox.state.lock();
        let (wanted, rest) = std::mem::take(&mut state.events)
            .into_iter()
            .partition(|e| e["event"] == name);
        state.events = rest;
        wanted
    }

    /// A text of the ready line.
    fn ready_text(&self, key: &str) -> String {
        match self.ready.get(key).and_then(Value::as_str) {
            Some(text) => text.to_owned(),
            None => self.panic(&format!("has no {key} in its ready line")),
        }
    }

    async fn send(&self, line: &Value) {
        let mut text = line.to_string();
        text.push('\n');
        if let Err(e) = self.stdin.lock().await.write_all(text.as_bytes()).await {
            self.panic(&format!("takes no more commands: {e}"));
        }
    }

    fn panic(&self, what: &str) -> ! {
        let state = self.inbox.state.lock();
        panic!(
            "the {} peer {what}\nevents not taken: {:?}\nstderr:\n{}",
            self.mode,
            state.events.iter().rev().take(20).collect::<Vec<_>>(),
            state.stderr.join("\n"),
        )
    }
}

impl Inbox {
    fn accept(&self, line: String) {
        let mut state = self.state.lock();
        match serde_json::from_str::<Value>(&line) {
            Ok(value) if value["event"] == "answer" => {
                let waiting = value["id"]
                    .as_u64()
                    .and_then(|id| state.answers.remove(&id));
                if let Some(reply) = waiting {
                    // The caller may have been cancelled.
                    drop(reply.send(value));
                }
            }
            Ok(value) => state.events.push(value),
            Err(e) => state
                .stderr
                .push(format!("not JSON on stdout ({e}): {line}")),
        }
        drop(state);
        self.news.notify_waiters();
    }

    fn complain(&self, line: String) {
        let mut state = self.state.lock();
        if state.stderr.len() == STDERR_LINES {
            state.stderr.remove(0);
        }
        state.stderr.push(line);
    }

    /// Returns `None` when the time is over or the process has ended.
    async fn take_event(&self, limit: Duration, accept: impl Fn(&Value) -> bool) -> Option<Value> {
        let search = async {
            loop {
                let news = self.news.notified();
                tokio::pin!(news);
                news.as_mut().enable(); // before the look, so that no event slips between
                {
                    let mut state = self.state.lock();
                    if let Some(at) = state.events.iter().position(&accept) {
                        return Some(state.events.remove(at));
                    }
                    if state.ended {
                        return None;
                    }
                }
                news.await;
            }
        };
        timeout(limit, search).await.ok().flatten()
    }
}

async fn read_lines(
    pipe: impl AsyncRead + Unpin,
    inbox: Arc<Inbox>,
    take: fn(&Inbox, String),
    is_stdout: bool,
) {
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        take(&inbox, line);
    }
    if is_stdout {
        let mut state = inbox.state.lock();
        state.ended = true;
        state.answers.clear(); // fails the calls that wait
        drop(state);
        inbox.news.notify_waiters();
    }
}
