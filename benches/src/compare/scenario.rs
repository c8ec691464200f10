//! What is measured, and the bars it has to meet.

use std::{net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{
    Arguments,
    load::{self, Way},
    process::Process,
    reference,
    report::{Figures, median, paired, spread},
};

struct Scenario {
    name: &'static str,
    way: Way,
    streams: u64,
    obfs: bool,
    /// The reference's CPU per GiB over ours must be at least this.
    bar: f64,
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "bulk down",
        way: Way::Down,
        streams: 1,
        obfs: false,
        bar: 2.2,
    },
    Scenario {
        name: "bulk up",
        way: Way::Up,
        streams: 1,
        obfs: false,
        bar: 2.2,
    },
    Scenario {
        name: "bulk down x10",
        way: Way::Down,
        streams: 10,
        obfs: false,
        bar: 2.2,
    },
    Scenario {
        name: "salamander down",
        way: Way::Down,
        streams: 1,
        obfs: true,
        bar: 4.0,
    },
    Scenario {
        name: "salamander up",
        way: Way::Up,
        streams: 1,
        obfs: true,
        bar: 4.0,
    },
];

/// One side: a server and a client that forwards a local port to the origin.
struct Side {
    server: Process,
    client: Process,
    proxy: SocketAddr,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let scratch = std::env::temp_dir().join(format!("hy2-compare-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    let result = run_in(arguments, &scratch);
    std::fs::remove_dir_all(&scratch)?;
    result
}

fn run_in(arguments: &Arguments, scratch: &Path) -> Result<()> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let (certificate, key) = (scratch.join("cert.pem"), scratch.join("key.pem"));
    std::fs::write(&certificate, made.cert.pem())?;
    std::fs::write(&key, made.signing_key.serialize_pem())?;
    let peer = arguments.peer.exists().then_some(arguments.peer.as_path());
    if peer.is_none() {
        println!(
            "No reference peer at {}: only our column, no ratios.",
            arguments.peer.display()
        );
    }
    println!("{}", machine());
    let origin = load::origin()?;
    let mut missed = Vec::new();
    for scenario in SCENARIOS
        .iter()
        .filter(|s| s.name.contains(&arguments.only))
    {
        let base = json!({
            "tls_cert": certificate, "tls_key": key, "password": "bench-password",
            "obfs": scenario.obfs.then(|| json!({"type": "salamander", "password": "bench-obfuscation-key"})),
        });
        let ours = start_ours(&base, origin)?;
        let theirs = peer
            .map(|peer| start_reference(peer, &base, origin))
            .transpose()?;
        let (mut a, mut b) = (Figures::default(), Figures::default());
        // One uncounted pair first.
        for run in 0..=arguments.runs {
            let counted = run > 0;
            measure(
                &ours,
                scenario,
                arguments.mebibytes,
                counted.then_some(&mut a),
            )?;
            if let Some(theirs) = &theirs {
                measure(
                    theirs,
                    scenario,
                    arguments.mebibytes,
                    counted.then_some(&mut b),
                )?;
            }
        }
        println!("\n{}", scenario.name);
        print_side("  hy2      ", &a);
        if theirs.is_some() {
            print_side("  reference", &b);
            let cpu = paired(&b.cpu(), &a.cpu());
            let rate = paired(&a.rate, &b.rate);
            println!(
                "  CPU per GiB: reference / hy2 = {cpu:.2} (bar {:.1}); rate: hy2 / reference = {rate:.2}",
                scenario.bar
            );
            if cpu < scenario.bar {
                missed.push(format!(
                    "{} ({cpu:.2} < {:.1})",
                    scenario.name, scenario.bar
                ));
            }
        }
    }
    if "idle".contains(&arguments.only) {
        for (used, bar) in [(false, 48.0), (true, 128.0)] {
            let idle = idle(&certificate, &key, origin, used)?;
            let state = if used { "after use" } else { "never used" };
            println!(
                "\nidle connections, {state}: {:.1} KiB of server memory each (bar {bar}); 1,000 of \
                 them take {:.2} % of a core (bar {IDLE_CPU_BAR})",
                idle.kibibytes, idle.percent
            );
            if idle.kibibytes > bar {
                missed.push(format!("idle {state} ({:.1} KiB > {bar})", idle.kibibytes));
            }
            if idle.percent > IDLE_CPU_BAR {
                missed.push(format!(
                    "idle {state} ({:.2} % > {IDLE_CPU_BAR})",
                    idle.percent
                ));
            }
        }
    }
    if arguments.bars && !missed.is_empty() {
        bail!("below the bar: {}", missed.join(", "));
    }
    Ok(())
}

fn start_ours(base: &Value, origin: SocketAddr) -> Result<Side> {
    let program = std::env::current_exe()?;
    let command = |role: &str| {
        let mut command = Command::new(&program);
        command.args(["ours", role]);
        command
    };
    let (server, ready) = Process::start(command("server"), base)?;
    let (client, ready) = Process::start(
        command("client"),
        &client_config(base, &ready["addr"], origin),
    )?;
    side(server, client, &ready["addr"])
}

/// What a server spends on authenticated connections that only keep themselves alive.
struct Idle {
    /// Memory per connection.
    kibibytes: f64,
    /// CPU of all of them, in percent of a core.
    percent: f64,
}

/// For 1,000 connections with a keep-alive every ten seconds.
const IDLE_CPU_BAR: f64 = 0.5;

/// How long the CPU time of idle connections is measured: three keep-alives.
const IDLE_SPAN: Duration = Duration::from_secs(30);

fn idle(certificate: &Path, key: &Path, origin: SocketAddr, used: bool) -> Result<Idle> {
    const CONNECTIONS: u64 = 1000;
    let base = json!({"tls_cert": certificate, "tls_key": key, "password": "bench-password"});
    let program = std::env::current_exe()?;
    let mut command = Command::new(&program);
    command.args(["ours", "server"]);
    let (server, ready) = Process::start(command, &base)?;
    let mut config = client_config(&base, &ready["addr"], origin);
    // What the first connections allocate once is not counted.
    config["count"] = 20.into();
    config["use"] = used.into();
    let crowd = |config: &Value| {
        let mut command = Command::new(&program);
        command.args(["ours", "crowd"]);
        Process::start(command, config)
    };
    let (mut first, _) = crowd(&config)?;
    if used {
        first.hear("used")?;
    }
    let before = server.resident()?;
    config["count"] = CONNECTIONS.into();
    let (mut many, _) = crowd(&config)?;
    if used {
        many.hear("used")?;
    }
    std::thread::sleep(Duration::from_secs(3));
    let after = server.resident()?;
    let spent = server.cpu_seconds()?;
    std::thread::sleep(IDLE_SPAN);
    let spent = server.cpu_seconds()? - spent;
    Ok(Idle {
        kibibytes: after.saturating_sub(before) as f64 / 1024.0 / CONNECTIONS as f64,
        percent: spent / IDLE_SPAN.as_secs_f64() * 100.0,
    })
}

fn start_reference(peer: &Path, base: &Value, origin: SocketAddr) -> Result<Side> {
    let mut config = base.clone();
    if config["obfs"].is_null()
        && let Some(object) = config.as_object_mut()
    {
        object.remove("obfs");
    }
    let (server, address) = reference::server(peer, config)?;
    let (client, proxy) = reference::client(peer, &client_config(base, &address.into(), origin))?;
    side(server, client, &proxy.into())
}

fn client_config(base: &Value, server: &Value, origin: SocketAddr) -> Value {
    json!({
        "server": server, "auth": base["password"], "obfs": base["obfs"],
        "target": origin.to_string(),
    })
}

fn side(server: Process, client: Process, proxy: &Value) -> Result<Side> {
    let proxy = proxy.as_str().context("no address")?.parse()?;
    Ok(Side {
        server,
        client,
        proxy,
    })
}

fn measure(
    side: &Side,
    scenario: &Scenario,
    mebibytes: u64,
    into: Option<&mut Figures>,
) -> Result<()> {
    let before = (side.server.cpu_seconds()?, side.client.cpu_seconds()?);
    let elapsed = load::bulk(side.proxy, scenario.way, mebibytes << 20, scenario.streams)?;
    let after = (side.server.cpu_seconds()?, side.client.cpu_seconds()?);
    let gibibytes = mebibytes as f64 / 1024.0;
    if let Some(figures) = into {
        figures.server.push((after.0 - before.0) / gibibytes);
        figures.client.push((after.1 - before.1) / gibibytes);
        figures
            .rate
            .push(gibibytes * 8.0 * 1.073_741_824 / elapsed.as_secs_f64());
    }
    Ok(())
}

fn print_side(name: &str, figures: &Figures) {
    println!(
        "{name}  CPU s/GiB {} (server {:.2} + client {:.2})  Gbit/s {}",
        spread(&figures.cpu()),
        median(&figures.server),
        median(&figures.client),
        spread(&figures.rate),
    );
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown CPU", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{model}, {cores} cores, kernel {}, load {}, rmem_max {}",
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").split(' ').next().unwrap_or_default(),
        read("/proc/sys/net/core/rmem_max").trim(),
    )
}
