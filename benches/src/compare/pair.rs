//! A server and a client of one implementation, with or without a link between them.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use hy2_link_emulator::{
    model::LinkConfig,
    relay::{Relay, RelayConfig},
};
use serde_json::{Value, json};

use crate::{
    group::Group,
    load, machine,
    process::Process,
    reference,
    scenario::{Setup, Way},
};

/// Whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    Ours,
    Reference,
}

impl Whose {
    /// Returns what tables and files call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "hy2",
            Self::Reference => "reference",
        }
    }
}

/// What all pairs of a run have in common.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) origin: SocketAddr,
    pub(crate) udp_origin: SocketAddr,
    /// The reference's program; none without Go.
    pub(crate) peer: Option<PathBuf>,
    /// Worker threads of our processes.
    pub(crate) threads: u64,
}

/// A link, the same properties in each direction unless said otherwise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Between {
    pub(crate) up: LinkConfig,
    pub(crate) down: LinkConfig,
    pub(crate) seed: u64,
}

/// How a pair differs from its defaults.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    pub(crate) setup: Setup,
    pub(crate) fast_open: bool,
    pub(crate) link: Option<Between>,
    /// The client's rates in bytes per second, when they are not [`Setup::brutal`]'s.
    pub(crate) up: u64,
    pub(crate) down: u64,
}

/// A server, and a client that forwards local ports to the origins.
pub(crate) struct Side {
    pub(crate) server: Process,
    pub(crate) client: Process,
    pub(crate) tcp: SocketAddr,
    pub(crate) udp: SocketAddr,
    pub(crate) relay: Option<Relay>,
    pub(crate) connect_ms: f64,
}

/// A client that is connected, behind its link when there is one.
pub(crate) struct Connected {
    pub(crate) process: Process,
    pub(crate) tcp: SocketAddr,
    pub(crate) udp: SocketAddr,
    pub(crate) relay: Option<Relay>,
    pub(crate) connect_ms: f64,
}

const PASSWORD: &str = "bench-password";

/// What glibc is told about its allocator.
const TUNABLES: &str = "GLIBC_TUNABLES";

/// Returns what our processes are told about the heap: large pages, as in the services of
/// `deployments/systemd`, unless the environment says otherwise.
pub(crate) fn tunables() -> String {
    std::env::var(TUNABLES).unwrap_or_else(|_| "glibc.malloc.hugetlb=1".to_owned())
}

impl Surroundings {
    /// Runs this program again, in a role.
    pub(crate) fn ourselves(&self, role: &str) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["ours", role]);
        command.env(TUNABLES, tunables());
        Ok(command)
    }

    /// What a server is told.
    pub(crate) fn server_config(&self, setup: Setup) -> Value {
        let obfs = json!({"type": "salamander", "password": "bench-obfuscation-key"});
        let cores = || thread::available_parallelism().map_or(1, usize::from) as u64;
        let threads = if setup.shipped { cores() } else { self.threads };
        json!({
            "tls_cert": self.certificate, "tls_key": self.key, "password": PASSWORD,
            "obfs": setup.salamander.then_some(obfs),
            "quic": quic(setup), "buffers": buffers(setup),
            "overclaim_guard": setup.guard, "threads": threads,
        })
    }

    /// What a client of it is told.
    pub(crate) fn client_config(&self, server: &str, wanted: &Wanted) -> Value {
        let setup = wanted.setup;
        let rate = |own: u64| if own > 0 { own } else { setup.brutal };
        let [up, down] = [rate(wanted.up), rate(wanted.down)];
        json!({
            "server": server, "auth": PASSWORD, "threads": self.threads,
            "obfs": self.server_config(setup)["obfs"],
            "tx": (up > 0).then_some(up), "rx": (down > 0).then_some(down),
            "fast_open": wanted.fast_open.then_some(true),
            "warm": wanted.link.is_some(),
            "no_parrot": setup.equal.then_some(true),
            "quic": quic(setup), "buffers": buffers(setup),
            "target": self.origin.to_string(), "udp_target": self.udp_origin.to_string(),
        })
    }

    /// Starts a server alone; returns its address.
    pub(crate) fn server(
        &self,
        whose: Whose,
        setup: Setup,
        group: Option<&Group>,
    ) -> Result<(Process, String)> {
        let config = self.server_config(setup);
        let place = |command| within(group, on_core(setup.one_core.then_some(0), command));
        match whose {
            Whose::Ours => {
                let mut command = self.ourselves("server")?;
                if setup.shipped {
                    command.env_remove(TUNABLES);
                }
                let (process, ready) = Process::start(place(command), &config)?;
                let address = ready["addr"].as_str().context("no address")?.to_owned();
                Ok((process, address))
            }
            Whose::Reference => {
                let command = place(Command::new(self.peer()?));
                reference::server(command, &config)
            }
        }
    }

    /// Starts a client of the server at `address`, behind the link that is wanted.
    pub(crate) fn client(
        &self,
        whose: Whose,
        address: &str,
        wanted: &Wanted,
        group: Option<&Group>,
    ) -> Result<Connected> {
        let relay = wanted.link.map(|link| {
            Relay::start(&RelayConfig {
                listen: SocketAddr::from(([127, 0, 0, 1], 0)),
                target: address.parse()?,
                up: link.up,
                down: link.down,
                seed: link.seed,
            })
            .context("the link emulator")
        });
        let relay = relay.transpose()?;
        let dialled = relay.as_ref().map_or_else(
            || address.to_owned(),
            |relay| relay.local_addr().to_string(),
        );
        let config = self.client_config(&dialled, wanted);
        let core = wanted.setup.one_core.then_some(1);
        let place = |command| within(group, on_core(core, command));
        let (process, tcp, udp, connect_ms) = match whose {
            Whose::Ours => {
                let (process, ready) = Process::start(place(self.ourselves("client")?), &config)?;
                let text = |key: &str| ready[key].as_str().unwrap_or_default().to_owned();
                let connect_ms = ready["connect_ms"].as_f64().unwrap_or(f64::NAN);
                (process, text("addr"), text("udp"), connect_ms)
            }
            Whose::Reference => {
                let command = place(Command::new(self.peer()?));
                reference::client(command, &config)?
            }
        };
        Ok(Connected {
            process,
            tcp: tcp.parse()?,
            udp: udp.parse()?,
            relay,
            connect_ms,
        })
    }

    /// Starts both ends.
    pub(crate) fn side(&self, whose: Whose, wanted: &Wanted) -> Result<Side> {
        let (server, address) = self.server(whose, wanted.setup, None)?;
        let client = self.client(whose, &address, wanted, None)?;
        Ok(Side {
            server,
            client: client.process,
            tcp: client.tcp,
            udp: client.udp,
            relay: client.relay,
            connect_ms: client.connect_ms,
        })
    }

    pub(crate) fn peer(&self) -> Result<&Path> {
        self.peer.as_deref().context("no reference peer")
    }

    /// Both, or ours alone.
    pub(crate) fn sides(&self) -> &'static [Whose] {
        if self.peer.is_some() {
            &[Whose::Ours, Whose::Reference]
        } else {
            &[Whose::Ours]
        }
    }

    /// Describes what both run with: as far as it can be, what running processes and their sockets say.
    pub(crate) fn facts(&self) -> Result<Value> {
        let mut facts = json!({});
        for whose in self.sides() {
            let mut about = self.seen(*whose)?;
            if let Some(peer) = &self.peer {
                let (_server, address) = self.server(*whose, Setup::default(), None)?;
                let seen = reference::look_at(Command::new(peer), &address, &Value::Null)?;
                about["cipher"] = seen["cipher"].clone();
                if *whose == Whose::Reference {
                    about["gso"] = seen["gso"].clone();
                    // Nothing is asked for, and the library does not say what it has.
                    about["windows"] =
                        "its defaults, 8 MiB per stream and 20 MiB per connection".into();
                }
            }
            facts[whose.name()] = about;
        }
        Ok(facts)
    }

    /// Moves some bytes each way over a wide link, then asks both ends of a side.
    fn seen(&self, whose: Whose) -> Result<Value> {
        let link = LinkConfig::clean(1e3, Duration::ZERO, Duration::from_millis(50));
        let wanted = Wanted {
            link: Some(Between {
                up: link,
                down: link,
                seed: 1,
            }),
            ..Wanted::default()
        };
        let mut side = self.side(whose, &wanted)?;
        for way in [Way::Down, Way::Up] {
            load::bulk(side.tcp, way, LOOK, 1)?;
        }
        let report = side.relay.as_ref().context("no link")?.report();
        let server = side.server.ask(json!({"cmd": "stats"}))?;
        let client = side.client.ask(json!({"cmd": "stats"}))?;
        let mut about = json!({
            "server_socket": server["socket"],
            "client_socket": client["socket"],
            // UDP payload, once the path's limit has been looked for.
            "largest_datagrams": {
                "from_server": report.down.largest_bytes, "from_client": report.up.largest_bytes,
            },
            "counters": {"moved_each_way": LOOK, "counted": counted(&server["traffic"])},
        });
        if whose == Whose::Ours {
            about["gso_asked_for"] = json!({
                "server": server["gso_asked_for"], "client": client["gso_asked_for"],
            });
            about["windows"] = json!({
                "stream": server["stream_window"], "connection": server["conn_window"],
            });
            about["max_datagram_frame"] = client["max_datagram"].clone();
        }
        Ok(about)
    }
}

/// Bytes each way for a look at what a side has.
const LOOK: u64 = 16 << 20;

/// Adds up what a server has counted for its users.
fn counted(traffic: &Value) -> Value {
    let of = |way: &str| -> u64 {
        let users = traffic.as_object().into_iter().flatten();
        users.filter_map(|(_, user)| user[way].as_u64()).sum()
    };
    json!({"tx": of("tx"), "rx": of("rx")})
}

fn quic(setup: Setup) -> Value {
    let mut quic = json!({});
    if setup.no_gso {
        quic["disable_gso"] = true.into();
    }
    if setup.equal {
        quic["stream_window"] = (8 << 20).into();
        quic["conn_window"] = (20 << 20).into();
    }
    quic
}

/// The socket buffers that our side asks for where both have the same.
fn buffers(setup: Setup) -> Option<Value> {
    let most = |of: &str| machine::number(&format!("/proc/sys/net/core/{of}"));
    setup.equal.then(|| {
        json!({"recv": reference_buffer(most("rmem_max")), "send": reference_buffer(most("wmem_max"))})
    })
}

/// Returns what the reference ends with where the system grants `most` to everybody.
///
/// quic-go asks for 8 MiB and is content when the kernel reports as much, which is twice what it grants; below it
/// insists, as we do (`sys_conn_buffers.go`).
fn reference_buffer(most: u64) -> u64 {
    const WANTED: u64 = 8 << 20;
    if 2 * most < WANTED {
        WANTED
    } else {
        WANTED.min(most)
    }
}

/// Puts a command into a group.
fn within(group: Option<&Group>, command: Command) -> Command {
    match group {
        Some(group) => group.around(&command),
        None => command,
    }
}

/// Binds a command to one core.
fn on_core(core: Option<usize>, command: Command) -> Command {
    let Some(core) = core else {
        return command;
    };
    let mut bound = Command::new("taskset");
    bound.args(["-c", &core.to_string()]);
    behind(bound, &command)
}

/// Has `front` run a command, with the command's environment.
pub(crate) fn behind(mut front: Command, command: &Command) -> Command {
    front.arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => front.env(key, value),
            None => front.env_remove(key),
        };
    }
    front
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_behind_another_keeps_its_environment() {
        let mut command = Command::new("program");
        command
            .arg("argument")
            .env("SET", "value")
            .env_remove("UNSET");
        let bound = on_core(Some(0), command);
        assert_eq!(bound.get_program(), "taskset");
        let arguments: Vec<_> = bound.get_args().collect();
        assert_eq!(arguments, ["-c", "0", "program", "argument"]);
        let environment: Vec<_> = bound.get_envs().collect();
        assert_eq!(
            environment,
            [
                ("SET".as_ref(), Some("value".as_ref())),
                ("UNSET".as_ref(), None)
            ]
        );
    }

    #[test]
    fn equal_buffers_are_what_the_reference_has() {
        let mebibytes = [(0, 8), (3, 8), (4, 4), (6, 6), (64, 8)];
        for (most, buffer) in mebibytes {
            assert_eq!(reference_buffer(most << 20), buffer << 20, "{most}");
        }
        assert_eq!(buffers(Setup::default()), None);
    }

    #[test]
    fn traffic_of_all_users_is_added() {
        let traffic = json!({"a": {"tx": 1, "rx": 10}, "b": {"tx": 2, "rx": 20}});
        assert_eq!(counted(&traffic), json!({"tx": 3, "rx": 30}));
        assert_eq!(counted(&Value::Null), json!({"tx": 0, "rx": 0}));
    }
}
