//! A server and a client of one implementation, with or without a link between them.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
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
    load,
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
    /// What it says of its sockets and packets.
    pub(crate) facts: Value,
}

/// A client that is connected, behind its link when there is one.
pub(crate) struct Connected {
    pub(crate) process: Process,
    pub(crate) tcp: SocketAddr,
    pub(crate) udp: SocketAddr,
    pub(crate) relay: Option<Relay>,
    pub(crate) connect_ms: f64,
    /// What it says of its packets.
    pub(crate) max_datagram: Value,
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
        json!({
            "tls_cert": self.certificate, "tls_key": self.key, "password": PASSWORD,
            "obfs": setup.salamander.then_some(obfs),
            "quic": quic(setup),
            "overclaim_guard": setup.guard, "threads": self.threads,
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
            "quic": quic(setup),
            "target": self.origin.to_string(), "udp_target": self.udp_origin.to_string(),
        })
    }

    /// Starts a server alone; returns its address and what it says of its sockets.
    pub(crate) fn server(
        &self,
        whose: Whose,
        setup: Setup,
        group: Option<&Group>,
    ) -> Result<(Process, String, Value)> {
        let config = self.server_config(setup);
        let place = |command| within(group, on_core(setup.one_core.then_some(0), command));
        match whose {
            Whose::Ours => {
                let (process, ready) = Process::start(place(self.ourselves("server")?), &config)?;
                let address = ready["addr"].as_str().context("no address")?.to_owned();
                Ok((process, address, ready["socket"].clone()))
            }
            Whose::Reference => {
                let command = place(Command::new(self.peer()?));
                let (mut process, address) = reference::server(command, &config)?;
                let stats = process.ask(json!({"cmd": "stats"}))?;
                Ok((process, address, stats["socket"].clone()))
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
        let (process, tcp, udp, connect_ms, max_datagram) = match whose {
            Whose::Ours => {
                let (process, ready) = Process::start(place(self.ourselves("client")?), &config)?;
                let text = |key: &str| ready[key].as_str().unwrap_or_default().to_owned();
                let connect_ms = ready["connect_ms"].as_f64().unwrap_or(f64::NAN);
                let max_datagram = ready["max_datagram"].clone();
                (process, text("addr"), text("udp"), connect_ms, max_datagram)
            }
            Whose::Reference => {
                let command = place(Command::new(self.peer()?));
                let (process, tcp, udp, connect_ms) = reference::client(command, &config)?;
                (process, tcp, udp, connect_ms, Value::Null)
            }
        };
        Ok(Connected {
            process,
            tcp: tcp.parse()?,
            udp: udp.parse()?,
            relay,
            connect_ms,
            max_datagram,
        })
    }

    /// Starts both ends.
    pub(crate) fn side(&self, whose: Whose, wanted: &Wanted) -> Result<Side> {
        let (server, address, socket) = self.server(whose, wanted.setup, None)?;
        let client = self.client(whose, &address, wanted, None)?;
        let mut facts = json!({"server_socket": socket});
        if !client.max_datagram.is_null() {
            facts["max_datagram_frame"] = client.max_datagram;
        }
        Ok(Side {
            server,
            client: client.process,
            tcp: client.tcp,
            udp: client.udp,
            relay: client.relay,
            connect_ms: client.connect_ms,
            facts,
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

    /// Describes what both run with.
    pub(crate) fn facts(&self) -> Result<Value> {
        let mut facts = json!({});
        for whose in self.sides() {
            let name = match whose {
                Whose::Ours => "hy2",
                Whose::Reference => "reference",
            };
            let mut side = self.side(*whose, &Wanted::default())?;
            let mut about = side.facts.take();
            about["largest_datagrams"] = self.largest_datagrams(*whose)?;
            if let Some(peer) = &self.peer {
                let (_server, address, _) = self.server(*whose, Setup::default(), None)?;
                let seen = reference::look_at(Command::new(peer), &address, &Value::Null)?;
                about["cipher"] = seen["cipher"].clone();
            }
            facts[name] = about;
        }
        if let Some(peer) = &self.peer {
            let (_server, address, _) = self.server(Whose::Reference, Setup::default(), None)?;
            let seen = reference::look_at(Command::new(peer), &address, &Value::Null)?;
            facts["reference"]["gso"] = seen["gso"].clone();
            facts["reference"]["client_socket"] = seen["socket"].clone();
        }
        facts["both"] = json!({
            "windows": "8 MiB per stream, 20 MiB per connection",
            "counters": "on",
        });
        Ok(facts)
    }

    /// Bytes of UDP payload of the largest datagram of each direction, once the path's limit has been looked for.
    fn largest_datagrams(&self, whose: Whose) -> Result<Value> {
        let link = LinkConfig::clean(1e3, Duration::ZERO, Duration::from_millis(50));
        let wanted = Wanted {
            link: Some(Between {
                up: link,
                down: link,
                seed: 1,
            }),
            ..Wanted::default()
        };
        let side = self.side(whose, &wanted)?;
        for way in [Way::Down, Way::Up] {
            load::bulk(side.tcp, way, 16 << 20, 1)?;
        }
        let report = side.relay.as_ref().context("no link")?.report();
        Ok(
            json!({"from_server": report.down.largest_bytes, "from_client": report.up.largest_bytes}),
        )
    }
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
    bound.arg(command.get_program()).args(command.get_args());
    bound
}
